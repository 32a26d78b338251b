"""The records of a run: `train_log.csv`, `metrics.csv`, `config.json`, TensorBoard and Weights & Biases."""

import csv
import io
import logging
import math
import os
import platform
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from chexzero.common.errors import UserError, refusal
from chexzero.common.files import read_json, sha256_of, write_text
from chexzero.common.formats import image_side, read_build
from chexzero.common.labels import LABELS
from chexzero.common.versions import PACKAGES, git_revision, version
from chexzero.model import CLIP
from chexzero.training import distributed
from chexzero.training.config import TrainConfig, import_wandb

log = logging.getLogger(__name__)

#: Columns of measured time and memory: equal runs differ only in these.
SPEED_COLUMNS = ["pairs_per_second", "data_wait", "tflops", "share_of_peak", "memory_gib", "validating", "saving"]
TRAIN_COLUMNS = [
    "step",
    "epoch",
    "samples",
    "loss",
    "lr",
    "logit_scale",
    *SPEED_COLUMNS[:2],
    "same_study_pairs",
    "same_text_pairs",
    *SPEED_COLUMNS[2:],
]
METRIC_COLUMNS = [
    "step",
    "epoch",
    "samples",
    "train_loss",
    "val_loss",
    "mean_5",
    "mean_13",
    "mean_14",
    *(f"{label}_auc" for label in LABELS),
    "seconds",
    "checkpoint_sha256",
]
#: Files up to this size are hashed at the start of a run; a larger one would delay it by minutes.
HASHED_UP_TO = 4 * 2**30


