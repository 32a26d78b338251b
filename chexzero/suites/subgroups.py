"""Differences in AUROC and F1 between groups of patients, by sex, race and age, with balanced resampling.

Demographics come from the manifests by id. A gap is a group's value minus that of the attribute's largest group with
enough cases; its interval comes from 2,000 stratified resamples and is widened for the attribute's other comparisons.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from chexzero.common.errors import UserError
from chexzero.common.labels import PAIR_TEMPLATE
from chexzero.common.statistics import BLOCK, auroc, percentile_interval, weighted_auroc
from chexzero.metrics import best_thresholds
from chexzero.report.format import interval, signed, signed_interval
from chexzero.report.sections import Section, Table
from chexzero.suites import metrics
from chexzero.suites.context import EvaluationContext, file_flag
from chexzero.suites.groups import assign, read_demographics, read_groups
from chexzero.suites.tables import LABELS_REMEDY, header, labels_file, read_labelled

DESCRIPTION = Path(__file__).with_suffix(".yaml")
N_SAMPLES = 2000
ALPHA = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this suite."""
    group = parser.add_argument_group("suite subgroups")
    file_flag(group, "subgroups_images", "images to score (.h5 or a folder; default: the validation set)")
    file_flag(group, "subgroups_labels", "their labels (default: <images>_labels.csv)")
    file_flag(
        group, "subgroups_manifest", "manifest with id, sex, age, race (default: the images' manifest in splits/)"
    )
    group.add_argument("--subgroups_findings", nargs="+", metavar="LABEL", help="labels to compare (default: all)")


def run(context: EvaluationContext) -> Section:
    """Score every group on every label and compare them; see the module."""
    description = read_groups(DESCRIPTION)
    images = context.option("subgroups_images", "valid")
    data = read_labelled(context, images, context.option("subgroups_labels"), context.option("subgroups_findings"))
    manifest = Path(context.option("subgroups_manifest", context.manifest_path(images)))
    groups, notes = assign(read_demographics(manifest, data.ids, data.path), description)
    if not groups:
        raise UserError(
            f"{manifest} gives no sex, age or race for the {len(data.ids)} images of {data.path}; name a "
            f"manifest that does with --subgroups_manifest"
        )

    def predict(features: np.ndarray) -> np.ndarray:
        positive, negative = PAIR_TEMPLATE
        pairs = [([positive.format(label)], [negative.format(label)]) for label in data.labels]
        return context.probabilities(features, pairs)

    chosen_on, where = data, "these images, pooled over the groups"
    path = labels_file(context, "valid")
    if images != "valid" and path.is_file() and set(data.labels) <= set(header(path, LABELS_REMEDY)):
        chosen_on, where = read_labelled(context, "valid", path, data.labels), "the validation set"
    thresholds = best_thresholds(chosen_on.truth, predict(chosen_on.features), f1_score)
    results = compare(
        data.truth,
        predict(data.features),
        thresholds,
        data.labels,
        groups,
        data.patients(),
        description["min_cases"],
        context.seed,
    )
    section = _section(results, description["min_cases"])
    section.text += [f"{len(data.ids)} images of {data.path.name}; thresholds have the best F1 on {where}.", *notes]
    return section


