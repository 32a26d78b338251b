"""A run that is stopped anywhere and resumed equals an undisturbed one."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from training_corpus import flags, process, run_to_end, write_corpus

from chexzero.common.errors import UserError
from chexzero.runs.run_folder import AVERAGE
from chexzero.training import resume
from chexzero.training.config import TrainConfig
from chexzero.training.logs import SPEED_COLUMNS, TRAIN_COLUMNS, CsvLog

STEPS = [
    "--max_steps",
    "60",
    "--val_interval",
    "7",
    "--save_last_interval",
    "3",
    "--log_interval",
    "2",
    "--lr",
    "1e-3",
    "--batch_size",
    "8",
    "--save_interval",
    "0",
    "--drop_path",
    "0.2",
    "--patch_dropout",
    "0.25",
    "--augment",
    "medium",
    "--text_sentences",
    "sample",
    "--label_smoothing",
    "0.1",
    "--ema",
    "0.9",
    "--one_per_study",
    "--keep_top_k",
    "1",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), train=50)


@pytest.fixture(scope="module")
def undisturbed(corpus) -> Path:
    assert run_to_end([process(flags(corpus, "undisturbed", *STEPS))]) == [0]
    return corpus / "runs/undisturbed"


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that weights, logs and selection are equal bit for bit; only measured times may differ."""
    assert sorted(path.name for path in one.glob("checkpoint*.pt")) == sorted(
        path.name for path in other.glob("checkpoint*.pt")
    )
    for path in one.glob("checkpoint*.pt"):
        ours, theirs = (torch.load(folder / path.name, weights_only=True) for folder in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), path.name
    for name in ("metrics.csv", *(["train_log.csv"] if (one / "train_log.csv").exists() else [])):
        tables = [
            pd.read_csv(folder / name, dtype=str).drop(columns=["seconds", *SPEED_COLUMNS], errors="ignore")
            for folder in (one, other)
        ]
        pd.testing.assert_frame_equal(*tables)
    assert (one / "selection.json").read_text() == (other / "selection.json").read_text()
    if (one / AVERAGE).exists():
        assert_same_run(one / AVERAGE, other / AVERAGE)


def kill_until_done(corpus: Path, name: str, most: int, rng: random.Random) -> int:
    """Train the run `name` to its end with up to `most` kills at random moments; return the number of kills."""
    log = corpus / "runs" / name / "train_log.csv"
    kills = 0
    while True:
        run = process(flags(corpus, name, *STEPS, "--resume", "auto"))
        run.start()
        before = log.stat().st_mtime_ns if log.exists() else 0
        while kills < most and run.is_alive() and (not log.exists() or log.stat().st_mtime_ns == before):
            time.sleep(0.01)  # until it starts writing
        run.join(rng.uniform(0, 1.2) if kills < most else None)
        if run.exitcode is not None:
            assert run.exitcode == 0
            return kills
        run.kill()
        run.join()
        kills += 1


@pytest.mark.parametrize("wanted", [3, pytest.param(10, marks=pytest.mark.long)])
def test_kills_at_random_places_change_nothing(corpus, undisturbed, wanted):
    """On a fast machine a run may end before all kills; then another run takes the rest."""
    rng = random.Random(5)
    kills = 0
    for number in range(wanted):
        name = f"killed_{wanted}_{number}"
        kills += kill_until_done(corpus, name, wanted - kills, rng)
        assert_same_run(undisturbed, corpus / "runs" / name)
        if kills == wanted:
            break
    assert kills == wanted


