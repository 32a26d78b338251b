"""Inputs that were once misread silently or ended in a traceback: the correct value, or the error's sentence."""

import csv
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from release_corpus import PLUS_TRAIN, Corpus, copy_releases, write_releases
from test_releases import plan_rows

from chexzero.common import files
from chexzero.common.errors import UserError
from chexzero.common.files import UnixLines, read_table, write_json
from chexzero.suites.tables import _chexpert_plus_id
from chexzero.training import distributed
from data_prep import keep_out
from data_prep.finish import _of_kept_out_patients
from data_prep.releases.rows import Row, read_records
from data_prep.steps.record import is_finished
from data_prep.steps.work import Plan, Work
from dinov3_adapter import weights
from dinov3_adapter.errors import WeightsError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def releases(tmp_path_factory) -> Corpus:
    return write_releases(tmp_path_factory.mktemp("reading"))


@pytest.fixture
def corpus(releases, tmp_path) -> Corpus:
    return copy_releases(releases, tmp_path / "releases")


@pytest.mark.parametrize("cell", ["A\rB", "a\r\nb", "\r", 'say "x"\r', "plain, with a comma", "two\nlines"])
def test_what_is_written_is_read_as_it_was(tmp_path, cell):
    """An unquoted carriage return would start a new row."""
    rows = [["id", "text"], ["1", cell], ["2", "next"]]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as handle:
        csv.writer(UnixLines(handle)).writerows(rows)
    assert [record["text"] for _, record in read_records(tmp_path / "a.csv", ["text"], "")] == [cell, "next"]
    assert read_table(tmp_path / "a.csv")["text"].tolist() == [cell, "next"]
    plain = io.StringIO()
    csv.writer(plain, lineterminator="\n").writerows([rows[0], ["1", "x"], rows[2]])
    with_ours = io.StringIO()
    csv.writer(UnixLines(with_ours)).writerows([rows[0], ["1", "x"], rows[2]])
    assert with_ours.getvalue() == plain.getvalue()


def test_a_table_that_ends_within_a_row(tmp_path, caplog):
    """pandas would fill the row's missing cells silently."""
    files.warn_of_the_end.cache_clear()
    whole = "id,Edema,Fracture\na,1,0\nb,0,1"
    path = tmp_path / "labels.csv"
    path.write_text(whole + "\n")
    assert len(read_table(path)) == 2 and not caplog.text
    path.write_text(whole)
    assert read_table(path)["Fracture"].tolist() == ["0", "1"]
    assert "its last row (2)" in caplog.text
    for cut in (2, 3, 4):
        path.write_text(whole[:-cut])
        with pytest.raises(
            UserError, match=r"labels.csv, row 2, the last: [12] cells where the header has 3.*cut short"
        ):
            read_table(path)


def test_rows_of_no_split_are_listed(corpus, tmp_path):
    corpus.edit_plus(lambda table: table.assign(split=table["split"].where(table.index != 3, "trai")))
    rows = plan_rows(corpus.flags(), tmp_path / "data")
    assert sum(row.source == "chexpert_plus" for row in rows["train"]) == PLUS_TRAIN - 1
    assert any("row 4: the split is 'trai'" in line["reason"] for line in rows["left_out"])


def test_what_lies_in_test_and_has_no_labels_is_listed(corpus, tmp_path, caplog):
    """Cut a table of labels short: a study, and one view of another, are in no table."""
    table = corpus.chexpert / "groundtruth.csv"
    kept = pd.read_csv(table, dtype=str)
    kept.iloc[:-1].to_csv(table, index=False)
    rows = plan_rows(corpus.flags("--test_views", "all"), tmp_path / "data")
    without = [line["id"] for line in rows["left_out"] if line["reason"] == "no labels"]
    assert without == ["chexpert/test/patient64743/study1/view1_frontal"]
    assert not any("patient64743" in row.id for row in rows["test"]) and len(rows["test"]) == 4
    said = "chexpert, split test: 1 images have no labels and are left out, the first is chexpert/test/patient64743"
    assert said in caplog.text


