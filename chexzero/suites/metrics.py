"""Metrics that the suites share, vectorised over labels or, for bootstraps, over resamples.

Shapes: N rows, L labels, S resamples. Truth is 0 or 1, scores are any finite numbers, probabilities lie in 0..1.
A label without a positive row has no average precision: NaN, left out of every mean.
"""

from dataclasses import dataclass
from math import comb

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix
from scipy.special import gammaln
from scipy.stats import norm, t

from chexzero.common.statistics import BLOCK, check_arrays, resample_counts

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """One label's rows, ranked once for any number of resamples of their clusters (patients).

    The K different scores of positive rows, in descending order, divide the negatives into 2 K + 1 parts: above the
    first score, equal to it, between it and the second, ... The matrices count the rows of each cluster (C columns) per
    score or part (rows). A resample is a column of counts, so one matrix product sums every part.
    """

    positives: csr_matrix  # (K, C)
    negatives: csr_matrix  # (2 K + 1, C)

    def areas(self, counts: Floats) -> tuple[Floats, Floats]:
        """Average precision and AUROC in each of S resamples: two (S,), NaN where a class they need is not drawn.

        counts: (C, S), how often each cluster is drawn. Equal scores enter together, as in scikit-learn.
        """
        weights = self.positives @ counts
        below = np.cumsum(self.negatives @ counts, axis=0)
        before, until = below[:-1:2], below[1::2]  # negatives above each positive score, and with the equal ones
        hits = np.cumsum(weights, axis=0)
        drawn, absent = weights.sum(0), below[-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = (weights * hits / np.maximum(hits + until, 1)).sum(0) / drawn
            area = (weights * (absent - (before + until) / 2)).sum(0) / (drawn * absent)
        return precision, area


def rank(truth: NDArray[np.bool_], scores: NDArray, clusters: NDArray[np.integer]) -> Ranking:
    """Rank one label's rows. truth, scores: (N,). clusters: (N,), whole numbers from 0, the units that are drawn."""
    n_clusters = clusters.max() + 1
    falling = np.unique(-scores[truth])
    place = np.searchsorted(falling, -scores)
    equal = np.append(falling, np.nan)[place] == -scores

    def count(rows: NDArray[np.bool_], part: NDArray, n_parts: int) -> csr_matrix:
        return csr_matrix((np.ones(rows.sum()), (part[rows], clusters[rows])), (n_parts, n_clusters))

    return Ranking(count(truth, place, len(falling)), count(~truth, 2 * place + equal, 2 * len(falling) + 1))


def bootstrap(y_true: ArrayLike, y_score: ArrayLike, clusters: ArrayLike, n_samples: int) -> tuple[Floats, Floats]:
    """Average precision and AUROC of each column in upstream's resamples of the clusters: two (S, L).

    y_true, y_score: (N, L). clusters: (N,), rows of one patient share a value and are drawn together; where all
    differ, resample i draws exactly the rows that upstream draws.
    """
    truth, scores = check_arrays(y_true, y_score)
    index, names = pd.factorize(np.asarray(clusters))
    rankings = [rank(truth[:, j], scores[:, j], index) for j in range(truth.shape[1])]
    found = np.empty((2, n_samples, len(rankings)))
    step = max(1, min(n_samples, BLOCK // len(truth)))
    for start in range(0, n_samples, step):
        stop = min(start + step, n_samples)
        counts = resample_counts(len(names), stop - start, start)
        for j, ranking in enumerate(rankings):
            found[:, start:stop, j] = ranking.areas(counts)
    return found[0], found[1]


def random_average_precision(n_rows: int, n_positive: ArrayLike) -> Floats:
    """Expected average precision of `n_rows` rows in random order (no ties), per label; NaN without a positive.

    The row at rank k has weight 1 / P if it is positive; the expected positives up to it are then
    1 + (k - 1)(P - 1) / (N - 1).
    """
    positive = np.asarray(n_positive, dtype=np.float64)
    harmonic = (1 / np.arange(1, n_rows + 1)).sum()
    rest = (positive - 1) / max(n_rows - 1, 1) * (n_rows - harmonic)
    return np.where(positive > 0, (harmonic + rest) / n_rows, np.nan)


def choice_scores(similarity: ArrayLike, answer: int) -> float:
    """Credit for one multiple-choice question: 1 if the answer is likeliest, shared equally among ties, else 0."""
    similarity = np.asarray(similarity)
    best = similarity == similarity.max()
    return float(best[answer] / best.sum())


def expanded_level(level: float, n: int) -> float:
    """The level at which a percentile interval of n cases covers as a t interval of `level` does (Hesterberg 2015).

    Percentile intervals of small samples are too narrow: the bootstrap's variance lacks n / (n - 1) and it uses
    the normal's quantiles. At n = 10 the level 0.95 becomes 0.983.
    """
    if n < 2:
        return level
    return float(1 - 2 * norm.cdf(-np.sqrt(n / (n - 1)) * t.ppf(0.5 + level / 2, n - 1)))


def hit_chance(n_candidates: int, n_hits: ArrayLike, k: int) -> Floats:
    """Chance that at least one of `n_hits` hits is among the first `k` of `n_candidates` in random order."""
    hits = np.asarray(n_hits, dtype=np.float64)
    k = min(k, n_candidates)
    misses = n_candidates - hits
    with np.errstate(invalid="ignore"):
        log_none = (
            gammaln(misses + 1) - gammaln(misses - k + 1) - gammaln(n_candidates + 1) + gammaln(n_candidates - k + 1)
        )
    return np.where(misses >= k, 1 - np.exp(log_none), 1.0)


def block_chance(sizes: ArrayLike, k: int) -> Floats:
    """Chance that fewer than `k` rows come before each block, when blocks of rows are in random order.

    sizes: (U,), rows of each block; equal reports are one block, since a model cannot tell them apart. Returns (U,).
    Each number m of other blocks before a block has chance 1 / U, and each choice of m blocks is equally likely;
    `ways[m, s]` counts the choices with s rows in all.
    """
    sizes = np.asarray(sizes, dtype=int)
    chances = {}
    for own in np.unique(sizes):
        ways = np.zeros((k, k))
        ways[0, 0] = 1
        for size in range(1, k):
            n = int((sizes == size).sum()) - (size == own)
            more = np.zeros_like(ways)
            for j in range(min(n, (k - 1) // size) + 1):
                more[j:, j * size :] += comb(n, j) * ways[: k - j, : k - j * size]
            ways = more
        subsets = np.array([max(comb(len(sizes) - 1, m), 1) for m in range(k)], dtype=np.float64)
        chances[own] = (ways.sum(1) / subsets).sum() / len(sizes)
    return np.array([chances[own] for own in sizes])


def number(value: float | None, digits: int = 6) -> float | int | None:
    """A number for JSON: rounded (whole numbers stay whole), None if undefined."""
    if value is None or not np.isfinite(value):
        return None
    return int(value) if isinstance(value, (int, np.integer)) else round(float(value), digits)


def nan_mean(values: ArrayLike) -> float:
    """Mean of the finite values; NaN if there are none."""
    values = np.asarray(values, dtype=np.float64)
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("nan")
