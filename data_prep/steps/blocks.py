"""A build's work files: each .npz holds up to 64 prepared images and is written atomically.

A block is the unit of resuming and of sharing work: `<work>/<role>/000012.npz` holds the 64 rows from 12 * 64 on.
Every process writes its own files and moves each into place when it is complete, so a kill loses only the blocks
in progress, and jobs on several nodes never write to the same file.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chexzero.common.errors import UserError
from chexzero.common.files import atomic_path
from chexzero.data_process import RESOLUTION
from chexzero.imaging.decode import UnreadableImage, prepare_image

SIZE = 64
REASON_LENGTH = 200
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass
class Block:
    """`images` uint8 (n, size, size), `bits` uint8 (n,) per sample in the file, `file_sha256` and `pixel_sha256` uint8
    (n, 32), `errors` (n,) text, "" where the image is good; otherwise its other values are zero. `notes` (n,) text:
    what is unusual about a good image's range, else ""."""

    images: np.ndarray
    bits: np.ndarray
    file_sha256: np.ndarray
    pixel_sha256: np.ndarray
    errors: np.ndarray
    notes: np.ndarray

    @classmethod
    def empty(cls, n: int, size: int) -> "Block":
        hashes = np.zeros((n, 32), np.uint8)
        return cls(
            np.zeros((n, size, size), np.uint8),
            np.zeros(n, np.uint8),
            hashes,
            hashes.copy(),
            np.full(n, "not prepared", f"<U{REASON_LENGTH}"),
            np.full(n, "", f"<U{REASON_LENGTH}"),
        )


def count(rows: int) -> int:
    """The number of blocks that hold `rows` rows."""
    return -(-rows // SIZE)


def length(index: int, rows: int) -> int:
    """The number of rows in block `index`."""
    return min(SIZE, rows - index * SIZE)


def block_path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.npz"


@dataclass(frozen=True)
class Task:
    """A worker's task: the block's path, and per row the root, the path, and why it has no file, else ""."""

    target: Path
    files: list[tuple[str, str, str]]
    depth16: str
    size: int = RESOLUTION


def prepare_block(task: Task) -> list[str]:
    """Prepare and write one block; returns its errors. Images that an earlier attempt could not read are retried."""
    block = read_block(task.target, len(task.files)) or Block.empty(len(task.files), task.size)
    for i, (root, path, problem) in enumerate(task.files):
        if not block.errors[i]:
            continue
        try:
            if problem:
                raise UnreadableImage(problem)
            image = prepare_image(root, path, task.depth16, task.size)
        except UnreadableImage as error:
            block.errors[i] = str(error)[:REASON_LENGTH]
            continue
        block.images[i], block.bits[i], block.errors[i] = image.pixels, image.bits, ""
        block.notes[i] = image.note[:REASON_LENGTH]
        block.file_sha256[i] = np.frombuffer(image.file_sha256, np.uint8)
        block.pixel_sha256[i] = np.frombuffer(hashlib.sha256(image.pixels.data).digest(), np.uint8)
    with atomic_path(task.target) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **vars(block))
    return [str(error) for error in block.errors if error]


def read_block(path: Path, n: int, images: bool = True) -> Block | None:
    """Read the block of `n` rows; None if it is missing or damaged (the archive has checksums).

    With `images=False` the images are not read, and `images` is empty.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            block = Block(
                **{
                    name: archive[name] if images or name != "images" else np.empty((0, 0, 0), np.uint8)
                    for name in Block.__dataclass_fields__
                }
            )
    except DAMAGED:
        return None
    return block if len(block.errors) == n else None


def read_errors(path: Path, n: int) -> list[str] | None:
    """Read the errors of a finished block, "" where the image is good; None if the block is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            errors = archive["errors"].tolist()
    except DAMAGED:
        return None
    return errors if len(errors) == n else None


def read_all(folder: Path, rows: int, images: bool = True) -> Iterator[Block]:
    """Yield the blocks in order, with or without the images; a missing or damaged one raises `UserError`."""
    for index in range(count(rows)):
        block = read_block(block_path(folder, index), length(index, rows), images)
        if block is None:
            raise UserError(
                f"{block_path(folder, index)} is missing or damaged; run `python -m data_prep build` "
                f"with the same flags again, it prepares only what is missing"
            )
        yield block


class GoodImages:
    """The good images of a role, sliceable like an array (n, size, size) uint8, read from the blocks on demand."""

    dtype = np.dtype(np.uint8)

    def __init__(self, folder: Path, rows: int, size: int):
        self.folder, self.rows, self.size = folder, rows, size
        places = []
        for index in range(count(rows)):
            errors = read_errors(block_path(folder, index), length(index, rows))
            if errors is None:
                raise UserError(f"{block_path(folder, index)} is missing or damaged; run the build again")
            places += [index * SIZE + i for i, error in enumerate(errors) if not error]
        self.places = np.array(places, np.int64)
        self._held: tuple[int, Block | None] = (-1, None)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self), self.size, self.size)

    def __getitem__(self, key) -> np.ndarray:
        places = self.places[key]
        if np.ndim(places) == 0:
            return self._one(int(places))
        images = np.empty((len(places), self.size, self.size), np.uint8)
        for i, place in enumerate(places):
            images[i] = self._one(int(place))
        return images

    def _one(self, place: int) -> np.ndarray:
        index, offset = divmod(place, SIZE)
        if self._held[0] != index:
            self._held = (index, read_block(block_path(self.folder, index), length(index, self.rows)))
        block = self._held[1]
        if block is None:
            raise UserError(f"{block_path(self.folder, index)} is missing or damaged; run the build again")
        return block.images[offset]
