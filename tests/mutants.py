"""Do the tests notice? Changes one operator at a time in core modules and runs the tests that execute its line.

    python -m tests.mutants --changes 100

First the suite runs once under coverage, with the name of the test recorded for each line; then each change is made
in a copy of the checkout, and the tests of its line run until one fails. Printed: how many changes were noticed, and
every one that was not, with its line, to be argued equivalent or to be given a test.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import coverage

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


@dataclass(frozen=True)
class Change:
    """One operator of a file: characters `start` to `end` of its text become `new`."""

    path: Path
    line: int
    start: int
    end: int
    new: str


def changes_of(path: Path) -> Iterator[Change]:
    """Every operator of a file that can be swapped; annotations and texts are left alone."""
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


def record(data_file: Path) -> None:
    """Run the suite once, noting which test executes which line."""
    command = [sys.executable, "-m", "pytest", "-n", "2", "-m", "not long and not gpu", "-p", "no:cacheprovider",
               "--cov", "--cov-context=test", "--cov-report="]  # fmt: skip
    subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "COVERAGE_FILE": str(data_file)}, check=True
    )


def is_noticed(copy: Path, change: Change, tests: list[str], seconds: int) -> bool:
    """Whether one of `tests` fails, or hangs, with the change made in the copy of the checkout."""
    target = copy / change.path.relative_to(ROOT)
    text = target.read_text(encoding="utf-8")
    target.write_text(text[: change.start] + change.new + text[change.end :], encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=copy, capture_output=True, timeout=seconds,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        target.write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--changes", type=int, default=100, help="how many changes to try (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which changes are drawn (default: %(default)s)")
    parser.add_argument("--tests", type=int, default=40, help="at most so many tests per change (default: %(default)s)")
    parser.add_argument("--coverage", type=Path, help="use this file of an earlier call instead of running the suite")
    args = parser.parse_args()
    data_file = args.coverage or ROOT / "build" / "mutants.coverage"
    if args.coverage is None:
        data_file.parent.mkdir(exist_ok=True)
        record(data_file)
    data = coverage.CoverageData(str(data_file))
    data.read()
    every = [change for pattern in CORE for path in sorted(ROOT.glob(pattern)) for change in changes_of(path)]
    drawn = random.Random(args.seed).sample(every, args.changes)
    left: list[Change] = []
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        copy = Path(folder) / "checkout"
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in filter(None, tracked.stdout.split("\0")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        for number, change in enumerate(drawn, 1):
            contexts = data.contexts_by_lineno(str(change.path)).get(change.line, [])
            tests = sorted({context.split("|")[0] for context in contexts if context})
            random.Random(args.seed).shuffle(tests)
            noticed = bool(tests) and is_noticed(copy, change, tests[: args.tests], seconds=600)
            if not noticed:
                left.append(change)
            where = f"{change.path.relative_to(ROOT)}:{change.line}"
            print(f"{number:4} {'noticed' if noticed else 'NOT NOTICED'} {where} ({len(tests)} tests)", flush=True)
    print(f"\n{len(drawn) - len(left)} of {len(drawn)} changes were noticed ({len(every)} possible); not noticed:")
    for change in left:
        line = change.path.read_text(encoding="utf-8").splitlines()[change.line - 1].strip()
        print(f"  {change.path.relative_to(ROOT)}:{change.line}: {line}   with {change.new!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
