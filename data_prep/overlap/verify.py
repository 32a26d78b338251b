"""Second stage: are two images the same picture? Align them, then compare fine texture.

Two frontal chests are alike in everything coarse, so the verdict rests on what is fine: after a band-pass of a few
pixels at 320, ribs' edges, vessels and noise agree tile by tile only if both come from one exposure. The alignment is
OpenCV's ECC (Evangelidis and Psarakis 2008) of relief maps from 80 to 160 pixels: scale, shift, rotation and shear.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from data_prep.overlap.signatures import content_mask, local_contrast

SIZE = 320
LEVELS = ((80, 40), (160, 20))  # pixels, ECC iterations at most
ALIKE = 0.72  # correlation of the relief at 80 pixels below which two images are not looked at any closer
ALIGN_SIGMA = 8.0  # of the relief that is aligned, in pixels at 160
FINE_SIGMA, COARSE_SIGMA = 1.0, 4.0
TILE = 40
SAME = 0.62  # median correlation of the tiles' texture from which two images are called one
MIN_OVERLAP = 0.6  # of the larger picture
MAX_STRETCH = 1.03  # a copy is scaled alike in all directions; two chests made to fit mostly are not
MAX_SCALE, MAX_ROTATION = 1.3, 0.2  # an alignment beyond these (ratio, sine) has run away


@dataclass
class Prepared:
    """An image ready to be compared: relief and mask at each level, image and mask at 320."""

    reliefs: list[np.ndarray]
    masks: list[np.ndarray]
    image: np.ndarray
    mask: np.ndarray

    @cached_property
    def texture(self) -> np.ndarray:
        """What is finer than the ribs, its local contrast one: float32 (320, 320), made when it is asked for."""
        return _texture(self.image, self.mask)


@dataclass
class Comparison:
    """`score` -1..1 (median texture correlation of the tiles), `overlap` 0..1, `matrix` from a's pixels to b's."""

    score: float
    overlap: float
    matrix: np.ndarray
    inverted: bool

    @property
    def stretch(self) -> float:
        """Largest over smallest magnification of the alignment, 1 for a mere change of size."""
        scales = np.linalg.svd(self.matrix[:, :2], compute_uv=False)
        return float(scales[0] / scales[-1])

    @property
    def same(self) -> bool:
        """Whether the two are called one picture."""
        return self.score >= SAME and self.overlap >= MIN_OVERLAP and self.stretch <= MAX_STRETCH


def prepare(image: np.ndarray) -> Prepared:
    """uint8 (320, 320) -> Prepared; another size is resized first."""
    image = np.asarray(image, np.uint8)
    if image.shape != (SIZE, SIZE):
        image = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    small = cv2.resize(image, LEVELS[-1][:1] * 2, interpolation=cv2.INTER_AREA)
    small_mask = content_mask(small)
    mask = cv2.resize(small_mask, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
    relief = local_contrast(small, small_mask, ALIGN_SIGMA)
    reliefs = [cv2.resize(relief, (size, size), interpolation=cv2.INTER_AREA) for size, _ in LEVELS]
    masks = [
        cv2.resize(small_mask, (size, size), interpolation=cv2.INTER_NEAREST).astype(np.uint8) for size, _ in LEVELS
    ]
    return Prepared(reliefs, masks, image, mask)


def _texture(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    picture = image.astype(np.float32) * mask

    def mean(values: np.ndarray, sigma: float) -> np.ndarray:
        return cv2.GaussianBlur(values, (0, 0), sigma) / (cv2.GaussianBlur(mask, (0, 0), sigma) + 1e-6)

    band = (mean(picture, FINE_SIGMA) - mean(picture, COARSE_SIGMA)) * mask
    energy = np.maximum(cv2.blur(band * band, (TILE // 2, TILE // 2)), 0)  # its running sums may end below zero
    return band / (np.sqrt(energy) + 0.5)  # half a grey level: what is flat stays flat


def compare(
    a: Prepared, b: Prepared, pose: tuple[float, float, float] = (1.0, 0.0, 0.0), sign: int = 1, at_least: float = ALIKE
) -> Comparison | None:
    """Align `b` to `a`, starting at `pose` (scale, shifts in widths), and compare.

    None if no alignment is found, or if the reliefs, aligned at the first level, correlate below `at_least`.
    """
    scale, dx, dy = pose
    centre = (SIZE - 1) / 2
    matrix = np.array(
        [[scale, 0, centre * (1 - scale) + dx * SIZE], [0, scale, centre * (1 - scale) + dy * SIZE]], np.float32
    )
    for level, (size, iterations) in enumerate(LEVELS):
        ratio = np.float32(size / SIZE)
        start = matrix * np.array([[1, 1, ratio]], np.float32)
        stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, iterations, 1e-4)
        try:
            alike, found = cv2.findTransformECC(
                a.reliefs[level], b.reliefs[level] * sign, start, cv2.MOTION_AFFINE, stop, b.masks[level], 5
            )
        except cv2.error:  # no overlap left, or no convergence: these two do not align
            return None
        matrix = found / np.array([[1, 1, ratio]], np.float32)
        if not _sane(matrix) or alike < at_least:
            return None
    return _score(a, b, matrix, sign)


def _sane(matrix: np.ndarray) -> bool:
    scales = np.linalg.svd(matrix[:, :2], compute_uv=False)
    return bool(scales[-1] > 1 / MAX_SCALE and scales[0] < MAX_SCALE and abs(matrix[1, 0]) < MAX_ROTATION)


def _score(a: Prepared, b: Prepared, matrix: np.ndarray, sign: int) -> Comparison:
    inverse = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(b.texture, matrix, (SIZE, SIZE), flags=inverse) * sign
    common = (cv2.warpAffine(b.mask, matrix, (SIZE, SIZE), flags=inverse) > 0.99) & (a.mask > 0)
    inner = cv2.erode(common.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0  # a picture's edge is no texture
    overlap = float(common.sum() / max(a.mask.sum(), b.mask.sum()))
    x, y, m = (_tiles(values) for values in (a.texture, moved, inner))
    enough = m.mean(axis=1) >= 0.6
    if not enough.any():
        return Comparison(0.0, overlap, matrix, sign < 0)
    score = float(np.median(_correlations(x[enough], y[enough], m[enough])))
    return Comparison(score, overlap, matrix, sign < 0)


def _tiles(values: np.ndarray) -> np.ndarray:
    n = SIZE // TILE
    return values.astype(np.float32).reshape(n, TILE, n, TILE).transpose(0, 2, 1, 3).reshape(n * n, TILE * TILE)


def _correlations(x: np.ndarray, y: np.ndarray, m: np.ndarray) -> np.ndarray:
    count = m.sum(axis=1, keepdims=True)
    x = (x - (x * m).sum(axis=1, keepdims=True) / count) * m
    y = (y - (y * m).sum(axis=1, keepdims=True) / count) * m
    return (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1) + 1e-6)


def aligned(image: np.ndarray, comparison: Comparison) -> np.ndarray:
    """`b`'s picture moved onto `a`'s, for a person to compare; uint8 (320, 320)."""
    return cv2.warpAffine(
        np.asarray(image, np.uint8), comparison.matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
