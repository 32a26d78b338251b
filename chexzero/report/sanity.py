"""Checks that compare the validation set with the test set, to catch mistakes that leave plausible-looking numbers.

`python -m benchmarks.planted` measures their rate of false alarms on correct pairs of sets, and which planted
mistakes they find.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from chexzero.common.intervals import holm, newcombe_interval
from chexzero.common.labels import FINDINGS, LABELS, NO_FINDING
from chexzero.common.statistics import auroc, mean_over_labels
from chexzero.evaluation.results import SetResult
from chexzero.evaluation.sets import EvaluationSet
from chexzero.evaluation.trained_images import TrainedImages
from chexzero.report.sections import Section, Table
from chexzero.runs.evidence import Claim

PASSED, LOOK, NOT_POSSIBLE = "passed", "LOOK HERE", "not possible"

#: Chance of a false alarm that each statistical check is set to, after correction for its labels or pairs.
ALPHA = 0.005

#: Populations differ: differences in AUROC up to this raise no alarm, for one label and for the mean of all.
SHIFT, MEAN_SHIFT = 0.10, 0.02

#: Standard errors by which two columns must fit each other's predictions better than their own. EXCHANGED: both
#: together (of 78 pairs of columns that a model hardly knows, one reaches 2 by chance). EACH: either column alone, as
#: predictions for a label that the model does not know may follow another label. EXCHANGED_CASES: positive cases that
#: each column needs.
EXCHANGED, EACH, EXCHANGED_CASES = 2.2, 1.0, 3

#: Range of a label's probabilities below which they differ by little more than the rounding of float32 features.
ROUNDING = 1e-5

#: Flagged: shares of positive cases that differ by more than SHARES, and none where more than EXPECTED were expected.
SHARES, EXPECTED = 0.5, 10

#: Share of the No Finding cases that may also have a finding, as slips of annotation; more are flagged.
CONTRADICTIONS = 0.05


@dataclass(frozen=True)
class Check:
    name: str
    verdict: str
    detail: str


def _critical(tests: int = 1) -> float:
    """Standard errors that a one-sided difference must exceed, Bonferroni-corrected for `tests` comparisons."""
    return float(norm.isf(ALPHA / tests))


def means_agree(one: SetResult, other: SetResult) -> Check:
    """Flag a mean AUROC far below the other set's: labels or rows of this set may not belong to its images."""
    name = f"{one.title} labels belong to the {one.title} images"
    columns = np.flatnonzero(one.counted & other.counted & np.isin(LABELS, FINDINGS))
    if not len(columns):  # small sets: use every label that is defined
        columns = np.flatnonzero(np.isfinite(one.auroc) & np.isfinite(other.auroc) & np.isin(LABELS, FINDINGS))
    if not len(columns):
        return Check(name, NOT_POSSIBLE, "no finding is defined on both sets")
    mine, theirs = (result.auroc[columns].mean() for result in (one, other))
    error = np.hypot(_mean_error(one, columns), _mean_error(other, columns))
    detail = f"mean AUROC over {len(columns)} findings {mine:.3f} on {one.title}, {theirs:.3f} on {other.title}"
    if theirs - mine > MEAN_SHIFT + _critical() * error:
        return Check(
            name,
            LOOK,
            f"{detail}: lower by more than chance and {MEAN_SHIFT} explain; are the rows of the label file in the "
            f"order of the images, is it the right file, are these images of the same kind?",
        )
    return Check(name, PASSED, detail)


def _mean_error(result: SetResult, columns: NDArray) -> float:
    """Standard error of the mean area of some labels."""
    return float(np.sqrt((result.influence[:, columns].mean(1) ** 2).sum()))


def labels_agree(one: SetResult, other: SetResult) -> Check:
    """Flag labels whose AUROC differs much between the sets: permuted or inverted columns, No Finding included."""
    name = "every label's AUROC is alike on both sets"
    both = np.flatnonzero(np.isfinite(one.auroc) & np.isfinite(other.auroc))
    if not len(both):
        return Check(name, NOT_POSSIBLE, "no label is defined on both sets")
    apart = one.auroc - other.auroc
    errors = []  # from the interval ends that face each other
    for result, sign in ((one, apart), (other, -apart)):
        lower, upper = newcombe_interval(result.auroc, result.n_pos, len(result) - result.n_pos, 1.0)
        errors.append(np.where(sign > 0, result.auroc - lower, upper - result.auroc))
    with np.errstate(invalid="ignore", divide="ignore"):
        p = 2 * norm.sf(np.maximum(np.abs(apart) - SHIFT, 0) / np.hypot(*errors))
    odd = np.flatnonzero(np.nan_to_num(holm(np.where(np.isfinite(apart), p, np.nan)), nan=1.0) < 2 * ALPHA)
    if len(odd):
        told = ", ".join(f"{LABELS[i]} {one.auroc[i]:.2f} and {other.auroc[i]:.2f}" for i in odd)
        return Check(
            name,
            LOOK,
            f"{told} ({one.title} and {other.title}): further apart than chance and {SHIFT} explain; is the column "
            f"permuted, inverted or another label's?",
        )
    return Check(name, PASSED, f"{len(both)} labels compared; none further apart than chance and {SHIFT} explain")


