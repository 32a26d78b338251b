"""Tests that take minutes: over-fitting, the models at full size, the benchmark. `make test-long` runs them."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from training_corpus import flags, write_corpus

from chexzero.training.resume import load_last

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def test_over_fitting_is_caught(tmp_path):
    """Few images, two reports in five swapped: findings are learnt first, then the wrong reports are memorised."""
    write_corpus(tmp_path, train=256, valid=150, seed=1, share=0.1, valid_share=0.15)
    path = tmp_path / "data/impressions.csv"
    with open(path, newline="") as handle:
        rows = list(csv.reader(handle))
    wrong = np.flatnonzero(np.random.default_rng(0).random(len(rows) - 1) < 0.4) + 1
    texts = [rows[i][1] for i in wrong]
    for i, text in zip(wrong, texts[1:] + texts[:1], strict=True):
        rows[i][1] = text
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    argv = flags(
        tmp_path,
        "run",
        "--max_steps",
        "800",
        "--val_interval",
        "50",
        "--optimizer",
        "adam",
        "--lr",
        "1e-3",
        "--adam_beta2",
        "0.95",
        "--save_interval",
        "0",
        "--keep_top_k",
        "0",
        "--image_resolution",
        "64",
    )
    done = subprocess.run(
        [sys.executable, "run_train.py", *argv], cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/run"
    metrics = pd.read_csv(folder / "metrics.csv").set_index("step")
    selection = json.loads((folder / "selection.json").read_text())
    peak, curve = selection["step"], metrics["mean_5"]
    assert curve[peak] == curve.max() == selection["value"]
    assert 100 <= peak <= 600
    assert curve[peak] > curve[0] + 0.12 and curve[peak] > curve.iloc[-4:].mean() + 0.05
    assert metrics["train_loss"].iloc[-1] < metrics["train_loss"][peak] - 0.2  # the training loss does not show it
    assert [one.name for one in folder.glob("checkpoint_*.pt")] == [f"checkpoint_{peak}.pt"]


@pytest.mark.parametrize(
    "more",
    [
        ["--vision", "dinov3_vitb", "--vision_weights", "random", "--text_weights", "random"],
        ["--vision", "vit_b_32", "--vision_weights", "random", "--text_weights", "random", "--optimizer", "adam"],
        ["--random_init", "--precision", "bf16", "--grad_checkpointing"],
    ],
)
def test_the_full_sizes_train_on_a_cpu(tmp_path, more):
    write_corpus(tmp_path, train=6, valid=4)
    argv = [
        "--cxr_filepath",
        str(tmp_path / "data/cxr.h5"),
        "--save_dir",
        str(tmp_path),
        "--model_name",
        "full",
        "--max_steps",
        "3",
        "--batch_size",
        "4",
        "--log_interval",
        "1",
        "--val_interval",
        "2",
        "--keep_top_k",
        "0",
    ]
    done = subprocess.run(
        [sys.executable, "run_train.py", *argv, *more], cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(tmp_path / "full/train_log.csv")["loss"].between(0.01, 10).all()
    assert pd.read_csv(tmp_path / "full/metrics.csv")["step"].tolist() == [0, 2, 3]


def test_torchrun_passes_a_signal_on_and_the_run_goes_on(tmp_path):
    write_corpus(tmp_path, train=40)
    argv = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--rdzv_backend",
        "c10d",
        "--rdzv_endpoint",
        "127.0.0.1:0",
        "run_train.py",
        *flags(
            tmp_path,
            "run",
            "--max_steps",
            "40",
            "--batch_size",
            "8",
            "--log_interval",
            "1",
            "--val_interval",
            "100",
            "--resume",
            "auto",
        ),
    ]
    job = subprocess.Popen(argv, cwd=ROOT, env=ONE_THREAD, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "runs/run/train_log.csv"
    while job.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > 3):
        time.sleep(0.05)
    os.kill(job.pid, signal.SIGTERM)
    _, text = job.communicate()
    assert job.returncode != 0 and "go on with --resume auto" in text
    stopped = load_last(tmp_path / "runs/run")["step"]
    assert 0 < stopped < 40
    done = subprocess.run(argv, cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0 and f"after step {stopped}" in done.stderr
    assert pd.read_csv(log)["step"].tolist() == list(range(1, 41))


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("parts", ["1", "3"])
def test_compiled_towers_train_as_the_others_do(tmp_path, parts):
    """Also with `--grad_accum`, validation and resuming; the checkpoints have the same names."""
    write_corpus(tmp_path, train=40)
    for name, steps, more in (("plain", 12, []), ("compiled", 6, ["--compile"]), ("compiled", 12, ["--compile"])):
        argv = flags(
            tmp_path,
            name,
            "--max_steps",
            str(steps),
            "--log_interval",
            "1",
            "--val_interval",
            "6",
            "--grad_accum",
            parts,
            "--resume",
            "auto",
            *more,
        )
        done = subprocess.run(
            [sys.executable, "run_train.py", *argv], cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    runs = [tmp_path / "runs" / name for name in ("plain", "compiled")]
    plain, compiled = (pd.read_csv(run / "train_log.csv")["loss"] for run in runs)
    np.testing.assert_allclose(compiled, plain, rtol=2e-4)
    one, other = (pd.read_csv(run / "metrics.csv")["mean_13"] for run in runs)
    np.testing.assert_allclose(one, other, atol=0.01)
    for name in ("checkpoint_12.pt", "checkpoint.pt"):
        ours, theirs = (torch.load(run / name, weights_only=True) for run in runs)
        assert ours.keys() == theirs.keys()
        assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) < 1e-5


def test_the_benchmark_runs(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.train",
            "--vision",
            "dinov3_tiny",
            "--batch_size",
            "8",
            "--steps",
            "2",
            "--images",
            "16",
            "--out",
            str(tmp_path),
        ],
        cwd=ROOT,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(next(tmp_path.glob("train_*.json")).read_text())["results"][0]
    assert result["pairs_per_second"] > 0 and 0 < result["share_of_product"] < 2 and result["upstreams_loop"] > 0
