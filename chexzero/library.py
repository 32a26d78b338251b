"""The model as a library: three lines embed an image and a text.

    import chexzero
    model = chexzero.load("checkpoints/pt-imp")
    model.embed_images(["chest.png"]) @ model.embed_texts(["pleural effusion"]).T

gives the cosines. `load` and `ChestCLIP` are also available from `chexzero` itself.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from chexzero.common.errors import UserError
from chexzero.common.files import sha256_of
from chexzero.common.labels import LABELS, PAIR_TEMPLATE
from chexzero.common.resample import RESOLUTION
from chexzero.evaluation.standing import Standing, read_standing
from chexzero.imaging.image_files import ImageFiles
from chexzero.model import CLIP
from chexzero.models.checkpoints import load_model
from chexzero.runs.run_folder import read_run
from chexzero.zero_shot import embed_images, embed_texts, label_pairs, predict_pairs

Paths = Sequence[str | os.PathLike]


@dataclass
class ChestCLIP:
    """A loaded model (`model`, a `chexzero.model.CLIP`) that takes image files and texts.

    Files are PNG, JPEG, DICOM, TIFF or BMP.
    """

    model: CLIP
    checkpoint: Path | None = None
    image_size: int = RESOLUTION  # side in pixels at which its training images were stored

    def embed_images(self, paths: Paths, batch_size: int = 64) -> np.ndarray:
        """Features of image files: float32 (N, D), rows of length 1; `UserError` for one that cannot be read."""
        return embed_images(self.model, ImageFiles(paths, self.image_size), batch_size=batch_size)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Features of texts: float32 (T, D), rows of length 1. A text longer than the context is cut."""
        return embed_texts(self.model, texts)

    def probabilities(
        self,
        paths: Paths,
        labels: Sequence[str] = LABELS,
        template: tuple[str, str] = PAIR_TEMPLATE,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Zero-shot probabilities (N, len(labels)) in 0..1, as in CheXzero; not calibrated, not for clinical use."""
        return predict_pairs(self.model, self.embed_images(paths, batch_size), label_pairs(labels, template))

    def standing(self, results: str | os.PathLike) -> Standing:
        """Percentiles of probabilities among the validation images, from `results/<run>` of `run_zero_shot.py`.

        `.percentile("Edema", values)` is in 0..100. Raises `UserError` if the folder is not an evaluation of these
        weights.
        """
        found = read_standing(Path(results), sha256_of(self.checkpoint)) if self.checkpoint else None
        if found is None:
            raise UserError(
                f"{results} is not an evaluation of these weights; run run_zero_shot.py with this checkpoint first"
            )
        return found


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> ChestCLIP:
    """Load a run's folder (its selected checkpoint), a checkpoint of any kind, or an exported folder.

    Raises `UserError` for anything else.
    """
    path = Path(path)
    is_run = any((path / name).is_file() for name in ("selection.json", "train_log.csv"))
    if not is_run:
        return ChestCLIP(load_model(path, device), path)
    run = read_run(path)
    checkpoint = run.selected()
    return ChestCLIP(load_model(checkpoint, device), checkpoint, run.image_size())
