"""Second stage: decide whether two images are the same picture, by local features under an affine map and by texture.

SIFT features (OpenCV) of the two are matched and an affine map is fitted with RANSAC. Different chests share no such
map; the exceptions (a label burned in at the same place, a device, another exposure of the same patient) share one in
part of the picture, or with few features. The texture under the map must therefore agree tile by tile as well.
"""

import operator
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from data_prep.overlap import features
from data_prep.overlap.features import Features

SIZE = 320
SIDE, POINTS = 192, 400  # shorter side, in pixels, at which features are found, and their number
RATIO = 0.85  # distance to the nearest descriptor over that to the second (Lowe 2004)
REPROJECTION = 4.0  # pixels, RANSAC's threshold
MIN_INLIERS = 10  # unrelated images reach 6
SCALES, MAX_STRETCH = (0.3, 3.0), 1.35  # of the map: magnification, and its ratio between directions
FINE_SIGMA, COARSE_SIGMA = 3.0, 12.0  # band of the texture, pixels at 320
TILE = 40
TILE_FILLED = 0.6  # share of a tile that must be in both pictures
MIN_TILES = 6
#: (inliers, median correlation of the tiles' texture, share of the matched features that are inliers) from which two images
#: are called the same picture; meeting one row is enough. Noise lowers inliers and texture but leaves most remaining
#: matches consistent; text over the picture lowers texture; another exposure of the patient meets no row.
SAME = ((10, 0.92, 0.0), (70, 0.5, 0.0), (20, 0.83, 0.75))
MIN_OVERLAP = 0.3  # of the smaller picture


@dataclass
class Prepared:
    """An image ready to be compared: the image, a float32 mask of its content, both (320, 320), and its features."""

    image: np.ndarray
    mask: np.ndarray
    features: Features
    mirrored: bool = False
    inverted: bool = False

    @cached_property
    def texture(self) -> np.ndarray:
        """The image's texture within its content, float32 (320, 320); cached for further comparisons."""
        return texture(self.image, self.mask)


@dataclass
class Comparison:
    """How two images compare under the best affine map.

    `inliers` features agree with it, `share` 0..1 of those that were matched, the smaller of both directions. `score`
    -1..1 is the median texture correlation of the tiles, `overlap` 0..1 the shared part of the smaller picture. `matrix`
    (2, 3) maps the first image's pixels, mirrored if `mirrored`, to the second's.
    """

    inliers: int
    share: float
    score: float
    overlap: float
    matrix: np.ndarray
    mirrored: bool
    inverted: bool

    @property
    def stretch(self) -> float:
        """Largest over smallest magnification of the map, 1 for a change of size alone."""
        return features.stretch(self.matrix)

    @property
    def same(self) -> bool:
        """Whether the two are called the same picture."""
        found = (self.inliers, self.score, self.share)
        enough = any(all(map(operator.ge, found, wanted)) for wanted in SAME)
        return enough and self.overlap >= MIN_OVERLAP


