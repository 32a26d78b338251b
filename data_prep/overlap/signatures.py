"""What the first stage compares: local relief maps and small thumbnails of them.

A relief map is the image after its local mean is taken away and its local contrast set to one, so that bit depth,
brightness and any smooth change of contrast leave it nearly alone. A thumbnail is that map at 32 x 32, one byte a
cell: 1 KiB an image, 490 MiB on disk for half a million, and no more than a block of it in memory.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import cv2
import numpy as np

from chexzero.common.errors import UserError

MAP_SIZE = 96
THUMB_SIZE = 32
RELIEF_SIGMA = 1.8  # of the local mean, in pixels at MAP_SIZE (6 at 320)
RELIEF_LIMIT = 3.0  # in local standard deviations; what lies above is clipped
BLOCK = 512  # images read at once


def workers_available() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def content_mask(image: np.ndarray) -> np.ndarray:
    """1 inside the picture, 0 in flat rows and columns at its border (padding, frames); uint8 (H, W) -> float32.

    A border line is flat if its grey values, the 3 % lowest and highest apart, span less than 10.
    """
    mask = np.zeros(image.shape, np.float32)
    rows, columns = _span(image), _span(np.ascontiguousarray(image.T))
    mask[rows, columns] = 1
    return mask


def _span(lines: np.ndarray) -> slice:
    cut = max(1, round(0.03 * lines.shape[1]))
    ordered = np.partition(lines, (cut, lines.shape[1] - 1 - cut), axis=1)
    live = np.flatnonzero(ordered[:, -1 - cut].astype(np.int16) - ordered[:, cut] >= 10)
    return slice(live[0], live[-1] + 1) if len(live) else slice(0, len(lines))


def local_contrast(image: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """Relief of `image` inside `mask`: minus the local mean, over the local deviation; float32, 0 outside."""
    weight = cv2.GaussianBlur(mask, (0, 0), sigma) + 1e-6
    picture = image.astype(np.float32)
    centred = (picture - cv2.GaussianBlur(picture * mask, (0, 0), sigma) / weight) * mask
    deviation = np.sqrt(cv2.GaussianBlur(centred * centred, (0, 0), sigma) / weight)
    return np.clip(centred / (deviation + 2.0), -RELIEF_LIMIT, RELIEF_LIMIT) * mask  # + 2: noise stays low


def relief_map(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W) -> float32 (96, 96), roughly -3..3, 0 in padding."""
    small = cv2.resize(np.asarray(image, np.uint8), (MAP_SIZE, MAP_SIZE), interpolation=cv2.INTER_AREA)
    return local_contrast(small, content_mask(small), RELIEF_SIGMA)


def thumbnail(relief: np.ndarray) -> np.ndarray:
    """Relief map -> int8 (1024,): the mean of each cell, 127 for the limit."""
    cells = cv2.resize(relief, (THUMB_SIZE, THUMB_SIZE), interpolation=cv2.INTER_AREA)
    return np.round(cells.ravel() * (127 / RELIEF_LIMIT)).astype(np.int8)


def blocks(images: Any, size: int = BLOCK) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, uint8 (b, H, W)) of anything sliceable, `size` images at a time."""
    for start in range(0, len(images), size):
        yield start, np.asarray(images[start : start + size]).astype(np.uint8, copy=False)


class ThumbnailFile:
    """Thumbnails in an open file, int8 (N, 1024). `thumbs[a:b]` and `thumbs[rows]` read what is asked for.

    A memory map would count as this process's memory, and its faults bring in far more than the rows.
    """

    def __init__(self, file: IO[bytes], length: int) -> None:
        self.file, self.length = file, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        size, descriptor = THUMB_SIZE**2, self.file.fileno()
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.length)
            data = os.pread(descriptor, (stop - start) * size, start * size)
        else:
            data = b"".join(os.pread(descriptor, size, int(row) * size) for row in rows)
        return np.frombuffer(data, np.int8).reshape(-1, size)


def write_thumbnails(
    images: Any, file: IO[bytes], workers: int, progress: Callable[[int], None] = lambda done: None
) -> ThumbnailFile:
    """Write the thumbnails of all images into `file`, blockwise with `workers` threads.

    The images are read once, in order; `progress` is told the length of every block. OpenCV works outside Python's
    lock, so threads use all cores. A full disk raises `UserError`.
    """
    with ThreadPoolExecutor(workers) as pool:
        for _, block in blocks(images):
            thumbs = np.stack(list(pool.map(lambda image: thumbnail(relief_map(image)), block)))
            try:
                file.write(thumbs.data)
                file.flush()
            except OSError as error:
                raise UserError(
                    f"cannot write the audit's thumbnails: {error.strerror}; free "
                    f"{len(images) * THUMB_SIZE**2 / 2**20:.0f} MiB in the output folder"
                ) from error
            progress(len(block))
    return ThumbnailFile(file, len(images))
