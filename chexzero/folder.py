"""Run a model over a folder of images: a tower's features, or a probability per finding."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from chexzero.common.errors import UserError
from chexzero.imaging.decode import read_file
from chexzero.imaging.image_files import UNREADABLE, ImageFiles, images_in, reason
from chexzero.imaging.normalise import prepare
from chexzero.model import CLIP, pick_device
from chexzero.zero_shot import embed_images, label_pairs, predict_pairs

log = logging.getLogger(__name__)


def folder_features(
    tower: nn.Module, folder: str | os.PathLike, *, batch_size: int = 32, device: str | torch.device | None = None
) -> tuple[list[str], np.ndarray]:
    """Run a vision tower over a folder: (paths relative to it, float32 features (N, D), not normalised).

    tower: a module with `image_resolution` that takes prepared images (B, 3, R, R), such as
    `dinov3_adapter.build_vision_tower` gives. `device` None is the GPU if there is one.
    """
    images = ImageFiles(images_in(folder))
    device = pick_device(device)
    tower = tower.to(device).eval()
    features = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(images[start : start + batch_size]).to(device)
            features.append(tower(prepare(batch, int(tower.image_resolution))).float().cpu())
    return [path.relative_to(folder).as_posix() for path in images.paths], torch.cat(features).numpy()


def predict_folder(
    model: CLIP, folder: Path, labels: Sequence[str], *, batch_size: int = 64, device: str | torch.device = "cpu"
) -> pd.DataFrame:
    """A row an image: `image` (path in the folder) and one column a label, each the probability against "no <label>".

    Files that cannot be read, and images of one grey value, are left out with a warning that names them. Raises
    `UserError` where nothing is left. Where the model gives all images the same probabilities, a warning says so.
    """
    labels = [label.strip() for label in labels]
    if not labels or not all(labels) or len(set(labels)) != len(labels):
        raise UserError(
            "--labels needs one or more findings, none blank and none twice; for instance --labels "
            '"pleural effusion" "pneumothorax"'
        )
    names, features = [], []
    for batch_names, batch in _readable(folder, images_in(folder), batch_size):
        names += batch_names
        features.append(embed_images(model, batch, batch_size=batch_size, device=device))
    if not names:
        raise UserError(f"none of the images in {folder} can be read; the warnings above say why")
    scores = predict_pairs(model, np.concatenate(features), label_pairs(labels))
    if len(names) > 1 and np.ptp(scores, axis=0).max() == 0:
        log.warning(
            "every image got the same probabilities: they are all alike, or the checkpoint cannot tell images apart"
        )
    return pd.DataFrame({"image": names} | {label: scores[:, i] for i, label in enumerate(labels)})


def _readable(folder: Path, paths: Sequence[Path], size: int) -> Iterator[tuple[list[str], np.ndarray]]:
    for start in range(0, len(paths), size):
        names, pixels = [], []
        for path in paths[start : start + size]:
            try:
                pixels.append(read_file(path))
            except UNREADABLE as error:
                log.warning("%s is left out: %s", path, reason(error))
                continue
            names.append(path.relative_to(folder).as_posix())
        if names:
            yield names, np.stack(pixels)
