"""Disguised copies of an image, to measure what the audit finds: what a radiograph meets between two releases."""

from collections.abc import Callable

import cv2
import numpy as np

SIZE = 320
Rng = np.random.Generator


def _crop(c: np.ndarray, rng: Rng) -> np.ndarray:
    """Up to 5 % off each side."""
    h, w = c.shape
    top, bottom = (rng.uniform(0, 0.05, 2) * h).astype(int)
    left, right = (rng.uniform(0, 0.05, 2) * w).astype(int)
    return c[top : h - bottom, left : w - right]


def _resolution(c: np.ndarray, rng: Rng) -> np.ndarray:
    """50 to 90 % of the pixels a side (of the 320, so a coarser copy than any release's)."""
    scale = rng.uniform(0.5, 0.9)
    return cv2.resize(c, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _contrast(c: np.ndarray, rng: Rng) -> np.ndarray:
    """A narrower window and a gamma of 0.6 to 1.6."""
    low, high = np.percentile(c, [rng.uniform(0, 2), rng.uniform(97, 100)])
    stretched = np.clip((c.astype(np.float32) - low) / max(high - low, 1), 0, 1)
    return np.round(255 * stretched ** rng.uniform(0.6, 1.6)).astype(np.uint8)


def _bit_depth(c: np.ndarray, rng: Rng) -> np.ndarray:
    """A 16-bit copy that uses part of its range, its own range scaled back to 0..255; or only 32 to 128 levels."""
    if rng.random() < 0.5:
        wide = np.round(c / 255 * rng.integers(1000, 60000)).astype(np.float32) + rng.integers(0, 2000)
        return np.round((wide - wide.min()) / max(wide.max() - wide.min(), 1) * 255).astype(np.uint8)
    step = 256 // int(rng.choice([32, 64, 128]))
    return (c // step * step).astype(np.uint8)


def _jpeg(c: np.ndarray, rng: Rng) -> np.ndarray:
    """JPEG of quality 60 to 95."""
    data = cv2.imencode(".jpg", c, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 96))])[1]
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)


def _rotation(c: np.ndarray, rng: Rng) -> np.ndarray:
    """Up to 2 degrees either way."""
    h, w = c.shape
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), rng.uniform(-2, 2), 1)
    return cv2.warpAffine(c, matrix, (w, h), flags=cv2.INTER_CUBIC)


def _inverted(c: np.ndarray, rng: Rng) -> np.ndarray:
    """Black for white."""
    return 255 - c


def _border(c: np.ndarray, rng: Rng) -> np.ndarray:
    """A black frame of 1 to 4 % of the longer side."""
    width = max(1, int(rng.uniform(0.01, 0.04) * max(c.shape)))
    return cv2.copyMakeBorder(c, width, width, width, width, cv2.BORDER_CONSTANT, value=0)


#: name -> what is done, in the order in which a mixture does it
STEPS: dict[str, Callable[[np.ndarray, Rng], np.ndarray]] = {
    "rotation": _rotation,
    "crop": _crop,
    "resolution": _resolution,
    "contrast": _contrast,
    "bit depth": _bit_depth,
    "inverted": _inverted,
    "border": _border,
    "JPEG": _jpeg,
}
MIXTURE = "several at once"
KINDS = (*STEPS, MIXTURE)
WHAT = {name: step.__doc__ for name, step in STEPS.items()} | {MIXTURE: "Two or more of these."}


def disguised(image: np.ndarray, kind: str, rng: Rng) -> np.ndarray:
    """A disguised copy of a preprocessed image (uint8 320 x 320, black padding), preprocessed again.

    A mixture takes each step with probability 1/2 (inversion 1/8), and at least two.
    """
    names = [kind] if kind != MIXTURE else []
    while kind == MIXTURE and len(names) < 2:
        names = [name for name in STEPS if rng.random() < (0.125 if name == "inverted" else 0.5)]
    picture = _content(image)
    for name in names:
        picture = STEPS[name](picture, rng)
    return _placed(picture)


def _content(image: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    if not len(rows):
        return image
    return np.ascontiguousarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _placed(picture: np.ndarray) -> np.ndarray:
    """The picture scaled so that its longer side is 320, centred on black."""
    ratio = SIZE / max(picture.shape)
    height, width = (max(1, int(side * ratio)) for side in picture.shape)
    how = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LANCZOS4
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    canvas[top : top + height, left : left + width] = cv2.resize(picture, (width, height), interpolation=how)
    return canvas
