"""A run's folder while it is written: whether it may be used, and its checkpoints."""

import argparse
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from chexzero.errors import UserError
from chexzero.files import safe_name
from chexzero.resume import DAMAGED, LAST, PREVIOUS

#: What a run writes. `--overwrite` removes these and nothing else.
WRITTEN = ("checkpoint.pt", "checkpoint_*.pt", LAST, PREVIOUS, DAMAGED, "metrics.csv", "train_log.csv",
           "config.json", "selection.json", "failed_batch.csv", ".*.tmp", ".*.new", "tensorboard", "wandb")
#: What a run that was killed before its first `last.pt` may have left.
BEGUN = ("checkpoint_0.pt", "metrics.csv", "train_log.csv", "config.json", "selection.json", "tensorboard",
         "wandb")


def run_folder(config: argparse.Namespace) -> Path:
    """`<save_dir>/<model_name>`."""
    return Path(config.save_dir) / safe_name(str(config.model_name), "--model_name")


def open_folder(config: argparse.Namespace) -> Path:
    """Make the run's folder ready: new, resumed (`--resume`) or begun again (`--overwrite`).

    Raises `UserError` where another run's files would be overwritten without being told to, or nothing can be
    written.
    """
    folder = run_folder(config)
    found = _written(folder)
    resumable = config.resume and any(path.name in (LAST, PREVIOUS) for path in found)
    only_begun = config.resume and all(any(path.match(name) for name in (*BEGUN, ".*")) for path in found)
    if found and not (resumable or config.overwrite or only_begun):
        raise UserError(f"{folder} already holds a run ({', '.join(sorted(path.name for path in found)[:3])}, ...); "
                        "go on with it with --resume auto, choose another --model_name, or begin again with "
                        f"--overwrite")
    for path in found:
        if path.name.startswith(".") or not resumable:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe.tmp"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder with "
                        f"--save_dir") from error
    return folder


def checkpoint_name(step: int) -> str:
    return f"checkpoint_{step}.pt"


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a run's folder, in order."""
    names = (re.fullmatch(r"checkpoint_(\d+)\.pt", path.name) for path in folder.glob("checkpoint_*.pt"))
    return sorted(int(match.group(1)) for match in names if match)


def remove_checkpoints(folder: Path, keep: Collection[int]) -> None:
    """Remove the step checkpoints that are not in `keep`."""
    for step in checkpoint_steps(folder):
        if step not in keep:
            (folder / checkpoint_name(step)).unlink()


def _written(folder: Path) -> list[Path]:
    return [path for pattern in WRITTEN for path in folder.glob(pattern)]
