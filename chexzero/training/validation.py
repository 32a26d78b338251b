"""Validation during training: zero-shot AUROC of the 14 labels, checkpoint selection, and loss on held-out pairs.

`Validator` writes `metrics.csv` and `selection.json`. The test set is never opened here.
"""

import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from chexzero.common.files import sha256_of, write_json
from chexzero.common.formats import check_images, check_rows, grey_images, open_images, read_labels
from chexzero.common.labels import LABELS, MEANS
from chexzero.common.statistics import auroc, bootstrap_auroc, mean_of_samples, mean_over_labels, percentile_interval
from chexzero.model import CLIP
from chexzero.runs import selection
from chexzero.runs.run_folder import checkpoint_name, remove_checkpoints
from chexzero.runs.selection_bias import SelectionBias, keep_predictions, kept_predictions
from chexzero.train import CXRDataset, pair_loss
from chexzero.training.config import TrainConfig
from chexzero.training.logs import METRIC_COLUMNS, CsvLog
from chexzero.training.loss import LOSSES
from chexzero.training.step import Towers
from chexzero.zero_shot import predict_labels

log = logging.getLogger(__name__)


class Validator:
    """The validation set of a run, and the record of its validations."""

    def __init__(self, config: TrainConfig, folder: Path, dataset: CXRDataset, held_out: NDArray, device: torch.device):
        self.config, self.folder, self.dataset, self.held_out, self.device = config, folder, dataset, held_out, device
        self.metrics = CsvLog(folder / "metrics.csv", METRIC_COLUMNS, added=["checkpoint_sha256"])
        self.interval: list = [None, None, None]  # the best step so far, and its metric's lower and upper end
        assert config.valid is not None and config.valid_labels is not None  # `config.resolve` names them
        self.images = config.valid
        table, self.labels = read_labels(config.valid_labels)
        check_rows(self.images, config.valid_labels, table)
        check_images(self.images, pixel_range=config.pixel_range)
        self.defined = labels_with_both_classes(self.labels)
        self.metric = selection.usable_metric(config.select_by, self.defined)
        averaged = [name for name in selection.members(self.metric or "val_loss") if name in self.defined]
        self.bias = SelectionBias(self.labels, averaged)

    def announce(self) -> None:
        """Warn of labels that cannot be measured on this set, and what that means for the selection."""
        missing = [label for label in LABELS if label not in self.defined]
        if missing:
            log.warning(
                "%s: only one class of %s; left out of every mean", self.config.valid_labels, ", ".join(missing)
            )
        if self.metric is None:
            log.warning(
                "no label of %s has both classes, so no checkpoint can be compared: the last one will be taken",
                self.config.valid_labels,
            )
        elif self.metric != self.config.select_by:
            log.warning(
                "--select_by %s is not defined on %s; %s is used instead",
                self.config.select_by,
                self.config.valid_labels,
                self.metric,
            )

    def run(self, model: CLIP, row: dict[str, Any]) -> dict[str, Any] | None:
        """Validate `model`; add the result to `row` (step, epoch, ...), write it and the selection.

        Returns the whole row, or None, having written nothing, where the model's predictions are not finite.
        """
        begun = time.perf_counter()
        with open_images(self.images) as handle:
            predictions = predict_labels(
                model,
                grey_images(handle, self.config.pixel_range),
                batch_size=64,
                device=self.device,
                precision=self.config.precision,
            )
        if not np.isfinite(predictions).all():
            return None
        row = row | zero_shot_row(self.labels, predictions)
        if len(self.held_out):
            row["val_loss"] = held_out_loss(
                model,
                self.dataset,
                self.held_out,
                self.config.batch_size,
                self.device,
                LOSSES[self.config.loss].criterion(),
                self.config.precision,
            )
        row["seconds"] = time.perf_counter() - begun
        checkpoint = self.folder / checkpoint_name(row["step"])
        row["checkpoint_sha256"] = f"sha256:{sha256_of(checkpoint)}" if checkpoint.is_file() else None
        keep_predictions(self.folder, row["step"], predictions)
        self.metrics.append(row)
        self._select(row, predictions)
        return row

    def exhausted(self) -> bool:
        """Whether `--patience` validations have brought no improvement."""
        return selection.is_exhausted(self.metrics.rows(), self.metric, self.config.patience, self.config.min_delta)

    def _select(self, row: dict[str, Any], predictions: NDArray) -> None:
        rows = self.metrics.rows()
        best = selection.best(rows, self.metric)
        if best and self.metric is not None and best["step"] == row["step"]:
            self.interval = [best["step"], *bootstrap_interval(self.labels, predictions, self.metric, self.defined)]
        content = selection.describe(
            rows, self.metric, self.config.select_by, self.interval[1:], len(self.labels), self._corrected(rows)
        )
        write_json(self.folder / "selection.json", content)
        if self.config.keep_top_k is not None:
            remove_checkpoints(self.folder, selection.steps_to_keep(rows, self.metric, self.config.keep_top_k))
        shown = ", ".join(
            f"{name} {row[name]:.4f}" for name in (*MEANS, "val_loss") if math.isfinite(row.get(name, math.nan))
        )
        log.info(
            "step %d: validation %s (selected: step %d)",
            row["step"],
            shown or "without a defined AUROC",
            content["step"],
        )

    def _corrected(self, rows: list[dict[str, Any]]) -> float | None:
        """The selected value corrected for selection optimism; None for the loss and if predictions were not kept."""
        steps = [row["step"] for row in rows]
        for step in steps:
            if step not in self.bias.inside:  # after a resume, all steps
                predictions = kept_predictions(self.folder, step, len(self.labels))
                if predictions is None:
                    return None
                self.bias.add(step, predictions)
        return self.bias.corrected(steps)


