"""Intervals and tests for areas under the ROC curve that hold for labels with few positive cases.

- One area: Newcombe's interval, which inverts a test instead of adding an estimated error to both sides (Newcombe,
  Statistics in Medicine 2006;25:559-573, method 5).
- A mean of areas: the distances to the ends of the single intervals, combined with the labels' correlation (MOVER:
  Zou and Donner, Statistics in Medicine 2008;27:1693-1702).
- The difference of two models on the same cases: DeLong's test (Biometrics 1988;44:837-845), and Holm's correction
  for several labels.

`benchmarks/coverage.py` measures their coverage and false alarms.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from chexzero.common.statistics import Floats, auroc, check_arrays

#: Labels with fewer positive (or negative) cases are marked, get no p value, and stay out of `mean_counted`.
FEW = 10

Z95 = float(norm.ppf(0.975))


def newcombe_interval(area: ArrayLike, n_pos: ArrayLike, n_neg: ArrayLike, z: float = Z95) -> tuple[Floats, Floats]:
    """Lower and upper ends of the intervals of areas in 0..1, given their counts of cases; the arrays broadcast.

    The ends are the areas at which the observed one would lie `z` standard errors away, with Hanley and McNeil's
    standard error of that area and both counts replaced by their mean. NaN where an area is NaN.
    """
    observed = np.asarray(area, dtype=np.float64)
    positive, negative = (np.asarray(count, dtype=np.float64) for count in (n_pos, n_neg))
    shape = np.broadcast_shapes(observed.shape, positive.shape, negative.shape)

    def end(sign: int) -> Floats:
        low = np.zeros(shape) if sign < 0 else np.broadcast_to(observed, shape).copy()
        high = np.broadcast_to(observed, shape).copy() if sign < 0 else np.ones(shape)
        for _ in range(60):  # bisection to double precision
            middle = (low + high) / 2
            beyond = middle - sign * z * _standard_error(middle, positive, negative) > observed
            low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
        return np.where(np.isfinite(observed), (low + high) / 2, np.nan)

    return end(-1), end(1)


def _standard_error(area: Floats, n_pos: Floats, n_neg: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = (n_pos + n_neg) / 2 - 1
        spread = 1 + pairs * ((1 - area) / (2 - area) + area / (1 + area))
        return np.sqrt(np.maximum(area * (1 - area) * spread / (n_pos * n_neg), 0))


def case_influence(y_true: ArrayLike, y_score: ArrayLike) -> Floats:
    """How far each case moves each area, DeLong's structural components: (N, L), NaN where a class is missing.

    y_true: (N, L), 0 or 1. y_score: (N, L). The sum of products of two columns estimates the covariance of two areas.
    """
    truth, scores = check_arrays(y_true, y_score)
    found = np.full(truth.shape, np.nan)
    for i, (positive, values) in enumerate(zip(truth.T, scores.T, strict=True)):
        n_pos, n_neg = int(positive.sum()), int((~positive).sum())
        if not n_pos or not n_neg:
            continue
        ranks = rankdata(values)
        beaten = (ranks[positive] - rankdata(values[positive])) / n_neg
        beating = 1 - (ranks[~positive] - rankdata(values[~positive])) / n_pos
        area = beaten.mean()
        # n / (n - 1): DeLong's variances are those of samples
        found[positive, i] = (beaten - area) / np.sqrt(n_pos * max(n_pos - 1, 1))
        found[~positive, i] = (beating - area) / np.sqrt(n_neg * max(n_neg - 1, 1))
    return found


def mean_interval(areas: ArrayLike, lower: ArrayLike, upper: ArrayLike, influence: Floats) -> tuple[float, float]:
    """Interval of the mean of areas (K,) whose own intervals are `lower` and `upper` (K,).

    influence: (N, K), `case_influence` of these labels on the same cases. NaN where no area is given, or one is NaN.
    """
    areas, lower, upper = (np.asarray(values, dtype=np.float64) for values in (areas, lower, upper))
    if not len(areas) or not np.isfinite(areas).all():
        return float("nan"), float("nan")
    correlation = _correlation(influence)
    down, up = ((part @ correlation @ part) ** 0.5 / len(areas) for part in (areas - lower, upper - areas))
    return float(max(areas.mean() - down, 0)), float(min(areas.mean() + up, 1))


def _correlation(influence: Floats) -> Floats:
    """Correlation of the areas: (K, K); 0 for an area that no case moves, such as 1.0."""
    covariance = influence.T @ influence
    spread = np.sqrt(np.diag(covariance))
    scale = np.outer(spread, spread)
    found = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
    np.fill_diagonal(found, 1.0)
    return found


class Paired(NamedTuple):
    """A difference of two models on the same cases: value, 95 % interval and two-sided p value, each (K,)."""

    difference: Floats
    lower: Floats
    upper: Floats
    p: Floats


def paired_areas(y_true: ArrayLike, ours: ArrayLike, theirs: ArrayLike, weights: ArrayLike | None = None) -> Paired:
    """DeLong's test of areas ours − theirs, or of weighted sums of areas.

    y_true, ours, theirs: (N, L). weights: (K, L), for instance 1/5 at five labels for their mean (labels of weight 0
    may be undefined); by default each label by itself. Equal areas from equal ranks have p = 1. NaN where undefined.
    """
    truth = np.asarray(y_true)
    apart = auroc(truth, ours) - auroc(truth, theirs)
    influence = case_influence(truth, ours) - case_influence(truth, theirs)
    matrix = np.eye(len(apart)) if weights is None else np.asarray(weights, dtype=np.float64)
    found = np.full((3, len(matrix)), np.nan)
    for k, row in enumerate(matrix):
        used = row != 0
        value = apart[used] @ row[used]
        error = np.sqrt(((influence[:, used] @ row[used]) ** 2).sum())
        p = 2 * norm.sf(abs(value) / error) if error > 0 else 1.0 if value == 0 else np.nan
        found[:, k] = value, error, np.nan if np.isnan(value) else p
    value, error, p = found
    return Paired(value, value - Z95 * error, value + Z95 * error, p)


def holm(p: ArrayLike) -> Floats:
    """Holm's correction of p values (K,): NaN stays NaN and does not count."""
    values = np.asarray(p, dtype=np.float64)
    found = np.full(values.shape, np.nan)
    order = np.argsort(values)[: int(np.isfinite(values).sum())]
    steps = np.arange(len(order), 0, -1) * values[order]
    found[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return found


def enough(truth: NDArray) -> NDArray[np.bool_]:
    """Which labels of (N, L) have at least `FEW` positive and `FEW` negative cases: (L,)."""
    n_pos = np.asarray(truth).sum(0)
    return np.minimum(n_pos, len(truth) - n_pos) >= FEW


def clustered_interval(values: ArrayLike, clusters: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of values in 0..1 and its Wilson interval, widened if values are correlated within clusters.

    values: (N,), usually right (1) or wrong (0). clusters: (N,), rows of one patient or image share a value.
    The Wilson interval is computed for N / deff rows, deff being the variance of the mean with clusters over the one
    without (never below 1; Kish 1965). Returns mean, lower, upper; NaN without rows.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        return (float("nan"),) * 3
    n, mean = len(values), values.mean()
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(index, weights=values - mean)
    spread = np.square(values - mean).sum()
    deff = max(1.0, np.square(sums).sum() / spread) if spread > 1e-12 else n / len(sums)
    size, z = n / deff, float(norm.ppf(0.5 + level / 2))
    centre = (mean + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * np.sqrt(mean * (1 - mean) / size + (z / (2 * size)) ** 2)
    return float(mean), float(max(0.0, min(centre - half, mean))), float(min(1.0, max(centre + half, mean)))