@pytest.mark.parametrize(
    "number, workers", [pytest.param(signal.SIGTERM, 2, marks=pytest.mark.long), (signal.SIGUSR1, 0)]
)
def test_a_signal_saves_and_asks_to_be_requeued(corpus, undisturbed, number, workers):
    """The signal goes to the whole process group, workers included, as from torchrun and SLURM."""
    name = f"signalled_{number.name}"
    argv = flags(corpus, name, *STEPS, "--resume", "auto", "--num_workers", str(workers))
    run = process(argv)
    run.start()
    log = CsvLog(corpus / "runs" / name / "train_log.csv", TRAIN_COLUMNS)
    while run.is_alive() and len(log.rows()) < 5:
        time.sleep(0.01)
    os.killpg(run.pid, number)
    run.join(60)
    assert run.exitcode == resume.EXIT_REQUEUE == 75
    assert 0 < resume.load_last(corpus / "runs" / name)["step"] < 60
    assert run_to_end([process(argv)]) == [0]
    assert_same_run(undisturbed, corpus / "runs" / name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_outside_the_steps_asks_to_be_requeued(number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    try:
        resume.leave_when_told()
        with pytest.raises(SystemExit) as left:
            os.kill(os.getpid(), number)
            time.sleep(5)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGUSR1, before[1])
    assert left.value.code == 75


def test_a_damaged_last_falls_back_to_the_one_before(tmp_path, caplog):
    resume.save_last(tmp_path, {"step": 1, "model": {"weight": torch.ones(1000)}})
    resume.save_last(tmp_path, {"step": 2, "model": {"weight": torch.full((1000,), 2.0)}})
    assert resume.load_last(tmp_path)["step"] == 2
    whole = (tmp_path / "last.pt").read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(torch.full((4,), 2.0).numpy().tobytes()) + 5] ^= 1
    for damaged in (bytes(flipped), whole[: len(whole) // 2], b"", b"not a file of torch"):
        (tmp_path / "last.pt").write_bytes(damaged)
        assert resume.load_last(tmp_path)["step"] == 1
        assert (tmp_path / "last.damaged.pt").read_bytes() == damaged and not (tmp_path / "last.pt").exists()
    assert "damaged" in caplog.text
    (tmp_path / "last.pt").write_bytes(b"")
    (tmp_path / "last.previous.pt").write_bytes(b"")
    with pytest.raises(UserError, match="another run with --model_name"):
        resume.load_last(tmp_path)
    assert (tmp_path / "last.pt").exists() and (tmp_path / "last.previous.pt").exists()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_a_last_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch, number):
    for step in (1, 2):
        resume.save_last(tmp_path, {"step": step, "model": {}})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    whole = zipfile.ZipFile

    def zip_file(path):
        if path.name == "last.pt":
            raise OSError(number, os.strerror(number), str(path))
        return whole(path)

    monkeypatch.setattr(zipfile, "ZipFile", zip_file)
    with pytest.raises(UserError, match="last.pt cannot be read"):
        resume.load_last(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"step": 3, "model": Evil()}, tmp_path / "last.pt")
    with pytest.raises(UserError):
        resume.load_last(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_what_was_saved(tmp_path):
    small, large = {"step": 1, "model": {}}, {"step": 2, "model": {"weight": torch.zeros(300_000)}}
    resume.save_last(tmp_path, small)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # writing more fails, as on a full disk
    try:
        with pytest.raises(UserError, match="last.pt.*space"):
            resume.save_last(tmp_path, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert resume.load_last(tmp_path)["step"] == 1
    assert not list(tmp_path.glob(".*"))


def test_another_setting_or_other_data_are_refused(corpus, undisturbed, tmp_path):
    state = resume.load_last(undisturbed)
    config, data = TrainConfig(**state["settings"]), json.loads(json.dumps(state["data"]))
    resume.check_same(undisturbed, state, replace(config, max_steps=90, num_workers=2), data)
    with pytest.raises(UserError, match="--lr 0.001 .now 0.1."):
        resume.check_same(undisturbed, state, replace(config, lr=0.1), data)
    with pytest.raises(UserError, match="--max_steps 60"):
        cosine = state | {"settings": state["settings"] | {"lr_schedule": "cosine"}}
        resume.check_same(undisturbed, cosine, replace(config, lr_schedule="cosine", max_steps=90), data)
    older = state | {"settings": {key: value for key, value in state["settings"].items() if key != "loss"}}
    resume.check_same(undisturbed, older, config, data)  # the loss of runs before this setting existed
    with pytest.raises(UserError, match="--loss clip .now siglip."):
        resume.check_same(undisturbed, older, replace(config, loss="siglip"), data)
    next(iter(data["files"].values()))["sha256"] = "0"
    with pytest.raises(UserError, match="cxr.h5 changed"):
        resume.check_same(undisturbed, state, config, data)


def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path):
    log = CsvLog(tmp_path / "log.csv", ["step", "loss", "note"])
    log.begin()
    for step in (1, 2, 3):
        log.append({"step": step, "loss": 0.1 + step, "note": float("nan")})
    with open(log.path, "a") as handle:
        handle.write("4,0.")
    assert [row["step"] for row in log.rows()] == [1, 2, 3]
    log.cut_after(2)
    assert log.path.read_text() == "step,loss,note\n1,1.1,\n2,2.1,\n"


def test_damaged_logs_are_made_again(corpus, undisturbed, tmp_path):
    """A run resumes from the rows in its state, even if the files are damaged; an older state needs the files."""
    folder = corpus / "runs" / "damaged_logs"
    shutil.copytree(undisturbed, folder)
    state = resume.load_last(folder)
    for name, damage in (("metrics.csv", b"\xff\x00"), ("train_log.csv", b"step,loss\n3")):
        (folder / name).write_bytes(damage)
    assert run_to_end([process(flags(corpus, "damaged_logs", *STEPS, "--resume", "auto"))]) == [0]
    assert_same_run(undisturbed, folder)
    del state["logs"]
    resume.save_last(folder, state)
    (folder / "metrics.csv").write_bytes(b"\xff\x00")
    assert run_to_end([process(flags(corpus, "damaged_logs", *STEPS, "--resume", "auto"))]) == [2]


@pytest.mark.parametrize(
    "text, says",
    [
        ("step,loss,note\n1,1,\n2,x,\n", "line 3"),
        ("step,loss,note\n1,1,\n1,2,\n", "line 3"),
        ("step,loss,note\n1,1\n", "line 2"),
        ("step,loss,note\n,1,\n", "line 2"),
        ("step,note\n1,1\n", "columns"),
        ("\0\n", "columns"),
    ],
)
def test_a_damaged_log_is_refused(tmp_path, text, says):
    log = CsvLog(tmp_path / "log.csv", ["step", "loss", "note"])
    log.path.write_text(text)
    with pytest.raises(UserError, match=says):
        log.rows()
