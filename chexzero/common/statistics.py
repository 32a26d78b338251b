"""Areas under the ROC curve and their bootstrap intervals, for all labels and all resamples at once.

The numbers are upstream's: scikit-learn's areas (ties count one half) and upstream's resamples
(`sklearn.utils.resample(index, replace=True, random_state=i)`). The computation differs. A resample only changes how
often each row counts, so the rows are sorted once per label, and every resample is a column of counts: its area is the
share of correctly ordered (positive, negative) pairs, counted with one cumulative sum. All sums are of halves of whole
numbers, hence exact.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from chexzero.common.errors import UserError
from chexzero.common.labels import LABELS

Floats = NDArray[np.float64]

#: Counts held at a time (rows x resamples): bounds the memory to about 100 MB whatever the size of the set.
BLOCK = 2_000_000


def check_arrays(y_true: ArrayLike, y_score: ArrayLike) -> tuple[NDArray[np.bool_], NDArray]:
    """Return both as (N, L); raise `UserError` for other shapes, labels that are not 0 or 1, scores not finite."""
    truth, scores = np.asarray(y_true), np.asarray(y_score)
    if truth.ndim == 1:
        truth = truth[:, None]
    if scores.ndim == 1:
        scores = scores[:, None]
    if truth.shape != scores.shape or truth.ndim != 2 or len(truth) == 0:
        raise UserError(
            f"labels of shape {truth.shape} and predictions of shape {scores.shape} do not match; "
            f"both must be rows x labels, with at least one row"
        )
    if not np.isin(truth, (0, 1)).all():
        i, j = np.argwhere(~np.isin(truth, (0, 1)))[0]
        raise UserError(f"row {i + 1}, label column {j + 1}: {truth[i, j]} is not 0 or 1; decide it or leave it out")
    if not np.isfinite(scores).all():
        i, j = np.argwhere(~np.isfinite(scores))[0]
        raise UserError(
            f"row {i + 1}, prediction column {j + 1} is {scores[i, j]}, not a finite number; "
            f"predict again with a sound checkpoint"
        )
    return truth.astype(bool), scores


def auroc(y_true: ArrayLike, y_score: ArrayLike) -> Floats:
    """Area under the ROC curve of each column.

    y_true: (N, L), 0 or 1. y_score: (N, L), any finite scores. Returns (L,), NaN where a class is missing.
    """
    truth, scores = check_arrays(y_true, y_score)
    n_pos = truth.sum(0, dtype=np.float64)
    n_neg = len(truth) - n_pos
    ranks = rankdata(scores, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((ranks * truth).sum(0) - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)


def resample_counts(n_rows: int, n_samples: int = 1000, start: int = 0) -> NDArray[np.float64]:
    """How often each row is drawn: (n_rows, n_samples), column i is upstream's resample `start + i`."""
    counts = np.empty((n_samples, n_rows))
    random = np.random.RandomState()
    for i in range(n_samples):
        random.seed(start + i)
        counts[i] = np.bincount(random.randint(0, n_rows, n_rows), minlength=n_rows)
    return np.ascontiguousarray(counts.T)


def weighted_auroc(truth: NDArray[np.bool_], scores: NDArray, counts: Floats) -> Floats:
    """Area of one label in every resample.

    truth, scores: (N,). counts: (N, S), how often each row counts. Returns (S,), NaN where a class is missing.
    """
    negatives = np.flatnonzero(~truth)
    negatives = negatives[np.argsort(scores[negatives], kind="stable")]
    positive_scores, negative_scores = scores[truth], scores[negatives]
    below = np.zeros((len(negatives) + 1, counts.shape[1]))
    np.cumsum(counts[negatives], axis=0, out=below[1:])
    weights = counts[truth]
    strictly = below[np.searchsorted(negative_scores, positive_scores, side="left")]
    or_equal = below[np.searchsorted(negative_scores, positive_scores, side="right")]
    ordered = np.einsum("ps,ps->s", weights, strictly + or_equal) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return ordered / (weights.sum(0) * below[-1])


def bootstrap_auroc(y_true: ArrayLike, y_score: ArrayLike, n_samples: int = 1000) -> Floats:
    """Areas in upstream's resamples: (n_samples, L), NaN where a resample has only one class.

    y_true: (N, L), 0 or 1. y_score: (N, L). Rows are resampled, so give one row per study. For a paired
    comparison call it twice with the same rows: resample i is the same for every model.
    """
    truth, scores = check_arrays(y_true, y_score)
    n_rows, n_labels = truth.shape
    areas = np.empty((n_samples, n_labels))
    step = max(1, min(n_samples, BLOCK // n_rows))
    for start in range(0, n_samples, step):
        stop = min(start + step, n_samples)
        counts = resample_counts(n_rows, stop - start, start)
        for label in range(n_labels):
            areas[start:stop, label] = weighted_auroc(truth[:, label], scores[:, label], counts)
    return areas


def percentile_interval(samples: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Lower and upper end of the interval of each column of (S, L) or of (S,), undefined resamples left out.

    Upstream's indices: of n sorted values those at int(0.025 n) - 1 and int(0.975 n) - 1 (never before the
    first). A column without a defined resample gives NaN.
    """
    samples = np.asarray(samples, dtype=np.float64)
    ordered = np.sort(samples[:, None] if samples.ndim == 1 else samples, axis=0)  # NaN sorts last
    n_defined = np.isfinite(ordered).sum(0)
    tail = (1 - level) / 2

    def at(fraction: float) -> Floats:
        index = np.maximum((np.round(fraction * n_defined, 9)).astype(int) - 1, 0)
        values = np.take_along_axis(ordered, index[None], axis=0)[0]
        return np.where(n_defined > 0, values, np.nan)

    lower, upper = at(tail), at(1 - tail)
    return (lower[0], upper[0]) if samples.ndim == 1 else (lower, upper)


def mean_over_labels(
    values: ArrayLike, wanted: Sequence[str], labels: Sequence[str] = LABELS
) -> tuple[float, list[str]]:
    """Mean of `values` (L,) over the labels `wanted`, leaving out NaN, and the labels it was taken over.

    Without any defined label the mean is NaN and the list empty.
    """
    values = np.asarray(values, dtype=np.float64)
    used = [label for label in wanted if np.isfinite(values[labels.index(label)])]
    if not used:
        return float("nan"), []
    return float(np.mean([values[labels.index(label)] for label in used])), used


def mean_of_samples(samples: ArrayLike, used: Sequence[str], labels: Sequence[str] = LABELS) -> Floats:
    """Mean over the labels `used` in each resample of (S, L): (S,), NaN where one of them is undefined there."""
    samples = np.asarray(samples, dtype=np.float64)
    if not used:
        return np.full(len(samples), np.nan)
    return samples[:, [labels.index(label) for label in used]].mean(1)


def paired_difference(ours: ArrayLike, theirs: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Bootstrap of a difference: lower, upper and two-sided p value of each column.

    ours, theirs: (S, L) from the same resamples. p is twice the smaller share of resamples on one side of 0 (ties
    count on both sides), with one added to both counts, so that it is never 0; NaN where nothing is defined.
    """
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    lower, upper = percentile_interval(difference)
    n = np.isfinite(difference).sum(0)
    smaller = np.minimum((difference <= 0).sum(0), (difference >= 0).sum(0))
    p = np.where(n > 0, np.minimum(1.0, 2 * (smaller + 1) / (n + 1)), np.nan)
    return lower, upper, p
