"""Compare models on evaluation sets by name: one table and one figure for all, as papers print them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from chexzero.common.intervals import holm
from chexzero.evaluation.checkpoint_choice import Choice
from chexzero.evaluation.measure import Request, predict_files
from chexzero.evaluation.named_sets import (
    FindingScores,
    NamedSet,
    SummaryScore,
    mean_difference,
    score_findings,
    summarise,
)
from chexzero.evaluation.results import number
from chexzero.evaluation.settings import EvaluationSettings
from chexzero.report.charts import MUTED, OURS, THEIRS, THIRD, save, style
from chexzero.report.format import interval, p_text, signed, signed_interval
from chexzero.report.sections import Figure, Section, Table

#: Set's name -> model's name -> scores.
Scores = Mapping[str, Mapping[str, FindingScores]]


def score_models(choices: Mapping[str, Choice], sets: Sequence[NamedSet], settings: EvaluationSettings) -> Scores:
    """Evaluate every model on every set with the prompts of the set's protocol; each model is loaded once."""
    requests = [
        Request(one.images, one.images_sha256, [one.protocol.prompts(name) for name in one.findings], one.findings)
        for one in sets
    ]
    found: dict[str, dict[str, FindingScores]] = {one.name: {} for one in sets}
    for model, choice in choices.items():
        for one, probability in zip(sets, predict_files(choice.checkpoints, requests, settings)[0], strict=True):
            found[one.name][model] = score_findings(one.truth, probability)
    return found


def sets_section(sets: Sequence[NamedSet], scores: Scores, out: Path) -> Section:
    """The means of all models on all sets, beside the best published one, and each model's difference to the first."""
    summaries = {one.name: _summaries(one, scores[one.name]) for one in sets}
    differences = _differences(sets, scores, summaries)
    first, *others = scores[sets[0].name]
    text = [
        "Each model was run on each set with the prompts of the set's protocol; a mean is over the findings with a "
        f"positive and a negative image. Differences to {first} compare the means over all findings on the same images "
        "(DeLong's interval), with Holm's correction over all sets and models. Published figures are the authors' own, "
        "on the images that they name."
    ]
    metrics = {
        one.name: {
            model: {
                "mean_auroc": number(found[0].mean),
                "lower": number(found[0].lower),
                "upper": number(found[0].upper),
            }
            | {key: number(value) for key, value in differences.get((one.name, model), {}).items()}
            for model, found in summaries[one.name].items()
        }
        for one in sets
    }
    tables = [_means_table(sets, summaries), *([_differences_table(sets, differences)] if others else [])]
    return Section("sets", "Evaluation sets by name", text, tables, [_figure(sets, summaries, out)], metrics)


def _summaries(data: NamedSet, scores: Mapping[str, FindingScores]) -> dict[str, list[SummaryScore]]:
    return {model: summarise(data, found) for model, found in scores.items()}


def _means_table(sets: Sequence[NamedSet], summaries: Mapping[str, Mapping[str, list[SummaryScore]]]) -> Table:
    rows: list[list[Any]] = []
    for one in sets:
        models = summaries[one.name]
        for k, first in enumerate(next(iter(models.values()))):
            cells = [
                cell
                for found in models.values()
                for cell in (number(found[k].mean), interval(found[k].lower, found[k].upper))
            ]
            published = [
                (figures["mean"], name) for name, figures in first.summary.published.items() if "mean" in figures
            ]
            best = "{1} {0:.3f}".format(*max(published)) if published else ""
            rows.append([one.protocol.title, first.summary.title, len(one.table), len(first.used), *cells, best])
    names = list(summaries[sets[0].name])
    columns = ["Set", "Mean over", "Images", "Findings"]
    columns += [text for name in names for text in (name, f"95 % interval ({name})")]
    return Table("Mean zero-shot AUROC, and the best published mean", [*columns, "Best published"], rows)


def _differences(
    sets: Sequence[NamedSet], scores: Scores, summaries: Mapping[str, Mapping[str, list[SummaryScore]]]
) -> dict[tuple[str, str], dict[str, float]]:
    """(set, model) -> difference to the first model of the mean over all findings."""
    found = {}
    for one in sets:
        first, *others = scores[one.name]
        columns = summaries[one.name][first][0].used
        for model in others:
            values = mean_difference(scores[one.name][model], scores[one.name][first], columns)
            found[one.name, model] = dict(
                zip(("difference", "difference_lower", "difference_upper", "p"), values, strict=True)
            )
    corrected = holm([values["p"] for values in found.values()])
    return {key: values | {"p_holm": float(p)} for (key, values), p in zip(found.items(), corrected, strict=True)}


def _differences_table(sets: Sequence[NamedSet], found: Mapping[tuple[str, str], Mapping[str, float]]) -> Table:
    titles = {one.name: one.protocol.title for one in sets}
    rows = [
        [
            titles[name],
            model,
            signed(one["difference"]),
            signed_interval(one["difference_lower"], one["difference_upper"]),
            p_text(one["p"]),
            p_text(one["p_holm"]),
        ]
        for (name, model), one in found.items()
    ]
    columns = ["Set", "Model", "Difference", "95 % interval (difference)", "p", "p (Holm)"]
    return Table("Difference in mean AUROC over all findings", columns, rows)


def _figure(
    sets: Sequence[NamedSet], summaries: Mapping[str, Mapping[str, list[SummaryScore]]], folder: Path
) -> Figure:
    models = list(summaries[sets[0].name])
    canvas = Canvas(figsize=(7.5, 1.2 + 0.22 * len(models) * len(sets)), layout="constrained")
    axes = canvas.subplots()
    height = np.arange(len(sets))[::-1].astype(float)
    for k, (model, colour) in enumerate(zip(models, _colours(len(models)), strict=True)):
        ones = [summaries[one.name][model][0] for one in sets]
        at = height - 0.7 * ((k + 0.5) / len(models) - 0.5)
        axes.hlines(at, [one.lower for one in ones], [one.upper for one in ones], color=colour, linewidth=1.2)
        axes.plot([one.mean for one in ones], at, "o", color=colour, markersize=4, label=model)
    axes.axvline(0.5, color=MUTED, linewidth=0.7, linestyle=":")
    axes.set_yticks(height, [one.protocol.title for one in sets])
    axes.set_ylim(-0.6, len(sets) - 0.4)
    style(axes, x="Mean AUROC over all findings, with 95 % interval")
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
    return save(canvas, folder, "sets", f"Mean AUROC of {', '.join(models)} on {len(sets)} evaluation sets.")


def _colours(n: int) -> list[str]:
    """Colours that can be told apart, the first three as in all figures."""
    known = [OURS, THEIRS, THIRD, "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"]
    return [known[k % len(known)] for k in range(n)]