@pytest.mark.parametrize("entry", ["train/patient00001/study1/view1_frontal.jpg", "train/patient00001/study1"])
def test_other_images_of_a_kept_out_patient_go_too(corpus, tmp_path, entry, caplog):
    """A list, another group's test set, names one image or one study of a patient with two studies."""
    (tmp_path / "their_test.txt").write_text(f"{entry}\n")
    rows = plan_rows(corpus.flags("--keep_out", str(tmp_path / "their_test.txt")), tmp_path / "data")
    left = [row.id for row in rows["train"] if "patient00001" in row.id]
    assert left == ["chexpert_plus/train/patient00001/study2/view1_frontal"]
    work = Work(tmp_path / "data")
    plan = work.read_plan()
    assert _of_kept_out_patients(work, plan) == {left[0]: "patient of their_test.txt"}
    plan.finishing["on_overlap"] = "keep"
    assert _of_kept_out_patients(work, plan) == {} and "1 training images are of patients" in caplog.text
    plan.finishing["on_overlap"] = "stop"
    with pytest.raises(UserError, match="patient00001/study2.*--on_overlap drop"):
        _of_kept_out_patients(work, plan)


@pytest.mark.parametrize("sixteen_bit, same", [(0, True), (3, False)])
def test_a_build_of_before_the_robust_range_is_another_build(tmp_path, sixteen_bit, same):
    """Its 16-bit images, if it has any, were scaled by their smallest and largest sample."""
    settings = {"depth16": "stretch", "range16": "bulk 0.1..0.9, reach 2"}
    identity = {"roles": {}, "settings": settings, "inputs": {}, "images": {}, "libraries": {"simplejpeg": "1"}}
    plan = Plan(identity=identity, finishing={"on_overlap": "drop"}, rows={}, counts={}, drawn=False)
    counts = {"train": {"rexgradient/train": {"sixteen_bit": sixteen_bit}}, "valid": {}}
    old = identity | {"settings": {"depth16": "stretch", "on_overlap": "drop", "max_failures": 0}, "libraries": {}}
    write_json(tmp_path / "build.json", old | {"files": {}, "counts": counts})
    if same:
        assert is_finished(plan, tmp_path)
    else:
        with pytest.raises(UserError, match="range16: smallest to largest sample, now bulk"):
            is_finished(plan, tmp_path)


def test_packed_dicom_files_are_found(corpus, tmp_path):
    image = corpus.plus / "PNG/train/patient00001/study1/view1_frontal.png"
    image.rename(image.with_suffix(".dcm.gz"))
    rows = plan_rows(corpus.flags(), tmp_path / "data")
    assert rows["train"][0].id.endswith("patient00001/study1/view1_frontal")
    assert rows["train"][0].path.endswith("view1_frontal.dcm.gz") and not rows["train"][0].problem


@pytest.mark.parametrize(
    "path",
    [
        "CheXpert-v1.0/valid/patient1/study1/view1_frontal.jpg",
        "CheXpert-v1.0\\valid\\patient1\\study1\\view1_frontal.jpg",
        "valid/patient1/study1/view1_frontal.png",
        "/data/CheXpert-v1.0 small/val/patient1/study1/view1_frontal.jpg",
    ],
)
def test_reports_are_joined_whatever_stands_before_the_split(path):
    assert _chexpert_plus_id(path) == "chexpert_plus/valid/patient1/study1/view1_frontal"


