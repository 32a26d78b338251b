"""The commands under test: how each runs on tiny data, and how two of its results are compared."""

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from evaluation_run import write_run
from training_corpus import TINY, ranks, shrink, write_corpus

from chexzero.common.errors import run_command
from chexzero.common.folders import CONTENTS, is_unfinished
from chexzero.common.versions import git_revision
from chexzero.training.logs import SPEED_COLUMNS
from tests.campaign.faults import Fault, Injector

#: Modules imported once, in the process from which all others are forked.
IMPORTED = [
    "run_train",
    "run_zero_shot",
    "chexzero.export.__main__",
    "data_prep.build",
    "data_prep.demo.corpus",
    "data_prep.overlap.audit",
    "matplotlib.pyplot",
    "safetensors.torch",
    "torch.distributed.nn",
    "torch.utils.tensorboard",
]
CLOCKED = ["seconds", *SPEED_COLUMNS]
STEPS = [
    "--max_steps",
    "14",
    "--val_interval",
    "5",
    "--save_last_interval",
    "3",
    "--log_interval",
    "2",
    "--save_interval",
    "0",
    "--lr",
    "1e-3",
    "--batch_size",
    "8",
    "--drop_path",
    "0.2",
    "--one_per_study",
    "--keep_top_k",
    "1",
    "--resume",
    "auto",
]
DEMO_SIZES = ["--train", "4", "--valid", "2", "--test", "2", "--workers", "1"]
BUILD_SIZES = ["--train", "12", "--valid", "14", "--test", "14", "--workers", "1"]


@dataclass(frozen=True)
class Job:
    """`arguments(inputs, folder)` for `module`'s main; `result(folder)` returns equal values for equal results.

    begin: makes a new `folder`. check: whether the files left by a disturbance are sound. needs: the keys of `INPUTS`
    and `ONCE` that it reads. processes: number of ranks of a training.
    """

    module: str
    arguments: Callable[[Path, Path], list[str]]
    result: Callable[[Path], object]
    begin: Callable[[Path, Path], object] = lambda inputs, folder: folder.mkdir()
    check: Callable[[Path, Path], bool] = lambda inputs, folder: True
    needs: tuple[str, ...] = ()
    processes: int = 1


def train_arguments(inputs: Path, folder: Path) -> list[str]:
    data = ["--cxr_filepath", str(inputs / "corpus/data/cxr.h5"), "--save_dir", str(folder), "--model_name", "run"]
    return [*data, *TINY, *STEPS]


def trained(folder: Path) -> object:
    """Return hashes of the weights, the logs without measured times, and the selection."""
    run = folder / "run"
    tables = {
        name: pd.read_csv(run / name, dtype=str).drop(columns=CLOCKED, errors="ignore").to_csv()
        for name in ("metrics.csv", "train_log.csv")
    }
    weights = {
        path.name: {
            key: hashlib.sha256(value.numpy().tobytes()).hexdigest()
            for key, value in torch.load(path, weights_only=True).items()
        }
        for path in run.glob("checkpoint*.pt")
    }
    return tables, weights, (run / "selection.json").read_text()


def tree(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file that is not hidden, with the folder's own path in it replaced by `.`."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(
            path.read_bytes().replace(str(folder).encode(), b".")
        ).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def evaluate_arguments(inputs: Path, folder: Path, level: str = "study_mean") -> list[str]:
    places = ["--run", str(inputs / "evaluated/checkpoints/small"), "--data", str(inputs / "evaluated/data")]
    return [*places, "--out", str(folder), "--n_bootstrap", "10", "--level", level]


def begin_evaluation(inputs: Path, folder: Path) -> None:
    """Start from the results of an evaluation at another level."""
    shutil.copytree(inputs / "image_level", folder)


def evaluated(folder: Path) -> dict[str, str]:
    """Return hashes of the evaluation's files and the names of other files; the ledger is left out."""
    names = json.loads((folder / "small" / CONTENTS).read_text())
    files = tree(folder / "small")
    settings = ("report.", "tables/provenance")  # these files name the folder
    metrics = json.loads((folder / "small" / "metrics.json").read_text())
    metrics["provenance"] = {**metrics["provenance"], "command": "", "settings": ""}
    files["metrics.json"] = json.dumps(metrics)
    return {name: files.get(name, "missing") for name in names if not name.startswith(settings)} | {
        "rest": str(sorted(files.keys() - set(names) - {"test_reads.json"}))
    }


def is_one_evaluation(inputs: Path, folder: Path) -> bool:
    """Whether the results are those of one of the two levels, or marked as unfinished."""
    if is_unfinished(folder / "small"):
        return True
    level = json.loads((folder / "small/metrics.json").read_text())["level"]
    reference = inputs / ("image_level" if level == "image" else "reference/evaluate")
    return not reference.exists() or evaluated(folder) == evaluated(reference)


