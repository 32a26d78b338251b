"""Mutation testing: change one operator at a time in core modules and run the tests that execute its line.

    python -m tests.mutants --changes 100

First the suite runs once under coverage in a copy of the checkout, with the tests recorded that execute each line, and
how long each takes; then each change is made in a copy, and the tests of its line run, the quickest and most specific
first, until one fails. It prints how many changes were noticed, and each unnoticed one with its line: it is either
equivalent or needs a test.
"""

import argparse
import ast
import bisect
import importlib.util
import itertools
import multiprocessing
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from xml.etree import ElementTree

import coverage
import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Where a wrong operator would change a published number or lose data.
CORE = (
    "chexzero/*.py",
    "chexzero/common/*.py",
    "chexzero/evaluation/*.py",
    "chexzero/imaging/*.py",
    "chexzero/models/*.py",
    "chexzero/runs/*.py",
    "chexzero/training/*.py",
    "chexzero/suites/metrics.py",
    "data_prep/*.py",
    "data_prep/overlap/*.py",
    "data_prep/releases/*.py",
    "dinov3_adapter/*.py",
)
SWAPS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.In: "not in",
    ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is", ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*",
    ast.FloorDiv: "/", ast.Mod: "*", ast.Pow: "*", ast.And: "or", ast.Or: "and", ast.BitAnd: "|", ast.BitOr: "&",
    ast.MatMult: "*", ast.LShift: ">>", ast.RShift: "<<",
}  # fmt: skip


