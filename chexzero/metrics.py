"""Upstream's metrics at a threshold: Matthews correlation (MCC) and F1 with intervals, thresholds from validation.

The way to use it: `get_best_p_vals` on the validation set, then `compute_mcc` and `compute_f1` on the test set with
these thresholds. Radiologists' files hold decisions instead of scores; a threshold of 0.5 for every label fits
them.
"""

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import matthews_corrcoef, roc_curve

from chexzero.common.errors import UserError
from chexzero.common.formats import read_labels
from chexzero.common.labels import COMPETITION_LABELS, LABELS
from chexzero.common.statistics import check_arrays, resample_counts
from chexzero.eval import compute_cis, true_columns

MEAN = "Mean"


def y_true_csv_to_np(df_path: str | os.PathLike, cxr_labels: Sequence[str]) -> np.ndarray:
    """Read a 0/1 label CSV by column name: int64 (N, len(cxr_labels)), columns in the order asked for.

    Raises `UserError` for a missing column or a cell that is not 0 or 1.
    """
    return read_labels(df_path, list(cxr_labels))[1].astype(np.int64)


def get_best_alt_labels(res_df: pd.DataFrame, cxr_labels: Sequence[str]) -> dict[str, list[str]]:
    """The best name of each finding: `{label: [name]}`.

    res_df: frame of `evaluate` with alternative names, whose columns `<name>_auc` stand behind their label's own,
    in the order that `zero_shot.process_alt_labels` gives. The first row is compared; of equals the first column
    wins.
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

    pred, groundtruth: (N, L), of the validation set. Of equally good thresholds the lowest is taken. `spline_k` is
    upstream's and changes nothing there either; `verbose` prints each choice.
    """
    truth, scores = check_arrays(true_columns(pred, groundtruth, cxr_labels), pred)
    chosen = {}
    for i, label in enumerate(cxr_labels):
        candidates = _roc_thresholds(truth[:, i], scores[:, i])
        values = [
            metric_func(truth[:, i].astype(int), (scores[:, i] >= threshold).astype(int)) for threshold in candidates
        ]
        chosen[label] = candidates[int(np.argmax(values))]
        if verbose:
            print(f"{label}: {max(values):.4f} at {chosen[label]:.4f}")
    return chosen


def _roc_thresholds(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores at the corners of the ROC, ascending; without both classes every score is one."""
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

    eval_func: `mcc_at`, `f1_at`, or any function called as they are that gives one row. Resample i is
    `sklearn.utils.resample(index, replace=True, random_state=i)`; upstream does not seed this one, so its intervals
    differ from run to run.
    """
    if eval_func in _FROM_COUNTS:
        samples = _resampled(y_pred, y_true, cxr_labels, best_p_vals, _FROM_COUNTS[eval_func], n_samples, label_idx_map)
        return samples, compute_cis(samples)
    y_pred, y_true = np.asarray(y_pred), np.asarray(y_true)
    samples = []
    for i in range(n_samples):
        drawn = np.repeat(np.arange(len(y_pred)), resample_counts(len(y_pred), 1, i)[:, 0].astype(int))
        samples.append(
            eval_func(y_pred[drawn], y_true[drawn], best_p_vals, cxr_labels=cxr_labels, label_idx_map=label_idx_map)
        )
    samples = pd.concat(samples, ignore_index=True)
    return samples, compute_cis(samples)


def mcc_at(
    y_pred: np.ndarray,
    y_true: np.ndarray,
    best_p_vals: Mapping[str, float],
    cxr_labels: Sequence[str] = LABELS,
    label_idx_map: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """MCC of each label, called positive at its threshold and above, and their `Mean`: one row.

    0 where all are, or are called, one class. `Mean` is over those of the five competition labels that are there, or
    over all labels when none of them is.
    """
    return _frame(_mcc(*_outcomes(y_pred, y_true, best_p_vals, cxr_labels, label_idx_map).sum(1)), cxr_labels)


def f1_at(
    y_pred: np.ndarray,
    y_true: np.ndarray,
    best_p_vals: Mapping[str, float],
    cxr_labels: Sequence[str] = LABELS,
    label_idx_map: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """F1 of each label, as `mcc_at`; 0 where nothing is, and nothing is called, positive."""
    return _frame(_f1(*_outcomes(y_pred, y_true, best_p_vals, cxr_labels, label_idx_map).sum(1)), cxr_labels)


def compute_f1(
    y_pred: np.ndarray,
    y_true: np.ndarray,
    cxr_labels: Sequence[str],
    thresholds: Mapping[str, float],
    label_idx_map: Mapping[str, int] | None = None,
    n_samples: int = 1000,
) -> pd.DataFrame:
    """F1 with bootstrap intervals: rows `mean, lower, upper`, a column a label and `Mean`, rounded to 4 places.

    y_pred: (N, L) scores, called positive at `thresholds[label]` and above. y_true: (N, L), 0 or 1. The row `mean`
    is the value on the set itself, what the paper reports; upstream puts the average of its resamples there.
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


def _outcomes(
    y_pred: np.ndarray,
    y_true: np.ndarray,
    thresholds: Mapping[str, float],
    labels: Sequence[str],
    label_idx_map: Mapping[str, int] | None,
) -> np.ndarray:
    """Which row is a true positive, false positive, false negative, true negative: float64 (4, N, L), 0 or 1."""
    missing = [label for label in labels if label not in thresholds]
    if missing:
        raise UserError(f"no threshold is given for {', '.join(missing)}; choose them with get_best_p_vals")
    truth, scores = check_arrays(true_columns(y_pred, y_true, labels, label_idx_map), y_pred)
    called = scores >= np.array([thresholds[label] for label in labels])
    return np.stack([called & truth, called & ~truth, ~called & truth, ~called & ~truth]).astype(np.float64)


def _resampled(
    y_pred: np.ndarray,
    y_true: np.ndarray,
    labels: Sequence[str],
    thresholds: Mapping[str, float],
    metric: Callable,
    n_samples: int,
    label_idx_map: Mapping[str, int] | None,
    at_once: int = 200,
) -> pd.DataFrame:
    """A resample only changes how often each row counts, so all counts are one matrix product."""
    outcomes = _outcomes(y_pred, y_true, thresholds, labels, label_idx_map)
    pieces = []
    for start in range(0, n_samples, at_once):
        weights = resample_counts(outcomes.shape[1], min(at_once, n_samples - start), start)
        pieces.append(metric(*(weights.T @ outcome for outcome in outcomes)))
    return _frame(np.concatenate(pieces), labels)


def _mcc(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    scale = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.divide(tp * tn - fp * fn, scale, out=np.zeros_like(scale), where=scale > 0)


def _f1(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    scale = 2 * tp + fp + fn
    return np.divide(2 * tp, scale, out=np.zeros_like(scale), where=scale > 0)


def _frame(values: np.ndarray, labels: Sequence[str]) -> pd.DataFrame:
    """Values (L,) or (S, L) as a frame with a last column `Mean`."""
    values = np.atleast_2d(values)
    wanted = [i for i, label in enumerate(labels) if label in COMPETITION_LABELS] or list(range(len(labels)))
    return pd.DataFrame(values, columns=list(labels)).assign(**{MEAN: values[:, wanted].mean(1)})


_FROM_COUNTS = {mcc_at: _mcc, f1_at: _f1}
