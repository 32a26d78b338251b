"""Thresholds chosen on the validation set, and what F1, MCC, sensitivity and specificity they give.

A value that is 0/0 (no positive case, nothing predicted positive, ...) is NaN here and `n/a` in the report.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_curve

from chexzero.common.statistics import Floats, check_arrays, resample_counts


@dataclass(frozen=True)
class Rates:
    """Each (L,) or (S, L), NaN where undefined."""

    f1: Floats
    mcc: Floats
    sensitivity: Floats
    specificity: Floats


def confusion_rates(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> Rates:
    """Rates from counts of true and false positives and negatives (arrays of one shape)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(tp + fp) * np.sqrt(tp + fn) * np.sqrt(tn + fp) * np.sqrt(tn + fn)
        f1 = np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan)
        return Rates(f1, (tp * tn - fp * fn) / root, tp / (tp + fn), tn / (tn + fp))


def rates(y_true: ArrayLike, y_called: ArrayLike, counts: Floats | None = None) -> Rates:
    """Rates of binary calls, per label.

    y_true, y_called: (N, L), 0 or 1. counts: (N, S) weights of the rows in S resamples; then each rate is (S, L).
    """
    truth, called = (np.asarray(a).astype(np.float64) for a in (y_true, y_called))
    weights = np.ones(len(truth)) if counts is None else counts.T
    return confusion_rates(
        weights @ (truth * called),
        weights @ ((1 - truth) * called),
        weights @ (truth * (1 - called)),
        weights @ ((1 - truth) * (1 - called)),
    )


def best_mcc_threshold(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """The threshold of one label's ROC curve with the highest MCC (a score at or above it counts as positive).

    y_true, y_score: (N,). NaN where a class is missing or no threshold separates anything.
    """
    truth, scores = (column[:, 0] for column in check_arrays(y_true, y_score))
    n_pos = truth.sum()
    n_neg = len(truth) - n_pos
    if not n_pos or not n_neg:
        return float("nan")
    fpr, tpr, thresholds = roc_curve(truth, scores)
    tp, fp = tpr * n_pos, fpr * n_neg
    mcc = confusion_rates(tp, fp, n_pos - tp, n_neg - fp).mcc
    return float(thresholds[np.nanargmax(mcc)]) if np.isfinite(mcc).any() else float("nan")


def thresholds(y_true: ArrayLike, y_score: ArrayLike) -> Floats:
    """`best_mcc_threshold` of each column: (L,), NaN where undefined."""
    truth, scores = check_arrays(y_true, y_score)
    return np.array([best_mcc_threshold(t, s) for t, s in zip(truth.T, scores.T, strict=True)])


def call(y_score: ArrayLike, at: ArrayLike) -> NDArray[np.bool_]:
    """Whether scores (N, L) reach each label's threshold (L,); never where there is none (NaN)."""
    return np.asarray(y_score) >= np.nan_to_num(np.asarray(at), nan=np.inf)


def rates_at(y_true: ArrayLike, y_score: ArrayLike, at: ArrayLike, counts: Floats | None = None) -> Rates:
    """Rates at thresholds (L,) that another set chose; NaN for labels without one."""
    found = rates(y_true, call(y_score, at), counts)
    missing = np.isnan(np.asarray(at))
    return Rates(
        *(np.where(missing, np.nan, value) for value in (found.f1, found.mcc, found.sensitivity, found.specificity))
    )


def bootstrap_rates(y_true: ArrayLike, y_score: ArrayLike, at: ArrayLike, n_samples: int = 1000) -> Rates:
    """Rates in upstream's resamples, thresholds fixed: each (n_samples, L)."""
    return rates_at(y_true, y_score, at, resample_counts(len(np.asarray(y_true)), n_samples))
