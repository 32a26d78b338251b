"""A run's folder: opening it for writing, reading it, and finding its selected and best checkpoints."""

import math
import os
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from chexzero.common.errors import UserError
from chexzero.common.files import inside, read_json, read_table, safe_name
from chexzero.common.resample import RESOLUTION

REMEDY = "name the folder of a run of run_train.py with --run, or checkpoints with --checkpoint"

LAST, PREVIOUS, DAMAGED = "last.pt", "last.previous.pt", "last.damaged.pt"
#: Subfolder for a run's averaged weights (`--ema`); every command that reads a run accepts it as one.
AVERAGE = "ema"
#: The files that a run writes. `--overwrite` removes these and nothing else.
WRITTEN = (
    "checkpoint.pt",
    "checkpoint_*.pt",
    LAST,
    PREVIOUS,
    DAMAGED,
    "metrics.csv",
    "train_log.csv",
    "config.json",
    "selection.json",
    "failed_batch.csv",
    "stopped.json",
    "validation_predictions",
    AVERAGE,
    ".*.tmp",
    ".*.new",
    "tensorboard",
    "wandb",
)
#: The files that a run killed before its first `last.pt` may have left.
BEGUN = (
    "checkpoint_0.pt",
    "metrics.csv",
    "train_log.csv",
    "config.json",
    "selection.json",
    "validation_predictions",
    AVERAGE,
    "tensorboard",
    "wandb",
)


@dataclass
class RunFolder:
    """The records that `run_train.py` wrote. Missing tables are empty, a missing `selection` or `config` is {}."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    selection: dict[str, Any] = field(default_factory=dict)
    metrics: pd.DataFrame = field(default_factory=pd.DataFrame)
    train_log: pd.DataFrame = field(default_factory=pd.DataFrame)
    checkpoint_sha256: dict[str, str] = field(default_factory=dict)  # by file name, as the run recorded it

    @property
    def settings(self) -> dict[str, Any]:
        found = self.config.get("settings")
        return found if isinstance(found, dict) else {}

    @property
    def drawn(self) -> bool:
        """Whether the run recorded that its data were drawn."""
        data = self.config.get("data")
        return isinstance(data, dict) and bool(data.get("drawn"))

    def image_size(self) -> int:
        """The side in pixels of the stored training images, to which others are resized; 320 if not recorded."""
        data = self.config.get("data")
        sides = data.get("image_size") if isinstance(data, dict) else None
        side = sides.get(self.settings.get("cxr_filepath")) if isinstance(sides, dict) else None
        return side if isinstance(side, int) and 0 < side <= 4096 else RESOLUTION

    def data_dir(self) -> Path | None:
        """The folder whose validation set the run used, if its record names one that exists."""
        for name in ("valid", "cxr_filepath"):
            if isinstance(self.settings.get(name), str):
                folder = Path(self.settings[name]).parent
                if (folder / "valid.h5").is_file():
                    return folder
        return None

    def checkpoint_of(self, step: int) -> Path:
        """The checkpoint of a validated step."""
        return _existing(inside(self.path, f"checkpoint_{step}.pt"))

    def selected(self) -> Path:
        """The checkpoint that `selection.json` names; it must lie in the run's folder."""
        name = self.selection.get("checkpoint")
        if not isinstance(name, str):
            raise UserError(
                f"{self.path} has no selected checkpoint (no selection.json: was the run validated?); "
                f"name one with --checkpoint"
            )
        return _existing(inside(self.path, Path(name).name))

    @property
    def ranking_metric(self) -> str:
        """The column of `metrics.csv` that checkpoints are ranked by."""
        return self.selection.get("metric") or "mean_5"

    def best_steps(self, count: int) -> list[int]:
        """The `count` saved steps that are best by the selection's metric; ties go to the earlier."""
        return [step for _, step in best_checkpoints([self], count)]

    def ranking(self) -> list[tuple[float, int]]:
        """The saved steps with the selection's metric, `(value, step)`, in the order of the steps."""
        metric = self.ranking_metric
        if metric not in self.metrics:
            raise UserError(
                f"{self.path}/metrics.csv has no column {metric}, so its checkpoints cannot be ranked; "
                f"name them with --checkpoint"
            )
        table = self.metrics.dropna(subset=[metric])
        pairs = zip(table[metric].astype(float), table["step"].astype(int), strict=True)
        return [(value, step) for value, step in pairs if (self.path / f"checkpoint_{step}.pt").is_file()]

    def validated_on(self) -> dict[str, str]:
        """SHA-256 of the validation set's files, by the setting that names them, as far as recorded."""
        found = {name: self.recorded_sha256(name) for name in ("valid", "valid_labels")}
        return {name: sha256 for name, sha256 in found.items() if sha256}

    def recorded_sha256(self, setting: str) -> str | None:
        """SHA-256 of the data file that a setting names, as it was when the run began; None if not recorded."""
        data = self.config.get("data")
        files = data.get("files") if isinstance(data, dict) else None
        entry = files.get(self.settings.get(setting)) if isinstance(files, dict) else None
        sha256 = entry.get("sha256") if isinstance(entry, dict) else None
        return sha256 if isinstance(sha256, str) else None

    def recorded(self, step: int | None) -> dict[str, float]:
        """The validation row of a step: column -> value; {} if there is none."""
        if step is None or self.metrics.empty:
            return {}
        rows = self.metrics[self.metrics["step"] == step]
        return {} if rows.empty else {str(name): float(value) for name, value in rows.iloc[-1].items()}


