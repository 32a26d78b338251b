"""Commands end with the right exit code and one sentence; folders are locked and replaced as a whole."""

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import run_train
from chexzero.common import folders
from chexzero.common.errors import UserError, refusal, run_command
from chexzero.common.files import no_formula, read_table
from chexzero.common.folders import hold, is_unfinished, replaced_together
from chexzero.common.formats import check_images
from chexzero.common.markup import without_folders
from chexzero.report.sections import Table
from chexzero.report.write import as_csv
from chexzero.training import resume

ROOT = Path(__file__).resolve().parents[1]


def code_of(main) -> int:
    with pytest.raises(SystemExit) as left:
        run_command(main)
    return left.value.code


@pytest.mark.parametrize("stop, code", [(KeyboardInterrupt(), 130), (SystemExit(75), 75)])
@pytest.mark.parametrize("write", [1, 2, 3, 5])
def test_a_signal_while_saving_is_no_full_disk(tmp_path, monkeypatch, stop, code, write):
    """Python runs a signal handler between torch's writes; here at the n-th."""
    writes = 0
    whole_open = open

    class Interrupted:
        def __init__(self, *args):
            self.handle = whole_open(*args)

        def write(self, data):
            nonlocal writes
            writes += 1
            if writes == write:
                raise stop
            return self.handle.write(data)

        def flush(self):
            self.handle.flush()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.handle.close()

    monkeypatch.setattr(resume, "open", Interrupted, raising=False)
    state = {"step": 1, "weight": torch.zeros(100_000)}
    assert code_of(lambda: resume.save_file(state, tmp_path / "last.pt")) == code
    assert writes >= write and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.ENAMETOOLONG]
)
def test_what_the_system_refuses_is_one_sentence(capsys, number):
    def main():
        raise OSError(number, os.strerror(number), "/some/file")

    assert code_of(main) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: /some/file: ") and said.count("\n") == 1


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)
    assert refusal(AssertionError("Permission denied")) is None
    assert "room" in refusal(RuntimeError("I/O error: No space left on device (os error 28)"))


@pytest.mark.parametrize("redirect", [">&-", ">&- 2>&-", "<&- >/dev/null"])
def test_closed_and_ascii_standard_streams(tmp_path, redirect):
    """A file opened later must not get the descriptor of a closed stream."""
    code = (
        "import os\nfrom chexzero.common.errors import run_command\n"
        f"def main():\n    with open({str(tmp_path / 'file')!r}, 'w') as f:\n"
        "        os.system('echo noise'); print('“×”'); f.write(f'{f.fileno()}')\nrun_command(main)"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{code.replace(chr(39), chr(34))}' {redirect}"], env=environment
    )
    assert done.returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


def _hold_until_told(folder, held, leave):
    with hold(folder):
        held.set()
        leave.wait(30)


def test_a_folder_is_held_by_one_and_the_other_hears_by_whom(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "PATIENCE", 0.1)
    context = multiprocessing.get_context("fork")
    held, leave = context.Event(), context.Event()
    first = context.Process(target=_hold_until_told, args=(tmp_path / "run", held, leave))
    first.start()
    held.wait(30)
    with pytest.raises(UserError, match=f"process {first.pid} on .* since "), hold(tmp_path / "run"):
        pass
    first.kill()
    first.join()
    monkeypatch.undo()
    with hold(tmp_path / "run"):  # the lock file left by a kill blocks nobody
        pass
    assert not (tmp_path / "run" / folders.HOLDER).exists()


def test_a_folder_is_replaced_together(tmp_path, monkeypatch):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "notes.txt").write_text("the user's")
    for level, names in (("image", ["a", "b/c", "b/d"]), ("study", ["a", "b/c"])):
        with replaced_together(folder) as staged:
            for name in names:
                (staged / name).parent.mkdir(exist_ok=True)
                (staged / name).write_text(level)
        files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("[a-z]*") if path.is_file()}
        assert files == dict.fromkeys(names, level) | {"notes.txt": "the user's"}

    with pytest.raises(ZeroDivisionError), replaced_together(folder) as staged:
        (staged / "a").write_text("third")
        raise ZeroDivisionError
    assert (folder / "a").read_text() == "study" and not (folder / ".new").exists()

    moved = os.replace

    def replace(one, other):
        if str(other).endswith("b/c"):
            raise KeyboardInterrupt
        moved(one, other)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt), replaced_together(folder) as staged:
        (staged / "b").mkdir()
        (staged / "a").write_text("fourth")
        (staged / "b/c").write_text("fourth")
    assert is_unfinished(folder)
    monkeypatch.undo()
    with replaced_together(folder) as staged:
        (staged / "a").write_text("fifth")
    assert not is_unfinished(folder) and not (folder / "b/c").exists() and (folder / "a").read_text() == "fifth"


