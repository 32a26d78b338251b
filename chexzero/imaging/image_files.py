"""Images of the user's own: files and folders of PNG, JPEG and DICOM, read as the training images were."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from chexzero.common.errors import UserError
from chexzero.data_process import RESOLUTION
from chexzero.imaging.decode import read_file

log = logging.getLogger(__name__)

#: What reading a file as an image may raise.
UNREADABLE = (OSError, ValueError, MemoryError)
SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")


def images_in(folder: str | os.PathLike) -> list[Path]:
    """Image files under a folder, sorted; hidden ones left out. `UserError` where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name one that holds images ({', '.join(SUFFIXES)})")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    if not found:
        raise UserError(f"{folder} holds no images ({', '.join(SUFFIXES)}); name another folder")
    return found


def reason(error: Exception) -> str:
    """Why a file cannot be read, in a few words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class ImageFiles:
    """Image files as `zero_shot.embed_images` takes them: a slice reads and prepares those files only.

    `files[i:j]` is uint8 (j - i, 320, 320). A file that cannot be read, or shows nothing, raises `UserError`.
    """

    def __init__(self, paths: Sequence[str | os.PathLike]):
        self.paths = [Path(path) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice) -> np.ndarray:
        with ThreadPoolExecutor() as threads:  # decoding and resizing release the interpreter's lock
            images = list(threads.map(self._read, self.paths[rows]))
        return np.stack(images) if images else np.zeros((0, RESOLUTION, RESOLUTION), np.uint8)

    @staticmethod
    def _read(path: Path) -> np.ndarray:
        try:
            return read_file(path)
        except UNREADABLE as error:
            raise UserError(f"{path}: {reason(error)}; repair it or leave it out") from error
