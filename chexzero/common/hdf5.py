"""Write HDF5 so that a full disk raises an error instead of crashing the process.

libhdf5 cannot close a file whose data it cannot write: it keeps the file open, and crashes when the process ends.
Here it writes through a Python file that records the first error and discards later writes, so the library can always
close the file; then the error is raised.
"""

import io
import os
from types import TracebackType
from typing import Any

import h5py


class _Through(io.RawIOBase):
    """A writable file that records its first error instead of raising it."""

    def __init__(self, path: str | os.PathLike):
        self.handle = open(path, "w+b", buffering=0)  # noqa: SIM115  (closed by `close`)
        self.error: OSError | None = None
        self.at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset if whence == os.SEEK_SET else self.handle.seek(offset, whence)
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        self.handle.seek(self.at)
        read = self.handle.readinto(buffer) or 0
        memoryview(buffer)[read:] = bytes(len(buffer) - read)
        self.at += len(buffer)
        return len(buffer)

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        end = self.at + len(rest)
        try:
            while self.error is None and rest:
                self.handle.seek(end - len(rest))
                rest = rest[self.handle.write(rest) :]
        except OSError as error:
            self.error = error
        self.at = end
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        size = self.at if size is None else size
        try:
            if self.error is None:
                self.handle.truncate(size)
        except OSError as error:
            self.error = error
        return size

    def close(self) -> None:
        if not self.closed:
            try:
                self.handle.close()
            except OSError as error:
                self.error = self.error or error
            super().close()


class NewFile(h5py.File):
    """A new HDF5 file for a `with` block; `check`, and the end of the block, raise the error of a failed write.

    options: as h5py.File's.
    """

    def __init__(self, path: str | os.PathLike, **options: Any):
        self._through = _Through(path)
        super().__init__(self._through, "w", **options)

    def check(self) -> None:
        """Raise the `OSError` of a write that failed, if one did. Call it in a loop, to end early."""
        if self._through.error is not None:
            raise self._through.error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._through.close()
        if error is None:
            self.check()
