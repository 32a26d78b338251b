"""CXR-LT 2024 and 2026 for a CLIP model: long-tailed and unseen findings by prompts alone.

Any label CSV with any of an edition's findings (or of another prompt file's) is scored as the challenge scores it: macro
average precision first, then AUROC, F1 and calibration; by frequency group if training counts are given.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from chexzero.common.errors import UserError
from chexzero.common.files import read_table
from chexzero.common.statistics import auroc, percentile_interval
from chexzero.eval import average_precision
from chexzero.evaluation.calibration import N_BINS, expected_calibration_error
from chexzero.metrics import best_thresholds, rates, rates_at
from chexzero.report.beside.published import reported_figures
from chexzero.report.format import interval
from chexzero.report.sections import Section, Table
from chexzero.suites import metrics
from chexzero.suites.context import EvaluationContext, file_flag
from chexzero.suites.finding_prompts import PROMPTS, canonical, predict, read_prompts, spelled
from chexzero.suites.tables import ID_COLUMNS, LabelledImages, header, label_columns, labels_file, read_labelled

GROUPS = ("head", "medium", "tail")


@dataclass(frozen=True)
class Edition:
    """A year of the challenge: its prompt file, and task key -> (group of findings, title, number of findings).

    Groups: `seen` and `unseen` findings, and the `task2` of the prompt file. The keys are those of the published figures.
    """

    prompts: Path
    tasks: Mapping[str, tuple[str, str, int]]


EDITIONS = {
    2024: Edition(
        PROMPTS,
        {
            "task1_40_classes": ("seen", "task 1", 40),
            "task2_26_classes_gold": ("task2", "task 2, gold standard", 26),
            "task3_zero_shot_5_unseen": ("unseen", "task 3, unseen", 5),
        },
    ),
    2026: Edition(
        PROMPTS.with_name("cxr_lt_2026.yaml"),
        {"task1_30_known": ("seen", "task 1, known", 30), "task2_6_unseen": ("unseen", "task 2, unseen", 6)},
    ),
}

#: Key of a mean in `metrics.json` -> what the report calls it.
MEANS = {
    "mAP": "average precision (mAP)",
    "mAUROC": "AUROC (mAUROC)",
    "mF1": "F1 at 0.5 (mF1)",
    "mF1_at_threshold": "F1 at the validation thresholds",
    "micro_F1": "micro F1 at 0.5",
    "micro_F1_at_threshold": "micro F1 at the validation thresholds",
    "mECE": "expected calibration error (mECE)",
    "critical_FNR": "critical findings missed at 0.5",
    "critical_FNR_at_threshold": "critical findings missed at the validation thresholds",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this suite."""
    group = parser.add_argument_group("suite cxr-lt")
    group.add_argument(
        "--cxr_lt_edition",
        type=int,
        choices=EDITIONS,
        default=2024,
        help="edition of the challenge: 2024 (MIMIC-CXR, 45 findings) or 2026 (PadChest and NIH, 36; default: 2024)",
    )
    file_flag(group, "cxr_lt_images", "images to score (.h5 or a folder; default: the test set)")
    file_flag(group, "cxr_lt_labels", "their labels, one 0/1 column per finding (default: <images>_labels.csv)")
    file_flag(group, "cxr_lt_valid_images", "images to choose thresholds on (default: the validation set)")
    file_flag(group, "cxr_lt_valid_labels", "their labels; a finding they lack gets no threshold")
    file_flag(group, "cxr_lt_counts", "CSV with finding,count of the training set, and a row `images` with its size")
    file_flag(group, "cxr_lt_prompts", "YAML file of findings and phrases (default: the edition's)")


def read_counts(path: str | Path, findings: list[str], prompts: dict[str, Any]) -> np.ndarray:
    """Read each finding's share of the training set from a CSV `finding,count` with a row `images`: (L,), 0..1."""
    remedy = "give the columns finding and count, and a row `images` with the number of training images"
    table = read_table(path, ["finding", "count"], remedy=remedy)
    counts = {}
    for i, (name, count) in enumerate(zip(table["finding"], table["count"], strict=True)):
        if not str(count).isdecimal():
            raise UserError(f"{path}, row {i + 1}: the count {count!r} is not a whole number; correct it")
        if (finding := spelled(name, prompts)) in counts:
            raise UserError(f"{path}, row {i + 1}: {name!r} has a count already; remove one of the rows")
        counts[finding] = int(count)
    missing = [name for name in ("images", *findings) if name not in counts]
    if missing or not counts["images"]:
        raise UserError(f"{path} has no count for {(missing or ['images'])[0]!r}; {remedy}")
    shares = np.array([counts[name] for name in findings]) / counts["images"]
    if (shares > 1).any():
        raise UserError(f"{path}: {findings[shares.argmax()]!r} has more cases than there are images; correct it")
    return shares


