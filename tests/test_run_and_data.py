"""A run and its training data: another set in its place, files changed since the build, another image size."""

import json
import threading
import time

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
from evaluation_run import change_labels, write_run

from chexzero import library
from chexzero.common.errors import UserError
from chexzero.common.files import sha256_of, write_json
from chexzero.evaluation.checkpoint_choice import choose
from chexzero.evaluation.measure import check_the_runs_data
from chexzero.evaluation.sets import read_set
from chexzero.evaluation.settings import EvaluationSettings
from chexzero.explore.app import Explorer, load_explorer
from chexzero.export.model_card import _build_of
from chexzero.folder import predict_folder
from chexzero.imaging.decode import prepare_pixels
from chexzero.imaging.image_files import ImageFiles
from chexzero.runs.run_folder import RunFolder, read_run
from chexzero.training.logs import describe_data
from chexzero.zero_shot import predict_labels


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run_and_data"))


def record(run, data, **more):
    """Write into config.json what `run_train.py` would record."""
    config = json.loads((run / "config.json").read_text())
    files = [data / name for name in ("valid.h5", "valid_labels.csv")]
    config["settings"] |= {"valid": str(files[0]), "valid_labels": str(files[1]), "cxr_filepath": str(data / "cxr.h5")}
    config["data"] = {"files": {str(p): {"sha256": sha256_of(p), "bytes": p.stat().st_size} for p in files}} | more
    write_json(run / "config.json", config)


@pytest.mark.parametrize("what", ["images", "labels"])
def test_a_moved_run_that_finds_other_data_is_refused(evaluated, tmp_path, what, caplog):
    """A checkpoint folder is copied beside another `data/`; the recorded hashes reveal it."""
    data, run = evaluated
    record(run, data)
    settings = EvaluationSettings(run=run)
    check_the_runs_data(choose(settings), read_set(data, "valid"), named=False)
    other = tmp_path / "data"
    other.mkdir()
    for name in ("valid.h5", "valid_labels.csv"):
        (other / name).write_bytes((data / name).read_bytes())
    check_the_runs_data(choose(settings), read_set(other, "valid"), named=False)  # the same files in another folder
    if what == "images":
        with h5py.File(other / "valid.h5", "r+") as handle:
            handle["cxr"][3, 10:20, 10:20] = 7
    else:
        change_labels(other, "valid", lambda table: table.assign(Edema=1 - table["Edema"]))
    name = "valid.h5" if what == "images" else "valid_labels.csv"
    with pytest.raises(UserError, match=rf"{name} is not the file that .*small was validated on.*--data"):
        check_the_runs_data(choose(settings), read_set(other, "valid"), named=False)
    check_the_runs_data(choose(settings), read_set(other, "valid"), named=True)
    assert f"{name} is not the file" in caplog.text


def test_images_of_another_size_are_said(evaluated, caplog):
    data, run = evaluated
    record(run, data, image_size={str(data / "cxr.h5"): 448})
    check_the_runs_data(choose(EvaluationSettings(run=run)), read_set(data, "valid"), named=False)
    assert "images of 320 x 320 pixels, but" in caplog.text and "trained on images of 448 x 448" in caplog.text


@pytest.mark.parametrize("side", [320, 448])
def test_a_users_images_get_the_size_of_the_runs(evaluated, tmp_path, side):
    """`--images`, the library and the page give the probabilities of the images as the build would store them."""
    data, run = evaluated
    record(run, data, image_size={str(data / "cxr.h5"): side})
    assert read_run(run).image_size() == choose(EvaluationSettings(run=run)).image_size() == side
    picture = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 255, (700, 600), dtype=np.uint8), (9, 9), 0)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    stored = prepare_pixels(picture, size=side)
    assert stored.shape == (side, side)
    model = library.load(run)
    expected = predict_labels(model.model, stored[None], ["edema", "mass"])
    np.testing.assert_allclose(model.probabilities([tmp_path / "a.png"], ["edema", "mass"]), expected, atol=1e-6)
    table = predict_folder(model.model, tmp_path, ["edema", "mass"], size=side)
    np.testing.assert_allclose(table[["edema", "mass"]].to_numpy(float), expected, atol=1e-6)
    page = Explorer(model.model, "run", True, [], np.zeros((0, 0)), side)
    answer = page.analyse((tmp_path / "a.png").read_bytes(), "a.png", ["edema", "mass"])
    np.testing.assert_allclose([one["probability"] for one in answer["findings"]], expected[0], atol=1e-6)
    assert ImageFiles([tmp_path / "a.png"], side)[0:1].shape == (1, side, side)


@pytest.mark.parametrize("sizes", [None, [], {"other.h5": 448}, "448", {"cxr.h5": "448"}, {"cxr.h5": -1}])
def test_a_run_without_a_size_on_record_has_cheXzeros(evaluated, sizes):
    data, run = evaluated
    record(run, data, image_size=sizes)
    assert read_run(run).image_size() == 320


