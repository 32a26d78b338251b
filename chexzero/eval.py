"""Upstream's evaluation functions: ROC and PR curves, areas per label, bootstrap intervals.

Predictions and labels are arrays (N, L), column i belonging to `cxr_labels[i]`. Read them from files by column name
(`chexzero.metrics.y_true_csv_to_np`), never by position. The numbers are scikit-learn's; `chexzero.common.statistics`
computes all labels and resamples at once.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import expit
from sklearn import metrics as sklearn_metrics

from chexzero.common.errors import UserError
from chexzero.common.labels import COMPETITION_LABELS
from chexzero.common.statistics import Floats, auroc, bootstrap_auroc, check_arrays, percentile_interval


def compute_mean(
    stats: pd.DataFrame | Mapping[str, Any], is_df: bool = True, labels: Sequence[str] = COMPETITION_LABELS
) -> float:
    """Mean over `labels` (default: the five of the CheXpert competition), ignoring NaN.

    stats: the frame of `evaluate` or `bootstrap` (columns `<label>_auc` or `<label>`; the first row is used), or
    with `is_df=False` a mapping from label to a number or a list whose first number is used.
    """
    if is_df:
        first = cast(pd.DataFrame, stats).iloc[0]
        stats = {str(name).removesuffix("_auc"): value for name, value in first.items()}
    missing = [label for label in labels if label not in stats]
    if missing:
        raise UserError(f"the mean needs {', '.join(missing)}, which the statistics lack; evaluate these labels too")
    return np.float64(np.nanmean([np.ravel(stats[label])[0] for label in labels]))


def sigmoid(x: np.ndarray | float) -> np.ndarray | float:
    """The logistic function 1 / (1 + exp(-x)), without overflow."""
    return expit(x)


def plot_roc(
    y_pred: np.ndarray, y_true: np.ndarray, roc_name: str, plot: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """ROC of one label: `(fpr, tpr, thresholds, area)`; with `plot` also drawn on matplotlib's current axes.

    y_pred: (N,) scores. y_true: (N,), 0 or 1. The area is NaN when a class is missing.
    """
    truth, scores = _column(y_true), _column(y_pred)
    area = float(auroc(truth, scores)[0])
    with _quiet():
        fpr, tpr, thresholds = sklearn_metrics.roc_curve(truth, scores)
    if plot:
        _draw(fpr, tpr, f"AUROC {area:.3f}", roc_name, ("False positive rate", "True positive rate"))
    return fpr, tpr, thresholds, area


def choose_operating_point(fpr: np.ndarray, tpr: np.ndarray, thresholds: np.ndarray) -> tuple[float, float]:
    """`(sensitivity, specificity)` where their sum is largest; ties go to the highest threshold."""
    best = int(np.argmax(np.asarray(tpr) - np.asarray(fpr)))
    return tpr[best], 1 - fpr[best]


def plot_pr(
    y_pred: np.ndarray, y_true: np.ndarray, pr_name: str, plot: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision-recall curve of one label: `(precision, recall, thresholds)`; with `plot` also drawn.

    The plot's dotted line is the share of positives, the precision of random scores.
    """
    truth, scores = _column(y_true), _column(y_pred)
    precision, recall, thresholds = sklearn_metrics.precision_recall_curve(truth, scores)
    if plot:
        area = sklearn_metrics.auc(recall, precision)
        axes = _draw(recall, precision, f"area {area:.3f}", pr_name, ("Recall", "Precision"))
        axes.axhline(truth.mean(), linestyle=":", color="grey")
    return precision, recall, thresholds


