"""Probabilities of any findings for any folder of images, to a CSV."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from chexzero.data_process import IMAGE_SUFFIXES, preprocess, read_image
from chexzero.errors import UserError
from chexzero.prompts import pair, probabilities

log = logging.getLogger(__name__)


def images_in(folder: Path) -> list[Path]:
    """Image files under a folder, sorted; hidden ones left out. `UserError` where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name one that holds images ({', '.join(IMAGE_SUFFIXES)})")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
                   and not path.name.startswith("."))
    if not found:
        raise UserError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}); name another folder")
    return found


def predict_folder(model, folder: Path, labels: Sequence[str], *, batch_size: int = 64,
                   device: str = "cpu") -> pd.DataFrame:
    """A row an image: `image` (path in the folder) and one column a label, each the probability against "no <label>".

    Files that cannot be read, and images of one grey value, are left out with a warning that names them. Raises
    `UserError` where nothing is left, or where the model gives all images the same probabilities.
    """
    from chexzero.inference import embed_images

    labels = [label.strip() for label in labels]
    if not labels or not all(labels) or len(set(labels)) != len(labels):
        raise UserError("--labels needs one or more findings, none blank and none twice; for instance --labels "
                        "\"pleural effusion\" \"pneumothorax\"")
    names, features = [], []
    for batch_names, batch in _batches(folder, images_in(folder), batch_size):
        names += batch_names
        features.append(embed_images(model, batch, batch_size=batch_size, device=device))
    if not names:
        raise UserError(f"none of the images in {folder} can be read; the warnings above say why")
    scores = probabilities(model, np.concatenate(features), [pair(label, label, label) for label in labels])
    if len(names) > 1 and np.ptp(scores, axis=0).max() == 0:
        log.warning("every image got the same probabilities: they are all alike, or the checkpoint tells images not "
                    "apart")
    return pd.DataFrame({"image": names} | {label: scores[:, i] for i, label in enumerate(labels)})


def _batches(folder: Path, paths: Sequence[Path], size: int) -> Iterator[tuple[list[str], np.ndarray]]:
    for start in range(0, len(paths), size):
        names, pixels = [], []
        for path in paths[start:start + size]:
            try:
                image = np.asarray(preprocess(read_image(path)))
            except (OSError, ValueError) as error:
                log.warning("%s is left out: %s", path, error)
                continue
            if image.max() == image.min():
                log.warning("%s is left out: it is of one grey value", path)
                continue
            names.append(path.relative_to(folder).as_posix())
            pixels.append(image)
        if names:
            yield names, np.stack(pixels)
