"""Damage files, read each in a process with limited memory and time, and count the outcomes."""

import contextlib
import json
import math
import multiprocessing
import os
import resource
import tempfile
import time
import traceback
import zlib
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.formats import FORMATS

MEMORY = 2 << 30  # bytes, in addition to what the process has before it reads
SECONDS = 20

#: Outcomes of a file. The last three are failures; so is `OTHER` if the format has checksums.
REFUSED, RIGHT, OTHER = "refused", "read right", "read, other value"
TRACEBACK, CRASH, SLOW = "traceback", "crash", "too slow"
OUTCOMES = (REFUSED, RIGHT, OTHER, TRACEBACK, CRASH, SLOW)


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Make one to three changes: flip a bit, zero, remove, repeat or overwrite a piece, truncate, change the header."""
    for _ in range(int(rng.integers(1, 4))):
        if not data:
            break
        n = len(data)
        at, length = int(rng.integers(n)), int(rng.integers(1, max(2, min(n // 4, 4000))))
        kind = int(rng.integers(7))
        if kind == 0:
            data = data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + bytes(min(length, n - at)) + data[at + length :]
        elif kind == 2:
            data = data[:at] + data[at + length :]
        elif kind == 3:
            data = data[:at] + data[at : at + length] + data[at:]
        elif kind == 4:
            data = data[:at] + rng.bytes(length) + data[at + length :]
        elif kind == 5:
            data = data[:at]
        else:
            at = int(rng.integers(min(n, 300)))
            data = data[:at] + rng.bytes(int(rng.integers(1, 5))) + data[at + 4 :]
    return data


def damaged_file(name: str, number: int, seed: int, one_bit: bool = False) -> bytes:
    """Return the damaged file of this number, the same for the same seed. one_bit: flip one bit and nothing else."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    data = FORMATS[name].make()
    if not one_bit:
        return damage(data, rng)
    at = int(rng.integers(len(data)))
    return data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.array_equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def outcome_of(name: str, path: Path, sound: Any) -> tuple[str, str]:
    """Read one file; return its outcome and the sentence or traceback."""
    from chexzero.common.errors import UserError
    from chexzero.imaging.decode import UnreadableImage

    try:
        value = FORMATS[name].read(path)
    except (UserError, UnreadableImage) as error:
        sentence = str(error)
        return (
            (TRACEBACK, f"no sentence: {sentence!r}")
            if not sentence or "Traceback" in sentence
            else (REFUSED, sentence)
        )
    except BaseException:  # any other exception is a failure to report
        return TRACEBACK, traceback.format_exc()
    return (RIGHT, "") if equal(value, sound) else (OTHER, "")


def _work(link: Connection, folder: str) -> None:
    import chexzero.common.formats  # noqa: F401
    import chexzero.models.checkpoints  # noqa: F401  (before the memory is limited)

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    sound: dict[str, Any] = {}
    bounded = False
    while True:
        try:
            name, number, seed, one_bit = link.recv()
        except EOFError:
            return
        path = Path(folder) / f"{os.getpid()}{FORMATS[name].suffix}"
        if name not in sound:
            path.write_bytes(FORMATS[name].make())
            sound[name] = FORMATS[name].read(path)
        path.write_bytes(damaged_file(name, number, seed, one_bit))
        if not bounded and len(sound) == len(FORMATS):
            bounded = True
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
        link.send(outcome_of(name, path, sound[name]))
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


class Reader:
    """A process that reads files; it is replaced if it dies or takes too long."""

    def __init__(self, folder: str):
        self.folder, self.process = folder, None

    def read(self, name: str, number: int, seed: int, one_bit: bool) -> tuple[str, str]:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.link, theirs = context.Pipe()
            self.process = context.Process(target=_work, args=(theirs, self.folder), daemon=True)
            self.process.start()
            theirs.close()
            first = 60  # seconds for the imports
        else:
            first = 0
        try:
            self.link.send((name, number, seed, one_bit))
            if self.link.poll(SECONDS + first):
                return self.link.recv()
            outcome = SLOW, f"more than {SECONDS} s"
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join(5)
            outcome = CRASH, f"the process ended with {self.process.exitcode}"
        self.close()
        return outcome

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.link.close()
            self.process = None


def campaign(
    files: int,
    seed: int,
    formats: list[str],
    record: Path | None = None,
    seconds: float = math.inf,
    one_bit: bool = False,
) -> tuple[dict[str, Counter], list[tuple[str, int, str, str]]]:
    """Read `files` damaged files, alternating the formats; return counts by format and outcome, and the failures.

    record: a file with one line per damaged file that was read; files listed in it are not read again. seconds: stop
    after this many; with a record the next call continues.
    """
    counts = {name: Counter() for name in formats}
    failures = []
    lines = record.read_text().splitlines() if record and record.exists() else []
    known = {(name, number, of): rest for name, number, of, *rest in map(json.loads, lines)}
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, contextlib.closing(Reader(folder)) as reader:
        for i in range(files):
            name, number = formats[i % len(formats)], i // len(formats)
            if (name, number, seed) in known:
                outcome, words = known[name, number, seed]
            elif time.monotonic() > end:
                continue
            else:
                outcome, words = reader.read(name, number, seed, one_bit)
                if record:
                    with open(record, "a", encoding="utf-8") as handle:
                        handle.write(json.dumps([name, number, seed, outcome, words]) + "\n")
            counts[name][outcome] += 1
            if outcome in (TRACEBACK, CRASH, SLOW) or (outcome == OTHER and FORMATS[name].checked):
                failures.append((name, number, outcome, words))
    return counts, failures
