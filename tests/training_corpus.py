"""A small training set with visible findings that the reports name, and a model small enough for it."""

import csv
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import torch

from chexzero.common.labels import LABELS

#: Flags for the smallest model; `shrink` makes it smaller still.
TINY = ["--vision", "dinov3_tiny", "--text_encoder", "tiny", "--image_resolution", "32", "--no-tensorboard"]
PATIENTS_IMAGES = 3


def write_corpus(
    root: Path, train: int, valid: int = 24, seed: int = 0, share: float = 0.3, valid_share: float = 0.4
) -> Path:
    """Write `root/data` as `data_prep build` would; each label is a bright square at its own place."""
    data = root / "data"
    data.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    labels = (rng.random((train, 14)) < share).astype(int)
    ids = [
        f"chexpert_plus/train/patient{i // PATIENTS_IMAGES:05d}/study1/view{i % PATIENTS_IMAGES + 1}_frontal"
        for i in range(train)
    ]
    _write_images(data / "cxr.h5", labels, ids, rng)
    with open(data / "impressions.csv", "w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["filename", "impression", "id", "source", "split", "patient_id", "study_id", "view"])
        for name, row in zip(ids, labels, strict=True):
            text = ". ".join(label for label, present in zip(LABELS, row, strict=True) if present)
            rows.writerow(
                [
                    f"{name}.jpg",
                    text,
                    name,
                    "chexpert_plus",
                    "train",
                    name.split("/")[2],
                    name.rpartition("/")[0],
                    "frontal",
                ]
            )
    labels = (rng.random((valid, 14)) < valid_share).astype(int)
    labels[0], labels[1] = 0, 1
    write_validation(data, labels, rng)
    return root


def write_validation(data: Path, labels: np.ndarray, rng: np.random.Generator) -> None:
    """Write `valid.h5` and `valid_labels.csv` with these labels (N, 14)."""
    ids = [f"chexpert/valid/patient{90000 + i}/study1/view1_frontal" for i in range(len(labels))]
    _write_images(data / "valid.h5", labels, ids, rng)
    with open(data / "valid_labels.csv", "w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["id", "patient_id", "study_id", "view", *LABELS])
        for name, row in zip(ids, labels, strict=True):
            rows.writerow([name, name.split("/")[2], name.rpartition("/")[0], "frontal", *row])


def _write_images(path: Path, labels: np.ndarray, ids: list[str], rng: np.random.Generator) -> None:
    with h5py.File(path, "w") as handle:
        images = handle.create_dataset("cxr", (len(ids), 320, 320), np.uint8, chunks=(1, 320, 320))
        handle["id"] = ids
        for i, row in enumerate(labels):
            image = np.kron(rng.integers(0, 80, (40, 40)), np.ones((8, 8))).astype(np.uint8)
            for j in np.flatnonzero(row):
                top, left = 80 * (j // 4), 80 * (j % 4)
                image[top + 8 : top + 72, left + 8 : left + 72] += 120
            images[i] = image


def flags(root: Path, name: str, *more: str) -> list[str]:
    """Arguments for a run of the tiny model on a corpus, in the folder `root/runs/<name>`."""
    return [
        "--cxr_filepath",
        str(root / "data/cxr.h5"),
        "--save_dir",
        str(root / "runs"),
        "--model_name",
        name,
        *TINY,
        *more,
    ]


def forked(target: Callable[..., None], *args: object) -> multiprocessing.Process:
    """A process that is forked from this one, which has imported everything already."""
    return multiprocessing.get_context("fork").Process(target=_on_one_thread, args=(target, *args))


def _on_one_thread(target: Callable[..., None], *args: object) -> None:
    torch.set_num_threads(1)  # the threads of the process that was forked are not there
    target(*args)


def process(argv: list[str], environment: dict[str, str] | None = None) -> multiprocessing.Process:
    """`python run_train.py <argv>` as a forked process."""
    return forked(_run_train, argv, environment or {})


def _run_train(argv: list[str], environment: dict[str, str]) -> None:
    import run_train
    from chexzero.common.errors import run_command

    os.setpgrp()  # a separate process group, as under torchrun and SLURM
    os.environ.update(environment)
    shrink(dict.__setitem__)
    sys.argv = ["run_train.py", *argv]
    run_command(run_train.main)


def shrink(set_item: Callable[[dict, str, object], None]) -> None:
    """Use one vision block and a narrow text encoder: 0.8 instead of 3.7 million weights per save."""
    import dinov3_adapter
    from chexzero.models import towers

    tiny = dinov3_adapter.SIZES["dinov3_tiny"]
    set_item(dinov3_adapter.SIZES, "dinov3_tiny", replace(tiny, overrides={**tiny.overrides, "depth": 1}))
    set_item(towers.TEXT_SIZES, "tiny", replace(towers.TEXT_SIZES["tiny"], width=16, heads=1, layers=1))


def ranks(count: int) -> list[dict[str, str]]:
    """The environment of each rank, as set by torchrun on one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def run_to_end(processes: list[multiprocessing.Process]) -> list[int]:
    """Start the processes, wait and return the exit codes; if pytest-timeout ends the test, they are ended too."""
    for one in processes:
        one.start()
    try:
        for one in processes:
            one.join()
    finally:
        for one in processes:
            one.kill()
    return [one.exitcode for one in processes]
