"""Calibration: agreement of predicted probabilities with observed frequencies."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression

from chexzero.common.errors import UserError
from chexzero.common.statistics import Floats, check_arrays

N_BINS = 10


def platt(valid_truth: ArrayLike, valid_prob: ArrayLike, prob: ArrayLike) -> Floats:
    """Platt scaling: calibrate probabilities (N, L) to the validation set's frequencies, per label.

    An unpenalised logistic regression of the validation labels on the logit; increasing unless the label's ranking is
    inverted there. Where the logit separates the classes, maximum likelihood does not converge: the targets are then
    Platt's, (n_pos + 1) / (n_pos + 2) and 1 / (n_neg + 2). NaN columns where the validation set lacks a class.
    """
    truth, reference = check_arrays(valid_truth, valid_prob)
    found = np.full(np.shape(prob), np.nan)
    for label in range(truth.shape[1]):
        if 0 < truth[:, label].sum() < len(truth):
            logits, wanted = _logit(reference[:, label]), _logit(np.asarray(prob)[:, label])
            mean, spread = logits.mean(), logits.std() or 1.0
            model = _fit((logits - mean) / spread, truth[:, label])
            found[:, label] = model.predict_proba((wanted[:, None] - mean) / spread)[:, 1]
    return found


def _fit(values: Floats, truth: NDArray[np.bool_]) -> LogisticRegression:
    """The maximum-likelihood fit; every case counts once with each class, weighted by its target."""
    positive, negative = values[truth], values[~truth]
    separated = positive.min() >= negative.max() or positive.max() <= negative.min()
    n_pos, n_neg = len(positive), len(negative)
    high, low = ((n_pos + 1) / (n_pos + 2), 1 / (n_neg + 2)) if separated else (1.0, 0.0)
    target = np.where(truth, high, low)
    return LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(
        np.concatenate([values, values])[:, None], np.repeat([1, 0], len(values)), np.concatenate([target, 1 - target])
    )


def _logit(probability: Floats) -> Floats:
    inside = np.clip(probability, 1e-12, 1 - 1e-12)
    return np.log(inside / (1 - inside))


@dataclass(frozen=True)
class Reliability:
    """One label's reliability diagram (non-empty bins of equal width) and expected calibration error."""

    mean_predicted: Floats
    fraction_positive: Floats
    count: Floats
    ece: float


def reliability(y_true: ArrayLike, y_prob: ArrayLike, n_bins: int = N_BINS) -> Reliability:
    """Reliability of one label: y_true (N,) 0 or 1, y_prob (N,) in 0..1.

    ECE is the mean over rows of |fraction positive - mean probability| of the row's bin (Naeini et al. 2015, equal
    widths, the last bin closed). Probabilities outside 0..1 raise `UserError`.
    """
    truth, probability = (column[:, 0] for column in check_arrays(y_true, y_prob))
    if probability.min() < 0 or probability.max() > 1:
        raise UserError("probabilities outside 0..1 cannot be checked for calibration; predict again")
    index = np.minimum((probability * n_bins).astype(int), n_bins - 1)
    count = np.bincount(index, minlength=n_bins)
    held = count > 0
    mean = np.bincount(index, probability, n_bins)[held] / count[held]
    positive = np.bincount(index, truth, n_bins)[held] / count[held]
    ece = float((count[held] * np.abs(positive - mean)).sum() / len(truth))
    return Reliability(mean, positive, count[held].astype(np.float64), ece)


def expected_calibration_error(y_true: ArrayLike, y_prob: ArrayLike) -> Floats:
    """ECE of each column of (N, L): (L,), each 0..1; see `reliability`."""
    truth, probability = check_arrays(y_true, y_prob)
    return np.array([reliability(truth[:, j], probability[:, j]).ece for j in range(truth.shape[1])])
