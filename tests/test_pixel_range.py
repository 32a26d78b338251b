"""Image files with other values than 0..255: refused, naming the flag; read correctly with it everywhere."""

import json

import h5py
import numpy as np
import pytest
import torch
from evaluation_run import write_run
from training_corpus import flags, shrink, write_corpus

import run_train
from chexzero.common.errors import UserError
from chexzero.common.formats import PixelRange, _check_range, check_images, grey_images, open_images
from chexzero.evaluation.checkpoint_choice import choose
from chexzero.evaluation.measure import measure
from chexzero.evaluation.settings import EvaluationSettings
from chexzero.imaging.normalise import MEAN, STD
from chexzero.train import CXRDataset

STANDARD = f"{-MEAN / STD:.5g},{(255 - MEAN) / STD:.5g}"
SCALES = {"0,1": lambda x: x / 255, "-1,1": lambda x: x / 127.5 - 1, STANDARD: lambda x: (x - MEAN) / STD}


def rewrite(path, scale, dtype=np.float32):
    """Apply `scale` to the images of a file; return the original bytes."""
    with h5py.File(path, "r+") as handle:
        images = handle["cxr"][:]
        del handle["cxr"]
        handle["cxr"] = scale(images.astype(np.float64)).astype(dtype)
    return images


@pytest.mark.parametrize("pixel_range", SCALES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_refusal_names_the_flag_and_the_flag_gives_the_bytes_back(tmp_path, pixel_range, dtype):
    data = write_corpus(tmp_path, train=6) / "data"
    with h5py.File(data / "cxr.h5", "r+") as handle:
        handle["cxr"][:, 0, 0], handle["cxr"][:, 0, 1] = 0, 255
    images = rewrite(data / "cxr.h5", SCALES[pixel_range], dtype)
    with pytest.raises(UserError, match=f"add --pixel_range={pixel_range}"):
        check_images(data / "cxr.h5")
    check_images(data / "cxr.h5", pixel_range=pixel_range)
    with open_images(data / "cxr.h5") as handle:
        np.testing.assert_allclose(grey_images(handle, pixel_range)[1:4], images[1:4], atol=0.02)
    dataset = CXRDataset(data / "cxr.h5", data / "impressions.csv", "impression", pixel_range=pixel_range)
    assert torch.equal(dataset[[2]]["img"].round(), torch.from_numpy(images[2:3]).float())
    assert dataset[2]["img"].shape == (3, 320, 320) and abs(dataset[2]["img"][0] - images[2]).max() < 0.02


def test_a_range_that_the_images_do_not_have_is_refused(tmp_path):
    data = write_corpus(tmp_path, train=6) / "data"
    rewrite(data / "cxr.h5", lambda x: x / 127.5 - 1)
    for wrong, why in (("0,1", "does not contain"), ("-30,30", "nearly one grey value")):
        with pytest.raises(UserError, match=f"--pixel_range={wrong} .*{why}"):
            check_images(data / "cxr.h5", pixel_range=wrong)
    with pytest.raises(UserError, match=r"\(0 - mean\) / deviation"):
        rewrite(data / "cxr.h5", lambda x: 5 * x)
        check_images(data / "cxr.h5")
    for scale in (lambda x: x / 255 - 0.5, lambda x: (x / 255 - 0.449) / 0.226):  # no wrong range is proposed
        data = write_corpus(tmp_path / f"{len(list(tmp_path.iterdir()))}", train=6) / "data"
        rewrite(data / "cxr.h5", scale)
        with pytest.raises(UserError, match=r"\(0 - mean\) / deviation"):
            check_images(data / "cxr.h5")
    for odd in ("1", "1,0", "a,b", "0,inf", "0,1,2"):
        with pytest.raises(UserError, match="value of white"):
            PixelRange.parse(odd)


def test_bytes_of_0_and_1_are_refused_and_bytes_are_never_scaled(tmp_path):
    data = write_corpus(tmp_path, train=6) / "data"
    check_images(data / "cxr.h5", pixel_range="0,1")
    with open_images(data / "cxr.h5") as handle:
        assert grey_images(handle, "0,1") == handle["cxr"]  # the dataset itself
    rewrite(data / "cxr.h5", lambda x: x / 100, np.uint8)
    with pytest.raises(UserError, match="written as bytes"):
        check_images(data / "cxr.h5")


@pytest.mark.parametrize("most, said", [(100, True), (250, False)])
def test_a_set_that_is_nowhere_bright_is_said(tmp_path, most, said, caplog):
    with h5py.File(tmp_path / "cxr.h5", "w") as handle:
        handle["cxr"] = (np.random.default_rng(0).random((9, 64, 64)) * most).astype(np.float32)
    check_images(tmp_path / "cxr.h5")
    assert ("no pixel of 9 images is brighter than" in caplog.text) is said


def test_one_image_on_another_scale_is_named(tmp_path, caplog):
    data = write_corpus(tmp_path, train=6) / "data"
    with h5py.File(data / "cxr.h5", "r+") as handle:
        handle["cxr"][4] = handle["cxr"][4] // 32
        name = handle["id"][4].decode()
    check_images(data / "cxr.h5")
    assert "1 of 6 images checked have fewer than 16 grey values" in caplog.text and name in caplog.text


def test_training_on_a_range_is_training_on_bytes(tmp_path, monkeypatch):
    """The same losses from 0..255 and from -1..1."""
    shrink(lambda table, key, value: monkeypatch.setitem(table, key, value))
    for name in ("bytes", "scaled"):
        write_corpus(tmp_path / name, train=24)
    for file in ("cxr.h5", "valid.h5"):
        rewrite(tmp_path / "scaled" / "data" / file, SCALES["-1,1"])
    steps = ["--max_steps", "3", "--val_interval", "3", "--log_interval", "1", "--lr", "1e-3", "--batch_size", "8"]
    losses = {}
    for name, more in (("bytes", []), ("scaled", ["--pixel_range=-1,1"])):
        run_train.model_pipeline(run_train.parse_args([*flags(tmp_path / name, "run"), *steps, *more]))
        folder = tmp_path / name / "runs" / "run"
        losses[name] = [line.split(",")[3] for line in (folder / "train_log.csv").read_text().split()[1:]]
        settings = json.loads((folder / "config.json").read_text())["settings"]
        assert settings["pixel_range"] == (None if name == "bytes" else "-1,1")
    np.testing.assert_allclose(*(np.array(one, float) for one in losses.values()), rtol=1e-4)
    with pytest.raises(UserError, match="add --pixel_range=-1,1"):
        run_train.model_pipeline(run_train.parse_args([*flags(tmp_path / "scaled", "other"), *steps]))


def test_an_evaluation_of_a_range_is_that_of_bytes(tmp_path):
    data, run = write_run(tmp_path)
    found = {}
    for pixel_range in (None, "0,1"):
        settings = EvaluationSettings(
            run=run, out=tmp_path / "out", n_bootstrap=10, device="cpu", pixel_range=pixel_range
        )
        found[pixel_range] = measure(settings, choose(settings))
        if pixel_range is None:
            for name in ("valid", "test"):
                rewrite(data / f"{name}.h5", SCALES["0,1"])
    for was, now in zip(*(one.by_image for one in found.values()), strict=True):
        np.testing.assert_allclose(now, was, atol=1e-4)
    np.testing.assert_array_equal(found[None].test.auroc, found["0,1"].test.auroc)
    assert settings.flags()["pixel_range"] == "0,1"  # recorded in metrics.json and the report
    config = json.loads((run / "config.json").read_text())
    config["settings"]["pixel_range"] = "0,1"
    (run / "config.json").write_text(json.dumps(config))
    assert choose(settings).pixel_range() == "0,1"


@pytest.mark.parametrize("text", ["nan,1", "0,nan", "-inf,1", "0,inf", "1,1", "1,0"])
def test_a_range_has_two_finite_ends_in_order(text):
    with pytest.raises(UserError, match="value of white"):
        PixelRange.parse(text)


@pytest.mark.parametrize(
    ("count", "low", "high", "said"),
    [(8, 0, 127, True), (7, 0, 127, False), (8, 0, 128, False), (8, 0, 3, True), (9, 0, 200, False)],
)
def test_how_bright_and_how_many_images_must_be_for_no_word(tmp_path, count, low, high, said, caplog):
    with h5py.File(tmp_path / "cxr.h5", "w") as handle:
        handle["cxr"] = np.tile(np.array([low, high], np.uint8), (count, 64, 32))
    check_images(tmp_path / "cxr.h5")
    assert ("is brighter than" in caplog.text) is said


@pytest.mark.parametrize(("spread", "said"), [(15, True), (16, False)])
def test_the_number_of_grey_values_below_which_an_image_is_flat(tmp_path, spread, said, caplog):
    images = np.tile(np.array([0, 200], np.uint8), (140, 64, 32))  # three blocks of 64 rows
    images[130] = np.tile(np.array([100, 100 + spread], np.uint8), (64, 32))
    with h5py.File(tmp_path / "cxr.h5", "w") as handle:
        handle["cxr"] = images
    check_images(tmp_path / "cxr.h5")
    assert ("1 of 140 images checked" in caplog.text and "the first is row 131" in caplog.text) is said


def test_of_many_images_a_spread_sample_is_looked_at(tmp_path, caplog):
    images = np.tile(np.array([0, 200], np.uint8), (300, 64, 32))
    images[[1, 150, 297]] = 7  # every third of 300 is checked
    with h5py.File(tmp_path / "cxr.h5", "w") as handle:
        handle["cxr"] = images
    check_images(tmp_path / "cxr.h5", most=100)
    assert "2 of 100 images checked are of one grey value" in caplog.text
    with pytest.raises(UserError, match="3 of 300 images are of one grey value .the first is row 2."):
        check_images(tmp_path / "cxr.h5")


def said_of(low, high, dtype=np.float32, pixel_range=None) -> str:
    """Return the error message for these values, "" if they are accepted."""
    try:
        _check_range("a.h5", low, high, np.dtype(dtype), pixel_range and PixelRange.parse(pixel_range))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("low", "high", "taken"),
    [(0, 255, True), (0, 0, True), (0, 2.5, True), (0, 2, False), (0, 1e-3, False), (-1, 255, False), (0, 256, False)],
)
def test_values_of_0_to_255_are_taken_unless_they_reach_2_at_most(low, high, taken):
    assert (said_of(low, high) == "") is taken
    if low >= 0 and high <= 255:
        assert ("written as bytes" in said_of(low, high, np.uint8)) is not taken


