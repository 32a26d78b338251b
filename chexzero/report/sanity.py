"""Checks that compare the validation with the test set, to catch mistakes that leave plausible-looking numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from chexzero.common.labels import FINDINGS, LABELS
from chexzero.common.statistics import auroc, mean_over_labels, percentile_interval
from chexzero.evaluation.results import SetResult
from chexzero.evaluation.sets import EvaluationSet
from chexzero.report.sections import Section, Table

PASSED, LOOK, NOT_POSSIBLE = "passed", "LOOK HERE", "not possible"

#: A mean this close to one half is what permuted labels give; one this far above it is what a working model gives.
CHANCE, WORKING = 0.08, 0.12

#: A label's probabilities that lie closer together than this are near the rounding of float32 features.
ROUNDING = 1e-5

#: With fewer positive cases than this an interval is too narrow to be believed.
FEW = 5

#: Gain in AUROC under another label's predictions that makes a label column suspicious.
MOVED = 0.2


@dataclass(frozen=True)
class Check:
    name: str
    verdict: str
    detail: str


def at_chance(one: SetResult, other: SetResult) -> Check:
    """Near 0.5 on one set and good on the other: the labels of the one do not belong to its images."""
    name = f"{one.title} labels belong to the {one.title} images"
    shared = [
        label
        for i, label in enumerate(LABELS)
        if label in FINDINGS and np.isfinite(one.auroc[i]) and np.isfinite(other.auroc[i])
    ]
    if not shared:
        return Check(name, NOT_POSSIBLE, "no finding is defined on both sets")
    columns = [LABELS.index(label) for label in shared]
    mine, theirs = one.auroc[columns].mean(), other.auroc[columns].mean()
    low, high = percentile_interval(np.nanmean(one.samples[:, columns], axis=1))
    other_low = percentile_interval(np.nanmean(other.samples[:, columns], axis=1))[0]
    detail = (
        f"mean AUROC over {len(shared)} findings {mine:.3f} ({low:.3f}–{high:.3f}) on {one.title}, "
        f"{theirs:.3f} on {other.title}"
    )
    good = theirs > 0.5 + WORKING and other_low > 0.55
    if good and mine < 0.5 + CHANCE and high < theirs:
        return Check(
            name,
            LOOK,
            f"{detail}: near 0.5 although the model works on {other.title}; are the rows of the "
            f"label file in the order of the images, and is it the right file?",
        )
    if good and high < other_low and theirs - mine > 0.1:
        return Check(name, LOOK, f"{detail}: far below; another kind of images, or some labels or rows are exchanged")
    return Check(name, PASSED, detail)


def columns_in_place(one: SetResult, other: SetResult) -> Check:
    """Label columns exchanged in one file: there, and there alone, predictions fit the labels of another name better.

    Predictions are assigned to label columns so that the mean AUROC is highest. A label that moves is flagged where
    its area gains more than chance explains, while the same move would lose on the other set.
    """
    name = f"{one.title} label columns stand under their names"
    columns = [LABELS.index(label) for label in FINDINGS]
    columns = [i for i in columns if np.isfinite(one.auroc[i]) and np.isfinite(other.auroc[i])]
    if len(columns) < 2:
        return Check(name, NOT_POSSIBLE, "fewer than two findings are defined on both sets")
    here, there = (_cross_areas(result, columns) for result in (one, other))
    flagged = []
    for truth, score in zip(*linear_sum_assignment(here, maximize=True), strict=True):
        n_pos = int(one.n_pos[columns[truth]])
        by_chance = 3 * np.sqrt(1 / (12 * min(n_pos, len(one) - n_pos)))  # three standard errors of an area of 0.5
        gain, gain_there = (areas[truth, score] - areas[truth, truth] for areas in (here, there))
        if gain > max(MOVED, by_chance) and gain_there < -MOVED / 2:
            flagged.append(
                f"the column {LABELS[columns[truth]]} fits the predictions for {LABELS[columns[score]]} "
                f"better by {gain:.2f}"
            )
    if flagged:
        return Check(
            name, LOOK, f"{'; '.join(flagged)}; on {other.title} it is not so: read label files by column name"
        )
    return Check(name, PASSED, f"no column fits the predictions for another label better than on {other.title}")


def _cross_areas(result: SetResult, columns: list[int]) -> np.ndarray:
    """AUROC of each label's truth (rows) under each label's predictions (columns)."""
    size = len(columns)
    truth = np.repeat(result.truth[:, columns], size, axis=1)
    return auroc(truth, np.tile(result.probability[:, columns], size)).reshape(size, size)


def inverted(result: SetResult) -> Check:
    """Findings whose interval lies below 0.5: prompts or labels the wrong way round."""
    name = f"no finding is upside down on {result.title}"
    below = [
        label
        for i, label in enumerate(LABELS)
        if label in FINDINGS and result.n_pos[i] >= FEW and result.upper[i] < 0.5
    ]
    if below:
        return Check(name, LOOK, f"the whole interval lies below 0.5 for {', '.join(below)}")
    return Check(
        name, PASSED, f"no interval lies below 0.5 (No Finding apart, and labels with fewer than {FEW} positive cases)"
    )


def spread(result: SetResult) -> Check:
    """A model that has not learned or has collapsed gives all images nearly the same probabilities."""
    name = f"probabilities differ between the {result.title} images"
    ranges = np.ptp(result.probability, axis=0)
    least = int(ranges.argmin())
    detail = f"smallest range {ranges[least]:.1e} ({LABELS[least]}), largest {ranges.max():.1e}"
    if ranges[least] < ROUNDING:
        return Check(name, LOOK, f"{detail}: near rounding; the model is untrained or has collapsed")
    return Check(name, PASSED, detail)


def shared_cases(valid: EvaluationSet, test: EvaluationSet) -> list[Check]:
    """Patients and image files that stand in both sets."""
    patients = set(valid.table["patient_id"]) & set(test.table["patient_id"])
    same = valid.images_sha256 == test.images_sha256
    return [
        Check("no patient is in both sets", LOOK if patients else PASSED, f"{len(patients)} patients in common"),
        Check(
            "the two image files differ",
            LOOK if same else PASSED,
            "they are the same file" if same else "different SHA-256",
        ),
    ]


def as_built(build: dict, sets: Sequence[EvaluationSet]) -> Check:
    """Image and label files are those that the build wrote, by SHA-256."""
    name, files = "data files are as they were built", build.get("files")
    files = files if isinstance(files, dict) else {}
    changed, known = [], 0
    for path, digest in [
        pair for one in sets for pair in ((one.images, one.images_sha256), (one.labels, one.labels_sha256))
    ]:
        recorded = files.get(path.name)
        recorded = recorded.get("sha256") if isinstance(recorded, dict) else recorded
        known += isinstance(recorded, str)
        if isinstance(recorded, str) and recorded != digest:
            changed.append(path.name)
    if changed:
        return Check(name, LOOK, f"{', '.join(changed)} differ from the SHA-256 in build.json: changed since the build")
    return Check(name, PASSED if known else NOT_POSSIBLE, f"{known} of {2 * len(sets)} files are listed in build.json")


def as_recorded(recorded: dict[str, float], probability: np.ndarray, truth: np.ndarray) -> Check:
    """The validation AUROC that training recorded for this step, and the one of all validation images here."""
    name = "validation AUROC as training recorded it"
    value = recorded.get("mean_13", float("nan"))
    here = mean_over_labels(auroc(truth, probability), FINDINGS)[0]
    if not np.isfinite(value) or not np.isfinite(here):
        return Check(name, NOT_POSSIBLE, "training recorded none for this checkpoint")
    return Check(
        name,
        PASSED if abs(value - here) < 0.005 else LOOK,
        f"mean of 13 over all {len(truth)} images: {value:.4f} recorded, {here:.4f} here",
    )


def sanity_section(valid: SetResult, test: SetResult, checks: Sequence[Check]) -> Section:
    """All checks as a section; `metrics` counts those that need a look."""
    checks = [
        at_chance(test, valid),
        at_chance(valid, test),
        columns_in_place(test, valid),
        columns_in_place(valid, test),
        inverted(valid),
        inverted(test),
        spread(valid),
        spread(test),
        *checks,
    ]
    flagged = [check for check in checks if check.verdict == LOOK]
    text = [
        f"{len(flagged)} of {len(checks)} checks need a look: {'; '.join(check.name for check in flagged)}."
        if flagged
        else f"All {len(checks)} checks passed or could not be made."
    ]
    table = Table("Checks", ["Check", "Verdict", "Detail"], [[c.name, c.verdict, c.detail] for c in checks])
    return Section(
        "sanity",
        "Sanity checks",
        text,
        [table],
        [],
        {
            "flagged": [check.name for check in flagged],
            "checks": {check.name: {"verdict": check.verdict, "detail": check.detail} for check in checks},
        },
    )
