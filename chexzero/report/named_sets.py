"""The report's sections about evaluation sets by name: one per set, and one table over all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from chexzero.common.intervals import clustered_interval
from chexzero.evaluation.named_sets import COUNTED_AT, Choices, FindingScores, NamedSet, SummaryScore
from chexzero.evaluation.prompt_choice import REFERENCE, WAYS, SetWays
from chexzero.evaluation.results import number
from chexzero.report.charts import MUTED, OURS, save, style
from chexzero.report.format import interval, signed, signed_interval
from chexzero.report.sections import Figure, Section, Table

COUNT_NAMES = {0.9: "at least 0.9", 0.7: "at least 0.7"}


def named_set_section(data: NamedSet, scores: FindingScores, summaries: Sequence[SummaryScore], out: Path) -> Section:
    """Means beside the published ones, every finding with its interval, and all of them in one figure."""
    protocol = data.protocol
    undefined = [name for j, name in enumerate(data.findings) if not np.isfinite(scores.auroc[j])]
    unknown = int(np.isnan(data.truth).sum())
    text = [
        f"{len(data.table)} images of {data.images.name}, {len(data.findings)} columns of {data.labels.name}.",
        protocol.protocol,
        "Intervals are Newcombe's; that of a mean combines the findings' intervals and correlations. Published figures "
        "are the authors' own, on the images that they name.",
    ]
    if protocol.source:
        text.append(f"Source: {protocol.source}")
    if unknown:
        text.append(f"{unknown} labels are blank; such an image is left out of that finding's figures.")
    if undefined:
        text.append(f"Undefined, because a class is missing: {_some(undefined)}.")
    metrics: dict[str, Any] = {
        "images": len(data.table),
        "summaries": {one.summary.title: _summary_metrics(one) for one in summaries},
        "findings": {
            name: {
                "auroc": number(scores.auroc[j]),
                "lower": number(scores.lower[j]),
                "upper": number(scores.upper[j]),
                "n_pos": int(scores.n_pos[j]),
                "n": int(scores.n_known[j]),
            }
            for j, name in enumerate(data.findings)
        },
    }
    return Section(
        f"set_{data.name}",
        f"Evaluation set: {protocol.title}",
        text,
        [_summary_table(summaries), _findings_table(data, scores)],
        _figures(data, scores, out),
        metrics,
    )


def overview_section(results: Sequence[tuple[NamedSet, Sequence[SummaryScore]]]) -> Section:
    """One row per set: the mean over all its findings."""
    rows = [[data.protocol.title, data.name, len(data.table), *_cells(summaries[0])[1:]] for data, summaries in results]
    columns = ["Set", "Name", "Images", "Findings", "Mean AUROC", "95 % interval", *COUNT_NAMES.values()]
    text = ["A set's mean is over its findings with both positive and negative images, each counted once."]
    metrics = {data.name: _summary_metrics(summaries[0]) for data, summaries in results}
    table = Table("Mean zero-shot AUROC over the findings of each set", columns, rows)
    return Section("sets", "Evaluation sets by name", text, [table], [], metrics)


def add_choices(section: Section, found: Mapping[str, Choices]) -> None:
    """Add accuracy of the most probable of several findings, and retrieval precision, for each prompt wording."""
    first = next(iter(found.values()))
    ranks = list(first.precision)
    rows: list[list[Any]] = []
    for way, one in found.items():
        accuracy, lower, upper = clustered_interval(one.credit, one.patients)
        precision = {k: float(values.mean()) for k, values in one.precision.items()}
        rows.append([way, number(accuracy), interval(lower, upper), *(number(precision[k]) for k in ranks)])
        section.metrics.setdefault("likeliest", {})[way] = {
            "images": len(one.credit),
            "accuracy": number(accuracy),
            "lower": number(lower),
            "upper": number(upper),
            "retrieval_precision": {str(k): number(value) for k, value in precision.items()},
            "by_finding": {
                name: {
                    "images": int((one.labels == j).sum()),
                    "accuracy": number(float(one.credit[one.labels == j].mean())) if (one.labels == j).any() else None,
                }
                for j, name in enumerate(one.names)
            },
        }
    section.text.append(
        f"{len(first.credit)} images have exactly one of {', '.join(first.names)}. Accuracy: how often its probability "
        f"is the highest of the {len(first.names)} (ties share the credit; chance {1 / len(first.names):.3f}; Wilson's "
        "interval, clustered by patient). Precision at k: the share of a finding's images among the k that its prompts "
        "rank first, mean over the findings. Published accuracies come from other prompts, and from other images where "
        "the set was drawn again."
    )
    columns = ["Prompts", "Accuracy", "95 % interval", *(f"precision at {k}" for k in ranks)]
    section.tables.insert(0, Table(f"The likeliest of {len(first.names)} findings", columns, rows))


def prompt_choice_section(ways: Sequence[SetWays]) -> Section:
    """Compare prompt wordings: the mean AUROC of every set with each, and with the one chosen on validation images."""
    rows = [
        [
            one.data.protocol.title,
            *(number(one.mean(way)) for way in WAYS),
            one.chosen_on,
            one.chosen,
            signed(one.worth(one.chosen)[0]),
            signed_interval(*one.worth(one.chosen)[1:]),
            one.best(),
        ]
        for one in ways
    ]
    columns = ["Set", *WAYS, "Chosen on", "Chosen", "Gain", "95 % interval", "Best in hindsight"]
    text = [
        "Mean AUROC over the findings with several prompt wordings: CheXzero's pair ({} against “no {}”), the finding "
        "alone, “there is {}” against “there is no {}” and alone, and CheXzero's pair with the features of all known "
        "synonyms averaged. One wording is chosen on validation images alone; Gain is its mean minus that of "
        "CheXzero's pair on the same images (DeLong's interval). The best in hindsight is not a result: it was chosen on the set "
        "itself."
    ]
    metrics = {
        one.data.name: {
            "means": {way: number(one.mean(way)) for way in WAYS},
            "chosen_on": one.chosen_on,
            "chosen": one.chosen,
            **dict(zip(("worth", "lower", "upper"), map(number, one.worth(one.chosen)), strict=True)),
        }
        for one in ways
    }
    title = f"Mean AUROC by wording; {REFERENCE} is CheXzero's"
    return Section("prompt_choice", "Effect of the prompt wording", text, [Table(title, columns, rows)], [], metrics)


def _cells(one: SummaryScore) -> list[Any]:
    counts = [one.counts[at] for at in COUNTED_AT]
    return [one.summary.title, len(one.used), number(one.mean), interval(one.lower, one.upper), *counts]


def _summary_metrics(one: SummaryScore) -> dict[str, Any]:
    return {
        "findings": len(one.used),
        "mean_auroc": number(one.mean),
        "lower": number(one.lower),
        "upper": number(one.upper),
        **{f"at_least_{at}": count for at, count in one.counts.items()},
    }


def _summary_table(summaries: Sequence[SummaryScore]) -> Table:
    rows: list[list[Any]] = []
    for one in summaries:
        title, *cells = _cells(one)
        rows.append([title, "this run", *cells, ""])
        for model, figures in one.summary.published.items():
            counts = [figures.get(f"at_least_{at}", "") for at in COUNTED_AT]
            where = figures.get("where", "")
            rows.append([title, model, figures.get("of", ""), figures.get("mean", ""), "", *counts, where])
    columns = ["Mean over", "Model", "Findings", "Mean AUROC", "95 % interval", *COUNT_NAMES.values(), "Where"]
    return Table("Means and counts, beside published figures", columns, rows)


def _findings_table(data: NamedSet, scores: FindingScores) -> Table:
    order = sorted(range(len(data.findings)), key=lambda j: -np.nan_to_num(scores.auroc[j], nan=-1.0))
    rows = [
        [
            data.findings[j] + (" (no finding)" if data.findings[j] in data.protocol.no_findings else ""),
            int(scores.n_pos[j]),
            int(scores.n_known[j]),
            number(scores.auroc[j]),
            interval(scores.lower[j], scores.upper[j]),
        ]
        for j in order
    ]
    return Table("Every column, best first", ["Finding", "Positive", "Known", "AUROC", "95 % interval"], rows)


def _figures(data: NamedSet, scores: FindingScores, folder: Path) -> list[Figure]:
    """AUROC and interval of every finding, best at the top; no figure if no AUROC is defined."""
    shown = [
        j
        for j in np.argsort(np.nan_to_num(scores.auroc, nan=-1.0))
        if np.isfinite(scores.auroc[j]) and data.findings[j] not in data.protocol.no_findings
    ]
    if not shown:
        return []
    canvas = Canvas(figsize=(7.5, 1 + 0.16 * len(shown)), layout="constrained")
    axes = canvas.subplots()
    height = np.arange(len(shown))
    axes.hlines(height, scores.lower[shown], scores.upper[shown], color=OURS, linewidth=1.0)
    axes.plot(scores.auroc[shown], height, "o", color=OURS, markersize=3)
    axes.axvline(0.5, color=MUTED, linewidth=0.7, linestyle=":")
    axes.set_yticks(height, [data.findings[j] for j in shown])
    axes.set_ylim(-1, len(shown))
    axes.set_xlim(-0.01, 1.01)
    style(axes, x="AUROC, with 95 % interval")
    axes.tick_params(axis="y", labelsize=6)
    caption = f"AUROC of every finding of {data.protocol.title}, best first, with Newcombe's 95 % interval."
    return [save(canvas, folder, f"set_{data.name}", caption)]


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
