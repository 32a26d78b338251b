"""Prepare the images of a plan on all cores, block by block; what is done already is not done again."""

import csv
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait as wait_for

from tqdm import tqdm

from chexzero.data_process import RESOLUTION
from chexzero.errors import UserError
from chexzero.files import atomic_path
from data_prep import blocks
from data_prep.plan import LEFT_OUT_COLUMNS, read_left_out
from data_prep.roles import ROLES
from data_prep.rows import Row, read_rows
from data_prep.work import Plan, Work, require_space

log = logging.getLogger(__name__)

IMAGE_BYTES = RESOLUTION * RESOLUTION


def prepare(work: Work, plan: Plan, workers: int, shard: tuple[int, int] = (0, 1)) -> None:
    """Prepare every block of this shard that is not whole yet.

    Stops with `UserError` as soon as a role has more images that cannot be used than it may have.
    """
    mine = {role: [b for b in range(blocks.count(plan.rows[role])) if b % shard[1] == shard[0] % shard[1]]
            for role in ROLES}
    tally = Tally(work, plan)
    pending: dict[str, list[int]] = {}
    for role, indices in mine.items():
        pending[role] = [b for b in indices if not tally.add_finished(role, b)]
        work.blocks(role).mkdir(exist_ok=True)
    total = sum(blocks.length(b, plan.rows[role]) for role in ROLES for b in mine[role])
    left = sum(blocks.length(b, plan.rows[role]) for role in ROLES for b in pending[role])
    require_space(work.folder, left * IMAGE_BYTES, "preparing the images")
    with tqdm(total=total, initial=total - left, unit="image", desc="preparing", smoothing=0.05, dynamic_ncols=True,
              mininterval=0.5 if sys.stderr.isatty() else 30) as bar:
        for role, task, errors in _run(_tasks(work, plan, pending), workers):
            tally.add(role, len(errors))
            bar.update(len(task.files))


class Tally:
    """Counts the images that cannot be used, by role, and stops the build when there are too many."""

    def __init__(self, work: Work, plan: Plan):
        self.work, self.plan = work, plan
        self.failures = dict.fromkeys(ROLES, 0)

    def allowed(self, role: str) -> float:
        return self.plan.finishing["max_failures"] * self.plan.rows[role] if role == "train" else 0

    def add_finished(self, role: str, index: int) -> bool:
        """Whether block `index` is whole and without errors. (One with errors is tried again, and counted then.)"""
        errors = blocks.read_errors(blocks.block_path(self.work.blocks(role), index),
                                    blocks.length(index, self.plan.rows[role]))
        return errors is not None and not any(errors)

    def add(self, role: str, failures: int) -> None:
        self.failures[role] += failures
        if self.failures[role] > self.allowed(role):
            self.stop(role)

    def stop(self, role: str) -> None:
        """List what cannot be used and raise the `UserError` that says so."""
        row, reason = next(failures(self.work, self.plan, [role]))
        write_left_out(self.work, self.plan)
        limit = (f"more than --max_failures {self.plan.finishing['max_failures']:g} allows" if role == "train"
                 else "and an evaluation set may lack none")
        raise UserError(f"{self.failures[role]} of {self.plan.rows[role]} {role} images cannot be used, {limit}: {row.path} "
                        f"of {row.source} ({reason}); all are listed in {self.work.out / 'left_out.csv'}; correct them and "
                        f"run the same command again")


def failures(work: Work, plan: Plan, roles: Sequence[str] = ROLES) -> Iterator[tuple[Row, str]]:
    """The rows whose image cannot be used, as far as is known, with the reason."""
    for role in roles:
        for index, rows in row_blocks(work, plan, role):
            errors = blocks.read_errors(blocks.block_path(work.blocks(role), index), len(rows))
            for row, error in zip(rows, errors or [row.problem for row in rows], strict=True):
                if error:
                    yield row, error


def row_blocks(work: Work, plan: Plan, role: str) -> Iterator[tuple[int, list[Row]]]:
    """The rows of a role in blocks, with each block's index."""
    rows = read_rows(work.rows_path(role))
    for index in range(blocks.count(plan.rows[role])):
        yield index, list(islice(rows, blocks.SIZE))


def write_left_out(work: Work, plan: Plan, dropped: dict[str, str] | None = None) -> None:
    """Write `left_out.csv`: what the plan left out, what cannot be used, and what the overlap audit drops."""
    with atomic_path(work.out / "left_out.csv") as temporary, \
            open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(LEFT_OUT_COLUMNS)
        writer.writerows(record.values() for record in read_left_out(work.left_out_path))
        writer.writerows([row.id, row.source, row.split, row.path, reason] for row, reason in failures(work, plan))
        if dropped:
            writer.writerows([row.id, row.source, row.split, row.path, dropped[row.id]]
                             for row in read_rows(work.rows_path("train")) if row.id in dropped)


def _tasks(work: Work, plan: Plan, pending: dict[str, list[int]]) -> Iterator[tuple[str, blocks.Task]]:
    depth16 = plan.identity["settings"]["depth16"]
    for role in ("valid", "test", "train"):  # the small sets first: what is wrong with them shows at once
        wanted = set(pending[role])
        for index, rows in row_blocks(work, plan, role) if wanted else ():
            if index in wanted:
                yield role, blocks.Task(blocks.block_path(work.blocks(role), index),
                                        [(row.root, row.path, row.problem) for row in rows], depth16)


def _run(tasks: Iterator[tuple[str, blocks.Task]], workers: int) -> Iterator[tuple[str, blocks.Task, list[str]]]:
    """Work on the tasks in `workers` processes; yields each with its errors when it is done."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["data_prep.blocks"])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        running: dict[Future, tuple[str, blocks.Task]] = {}
        try:
            while True:
                for role, task in islice(tasks, 2 * workers - len(running)):
                    running[pool.submit(blocks.prepare_block, task)] = (role, task)
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    role, task = running.pop(future)
                    yield role, task, future.result()
        except BrokenProcessPool as error:
            raise UserError("a worker process was killed, perhaps for want of memory; run the same command again (what is "
                            "prepared is kept), with fewer --workers if it happens again") from error
        finally:
            for future in running:
                future.cancel()


def _start_worker() -> None:
    """One thread a process; no noise from the decoders; no life after the parent's."""
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    wait_for([multiprocessing.parent_process().sentinel])
    os._exit(1)