def frequency_group(share: float) -> str:
    """`head` over 10 % of the training set, `medium` from 1 to 10 %, `tail` under 1 %."""
    return "head" if share > 0.10 else "medium" if share >= 0.01 else "tail"


@dataclass
class Scored:
    """Findings scored on a set of images.

    truth, probability: (N, L). thresholds: (L,), NaN where none could be chosen. per_label: each metric (L,).
    samples: `mAP` and `mAUROC` -> (S, L), average precision and AUROC of each bootstrap resample of the images.
    """

    truth: np.ndarray
    probability: np.ndarray
    thresholds: np.ndarray
    per_label: dict[str, np.ndarray]
    samples: dict[str, np.ndarray]

    def means(self, columns: np.ndarray, critical: np.ndarray) -> dict[str, float]:
        """The challenge's means over some columns; critical: (L,) of bool, findings whose misses are counted."""
        per = {name: values[columns] for name, values in self.per_label.items()}
        truth, probability = self.truth[:, columns], self.probability[:, columns]
        thresholds = self.thresholds[columns]
        known, urgent = np.isfinite(thresholds), critical[columns]
        return {
            "mAP": metrics.nan_mean(per["average_precision"]),
            "mAUROC": metrics.nan_mean(per["auroc"]),
            "mF1": metrics.nan_mean(per["f1_at_half"]),
            "mF1_at_threshold": metrics.nan_mean(per["f1_at_threshold"]),
            "micro_F1": float(rates(truth.ravel(), (probability >= 0.5).ravel()).f1),
            "micro_F1_at_threshold": float(
                rates(truth[:, known].ravel(), (probability >= thresholds)[:, known].ravel()).f1
            ),
            "mECE": metrics.nan_mean(per["ece"]),
            "critical_FNR": metrics.nan_mean(per["false_negative_rate"][urgent]),
            "critical_FNR_at_threshold": metrics.nan_mean(per["false_negative_rate_at_threshold"][urgent]),
        }

    def intervals(self, columns: np.ndarray) -> dict[str, tuple[float, float, float]]:
        """Lower end, upper end and chance of mAP and mAUROC over some columns, undefined findings left out.

        Percentile intervals, shifted so that the resamples' mean is the value: rows drawn twice raise the average
        precision of a resample (measured: 0.016 at 200 images), and unshifted intervals cover 87 to 91 %.
        """
        random = metrics.random_average_precision(len(self.truth), self.truth[:, columns].sum(0))
        found = {}
        for name, per_label, chance in (
            ("mAP", "average_precision", metrics.nan_mean(random)),
            ("mAUROC", "auroc", 0.5),
        ):
            means = np.array([metrics.nan_mean(row) for row in self.samples[name][:, columns]])
            bias = metrics.nan_mean(means) - metrics.nan_mean(self.per_label[per_label][columns])
            lower, upper = np.clip(np.array(percentile_interval(means)) - bias, 0, 1)
            found[name] = (float(lower), float(upper), chance)
        return found


def score(
    truth: np.ndarray, probability: np.ndarray, thresholds: np.ndarray, patients: np.ndarray, n_samples: int
) -> Scored:
    """Score probabilities (N, L) against the truth (N, L), with thresholds (L,), NaN where none could be chosen.

    patients: (N,), each drawn as a whole in the `n_samples` resamples.
    """
    at_half, at_threshold = rates(truth, probability >= 0.5), rates_at(truth, probability, thresholds)
    per_label = {
        "positives": truth.sum(0).astype(int),
        "average_precision": average_precision(truth, probability),
        "auroc": auroc(truth, probability),
        "f1_at_half": at_half.f1,
        "f1_at_threshold": at_threshold.f1,
        "threshold": thresholds,
        "ece": expected_calibration_error(truth, probability),
        "false_negative_rate": 1 - at_half.sensitivity,
        "false_negative_rate_at_threshold": 1 - at_threshold.sensitivity,
    }
    samples = dict(zip(("mAP", "mAUROC"), metrics.bootstrap(truth, probability, patients, n_samples), strict=True))
    return Scored(truth, probability, thresholds, per_label, samples)


def run(context: EvaluationContext) -> Section:
    """Score the model on a set of findings; see the module."""
    year = context.option("cxr_lt_edition", 2024)
    edition = EDITIONS[year]
    prompts = read_prompts(context.option("cxr_lt_prompts", edition.prompts))
    images, labels = context.option("cxr_lt_images", "test"), context.option("cxr_lt_labels")
    path = labels_file(context, images, labels)
    findings = canonical(label_columns(path), prompts, path)
    data = read_labelled(context, images, path)
    counts = context.option("cxr_lt_counts")
    shares = read_counts(counts, findings, prompts) if counts else None
    valid, chosen_on = _validation(context, prompts, findings)
    thresholds = _thresholds(context, valid, prompts, findings)
    probability = predict(context, data.features, findings, prompts)
    critical = np.isin(findings, prompts["critical"] or [])
    n_samples = context.option("n_bootstrap", 1000)
    result = score(data.truth, probability, thresholds, data.patients(), n_samples)
    every = np.arange(len(findings))
    means, intervals = result.means(every, critical), result.intervals(every)
    section = Section(
        "cxr_lt", f"Long-tailed and unseen findings (CXR-LT {year})", _explain(data, chosen_on, prompts, n_samples)
    )
    section.metrics = {
        "images": len(data.ids),
        "findings": len(findings),
        "thresholds_from": chosen_on,
        **_summary(means, intervals),
        "per_label": _per_label(result, findings),
    }
    section.tables += [_means_table(means, intervals), _label_table(result, findings, prompts)]
    if shares is not None:
        section.tables.append(_group_table(section, result, shares))
    else:
        section.text.append("Head, medium and tail need the training counts: give them with --cxr_lt_counts.")
    groups = _tasks(prompts)
    for task, (group, _, n_task) in edition.tasks.items():
        columns = np.flatnonzero(np.isin(findings, groups[group]))
        if len(columns) and len(groups[group]) == n_task:  # another prompt file may ask for other tasks
            means = result.means(columns, critical)
            section.metrics[task] = {"findings": len(columns), **_summary(means, result.intervals(columns))}
            section.tables.append(ranking(year, task, means, len(columns)))
    return section


def ranking(year: int, task: str, ours: dict[str, float], n_ours: int) -> Table:
    """The challenge's teams and this model, best macro average precision first.

    With only some of the task's classes this model is listed below the teams without a rank: a mean over other classes
    is not comparable.
    """
    keys = ("mAP", "mAUROC", "mF1", "mECE")
    _, title, n_task = EDITIONS[year].tasks[task]
    rows = [
        [f"team {name}", None, *(figures.get(key, "") for key in keys)]
        for name, figures in reported_figures()[f"cxr_lt_{year}"][task].items()
    ]
    model = [
        f"this model, zero-shot, {n_ours} of {n_task} classes",
        "",
        *(metrics.number(ours[key], 3) for key in keys),
    ]
    ranked = n_ours == n_task and model[2] is not None
    rows = sorted([*rows, model] if ranked else rows, key=lambda row: -row[2])
    for place, row in enumerate(rows, 1):
        row[1] = place
    rows += [] if ranked else [model]
    note = "" if ranked else "; means over other classes are not comparable, so this model has no rank"
    return Table(
        f"CXR-LT {year} {title} ({n_task} classes), ranked by mAP. The teams' figures are from the "
        f"challenge's own test set{note}.",
        ["system", "rank", *keys],
        rows,
    )


def _tasks(prompts: dict[str, Any]) -> dict[str, list[str]]:
    unseen = prompts["unseen"] or []
    seen = [name for name in prompts["findings"] if name not in unseen]
    return {"seen": seen, "task2": prompts["task2"] or [], "unseen": unseen}


def _validation(
    context: EvaluationContext, prompts: dict[str, Any], findings: list[str]
) -> tuple[LabelledImages | None, str]:
    """The validation images with the findings that they are labelled for (None without any), and their table's name."""
    images = context.option("cxr_lt_valid_images", "valid")
    path = labels_file(context, images, context.option("cxr_lt_valid_labels"))
    columns = header(path, "name the validation labels with --cxr_lt_valid_labels")
    shared = [c for c in columns if c not in ID_COLUMNS and spelled(c, prompts) in findings]
    return read_labelled(context, images, path, shared) if shared else None, path.name


