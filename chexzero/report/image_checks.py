"""Checks of the images: stored twice, turned or mirrored, darker or brighter than the training images."""

from pathlib import Path

import numpy as np
import pandas as pd

from chexzero.evaluation.sets import EvaluationSet
from chexzero.evaluation.trained_images import image_hashes
from chexzero.imaging.orientation import (
    FEW,
    ImageStatistics,
    best_turn,
    frontal_rows,
    read_statistics,
    turn_gains,
    wrong_way,
)
from chexzero.report.sanity import LOOK, NOT_POSSIBLE, PASSED, Check

#: Brightness: the mean may differ by this many standard deviations between images, the contrast by this factor.
MEAN_APART, CONTRAST_APART = 2.0, 1.6


def looks_alike(name: str, one: ImageStatistics, other_name: str, other: ImageStatistics) -> list[Check]:
    """Compare orientation and brightness of a set with another's."""
    return [_orientation(name, one, other_name, other), _brightness(name, one, other_name, other)]


def _orientation(name: str, one: ImageStatistics, other_name: str, other: ImageStatistics) -> Check:
    """Compare each image, as stored and turned, with the other set's average image; the mean over the set decides."""
    title = f"{name} images lie as the {other_name} images do"
    if way := best_turn(turn_gains(one, other.small.mean(0))):
        return Check(title, LOOK, f"they fit the average {other_name} image better when {way}")
    return Check(title, PASSED, f"compared with the average of {len(other.small)} {other_name} images in eight ways")


def lies_as_a_chest(name: str, one: ImageStatistics) -> Check:
    """Compare frontal images with a schematic chest, which also finds mistakes that all sets share."""
    title = f"{name} images show the heart on the right side of the image"
    if len(one.small) < FEW:
        return Check(title, NOT_POSSIBLE, f"fewer than {FEW} images are known to be frontal, too few to tell")
    if way := wrong_way(one):
        return Check(
            title,
            LOOK,
            f"they look like radiographs when {way} (were they mirrored, turned or inverted on the way here?)",
        )
    return Check(title, PASSED, f"{len(one.small)} frontal images compared with a schematic chest in eight ways")


def frontal_images_lie(name: str, images: Path, table: pd.DataFrame, pixel_range: str | None) -> Check:
    """`lies_as_a_chest` of the images whose `view` the table calls frontal."""
    rows = frontal_rows(table)
    if len(rows) < FEW:
        return lies_as_a_chest(name, ImageStatistics(*np.zeros((3, 0))))
    return lies_as_a_chest(name, read_statistics(images, rows, pixel_range))


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
    """Find images stored twice, under any id, within a set and across the two sets."""
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
    """All checks of the images. training: the image file that the run trained on, if it is available."""
    frontal = {one.name: np.flatnonzero(one.table["view"] == "frontal") for one in (valid, test)}
    found = {
        one.name: read_statistics(one.images, frontal[one.name] if len(frontal[one.name]) else None, one.pixel_range)
        for one in (valid, test)
    }
    checks = [
        *equal_images(valid, test),
        *(
            frontal_images_lie(name, one.images, one.table, one.pixel_range)
            for name, one in (("validation", valid), ("test", test))
        ),
        *looks_alike("test", found["test"], "validation", found["valid"]),
    ]
    if training is None or not training.is_file():
        return [
            *checks,
            Check("images lie as the training images do", NOT_POSSIBLE, "the training images are not available"),
        ]
    kept = read_statistics(training, pixel_range=test.pixel_range)
    return [*checks, *(c for name in found for c in looks_alike(name, found[name], "training", kept))]
