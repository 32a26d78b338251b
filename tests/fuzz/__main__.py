"""Damage files of every format, read them, and count the outcomes.

    python -m tests.fuzz --files 10000 --seed 1

With `--record FILE` it continues where an earlier call with the same file stopped. Prints a table and every failure,
with the number that reproduces its file (`--keep FORMAT NUMBER FILE`). The exit code is 1 if there is a failure: a
traceback, a crash, a file that takes too long, or an altered value that was read although the format has checksums.
"""

import argparse
import math
import sys
from pathlib import Path

from tests.fuzz.campaign import OUTCOMES, campaign, damaged_file
from tests.fuzz.formats import FORMATS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10000, help="number of damaged files (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="random seed of the damage (default: %(default)s)")
    parser.add_argument(
        "--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS), help="formats to damage (default: all)"
    )
    parser.add_argument("--record", type=Path, help="keep every outcome in this file; the next call continues from it")
    parser.add_argument("--one_bit", action="store_true", help="flip one bit per file and change nothing else")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this many seconds")
    parser.add_argument("--keep", nargs=3, metavar=("FORMAT", "NUMBER", "FILE"), help="write one damaged file and exit")
    args = parser.parse_args()
    if args.keep:
        name, number, path = args.keep
        Path(path).write_bytes(damaged_file(name, int(number), args.seed, args.one_bit))
        return 0
    counts, failures = campaign(args.files, args.seed, args.formats, args.record, args.seconds, args.one_bit)
    print(f"| format | files | {' | '.join(OUTCOMES)} |\n|---|--:|{'--:|' * len(OUTCOMES)}")
    rows = {**counts, "all": sum(counts.values(), start=type(next(iter(counts.values())))())}
    for name, found in rows.items():
        print(f"| {name} | {found.total()} | {' | '.join(str(found[one]) for one in OUTCOMES)} |")
    for name, number, outcome, words in failures:
        print(f"\n{name} {number}: {outcome}\n{words}", file=sys.stderr)
    print(f"seed {args.seed}: {len(failures)} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
