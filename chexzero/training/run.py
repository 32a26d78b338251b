"""A training run between its steps: counting, logging, validation, saving and resuming.

The loop itself is `run_train.train`. What a kill must not lose is in `Progress`, the weights and the optimiser.
"""

import logging
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, cast

import h5py
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from chexzero.common.errors import EXIT_USER_ERROR, UserError
from chexzero.common.files import write_json, write_text
from chexzero.imaging.orientation import orientation_warnings
from chexzero.model import CLIP
from chexzero.runs.run_folder import AVERAGE, checkpoint_name, checkpoint_steps
from chexzero.train import CXRDataset
from chexzero.training import distributed, resume
from chexzero.training.batches import Batches
from chexzero.training.config import TrainConfig
from chexzero.training.logs import (
    METRIC_COLUMNS,
    SPEED_COLUMNS,
    TRAIN_COLUMNS,
    Boards,
    CsvLog,
    describe_data,
    describe_run,
)
from chexzero.training.loss import equal_pairs
from chexzero.training.pace import Pace, in_words
from chexzero.training.show import augmentation
from chexzero.training.step import Updates, bare
from chexzero.training.texts import cut_texts
from chexzero.training.validation import Validator

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """A run's position, after complete steps."""

    step: int = 0
    epoch: int = 0  # from 0
    batch: int = 0  # batches done in this epoch
    example_ct: int = 0
    losses: list[float] = field(default_factory=list)  # since the last row of train_log.csv, over all ranks
    equal: list[int] = field(default_factory=lambda: [0, 0])  # pairs with equal study, with equal text, in these steps
    losses_since_validation: list[float] = field(default_factory=lambda: [0.0, 0.0])  # sum and number
    validated: int = -1  # the last step that was validated
    exhausted: bool = False  # --patience has run out


