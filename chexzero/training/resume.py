"""Save and load the state that a stopped run needs to resume.

`last.pt` is written to a temporary file and renamed into place; the old one stays as `last.previous.pt`. A kill at any
moment leaves at least one complete file.
"""

import logging
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from chexzero.common.errors import UserError, refusal
from chexzero.common.files import atomic_path
from chexzero.runs.run_folder import DAMAGED, LAST, PREVIOUS
from chexzero.training.config import DEFAULTS, FREE_SETTINGS, LENGTH_SETTINGS, TrainConfig

log = logging.getLogger(__name__)

#: Exit code after SIGTERM or SIGUSR1: the state is saved, requeue the job (EX_TEMPFAIL of sysexits.h).
EXIT_REQUEUE = 75


class Damaged(UserError):
    """A state that was read and is damaged (unlike one that cannot be read, which may be intact)."""


def save_file(content: Any, path: Path) -> None:
    """`torch.save`, atomically: a full disk or a read-only folder raises `UserError` and leaves the old file."""
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            torch.save(content, handle)
    except RuntimeError as error:  # torch's writer raises its own error after a failed write
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        raise UserError(
            f"cannot write {path}: {cause.strerror if cause else str(error).splitlines()[0]}; check the "
            f"disk's space; what was saved before is unharmed"
        ) from error


def save_last(folder: Path, state: dict[str, Any]) -> None:
    """Write `last.pt` and keep the previous one."""
    fresh = folder / f".{LAST}.new"
    save_file(state, fresh)
    if (folder / LAST).exists():
        os.replace(folder / LAST, folder / PREVIOUS)
    os.replace(fresh, folder / LAST)


def load_last(folder: Path) -> dict[str, Any] | None:
    """Return the newest intact state of a run, or None if it has saved none.

    If `last.pt` is damaged, the previous state is used, with a warning, and `last.pt` is renamed: otherwise the next
    `save_last` would replace the intact file with it. Raises `UserError` if all are damaged, or one cannot be read.
    """
    paths = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    for path in paths:
        try:
            state = load_state(path)
        except Damaged as error:
            log.warning("%s", error)
            continue
        if path != paths[0]:
            os.replace(paths[0], folder / DAMAGED)
        return state
    if paths:
        raise UserError(
            f"no state in {folder} is whole; put one back from a copy, or begin another run with --model_name (nothing "
            f"is removed: the checkpoints of this one can be evaluated and trained on)"
        )
    return None


def load_state(path: Path) -> dict[str, Any]:
    """Read one state. Raises `Damaged` for a file that is cut off or altered (every part's CRC is checked)."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or "step" not in state:
            raise ValueError("it holds no state of a run")
        return state
    except Exception as error:  # zipfile, pickle and torch each have their own
        if (why := refusal(error)) is not None:  # the file may be whole: it was not read
            raise UserError(f"{path} cannot be read ({why})") from error
        first = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise Damaged(f"{path} is damaged ({first}); the state saved before it is tried") from error


def check_same(folder: Path, state: dict[str, Any], config: TrainConfig, data: dict[str, Any]) -> None:
    """Raise `UserError` unless a state was made with these settings and data (their content, not their path)."""
    free = FREE_SETTINGS | (LENGTH_SETTINGS if config.lr_schedule == "constant" else set())
    before = DEFAULTS | state["settings"]  # settings newer than the run had their default values
    changed = [
        f"--{name} {before[name]} (now {value})"
        for name, value in config.as_dict().items()
        if name not in free and before[name] != value
    ]
    if changed:
        raise UserError(
            f"{folder} was trained with {', '.join(changed)}; go on with the same settings, or begin "
            f"another run with --model_name"
        )
    then, now = ({Path(name).name: entry for name, entry in one["files"].items()} for one in (state["data"], data))
    changed = [name for name in now if name in then and then[name] != now[name]]
    if changed:
        raise UserError(
            f"{folder} was trained on other data ({', '.join(changed)} changed since); put the files "
            f"back, or begin another run with --model_name"
        )


class StopSignal:
    """Record SIGTERM or SIGUSR1 (SLURM sends them before the time limit); the loop checks between steps."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Callable | int | None] = {}

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.received = signal.Signals(number).name


def leave_when_told() -> None:
    """Exit on SIGTERM and SIGUSR1 at once, until the run installs its own handler; nothing needs saving before that."""

    def leave(number: int, _frame: object) -> None:
        log.warning(
            "told to stop by %s before the first or after the last step: go on with --resume auto",
            signal.Signals(number).name,
        )
        raise SystemExit(EXIT_REQUEUE)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, leave)


def random_state() -> dict[str, torch.Tensor]:
    """Return the state of torch's random generators; a training step uses no others."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
