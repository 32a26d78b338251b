"""Correct the value by which a checkpoint was selected for the optimism of the selection.

The highest of many validations on one small set is partly high by luck. Tsamardinos, Greasidou and Borboudakis (Machine
Learning 2018;107:1895-1922) resample the cases, select again in each resample, and measure the selected one on the cases
that the resample left out. `python -m benchmarks.selection_bias` measures the remaining optimism.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chexzero.common.files import atomic_path
from chexzero.common.labels import LABELS
from chexzero.common.statistics import Floats, resample_counts, weighted_auroc

#: Folder in a run's folder: `step_<step>.npy`, the probabilities (N, 14) of the validation images, float32.
FOLDER = "validation_predictions"

N_RESAMPLES = 200


class SelectionBias:
    """Areas of every validation in the same resamples and on the cases they left out. labels: (N, 14), 0 or 1."""

    def __init__(self, labels: NDArray, names: Sequence[str], n_resamples: int = N_RESAMPLES):
        self.columns = [LABELS.index(name) for name in names]
        self.truth = np.asarray(labels)[:, self.columns].astype(bool)
        self.counts = resample_counts(len(self.truth), n_resamples)
        self.left_out = (self.counts == 0).astype(np.float64)
        self.inside: dict[int, Floats] = {}
        self.outside: dict[int, Floats] = {}

    def add(self, step: int, predictions: NDArray) -> None:
        """Add a validation: its probabilities (N, 14)."""
        scores = np.asarray(predictions, dtype=np.float64)[:, self.columns]
        for kept, counts in ((self.inside, self.counts), (self.outside, self.left_out)):
            kept[step] = np.empty((counts.shape[1], len(self.columns)))
            for i, (positive, values) in enumerate(zip(self.truth.T, scores.T, strict=True)):
                kept[step][:, i] = weighted_auroc(positive, values, counts)

    def corrected(self, steps: Sequence[int]) -> float | None:
        """Mean area without the optimism of the selection among `steps`; None without two validations or an area."""
        steps = [step for step in steps if step in self.inside]
        if len(steps) < 2 or not self.columns:
            return None
        inside = np.stack([self.inside[step] for step in steps])  # validations x resamples x labels
        defined = np.isfinite(inside)
        means = np.where(defined, inside, 0).sum(2) / np.maximum(defined.sum(2), 1)
        chosen = means.argmax(0)
        outside = np.stack([self.outside[step] for step in steps])[chosen, np.arange(inside.shape[1])]
        known = np.isfinite(outside)
        if not known.any(0).all():
            return None  # for some label, no resample leaves out cases of both classes
        return float((np.where(known, outside, 0).sum(0) / known.sum(0)).mean())


def keep_predictions(folder: Path, step: int, predictions: NDArray) -> None:
    """Write a validation's probabilities (N, 14) as float32."""
    path = folder / FOLDER / f"step_{step}.npy"
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, np.asarray(predictions, dtype=np.float32))


def kept_predictions(folder: Path, step: int, n_images: int) -> NDArray | None:
    """The probabilities that `keep_predictions` wrote, or None if there are none for this many images."""
    path = folder / FOLDER / f"step_{step}.npy"
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == (n_images, len(LABELS)) and np.isfinite(found).all() else None
