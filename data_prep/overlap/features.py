"""Local features of an image (SIFT), spread over the picture, and the content box they are taken from."""

import math
import os
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

CELLS = 5  # the picture is divided into CELLS x CELLS cells, so that no corner or label takes all features
PER_ROUND = 3  # features taken from each cell in turn
FLAT = 10  # grey levels; a border line that spans less is not content


@dataclass
class Features:
    """`points` float32 (n, 2), x and y in pixels of the image; `histograms` uint8 (n, 128), SIFT's own descriptors."""

    points: np.ndarray
    histograms: np.ndarray

    @cached_property
    def descriptors(self) -> np.ndarray:
        return root_sift(self.histograms)


def root_sift(histograms: np.ndarray) -> np.ndarray:
    """RootSIFT (Arandjelovic and Zisserman 2012), float32 (n, 128), rows of length one."""
    values = histograms.astype(np.float32)
    return np.sqrt(values / np.maximum(values.sum(axis=1, keepdims=True), 1e-6))


def workers_available() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def content_box(image: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a uint8 (H, W) image without flat lines at its border (padding, frames, canvas).

    A line is flat if its grey values, without the lowest and highest 3 %, span less than 10. An image that is flat
    everywhere is kept whole.
    """
    rows = _span(image)
    return rows, _span(np.ascontiguousarray(image[rows].T))


def _span(lines: np.ndarray) -> slice:
    cut = min(max(1, round(0.03 * lines.shape[1])), (lines.shape[1] - 1) // 2)
    ordered = np.partition(lines, (cut, lines.shape[1] - 1 - cut), axis=1)
    live = np.flatnonzero(ordered[:, -1 - cut].astype(np.int16) - ordered[:, cut] >= FLAT)
    return slice(int(live[0]), int(live[-1]) + 1) if len(live) else slice(0, len(lines))


def without_specks(image: np.ndarray) -> np.ndarray:
    """Remove details thinner than three pixels, such as single-pixel noise and grid lines: uint8 (H, W)."""
    return cv2.medianBlur(image, 5)


def extract(image: np.ndarray, side: int, n: int) -> Features:
    """Find the `n` strongest SIFT features of the content, its shorter side resized to `side` pixels.

    Fewer are returned where fewer are found.
    """
    rows, columns = content_box(image)
    picture = np.ascontiguousarray(image[rows, columns])
    scale = min(side / min(picture.shape), 2 * side / max(picture.shape))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    width, height = (max(8, round(length * scale)) for length in picture.shape[::-1])
    picture = cv2.resize(picture, (width, height), interpolation=how)
    sift = cv2.SIFT.create(nfeatures=4 * n, contrastThreshold=0.01, edgeThreshold=10)
    found = sift.detect(picture, None)
    if not found:
        return Features(np.empty((0, 2), np.float32), np.empty((0, 128), np.uint8))
    points = np.array([point.pt for point in found], np.float32)
    chosen = _spread(points, np.array([point.response for point in found]), (width, height))[:n]
    histograms = sift.compute(picture, [found[i] for i in chosen])[1]  # only for these, as descriptors take time
    offset = np.array([columns.start, rows.start], np.float32)
    return Features(points[chosen] / np.float32(scale) + offset, histograms.astype(np.uint8))


def _spread(points: np.ndarray, responses: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Order of the points: the strongest `PER_ROUND` of every cell, then the next of every cell, and so on."""
    cells = np.clip((points * CELLS / np.array(size)).astype(int), 0, CELLS - 1) @ (1, CELLS)
    strongest = np.lexsort((-responses, cells))
    firsts = np.searchsorted(cells[strongest], cells[strongest])
    rank = np.empty(len(points), int)
    rank[strongest] = np.arange(len(points)) - firsts
    return np.lexsort((-responses, rank // PER_ROUND))


def stretch(matrix: np.ndarray) -> float:
    """Largest over smallest magnification of an affine map (2, 3): the ratio of its singular values, 1 for a change of size."""
    (a, b, _), (c, d, _) = matrix.tolist()
    squares, area = a * a + b * b + c * c + d * d, abs(a * d - b * c)
    return (squares + math.sqrt(max(squares**2 - 4 * area**2, 0))) / (2 * area) if area else math.inf


#: (mirrored, inverted) variants of an evaluation image to compare; SIFT needs none for rotation
POSES = ((False, False), (True, False), (False, True), (True, True))


def posed(image: np.ndarray, mirrored: bool, inverted: bool) -> np.ndarray:
    """Mirror an image and invert its content, not its padding: uint8 (H, W) -> uint8 (H, W)."""
    image = image.copy()
    if inverted:
        box = content_box(image)
        image[box] = 255 - image[box]
    return np.ascontiguousarray(image[:, ::-1]) if mirrored else image


def posed_features(found: Features, width: int, mirrored: bool, inverted: bool) -> Features:
    """Convert the features of an image `width` pixels wide to those of the mirrored and inverted image, without SIFT.

    A descriptor is 4 rows x 4 columns x 8 directions, relative to its orientation. Mirroring reverses rows and
    directions; inversion rotates the orientation by 180 degrees, which reverses rows and columns.
    """
    points, cells = found.points, found.histograms.reshape(-1, 4, 4, 8)
    if mirrored:
        points = np.stack([width - 1 - points[:, 0], points[:, 1]], axis=1)
        cells = cells[:, ::-1, :, -np.arange(8)]
    if inverted:
        cells = cells[:, ::-1, ::-1]
    return Features(points, np.ascontiguousarray(cells).reshape(-1, 128))
