"""Metrics at a threshold: Matthews correlation (MCC), F1, sensitivity, specificity; thresholds from validation.

Usage: `get_best_p_vals` on the validation set, then `compute_mcc` and `compute_f1` on the test set with these
thresholds. Radiologists' files hold decisions instead of scores; use a threshold of 0.5 for every label there.

0/0: a rate is NaN if the set lacks a class that it needs (F1 and sensitivity: no positive case, specificity: no
negative case, MCC: either), because no model can be judged on such a set; with both classes, calling every case the
same gives an MCC of 0. Upstream's tables (`compute_f1`, `compute_mcc`, `f1_mcc_bootstrap`) show 0 instead of NaN, as
its scikit-learn does.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import f1_score, matthews_corrcoef, roc_curve

from chexzero.common.errors import UserError
from chexzero.common.formats import read_labels
from chexzero.common.labels import COMPETITION_LABELS, LABELS
from chexzero.common.statistics import Floats, check_arrays, resample_counts
from chexzero.eval import compute_cis, true_columns

MEAN = "Mean"


@dataclass(frozen=True)
class Rates:
    """Each (L,) or (S, L); the module's docstring covers 0/0."""

    f1: Floats
    mcc: Floats
    sensitivity: Floats
    specificity: Floats


def confusion_rates(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> Rates:
    """Rates from counts of true and false positives and negatives (arrays of one shape)."""
    positive, negative, called, passed = tp + fn, tn + fp, tp + fp, tn + fn
    root = np.sqrt((positive * negative) * (called * passed))  # this order equals scikit-learn's to the last bit
    with np.errstate(invalid="ignore", divide="ignore"):
        mcc = np.where(root > 0, (tp * tn - fp * fn) / root, np.where(positive * negative > 0, 0.0, np.nan))
        f1 = np.where(positive > 0, 2 * tp / (2 * tp + fp + fn), np.nan)
        return Rates(f1, mcc, tp / positive, tn / negative)


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


def rates_at(y_true: ArrayLike, y_score: ArrayLike, at: ArrayLike, counts: Floats | None = None) -> Rates:
    """Rates of scores (N, L) called positive at thresholds (L,) and above; NaN for labels without a threshold (NaN)."""
    at = np.asarray(at, dtype=np.float64)
    found = rates(y_true, np.asarray(y_score) >= np.nan_to_num(at, nan=np.inf), counts)
    return Rates(*(np.where(np.isnan(at), np.nan, value) for value in vars(found).values()))


def bootstrap_rates(y_true: ArrayLike, y_score: ArrayLike, at: ArrayLike, n_samples: int = 1000) -> Rates:
    """Rates in upstream's resamples, thresholds fixed: each (n_samples, L)."""
    return rates_at(y_true, y_score, at, resample_counts(len(np.asarray(y_true)), n_samples))


def best_thresholds(
    y_true: ArrayLike, y_score: ArrayLike, metric_func: Callable[[NDArray, NDArray], float] = matthews_corrcoef
) -> Floats:
    """Threshold of each label as `get_best_p_vals` chooses it: (L,), NaN where a class is missing."""
    truth, scores = check_arrays(y_true, y_score)
    return np.array(
        [
            _best_threshold(t, s, metric_func)[0] if t.any() and not t.all() else np.nan
            for t, s in zip(truth.T, scores.T, strict=True)
        ]
    )


def _best_threshold(truth: NDArray[np.bool_], scores: NDArray, metric_func: Callable) -> tuple[float, float]:
    """The ROC threshold at which a metric is best (ties: the lowest), and the metric there."""
    candidates = _roc_thresholds(truth, scores)
    name = _RATES.get(metric_func)
    if name is None:
        values = np.array([metric_func(truth.astype(int), (scores >= at).astype(int)) for at in candidates])
    else:  # every candidate at once, from counts
        n_pos, n_neg = float(truth.sum()), float((~truth).sum())
        tp, fp = (
            (kept.sum() - np.searchsorted(np.sort(scores[kept]), candidates)).astype(np.float64)
            for kept in (truth, ~truth)
        )
        values = np.nan_to_num(getattr(confusion_rates(tp, fp, n_pos - tp, n_neg - fp), name))
    best = int(np.argmax(values))
    return float(candidates[best]), float(values[best])


#: scikit-learn's metric -> its field in `Rates`.
_RATES: dict[Callable, str] = {matthews_corrcoef: "mcc", f1_score: "f1"}


def y_true_csv_to_np(df_path: str | os.PathLike, cxr_labels: Sequence[str]) -> np.ndarray:
    """Read a 0/1 label CSV by column name: int64 (N, len(cxr_labels)), columns in the order asked for.

    Raises `UserError` for a missing column or a cell that is not 0 or 1.
    """
    return read_labels(df_path, list(cxr_labels))[1].astype(np.int64)


def get_best_alt_labels(res_df: pd.DataFrame, cxr_labels: Sequence[str]) -> dict[str, list[str]]:
    """The best name of each finding: `{label: [name]}`.

    res_df: frame of `evaluate` with alternative names, whose columns `<name>_auc` follow their label's own, in the
    order of `zero_shot.process_alt_labels`. The first row is compared; ties go to the first column.
    """
    best: dict[str, tuple[str, float]] = {}
    current = None
    for column, area in res_df.iloc[0].items():
        name = str(column).removesuffix("_auc")
        current = name if name in cxr_labels else current
        if current is None:
            raise UserError(
                f"the column {column} comes before any of the labels {', '.join(cxr_labels)}; each "
                f"label's own column must come first"
            )
        if current not in best or area > best[current][1]:
            best[current] = (name, area)
    return {label: [name] for label, (name, _) in best.items()}


def get_best_p_vals(
    pred: np.ndarray,
    groundtruth: np.ndarray,
    cxr_labels: Sequence[str],
    metric_func: Callable[[np.ndarray, np.ndarray], float] = matthews_corrcoef,
    spline_k: int | None = None,
    verbose: bool = False,
) -> dict[str, float]:
    """Threshold of each label: the score of the ROC at which `metric_func(truth, pred >= score)` is best.

    pred, groundtruth: (N, L), of the validation set. Ties go to the lowest threshold. `spline_k` is ignored, as in
    upstream; `verbose` prints each choice.
    """
    truth, scores = check_arrays(true_columns(pred, groundtruth, cxr_labels), pred)
    chosen = {}
    for i, label in enumerate(cxr_labels):
        chosen[label], value = _best_threshold(truth[:, i], scores[:, i], metric_func)
        if verbose:
            print(f"{label}: {value:.4f} at {chosen[label]:.4f}")
    return chosen


def _roc_thresholds(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores at the corners of the ROC, ascending; if a class is missing, all distinct scores."""
    if truth.all() or not truth.any():
        return np.unique(scores)
    thresholds = roc_curve(truth, scores)[2]
    return thresholds[np.isfinite(thresholds)][::-1]


def f1_mcc_bootstrap(
    y_pred: np.ndarray,
    y_true: np.ndarray,
    cxr_labels: Sequence[str],
    best_p_vals: Mapping[str, float],
    eval_func: Callable[..., pd.DataFrame],
    n_samples: int = 5000,
    label_idx_map: Mapping[str, int] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`eval_func` in `n_samples` resamples of the rows, and the intervals: `(samples, compute_cis(samples))`.

    eval_func: `mcc_at`, `f1_at`, or a function with the same arguments that returns one row. Resample i is
    `sklearn.utils.resample(index, replace=True, random_state=i)`; upstream does not seed this one, so its intervals
    differ from run to run.
    """
    if eval_func in _AT:
        samples = _rate(_AT[eval_func], y_pred, y_true, best_p_vals, cxr_labels, label_idx_map, n_samples)
        return samples, compute_cis(samples)
    y_pred, y_true = np.asarray(y_pred), np.asarray(y_true)
    rows = []
    for i in range(n_samples):
        drawn = np.repeat(np.arange(len(y_pred)), resample_counts(len(y_pred), 1, i)[:, 0].astype(int))
        rows.append(
            eval_func(y_pred[drawn], y_true[drawn], best_p_vals, cxr_labels=cxr_labels, label_idx_map=label_idx_map)
        )
    samples = pd.concat(rows, ignore_index=True)
    return samples, compute_cis(samples)


def mcc_at(
    y_pred: np.ndarray,
    y_true: np.ndarray,
    best_p_vals: Mapping[str, float],
    cxr_labels: Sequence[str] = LABELS,
    label_idx_map: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """MCC of each label, called positive at its threshold and above, and their `Mean`: one row.

    0 where all cases are, or are called, one class. `Mean` is over the competition labels among `cxr_labels`, or over
    all labels if there are none.
    """
    return _rate("mcc", y_pred, y_true, best_p_vals, cxr_labels, label_idx_map)


def f1_at(
    y_pred: np.ndarray,
    y_true: np.ndarray,
    best_p_vals: Mapping[str, float],
    cxr_labels: Sequence[str] = LABELS,
    label_idx_map: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """F1 of each label, as `mcc_at`; 0 where no case is positive."""
    return _rate("f1", y_pred, y_true, best_p_vals, cxr_labels, label_idx_map)


def compute_f1(
    y_pred: np.ndarray,
    y_true: np.ndarray,
    cxr_labels: Sequence[str],
    thresholds: Mapping[str, float],
    label_idx_map: Mapping[str, int] | None = None,
    n_samples: int = 1000,
) -> pd.DataFrame:
    """F1 with bootstrap intervals: rows `mean, lower, upper`, one column per label and `Mean`, rounded to 4 places.

    y_pred: (N, L) scores, called positive at `thresholds[label]` and above. y_true: (N, L), 0 or 1. The row `mean`
    is the value on the set itself, as the paper reports it; upstream's is the average of the resamples.
    """
    return _with_interval(f1_at, y_pred, y_true, cxr_labels, thresholds, label_idx_map, n_samples)


def compute_mcc(
    y_pred: np.ndarray,
    y_true: np.ndarray,
    cxr_labels: Sequence[str],
    thresholds: Mapping[str, float],
    label_idx_map: Mapping[str, int] | None = None,
    n_samples: int = 1000,
) -> pd.DataFrame:
    """MCC with bootstrap intervals; arguments and result as in `compute_f1`."""
    return _with_interval(mcc_at, y_pred, y_true, cxr_labels, thresholds, label_idx_map, n_samples)


def _with_interval(
    eval_func: Callable,
    y_pred: np.ndarray,
    y_true: np.ndarray,
    labels: Sequence[str],
    thresholds: Mapping[str, float],
    label_idx_map: Mapping[str, int] | None,
    n_samples: int,
) -> pd.DataFrame:
    table = f1_mcc_bootstrap(y_pred, y_true, labels, thresholds, eval_func, n_samples, label_idx_map)[1]
    table.loc["mean"] = eval_func(y_pred, y_true, thresholds, labels, label_idx_map).iloc[0].round(4)
    return table


def _rate(
    name: str,
    y_pred: np.ndarray,
    y_true: np.ndarray,
    thresholds: Mapping[str, float],
    labels: Sequence[str],
    label_idx_map: Mapping[str, int] | None,
    n_samples: int | None = None,
    at_once: int = 200,
) -> pd.DataFrame:
    """One of the `Rates` at thresholds: one row, or one per resample.

    A resample only changes how often each row counts, so one matrix product counts many resamples.
    """
    missing = [label for label in labels if label not in thresholds]
    if missing:
        raise UserError(f"no threshold is given for {', '.join(missing)}; choose them with get_best_p_vals")
    truth, scores = check_arrays(true_columns(y_pred, y_true, labels, label_idx_map), y_pred)
    at = [thresholds[label] for label in labels]
    if n_samples is None:
        return _frame(getattr(rates_at(truth, scores, at), name), labels)
    pieces = []
    for start in range(0, n_samples, at_once):
        counts = resample_counts(len(truth), min(at_once, n_samples - start), start)
        pieces.append(getattr(rates_at(truth, scores, at, counts), name))
    return _frame(np.concatenate(pieces), labels)


def _frame(values: np.ndarray, labels: Sequence[str]) -> pd.DataFrame:
    """Values (L,) or (S, L) as a frame with a last column `Mean`; undefined values become 0, as in upstream."""
    values = np.nan_to_num(np.atleast_2d(values))
    wanted = [i for i, label in enumerate(labels) if label in COMPETITION_LABELS] or list(range(len(labels)))
    return pd.DataFrame(values, columns=list(labels)).assign(**{MEAN: values[:, wanted].mean(1)})


_AT = {mcc_at: "mcc", f1_at: "f1"}
