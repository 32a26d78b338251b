"""Features for a folder of images, with CheXzero's preparation in front of any vision tower."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn

from chexzero.data_process import IMAGE_SUFFIXES, RESOLUTION, preprocess, read_image
from chexzero.errors import UserError
from chexzero.images import prepare


class ImageFolder:
    """The images of a folder and its subfolders, sorted by path; a slice reads and prepares those files only.

    `folder[i:j]` is uint8 (j - i, 320, 320), what `chexzero.inference.embed_images` takes. `paths` are relative to
    the folder. A file that cannot be decoded raises `UserError`.
    """

    def __init__(self, folder: str | os.PathLike):
        self.root = Path(folder)
        if not self.root.is_dir():
            raise UserError(f"{folder} is no folder; name a folder of images ({', '.join(IMAGE_SUFFIXES)})")
        self.paths = sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*")
                            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        if not self.paths:
            raise UserError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}); name a folder that does")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice) -> np.ndarray:
        with ThreadPoolExecutor() as threads:  # decoding and resizing release the interpreter's lock
            images = list(threads.map(self._read, self.paths[rows]))
        return np.stack(images) if images else np.zeros((0, RESOLUTION, RESOLUTION), np.uint8)

    def _read(self, path: str) -> np.ndarray:
        try:
            return np.asarray(preprocess(read_image(self.root / path)))
        except ValueError as error:
            raise UserError(f"{self.root / path} {error}; repair it or take it out of the folder") from error


def folder_features(tower: nn.Module, folder: str | os.PathLike, *, batch_size: int = 32,
                    device: str | torch.device | None = None) -> tuple[list[str], np.ndarray]:
    """Run a vision tower over a folder: (paths relative to it, float32 features (N, D), not normalised).

    tower: a module with `image_resolution` that takes prepared images (B, 3, R, R), such as
    `dinov3_adapter.build_vision_tower` gives. `device` None is the GPU if there is one.
    """
    images = ImageFolder(folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tower = tower.to(device).eval()
    features = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(images[start:start + batch_size]).to(device)
            features.append(tower(prepare(batch, int(tower.image_resolution))).float().cpu())
    return images.paths, torch.cat(features).numpy()