def _thresholds(
    context: EvaluationContext, valid: LabelledImages | None, prompts: dict[str, Any], findings: list[str]
) -> np.ndarray:
    """Thresholds (L,) with the best F1 on the validation set; NaN for a finding it lacks or has no case of."""
    thresholds = np.full(len(findings), np.nan)
    if valid is not None:
        names = canonical(valid.labels, prompts, valid.path)
        best = best_thresholds(valid.truth, predict(context, valid.features, names, prompts), f1_score)
        thresholds[[findings.index(name) for name in names]] = best
    return thresholds


def _explain(data: LabelledImages, chosen_on: str, prompts: dict[str, Any], n_samples: int) -> list[str]:
    critical = ", ".join(prompts["critical"] or ["none"])
    return [
        f"{len(data.ids)} images, {len(data.labels)} findings of {data.path.name}. A finding's probability "
        "compares the image with the averaged prompts of its synonyms and with their negation; no labels are used "
        "for training.",
        f"Thresholds have the best F1 on {chosen_on}. A finding without a case is undefined and left "
        "out of the means. Chance is the expected value for scores in random order. Intervals are of "
        f"{n_samples:,} resamples of patients, shifted by the bootstrap's bias.",
        f"ECE uses {N_BINS} bins of equal width over the probability of the finding. The challenge's binning could not "
        "be verified, and probabilities from unscaled cosines lie near one half: compare with care.",
        f"Critical findings, whose misses are counted: {critical}; this choice is the project's.",
    ]


def _summary(means: dict[str, float], intervals: dict[str, tuple[float, float, float]]) -> dict[str, Any]:
    summary = {name: metrics.number(value) for name, value in means.items()}
    for name, values in intervals.items():
        ends = zip(("lower", "upper", "chance"), values, strict=True)
        summary |= {f"{name}_{end}": metrics.number(value) for end, value in ends}
    return summary


def _per_label(result: Scored, findings: list[str]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: metrics.number(values[j]) for key, values in result.per_label.items()}
        for j, name in enumerate(findings)
    }


def _means_table(means: dict[str, float], intervals: dict[str, tuple[float, float, float]]) -> Table:
    rows = []
    for name, value in means.items():
        cells: list[Any] = ["", ""]
        if name in intervals:
            lower, upper, chance = intervals[name]
            cells = [interval(lower, upper), metrics.number(chance)]
        rows.append([MEANS[name], metrics.number(value), *cells])
    return Table(
        "Means over the findings, with intervals of mAP and mAUROC",
        ["metric", "value", "95 % interval", "chance"],
        rows,
    )


def _label_table(result: Scored, findings: list[str], prompts: dict[str, Any]) -> Table:
    keys = [
        "positives",
        "average_precision",
        "auroc",
        "f1_at_half",
        "f1_at_threshold",
        "threshold",
        "ece",
        "false_negative_rate_at_threshold",
    ]
    rows = [
        [
            name + (" (unseen)" if name in (prompts["unseen"] or []) else ""),
            *(metrics.number(result.per_label[key][j], 4) for key in keys),
        ]
        for j, name in enumerate(findings)
    ]
    return Table(
        "Each finding",
        [
            "finding",
            "positives",
            "AP",
            "AUROC",
            "F1 at 0.5",
            "F1 at threshold",
            "threshold",
            "ECE",
            "missed at threshold",
        ],
        rows,
    )


def _group_table(section: Section, result: Scored, shares: np.ndarray) -> Table:
    keys = ("average_precision", "auroc", "f1_at_half", "f1_at_threshold", "ece")
    groups = np.array([frequency_group(share) for share in shares])
    means = {group: [metrics.nan_mean(result.per_label[key][groups == group]) for key in keys] for group in GROUPS}
    present = [means[group] for group in GROUPS if (groups == group).any()]
    means["average"] = [metrics.nan_mean(column) for column in zip(*present, strict=True)]
    sizes = {group: int((groups == group).sum()) for group in GROUPS} | {"average": len(groups)}
    section.metrics["groups"] = {
        group: {"findings": sizes[group]} | dict(zip(keys, map(metrics.number, row), strict=True))
        for group, row in means.items()
    }
    return Table(
        "By frequency in the training set: head over 10 %, medium 1 to 10 %, tail under 1 %; the average "
        "weights the groups equally",
        ["group", "findings", "mAP", "mAUROC", "mF1", "mF1 at threshold", "mECE"],
        [[group, sizes[group], *(metrics.number(mean, 3) for mean in row)] for group, row in means.items()],
    )
