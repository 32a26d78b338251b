"""What is measured at a validation: zero-shot AUROC of the 14 labels, and the loss on held-out pairs if there are any."""

import argparse
import logging
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from chexzero.data import check_rows, open_images, read_labels
from chexzero.images import prepare
from chexzero.inference import PRECISIONS, predict_labels
from chexzero.labels import LABELS, MEANS
from chexzero.loader import PairDataset
from chexzero.model import CLIP
from chexzero.statistics import auroc, bootstrap_auroc, mean_of_samples, mean_over_labels, percentile_interval

log = logging.getLogger(__name__)


@dataclass
class ValidationSet:
    """The validation images by their path, and their labels (N, 14)."""

    path: str
    labels: NDArray[np.float64]

    def defined(self, labels: list[str]) -> list[str]:
        """Those of `labels` that have both classes here."""
        both = {label for label, column in zip(LABELS, self.labels.T, strict=True) if 0 < column.sum() < len(column)}
        return [label for label in labels if label in both]


def read_validation_set(config: argparse.Namespace) -> ValidationSet:
    """Open what `--valid` and `--valid_labels` name, sure that row i of one is row i of the other."""
    table, labels = read_labels(config.valid_labels)
    check_rows(config.valid, config.valid_labels, table)
    found = ValidationSet(config.valid, labels)
    missing = [label for label in LABELS if label not in found.defined(LABELS)]
    if missing:
        log.warning("%s: %s ha%s only one class; left out of every mean", config.valid_labels, ", ".join(missing),
                    "ve" if len(missing) > 1 else "s")
    return found


def validate(model: CLIP, validation: ValidationSet, device: torch.device,
             precision: str = "fp32") -> tuple[dict[str, float], NDArray]:
    """Zero-shot AUROCs of `model`: `({"mean_5": ..., "<Label>_auc": ..., "seconds": ...}, predictions (N, 14))`.

    NaN where a label has only one class; means are over the labels that have both.
    """
    begun = time.perf_counter()
    with open_images(validation.path) as handle:
        predictions = predict_labels(model, handle["cxr"], batch_size=64, device=device, precision=precision)
    if not np.isfinite(predictions).all():
        return {}, predictions
    areas = auroc(validation.labels, predictions)
    row = {name: mean_over_labels(areas, labels)[0] for name, labels in MEANS.items()}
    row |= {f"{label}_auc": float(area) for label, area in zip(LABELS, areas, strict=True)}
    return row | {"seconds": time.perf_counter() - begun}, predictions


def interval(validation: ValidationSet, predictions: NDArray, metric: str) -> tuple[float | None, float | None]:
    """95 % bootstrap interval of a column of `metrics.csv`; None where no resample defines it."""
    names = validation.defined(MEANS.get(metric, [metric.removesuffix("_auc")]))
    if not names:
        return None, None
    columns = [LABELS.index(name) for name in names]
    samples = bootstrap_auroc(validation.labels[:, columns], predictions[:, columns])
    lower, upper = percentile_interval(mean_of_samples(samples, names, names))
    return tuple(float(end) if math.isfinite(end) else None for end in (lower, upper))


@torch.no_grad()
def held_out_loss(model: CLIP, dataset: PairDataset, rows: NDArray, batch_size: int, device: torch.device,
                  precision: str = "fp32") -> float:
    """Contrastive loss on held-out pairs, in batches of `batch_size` in file order (its mean, weighted by pairs)."""
    dtype, total = PRECISIONS[precision], 0.0
    was_training = model.training
    model.eval()
    for start in range(0, len(rows), batch_size):
        batch = dataset.__getitems__(rows[start:start + batch_size].tolist())
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            images = model.encode_image(prepare(batch["img"].to(device), model.image_resolution))
            texts = model.encode_text(batch["txt"].to(device))
        logits = model.logit_scale.exp() * _unit(images) @ _unit(texts).T
        labels = torch.arange(len(logits), device=device)
        loss = (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2
        total += float(loss) * len(logits)
    model.train(was_training)
    return total / len(rows)


def _unit(features: torch.Tensor) -> torch.Tensor:
    return functional.normalize(features.float(), dim=-1)
