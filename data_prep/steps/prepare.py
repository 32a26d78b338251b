"""Prepare the images of a plan on all cores, block by block; finished blocks are skipped."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import islice
from multiprocessing.connection import wait as wait_for

import cv2
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from chexzero.common.errors import UserError
from chexzero.common.processes import processes_can_share
from data_prep.roles import KEPT_OUT
from data_prep.steps import blocks
from data_prep.steps.failures import Tally, row_blocks
from data_prep.steps.work import Plan, Work, require_space


def prepare(work: Work, plan: Plan, workers: int, shard: tuple[int, int] = (0, 1)) -> None:
    """Prepare every block of this shard (part, number of parts) that is not complete yet.

    Raises `UserError` as soon as a role has more unusable images than allowed.
    """
    part, parts = shard[0] % shard[1], shard[1]
    mine = {role: range(part, blocks.count(plan.rows[role]), parts) for role in plan.rows}
    pending = {role: {index for index in mine[role] if not _is_whole(work, plan, role, index)} for role in plan.rows}
    total, left = (
        sum(blocks.length(index, plan.rows[role]) for role in plan.rows for index in indices[role])
        for indices in (mine, pending)
    )
    for role in plan.rows:
        work.blocks(role).mkdir(exist_ok=True)
    require_space(work.folder, left * plan.image_size**2, "preparing the images")
    tally = Tally(work, plan)
    done = run_tasks(_tasks(work, plan, pending), workers)
    with progress(total, "preparing", total - left) as bar, closing(done):
        for role, task, errors in done:
            bar.update(len(task.files))
            tally.add(role, len(errors))


def progress(total: int, what: str, finished: int = 0) -> tqdm:
    """A progress bar with images per second and time left; in a log file, one line every 30 seconds."""
    watched = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=finished,
        unit="image",
        desc=what,
        smoothing=0.05,
        dynamic_ncols=True,
        mininterval=0.5 if watched else 30,
        file=sys.stderr if watched else _LogLines(),
    )


class _LogLines:
    """For log files: print each state of a bar on a new line instead of overwriting the last one."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def _is_whole(work: Work, plan: Plan, role: str, index: int) -> bool:
    """Whether a block exists and has no errors (unreadable images are retried)."""
    errors = blocks.read_errors(blocks.block_path(work.blocks(role), index), blocks.length(index, plan.rows[role]))
    return errors is not None and not any(errors)


def _tasks(work: Work, plan: Plan, pending: dict[str, set[int]]) -> Iterator[tuple[str, blocks.Task]]:
    depth16 = plan.identity["settings"]["depth16"]
    for role in ("valid", "test", KEPT_OUT, "train"):  # the small sets first, so that their errors show early
        for index, rows in row_blocks(work, plan, role) if pending.get(role) else ():
            if index in pending[role]:
                files = [(row.root, row.path, row.problem) for row in rows]
                yield role, blocks.Task(blocks.block_path(work.blocks(role), index), files, depth16, plan.image_size)


def run_tasks(
    tasks: Iterable[tuple[str, blocks.Task]], workers: int
) -> Generator[tuple[str, blocks.Task, list[str]], None, None]:
    """Run the tasks in `workers` processes; yields each with its errors when it is done."""
    if not processes_can_share():
        yield from ((*task, blocks.prepare_block(task[1])) for task in tasks)
        return
    tasks = iter(tasks)
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["data_prep.steps.blocks"])  # imported once, not once per worker
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        running: dict[Future, tuple[str, blocks.Task]] = {}
        try:
            while True:
                for role, task in islice(tasks, 2 * workers - len(running)):
                    running[pool.submit(blocks.prepare_block, task)] = (role, task)
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield *running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, perhaps because memory ran out; run the same command again "
                "(prepared images are kept), with fewer --workers if it happens again"
            ) from error
        finally:
            for future in running:
                future.cancel()


def _start_worker() -> None:
    """Set up a worker: one thread, decoder warnings silenced, exit with the parent."""
    cv2.setNumThreads(1)
    threadpool_limits(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        wait_for([parent.sentinel])
    os._exit(1)