def compare(
    truth: np.ndarray,
    probability: np.ndarray,
    thresholds: np.ndarray,
    labels: list[str],
    groups: dict[str, dict[str, np.ndarray]],
    patients: np.ndarray,
    min_cases: int,
    seed: int,
    n_samples: int = N_SAMPLES,
) -> dict[str, dict[str, Any]]:
    """AUROC and balanced F1 of each group, and the gaps.

    truth, probability: (N, L). thresholds: (L,). groups: attribute -> group -> (N,) of bool. patients: (N,), each
    resampled as a whole. Returns attribute -> label -> {"groups": {name: {...}}, "reference": name or None,
    "gaps": {name: {"auroc": {...}, "f1": {...}}}}; a gap is the group minus the reference.
    """
    results: dict[str, dict[str, Any]] = {}
    for attribute, members in groups.items():
        results[attribute] = {}
        for j, label in enumerate(labels):
            rng = np.random.default_rng([seed, j, *attribute.encode()])
            measured, samples = {}, {}
            for name, rows in members.items():
                measured[name], drawn = measure(
                    truth[rows, j], probability[rows, j], thresholds[j], patients[rows], min_cases, rng, n_samples
                )
                if drawn is not None:
                    samples[name] = drawn
            sizes = {name: measured[name]["images"] for name in samples}
            reference = max(sizes, key=lambda name: sizes[name], default="")
            others = [name for name in samples if name != reference]
            gaps = {}
            for name in others:
                cases = min(measured[name]["cases"], measured[reference]["cases"])
                level = metrics.expanded_level(1 - ALPHA / len(others), cases)
                gaps[name] = {
                    metric: _gap(
                        measured[name][metric] - measured[reference][metric],
                        samples[name][metric] - samples[reference][metric],
                        level,
                    )
                    for metric in ("auroc", "f1")
                }
            results[attribute][label] = {"groups": measured, "reference": reference or None, "gaps": gaps}
    return results