def test_a_list_of_contents_from_elsewhere_removes_nothing_outside(tmp_path):
    (tmp_path / "precious").write_text("1")
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / folders.CONTENTS).write_text('["../precious"]')
    with replaced_together(folder) as staged:
        (staged / "a").write_text("1")
    assert (tmp_path / "precious").exists()


FULL = """
import resource, signal, sys, numpy as np, h5py
from pathlib import Path
from chexzero.common.files import no_formula
from chexzero.common.errors import run_command
from data_prep.steps.sets import new_images
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
def main():
    with new_images(Path(sys.argv[2]), [b"id %d" % i for i in range(50)], {}) as file:
        for i in range(50):
            file["cxr"][i] = np.full((320, 320), i, np.uint8)
            file.check()
run_command(main)
"""


@pytest.mark.parametrize("room", [0, 100, 1000, 3000, 200_000, 5_120_000, 5_122_000])
def test_a_full_disk_neither_crashes_hdf5_nor_touches_the_old_file(tmp_path, room):
    """With libhdf5's own file access, five of the first six sizes end in a segmentation fault."""
    path = tmp_path / "cxr.h5"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL, str(room), path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.startswith("error: cannot write") and done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["cxr.h5"] and path.read_bytes() == b"old"


def test_no_cell_is_a_formula(tmp_path):
    """A spreadsheet runs text that starts with one of these; numbers and intervals stay unchanged."""
    for cell in ("=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "-a"):
        assert no_formula(cell) == "'" + cell
    for cell in ("-0.5", "+0.012", "-0.01 to 0.3", "-1.2e-05", "-0.1–0.2", "edema", "", 3, None, -2.5, "−=1"):
        assert no_formula(cell) is cell
    table = Table("", ["=A", "b"], [["=1+1", -0.5]])
    assert as_csv(table) == "'=A,b\n'=1+1,-0.5\n"


def test_folders_of_the_machine_are_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text, short in (
        ("/home/ann/secret/cxr.h5", "cxr.h5"),
        (f"{tmp_path}/runs/a", "runs/a"),
        ("see /home/ann/x.csv, row 3", "see x.csv, row 3"),
        ("data.files./home/ann/x.csv.bytes", "data.files.x.csv.bytes"),
        ("https://doi.org/10.1038/s41551-022", "https://doi.org/10.1038/s41551-022"),
        ("mean/max of ../data/cxr.h5 and 1/2", "mean/max of ../data/cxr.h5 and 1/2"),
    ):
        assert without_folders(text) == short
    assert without_folders({"/a/b/c.pt": 1, "/a/d/c.pt": ["/x/y/z"]}) == {"c.pt": 1, "c.pt (2)": ["z"]}


def odd_hdf5(path: Path, kind: str) -> None:
    """An image file that is wrong in one way."""
    images = np.full((3, 8, 8), 7, np.uint8)
    images[:, 0, 0] = 9
    with h5py.File(path, "w") as file:
        if kind == "external storage":
            other = path.with_name("secret")
            other.write_bytes(bytes(range(192)))
            file.create_dataset("cxr", (3, 8, 8), np.uint8, external=[(str(other), 0, 192)])
        elif kind in ("external link", "virtual"):
            with h5py.File(path.with_name("other.h5"), "w") as other:
                other["cxr"] = images
            if kind == "virtual":
                layout = h5py.VirtualLayout((3, 8, 8), np.uint8)
                layout[:] = h5py.VirtualSource("other.h5", "cxr", (3, 8, 8))
                file.create_virtual_dataset("cxr", layout)
            else:
                file["cxr"] = h5py.ExternalLink("other.h5", "cxr")
        elif kind == "not a number":
            file["cxr"] = np.where(images == 9, np.nan, images.astype(np.float32))
        elif kind == "normalised":
            file["cxr"] = (images.astype(np.float32) - 101.48761) / 83.43944
        else:
            file["cxr"] = images[:, :0] if kind == "no pixels" else images
        if kind.startswith("ids"):
            file["id"] = {"ids: numbers": np.arange(3), "ids: too few": ["a"]}[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "external storage",
        "external link",
        "virtual",
        "not a number",
        "normalised",
        "no pixels",
        "ids: numbers",
        "ids: too few",
    ],
)
def test_an_odd_image_file_is_refused(tmp_path, kind):
    odd_hdf5(tmp_path / "cxr.h5", kind)
    with pytest.raises(UserError, match="cxr.h5"):
        check_images(tmp_path / "cxr.h5")


