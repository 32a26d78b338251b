"""The published list of disguises that the audit's recall is measured on.

A disguise is data: a kind, a strength, and steps of `OPERATIONS` with one value each. Kinds that the audit is weak at
stay in the list: it describes what happens to radiographs between two collections, not what the audit can do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

SIZE = 320
Rng = np.random.Generator
Operation = Callable[[np.ndarray, float, Rng, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Disguise:
    """One row of the list; `steps` are (operation, value), applied in order."""

    kind: str
    strength: str
    steps: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        return f"{self.kind} {self.strength}".strip()


def _gamma(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    return np.round(255 * (c / 255.0) ** value).astype(np.uint8)


def _window(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    """Clip `value` percent of the pixels at both ends."""
    low, high = np.percentile(c, [value, 100 - value])
    return np.round(255 * np.clip((c - low) / max(high - low, 1), 0, 1)).astype(np.uint8)


def _clahe(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    return cv2.createCLAHE(value, (8, 8)).apply(c)


def _equalised(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    return cv2.equalizeHist(c)


def _inverted(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    return 255 - c


def _levels(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    step = int(256 // value)
    return (c // step * step).astype(np.uint8)


def _jpeg(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    data = cv2.imencode(".jpg", c, [cv2.IMWRITE_JPEG_QUALITY, int(value)])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)


def _blur(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(c, (0, 0), value)


def _noise(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    return np.clip(c + rng.normal(0, value, c.shape), 0, 255).astype(np.uint8)


def _pixels(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    """Resize the longer side to `value` pixels."""
    scale = value / max(c.shape)
    return cv2.resize(c, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _rotated(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    """Rotate by `value` degrees to either side; corners are cut off, and gaps are black."""
    h, w = c.shape
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), float(value * rng.choice([-1, 1])), 1)
    return cv2.warpAffine(c, matrix, (w, h), flags=cv2.INTER_CUBIC)


def _cropped(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    """Crop `value` percent off each side."""
    y, x = (round(side * value / 100) for side in c.shape)
    return c[y : c.shape[0] - y, x : c.shape[1] - x]


def _one_side(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    """Crop `value` percent off one random side."""
    turns = int(rng.integers(4))
    turned = np.rot90(c, turns)
    return np.rot90(turned[round(turned.shape[0] * value / 100) :], -turns)


def _bordered(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    """Add a black frame of `value` percent of the longer side."""
    width = round(max(c.shape) * value / 100)
    return cv2.copyMakeBorder(c, width, width, width, width, cv2.BORDER_CONSTANT, value=0)


def _pasted(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    """Paste at a random place into a canvas of one random grey, whose sides are `value` times as long."""
    h, w = c.shape
    canvas = np.full((round(h * value), round(w * value)), rng.integers(0, 256), np.uint8)
    y, x = (int(rng.integers(0, canvas.shape[axis] - side + 1)) for axis, side in enumerate((h, w)))
    canvas[y : y + h, x : x + w] = c
    return canvas


def _stretched(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    """Stretch by `value` percent in one random direction."""
    factor = 1 + value / 100
    fx, fy = (factor, 1.0) if rng.random() < 0.5 else (1.0, factor)
    return cv2.resize(c, None, fx=fx, fy=fy, interpolation=cv2.INTER_CUBIC)


def _mirrored(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    return c[:, ::-1]


def _turned(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    return np.rot90(c, round(value / 90))


def _beside(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    """Place beside another picture of the same height."""
    width = max(1, round(other.shape[1] * c.shape[0] / other.shape[0]))
    pair = [c, cv2.resize(other, (width, c.shape[0]), interpolation=cv2.INTER_AREA)]
    return np.hstack(pair if rng.random() < 0.5 else pair[::-1])


def _text(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    """Write `value` lines of large white letters at a random place."""
    c = c.copy()
    y = int(rng.integers(30, max(31, c.shape[0] - 35 * int(value))))
    for line in range(int(value)):
        where = (int(rng.integers(0, 40)), y + 35 * line)
        cv2.putText(c, "PORTABLE AP 12:45 L", where, cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 2)
    return c


def _box(c: np.ndarray, value: float, rng: Rng, other: np.ndarray) -> np.ndarray:
    """Cover `value` percent of the picture with a grey box at a random place."""
    c, side = c.copy(), (value / 100) ** 0.5
    h, w = round(c.shape[0] * side), round(c.shape[1] * side)
    y, x = int(rng.integers(0, c.shape[0] - h + 1)), int(rng.integers(0, c.shape[1] - w + 1))
    c[y : y + h, x : x + w] = rng.integers(0, 256)
    return c


OPERATIONS: dict[str, Operation] = {
    function.__name__[1:]: function
    for function in (
        *(_gamma, _window, _clahe, _equalised, _inverted, _levels, _jpeg, _blur, _noise, _pixels),
        *(_rotated, _cropped, _one_side, _bordered, _pasted, _stretched, _mirrored, _turned, _beside, _text, _box),
    )
}

#: kind -> unit, operation and the values it is tried with
_SINGLE: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "grey levels": ("", "levels", (32,)),
    "gamma": ("", "gamma", (0.4, 2.5)),
    "window": ("% at both ends", "window", (5,)),
    "CLAHE": ("", "clahe", (4,)),
    "equalised histogram": ("", "equalised", (0,)),
    "inverted": ("", "inverted", (0,)),
    "JPEG quality": ("", "jpeg", (5, 10, 20, 40)),
    "blur, sigma": ("px", "blur", (1, 2)),
    "noise, sigma": ("grey levels", "noise", (10, 25, 40)),
    "longer side": ("px", "pixels", (64, 128)),
    "rotation": ("°", "rotated", (2, 4, 6, 8, 10)),
    "crop of each side": ("%", "cropped", (5, 7.5, 10, 15)),
    "crop of one side": ("%", "one_side", (10, 20)),
    "black border": ("%", "bordered", (5, 10, 20)),
    "pasted into a canvas": ("times as long", "pasted", (1.25, 1.6)),
    "stretched in one direction": ("%", "stretched", (5, 10)),
    "mirrored": ("", "mirrored", (0,)),
    "turned": ("°", "turned", (90, 180, 270)),
    "beside another picture": ("", "beside", (0,)),
    "burned-in text": ("lines", "text", (2, 4)),
    "box over the picture": ("% of its area", "box", (10, 20)),
}
_SEVERAL: tuple[tuple[tuple[str, float], ...], ...] = (
    (("cropped", 7.5), ("gamma", 0.6), ("jpeg", 30)),
    (("rotated", 5), ("bordered", 8), ("noise", 10)),
    (("stretched", 5), ("cropped", 5), ("clahe", 3)),
    (("mirrored", 0), ("cropped", 5), ("jpeg", 40)),
    (("inverted", 0), ("rotated", 4), ("pixels", 160)),
    (("pasted", 1.3), ("gamma", 1.8), ("jpeg", 40)),
    (("turned", 90), ("window", 3), ("text", 2)),
    (("one_side", 12), ("blur", 1), ("levels", 64)),
)


def _number(value: float, unit: str) -> str:
    return f"{value:g}{'' if unit in ('°', '') else ' '}{unit}" if value else ""


DISGUISES: tuple[Disguise, ...] = (
    *(
        Disguise(kind, _number(value, unit) if len(values) > 1 or unit else "", ((operation, value),))
        for kind, (unit, operation, values) in _SINGLE.items()
        for value in values
    ),
    *(
        Disguise("several at once", " + ".join(f"{name} {value:g}" if value else name for name, value in steps), steps)
        for steps in _SEVERAL
    ),
)


def disguised(image: np.ndarray, disguise: Disguise, rng: Rng, other: np.ndarray) -> np.ndarray:
    """Return a disguised copy of a preprocessed image, preprocessed again: uint8 (320, 320), black padding.

    `other` is another preprocessed image, which some disguises need.
    """
    picture, neighbour = _content(image), _content(other)
    for name, value in disguise.steps:
        picture = np.ascontiguousarray(OPERATIONS[name](picture, value, rng, neighbour))
    return _placed(picture)


def _content(image: np.ndarray) -> np.ndarray:
    """Return the picture without its black padding."""
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    if not len(rows):
        return image
    return np.ascontiguousarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _placed(picture: np.ndarray) -> np.ndarray:
    """Scale the picture until its longer side is 320 pixels and centre it on black."""
    ratio = SIZE / max(picture.shape)
    height, width = (max(1, int(side * ratio)) for side in picture.shape)
    how = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LANCZOS4
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    canvas[top : top + height, left : left + width] = cv2.resize(picture, (width, height), interpolation=how)
    return canvas