#: Tests are forked from a process that has imported the slow libraries, and nothing of this project.
FORKED = multiprocessing.get_context("forkserver")
IMPORTED = ["cv2", "h5py", "hypothesis", "matplotlib.figure", "open_clip", "pandas", "pytest", "scipy.stats",
            "sklearn.metrics", "timm", "torch"]  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One operator of a file: characters `start` to `end` of its text become `new`."""

    path: Path
    line: int
    start: int
    end: int
    new: str


def changes_of(path: Path) -> Iterator[Change]:
    """Every operator of a file that can be swapped, except in annotations and strings."""
    text = path.read_text(encoding="utf-8")
    offsets = [0]
    for row in text.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(row))

    def at(row: int, column: int) -> int:
        line = text[offsets[row - 1] : offsets[row]]
        return offsets[row - 1] + len(line.encode()[:column].decode())

    tree = ast.parse(text)
    passed = {
        id(inner) for node in ast.walk(tree) for annotation in _annotations(node) for inner in ast.walk(annotation)
    }
    passed |= {id(inner) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in passed:
            continue
        if isinstance(node, ast.Compare):
            triples = zip([node.left, *node.comparators], node.ops, node.comparators, strict=False)
        elif isinstance(node, ast.BoolOp):
            triples = ((left, node.op, right) for left, right in zip(node.values, node.values[1:], strict=False))
        elif isinstance(node, ast.BinOp):
            if isinstance(node.left, ast.Constant) and isinstance(node.left.value, str):
                continue
            triples = iter([(node.left, node.op, node.right)])
        else:
            continue
        for left, operator, right in triples:
            start, end = at(left.end_lineno, left.end_col_offset), at(right.lineno, right.col_offset)
            between = text[start:end]
            if type(operator) in SWAPS and "#" not in between:
                word = between.strip(" \n()")
                place = start + between.index(word)
                yield Change(path, text.count("\n", 0, place) + 1, place, place + len(word), SWAPS[type(operator)])


def _annotations(node: ast.AST) -> list[ast.AST]:
    found = [getattr(node, name, None) for name in ("annotation", "returns")]
    return [one for one in found if one is not None]


def write_copy(folder: Path) -> Path:
    """Clone the checkout, uncommitted changes included, and link its neighbour `shared` beside the copy."""
    copy = folder / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, tracked.stdout.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    (folder / "shared").symlink_to(ROOT.parent / "shared")
    return copy


def record(copy: Path, data_file: Path) -> None:
    """Run the suite once, noting which test executes which line, and (in `data_file`.xml) its seconds."""
    command = [sys.executable, "-m", "pytest", "-n", "2", "-m", "not long and not gpu", "-p", "no:cacheprovider",
               "--cov", "--cov-context=test", "--cov-report=", f"--junitxml={data_file}.xml"]  # fmt: skip
    subprocess.run(command, cwd=copy, env={**os.environ, "COVERAGE_FILE": str(data_file)}, check=True)


@dataclass
class Recording:
    """The tests that execute a line, the quickest and most specific first."""

    data: coverage.CoverageData
    seconds: dict[str, float]  # of each test
    breadth: Counter[str]  # how many lines each test executes

    @classmethod
    def read(cls, data_file: Path) -> Self:
        data = coverage.CoverageData(str(data_file))
        data.read()
        cases = ElementTree.parse(f"{data_file}.xml").iter("testcase")
        names = ((case, case.get("classname", "").replace(".", "/")) for case in cases)
        seconds = {f"{file}.py::{case.get('name')}": float(case.get("time", 0)) for case, file in names}
        breadth: Counter[str] = Counter()
        for path in data.measured_files():
            for contexts in data.contexts_by_lineno(path).values():
                breadth.update({context.rpartition("|")[0] for context in contexts})
        return cls(data, seconds, breadth)

    def tests_of(self, change: Change, limit: float) -> list[str]:
        """Tests of the change's line that took up to `limit` seconds together; at least one.

        A line that no test is known to execute runs while the module is imported or in another process: then the tests
        of the file's other lines.
        """
        by_line = self.data.contexts_by_lineno(str(change.path.relative_to(ROOT)))
        tests = self._of_contexts(by_line.get(change.line, [])) or self._of_contexts(sum(by_line.values(), []))
        total = list(itertools.accumulate(self.seconds[test] for test in tests))
        return tests[: max(1, bisect.bisect(total, limit))]

    def _of_contexts(self, contexts: list[str]) -> list[str]:
        run = {test for test, _, phase in (one.rpartition("|") for one in contexts) if phase == "run"}
        files = {one.partition("::")[0] for one in contexts if one.endswith("|setup")}
        shared = {test for test in self.seconds if test.partition("::")[0] in files} - run  # created by a fixture
        return [*self._in_order(run & set(self.seconds)), *self._in_order(shared)]

    def _in_order(self, tests: Set[str]) -> list[str]:
        return sorted(tests, key=lambda test: (self.seconds[test] * (1 + self.breadth[test]), test))


def run_tests(copy: Path, tests: list[str], log: Path) -> None:
    """Run tests of the copy until one fails, in a process forked for it; its exit code is pytest's."""
    os.setsid()
    os.chdir(copy)
    sys.path[:] = [str(copy), *(path for path in sys.path if path != str(ROOT))]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    with open(log, "w") as written:
        os.dup2(written.fileno(), 1)
        os.dup2(written.fileno(), 2)
    os._exit(pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", *tests]))


def noticed_by(copy: Path, change: Change, tests: list[str], limit: float) -> str | None:
    """Make the change in the copy; return what fails: the first test, or all of them after `limit` seconds."""
    target, log = copy / change.path.relative_to(ROOT), copy.parent / "log.txt"
    text = target.read_text(encoding="utf-8")
    target.write_text(text[: change.start] + change.new + text[change.end :], encoding="utf-8")
    process = FORKED.Process(target=run_tests, args=(copy, tests, log))
    process.start()
    process.join(limit)
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    target.write_text(text, encoding="utf-8")
    Path(importlib.util.cache_from_source(str(target))).unlink(missing_ok=True)  # its mtime may be in the same second
    if process.exitcode == 0:
        return None
    failed = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0] if failed else f"exit code {process.exitcode}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--changes", type=int, default=100, help="how many changes to try (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which changes are drawn (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="of tests per change at most (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="changes tried at the same time (default: %(default)s)")
    parser.add_argument("--coverage", type=Path, help="use this file of an earlier call instead of running the suite")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    FORKED.set_forkserver_preload(IMPORTED)
    every = [change for pattern in CORE for path in sorted(ROOT.glob(pattern)) for change in changes_of(path)]
    drawn = random.Random(args.seed).sample(every, args.changes)
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder, ThreadPoolExecutor(args.jobs) as pool:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(args.jobs):
            (Path(folder) / str(number)).mkdir()
            copies.put(write_copy(Path(folder) / str(number)))
        data_file = args.coverage or ROOT / "build" / "mutants.coverage"
        if args.coverage is None:
            data_file.parent.mkdir(exist_ok=True)
            record(copies.queue[0], data_file)
        recording = Recording.read(data_file)

        def noticed(change: Change) -> bool:
            copy = copies.get()
            tests = recording.tests_of(change, args.seconds)
            by = noticed_by(copy, change, tests, 60 + 5 * args.seconds) if tests else None
            copies.put(copy)
            where = f"{change.path.relative_to(ROOT)}:{change.line}"
            print(f"{where}: {by or f'NOT NOTICED by {len(tests)} tests'}", flush=True)
            return by is not None

        left = [change for change, found in zip(drawn, pool.map(noticed, drawn), strict=True) if not found]
    print(f"\n{len(drawn) - len(left)} of {len(drawn)} changes were noticed ({len(every)} possible); not noticed:")
    for change in left:
        line = change.path.read_text(encoding="utf-8").splitlines()[change.line - 1].strip()
        print(f"  {change.path.relative_to(ROOT)}:{change.line}: {line}   with {change.new!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