def measure(
    truth: np.ndarray,
    score: np.ndarray,
    threshold: float,
    patients: np.ndarray,
    min_cases: int,
    rng: np.random.Generator,
    n_samples: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
    """One group and one label: truth, score, patients (n,). Returns the figures and, with enough cases, resamples.

    `cases` is the number of patients in the smaller class, which limits the precision.
    """
    positive = truth.astype(bool)
    cases = [len(set(patients[positive])), len(set(patients[~positive]))]
    figures = {
        "images": len(truth),
        "positives": int(positive.sum()),
        "cases": min(cases),
        "enough": min(cases) >= min_cases,
        "auroc": math.nan,
        "f1": math.nan,
    }
    if not min(cases):
        return figures, None
    predicted = score >= threshold
    figures["auroc"] = float(auroc(truth, score)[0])
    if np.isfinite(threshold):
        figures["f1"] = float(balanced_f1(positive, predicted, np.ones((len(truth), 1)))[0])
    if not figures["enough"]:
        return figures, None
    drawn = balanced_resamples(positive, score, predicted, patients, rng, n_samples)
    if np.isnan(threshold):  # none could be chosen: the validation set has no case of the label
        drawn["f1"][:] = math.nan
    for metric, values in drawn.items():
        interval = percentile_interval(values, metrics.expanded_level(1 - ALPHA, min(cases)))
        figures[f"{metric}_lower"], figures[f"{metric}_upper"] = map(float, interval)
    return figures, drawn


def balanced_f1(positive: np.ndarray, predicted: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """F1 at equal shares of both classes, so that groups with different prevalence can be compared.

    positive, predicted: (n,) of bool. counts: (n, S), how often each row counts. Returns (S,): with the share s of
    positives found and f of negatives called positive, F1 = 2 s / (1 + s + f).
    """
    found = counts[positive & predicted].sum(0) / counts[positive].sum(0)
    false = counts[~positive & predicted].sum(0) / counts[~positive].sum(0)
    return 2 * found / (1 + found + false)


def balanced_resamples(
    positive: np.ndarray,
    score: np.ndarray,
    predicted: np.ndarray,
    patients: np.ndarray,
    rng: np.random.Generator,
    n_samples: int,
) -> dict[str, np.ndarray]:
    """AUROC and balanced F1 (n_samples,) when patients are drawn with replacement, within each class.

    Both classes have equal weight in every resample. As many patients are drawn as there are: fewer would make the
    intervals too wide, more too narrow.
    """
    samples = {"auroc": np.empty(n_samples), "f1": np.empty(n_samples)}
    step = max(1, min(n_samples, BLOCK // len(score)))
    for start in range(0, n_samples, step):
        stop = min(start + step, n_samples)
        counts = np.empty((len(score), stop - start))
        for rows in (positive, ~positive):
            counts[rows] = _draw(patients[rows], stop - start, rng)
        samples["auroc"][start:stop] = weighted_auroc(positive, score, counts)
        samples["f1"][start:stop] = balanced_f1(positive, predicted, counts)
    return samples


def _draw(patients: np.ndarray, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    _, index = np.unique(patients, return_inverse=True)
    n = index.max() + 1
    drawn = rng.integers(0, n, (n_samples, n)) + n * np.arange(n_samples)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * n_samples).reshape(n_samples, n).T[index]


def _gap(value: float, samples: np.ndarray, level: float) -> dict[str, Any]:
    lower, upper = map(float, percentile_interval(samples, level))
    return {"gap": value, "lower": lower, "upper": upper, "found": bool(lower > 0 or upper < 0)}


def _section(results: dict[str, dict[str, Any]], min_cases: int) -> Section:
    section = Section("subgroups", "Groups of patients")
    families = [
        (entry["gaps"], metric)
        for labels in results.values()
        for entry in labels.values()
        if entry["gaps"]
        for metric in ("auroc", "f1")
    ]
    found = sum(any(gap[metric]["found"] for gap in gaps.values()) for gaps, metric in families)
    section.text = [
        f"Each group against the largest of its attribute, by {N_SAMPLES:,} resamples of patients with replacement, "
        "with equal weight for both classes (so F1 does not depend on prevalence). An interval holds for all "
        "comparisons of its attribute and label together, and is widened for small groups (Hesterberg 2015).",
        f"A group with fewer than {min_cases} patients with the finding, or without it, is too small and is not "
        "compared.",
        f"{found} of {len(families)} comparisons (attribute, label, metric) have a gap whose interval excludes 0; "
        f"without any true gap, about {ALPHA * len(families):.1f} would.",
    ]
    for attribute, labels in results.items():
        section.tables += [_groups_table(attribute, labels), _gaps_table(attribute, labels)]
    section.tables = [table for table in section.tables if table.rows]
    section.metrics = {"families": len(families), "found": found, "attributes": _plain(results)}
    return section


def _groups_table(attribute: str, labels: dict[str, Any]) -> Table:
    def value(figures: dict[str, Any], metric: str) -> list[Any]:
        span = interval(figures[f"{metric}_lower"], figures[f"{metric}_upper"]) if figures["enough"] else ""
        return [metrics.number(figures[metric]), span]

    rows = [
        [
            label,
            name,
            figures["images"],
            figures["positives"],
            *value(figures, "auroc"),
            *value(figures, "f1"),
            "" if figures["enough"] else "too few",
        ]
        for label, entry in labels.items()
        for name, figures in entry["groups"].items()
    ]
    return Table(
        f"By {attribute}",
        [
            "label",
            "group",
            "images",
            "positives",
            "AUROC",
            "95 % interval (AUROC)",
            "balanced F1",
            "95 % interval (F1)",
            "warning",
        ],
        rows,
    )


def _gaps_table(attribute: str, labels: dict[str, Any]) -> Table:
    names = {"auroc": "AUROC", "f1": "F1"}
    rows = [
        [
            label,
            f"{name} less {entry['reference']}",
            *(
                cell
                for gap in pair.values()
                for cell in (signed(gap["gap"]), signed_interval(gap["lower"], gap["upper"]))
            ),
            ", ".join(names[metric] for metric, gap in pair.items() if gap["found"]),
        ]
        for label, entry in labels.items()
        for name, pair in entry["gaps"].items()
    ]
    return Table(
        f"Gaps by {attribute}",
        ["label", "groups", "AUROC", "interval (AUROC)", "balanced F1", "interval (F1)", "gap in"],
        rows,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return metrics.number(value) if isinstance(value, float) else value
