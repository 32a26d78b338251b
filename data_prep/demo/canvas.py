"""The canvas of the phantoms: a density image and the pose that maps thorax coordinates to its pixels.

Thorax coordinates: x from -1 (the patient's right, left in the picture) to 1, y from -1 (above the shoulders) to 1
(below the diaphragms). The affine pose maps them to pixels, so that every size, rotation and shift is drawn sharply
instead of being resampled.
"""

import functools
import itertools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike

SUBPIXEL = 4  # fractional bits of OpenCV's drawing coordinates


@dataclass
class Canvas:
    """A density image (height, width), float32, and the pose that maps thorax coordinates to its pixels."""

    density: np.ndarray
    pose: np.ndarray  # 2 x 3
    rng: np.random.Generator
    unit: float  # pixels in one unit of thorax coordinates

    def pixels(self, points: np.ndarray, shrink: int = 1) -> np.ndarray:
        """Thorax coordinates (N, 2) as OpenCV's fixed-point pixels (N, 1, 2) of a canvas `shrink` times smaller."""
        xy = np.asarray(points, np.float64) @ self.pose[:, :2].T + self.pose[:, 2]
        return np.round(((xy + 0.5) / shrink - 0.5) * (1 << SUBPIXEL)).astype(np.int32)[:, None]

    def area(self, points: np.ndarray, soft: float) -> np.ndarray:
        """A filled outline, 0..1, float32, its edge blurred by `soft` thorax units; soft ones at low resolution."""
        sigma = soft * self.unit
        shrink = 1 if sigma < 1.2 else 2 if sigma < 3 else 4
        mask: np.ndarray = np.zeros(self._shape(shrink), np.uint8)
        cv2.fillPoly(mask, [self.pixels(points, shrink)], 255, cv2.LINE_AA, SUBPIXEL)
        if sigma > 0.4:
            mask = cv2.GaussianBlur(mask, (0, 0), sigma / shrink)
        return self._enlarge(mask.astype(np.float32) * (1 / 255), shrink)

    def strokes(self, lines: list[tuple[np.ndarray, float, float]], soft: float = 0.0) -> np.ndarray:
        """Open lines (points, width in thorax units, strength 0..1) on one layer, later ones over earlier ones."""
        sigma = soft * self.unit
        shrink = 1 if sigma < 0.6 else 2
        layer: np.ndarray = np.zeros(self._shape(shrink), np.uint8)
        for (width, strength), group in itertools.groupby(lines, key=lambda line: line[1:]):
            paths = [points for points, _, _ in group]
            ends = itertools.accumulate((len(points) for points in paths), initial=0)
            pixels = self.pixels(np.concatenate(paths), shrink)
            pieces = [
                pixels[start:end] for start, end in itertools.pairwise(ends)
            ]  # np.split takes longer than to draw
            cv2.polylines(
                layer,
                pieces,
                False,
                int(255 * strength),
                max(1, round(width * self.unit / shrink)),
                cv2.LINE_AA,
                SUBPIXEL,
            )
        if sigma > 0.3:
            layer = cv2.GaussianBlur(layer, (0, 0), sigma / shrink)
        return self._enlarge(layer.astype(np.float32) * (1 / 255), shrink)

    def clouds(self, grain: float) -> np.ndarray:
        """Smooth random texture, mean 0, standard deviation about 1, grains `grain` thorax units wide."""
        height, width = (max(3, round(side / (grain * self.unit))) for side in self.density.shape)
        return (
            cv2.resize(
                self.rng.standard_normal((height, width), np.float32),
                self.density.shape[::-1],
                interpolation=cv2.INTER_CUBIC,
            )
            * 1.5
        )

    def thickness(self, half_width: float) -> np.ndarray:
        """How much body the beam crosses, 1 in the middle, less towards the flanks and the neck; float32."""
        inverse = cv2.invertAffineTransform(self.pose)
        rows, cols = (np.arange(n, dtype=np.float32) * 4 + 1.5 for n in self._shape(4))
        x, y = (float(a) * cols[None] + float(b) * rows[:, None] + float(c) for a, b, c in inverse)
        relative = np.minimum(np.abs(x) / half_width, 1.3)
        return self._enlarge(1.04 - 0.34 * relative * relative * relative + 0.06 * y, 4)

    def _shape(self, shrink: int) -> tuple[int, int]:
        return tuple(-(-side // shrink) for side in self.density.shape)

    def _enlarge(self, small: np.ndarray, factor: int) -> np.ndarray:
        if factor == 1:
            return small
        full = cv2.resize(small, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
        return full[: self.density.shape[0], : self.density.shape[1]]


def curve(points: ArrayLike, n: int = 24, closed: bool = False) -> np.ndarray:
    """A smooth line through the points (Catmull-Rom), `n` samples per piece: (pieces * n, 2)."""
    p = np.asarray(points, np.float64)
    last = len(p) if closed else len(p) - 1
    around = np.vstack([p[-1:], p, p[:2]] if closed else [p[:1], p, p[-1:]])
    windows = np.stack([around[k : k + last] for k in range(4)], 1)
    return (_spline_weights(n) @ windows).reshape(-1, 2)


@functools.cache
def _spline_weights(n: int) -> np.ndarray:
    t = np.linspace(0, 1, n, endpoint=False)[:, None]
    return 0.5 * np.hstack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3])


def blob(
    x: float,
    y: float,
    rx: float,
    ry: float,
    rng: np.random.Generator | None = None,
    rough: float = 0.0,
    angle: float = 0.0,
) -> np.ndarray:
    """A closed outline about (x, y); `rough` scales the random changes of its radius."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    r = np.ones_like(t)
    if rng is not None and rough:
        for k in range(2, 7):
            r += rough / k**0.5 * rng.normal() * np.cos(k * t + rng.uniform(0, 6.28))
    px, py = rx * np.maximum(r, 0.2) * np.cos(t), ry * np.maximum(r, 0.2) * np.sin(t)
    return np.stack([x + px * np.cos(angle) - py * np.sin(angle), y + px * np.sin(angle) + py * np.cos(angle)], 1)
