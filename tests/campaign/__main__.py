"""`python -m tests.campaign`: kill, interrupt and starve the commands, and check that nothing is lost or mixed.

Every finished trial is appended to `<out>/trials.jsonl`, so a campaign that was stopped continues where it was. The
seed and a trial's kind, job and number determine the trial.
"""

import argparse
import json
import math
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.campaign.faults import REFUSALS, Fault
from tests.campaign.jobs import JOBS, prepare, run

#: Kind of trial -> job -> number of disturbances in a whole campaign.
WANTED = {
    "kill": {"train": 400, "train, 2 ranks": 100, "build": 200, "evaluate": 100, "export": 100, "demo": 100},
    "signal": {"train": 60, "build": 20, "evaluate": 20, "export": 20},
    "fault": {"train": 80, "build": 60, "evaluate": 30, "export": 30, "demo": 20},
    "limit": {"train": 20, "build": 20, "evaluate": 10, "export": 10, "demo": 10},
}
KILLS_IN_A_ROW = 8


class Trial:
    """One job in one folder, disturbed once or, with kills, up to `KILLS_IN_A_ROW` times."""

    def __init__(self, kind: str, name: str, number: int, seed: int, out: Path):
        self.kind, self.name, self.job, self.number = kind, name, JOBS[name], number
        self.random = random.Random(f"{seed} {kind} {name} {number}")
        self.inputs, self.folder = out / "inputs", out / "trials" / f"{kind}-{name}-{number}".replace(", ", "-")
        prepare(self.inputs, name)
        about = json.loads((self.inputs / "reference" / f"{name}.json").read_text())
        self.operations, self.seconds = about["operations"], about["seconds"]

    def disturbed(self) -> Iterator[str]:
        """Yield `sound` or the error after each disturbance, then `equal` or `differs` for the final result."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.parent.mkdir(exist_ok=True)
        self.job.begin(self.inputs, self.folder)
        for _ in range(KILLS_IN_A_ROW if self.kind == "kill" else 1):
            outcome = self._disturb()
            if outcome is None:
                break
            yield outcome
        else:
            code, said, _ = run(self.job, self.inputs, self.folder)
            if code:
                yield f"does not continue: exit code {code}: {said[-300:]}"
                return
        reference = self.inputs / "reference" / self.name
        if self.job.result(self.folder) != self.job.result(reference):
            yield "differs"  # the folder is kept for inspection
            return
        yield "equal"
        shutil.rmtree(self.folder)

    def _disturb(self) -> str | None:
        """Run the job with one disturbance; None if the job ended before it, or did not need what failed."""
        at, limits, after = self.random.randint(1, self.operations), {}, None
        if self.kind == "kill":
            fault = Fault(at, signal.SIGKILL)
            if self.random.random() < 0.4:
                fault, after = None, self.random.uniform(0.05, self.seconds)
            wanted = [-signal.SIGKILL]
        elif self.kind == "signal":
            number = self.random.choice([signal.SIGINT, signal.SIGTERM])
            fault = Fault(at, number)
            wanted = [130] if number == signal.SIGINT else [75, -signal.SIGTERM]
            if number == signal.SIGTERM and self.name.startswith("train"):
                wanted = [75]
        elif self.kind == "fault":
            fault, wanted = Fault(at, number=self.random.choice(REFUSALS)), [2]
        else:
            fault, wanted = None, [2]
            limits = self.random.choice(
                [
                    {"RLIMIT_FSIZE": self.random.choice([0, 100, 10_000, 300_000])},
                    {"RLIMIT_NOFILE": self.random.randint(12, 40)},
                ]
            )
        code, said, _ = run(self.job, self.inputs, self.folder, fault, after, limits)
        if code == 0:
            return None
        if code not in wanted:
            return f"exit code {code} for {fault or limits}: {said[-600:]}"
        cut = len(said) >= limits.get("RLIMIT_FSIZE", math.inf)  # the output goes to a file under the same limit
        if "Traceback" in said or (len(re.findall("^error: ", said, re.M)) != (code == 2) and not cut):
            return f"not one sentence for {fault or limits}: {said[-600:]}"
        return "sound" if self.job.check(self.inputs, self.folder) else f"mixed or partial after {fault or after}"


def campaign(out: Path, wanted: dict[str, dict[str, int]], seed: int, seconds: float) -> None:
    """Run trials until there are as many disturbances as wanted, or `seconds` have passed."""
    out.mkdir(parents=True, exist_ok=True)
    record, end = out / "trials.jsonl", time.monotonic() + seconds
    while time.monotonic() < end:
        done = read(record)
        count = Counter((one["kind"], one["job"]) for one in done if one["outcome"] not in ("equal", "differs"))
        left = [
            (count[kind, job] / number, kind, job)
            for kind, jobs in wanted.items()
            for job, number in jobs.items()
            if count[kind, job] < number
        ]
        if not left:
            return
        _, kind, name = min(left)  # the least complete
        number = 1 + max((one["number"] for one in done if (one["kind"], one["job"]) == (kind, name)), default=0)
        outcomes = list(Trial(kind, name, number, seed, out).disturbed())
        with open(record, "a", encoding="utf-8") as handle:
            for outcome in outcomes:
                handle.write(json.dumps({"kind": kind, "job": name, "number": number, "outcome": outcome}) + "\n")


def read(record: Path) -> list[dict]:
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


def table(done: list[dict]) -> str:
    """Return the counts by kind and job as a Markdown table."""
    rows = [
        "| kind | command | disturbances | sound afterwards | results compared | equal | wrong |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    groups: dict[tuple[str, str], Counter[str]] = {}
    for one in done:
        groups.setdefault((one["kind"], one["job"]), Counter())[one["outcome"]] += 1
    for (kind, job), outcomes in sorted(groups.items()):
        compared = outcomes["equal"] + outcomes["differs"]
        disturbed = outcomes.total() - compared
        wrong = outcomes.total() - outcomes["sound"] - outcomes["equal"]
        rows.append(
            f"| {kind} | {job} | {disturbed} | {outcomes['sound']} | {compared} | {outcomes['equal']} | {wrong} |"
        )
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/campaign"),
        help="folder for the trials and their record (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="stop after this many seconds; the next call continues"
    )
    parser.add_argument("--seed", type=int, default=1, help="random seed of the trials (default: %(default)s)")
    parser.add_argument(
        "--kind", nargs="+", choices=list(WANTED), default=list(WANTED), help="kinds of trials (default: all)"
    )
    parser.add_argument("--job", nargs="+", choices=list(JOBS), default=list(JOBS), help="commands (default: all)")
    args = parser.parse_args()
    wanted = {kind: {job: n for job, n in WANTED[kind].items() if job in args.job} for kind in args.kind}
    campaign(args.out, wanted, args.seed, args.seconds)
    done = read(args.out / "trials.jsonl")
    print(table(done))
    wrong = [one for one in done if one["outcome"] not in ("sound", "equal")]
    for one in wrong:
        print(f"\n{one['kind']} {one['job']} {one['number']}: {one['outcome']}")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