def begin_build(inputs: Path, folder: Path) -> None:
    """Write the key of the audit's report in advance; otherwise each build would draw a different one."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "overlap_report.key").write_text("00" * 32)


def build_arguments(inputs: Path, folder: Path) -> list[str]:
    places = [
        "--data_root",
        str(inputs / "releases"),
        "--out",
        str(folder / "data"),
        "--splits",
        str(folder / "splits"),
    ]
    return ["build", *places, "--audit_copies", "2", "--audit_unrelated", "4", "--workers", "1"]


def export_arguments(inputs: Path, folder: Path) -> list[str]:
    places = ["--run", str(inputs / "evaluated/checkpoints/small"), "--results", str(inputs / "image_level/small")]
    return [*places, "--to", "open_clip", str(folder / "export")]


def is_whole_export(inputs: Path, folder: Path) -> bool:
    """Whether there is no export or a complete one. Deletes it, so that the next run can write."""
    export, reference = folder / "export", inputs / "reference/export"
    whole = not export.exists() or not reference.exists() or tree(folder) == tree(reference)
    shutil.rmtree(export, ignore_errors=True)
    return whole


JOBS = {
    "train": Job("run_train", lambda *of: [*train_arguments(*of), "--tensorboard"], trained, needs=("corpus",)),
    "train, 2 ranks": Job("run_train", train_arguments, trained, needs=("corpus",), processes=2),
    "build": Job("data_prep.__main__", build_arguments, tree, begin_build, needs=("releases",)),
    "evaluate": Job(
        "run_zero_shot",
        evaluate_arguments,
        evaluated,
        begin_evaluation,
        is_one_evaluation,
        ("evaluated", "image_level"),
    ),
    "export": Job(
        "chexzero.export.__main__", export_arguments, tree, check=is_whole_export, needs=("evaluated", "image_level")
    ),
    "demo": Job("data_prep.__main__", lambda inputs, folder: ["demo", "--out", str(folder), *DEMO_SIZES], tree),
}


def run(
    job: Job,
    inputs: Path,
    folder: Path,
    fault: Fault | None = None,
    after: float | None = None,
    limits: dict | None = None,
) -> tuple[int, str, int]:
    """Run a job; kill it `after` this many seconds if given.

    Returns the exit code of the first process, its output, and the number of file operations counted.
    """
    said, counted = folder.with_suffix(".said"), folder.with_suffix(".counted")
    for path in (said, counted):
        path.unlink(missing_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    places = ranks(job.processes) if job.processes > 1 else [{}]
    arguments = job.arguments(inputs, folder)
    processes = [
        context.Process(
            target=_child, args=(job.module, arguments, environment, folder, fault if rank == 0 else None, limits or {})
        )
        for rank, environment in enumerate(places)
    ]
    for one in processes:
        one.start()
    processes[0].join(after)
    if processes[0].exitcode is None:  # `after` seconds have passed
        for one in processes:
            one.kill()
        processes[0].join()
    for one in processes[1:]:  # torchrun ends the other ranks when one has ended
        one.join(5 if processes[0].exitcode == 0 else 0)
        one.kill()
        one.join()
    count = int(counted.read_text() or 0) if counted.exists() else 0  # empty if the process was killed while writing it
    return processes[0].exitcode, said.read_text(errors="replace") if said.exists() else "", count


def _child(
    module: str, arguments: list[str], environment: dict[str, str], folder: Path, fault: Fault | None, limits: dict
) -> None:
    import importlib

    os.environ.update(environment)
    if environment.get("RANK", "0") == "0":
        said = os.open(folder.with_suffix(".said"), os.O_WRONLY | os.O_CREAT)
    else:
        said = os.open(os.devnull, os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    torch.set_num_threads(1)
    shrink(dict.__setitem__)
    sys.argv = [module, *arguments]
    main = importlib.import_module(module).main
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    injector = Injector(folder, fault)
    injector.install()
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, resource.getrlimit(getattr(resource, name))[1]))
    try:
        run_command(main)
    finally:
        for name in limits:  # the campaign's own file is not under test
            hard = resource.getrlimit(getattr(resource, name))[1]
            resource.setrlimit(getattr(resource, name), (hard, hard))
        os.write(os.open(folder.with_suffix(".counted"), os.O_WRONLY | os.O_CREAT), str(injector.count).encode())


def prepare(inputs: Path, name: str) -> None:
    """Make the data, the models and the undisturbed result that a job's trials share, once.

    Results record the code's revision, so a campaign only continues with the revision it began with.
    """
    begun_with, now = inputs / "revision.txt", str(git_revision())
    if not begun_with.exists():
        inputs.mkdir(parents=True, exist_ok=True)
        begun_with.write_text(now)
    if begun_with.read_text() != now:
        raise SystemExit(f"{inputs} was made by revision {begun_with.read_text()}, this is {now}; name another --out")
    for need in (*JOBS[name].needs, f"reference/{name}"):
        target = inputs / need
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = inputs / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        if need in INPUTS:
            INPUTS[need](inputs, unfinished)
        else:
            job = JOBS[name] if need.startswith("reference/") else ONCE[need]
            job.begin(inputs, unfinished)
            begun = time.perf_counter()
            code, said, count = run(job, inputs, unfinished)
            if code:
                raise SystemExit(f"{job.module} fails without a disturbance, with exit code {code}:\n{said}")
            about = {"operations": count, "seconds": time.perf_counter() - begun}
            target.with_name(f"{target.name}.json").write_text(json.dumps(about))
        unfinished.rename(target)


#: What the jobs read, made by a function (`INPUTS`) or by a job that runs once (`ONCE`).
INPUTS: dict[str, Callable[[Path, Path], object]] = {
    "corpus": lambda inputs, folder: write_corpus(folder, train=50),
    "evaluated": lambda inputs, folder: (folder.mkdir(), write_run(folder)),
}
ONCE = {
    "releases": Job("data_prep.__main__", lambda _, folder: ["demo", "--out", str(folder), *BUILD_SIZES], tree),
    "image_level": Job("run_zero_shot", lambda *of: evaluate_arguments(*of, level="image"), evaluated),
}
