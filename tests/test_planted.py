"""The checks find every mistake of benchmarks/planted.py, and correct pairs raise no alarm."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from benchmarks import planted
from chexzero.common.labels import LABELS
from chexzero.evaluation.sets import EvaluationSet
from chexzero.imaging import orientation
from chexzero.report import image_checks, sanity

#: Found in some pairs, not in all: two columns with 4 to 9 positive cases and AUROCs near 0.65 give little evidence.
HARD = {name for name in planted.MISTAKES if name.startswith("two rare ones")}


@pytest.mark.parametrize("seed", range(3))
def test_sound_pairs_raise_no_alarm(seed):
    assert planted.alarms(planted.drawn_pair(50_000 + seed)) == [] and planted.image_alarms(50_000 + seed) == []


@pytest.mark.parametrize("mistake", planted.MISTAKES)
def test_planted_label_mistakes_are_found(mistake):
    seeds = range(60_000, 60_020 if mistake in HARD else 60_001)
    found = []
    for seed in seeds:
        pair = planted.drawn_pair(seed)
        truth, probability = pair["test"]
        pair["test"] = planted.MISTAKES[mistake](truth.copy(), np.random.default_rng(seed)), probability
        found.append(planted.alarms(pair))
    if mistake in HARD:  # by the right check, not by a chance alarm of another
        assert any("test label columns stand under their names" in alarms for alarms in found)
    else:
        assert all(found)


@pytest.mark.parametrize("mistake", planted.IMAGE_MISTAKES)
def test_planted_image_mistakes_are_found(mistake):
    assert planted.image_alarms(60_000, planted.IMAGE_MISTAKES[mistake])


def image_set(folder: Path, name: str, images: np.ndarray, ids: list[str] | None = None) -> EvaluationSet:
    path = folder / f"{name}.h5"
    with h5py.File(path, "w") as handle:
        handle["cxr"] = images
    ids = ids or [f"{name}{i}" for i in range(len(images))]
    table = pd.DataFrame({"id": ids, "patient_id": ids, "study_id": ids, "view": "frontal"})
    return EvaluationSet(name, path, path, table, np.zeros((len(images), len(LABELS))), name, name)


def flagged(checks: list[sanity.Check]) -> list[str]:
    return [check.name for check in sanity.alarms_of(checks)]


def test_equal_images_under_other_ids_and_equal_ids(tmp_path):
    images = planted.drawn_images(1, 40)
    valid = image_set(tmp_path, "valid", images[:20])
    test = image_set(tmp_path, "test", images[20:])
    assert flagged([*image_checks.image_checks(valid, test, None), *sanity.shared_cases(valid, test)]) == []
    twice = image_set(tmp_path, "test", np.concatenate([images[20:39], images[20:21]]))
    assert flagged(image_checks.equal_images(valid, twice)) == ["no test image is stored twice"]
    copied = image_set(tmp_path, "test", images[:20])
    assert "no image is in both sets" in flagged(image_checks.image_checks(valid, copied, None))
    same_id = image_set(tmp_path, "test", images[20:], ["a", "a", *map(str, range(18))])
    assert "every test id stands once" in flagged(sanity.shared_cases(valid, same_id))
    patient = replace(test, table=test.table.assign(patient_id="valid0"))
    assert "no patient is in both sets" in flagged(sanity.shared_cases(valid, patient))


def test_a_mirrored_set_beside_the_training_images(tmp_path):
    train = tmp_path / "cxr.h5"
    with h5py.File(train, "w") as handle:
        handle["cxr"] = planted.drawn_images(2, 100)
    valid = image_set(tmp_path, "valid", planted.drawn_images(3, 60)[:, :, ::-1])
    test = image_set(tmp_path, "test", planted.drawn_images(4, 60)[:, :, ::-1])
    assert "test images lie as the training images do" in flagged(image_checks.image_checks(valid, test, train))
    assert flagged(image_checks.image_checks(valid, test, None)) == [  # equal to each other, but neither upright
        f"{name} images show the heart on the right side of the image" for name in ("validation", "test")
    ]


def test_real_radiographs_mirrored(shared: Path):
    """Mirrored radiographs are told from upright ones."""
    from chexzero.imaging.decode import read_file

    folder = shared / "real_cxr" / "chexpert_plus"
    files = [path for path in sorted(folder.rglob("*frontal*")) if path.suffix.lower() in (".png", ".jpg")]
    images = np.stack([read_file(path) for path in files])
    one, other = images[::2], orientation.image_statistics(images[1::2])
    for shown, alarm in ((one, False), (one[:, :, ::-1], True), (one[:, ::-1], True)):
        checks = image_checks.looks_alike("test", orientation.image_statistics(shown), "training", other)
        assert (checks[0].verdict == sanity.LOOK) == alarm


def chests(folder: Path, name: str, images: np.ndarray) -> tuple[Path, Path]:
    """An image file and its table; every fifth row is a lateral view without a chest."""
    paths = folder / f"{name}.h5", folder / f"{name}.csv"
    views = np.where(np.arange(len(images)) % 5, "frontal", "lateral")
    noise = np.random.default_rng(0).integers(0, 255, images.shape, np.uint8)
    with h5py.File(paths[0], "w") as handle:
        handle["cxr"] = np.where((views == "frontal")[:, None, None], images, noise)
    pd.DataFrame({"view": views}).to_csv(paths[1], index=False)
    return paths


def test_mirrored_sets_at_the_start_of_a_training(tmp_path):
    """Each set is compared with the schematic chest and, if none looks wrong alone, with the training set."""
    sound = chests(tmp_path, "train", planted.drawn_images(5, 100))
    flipped = chests(tmp_path, "flipped", planted.drawn_images(6, 100)[:, :, ::-1])
    few = chests(tmp_path, "few", planted.drawn_images(7, 24)[:, :, ::-1])
    other = chests(tmp_path, "other", planted.drawn_images(8, 60))
    assert orientation.orientation_warnings([sound, other]) == []
    assert orientation.orientation_warnings([sound, few]) == []  # 19 frontal images: too few
    for sets in ([sound, flipped], [flipped, sound], [flipped, few]):
        (warning,) = orientation.orientation_warnings(sets)
        assert warning.startswith(f"{flipped[0]}: ") and "when mirrored" in warning
    assert len(orientation.orientation_warnings([flipped, flipped[:1] + other[1:]])) == 1  # one path counts once
    upstream = (sound[0], tmp_path / "upstream.csv")
    pd.DataFrame({"impression": ["a"] * 100}).to_csv(upstream[1], index=False)
    assert orientation.orientation_warnings([upstream]) == []  # views unknown
    squares = np.random.default_rng(2).integers(0, 40, (60, 64, 64), np.uint8)
    squares[:, 38:42, 22:26] += 20  # a faint square in a mirrored heart's place, no chest
    assert orientation.orientation_warnings([chests(tmp_path, "squares", squares)]) == []


def test_a_symmetric_set_is_compared_with_the_training_set(tmp_path):
    """A marker on one side and no heart: undetected alone, detected in comparison with the other set."""
    drawn = planted.drawn_images(9, 60)
    plain = drawn // 2 + drawn[:, :, ::-1] // 2
    plain[:, :4, 60:] = 255
    first, second = chests(tmp_path, "train", plain), chests(tmp_path, "valid", plain[:, :, ::-1])
    assert orientation.orientation_warnings([first]) == orientation.orientation_warnings([second]) == []
    (warning,) = orientation.orientation_warnings([first, second])
    assert warning.startswith(f"{second[0]}: ") and "average image of" in warning and "when mirrored" in warning


@pytest.fixture(scope="module")
def frontal_radiographs(shared: Path) -> np.ndarray:
    """The small images that `image_statistics` keeps of 132 radiographs, (132, 32, 32)."""
    folder = shared / "real_cxr"
    from chexzero.imaging.decode import read_file

    files = [
        *sorted((folder / "chexpert_plus").rglob("*frontal*")),
        *sorted((folder / "chexpert").rglob("*frontal*.jpg")),
    ]
    return orientation.image_statistics(np.stack([read_file(path) for path in files])).small


def test_real_radiographs_beside_a_schematic_chest(frontal_radiographs: np.ndarray):
    """Random sets of 50: none raises an alarm, all mirrored ones do; with 20 images half of them do."""
    rng = np.random.default_rng(3)
    for count, at_least in ((50, 1.0), (20, 0.5)):
        chosen = [frontal_radiographs[rng.choice(len(frontal_radiographs), count, False)] for _ in range(200)]
        sound = [orientation.wrong_way(orientation.ImageStatistics(one, *np.zeros((2, count)))) for one in chosen]
        found = [
            orientation.wrong_way(orientation.ImageStatistics(one[..., ::-1], *np.zeros((2, count)))) for one in chosen
        ]
        assert sound == [None] * 200
        assert set(found) <= {"mirrored", None} and found.count("mirrored") >= at_least * 200
