"""Output folders: a lock admits one writing command at a time, and files are replaced together."""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from chexzero.common.errors import UserError
from chexzero.common.files import write_json, write_text

LOCK, HOLDER = ".lock", ".lock.json"
#: Seconds to wait for a lock: the worker processes of a killed run hold it until they notice the kill.
PATIENCE = 10.0

#: Exists in a folder while its files are being replaced; a kill at that moment leaves it there.
UNFINISHED = "UNFINISHED.txt"
STAGED, CONTENTS = ".new", ".contents.json"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to `folder`; raise a `UserError` that names the holder if there is one.

    The lock is the operating system's (`flock`), so it ends with the process, however that ends; on NFS its scope is
    that of the server's locks. On a file system without locks, filelock uses a file that names its owner.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=PATIENCE)
    except OSError as error:
        if not isinstance(error, Timeout):
            raise UserError(
                f"cannot write to {folder}: {error.strerror or error}; name another folder, or change its permissions"
            ) from error
        raise UserError(
            f"{folder} is being written by {_holder(folder)}; wait for it to end, or choose another name"
        ) from None
    try:
        job = os.environ.get("SLURM_JOB_ID")
        write_json(
            folder / HOLDER,
            {
                "process": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            | ({"slurm_job": job} if job else {}),
        )
        yield
        (folder / HOLDER).unlink(missing_ok=True)
    finally:
        lock.release()


def _holder(folder: Path) -> str:
    """Describe the holder of the lock."""
    try:
        record = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        job = f" (SLURM job {record['slurm_job']})" if "slurm_job" in record else ""
        return f"process {record['process']} on {record['host']}{job} since {record['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


@contextmanager
def replaced_together(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; on success its files replace those that the last call put into `folder`.

    Until then, and after an exception, `folder` stays as it was. A kill while the files are being moved leaves
    `UNFINISHED.txt` behind, which `is_unfinished` reports. Files that no call has put there are not touched.
    """
    with hold(folder):
        staged = folder / STAGED
        shutil.rmtree(staged, ignore_errors=True)  # what a kill left
        staged.mkdir()
        try:
            yield staged
            _move_into_place(staged, folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def is_unfinished(folder: Path) -> bool:
    """Whether the files of `folder` come from two different calls, because the second was killed."""
    return (folder / UNFINISHED).exists()


def _move_into_place(staged: Path, folder: Path) -> None:
    names = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if not path.is_dir())
    before = _contents(folder)
    write_text(
        folder / UNFINISHED,
        "The files here were being replaced when the command was killed: they may belong to two evaluations.\n"
        "Run the command again.\n",
    )
    # List old and new names first, so that a call after a kill here removes every file that is not its own.
    write_json(folder / CONTENTS, sorted({*before, *names}))
    for name in before - set(names):
        (folder / name).unlink(missing_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged / name, folder / name)
    write_json(folder / CONTENTS, names)
    (folder / UNFINISHED).unlink()


def _contents(folder: Path) -> set[str]:
    """The files that the last call put there. A damaged list counts as empty; paths outside the folder are dropped."""
    try:
        names = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        return {name for name in names if (folder / name).resolve().is_relative_to(folder.resolve())}
    except (OSError, ValueError, TypeError):
        return set()