def columns_in_place(one: SetResult, other: SetResult) -> Check:
    """Flag two findings exchanged in one file: on that set alone, each column fits the other's predictions better.

    No Finding is left out: its prompt is a double negative, so any other prediction fits it better.
    """
    name = f"{one.title} label columns stand under their names"
    enough = np.isfinite(one.auroc) & (one.n_pos >= EXCHANGED_CASES)
    columns = np.flatnonzero(enough & np.isin(LABELS, FINDINGS))
    if len(columns) < 2:
        return Check(name, NOT_POSSIBLE, f"fewer than two findings have {EXCHANGED_CASES} positive cases")
    gain, least = _exchange_gains(one, columns)
    elsewhere, _ = _exchange_gains(other, columns)
    with np.errstate(invalid="ignore"):
        wrong = (gain > EXCHANGED) & (least > EACH) & ~(elsewhere > gain / 2)
    flagged = [(gain[a, b], a, b) for a, b in combinations(range(len(columns)), 2) if wrong[a, b]]
    if flagged:
        told = ", ".join(
            f"{LABELS[columns[a]]} and {LABELS[columns[b]]} (by {value:.1f} standard errors)"
            for value, a, b in sorted(flagged, reverse=True)[:3]
        )
        return Check(
            name, LOOK, f"the columns fit each other's predictions better: {told}; read label files by column name"
        )
    return Check(name, PASSED, f"no two of {len(columns)} columns fit each other's predictions better than their own")


def _exchange_gains(result: SetResult, columns: NDArray) -> tuple[NDArray, NDArray]:
    """How much better two labels fit when exchanged, in standard errors: (K, K) for both together, and for the one that
    gains less.

    Predictions become normal scores of their ranks. A label gains the mean over its positive cases of the other label's
    score minus its own; the difference of two scores has the variance 2 (1 - their correlation). NaN where a label has
    no positive case.
    """
    truth, n_pos = result.truth[:, columns], result.n_pos[columns]
    scores = norm.ppf((rankdata(result.probability[:, columns], axis=0) - 0.5) / len(truth))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = truth.T @ scores / n_pos[:, None]
        gains = means - np.diag(means)[:, None]
        variance = 2 * (1 - np.corrcoef(scores.T)) / n_pos[:, None]
        each = gains / np.sqrt(variance)
        return (gains + gains.T) / np.sqrt(variance + variance.T), np.minimum(each, each.T)


def inverted(result: SetResult) -> Check:
    """Flag findings whose AUROC is below 0.5 by more than chance: prompts or labels may be inverted."""
    name = f"no finding is upside down on {result.title}"
    upper = newcombe_interval(result.auroc, result.n_pos, len(result) - result.n_pos, _critical(len(FINDINGS)))[1]
    below = [label for i, label in enumerate(LABELS) if label in FINDINGS and upper[i] < 0.5]
    if below:
        return Check(name, LOOK, f"below 0.5 by more than chance: {', '.join(below)}")
    return Check(
        name, PASSED, f"none lies below 0.5 by more than chance ({NO_FINDING} is compared between the sets instead)"
    )


def shares_agree(one: SetResult, other: SetResult) -> Check:
    """Flag labels whose positive cases are missing or the majority in one set alone: all zero, or inverted."""
    name = f"{one.title} labels are as frequent as can be expected"
    if not ((one.n_pos > 0) & (one.n_pos < len(one))).any():
        return Check(
            name, LOOK, f"no label has both positive and negative cases among {len(one)}: an empty label file?"
        )
    here, there = (result.n_pos / len(result) for result in (one, other))
    odd = np.flatnonzero((np.abs(here - there) > SHARES) | ((one.n_pos == 0) & (there * len(one) > EXPECTED)))
    if len(odd):
        told = ", ".join(f"{LABELS[i]} {here[i]:.0%} and {there[i]:.0%}" for i in odd)
        return Check(name, LOOK, f"share of positive cases on {one.title} and {other.title}: {told}")
    return Check(name, PASSED, f"no share differs by more than {SHARES:.0%} between the sets")


