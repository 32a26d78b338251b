"""A training run between its steps: what is counted, written down, validated, saved and resumed.

The loop itself is `run_train.train`. Everything that must survive a kill is in `Run.state`; all else is read from files.
"""

import argparse
import logging
import math
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from chexzero import distributed, resume, selection
from chexzero.engine import Updates, bare
from chexzero.errors import EXIT_USER_ERROR, UserError
from chexzero.files import write_json, write_text
from chexzero.loss import equal_pairs, text_codes
from chexzero.run_files import checkpoint_name, checkpoint_steps, remove_checkpoints, run_folder
from chexzero.runlog import METRIC_COLUMNS, TRAIN_COLUMNS, Boards, CsvLog, describe_data, describe_run
from chexzero.texts import load_texts
from chexzero.validation import held_out_loss, interval, read_validation_set, validate

log = logging.getLogger(__name__)

#: Settings that a resumed run may change, for no number of the training depends on them. A longer run (`epochs`,
#: `max_steps`) is allowed where the rate does not depend on the length.
FREE_SETTINGS = {"config", "resume", "overwrite", "save_dir", "model_name", "num_workers", "log_interval", "save_interval",
                 "save_last_interval", "keep_top_k", "patience", "min_delta", "tensorboard", "wandb", "wandb_project",
                 "cxr_filepath", "txt_filepath", "valid", "valid_labels", "compile"}
LENGTH_SETTINGS = {"epochs", "max_steps"}


class Run:
    """The record of one training run, new or resumed. Only rank 0 writes."""

    def __init__(self, model: nn.Module, loader: DataLoader, device: torch.device, optimizer: Updates,
                 config: argparse.Namespace):
        self.model, self.loader, self.device, self.optimizer, self.config = model, loader, device, optimizer, config
        self.folder, self.is_main = run_folder(config), distributed.is_main()
        self.step = self.epoch = self.batch = self.example_ct = 0
        self.losses: list[float] = []  # since the last row of train_log.csv
        self.validation_loss_sum, self.validation_loss_count = 0.0, 0  # since the last validation
        self.interval: dict[str, Any] = {}  # of the best validation: {"step", "ends"}
        self.exhausted = False
        self._pending: tuple[int, list[int], torch.Tensor] | None = None
        self._equal = [0, 0]  # pairs of one study, pairs of one text, since the last row of train_log.csv
        self._waited = self._paused = 0.0
        self._texts = load_texts(loader.dataset.texts_folder)
        self.train_log = CsvLog(self.folder / "train_log.csv", TRAIN_COLUMNS)
        self.metrics = CsvLog(self.folder / "metrics.csv", METRIC_COLUMNS)
        self.validation = read_validation_set(config) if config.val_interval else None
        self.metric = selection.usable_metric(config.select_by, self.validation) if self.validation else None
        if self.validation and self.metric != config.select_by:
            log.warning("--select_by %s is not defined on %s; %s", config.select_by, config.valid_labels,
                        f"{self.metric} is used instead" if self.metric else "no checkpoint can be compared, the last one counts")
        self.data = distributed.from_main(self._data_files() if self.is_main else None)
        self.is_new = not self._resume()
        self.boards = Boards(self.folder, config, self.step) if self.is_main else None
        self.stop = resume.StopSignal()
        self.stop_asked = False
        self._bar = tqdm(total=self.total_steps, initial=self.step, unit="step", dynamic_ncols=True,
                         disable=not (self.is_main and sys.stderr.isatty()))

    # --- the way through the data ------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        return self.optimizer.total_steps

    @property
    def finished(self) -> bool:
        by_steps = self.config.max_steps is not None and self.step >= self.config.max_steps
        by_epochs = self.config.max_steps is None and (
            self.epoch >= self.config.epochs
            or (self.epoch == self.config.epochs - 1 and self.batch >= len(self.loader.batch_sampler)))
        return self.exhausted or by_steps or by_epochs

    def batches(self) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """Yield `(epoch, batch)` from where the run stands to its end."""
        self.stop.listen()
        self._log_begun = time.perf_counter()
        sampler = self.loader.batch_sampler
        sampler.set_position(self.epoch, self.batch)
        while not self.finished:
            feed = iter(self.loader)
            while True:
                asked = time.perf_counter()
                data = next(feed, None)
                self._waited += time.perf_counter() - asked
                if data is None:
                    break
                yield self.epoch, data
                if self.finished:
                    return
            self.epoch, self.batch = self.epoch + 1, 0
            sampler.set_position(self.epoch, 0)

    # --- after a step ------------------------------------------------------------------------------------------------

    def record(self, loss: torch.Tensor) -> None:
        """Count the step that gave `loss` (this rank's).

        The loss is read from the device one step later, so that a GPU always has the next step to go on with; with it
        the ranks learn whether one of them was told to stop.
        """
        rows = self.loader.batch_sampler.batches[self.batch]
        self.step, self.batch, self.example_ct = self.step + 1, self.batch + 1, self.example_ct + len(rows)
        self._settle()
        told = loss.new_full((), float(self.stop.received is not None), dtype=torch.float32)
        self._pending = (self.step, rows, distributed.mean(torch.stack([loss.detach().float(), told])))
        self._count_equal(rows)
        self._bar.update()

    def due(self, *intervals: int) -> bool:
        """Whether one of the intervals (in steps, 0 for never) ends with this step; if so its loss is known and finite."""
        due = any(interval and self.step % interval == 0 for interval in intervals)
        if due:
            self._settle()
        return due

    def validation_due(self) -> bool:
        """Every `--val_interval` steps, and after the last one."""
        return bool(self.config.val_interval) and (self.due(self.config.val_interval) or (self.finished and self.due(1)))

    def checkpoint_path(self) -> Path:
        """Where this step's weights go; sure that they are finite."""
        self._require_finite_weights()
        return self.folder / checkpoint_name(self.step)

    def log(self) -> tuple[float, str]:
        """Write a row of `train_log.csv`; return the mean loss since the last one, and speed and time left in words."""
        now = time.perf_counter()
        seconds = max(1e-9, now - self._log_begun - self._paused)
        steps = max(1, len(self.losses))
        loss = sum(self.losses) / steps
        pairs = sum(self._sizes)
        row = {"step": self.step, "epoch": self.epoch, "samples": self.example_ct, "loss": loss, "lr": self.optimizer.lr,
               "logit_scale": float(bare(self.model).logit_scale.detach().exp()), "pairs_per_second": pairs / seconds,
               "data_wait": min(1.0, self._waited / seconds),
               "same_study_pairs": None if self._texts.studies is None else self._equal[0] / steps,
               "same_text_pairs": self._equal[1] / steps}
        left = timedelta(seconds=round(seconds / steps * (self.total_steps - self.step)))
        self.losses, self._sizes, self._equal = [], [], [0, 0]
        self._waited, self._paused, self._log_begun = 0.0, 0.0, now
        if self.is_main:
            self.train_log.append(row)
            self.boards.write("train", row)
            self._bar.set_postfix_str(f"loss {loss:.3f}, {row['pairs_per_second']:.1f} pairs/s")
        return loss, f"step {self.step} of {self.total_steps}, {row['pairs_per_second']:.1f} pairs/s, {left} left"

    def end_step(self) -> None:
        """Save `last.pt` when due or when told to stop; in the latter case leave with the code that asks for a requeue."""
        if self.stop_asked and not self.finished:
            self.save_last()
            self.close()
            if self.is_main:
                log.warning("stopped by %s at step %d; everything is saved: go on with --resume auto",
                            self.stop.received or "another process's signal", self.step)
            raise SystemExit(resume.EXIT_REQUEUE)
        if self.finished or self.validated_now or self.due(self.config.save_last_interval):
            self.save_last()

    @property
    def validated_now(self) -> bool:
        return self.validation is not None and self._last_validated == self.step

    def close(self) -> None:
        """End the bar and the logs, give the signals back, leave the ranks."""
        self._bar.close()
        self.stop.restore()
        if self.boards:
            self.boards.close()
        distributed.wait_for_main()

    # --- validation --------------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Validate on rank 0 while the others wait; write `metrics.csv` and `selection.json`; decide on stopping."""
        begun = time.perf_counter()
        if self.is_main:
            self._validate()
        self.exhausted = distributed.from_main(self.is_main and selection.is_exhausted(
            self.metrics.rows(), self.metric, self.config.patience, self.config.min_delta))
        if self.exhausted and self.is_main:
            log.info("no validation of the last %d improved %s by more than %g: stopping at step %d",
                     self.config.patience, self.metric, self.config.min_delta, self.step)
        self._last_validated = self.step
        self.validation_loss_sum, self.validation_loss_count = 0.0, 0
        self._paused += time.perf_counter() - begun

    def _validate(self) -> None:
        clip, config = bare(self.model), self.config
        values, predictions = validate(clip, self.validation, self.device, config.precision)
        if not values:
            self._fail("the predictions of step", self.step, [])
        if len(self.held_out):
            values["val_loss"] = held_out_loss(clip, self.loader.dataset, self.held_out, config.batch_size, self.device,
                                               config.precision)
        mean_loss = self.validation_loss_sum / self.validation_loss_count if self.validation_loss_count else None
        row = {"step": self.step, "epoch": self.epoch, "samples": self.example_ct, "train_loss": mean_loss} | values
        self.metrics.append(row)
        self.boards.write("valid", row)
        rows = self.metrics.rows()
        best = selection.ranked(rows, self.metric)[:1] if self.metric else []
        if best and best[0]["step"] == self.step and self.metric != "val_loss":
            self.interval = {"step": self.step, "ends": interval(self.validation, predictions, self.metric)}
        ends = self.interval["ends"] if best and self.interval.get("step") == best[0]["step"] else (None, None)
        content = selection.describe(rows, self.metric, config.select_by, tuple(ends), len(self.validation.labels))
        write_json(self.folder / "selection.json", content)
        if config.keep_top_k is not None:
            remove_checkpoints(self.folder, selection.steps_to_keep(rows, self.metric, config.keep_top_k))
        log.info("step %d: %s (selected: step %d)", self.step, self._in_words(row), content["step"])

    def _in_words(self, row: dict[str, Any]) -> str:
        names = ["mean_5", "mean_13", "mean_14", "val_loss"]
        shown = [f"{name} {row[name]:.4f}" for name in names if row.get(name) is not None and math.isfinite(row[name])]
        return "validation " + (", ".join(shown) or "without a defined AUROC")

    @property
    def held_out(self) -> np.ndarray:
        return self.loader.dataset.held_out

    # --- what can go wrong -------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        if self._pending is None:
            return
        step, rows, values = self._pending
        self._pending = None
        loss, told = values.tolist()
        if not math.isfinite(loss):
            self._fail(f"the loss is {loss} at step", step, rows)
        self.losses.append(loss)
        self._sizes.append(len(rows))
        self.validation_loss_sum += loss
        self.validation_loss_count += 1
        self.stop_asked = self.stop_asked or told > 0

    def _require_finite_weights(self) -> None:
        with torch.no_grad():
            finite = torch.stack([p.isfinite().all() for p in bare(self.model).parameters()]).all()
        if not finite:
            batch = max(0, self.batch - 1)
            self._fail("weights are not finite after step", self.step, self.loader.batch_sampler.batches[batch])

    def _fail(self, what: str, step: int, rows: list[int]) -> None:
        """Stop with the batch's ids and the last good checkpoint; nothing that was saved is touched."""
        self._bar.close()
        if not self.is_main:
            raise SystemExit(EXIT_USER_ERROR)
        ids = self._ids(rows)
        write_text(self.folder / "failed_batch.csv", "row,id\n" + "".join(
            f"{row},{name}\n" for row, name in zip(rows, ids, strict=True)))
        shown = ", ".join(ids[:64]) + (f" and {len(ids) - 64} more" if len(ids) > 64 else "")
        steps = [saved for saved in checkpoint_steps(self.folder) if saved < step]
        good = f"the last good checkpoint is {self.folder / checkpoint_name(max(steps))}" if steps else \
            "no checkpoint had been saved before"
        raise UserError(f"{what} {step}; the batch (also in {self.folder / 'failed_batch.csv'}): {shown}; {good}; try a lower "
                        f"--lr, --warmup_steps, --clip_grad_norm 1 or --precision bf16 (fp32)")

    def _ids(self, rows: list[int]) -> list[str]:
        with h5py.File(self.config.cxr_filepath, "r") as handle:
            if "id" not in handle:
                return [f"row {row}" for row in rows]
            return [handle["id"][row].decode() for row in rows]

    def _count_equal(self, rows: np.ndarray) -> None:
        if self._texts.studies is not None:
            self._equal[0] += equal_pairs(torch.from_numpy(self._texts.studies[rows]))
        self._equal[1] += equal_pairs(text_codes(torch.from_numpy(self._texts.tokens[rows].astype(np.int64))))

    # --- saving and resuming -----------------------------------------------------------------------------------------

    def save_last(self) -> None:
        """Write `last.pt` (rank 0), with the random states of all ranks."""
        begun = time.perf_counter()
        self._settle()
        self._require_finite_weights()
        random = distributed.gather_objects(resume.random_state())
        if self.is_main:
            resume.save_last(self.folder, {
                "step": self.step, "epoch": self.epoch, "batch": self.batch, "example_ct": self.example_ct,
                "losses": self.losses, "sizes": self._sizes, "equal": self._equal, "interval": self.interval,
                "validation_loss": [self.validation_loss_sum, self.validation_loss_count],
                "last_validated": self._last_validated, "exhausted": self.exhausted, "random": random,
                "settings": vars(self.config), "data": self.data,
                "model": bare(self.model).state_dict(), "updates": self.optimizer.state_dict()})
        self._paused += time.perf_counter() - begun

    def _resume(self) -> bool:
        """Go on from the newest whole state, if that is wanted and there is one; else begin the files."""
        self._sizes: list[int] = []
        self._last_validated = -1
        state = resume.load_last(self.folder) if self.config.resume else None
        if state is None:
            if self.is_main:
                self.train_log.begin()
                self.metrics.begin()
                write_json(self.folder / "config.json", describe_run(
                    self.config, bare(self.model), distributed.world_size(), self.data))
            return False
        self._check_settings(state)
        bare(self.model).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["updates"])
        self.step, self.epoch, self.batch = state["step"], state["epoch"], state["batch"]
        self.example_ct, self.losses, self._sizes = state["example_ct"], state["losses"], state["sizes"]
        self._equal, self.interval = state["equal"], state["interval"]
        self.validation_loss_sum, self.validation_loss_count = state["validation_loss"]
        self._last_validated = state["last_validated"]
        random = state["random"]
        if len(random) == distributed.world_size():
            resume.restore_random_state(random[distributed.rank()])
        if self.is_main:
            self.train_log.cut_after(self.step)
            self.metrics.cut_after(self.step)
            log.info("resuming %s at step %d", self.folder, self.step)
        distributed.wait_for_main()
        self.exhausted = selection.is_exhausted(self.metrics.rows(), self.metric, self.config.patience,
                                                self.config.min_delta)
        return True

    def _check_settings(self, state: dict[str, Any]) -> None:
        now, then = vars(self.config), state["settings"]
        free = FREE_SETTINGS | (LENGTH_SETTINGS if self.config.lr_schedule == "constant" else set())
        changed = [f"--{name} {then.get(name)} (now {value})" for name, value in now.items()
                   if name not in free and then.get(name) != value]
        if changed:
            raise UserError(f"{self.folder} was trained with {', '.join(changed)}; resume it with the same settings, or begin "
                            f"another run with --model_name")
        hashes = [{Path(name).name: entry for name, entry in data["files"].items()} for data in (state["data"], self.data)]
        if hashes[0] != hashes[1]:
            names = ", ".join(name for name in hashes[1] if hashes[0].get(name) != hashes[1][name])
            raise UserError(f"{self.folder} was trained on other data ({names} changed since); put it back, or begin another "
                            f"run with --model_name")

    def _data_files(self) -> dict[str, Any]:
        config = self.config
        validation = [config.valid, config.valid_labels] if config.val_interval else []
        return describe_data([config.cxr_filepath, config.txt_filepath, *validation])
