"""All results of one labelled set."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexzero.common.intervals import case_influence, enough, mean_interval, newcombe_interval
from chexzero.common.labels import COUNTED, LABELS, MEANS
from chexzero.common.statistics import auroc, bootstrap_auroc, mean_of_samples, mean_over_labels, percentile_interval
from chexzero.eval import average_precision
from chexzero.evaluation.calibration import expected_calibration_error
from chexzero.evaluation.sets import Units
from chexzero.metrics import Rates, rates_at


def number(value: float) -> float | None:
    """A float for JSON: None where undefined."""
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class LabelMetric:
    """A number per label: truth and probabilities (N, L) to (L,), NaN where it is undefined."""

    title: str
    compute: Callable[[NDArray, NDArray], NDArray]


#: Metrics per label besides AUROC. An entry is a key of metrics.json and a column of the report's table of AUROCs.
LABEL_METRICS = {
    "average_precision": LabelMetric("Average precision", average_precision),
    "ece": LabelMetric("Calibration error", expected_calibration_error),
}


@dataclass(frozen=True)
class Mean:
    """A mean over labels: `used` are those whose AUROC is defined, `samples` its value in each resample.

    `lower, upper` are the ends of upstream's percentile interval, `interval` those that hold with few positive cases.
    """

    value: float
    lower: float
    upper: float
    used: list[str]
    samples: np.ndarray
    interval: tuple[float, float] = (float("nan"), float("nan"))


@dataclass(frozen=True)
class SetResult:
    """A set's truth and probabilities (N units, 14) and the results from them, each (14,) in `LABELS` order.

    `per_label` has the `LABEL_METRICS`. `samples` (S, 14) are the bootstrap's AUROCs, `lower` and `upper` upstream's
    percentiles of them; `newcombe` are the intervals that hold with few positive cases. `at` are the thresholds that
    `rates` used (chosen on validation).
    """

    name: str
    units: Units
    probability: np.ndarray
    auroc: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    samples: np.ndarray
    per_label: dict[str, np.ndarray]
    at: np.ndarray
    rates: Rates

    @property
    def title(self) -> str:
        """The set's name in the report."""
        return {"valid": "validation"}.get(self.name, self.name)

    @property
    def truth(self) -> np.ndarray:
        return self.units.truth

    @property
    def n_pos(self) -> np.ndarray:
        return self.truth.sum(0).astype(int)

    @cached_property
    def counted(self) -> np.ndarray:
        """Which labels have enough positive and negative cases to be compared: (14,), bool."""
        return enough(self.truth)

    @cached_property
    def newcombe(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends of Newcombe's intervals, each (14,)."""
        return newcombe_interval(self.auroc, self.n_pos, len(self) - self.n_pos)

    @cached_property
    def influence(self) -> np.ndarray:
        """The influence of each case on each AUROC: (N, 14)."""
        return case_influence(self.truth, self.probability)

    def __len__(self) -> int:
        return len(self.truth)

    def members(self, key: str) -> list[str]:
        """Labels of the mean `key`: those of `MEANS`, or, for `mean_counted`, those with enough cases in this set."""
        if key == COUNTED:
            return [label for label, whether in zip(LABELS, self.counted, strict=True) if whether]
        return MEANS[key]

    def mean(self, key: str) -> Mean:
        """The mean `key` of this set's AUROCs, with both intervals."""
        value, used = mean_over_labels(self.auroc, self.members(key))
        drawn = mean_of_samples(self.samples, used)
        lower, upper = percentile_interval(drawn)
        columns = [LABELS.index(label) for label in used]
        low, high = (end[columns] for end in self.newcombe)
        interval = mean_interval(self.auroc[columns], low, high, self.influence[:, columns])
        return Mean(value, float(lower), float(upper), used, drawn, interval)

    def metrics(self) -> dict[str, Any]:
        """The entry of this set in `metrics.json`; undefined values are None."""
        columns = {
            "auroc": self.auroc,
            "lower": self.lower,
            "upper": self.upper,
            "newcombe_lower": self.newcombe[0],
            "newcombe_upper": self.newcombe[1],
            **self.per_label,
            "threshold": self.at,
            "f1": self.rates.f1,
            "mcc": self.rates.mcc,
            "sensitivity": self.rates.sensitivity,
            "specificity": self.rates.specificity,
        }
        labels = {
            label: {name: number(values[i]) for name, values in columns.items()}
            | {"n_pos": int(self.n_pos[i]), "n": len(self), "few": not bool(self.counted[i])}
            for i, label in enumerate(LABELS)
        }
        found: dict[str, Any] = {
            "labels": labels,
            "n": len(self),
            "level": self.units.level,
            "studies_without_frontal_view": self.units.left_out,
        }
        for key in (*MEANS, COUNTED):
            mean = self.mean(key)
            found[key] = number(mean.value)
            found[f"{key}_interval"] = [number(mean.lower), number(mean.upper)]
            found[f"{key}_interval_honest"] = [number(end) for end in mean.interval]
            found[f"{key}_labels"] = mean.used
        return found


def evaluate_set(
    name: str, units: Units, probability: np.ndarray, at: np.ndarray, n_bootstrap: int = 1000
) -> SetResult:
    """Evaluate probabilities (N units, 14) with thresholds `at` (14,)."""
    samples = bootstrap_auroc(units.truth, probability, n_bootstrap)
    lower, upper = percentile_interval(samples)
    areas = auroc(units.truth, probability)
    undefined = np.isnan(areas)
    return SetResult(
        name,
        units,
        probability,
        areas,
        np.where(undefined, np.nan, lower),
        np.where(undefined, np.nan, upper),
        samples,
        {name: metric.compute(units.truth, probability) for name, metric in LABEL_METRICS.items()},
        np.asarray(at),
        rates_at(units.truth, probability, at),
    )