@pytest.mark.parametrize(
    ("low", "high", "proposed"),
    [(0, 1, "0,1"), (-0.01, 1.01, "0,1"), (0.24, 0.76, "0,1"), (0, 0.75, None), (0.25, 1, None), (0, 1.02, None)]
    + [(-1, 1, "-1,1"), (-0.51, 0.51, "-1,1"), (-0.5, 1, None), (-1, 0.5, None), (-1.02, 1, None), (-0.02, 1, None)],
)
def test_a_range_is_proposed_where_the_values_reach_its_outer_quarters(low, high, proposed):
    said = said_of(low, high)
    assert (f"add --pixel_range={proposed}" in said) is (proposed is not None)
    assert ("--pixel_range=BLACK,WHITE" in said) is (proposed is None)


@pytest.mark.parametrize(
    ("low", "high", "why"),
    [(0, 100, ""), (-1, 101, ""), (-1.5, 100, "does not contain"), (0, 101.5, "does not contain"), (0, 10, "")]
    + [(0, 9, "nearly one grey value"), (-20, 0, "does not contain")],
)
def test_a_named_range_is_held_within_a_hundredth_and_used_to_a_tenth(low, high, why):
    said = said_of(50 + low, 50 + high, pixel_range="50,150")
    assert (why in said) if why else not said
    assert said_of(0, 100, np.uint8, "-1,1") == ""  # bytes are never scaled
