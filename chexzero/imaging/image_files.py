"""Read the user's image files and folders: recognised by content, prepared as the training images were."""

import logging
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chexzero.common.errors import UserError
from chexzero.data_process import RESOLUTION
from chexzero.imaging.decode import kind_of, read_file

log = logging.getLogger(__name__)

#: Exceptions that reading a file as an image may raise.
UNREADABLE = (OSError, ValueError, MemoryError)
FORMATS = "PNG, JPEG, DICOM, TIFF or BMP"
#: A file with such a name that does not begin like an image is damaged; with any other name it is not an image.
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".dcm", ".dicom", ".dcm.gz", ".tif", ".tiff", ".bmp")
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "ZIP", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7-Zip"}


@dataclass(frozen=True)
class Found:
    """The files under a folder: `images` to read, and `passed_over`, (path, reason) of all others."""

    images: list[Path]
    passed_over: list[tuple[Path, str]]


def find_images(folder: str | os.PathLike) -> Found:
    """Search a folder and its sub-folders, linked ones too (each once); sorted by path.

    A file is an image by its first bytes or by its name. Raises `UserError` if there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name one that holds images ({FORMATS})")
    found = Found([], [])
    for path, why in sorted(_walk(folder)):
        why = why or _why_passed_over(path)
        if why:
            found.passed_over.append((path, why))
        else:
            found.images.append(path)
    if not found.images:
        some = "; ".join(f"{path.name}: {why}" for path, why in found.passed_over[:3])
        raise UserError(f"{folder} holds no images ({FORMATS}){f' ({some})' * bool(some)}; name another folder")
    return found


def images_in(folder: str | os.PathLike) -> list[Path]:
    """The images that `find_images` finds; a warning counts the files that are skipped."""
    found = find_images(folder)
    if found.passed_over:
        path, why = found.passed_over[0]
        log.warning("%d files of %s are skipped (%s: %s)", len(found.passed_over), folder, printable(path), why)
    return found.images


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file below a folder and why it cannot be read, or ""."""
    seen = set()
    failed: list[OSError] = []
    for top, folders, files in os.walk(folder, followlinks=True, onerror=failed.append):
        place = os.stat(top)
        if (place.st_dev, place.st_ino) in seen:
            folders.clear()
            yield Path(top), "a link to a folder that was searched already"
            continue
        seen.add((place.st_dev, place.st_ino))
        yield from ((Path(top, name), "") for name in files)
    yield from ((Path(error.filename), error.strerror or str(error)) for error in failed)


def _why_passed_over(path: Path) -> str:
    """Why a file does not count as an image, "" if it does."""
    if path.name.startswith("._"):
        return "a resource file of macOS, not an image"
    if path.name.startswith("."):
        return "a hidden file"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a plain file"
        with open(path, "rb") as handle:
            head = handle.read(4096)  # enough to recognise the content of a packed file
    except FileNotFoundError:
        return "a broken link" if path.is_symlink() else "it no longer exists"
    except OSError as error:
        return error.strerror or str(error)
    if kind_of(head) or path.name.lower().endswith(SUFFIXES):
        return ""
    packed = next((name for mark, name in _PACKED.items() if head.startswith(mark)), None)
    return f"packed with {packed}; unpack it" if packed else f"its content is not {FORMATS}"


def printable(path: Path) -> str:
    """A path as text that can be written as UTF-8, whatever bytes its name has."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def reason(error: Exception) -> str:
    """Why a file cannot be read, in a few words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class ImageFiles:
    """Image files in the form that `zero_shot.embed_images` takes: a slice reads and prepares those files only.

    `files[i:j]` is uint8 (j - i, size, size); `size` is the side at which the model's training images were stored. A
    file that cannot be read, or has one grey value only, raises `UserError`.
    """

    def __init__(self, paths: Sequence[str | os.PathLike], size: int = RESOLUTION):
        self.paths, self.size = [Path(path) for path in paths], size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice) -> np.ndarray:
        with ThreadPoolExecutor() as threads:  # decoding and resizing release the GIL
            images = list(threads.map(self._read, self.paths[rows]))
        return np.stack(images) if images else np.zeros((0, self.size, self.size), np.uint8)

    def _read(self, path: Path) -> np.ndarray:
        try:
            return read_file(path, self.size)
        except UNREADABLE as error:
            raise UserError(f"{path}: {reason(error)}; repair it or leave it out") from error
