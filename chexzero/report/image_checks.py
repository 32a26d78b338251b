"""Checks of the images themselves: stored twice, turned or mirrored, darker or brighter than those trained on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from chexzero.common.formats import grey_images, open_images
from chexzero.evaluation.sets import EvaluationSet
from chexzero.evaluation.trained_images import image_hashes
from chexzero.report.sanity import LOOK, NOT_POSSIBLE, PASSED, Check

#: Images of the training set that are looked at, evenly spread over the file.
SAMPLE = 512

#: Side to which images are averaged down before they are compared.
SIDE = 32

#: Ways in which a whole set can lie wrong.
TURNS: dict[str, Callable[[NDArray], NDArray]] = {
    "mirrored": lambda images: images[..., ::-1],
    "upside down": lambda images: images[..., ::-1, :],
    "turned by 180 degrees": lambda images: images[..., ::-1, ::-1],
    "turned by 90 degrees": lambda images: np.rot90(images, 1, axes=(-2, -1)),
    "turned by 270 degrees": lambda images: np.rot90(images, 3, axes=(-2, -1)),
    "transposed": lambda images: np.swapaxes(images, -2, -1),
    "negative (dark and bright exchanged)": lambda images: -images,
}

#: Standard errors by which a wrong way must fit better than the right one. `benchmarks.planted` prints the largest of
#: sound sets, which is far below 0, and the smallest of turned ones, which is far above.
CLEARLY = 3.0

#: Brightness: the mean may differ by this many standard deviations between images, the contrast by this factor.
MEAN_APART, CONTRAST_APART = 2.0, 1.6


@dataclass(frozen=True)
class ImageStatistics:
    """Of a set of N images: `small` (N, 32, 32), each with mean 0 and deviation 1; its grey mean and deviation (N,)."""

    small: NDArray
    mean: NDArray
    deviation: NDArray


def image_statistics(images: NDArray) -> ImageStatistics:
    """Statistics of images (N, H, W) on the scale 0..255."""
    pixels = np.asarray(images, dtype=np.float32)
    mean, deviation = pixels.mean((1, 2)), pixels.std((1, 2))
    small = _shrunk(pixels)
    small = small - small.mean((1, 2), keepdims=True)
    return ImageStatistics(small / np.maximum(small.std((1, 2), keepdims=True), 1e-6), mean, deviation)


def _shrunk(pixels: NDArray) -> NDArray:
    """Means of equal tiles, (N, 32, 32); any size that 32 does not divide is interpolated."""
    n, height, width = pixels.shape
    if height % SIDE or width % SIDE:
        return zoom(pixels, (1, SIDE / height, SIDE / width), order=1)
    return pixels.reshape(n, SIDE, height // SIDE, SIDE, width // SIDE).mean((2, 4))


def read_statistics(path: Path, rows: NDArray | None = None, pixel_range: str | None = None) -> ImageStatistics:
    """Statistics of some rows of an image file, by default of up to 512 that are spread over it."""
    with open_images(path) as handle:
        images = grey_images(handle, pixel_range)
        wanted = np.unique(np.linspace(0, len(images) - 1, SAMPLE).astype(int)) if rows is None else np.unique(rows)
        blocks = [image_statistics(images[part.tolist()]) for part in np.array_split(wanted, -(-len(wanted) // 64))]
    return ImageStatistics(*(np.concatenate([getattr(b, f) for b in blocks]) for f in ("small", "mean", "deviation")))


def looks_alike(name: str, one: ImageStatistics, other_name: str, other: ImageStatistics) -> list[Check]:
    """Orientation and brightness of a set against another's."""
    return [_orientation(name, one, other_name, other), _brightness(name, one, other_name, other)]


def turn_gains(one: ImageStatistics, other: ImageStatistics) -> dict[str, float]:
    """Way of `TURNS` -> by how many standard errors a set fits the other's average image better when it lies so."""
    template = other.small.mean(0)
    upright = (one.small * template).mean((1, 2))
    found = {}
    for way, turn in TURNS.items():
        gain = (turn(one.small) * template).mean((1, 2)) - upright
        error = gain.std() / max(len(gain) - 1, 1) ** 0.5
        found[way] = float(gain.mean() / error) if len(gain) > 1 and error > 0 else 0.0
    return found


def _orientation(name: str, one: ImageStatistics, other_name: str, other: ImageStatistics) -> Check:
    """Each image is laid on the other set's average image, as it is and turned; the set's mean decides."""
    title = f"{name} images lie as the {other_name} images do"
    gains = turn_gains(one, other)
    way = max(gains, key=lambda way: gains[way])
    if gains[way] > CLEARLY:
        return Check(title, LOOK, f"they fit the average {other_name} image better when {way}")
    return Check(title, PASSED, f"compared with the average of {len(other.small)} {other_name} images in eight ways")


def _brightness(name: str, one: ImageStatistics, other_name: str, other: ImageStatistics) -> Check:
    title = f"{name} images are as bright as the {other_name} images"
    apart = (np.median(one.mean) - np.median(other.mean)) / max(float(other.mean.std()), 1.0)
    contrast = np.median(one.deviation) / max(float(np.median(other.deviation)), 1e-6)
    detail = (
        f"median grey value {np.median(one.mean):.0f} and {np.median(other.mean):.0f}, "
        f"median deviation within an image {np.median(one.deviation):.0f} and {np.median(other.deviation):.0f}"
    )
    if abs(apart) > MEAN_APART or not 1 / CONTRAST_APART < contrast < CONTRAST_APART:
        return Check(title, LOOK, f"{detail}: stored with another mean, deviation or window?")
    return Check(title, PASSED, detail)


def equal_images(valid: EvaluationSet, test: EvaluationSet) -> list[Check]:
    """The same image stored twice, under whatever ids, within a set and across the two."""
    hashes = {one.name: image_hashes(one.images) for one in (valid, test)}
    checks = []
    for one in (valid, test):
        within = len(hashes[one.name]) - len(set(hashes[one.name]))
        checks.append(
            Check(f"no {one.name} image is stored twice", LOOK if within else PASSED, f"{within} rows repeat an image")
        )
    across = len(set(hashes["valid"]) & set(hashes["test"]))
    checks.append(
        Check("no image is in both sets", LOOK if across else PASSED, f"{across} images in common, by SHA-256")
    )
    return checks


def image_checks(valid: EvaluationSet, test: EvaluationSet, training: Path | None) -> list[Check]:
    """All checks of the images. training: the image file that the run trained on, where it is at hand."""
    frontal = {one.name: np.flatnonzero(one.table["view"] == "frontal") for one in (valid, test)}
    found = {
        one.name: read_statistics(one.images, frontal[one.name] if len(frontal[one.name]) else None, one.pixel_range)
        for one in (valid, test)
    }
    checks = [*equal_images(valid, test), *looks_alike("test", found["test"], "validation", found["valid"])]
    if training is None or not training.is_file():
        return [*checks, Check("images lie as the training images do", NOT_POSSIBLE, "no training images at hand")]
    kept = read_statistics(training, pixel_range=test.pixel_range)
    return [*checks, *(c for name in found for c in looks_alike(name, found[name], "training", kept))]
