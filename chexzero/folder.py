"""Run a model over a folder of images: a tower's features, or a probability per finding."""

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import nn

from chexzero.common.errors import UserError
from chexzero.common.files import read_json, write_json
from chexzero.common.resample import RESOLUTION
from chexzero.imaging.decode import read_file
from chexzero.imaging.image_files import UNREADABLE, ImageFiles, find_images, images_in, printable, reason
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
    resolution = int(cast(int, tower.image_resolution))  # a buffer, so that the state dict has it
    features = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(images[start : start + batch_size]).to(device)
            features.append(tower(prepare(batch, resolution)).float().cpu())
    return [printable(path.relative_to(folder)) for path in images.paths], torch.cat(features).numpy()


def predict_folder(
    model: CLIP,
    folder: Path,
    labels: Sequence[str],
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    size: int = RESOLUTION,
) -> pd.DataFrame:
    """One row per image: `image` (path in the folder) and one column per label, its probability against "no <label>".

    size: the side in pixels at which the model's training images were stored. Files that are not images or cannot be
    read, and images of one grey value, are left out; the result's `attrs["left_out"]` lists them as (path in the
    folder, reason), and warnings name those that looked like images. Raises `UserError` if no image is left, or if the
    model's probabilities are not finite. If all images get the same probabilities, a warning says so.
    """
    labels = [label.strip() for label in labels]
    if not labels or not all(labels) or len(set(labels)) != len(labels):
        raise UserError(
            "--labels needs one or more findings, none blank and none twice; for instance --labels "
            '"pleural effusion" "pneumothorax"'
        )
    found = find_images(folder)
    left_out = [(printable(path.relative_to(folder)), why) for path, why in found.passed_over]
    names, features = [], []
    for batch_names, batch in _readable(folder, found.images, batch_size, size, left_out):
        names += batch_names
        features.append(embed_images(model, batch, batch_size=batch_size, device=device))
    if not names:
        raise UserError(f"none of the images in {folder} can be read; the warnings above say why")
    scores = predict_pairs(model, np.concatenate(features), label_pairs(labels))
    if not np.isfinite(scores).all():
        raise UserError(
            f"the model gives {int((~np.isfinite(scores)).sum())} probabilities that are not finite; its weights are "
            "damaged or its training diverged: use another checkpoint"
        )
    if len(names) > 1 and np.ptp(scores, axis=0).max() == 0:
        log.warning(
            "every image got the same probabilities: they are all alike, or the checkpoint cannot tell images apart"
        )
    table = pd.DataFrame({"image": names} | {label: scores[:, i] for i, label in enumerate(labels)})
    table.attrs["left_out"] = left_out
    return table


def images_result(results: Path, folder: Path) -> Path:
    """Return the path of the predictions for a folder of images: `images_<folder>.csv`.

    If that file is another folder's result, part of a digest of the folder's path is added to the name. A `.json`
    beside the result records the digest.
    """
    folder = folder.resolve()
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()
    plain = "images_" + re.sub(r"[^\w.-]+", "_", folder.name)[:60]
    for stem in (plain, f"{plain}-{digest[:12]}"):
        path, record = results / f"{stem}.csv", results / f"{stem}.json"
        if not path.exists() or (record.is_file() and read_json(record).get("folder_sha256") == digest):
            break
    write_json(record, {"folder_sha256": digest})
    return path


def _readable(
    folder: Path, paths: Sequence[Path], at_once: int, size: int, left_out: list[tuple[str, str]]
) -> Iterator[tuple[list[str], np.ndarray]]:
    for start in range(0, len(paths), at_once):
        names, pixels = [], []
        for path in paths[start : start + at_once]:
            name = printable(path.relative_to(folder))
            try:
                pixels.append(read_file(path, size))
            except UNREADABLE as error:
                log.warning("%s is left out: %s", printable(path), reason(error))
                left_out.append((name, reason(error)))
                continue
            names.append(name)
        if names:
            yield names, np.stack(pixels)
