"""Pillow's Lanczos filter for large grey images as matrix products: the same bytes in about half the time.

Pillow shrinks an 8-bit image in two passes, along the rows, then along the columns. In each, an output pixel is the
sum of some 50 input pixels times whole-number weights (fractions of 2**22), rounded to 8 bits. The weights are asked
from Pillow itself. Split into a high and a low part, all sums are whole numbers below 2**24, which float32 holds
exactly in whatever order they are added; so a fast matrix product gives what Pillow's loop gives.
"""

from functools import lru_cache

import numpy as np
from PIL import Image

SHIFT = 22  # Pillow's weights are fractions of 2**SHIFT
LOW = 11  # bits of a weight's low part
SUPPORT = 3  # of Lanczos, in pixels of the smaller image
GROUP = 8  # neighbouring output pixels that share one product
ROWS = 512  # rows at a time, for memory

#: The most input pixels an output pixel may have, so that sums of low parts stay below 2**24.
MOST_TAPS = 2**24 // (255 * 2 ** (LOW - 1)) - 1


def lanczos(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`image.resize(size, LANCZOS)`, in the fast way where that is exact: for large grey images."""
    width, height = size
    if image.mode == "L" and can_shrink(image.height, image.width, height, width):
        return Image.fromarray(shrink(np.asarray(image), height, width))
    return image.resize(size, Image.Resampling.LANCZOS)


def can_shrink(height: int, width: int, new_height: int, new_width: int) -> bool:
    """Whether `shrink` is exact for these sizes, and worth it. (New Pillow turns the passes round for tall ones.)"""
    sizes = ((height, new_height), (width, new_width))
    return (height * width >= 2**20 and 2 * height <= 3 * width
            and all(old > new and _taps(old, new) <= MOST_TAPS for old, new in sizes) and _agrees_with_pillow())


def shrink(image: np.ndarray, new_height: int, new_width: int) -> np.ndarray:
    """uint8 (H, W) to uint8 (new_height, new_width), as `Image.resize(..., LANCZOS)` does it; see `can_shrink`."""
    return _along_rows(_along_rows(image, new_width).T, new_height).T


@lru_cache(1)
def _agrees_with_pillow() -> bool:
    """One comparison a process, so that a Pillow that computes otherwise is not contradicted."""
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200), np.uint8)
    theirs = np.asarray(Image.fromarray(noise).resize((320, 240), Image.Resampling.LANCZOS))
    return np.array_equal(shrink(noise, 240, 320), theirs)


def _along_rows(image: np.ndarray, new_width: int) -> np.ndarray:
    groups = _weights(image.shape[1], new_width)
    result = np.empty((len(image), new_width), np.uint8)
    for top in range(0, len(image), ROWS):
        pixels = image[top:top + ROWS].astype(np.float32, order="C")
        high, low = np.empty((2, len(pixels), len(groups) * GROUP), np.float32)
        for first, start, stop, weights in groups:
            products = pixels[:, start:stop] @ weights
            high[:, first:first + GROUP] = products[:, :GROUP]
            low[:, first:first + GROUP] = products[:, GROUP:]
        sums = (high.astype(np.int32) << LOW) + low.astype(np.int32) + (1 << SHIFT - 1)
        result[top:top + ROWS] = np.clip(sums >> SHIFT, 0, 255)[:, :new_width]
    return result


def _taps(old: int, new: int) -> int:
    """An upper bound of the input pixels that an output pixel depends on."""
    return int(2 * SUPPORT * old / new) + 3


@lru_cache(16)
def _weights(old: int, new: int) -> list[tuple[int, int, int, np.ndarray]]:
    """For each group of output pixels: the first, the range of its inputs, and their weights, high and low parts side
    by side, float32 (inputs, 2 * GROUP).

    The weights come from resizing rows of impulses in Pillow's 32-bit mode, which rounds as its 8-bit weights are
    rounded. Impulses stand so far apart that no output pixel sees two.
    """
    taps, places = _taps(old, new), np.arange(old)
    impulses = np.zeros((taps, old), np.int32)
    impulses[places % taps, places] = 1 << SHIFT
    seen = np.asarray(Image.fromarray(impulses).resize((new, taps), Image.Resampling.LANCZOS))

    outputs = np.arange(new)
    begins = np.floor((outputs + 0.5 - SUPPORT) * old / new).astype(int) - 1
    inputs = begins[:, None] + np.arange(taps)
    output, tap = np.nonzero((inputs >= 0) & (inputs < old))
    starts = np.maximum(begins[::GROUP], 0)
    span = int((begins - begins[outputs // GROUP * GROUP]).max()) + taps
    groups = np.zeros((len(starts), span, GROUP), np.int32)
    place = inputs[output, tap]
    groups[output // GROUP, place - starts[output // GROUP], output % GROUP] = seen[place % taps, output]
    high = (groups + (1 << LOW - 1)) >> LOW
    parts = np.concatenate([high, groups - (high << LOW)], axis=2).astype(np.float32)
    return [(g * GROUP, int(start), min(int(start) + span, old), parts[g, :old - start])
            for g, start in enumerate(starts)]