class CsvLog:
    """A CSV with one row per logged step; rows are appended, and cut back to a step when a run resumes there.

    `added`: those of `columns` that earlier versions did not write; a file without them can be read too.
    """

    def __init__(self, path: Path, columns: Sequence[str], added: Sequence[str] = ()):
        self.path, self.columns = path, list(columns)
        self.before = [name for name in columns if name not in added]

    def begin(self) -> None:
        """Write the header only."""
        write_text(self.path, self._lines([]))

    def cut_after(self, step: int) -> None:
        """Drop the rows after `step`, and a last line that a kill left incomplete."""
        write_text(self.path, self._lines([row for row in self.rows() if row["step"] <= step]))

    def append(self, row: dict[str, Any]) -> None:
        """Add a row; missing, None and NaN values are left empty."""
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as handle:
                handle.write(self._line(row))
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; check the disk's space and the folder's "
                f"permissions; what was saved before is unharmed"
            ) from error

    def rows(self) -> list[dict[str, Any]]:
        """Return the complete rows: whole numbers as int, others as float, digests as text, empty cells as None.

        Raises `UserError` for a file that this class has not written, or that was damaged since.
        """
        if not self.path.exists():
            return []
        remedy = "put it back from a copy, or begin another run with --model_name"
        try:
            text = self.text()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} is not UTF-8 (byte {error.start}); {remedy}") from error
        lines = text[: text.rfind("\n") + 1].splitlines()
        header = next(csv.reader(lines[:1]), [])
        if header not in (self.columns, self.before):
            raise UserError(f"{self.path} does not begin with the columns that a run writes; {remedy}")
        rows: list[dict[str, Any]] = []
        for number, cells in enumerate(csv.reader(lines[1:]), 2):
            try:
                row = dict(zip(header, map(_number, cells), strict=True))
                if not isinstance(row["step"], int) or (rows and row["step"] <= rows[-1]["step"]):
                    raise ValueError("its step does not follow")
            except ValueError as error:
                raise UserError(f"{self.path}, line {number} is damaged ({error}); {remedy}") from error
            rows.append(row)
        return rows

    def text(self) -> str:
        """Return the file's text; empty if there is no file."""
        return self.path.read_text(encoding="utf-8") if self.path.exists() else ""

    def put_back(self, text: str) -> None:
        """Rewrite the file with `text`."""
        write_text(self.path, text)

    def _lines(self, rows: Sequence[dict[str, Any]]) -> str:
        return self._line(dict(zip(self.columns, self.columns, strict=True))) + "".join(map(self._line, rows))

    def _line(self, row: dict[str, Any]) -> str:
        text = io.StringIO()
        cells = [row.get(name) for name in self.columns]
        csv.writer(text, lineterminator="\n").writerow(
            ["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells]
        )
        return text.getvalue()


class Boards:
    """TensorBoard files under `<run>/tensorboard`, and Weights & Biases; each only if its flag is set."""

    def __init__(self, folder: Path, config: TrainConfig, step: int):
        self.folder, self.writer, self.wandb = folder, None, None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            with self._saying():
                self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        if config.wandb:
            run_id = read_json(folder / "config.json").get("run_id")  # another one after --overwrite
            self.wandb = import_wandb().init(
                project=config.wandb_project,
                name=config.model_name,
                dir=str(folder),
                id=run_id,
                resume="allow",
                config=config.as_dict(),
            )

    def write(self, group: str, row: dict[str, Any]) -> None:
        values = {
            f"{group}/{name}": value
            for name, value in row.items()
            if name not in ("step", "epoch") and isinstance(value, (int, float)) and math.isfinite(value)
        }
        if self.writer:
            with self._saying():
                for name, value in values.items():
                    self.writer.add_scalar(name, value, row["step"])
        if self.wandb:
            self.wandb.log(values, step=row["step"])

    def close(self) -> None:
        if self.writer:
            with self._saying():
                self.writer.close()
        if self.wandb:
            self.wandb.finish()

    @contextmanager
    def _saying(self) -> Iterator[None]:
        """Turn a disk error of TensorBoard's writer thread, raised here one row later, into a `UserError`."""
        try:
            yield
        except Exception as error:
            if (why := refusal(error)) is None:
                raise
            raise UserError(
                f"cannot write {self.folder / 'tensorboard'}: {why}; what was saved before is unharmed"
            ) from error


def describe_run(config: TrainConfig, model: CLIP, data: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `config.json`: enough to repeat the run and to check that it is the same."""
    return {
        "run_id": uuid.uuid4().hex[:12],
        "settings": config.as_dict(),
        "model": {
            "vision": config.vision,
            "text_encoder": config.text_encoder,
            "vision_weights": config.vision_weights,
            "text_weights": config.text_weights,
            "image_resolution": model.image_resolution,
            "context_length": model.context_length,
            "embed_dim": int(model.text_projection.shape[1]),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        },
        "data": data,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "git": git_revision(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "processes": distributed.world_size(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def describe_data(paths: Sequence[str | os.PathLike]) -> dict[str, Any]:
    """Size and SHA-256 of each data file, the side of the images in pixels, and whether the data are drawn.

    A file too large to be hashed at the start of a run gets the hash that the `build.json` beside it has for a file of
    this size. A file that differs from its `build.json` is named in a warning.
    """
    files: dict[str, Any] = {}
    sides: dict[str, int] = {}
    drawn = None
    for path in map(Path, paths):
        record = read_build(path.parent)
        drawn = record.get("drawn", drawn)
        size, entry = path.stat().st_size, _recorded(record, path.name)
        digest = sha256_of(path) if size <= HASHED_UP_TO else entry.get("sha256")
        if entry and (entry.get("bytes", size) != size or entry.get("sha256", digest) != digest):
            log.warning("%s is not the file that build.json beside it records: it was changed or replaced since", path)
            digest = digest if size <= HASHED_UP_TO else None
        files[str(path)] = {"bytes": size, "sha256": digest}
        if path.suffix == ".h5" and (side := image_side(path)):
            sides[str(path)] = side
    return {"files": files, "drawn": drawn, "image_size": sides}


def _recorded(build: dict, name: str) -> dict[str, Any]:
    entry = build.get("files", {}).get(name)
    return entry if isinstance(entry, dict) else {}


def _number(cell: str | None) -> int | float | str | None:
    if not cell:
        return None
    if cell.startswith("sha256:"):
        return cell
    try:
        return int(cell)
    except ValueError:
        return float(cell)