def at_size(image: np.ndarray) -> np.ndarray:
    """Resize a square uint8 image to 320 x 320, the size at which images are compared."""
    if image.shape == (SIZE, SIZE):
        return np.asarray(image, np.uint8)
    return cv2.resize(np.asarray(image, np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def extract(image: np.ndarray) -> Features:
    """Find the features of a square uint8 image that `compare` uses."""
    return features.extract(features.without_specks(at_size(image)), SIDE, POINTS)


def prepare(image: np.ndarray, found: Features | None = None) -> Prepared:
    """Prepare a square uint8 image, resized to 320 x 320; `found`: its features from `extract`, if known."""
    image = features.without_specks(at_size(image))
    mask = np.zeros(image.shape, np.float32)
    mask[features.content_box(image)] = 1
    return Prepared(image, mask, found or features.extract(image, SIDE, POINTS))


def prepare_poses(image: np.ndarray, found: Features | None = None) -> list[Prepared]:
    """Prepare an image as it is, mirrored, inverted, and both."""
    plain = prepare(image, found)
    return [
        Prepared(
            features.posed(plain.image, mirrored, inverted),
            np.ascontiguousarray(plain.mask[:, ::-1]) if mirrored else plain.mask,
            features.posed_features(plain.features, SIZE, mirrored, inverted),
            mirrored,
            inverted,
        )
        for mirrored, inverted in features.POSES
    ]


def compare(poses: list[Prepared], other: Prepared) -> Comparison | None:
    """Compare an image (from `prepare_poses`) with another. None if no map has `MIN_INLIERS` features."""
    fits = [(*_fit(pose.features, other.features), pose) for pose in poses]
    inliers, share, matrix, pose = max(fits, key=lambda fit: fit[0])
    if matrix is None or inliers < MIN_INLIERS:
        return None
    share = min(share, _fit(other.features, pose.features)[1])  # the ratio test is one-sided
    score, overlap = texture_agreement(pose, other, matrix)
    return Comparison(inliers, share, score, overlap, matrix, pose.mirrored, pose.inverted)


def _fit(a: Features, b: Features) -> tuple[int, float, np.ndarray | None]:
    """Fit an affine map from `a` to `b`. Returns the number of features that agree with it, their share of those
    matched, and the map, None if no plausible one is found."""
    pairs = matched(a.descriptors, b.descriptors)
    if len(pairs) < MIN_INLIERS:
        return 0, 0.0, None
    here, there = a.points[pairs[:, 0]], b.points[pairs[:, 1]]
    matrix, inside = cv2.estimateAffine2D(
        here, there, method=cv2.RANSAC, ransacReprojThreshold=REPROJECTION, maxIters=2000, confidence=0.999
    )
    if matrix is None or not is_sane(matrix):
        return 0, 0.0, None
    chosen = inside.ravel() > 0
    places = (len(np.unique(points[chosen].round(), axis=0)) for points in (here, there))  # SIFT repeats some points
    return min(places), float(chosen.mean()), matrix


def matched(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pair descriptors (rows of length one) that are each other's nearest and pass the ratio test: int (n, 2)."""
    if min(len(a), len(b)) < 2:
        return np.empty((0, 2), int)
    likeness = a @ b.T
    rows, nearest = np.arange(len(a)), likeness.argmax(axis=1)
    mutual = likeness.argmax(axis=0)[nearest] == rows
    best = likeness[rows, nearest]
    likeness[rows, nearest] = -1
    distances = [np.sqrt(np.maximum(2 - 2 * value, 0)) for value in (best, likeness.max(axis=1))]
    rows = np.flatnonzero(mutual & (distances[0] < RATIO * distances[1]))
    return np.stack([rows, nearest[rows]], axis=1)


def is_sane(matrix: np.ndarray) -> bool:
    """Whether an affine map is plausible for a copy: magnification and stretch within limits, no mirroring."""
    large, small = np.linalg.svd(matrix[:, :2], compute_uv=False)
    keeps_sides = np.linalg.det(matrix[:, :2]) > 0
    return bool(keeps_sides and small >= SCALES[0] and large <= SCALES[1] and large <= MAX_STRETCH * small)


def local_mean(values: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean of `values` where `mask` is 1; pixels outside have no weight."""
    weight = cv2.GaussianBlur(mask, (0, 0), sigma)
    return cv2.GaussianBlur(values * mask, (0, 0), sigma) / (weight + 1e-6)


def texture(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Band-pass an image within `mask` and normalise its local contrast to one: float32, 0 outside."""
    picture = image.astype(np.float32)
    band = (local_mean(picture, mask, FINE_SIGMA) - local_mean(picture, mask, COARSE_SIGMA)) * mask
    energy = np.maximum(cv2.blur(band * band, (TILE // 2, TILE // 2)), 0)  # cv2.blur's running sums may fall below zero
    return band / (np.sqrt(energy) + 0.5)  # half a grey level keeps flat areas flat


def texture_agreement(a: Prepared, b: Prepared, matrix: np.ndarray) -> tuple[float, float]:
    """Median texture correlation of the tiles, with `b` moved onto `a`, and the shared part of the smaller picture.

    The correlation is 0 where fewer than `MIN_TILES` tiles are shared.
    """
    moved = _moved(b.image, matrix)
    common = ((_moved(b.mask, matrix) > 0.99) & (a.mask > 0)).astype(np.float32)
    smaller = min(a.mask.sum(), b.mask.sum() / abs(np.linalg.det(matrix[:, :2])))
    overlap = float(common.sum() / max(smaller, 1))
    inner = cv2.erode(common, np.ones((9, 9), np.uint8))  # a picture's edge is not texture
    x, y, m = (_tiles(values) for values in (a.texture, texture(moved, common), inner))
    enough = m.mean(axis=1) >= TILE_FILLED
    if enough.sum() < MIN_TILES:
        return 0.0, overlap
    return float(np.median(correlations(x[enough], y[enough], m[enough]))), overlap


def _moved(values: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return cv2.warpAffine(values, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _tiles(values: np.ndarray) -> np.ndarray:
    """(320, 320) -> float32 (64, 1600), one row per tile."""
    n = SIZE // TILE
    return values.astype(np.float32).reshape(n, TILE, n, TILE).transpose(0, 2, 1, 3).reshape(n * n, TILE * TILE)


def correlations(x: np.ndarray, y: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row of `x` and `y` (n, k) over the places where `m` is 1; 0 where one is flat."""
    count = m.sum(axis=1, keepdims=True)
    x = (x - (x * m).sum(axis=1, keepdims=True) / count) * m
    y = (y - (y * m).sum(axis=1, keepdims=True) / count) * m
    return (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1) + 1e-6)


def aligned(image: np.ndarray, comparison: Comparison) -> np.ndarray:
    """Move the second image onto the first, for visual comparison; uint8 (320, 320)."""
    image = np.asarray(image, np.uint8)
    if comparison.inverted:
        image = 255 - image
    moved = _moved(image, comparison.matrix)
    return np.ascontiguousarray(moved[:, ::-1]) if comparison.mirrored else moved
