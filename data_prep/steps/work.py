"""The folder `<out>/work`: the locks on it, and the plan of what to prepare."""

import argparse
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexzero.common.errors import UserError
from chexzero.common.files import read_json, write_json
from chexzero.data_process import RESOLUTION
from data_prep.roles import KEPT_OUT, ROLES

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass
class Plan:
    """What to prepare. `identity` must be equal for a build to be resumed; `rows` is the number of rows by role;
    `finishing` are the settings that only the last step needs and that may change between two attempts."""

    identity: dict[str, Any]
    rows: dict[str, int]
    counts: dict[str, Any]
    drawn: bool
    finishing: dict[str, Any]

    @property
    def image_size(self) -> int:
        """The side of the stored images in pixels."""
        return self.identity["settings"].get("image_size", RESOLUTION)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Work:
    """The paths of a build in its output folder."""

    out: Path

    @property
    def folder(self) -> Path:
        return self.out / "work"

    @property
    def plan_path(self) -> Path:
        return self.folder / "plan.json"

    @property
    def lock_path(self) -> Path:
        return self.out / ".lock"

    @property
    def left_out_path(self) -> Path:
        return self.folder / "left_out.csv"

    def rows_path(self, role: str) -> Path:
        return self.folder / f"{role}.csv"

    def blocks(self, role: str) -> Path:
        return self.folder / role

    def read_plan(self) -> Plan | None:
        if not self.plan_path.is_file():
            return None
        remedy = "start again with --overwrite, or name another folder with --out"
        try:
            return Plan(**read_json(self.plan_path, remedy))
        except TypeError as error:
            raise UserError(f"{self.plan_path} is not a plan of this version; {remedy}") from error

    def write_plan(self, plan: Plan) -> None:
        write_json(self.plan_path, vars(plan))

    def forget_blocks(self) -> None:
        """Delete prepared blocks that belong to no plan."""
        for role in (*ROLES, KEPT_OUT):
            shutil.rmtree(self.blocks(role), ignore_errors=True)

    def discard(self) -> None:
        """Remove the folder, the plan first, so that a folder half removed by a kill is not resumed."""
        self.plan_path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def lock(self, shard: str | None = None) -> Iterator[None]:
        """Lock the output folder: alone, or with `shard` beside other shards but not twice for the same one.

        Without `shard`, the folder `work` is removed afterwards if it holds no plan to resume. A folder `work` with
        content but no lock file beside it was not made by a build and raises `UserError`.
        """
        try:
            if self.folder.is_dir() and not self.lock_path.exists() and any(self.folder.iterdir()):
                raise UserError(f"{self.folder} already exists and belongs to no build; name another folder with --out")
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create {self.folder}: {error.strerror}; name another folder with --out") from error
        kind = fcntl.LOCK_SH if shard else fcntl.LOCK_EX
        with _locked(self.lock_path, kind | fcntl.LOCK_NB, f"{self.out} is in use by another build"):
            if shard:
                path = self.folder / f".lock-{shard.replace('/', '-of-')}"
                with _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB, f"shard {shard} of {self.out} is already running"):
                    yield
                return
            try:
                yield
            finally:
                if not self.plan_path.is_file():
                    self.discard()
                    self.lock_path.unlink(missing_ok=True)

    @contextmanager
    def planning(self) -> Iterator[None]:
        """Let one of several shards plan while the others wait."""
        self.folder.mkdir(exist_ok=True)
        with _locked(self.folder / ".lock-plan", fcntl.LOCK_EX, "another job is planning"):
            yield


@contextmanager
def _locked(path: Path, kind: int, complaint: str) -> Iterator[None]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write in {path.parent}: {error.strerror}; name another folder with --out") from error
    try:
        _flock(descriptor, path, kind, complaint)
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, path: Path, kind: int, complaint: str) -> None:
    try:
        fcntl.flock(descriptor, kind)
        if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise BlockingIOError  # a build that has just finished removed the file
    except BlockingIOError as error:
        raise UserError(f"{complaint}; wait for it, or name another folder with --out") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s does not support locks: make sure that no other build writes there", path.parent)


def require_writable(folder: Path, flag: str) -> Path:
    """Return the folder, created if missing; `UserError` if no file can be created there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}; name another folder with {flag}") from error
    return folder


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise `UserError` unless `folder`'s disk has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{what} needs {needed / 1e9:.1f} GB, but the disk of {folder} has {free / 1e9:.1f} GB free; "
            f"make room or name another folder with --out"
        )


def remove_remains(folder: Path, names: Iterable[str]) -> None:
    """Remove the temporary files that a killed build left beside the files it was writing."""
    for name in names:
        for path in folder.glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)


def cpu_count() -> int:
    """The cores this process may use (a SLURM job has fewer than its node)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def positive(text: str) -> int:
    """Parse a flag's whole number, 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value