def evaluate(
    y_pred: np.ndarray,
    y_true: np.ndarray,
    cxr_labels: Sequence[str],
    roc_name: str = "Receiver Operating Characteristic",
    pr_name: str = "Precision-Recall Curve",
    label_idx_map: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """Area under the ROC curve of each label: one row, columns `<label>_auc`, NaN where a class is missing.

    y_pred: (N, L). y_true: (N, L), 0 or 1; with `label_idx_map` (label -> column of `y_true`) it may have other
    columns, as when several names of one finding are tried. Raises `UserError` for shapes that do not match, for
    labels other than 0 and 1 and for predictions that are not finite. `roc_name` and `pr_name` are accepted for
    compatibility and ignored.
    """
    truth = true_columns(y_pred, y_true, cxr_labels, label_idx_map)
    return pd.DataFrame([auroc(truth, y_pred)], columns=_auc_names(cxr_labels))


def average_precision(y_true: ArrayLike, y_score: ArrayLike) -> Floats:
    """Average precision (area under the precision-recall steps) of each column of (N, L): (L,).

    Computed by scikit-learn; NaN where a class is missing.
    """
    truth, scores = check_arrays(y_true, y_score)
    return np.array(
        [
            sklearn_metrics.average_precision_score(t, s) if t.any() and not t.all() else np.nan
            for t, s in zip(truth.T, scores.T, strict=True)
        ]
    )


def compute_cis(data: pd.DataFrame, confidence_level: float = 0.05) -> pd.DataFrame:
    """Rows `mean, lower, upper` for each column of bootstrap samples, rounded to 4 places.

    `confidence_level` is the share left out: 0.05 gives 95 % intervals, the ends being the sorted values at index
    int(0.025 n) - 1 and int(0.975 n) - 1. Undefined resamples are left out. With n below 40 upstream's
    lower index is -1, its largest value; here it is the smallest.
    """
    values = data.to_numpy(dtype=np.float64)
    lower, upper = percentile_interval(values, level=1 - confidence_level)
    with _quiet():
        mean = np.nanmean(values, axis=0)
    return pd.DataFrame([mean, lower, upper], index=["mean", "lower", "upper"], columns=data.columns).round(4)


def bootstrap(
    y_pred: np.ndarray,
    y_true: np.ndarray,
    cxr_labels: Sequence[str],
    n_samples: int = 1000,
    label_idx_map: Mapping[str, int] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Areas in `n_samples` resamples of the rows, (n_samples, L), and their intervals as `compute_cis` gives them.

    Resample i is `sklearn.utils.resample(index, replace=True, random_state=i)`, so two models' samples are paired.
    """
    truth = true_columns(y_pred, y_true, cxr_labels, label_idx_map)
    samples = pd.DataFrame(bootstrap_auroc(truth, y_pred, n_samples), columns=_auc_names(cxr_labels))
    return samples, compute_cis(samples)


def true_columns(
    y_pred: np.ndarray, y_true: np.ndarray, cxr_labels: Sequence[str], label_idx_map: Mapping[str, int] | None = None
) -> np.ndarray:
    """The column of `y_true` for each label, (N, L), after checking that both arrays have one column per label."""
    y_pred, y_true = np.asarray(y_pred), np.asarray(y_true)
    if y_pred.ndim != 2 or y_true.ndim != 2 or len(y_pred) != len(y_true):
        raise UserError(
            f"predictions of shape {y_pred.shape} and labels of shape {y_true.shape} do not match; both "
            f"must be images x labels, with the same images"
        )
    columns = list(range(y_true.shape[1]))
    if label_idx_map is not None:
        missing = [label for label in cxr_labels if label not in label_idx_map]
        if missing:
            raise UserError(f"label_idx_map lacks {', '.join(missing)}; give each label its column")
        columns = [label_idx_map[label] for label in cxr_labels]
    if y_pred.shape[1] != len(cxr_labels) or len(columns) != len(cxr_labels):
        raise UserError(
            f"{len(cxr_labels)} labels were named, but there are {y_pred.shape[1]} columns of "
            f"predictions and {len(columns)} of labels; pick the columns by name first"
        )
    return y_true[:, columns]


def _auc_names(labels: Sequence[str]) -> list[str]:
    return [f"{label}_auc" for label in labels]


def _column(values: np.ndarray) -> np.ndarray:
    return np.asarray(values).reshape(-1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings about a missing class: the result is NaN already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _draw(x: np.ndarray, y: np.ndarray, label: str, title: str, axis_names: tuple[str, str]) -> Any:
    from matplotlib import pyplot

    axes = pyplot.gca()
    axes.plot(x, y, label=label)
    axes.set(title=title, xlabel=axis_names[0], ylabel=axis_names[1], xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="lower right")
    return axes
