"""Feeding: stored bytes and tokens of a batch, read by worker processes; the rest happens on the device.

The order of the batches is computed before anything is read, from the seed and the epoch alone. It is the same for
any number of workers, and a resumed run starts in the middle of it.
"""

import argparse
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from chexzero.common.errors import UserError
from chexzero.runs.run_folder import run_folder
from chexzero.training import distributed
from chexzero.training.texts import load_texts, prepare_texts


class PairDataset(Dataset):
    """Pairs of a radiograph and the tokens of its report, read a batch at a time.

    `__getitems__(rows)` returns `{"img": (B, H, W) as stored, "txt": int64 (B, T), "row": int64 (B,)}`, the texts cut
    to the batch's longest. Each process opens the image file for itself.
    """

    def __init__(self, cxr_filepath: str | os.PathLike, texts_folder: Path):
        self.cxr_filepath, self.texts_folder = str(cxr_filepath), texts_folder
        self.held_out = np.empty(0, np.int64)  # rows that are not trained on
        self._pid: int | None = None

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        self._open()
        images = np.empty((len(rows), *self._images.shape[1:]), self._images.dtype)
        for place, row in enumerate(rows):
            try:
                self._images.read_direct(images, np.s_[row], np.s_[place])
            except OSError as error:
                raise UserError(
                    f"row {row} of {self.cxr_filepath} cannot be read ({str(error).split(',')[0]}); "
                    f"build the file again with `python -m data_prep build`"
                ) from error
        return {
            "img": torch.from_numpy(images),
            "txt": cut(self._tokens[rows]),
            "row": torch.tensor(rows, dtype=torch.int64),
        }

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([row])

    def _open(self) -> None:
        if self._pid != os.getpid():  # an HDF5 handle must not cross a fork
            self._images = h5py.File(self.cxr_filepath, "r")["cxr"]
            self._tokens = load_texts(self.texts_folder).tokens
            self._pid = os.getpid()

    def __getstate__(self) -> dict:
        return {
            "cxr_filepath": self.cxr_filepath,
            "texts_folder": self.texts_folder,
            "held_out": self.held_out,
            "_pid": None,
        }


def cut(tokens: NDArray) -> torch.Tensor:
    """Tokens (B, T), padded with 0, as int64 cut after the longest text."""
    longest = int((tokens != 0).sum(1).max()) if len(tokens) else 0
    return torch.from_numpy(tokens[:, :longest].astype(np.int64))


class Batches(Sampler):
    """The batches of an epoch: rows shuffled by seed and epoch, the last short batch kept.

    rows: which rows are trained on. batch_size: over all ranks; each rank takes its own part of each batch, so that
    no row is read twice. With several ranks the last batch of an epoch is cut to a multiple of their number.
    `studies` (a number for every row of the file): no two rows of the same study in one batch.
    """

    def __init__(
        self,
        rows: NDArray,
        batch_size: int,
        seed: int,
        *,
        studies: NDArray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size % world_size:
            raise UserError(
                f"--batch_size {batch_size} is the batch of all {world_size} processes, but cannot be "
                f"divided evenly among them; choose a multiple of {world_size}"
            )
        self.rows, self.batch_size, self.seed, self.studies = rows, batch_size, seed, studies
        self.rank, self.world_size = rank, world_size
        self.set_position(0, 0)

    def set_position(self, epoch: int, batch: int) -> None:
        """The next iteration begins with this batch of this epoch."""
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
            yield batch[self.rank * share : (self.rank + 1) * share].tolist()

    def __len__(self) -> int:
        return len(self.batches)


def one_per_study(order: NDArray, studies: NDArray, batch_size: int) -> list[NDArray]:
    """Cut `order` into batches in which no study comes twice; each row once, in order as far as that goes.

    order, studies: (N,), the rows and the study of each. A row whose study is in the batch already waits for the
    next; at the end, when only views of the same studies are left, batches are short.
    """
    batches, waiting = [], []
    rows = iter(zip(order.tolist(), studies.tolist(), strict=True))
    while True:
        batch, seen, still = [], set(), []
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


def load_pairs(config: argparse.Namespace, device: torch.device) -> DataLoader:
    """The training pairs of a run, checked, tokenised and in this rank's order of batches."""
    prepare = partial(
        prepare_texts, config.txt_filepath, config.cxr_filepath, config.context_length, run_folder(config)
    )
    folder = distributed.from_main(prepare() if distributed.is_main() else None)
    if distributed.is_first_on_node() and not folder.exists():  # the data were copied to each node's own disk
        prepare()
    distributed.wait_for_main()
    texts = load_texts(folder)
    if config.one_per_study and texts.studies is None:
        raise UserError(
            f"--one_per_study needs a column study_id in {config.txt_filepath}; build it with `python -m "
            f"data_prep build`, or leave the flag out"
        )
    dataset = PairDataset(config.cxr_filepath, folder)
    rows, dataset.held_out = hold_out(texts.patients, len(texts.tokens), config.val_pairs, config.seed)
    batches = Batches(
        rows,
        config.batch_size,
        config.seed,
        studies=texts.studies if config.one_per_study else None,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    if len(batches) == 0:
        raise UserError(
            f"{config.cxr_filepath} has fewer pairs ({len(rows)}) than there are processes; use fewer processes"
        )
    workers = default_workers(device) if config.num_workers is None else config.num_workers
    return make_loader(dataset, batches, workers, device)


def make_loader(dataset: PairDataset, batches: Batches, num_workers: int, device: torch.device) -> DataLoader:
    """A loader that reads whole batches, ahead where it has workers, into pinned memory where the device is a GPU.

    It has a generator of its own, because making an iterator draws a number: the training's random state must not
    depend on how often a run was resumed.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers else None,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_leave_signals_to_the_run,
    )


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


def default_workers(device: torch.device) -> int:
    """Worker processes a rank has by itself: with a GPU up to 6 of its share of the cores, without one none."""
    return (
        min(6, max(1, len(os.sched_getaffinity(0)) // max(1, torch.cuda.device_count()) - 1))
        if device.type == "cuda"
        else 0
    )


def _mix(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch


def _leave_signals_to_the_run(_worker: int) -> None:
    """torchrun, SLURM and Ctrl-C signal the whole process group; the workers must go on until the run has saved."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(batch: dict) -> dict:
    return batch
