"""The order of training pairs: which pairs make each batch.

The order depends only on the seed and the epoch and is computed before anything is read. It is the same for any number
of workers, and a resumed run starts in the middle of it.
"""

import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from chexzero.common.errors import UserError
from chexzero.common.formats import check_images
from chexzero.train import CXRDataset
from chexzero.training import distributed
from chexzero.training.config import TrainConfig


class Rows(list[int]):
    """The rows of a batch, and the epoch in which they are read; a dataset may vary its texts by both."""

    def __init__(self, rows: Iterable[int], epoch: int):
        super().__init__(rows)
        self.epoch = epoch

    def __reduce__(self) -> tuple:  # to a worker process
        return Rows, (list(self), self.epoch)


class Batches(Sampler[list[int]]):
    """The batches of an epoch: rows shuffled by seed and epoch, the last short batch kept.

    rows: the rows to train on. batch_size: over all ranks; each rank takes its own part of each batch, so no row is
    read twice. With several ranks the last batch of an epoch is cut to a multiple of their number. `studies` (a number
    per row of the file): no two rows of the same study in one batch. `held_out`: the rows not trained on, only stored.
    """

    def __init__(
        self,
        rows: NDArray,
        batch_size: int,
        seed: int,
        *,
        studies: NDArray | None = None,
        held_out: NDArray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size % world_size:
            raise UserError(
                f"--batch_size {batch_size} is the batch of all {world_size} processes, but cannot be "
                f"divided evenly among them; choose a multiple of {world_size}"
            )
        self.rows, self.batch_size, self.seed, self.studies = rows, batch_size, seed, studies
        self.held_out = np.empty(0, np.int64) if held_out is None else held_out
        self.rank, self.world_size = rank, world_size
        self.set_position(0, 0)

    def set_position(self, epoch: int, batch: int) -> None:
        """Let the next iteration begin with this batch of this epoch."""
        self.epoch, self.first = epoch, batch
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(_mix(self.seed, epoch)))
        order = self.rows[order.numpy()]
        if self.studies is None:
            batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        else:
            batches = one_per_study(order, self.studies[order], self.batch_size)
        whole = [batch[: len(batch) - len(batch) % self.world_size] for batch in batches]
        self.batches = [batch for batch in whole if len(batch)]

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches[self.first :]:
            share = len(batch) // self.world_size
            yield Rows(batch[self.rank * share : (self.rank + 1) * share].tolist(), self.epoch)

    def __len__(self) -> int:
        return len(self.batches)


def one_per_study(order: NDArray, studies: NDArray, batch_size: int) -> list[NDArray]:
    """Cut `order` into batches in which no study occurs twice; each row occurs once, in order as far as possible.

    order, studies: (N,), the rows and the study of each. A row whose study is already in the batch waits for the
    next; at the end, when only views of the same studies are left, batches are short.
    """
    batches: list[NDArray] = []
    waiting: list[tuple[int, int]] = []
    rows = iter(zip(order.tolist(), studies.tolist(), strict=True))
    while True:
        batch: list[int] = []
        seen: set[int] = set()
        still: list[tuple[int, int]] = []
        for pair in waiting:
            _place(pair, batch, seen, still, batch_size)
        for pair in rows if len(batch) < batch_size else ():
            _place(pair, batch, seen, still, batch_size)
            if len(batch) == batch_size:
                break
        if not batch:
            return batches
        batches.append(np.array(batch))
        waiting = still


def _place(pair: tuple[int, int], batch: list, seen: set, still: list, batch_size: int) -> None:
    row, study = pair
    if len(batch) == batch_size or study in seen:
        still.append(pair)
    else:
        batch.append(row)
        seen.add(study)


#: Number of training images checked before a run: checking all of them would take minutes.
SAMPLE = 256


def plan_batches(config: TrainConfig, dataset: CXRDataset) -> Batches:
    """The batches of a run, in this rank's order, without the pairs that are held out."""
    if config.one_per_study and dataset.studies is None:
        raise UserError(
            f"--one_per_study needs a column study_id in {config.txt_filepath}; build it with `python -m "
            f"data_prep build`, or leave the flag out"
        )
    check_images(config.cxr_filepath, SAMPLE, config.pixel_range)
    rows, held_out = hold_out(dataset.patients, len(dataset), config.val_pairs, config.seed)
    batches = Batches(
        rows,
        config.batch_size,
        config.seed,
        studies=dataset.studies if config.one_per_study else None,
        held_out=held_out,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    if len(batches) == 0:
        raise UserError(
            f"{config.cxr_filepath} has fewer pairs ({len(rows)}) than there are processes; use fewer processes"
        )
    return batches


def hold_out(patients: NDArray | None, n_rows: int, n_pairs: int, seed: int) -> tuple[NDArray, NDArray]:
    """Split the rows into those to train on and at least `n_pairs` held out, no patient in both.

    Returns two sorted arrays of row numbers. Without patient numbers every row counts as a patient of its own.
    """
    rows = np.arange(n_rows)
    if n_pairs == 0:
        return rows, rows[:0]
    groups = rows if patients is None else np.asarray(patients)
    numbers, counts = np.unique(groups, return_counts=True)
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(_mix(seed, 2**20))).numpy()
    enough = int(np.searchsorted(np.cumsum(counts[order]), n_pairs)) + 1
    held = np.isin(groups, numbers[order[:enough]])
    if held.all():
        raise UserError(f"--val_pairs {n_pairs} leaves nothing of the {n_rows} pairs to train on; choose fewer")
    return rows[~held], rows[held]


def default_workers() -> int:
    """Return the worker processes per rank: one less than its share of the cores, 1 to 6; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    return min(6, max(1, len(os.sched_getaffinity(0)) // torch.cuda.device_count() - 1))


def _mix(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch
