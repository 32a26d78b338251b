"""Detect sets of images that are mirrored, turned or negative, by comparison with another set or a model chest."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from chexzero.common.files import read_table
from chexzero.common.formats import grey_images, open_images

if TYPE_CHECKING:
    import pandas as pd

#: The most images of a set that are examined, evenly spread over the file.
SAMPLE = 512

#: Side to which images are averaged down before they are compared.
SIDE = 32

#: Ways to correct a whole set that is mirrored, turned or negative: name -> operation.
TURNS: dict[str, Callable[[NDArray], NDArray]] = {
    "mirrored": lambda images: images[..., ::-1],
    "upside down": lambda images: images[..., ::-1, :],
    "turned by 180 degrees": lambda images: images[..., ::-1, ::-1],
    "turned by 90 degrees": lambda images: np.rot90(images, 1, axes=(-2, -1)),
    "turned by 270 degrees": lambda images: np.rot90(images, 3, axes=(-2, -1)),
    "transposed": lambda images: np.swapaxes(images, -2, -1),
    "negative (dark and bright exchanged)": lambda images: -images,
}

#: Standard errors by which a corrected set must fit better than the set as stored. `benchmarks.planted` prints the
#: largest value of sound sets, which is far below 0, and the smallest of turned sets, which is far above.
CLEARLY = 3.0

#: Sets with fewer frontal images are not compared with `CHEST`, because chance would decide.
FEW = 20

#: A set shows chests if its mean correlation with `CHEST` is higher: real radiographs have 0.2, drawn ones 0.3.
A_CHEST = 0.1


@dataclass(frozen=True)
class ImageStatistics:
    """Of a set of N images: `small` (N, 32, 32), each with mean 0 and deviation 1; its grey mean and deviation (N,)."""

    small: NDArray
    mean: NDArray
    deviation: NDArray


class Gain(NamedTuple):
    """How much better a set fits when it is turned: the mean over its images, and that mean in standard errors."""

    mean: float
    errors: float


def image_statistics(images: NDArray) -> ImageStatistics:
    """Statistics of images (N, H, W) on the scale 0..255."""
    pixels = np.asarray(images, dtype=np.float32)
    mean, deviation = pixels.mean((1, 2)), pixels.std((1, 2))
    small = _shrunk(pixels)
    small = small - small.mean((1, 2), keepdims=True)
    return ImageStatistics(small / np.maximum(small.std((1, 2), keepdims=True), 1e-6), mean, deviation)


def _shrunk(pixels: NDArray) -> NDArray:
    """Means of equal tiles, (N, 32, 32); sizes that 32 does not divide are interpolated."""
    n, height, width = pixels.shape
    if height % SIDE or width % SIDE:
        return zoom(pixels, (1, SIDE / height, SIDE / width), order=1)
    return pixels.reshape(n, SIDE, height // SIDE, SIDE, width // SIDE).mean((2, 4))


def read_statistics(path: Path, rows: NDArray | None = None, pixel_range: str | None = None) -> ImageStatistics:
    """Statistics of up to 512 images of a file, spread evenly over `rows` (default: all rows)."""
    with open_images(path) as handle:
        images = grey_images(handle, pixel_range)
        rows = np.arange(len(images)) if rows is None else np.unique(rows)
        wanted = rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLE).astype(int))]
        parts = np.array_split(wanted, -(-len(wanted) // 64))
        blocks = [image_statistics(np.stack([images[row] for row in part])) for part in parts]  # h5py's lists are slow
    return ImageStatistics(*(np.concatenate([getattr(b, f) for b in blocks]) for f in ("small", "mean", "deviation")))


def turn_gains(one: ImageStatistics, template: NDArray) -> dict[str, Gain]:
    """Way of `TURNS` -> how much better the set fits an image (32, 32) after that operation; above 0 is better."""
    upright = (one.small * template).mean((1, 2))
    found = {}
    for way, turn in TURNS.items():
        gain = (turn(one.small) * template).mean((1, 2)) - upright
        error = gain.std() / max(len(gain) - 1, 1) ** 0.5
        found[way] = Gain(float(gain.mean()), float(gain.mean() / error) if len(gain) > 1 and error > 0 else 0.0)
    return found


def best_turn(gains: Mapping[str, Gain]) -> str | None:
    """The way after which a set fits clearly better than as stored, the best if several; None if there is none."""
    clear = {way: gain.mean for way, gain in gains.items() if gain.errors > CLEARLY}
    return max(clear, key=lambda way: clear[way]) if clear else None


def wrong_way(one: ImageStatistics) -> str | None:
    """The way of `TURNS` after which frontal images look like radiographs (`mirrored`, ...); None if they do already.

    Also None for fewer than 20 images, and for pictures that show no chest in any orientation. Of sets of 50 real
    radiographs all mirrored ones were found, of 20 more than half; no sound one was called mirrored
    (tests/test_planted.py; `python -m benchmarks.planted` prints both for drawn sets).
    """
    way = best_turn(turn_gains(one, CHEST)) if len(one.small) >= FEW else None
    return way if way and float((TURNS[way](one.small) * CHEST).mean()) > A_CHEST else None


def frontal_rows(table: "pd.DataFrame") -> NDArray:
    """The rows whose `view` is frontal; none if the table has no such column, as in upstream's files."""
    return np.flatnonzero(table["view"].str.strip().str.lower() == "frontal") if "view" in table else np.arange(0)


def orientation_warnings(
    sets: Sequence[tuple[str | os.PathLike, str | os.PathLike]], pixel_range: str | None = None
) -> list[str]:
    """Return one sentence per set whose frontal images are mirrored, turned or negative, with the cause.

    sets: image file and the CSV beside it; if each set alone looks right, the others are compared with the first. A set
    with fewer than 20 frontal images is not judged.
    """
    frontal = {str(images): frontal_rows(read_table(table, also=["view"])) for images, table in sets}
    found = {path: read_statistics(Path(path), rows, pixel_range) for path, rows in frontal.items() if len(rows) >= FEW}
    alone = {path: way for path, one in found.items() if (way := wrong_way(one))}
    if alone:
        return [
            f"{path}: its frontal images look like radiographs when {way} (the heart belongs on the right side of the "
            f"image): they were mirrored, turned or made negative before; look at some, and correct them"
            for path, way in alone.items()
        ]
    first, *others = found or ("",)
    return [
        f"{path}: its frontal images fit the average image of {first} better when {way}: one of the two sets was "
        f"mirrored, turned or made negative before; look at some of both"
        for path in others
        if (way := best_turn(turn_gains(found[path], found[first].small.mean(0))))
    ]


def _chest() -> NDArray:
    """A model of a frontal radiograph, (32, 32), mean 0, deviation 1.

    Dark lungs, the heart on the image's right side of the spine, the liver's dome on its left.
    """
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE

    def stroke(column: float, row: float, width: float, height: float) -> NDArray:
        return np.exp(-(((x - column) / width) ** 2) - ((y - row) / height) ** 2)

    heart, liver = stroke(0.625, 0.625, 0.07, 0.125), stroke(0.22, 0.83, 0.09, 0.06)
    lungs = stroke(0.3, 0.42, 0.11, 0.28) + stroke(0.7, 0.42, 0.11, 0.28)
    chest = heart + liver / 2 - 0.4 * lungs
    return (chest - chest.mean()) / chest.std()


CHEST = _chest()