@pytest.mark.parametrize(
    "text",
    ["drop_path: 2", "image_resolution: 0", "num_workers: 100000", "lr: 1e400", "seed: -1", "\xff", "a: " + "[" * 5000],
)
def test_a_training_refuses_what_no_run_can_have(tmp_path, text):
    (tmp_path / "settings.yaml").write_bytes(text.encode("latin1"))
    with pytest.raises(UserError):
        run_train.parse_args(["--config", str(tmp_path / "settings.yaml")])


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("id,Edema,Edema\na,0,1\n")
    with pytest.raises(UserError, match="Edema 2 times"):
        read_table(tmp_path / "labels.csv", ["Edema"])


WITHOUT_SHM = """
import logging, sys
from pathlib import Path
logging.basicConfig()
from data_prep.steps import blocks
from data_prep.steps.prepare import run_tasks
task = blocks.Task(Path(sys.argv[1]) / "0.npz", [("", "", "no file")], "stretch")
print([(role, errors) for role, _, errors in run_tasks([("train", task)], 2)])
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux")
def test_without_shared_memory_one_process_does_the_work(tmp_path):
    mount = f"mount -t tmpfs -o ro none /dev/shm && {sys.executable} -c '{WITHOUT_SHM}' {tmp_path}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", mount], cwd=ROOT, capture_output=True, text=True)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("needs the right to mount")
    assert "('train', ['no file'])" in done.stdout and "no worker processes" in done.stderr, done.stderr
    assert (tmp_path / "0.npz").exists()


def _deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def test_workers_that_ignore_sigterm_do_not_keep_a_command_from_ending():
    """At exit Python sends workers SIGTERM and waits without limit."""

    def main():
        worker = multiprocessing.get_context("fork").Process(target=_deaf, daemon=True)
        worker.start()
        time.sleep(0.3)
        raise KeyboardInterrupt

    assert code_of(main) == 130
    began = time.monotonic()
    while multiprocessing.active_children():
        assert time.monotonic() - began < 10
        time.sleep(0.01)


@pytest.mark.parametrize("said", [0, 1])
def test_a_full_disk_under_the_standard_streams_is_exit_code_2(said):
    """SLURM's output files are on the full disk: no sentence can be written, so the exit code must be right."""
    program = f"""
from chexzero.common.errors import UserError, run_command
def main():
    print("x" * 100)
    if {said}:
        raise UserError("what is wrong")
run_command(main)
"""
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=full, check=False)
    assert ended.returncode == 2


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([str(ROOT / "run_train.py")], marks=pytest.mark.long),
        pytest.param([str(ROOT / "run_zero_shot.py")], marks=pytest.mark.long),
        pytest.param(["-m", "chexzero.export", "--run", "run", "--to", "onnx", "out"], marks=pytest.mark.long),
        ["-m", "data_prep", "demo", "--out", "demo"],
    ],
)
def test_where_nothing_can_be_written_a_command_says_so(command, tmp_path):
    """Libraries look for a temporary folder when imported; on a full disk they find none."""

    def nothing_can_be_written() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    ended = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        preexec_fn=nothing_can_be_written,
        check=False,
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert ended.stderr.strip().splitlines()[-1].startswith("error: ")