def labels_consistent(one: SetResult, other: SetResult) -> Check:
    """Flag No Finding cases that have a finding, if the other set has none: a column permuted, inverted or moved."""
    name = f"no {one.title} case is both without finding and with one"
    findings = [i for i, label in enumerate(LABELS) if label in FINDINGS and label != "Support Devices"]
    sound = LABELS.index(NO_FINDING)

    def contradictions(result: SetResult) -> int:
        return int(((result.truth[:, sound] == 1) & (result.truth[:, findings] == 1).any(1)).sum())

    found, elsewhere = contradictions(one), contradictions(other)
    detail = f"{found} of {one.n_pos[sound]} on {one.title}, {elsewhere} of {other.n_pos[sound]} on {other.title}"
    if elsewhere and found:
        return Check(name, NOT_POSSIBLE, f"{detail}: these labels do not follow CheXpert's rule")
    if found > max(CONTRADICTIONS * one.n_pos[sound], 2):
        return Check(name, LOOK, f"{detail}: is a column permuted, inverted or another label's?")
    return Check(name, PASSED, detail)


def spread(result: SetResult) -> Check:
    """Flag nearly constant probabilities: the model has not learned or has collapsed."""
    name = f"probabilities differ between the {result.title} images"
    ranges = np.ptp(result.probability, axis=0)
    least = int(ranges.argmin())
    detail = f"smallest range {ranges[least]:.1e} ({LABELS[least]}), largest {ranges.max():.1e}"
    if ranges[least] < ROUNDING:
        return Check(name, LOOK, f"{detail}: near rounding; the model is untrained or has collapsed")
    return Check(name, PASSED, detail)


def ids_unique(one: EvaluationSet) -> Check:
    """Flag ids that occur in two rows of a set."""
    twice = one.table["id"][one.table["id"].duplicated()]
    detail = f"{len(twice)} rows repeat an id" + (f", the first is {twice.iloc[0]}" if len(twice) else "")
    return Check(f"every {one.name} id stands once", LOOK if len(twice) else PASSED, detail)


def shared_cases(valid: EvaluationSet, test: EvaluationSet) -> list[Check]:
    """Flag patients and image files that are in both sets, and ids that occur twice in one."""
    patients = set(valid.table["patient_id"]) & set(test.table["patient_id"])
    same = valid.images_sha256 == test.images_sha256
    return [
        ids_unique(valid),
        ids_unique(test),
        Check("no patient is in both sets", LOOK if patients else PASSED, f"{len(patients)} patients in common"),
        Check(
            "the two image files differ",
            LOOK if same else PASSED,
            "they are the same file" if same else "different SHA-256",
        ),
    ]


def not_trained_on(name: str, n_images: int, known: TrainedImages, found: int) -> Check:
    """Whether images of an evaluation set by name are among those that the run was trained on."""
    title = f"no image of {name} was trained on"
    if known.why_unknown:
        return Check(title, NOT_POSSIBLE, known.why_unknown)
    detail = f"{found} of {n_images} images of {name} are training images, by SHA-256 of the pixels or by id"
    return Check(title, LOOK if found else PASSED, detail)


def as_built(build: dict, sets: Sequence[EvaluationSet]) -> Check:
    """Check by SHA-256 that image and label files are those that the build wrote."""
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
    """Compare the validation AUROC that training recorded for this step with the one measured here on all images."""
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


def label_checks(valid: SetResult, test: SetResult) -> list[Check]:
    """The checks that need only labels and probabilities."""
    pairs = ((test, valid), (valid, test))
    two_sided = (means_agree, columns_in_place, shares_agree, labels_consistent)
    return [
        labels_agree(test, valid),
        *(check(one, other) for check in two_sided for one, other in pairs),
        *(check(one) for check in (inverted, spread) for one in (test, valid)),
    ]


def trained_elsewhere(claim: Claim) -> Check:
    """Check that the run was not trained on an evaluated file; not possible unless the audit covers the run."""
    verdict = LOOK if claim.leak else PASSED if claim.known else NOT_POSSIBLE
    return Check("the model was not trained on an evaluation set", verdict, claim.text.rstrip("."))


def alarms_of(checks: Sequence[Check]) -> list[Check]:
    """The checks that failed."""
    return [check for check in checks if check.verdict == LOOK]


def sanity_section(checks: Sequence[Check]) -> Section:
    """All checks as a section; `metrics` lists those that need a look."""
    flagged = alarms_of(checks)
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