def test_the_hashes_of_a_run_are_those_of_the_files(tmp_path, caplog):
    """The hash in build.json is not used for a file changed since; the change is reported."""
    with h5py.File(tmp_path / "cxr.h5", "w") as handle:
        handle["cxr"] = np.zeros((2, 448, 448), np.uint8)
    pd.DataFrame({"impression": ["a", "b"]}).to_csv(tmp_path / "impressions.csv", index=False)
    paths = [tmp_path / "cxr.h5", tmp_path / "impressions.csv"]
    entries = {path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in paths}
    write_json(tmp_path / "build.json", {"drawn": True, "files": entries})
    found = describe_data(paths)
    assert not caplog.text and found["image_size"] == {str(paths[0]): 448} and found["drawn"] is True
    data = bytearray(paths[0].read_bytes())
    data[-5] ^= 1  # the file size is unchanged
    paths[0].write_bytes(data)
    found = describe_data(paths)
    assert found["files"][str(paths[0])]["sha256"] == sha256_of(paths[0]) != entries["cxr.h5"]["sha256"]
    assert found["files"][str(paths[1])]["sha256"] == entries["impressions.csv"]["sha256"]
    assert "cxr.h5 is not the file that build.json beside it records" in caplog.text


def test_a_file_too_large_to_hash_is_compared_by_its_size(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("chexzero.training.logs.HASHED_UP_TO", 10)
    path = tmp_path / "cxr.h5"
    path.write_bytes(bytes(100))
    write_json(tmp_path / "build.json", {"files": {"cxr.h5": {"sha256": "ab" * 32, "bytes": 100}}})
    assert describe_data([path])["files"][str(path)]["sha256"] == "ab" * 32 and not caplog.text
    path.write_bytes(bytes(99))
    assert describe_data([path])["files"][str(path)] == {"bytes": 99, "sha256": None}
    assert "is not the file" in caplog.text


def test_a_file_of_just_the_size_that_is_hashed_keeps_its_own_hash(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("chexzero.training.logs.HASHED_UP_TO", 10)
    path = tmp_path / "impressions.csv"
    path.write_bytes(bytes(10))
    write_json(tmp_path / "build.json", {"files": {path.name: {"sha256": "ab" * 32, "bytes": 10}}})
    assert describe_data([path])["files"][str(path)] == {"bytes": 10, "sha256": sha256_of(path)}
    assert "is not the file" in caplog.text


def test_the_page_decodes_one_image_at_a_time(evaluated, monkeypatch):
    """Decoding a large picture takes gigabytes; four threads would take four times that."""
    at_once, most = 0, 0

    def decode(data):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.05)
        at_once -= 1
        raise ValueError("enough")

    monkeypatch.setattr("chexzero.explore.app.decode", decode)
    page = Explorer(library.load(evaluated[1]).model, "run", True, [], np.zeros((0, 0)))

    def ask():
        with pytest.raises(UserError, match="enough"):
            page.analyse(b"", "a.png", ["edema"])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert most == 1


def test_the_page_shows_no_reports_that_lie_where_the_drawn_ones_were(evaluated, tmp_path, caplog):
    """The record says drawn data; the folder was moved to a machine with real reports at that path."""
    data, run = evaluated
    reports = tmp_path / "impressions.csv"
    reports.write_text("impression\nA drawn report.\n")
    record(run, data)
    config = json.loads((run / "config.json").read_text())
    config["settings"]["txt_filepath"] = str(reports)
    config["data"] |= {"drawn": True, "files": {str(reports): {"sha256": sha256_of(reports), "bytes": 28}}}
    write_json(run / "config.json", config)
    assert load_explorer(run, None, None, 10).reports == ["A drawn report."]
    reports.write_text("impression\nThe report of a patient.\n")
    assert load_explorer(run, None, None, 10).reports == []
    assert "its reports are not shown" in caplog.text
    assert load_explorer(run, None, reports, 10).reports == ["The report of a patient."]  # named by the user


@pytest.mark.parametrize("then, shown", [("ab", True), ("cd", False), (None, True)])
def test_the_model_card_takes_no_counts_of_other_data(evaluated, tmp_path, then, shown):
    data, run = evaluated
    record(run, data)
    counts = {"train": {"chexpert_plus/train": {"images": 7}}}
    write_json(tmp_path / "build.json", {"files": {"cxr.h5": {"sha256": "ab"}}, "counts": counts})
    config = json.loads((run / "config.json").read_text())
    config["settings"]["cxr_filepath"] = str(tmp_path / "cxr.h5")
    config["data"]["files"] |= {str(tmp_path / "cxr.h5"): {"sha256": then}}
    write_json(run / "config.json", config)
    assert bool(_build_of(read_run(run), tmp_path)) is shown


def test_checkpoints_that_are_named_are_told_apart_from_an_ensemble(tmp_path):
    paths = [tmp_path / name for name in ("checkpoint_30.pt", "checkpoint_20.pt")]
    for path in paths:
        path.touch()
    one, both = (choose(EvaluationSettings(checkpoint=tuple(given))) for given in (paths[:1], paths))
    assert (one.name, one.checkpoints, one.selected["step"]) == ("checkpoint_30", paths[:1], 30)
    assert one.selected["reason"].startswith("checkpoint_30.pt was named") and "ensemble" not in one.selected
    assert (both.name, both.checkpoints, both.selected["step"]) == ("ensemble", paths[::-1], None)
    assert both.selected["reason"].startswith("The ensemble of 2 checkpoints was named")
    assert both.selected["checkpoint"] == "checkpoint_20.pt"
    assert both.selected["ensemble"] == ["checkpoint_20.pt", "checkpoint_30.pt"]


def test_what_validation_recorded_of_a_step(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,mean_5\n10,0.5\n20,0.75\n")
    run = RunFolder(tmp_path, metrics=pd.read_csv(tmp_path / "metrics.csv"))
    assert run.recorded(20) == {"step": 20, "mean_5": 0.75} and run.recorded(30) == run.recorded(None) == {}
    assert RunFolder(tmp_path).recorded(20) == {}