def labels_with_both_classes(labels: NDArray) -> list[str]:
    """Labels whose column of `labels` (N, 14) has at least one 0 and one 1."""
    return [label for label, column in zip(LABELS, labels.T, strict=True) if 0 < column.sum() < len(column)]


def zero_shot_row(labels: NDArray, predictions: NDArray) -> dict[str, float]:
    """AUROC columns of `metrics.csv` from labels and predictions (N, 14); NaN where a label has only one class."""
    areas = auroc(labels, predictions)
    means = {name: mean_over_labels(areas, members)[0] for name, members in MEANS.items()}
    return means | {f"{label}_auc": float(area) for label, area in zip(LABELS, areas, strict=True)}


def bootstrap_interval(
    labels: NDArray, predictions: NDArray, metric: str, defined: list[str]
) -> tuple[float | None, float | None]:
    """95 % interval of an AUROC column of `metrics.csv`; None if it is no AUROC or undefined in all resamples."""
    names = [label for label in selection.members(metric) if label in defined]
    if not names:
        return None, None
    columns = [LABELS.index(name) for name in names]
    samples = mean_of_samples(bootstrap_auroc(labels[:, columns], predictions[:, columns]), names, names)
    lower, upper = (float(end) for end in percentile_interval(samples))
    return (lower, upper) if math.isfinite(lower) else (None, None)


@torch.no_grad()
def held_out_loss(
    model: CLIP,
    dataset: CXRDataset,
    rows: NDArray,
    batch_size: int,
    device: torch.device,
    criterion: nn.Module,
    precision: str = "fp32",
) -> float:
    """Loss on held-out pairs, each text matching only its own image: the mean over pairs, in file-order batches."""
    was_training = model.training
    towers = Towers(model.eval(), precision, alone=True)
    total = 0.0
    for start in range(0, len(rows), batch_size):
        batch = dataset[rows[start : start + batch_size].tolist()]
        of_images, of_texts = towers(batch["img"].to(device), batch["txt"].to(device))
        labels = torch.arange(len(batch["row"]), device=device)
        total += float(pair_loss(of_images, of_texts, labels, criterion)) * len(labels)
    model.train(was_training)
    return total / len(rows)