class Run:
    """One training run, new or resumed. Only rank 0 writes."""

    def __init__(
        self, model: nn.Module, loader: DataLoader, device: torch.device, optimizer: Updates, config: TrainConfig
    ):
        self.model, self.loader, self.optimizer, self.config = model, loader, optimizer, config
        self.device, self.dataset = device, cast(CXRDataset, loader.dataset)
        self.augmentation = augmentation(config, self.dataset, bare(model))
        self.folder, self.is_main = config.folder, distributed.is_main()
        self.progress, self.stop, self.stop_asked = Progress(), resume.StopSignal(), False
        self.stop.listen()
        self.plan = cast(Batches, loader.sampler)
        self.train_log = CsvLog(self.folder / "train_log.csv", TRAIN_COLUMNS, added=SPEED_COLUMNS[2:])
        #: Folder -> model whose checkpoints the run validates and saves there: the trained one, and its average.
        self.weights = {self.folder: bare(model)}
        if optimizer.average:
            self.weights[self.folder / AVERAGE] = optimizer.average.module
        self.metrics = [
            CsvLog(one / "metrics.csv", METRIC_COLUMNS, added=["checkpoint_sha256"]) for one in self.weights
        ]
        self.validators = [
            Validator(config, one, self.dataset, self.plan.held_out, device)
            for one in (self.weights if config.val_interval else ())
        ]
        if self.validators and self.is_main:
            self.validators[0].announce()
        if self.is_main:
            self._say_how_images_lie()
        self.data: dict[str, Any] = distributed.from_main(self._describe_data() if self.is_main else None)
        self._pending: tuple[int, np.ndarray, torch.Tensor] | None = None
        self.pace = Pace(bare(model), config, device)

        state = distributed.from_main(resume.load_last(self.folder) if config.resume and self.is_main else None)
        self.is_new = state is None
        if self.is_new:
            self._begin_files()
        else:
            self._continue_from(state)
        self.boards = Boards(self.folder, config, self.step) if self.is_main else None
        self._bar = tqdm(
            total=optimizer.total_steps,
            initial=self.step,
            unit="step",
            dynamic_ncols=True,
            disable=not (self.is_main and sys.stderr.isatty()),
        )

    @property
    def step(self) -> int:
        return self.progress.step

    @property
    def example_ct(self) -> int:
        return self.progress.example_ct

    @property
    def finished(self) -> bool:
        at, config = self.progress, self.config
        if at.exhausted:
            return True
        if config.max_steps is not None:
            return at.step >= config.max_steps
        in_last_epoch = at.epoch == config.epochs - 1
        return at.epoch >= config.epochs or (in_last_epoch and at.batch >= len(self.plan))

    # --- iterating over the data ---

    def batches(self) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """Yield `(epoch, batch)` from the run's position to its end."""
        self.pace.begin()
        at = self.progress
        self.plan.set_position(at.epoch, at.batch)
        while not self.finished:
            feed = iter(self.loader)
            while not self.finished:
                with self.pace.spent("data"):
                    data = next_batch(feed)
                if data is None:
                    at.epoch, at.batch = at.epoch + 1, 0
                    self.plan.set_position(at.epoch, 0)
                    break
                if self.augmentation:
                    images = data["img"].to(self.device, non_blocking=True)
                    data["img"] = self.augmentation(images, at.epoch, data["row"])
                self.pace.step(len(self.plan.batches[at.batch]), data["txt"].shape[1])
                yield at.epoch, data

    def record(self, loss: torch.Tensor) -> None:
        """Count the step that gave `loss` (this rank's).

        The loss is read from the device one step later, so that a GPU always has a next step queued. With it the ranks
        exchange whether one of them received a stop signal, so that all stop at the same step.
        """
        at = self.progress
        rows = self.plan.batches[at.batch]
        self._settle()
        at.step, at.batch, at.example_ct = at.step + 1, at.batch + 1, at.example_ct + len(rows)
        told = loss.new_full((), float(self.stop.received is not None), dtype=torch.float32)
        self._pending = (at.step, rows, distributed.mean(torch.stack([loss.detach().float(), told])))
        self._count_equal(rows)
        self._bar.update()

    def due(self, *intervals: int) -> bool:
        """Whether one of the intervals (in steps, 0: never) ends here; if so, check that the loss is finite."""
        due = any(interval and self.step % interval == 0 for interval in intervals)
        if due:
            self._settle()
        return due

    def validation_due(self) -> bool:
        """Whether to validate now: every `--val_interval` steps, and after the last step."""
        return bool(self.validators) and (self.due(self.config.val_interval) or (self.finished and self.due(1)))

    def checkpoints(self) -> dict[Path, CLIP]:
        """Return path -> model of this step's checkpoints (with `--ema` the average too); checks for finite weights."""
        self._require_finite_weights()
        return {folder / checkpoint_name(self.step): model for folder, model in self.weights.items()}

    def log(self) -> tuple[float, str]:
        """Write a row of `train_log.csv`; return the mean loss since the previous row, and the progress as text."""
        at, pace = self.progress, self.pace.row()
        steps = max(1, len(at.losses))
        row = {
            "step": at.step,
            "epoch": at.epoch,
            "samples": at.example_ct,
            "loss": sum(at.losses) / steps,
            "lr": self.optimizer.lr,
            "logit_scale": float(bare(self.model).logit_scale.detach().exp()),
            "same_study_pairs": None if self.dataset.studies is None else at.equal[0] / steps,
            "same_text_pairs": at.equal[1] / steps,
            **pace,
        }
        per_step = self.pace.training_seconds() / max(1, self.pace.steps)
        left = timedelta(seconds=round(per_step * (self.optimizer.total_steps - at.step)))
        at.losses, at.equal = [], [0, 0]
        self.pace.begin()
        if self.is_main:
            self.train_log.append(row)
            if self.boards:
                self.boards.write("train", row)
            self._bar.set_postfix_str(f"loss {row['loss']:.3f}, {in_words(pace)}")
        words = f"step {at.step} of {self.optimizer.total_steps}, {in_words(pace)}, {left} left"
        return row["loss"], words

    def validate(self) -> None:
        """Validate on rank 0 while the others wait; write `metrics.csv` and `selection.json`; apply `--patience`."""
        at = self.progress
        with self.pace.spent("validating"):
            if self.is_main:
                total, number = at.losses_since_validation
                counts: dict[str, Any] = {"step": at.step, "epoch": at.epoch, "samples": at.example_ct}
                counts["train_loss"] = total / number if number else None
                for validator, (folder, model) in zip(self.validators, self.weights.items(), strict=True):
                    row = validator.run(model, counts)
                    if row is None:
                        self._fail(f"the predictions after step {at.step} are not finite")
                    if self.boards:
                        self.boards.write("valid" if folder == self.folder else f"valid_{folder.name}", row)
            at.exhausted = self._exhausted()
            if at.exhausted and self.is_main:
                log.info(
                    "the last %d validations brought no better %s (by more than %g): the run ends at step %d",
                    self.config.patience,
                    self.validators[0].metric,
                    self.config.min_delta,
                    at.step,
                )
            at.validated, at.losses_since_validation = at.step, [0.0, 0.0]

    def _exhausted(self) -> bool:
        """Whether `--patience` has run out for the weights and, with `--ema`, for their average too."""
        return distributed.from_main(self.is_main and all(validator.exhausted() for validator in self.validators))

    def end_step(self) -> None:
        """Save `last.pt` when due; after SIGTERM or SIGUSR1 exit with the code that asks for a requeue."""
        asked = self.stop_asked and not self.finished
        at_an_end = asked or self.finished or self.progress.validated == self.step
        if at_an_end or self.due(self.config.save_last_interval):
            self.save_last()
        if asked:
            self.close()
            if self.is_main:
                log.warning(
                    "told to stop by %s; step %d is saved: go on with --resume auto",
                    self.stop.received or "a signal to another process",
                    self.step,
                )
            distributed.finish()
            raise SystemExit(resume.EXIT_REQUEUE)

    def close(self) -> None:
        """Close the progress bar and the logs, and restore the signal handlers."""
        self._bar.close()
        self.stop.restore()
        if self.boards:
            self.boards.close()
        distributed.wait_for_main()

    # --- failures ---

    def _settle(self) -> None:
        """Read the last step's loss from the device."""
        if self._pending is None:
            return
        step, rows, values = self._pending
        self._pending = None
        loss, told = values.tolist()
        if not math.isfinite(loss):
            self._fail(f"the loss of step {step} is {loss}", rows)
        at = self.progress
        at.losses.append(loss)
        at.losses_since_validation = [at.losses_since_validation[0] + loss, at.losses_since_validation[1] + 1]
        self.stop_asked = self.stop_asked or told > 0

    def _require_finite_weights(self) -> None:
        with torch.no_grad():
            finite = torch.stack([parameter.isfinite().all() for parameter in bare(self.model).parameters()]).all()
        if not finite:
            rows = self.plan.batches[max(0, self.progress.batch - 1)]
            self._fail(f"step {self.step} left weights that are not finite", rows)

    def _fail(self, what: str, rows: np.ndarray | tuple = ()) -> NoReturn:
        """End the run with an error that names the batch and the last good checkpoint; saved files stay untouched."""
        self._bar.close()
        if not self.is_main:
            time.sleep(10)  # rank 0 prints the message; the first rank to exit may end the others
            raise SystemExit(EXIT_USER_ERROR)
        ids = row_ids(self.config.cxr_filepath, rows)
        record = self.folder / "failed_batch.csv"
        write_text(record, "row,id\n" + "".join(f"{row},{name}\n" for row, name in zip(rows, ids, strict=True)))
        more = f" and {len(ids) - 64} more" if len(ids) > 64 else ""
        steps = [step for step in checkpoint_steps(self.folder) if step < self.step]
        good = (
            f"the last good checkpoint is {self.folder / checkpoint_name(max(steps))}"
            if steps
            else "no checkpoint had been saved before"
        )
        raise UserError(
            f"{what}; its batch, also in {record}: {', '.join(ids[:64])}{more}; {good}; lower --lr, or "
            f"try --warmup_steps, --clip_grad_norm 1 or another --precision, with another --model_name"
        )

    def _count_equal(self, rows: np.ndarray) -> None:
        for place, numbers in enumerate((self.dataset.studies, self.dataset.same_text)):
            if numbers is not None:
                self.progress.equal[place] += equal_pairs(numbers[rows])

    # --- saving and resuming ---

    def save_last(self) -> None:
        """Write `last.pt`, with the random states of all ranks."""
        with self.pace.spent("saving"):
            self._settle()
            self._require_finite_weights()
            random = distributed.gather_objects(resume.random_state())
            if self.is_main:
                resume.save_last(
                    self.folder,
                    {
                        "step": self.step,
                        "progress": asdict(self.progress),
                        "random": random,
                        "interval": self.validators[0].interval if self.validators else None,
                        "average_interval": self.validators[1].interval if len(self.validators) > 1 else None,
                        "settings": self.config.as_dict(),
                        "data": self.data,
                        "logs": {self._name(one): one.text() for one in (self.train_log, *self.metrics)},
                        "model": bare(self.model).state_dict(),
                        "updates": self.optimizer.state_dict(),
                    },
                )

    def _name(self, one: CsvLog) -> str:
        return one.path.relative_to(self.folder).as_posix()

    def _begin_files(self) -> None:
        if self.is_main:
            cut = cut_texts(self.dataset, self.plan.rows, self.config.seed)
            self.train_log.begin()
            for metrics, (folder, model) in zip(self.metrics, self.weights.items(), strict=True):
                folder.mkdir(exist_ok=True)
                metrics.begin()
                write_json(folder / "config.json", describe_run(self.config, model, self.data) | {"reports": cut})

    def _continue_from(self, state: dict[str, Any]) -> None:
        resume.check_same(self.folder, state, self.config, self.data)
        bare(self.model).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["updates"])
        known = {one.name for one in fields(Progress)}  # states of earlier versions have more fields
        self.progress = Progress(**{name: value for name, value in state["progress"].items() if name in known})
        if self.is_main:
            for one in (self.train_log, *self.metrics):
                one.path.parent.mkdir(exist_ok=True)
                if self._name(one) in state.get("logs", {}):
                    one.put_back(state["logs"][self._name(one)])  # even if the file was changed since
                one.cut_after(self.step)  # also rewrites an earlier version's file with the current columns
            log.info("going on with %s after step %d", self.folder, self.step)
        distributed.wait_for_main()
        if self.validators:
            for validator, name in zip(self.validators, ("interval", "average_interval"), strict=False):
                validator.interval = state[name] or validator.interval
            self.progress.exhausted = self._exhausted()  # --patience may have been raised
        if len(state["random"]) == distributed.world_size():
            resume.restore_random_state(state["random"][distributed.rank()])

    def _say_how_images_lie(self) -> None:
        """Warn of sets that look mirrored, turned or inverted: left and right in their reports would be wrong."""
        config = self.config
        sets = [(config.cxr_filepath, config.txt_filepath or "")]
        if config.val_interval and config.valid and config.valid_labels:
            sets.append((config.valid, config.valid_labels))
        for sentence in orientation_warnings(sets, config.pixel_range):
            log.warning("%s", sentence)

    def _describe_data(self) -> dict[str, Any]:
        config = self.config
        paths = [config.cxr_filepath, config.txt_filepath]
        if config.val_interval:
            paths += [config.valid, config.valid_labels]
        return describe_data([path for path in paths if path is not None])


def next_batch(feed: Iterator[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor] | None:
    """Return the next batch, or None at the end. Strips the traceback that wraps a worker's `UserError`."""
    try:
        return next(feed, None)
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2]) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a worker process that reads images has ended (no memory, or too little of /dev/shm); take fewer with "
            "--num_workers, for instance 0"
        ) from error


def row_ids(cxr_filepath: str, rows: np.ndarray | tuple) -> list[str]:
    """Return the ids of some rows of an image file; `row 17` if it has none (upstream's files)."""
    with h5py.File(cxr_filepath, "r") as handle:
        return [handle["id"][row].decode() if "id" in handle else f"row {row}" for row in rows]
