"""Time CheXzero's own code and this one at the same jobs.

    python -m benchmarks.upstream CHEXZERO_CHECKOUT --out benchmarks/results/upstream.json

Each implementation runs in its own process, the two alternating job by job, on the same files: the functions that
both have, called with the same arguments. Weights are random, ViT-B/32 at full size; speed does not depend on
them. CheXzero runs with today's libraries, patched where it needs that (`tests.parity` says how).
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np

from benchmarks.preprocess import machine, write_files
from chexzero.common.errors import UserError, run_command
from chexzero.common.files import write_json
from chexzero.common.labels import LABELS
from data_prep.steps.work import positive
from tests.parity.child import import_side

PICTURES, TEXTS, IMAGES, BATCH, CASES, RESAMPLES = 24, 64, 8, 16, 500, 1000
VIT_B_32 = (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12)


def img_to_hdf5(code: SimpleNamespace, folder: Path) -> Callable:
    paths = sorted(str(path) for path in (folder / "pictures").glob("0*"))
    return lambda: code.data_process.img_to_hdf5(paths, str(folder / f"{code.side}.h5"))


def preprocess_text(code: SimpleNamespace, folder: Path) -> Callable:
    texts, model = json.loads((folder / "texts.json").read_text()), SimpleNamespace(context_length=77)
    return lambda: [code.train.preprocess_text(texts[i : i + BATCH], model) for i in range(0, TEXTS, BATCH)]


def run_softmax_eval(code: SimpleNamespace, folder: Path) -> Callable:
    model = code.model.CLIP(*VIT_B_32).eval()
    code.zero_shot.load_clip = lambda *_, **__: model
    model, loader = code.zero_shot.make(model_path="random.pt", cxr_filepath=str(folder / "cxr.h5"))
    return lambda: code.zero_shot.run_softmax_eval(model, loader, LABELS, ("{}", "no {}"))


def train_batch(code: SimpleNamespace, folder: Path) -> Callable:
    import torch

    model = code.model.CLIP(*VIT_B_32).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    images, texts = torch.zeros(BATCH, 3, 224, 224), json.loads((folder / "texts.json").read_text())[:BATCH]

    def step() -> None:
        tokens = code.train.preprocess_text(texts, model)
        code.run_train.train_batch(images, tokens, model, torch.device("cpu"), torch.nn.CrossEntropyLoss(), optimizer)

    step()  # the first step also makes the optimiser's state
    return step


def bootstrap(code: SimpleNamespace, folder: Path) -> Callable:
    random = np.random.default_rng(0)
    truth = random.random((CASES, len(LABELS))) < 0.2
    scores = truth + random.normal(0, 1, truth.shape)
    return lambda: code.eval.bootstrap(scores, truth.astype(int), LABELS, n_samples=RESAMPLES)


#: Name of the job -> (the function that prepares and returns it, the unit, units per job)
JOBS = {
    "img_to_hdf5": (img_to_hdf5, "images of 2,000 to 2,900 pixels", PICTURES),
    "preprocess_text": (preprocess_text, "reports", TEXTS),
    "run_softmax_eval": (run_softmax_eval, "images, 14 labels, ViT-B/32", IMAGES),
    "train_batch": (train_batch, f"steps of {BATCH} pairs, ViT-B/32", 1),
    "bootstrap": (bootstrap, f"bootstraps of {RESAMPLES:,} × {CASES} × {len(LABELS)}", 1),
}


def child(args: argparse.Namespace) -> None:
    """Time one job of one implementation; print wall and processor seconds."""
    import torch

    torch.manual_seed(0)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        job = JOBS[args.job][0](import_side(args.side, args.checkout), args.folder)
        wall, processor = time.perf_counter(), time.process_time()
        job()
        times = {"seconds": time.perf_counter() - wall, "processor": time.process_time() - processor}
    print(json.dumps(times))


def write_inputs(folder: Path) -> None:
    write_files(folder / "pictures", None, PICTURES)
    random = np.random.default_rng(0)
    words = ["no", "acute", "process", "left", "right", "pleural", "effusion", "edema", "stable", "cardiomegaly"]
    (folder / "texts.json").write_text(json.dumps([" ".join(random.choice(words, 30)) for _ in range(TEXTS)]))
    with h5py.File(folder / "cxr.h5", "w") as file:
        file["cxr"] = random.integers(0, 256, (IMAGES, 320, 320)).astype(np.float32)


def measure(side: str, job: str, checkout: Path, folder: Path) -> dict[str, float]:
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.upstream",
            str(checkout),
            "--side",
            side,
            "--job",
            job,
            "--folder",
            str(folder),
        ],
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise UserError(
            f"{job} of {side} did not run ({run.stderr.strip().splitlines()[-1:]}); see that {checkout} "
            f"is a CheXzero checkout"
        )
    return json.loads(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="folder of a CheXzero checkout")
    parser.add_argument("--rounds", type=positive, default=3, help="turns of both, of which the medians count")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    for name in ("--side", "--job"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.checkout = str(args.checkout.resolve())
    if args.side:
        return child(args)
    results = {}
    print(f"{machine()}; medians of {args.rounds} rounds\n{'':20}{'CheXzero':>12}{'here':>12}{'times':>8}{'CPU':>8}")
    with tempfile.TemporaryDirectory(prefix="upstream-") as folder:
        write_inputs(Path(folder))
        for job, (_, unit, count) in JOBS.items():
            rounds = [
                {side: measure(side, job, args.checkout, Path(folder)) for side in ("upstream", "ours")}
                for _ in range(args.rounds)
            ]
            result = {
                f"{side}_{kind}": statistics.median(one[side][kind] for one in rounds)
                for side in ("upstream", "ours")
                for kind in ("seconds", "processor")
            }
            result |= {
                "unit": unit,
                "count": count,
                "ratio": result["upstream_seconds"] / result["ours_seconds"],
                "processor_ratio": result["upstream_processor"] / result["ours_processor"],
            }
            results[job] = result
            per_second = (count / result[f"{side}_seconds"] for side in ("upstream", "ours"))
            print(
                f"{job:20}{next(per_second):10.2f}/s{next(per_second):10.2f}/s{result['ratio']:8.1f}"
                f"{result['processor_ratio']:8.1f}  {unit}",
                flush=True,
            )
    if args.out:
        write_json(args.out, {"machine": machine(), "rounds": args.rounds, "jobs": results})


if __name__ == "__main__":
    run_command(main)
