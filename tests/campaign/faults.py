"""Make the n-th file operation fail: the process is killed or gets a signal, or the disk refuses the operation.

Works inside Python, without a preloaded library. Counts every write to a file that Python opened for writing, and every
open for writing, rename, sync, removal and mkdir, if the path lies under a given folder. Writes by C libraries are not
counted.
"""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The errors of a full disk, an exceeded quota, a broken disk (happens once) and a disk remounted read-only.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # later operations fail too, except removals


@dataclass(frozen=True)
class Fault:
    """At the `at`-th operation (from 1) the process gets `signal`, or the operation fails with `number`."""

    at: int
    signal: int = 0
    number: int = 0


class Injector:
    """Count operations under `root` in this process, and inject `fault` at its operation."""

    def __init__(self, root: Path, fault: Fault | None):
        self.root, self.fault, self.count, self.pid = f"{root.resolve()}{os.sep}", fault, 0, os.getpid()

    def meet(self, operation: str, path: Any, half: Callable[[], object] = lambda: None) -> None:
        """Count one operation. `half` does a part of it: what a kill or a full disk leaves of a write."""
        if os.getpid() != self.pid or not self._is_ours(path):
            return
        self.count += 1
        fault = self.fault
        if fault is None or self.count < fault.at:
            return
        if fault.signal and self.count == fault.at:
            if fault.signal == signal.SIGKILL:
                half()  # after other signals the process goes on and writes all: half of it would be there twice
            os.kill(self.pid, fault.signal)
        elif fault.number and (self.count == fault.at or (fault.number in LASTING and operation != "unlink")):
            half()
            raise OSError(fault.number, os.strerror(fault.number), os.fspath(path))

    def _is_ours(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(self.root)

    def install(self) -> None:
        """Replace the functions for the rest of this process."""
        whole_open, injector = builtins.open, self

        class Counted(io.FileIO):
            def write(self, data: Any) -> int:
                view = memoryview(data).cast("B")
                injector.meet("write", self.name, lambda: io.FileIO.write(self, view[: len(view) // 2]))
                return super().write(data)

        def counted_open(
            file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None
        ):
            if not set(mode) & set("wax+") or not injector._is_ours(file):
                return whole_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            injector.meet("open", file)
            raw = Counted(file, mode.replace("b", "").replace("t", ""), closefd, opener)
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

        builtins.open = io.open = counted_open
        for name in ("replace", "rename", "mkdir", "rmdir", "unlink", "remove"):
            setattr(os, name, self._counted(getattr(os, name), name))
        whole_fsync = os.fsync

        def fsync(descriptor: int) -> None:
            self.meet("fsync", os.readlink(f"/proc/self/fd/{descriptor}") if isinstance(descriptor, int) else None)
            whole_fsync(descriptor)

        os.fsync = fsync

    def _counted(self, function: Callable, name: str) -> Callable:
        def counted(path, *args, **kwargs):
            self.meet("unlink" if name in ("unlink", "remove", "rmdir") else name, path)
            return function(path, *args, **kwargs)

        return counted
