"""The last step of a build at full size: the overlap audit and the writing of the sets, without preparing images.

    python -m benchmarks.finish --train 50000

Creates the files that `python -m data_prep build --shard` leaves, with repeated pictures (their blocks are hard links,
so the prepared images take no space) and different reports, then runs `python -m data_prep finish` on them. The sets
are written to disk: 0.1 MB per image.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.audit import pictures
from benchmarks.preprocess import machine
from chexzero.common.errors import run_command
from chexzero.common.files import write_text
from chexzero.data_process import RESOLUTION
from data_prep.releases.rows import Row, write_rows
from data_prep.steps import blocks
from data_prep.steps.failures import LEFT_OUT_COLUMNS
from data_prep.steps.work import Plan, Work, cpu_count, positive

EVALUATION = {"valid": 234, "test": 500}
SEEDS = {"train": 1, "valid": 2, "test": 3}
REPEATED = 8 * blocks.SIZE  # different training pictures
WORDS = 55  # of a report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=positive, default=50_000, metavar="N", help="images (default: %(default)s)")
    parser.add_argument("--workers", type=positive, default=cpu_count(), help="threads of the audit")
    parser.add_argument("--folder", type=Path, help="where there is room for N × 0.1 MB (default: the system's)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finish-", dir=args.folder) as folder:
        out = Path(folder) / "data"
        make(Work(out), args.train)
        start = time.perf_counter()
        code = (
            "import sys; from data_prep.__main__ import main; from benchmarks.memory import peak; main(); print(peak())"
        )
        command = [sys.executable, "-c", code, "finish", "--out", str(out), "--workers", str(args.workers)]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - start
    peak = float(run.stdout.split()[-1])
    print(
        f"{machine()}: {args.train:,} training images finished in {seconds:.0f} s, peak {peak:.0f} MiB, "
        f"{args.workers} threads"
    )


def make(work: Work, n_train: int) -> None:
    """Create a work folder in which every image is prepared."""
    rows = {"train": n_train, **EVALUATION}
    work.folder.mkdir(parents=True)
    work.lock_path.touch()
    for role, n in rows.items():
        work.blocks(role).mkdir(parents=True)
        images = pictures(min(n, REPEATED), seed=SEEDS[role])
        for index in range(blocks.count(n)):
            path, first = blocks.block_path(work.blocks(role), index), index * blocks.SIZE % REPEATED
            same, size = blocks.block_path(work.blocks(role), first // blocks.SIZE), blocks.length(index, n)
            if same != path and size == blocks.SIZE:
                os.link(same, path)
            else:
                write_block(path, images[first : first + size])
        write_rows(work.rows_path(role), make_rows(role, n))
    write_text(work.left_out_path, ",".join(LEFT_OUT_COLUMNS) + "\n")
    settings = {"section": "impression", "empty_report": "space", "depth16": "stretch"}
    identity = {"roles": {}, "settings": settings, "inputs": {}, "images": {}, "libraries": {}}
    finishing = {
        "max_failures": 0.001,
        "on_overlap": "keep",
        "audit_copies": 450,
        "audit_unrelated": 1000,
        "splits": str(work.out.parent / "splits"),
    }
    work.write_plan(Plan(identity, rows, {"in_tables": {}, "empty_reports": {}}, True, finishing))


def write_block(path: Path, images: np.ndarray) -> None:
    block = blocks.Block.empty(len(images), RESOLUTION)
    block.images[:], block.bits[:], block.errors[:] = images, 8, ""
    block.pixel_sha256[:] = [list(hashlib.sha256(image).digest()) for image in images]
    block.file_sha256[:] = block.pixel_sha256
    with open(path, "wb") as handle:
        np.savez(handle, **vars(block))


def make_rows(role: str, n: int) -> Iterator[Row]:
    """Training: two images per study, four per patient, a different report per study. Else one image per patient."""
    words, random = np.array([f"word{k}" for k in range(5000)]), np.random.default_rng(SEEDS[role])
    source, share = ("chexpert", 1) if role == "test" else ("chexpert_plus", 4 if role == "train" else 1)
    first, report = {"train": 0, "valid": 200_000, "test": 300_000}[role], ""
    for i in range(n):
        patient = f"patient{first + i // share:06d}"
        study = f"{source}/{role}/{patient}/study{i % share // 2 + 1}"
        if role != "test" and i % 2 == 0:
            report = " ".join(random.choice(words, WORDS))
        path = f"{study}/view{i % 2 + 1}_frontal"
        yield Row(
            id=path,
            source=source,
            split=role,
            patient_id=patient,
            patient_id_column=patient,
            study_id=study,
            view="frontal",
            path=f"{path.split('/', 1)[1]}.png",
            root="/",
            report=report,
            labels="" if role == "train" else "01" * 7,
        )


if __name__ == "__main__":
    run_command(main)
