"""Context for a probability: its percentile among the validation images, and its side of the threshold chosen there.

Probabilities of this model lie near 0.5 and say little by themselves. They are compared with an evaluation of the same
weights: `predictions_valid.csv` and `metrics.json` in its results folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from chexzero.common.files import read_json, read_table
from chexzero.common.folders import is_unfinished
from chexzero.common.statistics import Floats


@dataclass(frozen=True)
class Standing:
    """Validation probabilities by label (N,), and the test set's entries per label of `metrics.json`."""

    reference: dict[str, Floats]
    measured: dict[str, dict[str, Any]]

    def percentile(self, label: str, values: ArrayLike) -> Floats:
        """Share of the validation images below each value (ties one half), in 0..100; NaN for an unknown label."""
        wanted = np.asarray(values, dtype=np.float64)
        if label not in self.reference:
            return np.full(wanted.shape, np.nan)
        known = np.sort(self.reference[label])
        below = np.searchsorted(known, wanted, "left") + np.searchsorted(known, wanted, "right")
        return 50.0 * below / len(known)

    def table(self, probabilities: pd.DataFrame) -> pd.DataFrame:
        """One row per image and known label of a table with `image` and one column per label.

        `threshold` is the one chosen on validation, `called` whether the probability reaches it, `sensitivity` and
        `specificity` those of the threshold on the test set; blank where the evaluation has none.
        """
        parts = []
        for label in probabilities.columns.drop("image"):
            if label not in self.reference:
                continue
            one, values = self.measured.get(label, {}), probabilities[label].to_numpy(dtype=np.float64)
            threshold = one.get("threshold")
            parts.append(
                pd.DataFrame(
                    {
                        "image": probabilities["image"],
                        "finding": label,
                        "probability": values,
                        "percentile": self.percentile(label, values),
                        "threshold": threshold,
                        "called": None if threshold is None else values >= threshold,
                        "sensitivity": one.get("sensitivity"),
                        "specificity": one.get("specificity"),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def sentence(self, label: str, value: float) -> str:
        """A sentence for one value, as `97th percentile of 200 validation images; below ...`; empty if unknown."""
        if label not in self.reference:
            return ""
        rank = int(np.clip(np.floor(self.percentile(label, value)), 0, 99))
        ending = "th" if rank % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
        text = f"{rank}{ending} percentile of {len(self.reference[label])} validation images"
        one = self.measured.get(label, {})
        if (threshold := one.get("threshold")) is None:
            return text
        side = "at or above" if value >= threshold else "below"
        text += f"; {side} the threshold {threshold:.4f} chosen there"
        if None not in (one.get("sensitivity"), one.get("specificity")):
            text += f" (test set: sensitivity {one['sensitivity']:.2f}, specificity {one['specificity']:.2f})"
        return text


def read_standing(results: Path, checkpoint_sha256: str) -> Standing | None:
    """Read the standing from an evaluation's folder; None if it has no evaluation of exactly these weights."""
    path = results / "metrics.json"
    if is_unfinished(results) or not path.is_file() or not (results / "predictions_valid.csv").is_file():
        return None
    metrics = read_json(path)
    hashes = metrics.get("provenance", {}).get("checkpoint_sha256", {}) if isinstance(metrics, dict) else {}
    if list(hashes.values()) != [checkpoint_sha256]:
        return None
    labels = metrics["test"]["labels"]
    table = read_table(results / "predictions_valid.csv", list(labels), remedy="evaluate the run again")
    reference = {label: pd.to_numeric(table[label]).to_numpy(dtype=np.float64) for label in labels}
    return Standing(reference, labels)