def read_run(path: str | Path) -> RunFolder:
    """Read a run's folder. Raises `UserError` if it is not one, or if a file in it is damaged."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; {REMEDY}")
    run = RunFolder(
        path,
        _object(path / "config.json"),
        _object(path / "selection.json"),
        _numbers(path / "metrics.csv", "step"),
        _numbers(path / "train_log.csv", "step"),
        _checkpoint_hashes(path / "metrics.csv"),
    )
    if not run.config and not run.selection and not list(path.glob("*.pt")):
        raise UserError(f"{path} holds no training run (no config.json, no selection.json, no checkpoint); {REMEDY}")
    return run


def best_checkpoints(runs: Sequence[RunFolder], count: int) -> list[tuple[RunFolder, int]]:
    """The `count` best checkpoints of some runs, each as its run and step: best first, ties with the earlier first.

    Raises `UserError` if there are fewer, or if the validations of the runs cannot be compared.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.ranking_metric != first.ranking_metric:
            raise UserError(
                f"{first.path} was selected by {first.ranking_metric} and {run.path} by {run.ranking_metric}, so their "
                f"checkpoints cannot be ranked together; leave one out"
            )
        here, there = first.validated_on(), run.validated_on()
        if any(here[name] != there[name] for name in here.keys() & there.keys()):
            raise UserError(f"{run.path} was not validated on the same data as {first.path}; leave one of them out")
    sign = 1 if first.ranking_metric == "val_loss" else -1
    ranked = sorted((sign * value, step, place) for place, run in enumerate(runs) for value, step in run.ranking())
    if len(ranked) < count:
        raise UserError(
            f"{', '.join(str(run.path) for run in runs)} {'has' if len(runs) == 1 else 'have'} {len(ranked)} validated "
            f"checkpoints, fewer than the {count} wanted; ask for fewer with --ensemble"
        )
    return [(runs[place], step) for _, step, place in ranked[:count]]


def step_of(checkpoint: Path) -> int | None:
    """The step in names like `checkpoint_1200.pt` or `best_64_0.0001_original_17000_0.863.pt`, else None."""
    match = re.search(r"(?:checkpoint|original)_(\d+)(?:_|$)", checkpoint.stem)
    return int(match.group(1)) if match else None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path} does not exist; put it back, or name a checkpoint with --checkpoint")
    return path


def _object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = read_json(path, REMEDY)
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object; {REMEDY}")
    return value


def _numbers(path: Path, key: str) -> pd.DataFrame:
    """Read a CSV of numbers; empty and non-numeric cells are NaN. Rows without the key are dropped."""
    if not path.exists():
        return pd.DataFrame(columns=[key])
    table = read_table(path, [key], remedy=REMEDY).apply(pd.to_numeric, errors="coerce")
    table = table.dropna(subset=[key]).drop_duplicates(key, keep="last").sort_values(key).reset_index(drop=True)
    return table.assign(**{key: table[key].astype(int)})


def _checkpoint_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of the checkpoints by file name; runs of older versions recorded none."""
    table = read_table(path, ["step"], remedy=REMEDY) if path.exists() else pd.DataFrame()
    if "checkpoint_sha256" not in table:
        return {}
    known = table.dropna(subset=["step", "checkpoint_sha256"])
    return {
        checkpoint_name(int(step)): str(digest).removeprefix("sha256:")
        for step, digest in zip(known["step"], known["checkpoint_sha256"], strict=True)
        if str(step).isdecimal()
    }


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def run_folder(save_dir: str | os.PathLike, model_name: str) -> Path:
    """`<save_dir>/<model_name>`; raises `UserError` for a name that cannot be one folder's."""
    return Path(save_dir) / safe_name(model_name, "--model_name")


def open_folder(folder: Path, resume: bool = False, overwrite: bool = False) -> Path:
    """Prepare the run's folder, which the caller holds: new, resumed (`--resume`) or begun again (`--overwrite`).

    Raises `UserError` if another run's files would be overwritten without `--overwrite`, or if nothing can be written.
    """
    found = _written(folder)
    resumable = resume and any(path.name in (LAST, PREVIOUS) for path in found)
    only_begun = resume and all(any(path.match(name) for name in (*BEGUN, ".*")) for path in found)
    if found and not (resumable or overwrite or only_begun):
        raise UserError(
            f"{folder} already holds a run ({', '.join(sorted(path.name for path in found)[:3])}, ...); "
            "continue it with --resume auto, choose another --model_name, or begin again with "
            f"--overwrite"
        )
    for path in found:
        if path.name.startswith(".") or not resumable:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe.tmp"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder with --save_dir") from error
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
