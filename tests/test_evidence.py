"""The overlap audit's sentence is printed only for a model whose recorded hashes the audit covered."""

import json
from pathlib import Path

import pytest

from chexzero.common.files import write_json
from chexzero.runs.evidence import training_claim
from chexzero.runs.run_folder import RunFolder, read_run

SENTENCE = "No training image, patient or report was found in an evaluation set."
SETS = {"valid.h5": "v", "test.h5": "t"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A data folder with an audited build, and a run that recorded the same hashes."""
    (tmp_path / "data").mkdir()
    (tmp_path / "run").mkdir()
    build = {
        "files": {name: {"sha256": digest} for name, digest in {"cxr.h5": "c", **SETS}.items()},
        "overlap": {"sentence": SENTENCE},
    }
    write_json(tmp_path / "data" / "build.json", build)
    write_run(tmp_path, "c")
    return tmp_path


def write_run(place: Path, digest: str | None) -> None:
    files = {"data/cxr.h5": {"bytes": 1, "sha256": digest}}
    write_json(place / "run" / "config.json", {"settings": {"cxr_filepath": "data/cxr.h5"}, "data": {"files": files}})
    (place / "run" / "metrics.csv").write_text("step,mean_5,checkpoint_sha256\n10,0.7,sha256:abc\n20,0.8,sha256:def\n")


def claim(place: Path, run: RunFolder | None = None, checkpoint: str = "run/checkpoint_20.pt", digest: str = "def"):
    run = run or read_run(place / "run")
    return training_claim(run, {place / checkpoint: digest}, place / "data", SETS)


def test_stated_when_every_hash_agrees(place):
    found = claim(place)
    assert found.known and found.text == SENTENCE and not found.leak


def test_a_run_trained_on_another_file(place):
    write_run(place, "other")
    found = claim(place)
    assert not found.known and "images other than those that the audit covered" in found.text
    assert SENTENCE not in found.text


def test_a_run_trained_on_the_test_set(place):
    write_run(place, "t")
    found = claim(place)
    assert found.leak and "trained on an evaluation set" in found.text and "test.h5" in found.text


def test_a_run_without_a_hash(place):
    write_run(place, None)
    assert "recorded no hash" in claim(place).text


def test_anybodys_checkpoint(place):
    found = training_claim(None, {place / "x.pt": "1"}, place / "data", SETS)
    assert not found.known and "unknown, because no training run belongs to the checkpoint" in found.text
    assert "is not in the run's folder" in claim(place, checkpoint="x.pt").text


def test_weights_swapped_under_a_name(place):
    assert "is not the file that the run wrote" in claim(place, digest="abc").text


def test_evaluated_files_that_the_audit_did_not_cover(place):
    run = read_run(place / "run")
    found = training_claim(run, {}, place / "data", SETS | {"test.h5": "changed"})
    assert "test.h5 is not the file that the audit covered" in found.text
    (place / "data" / "build.json").unlink()
    assert "no overlap audit" in claim(place).text


def test_an_audit_with_hashes_of_its_own(place):
    report = {"finished": True, "summary": {"sentence": SENTENCE}}
    write_json(place / "data" / "overlap_report.json", report | {"files": {"cxr.h5": "c", **SETS}})
    assert claim(place).known
    write_json(place / "data" / "overlap_report.json", report | {"files": {"cxr.h5": "other", **SETS}})
    assert not claim(place).known
    write_json(place / "data" / "overlap_report.json", report | {"files": SETS})
    assert "does not name the hash" in claim(place).text


def test_training_images_of_another_size_than_the_build_wrote(place):
    build = json.loads((place / "data" / "build.json").read_text())
    build["files"]["cxr.h5"]["bytes"] = 2  # the run read a file of 1 byte, and its hash from build.json
    write_json(place / "data" / "build.json", build)
    assert "images other than those that the audit covered" in claim(place).text


def test_the_validation_of_a_step_is_read_from_the_table(place):
    run = read_run(place / "run")
    assert run.recorded(20)["mean_5"] == 0.8 and run.recorded(10)["mean_5"] == 0.7
    assert run.recorded(15) == run.recorded(None) == {}