def test_damaged_vision_weights_are_refused(tmp_path):
    """The archive's checksums reveal each of 40 flipped bits and zeroed blocks within the tensors' records."""
    path = tmp_path / "vision.pth"
    torch.save({f"blocks.{i}.weight": torch.rand(50, 50) for i in range(5)}, path)
    whole = path.read_bytes()
    assert len(weights.read_tensors(path)) == 5
    random = np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(whole)
        at = int(random.integers(3000, 50_000))
        if random.random() < 0.5:
            data[at] ^= 1 << int(random.integers(8))
        else:
            data[at : at + 64] = bytes(64)
        path.write_bytes(data)
        with pytest.raises(WeightsError, match="vision.pth is damaged|fetch it again"):
            weights.read_tensors(path)


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"WORLD_SIZE": "2"}, "RANK and MASTER_ADDR and MASTER_PORT are not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost"}, "MASTER_PORT is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1'"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK is 2 where WORLD_SIZE is 2"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
        ({"WORLD_SIZE": "", "SLURM_STEP_NUM_TASKS": "4"}, "srun started several tasks"),
    ],
)
def test_ranks_that_cannot_find_each_other(monkeypatch, environment, words):
    """Without the check they would wait forever or end in a traceback."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        distributed.start()


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": " "}, {"WORLD_SIZE": "1", "RANK": ""}])
def test_one_process_needs_no_environment(monkeypatch, environment):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert isinstance(distributed.start(), torch.device) and distributed.world_size() == 1


COMMANDS = [
    "run_train",
    "run_zero_shot",
    "data_prep.__main__",
    *(f"chexzero.{n}.__main__" for n in ("explore", "export")),
]


@pytest.mark.parametrize("module", [*COMMANDS, "chexzero.average", "chexzero.sweep", "chexzero.compare.__main__"])
def test_every_command_begins_with_the_word_for_ctrl_c(module):
    path = ROOT / (module.replace(".", "/") + ".py")
    first = next(line for line in path.read_text().splitlines() if line.startswith(("import ", "from ")))
    assert first.startswith("import chexzero.common.interrupts")


INTERRUPTED = """
import os, signal
import chexzero.common.interrupts
from chexzero.common.errors import run_command
def main():
    os.kill(os.getpid(), signal.SIGINT)
%s
run_command(main)
"""


@pytest.mark.parametrize(
    "importing", ["main()", "try: main()\nexcept BaseException: raise ImportError('what a library makes of it')", ""]
)
def test_ctrl_c_is_one_word_during_the_imports_and_after_them(importing):
    done = subprocess.run([sys.executable, "-c", INTERRUPTED % importing], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_another_error_during_the_imports_keeps_its_traceback():
    code = "import chexzero.common.interrupts\nraise ImportError('no such library')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "no such library" in done.stderr


def test_no_command_leans_on_a_docstring():
    """PYTHONOPTIMIZE=2 removes docstrings."""
    folders = [ROOT / name for name in ("chexzero", "data_prep", "dinov3_adapter")]
    paths = [path for folder in folders for path in folder.rglob("*.py")] + list(ROOT.glob("run_*.py"))
    assert len(paths) > 100
    assert not [path for path in paths if re.search(r"__doc__\s*[.\[]", path.read_text(encoding="utf-8"))]


@pytest.mark.long
def test_commands_without_docstrings():
    """Run the commands with PYTHONOPTIMIZE=2: everything is compiled anew, which takes a minute."""
    code = (
        "import run_train, chexzero.explore.__main__ as explore\n"
        "for parse in (run_train.parse_args, explore.parse_args):\n"
        "    try: parse(['--help'])\n"
        "    except SystemExit as left: assert left.code == 0 or exit(4)\n"
        "print(run_train.parse_args(['--max_steps', '3']).max_steps)"
    )
    environment = os.environ | {"PYTHONOPTIMIZE": "2"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.endswith("\n3\n"), done.stderr[-500:]


@pytest.mark.parametrize(
    ("source", "last", "named"),
    [("rexgradient", "abcdefgh", True), ("rexgradient", "abcdefg", False), ("chexpert", "abcdefgh", False)],
)
def test_the_name_of_an_image_alone_names_it_where_it_is_long_enough(source, last, named):
    row = Row(f"{source}/p/s/{last}", source, "train", f"{source}/p", "", f"{source}/p/s", "frontal", f"x/{last}.png")
    assert (last in keep_out._names(row)) is named
    assert {f"p/s/{last}", "p/s", "p", f"x/{last}"} <= set(keep_out._names(row))
