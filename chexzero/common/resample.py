"""Pillow's Lanczos filter for large grey images as matrix products: the same bytes in a third of the time.

Pillow shrinks an 8-bit image in two passes, along the rows, then along the columns. In each, an output pixel is the
sum of some 50 input pixels times whole-number weights (fractions of 2**22), rounded to 8 bits. The weights are measured
with Pillow itself. A fast float32 matrix product gives each sum to within a known error; only where that error could
change the rounding, about one pixel in a thousand, the sum is computed again in whole numbers.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

RESOLUTION = 320  # the side of stored images in pixels, unless another was asked for: CheXzero's

SHIFT = 22  # Pillow's weights are fractions of 2**SHIFT, exact in float32
SUPPORT = 3  # of Lanczos, in pixels of the smaller image
GROUP = 8  # neighbouring output pixels that share one product
ROWS = 256  # rows at a time, so that they stay in the processor's cache


def lanczos(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`image.resize(size, LANCZOS)`, by `shrink` where that is exact: for large grey images."""
    width, height = size
    if image.mode == "L" and can_shrink(image.height, image.width, height, width):
        return Image.fromarray(shrink(np.asarray(image), height, width))
    return image.resize(size, Image.Resampling.LANCZOS)


def can_shrink(height: int, width: int, new_height: int, new_width: int) -> bool:
    """Whether `shrink` is exact and faster for these sizes. (New Pillow swaps the passes for tall images.)"""
    return (
        height * width >= 2**20
        and 2 * height <= 3 * width
        and height > new_height
        and width > new_width
        and _agrees_with_pillow()
    )


def shrink(image: np.ndarray, new_height: int, new_width: int) -> np.ndarray:
    """Shrink uint8 (H, W) to (new_height, new_width), as `Image.resize(..., LANCZOS)` does; see `can_shrink`."""
    return _along_rows(_along_rows(image, new_width).T, new_height).T


@lru_cache(1)
def _agrees_with_pillow() -> bool:
    """Whether `shrink` equals this Pillow's result; compared once per process, because another Pillow may differ."""
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200), np.uint8)
    theirs = np.asarray(Image.fromarray(noise).resize((320, 240), Image.Resampling.LANCZOS))
    return np.array_equal(shrink(noise, 240, 320), theirs)


@dataclass(frozen=True)
class _Filter:
    """The weights from `old` to `new` pixels, one row per output pixel, and the same in groups for matrix products.

    `begins` (new,) is the first input of each output pixel, `weights` int64 (new, taps) are fractions of 2**SHIFT,
    `groups` are (first input, end, float32 (inputs, GROUP)), `error` bounds a float32 sum's error in grey levels.
    """

    begins: np.ndarray
    weights: np.ndarray
    groups: list[tuple[int, int, np.ndarray]]
    error: float


def _along_rows(image: np.ndarray, new_width: int) -> np.ndarray:
    kernel = _filter(image.shape[1], new_width)
    rows = min(ROWS, len(image))
    pixels = np.empty((rows, image.shape[1]), np.float32)
    sums, floors = np.empty((2, rows, len(kernel.groups) * GROUP), np.float32)
    result = np.empty((len(image), new_width), np.uint8)
    for top in range(0, len(image), ROWS):
        part = image[top : top + ROWS]
        n = len(part)
        pixels[:n] = part
        for i, (start, stop, weights) in enumerate(kernel.groups):
            np.matmul(pixels[:n, start:stop], weights, out=sums[:n, i * GROUP : (i + 1) * GROUP])
        rounded, rest = floors[:n, :new_width], sums[:n, :new_width]
        rest += 0.5
        np.floor(rest, out=rounded)
        rest -= rounded
        rest -= 0.5
        np.abs(rest, out=rest)
        row, column = np.divmod(np.flatnonzero(rest > 0.5 - kernel.error), new_width)
        rounded[row, column] = _exact(part, row, column, kernel)
        result[top : top + ROWS] = np.clip(rounded, 0, 255, out=rounded)
    return result


def _exact(image: np.ndarray, row: np.ndarray, column: np.ndarray, kernel: _Filter) -> np.ndarray:
    """The output pixels at (row, column) in whole numbers, not yet clipped to 0..255."""
    inputs = kernel.begins[column, None] + np.arange(kernel.weights.shape[1])
    pixels = image[row[:, None], np.clip(inputs, 0, image.shape[1] - 1)]  # outside the image the weights are zero
    return ((pixels * kernel.weights[column]).sum(1) + (1 << SHIFT - 1)) >> SHIFT


@lru_cache(16)
def _filter(old: int, new: int) -> _Filter:
    """Measure the weights by resizing rows of impulses in Pillow's 32-bit mode, which rounds like the 8-bit weights.

    Impulses are so far apart that no output pixel sees two.
    """
    taps, places = int(2 * SUPPORT * old / new) + 3, np.arange(old)  # the most inputs that an output can have
    impulses = np.zeros((taps, old), np.int32)
    impulses[places % taps, places] = 1 << SHIFT
    seen = np.asarray(Image.fromarray(impulses).resize((new, taps), Image.Resampling.LANCZOS))

    outputs = np.arange(new)
    begins = np.floor((outputs + 0.5 - SUPPORT) * old / new).astype(int) - 1
    inputs = begins[:, None] + np.arange(taps)
    weights = np.where((inputs >= 0) & (inputs < old), seen[inputs % taps, outputs[:, None]], 0).astype(np.int64)
    output, tap = np.nonzero(weights)
    place, group = inputs[output, tap], output // GROUP
    starts = np.maximum(begins[::GROUP], 0)
    span = int((begins - begins[outputs // GROUP * GROUP]).max()) + taps
    products = np.zeros((len(starts), span, GROUP), np.float32)
    products[group, place - starts[group], output % GROUP] = weights[output, tap] / (1 << SHIFT)
    groups = [(int(start), min(int(start) + span, old), products[i, : old - start]) for i, start in enumerate(starts)]
    # A float32 sum of n products, in any order, is off by at most n * 2**-24 times the sum of their absolute values;
    # two more for adding the half.
    largest = 255 * np.abs(weights).sum(1).max() / (1 << SHIFT)
    return _Filter(begins, weights, groups, float((taps + 2) * 2.0**-24 * largest))
