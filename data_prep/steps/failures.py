"""Count the images that cannot be used against the allowed share, and list them in `left_out.csv` with the reason."""

import csv
import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from chexzero.common.errors import UserError
from chexzero.common.files import UnixLines, atomic_path
from data_prep.releases.rows import Row, read_rows
from data_prep.roles import KEPT_OUT, ROLES
from data_prep.steps import blocks
from data_prep.steps.work import Plan, Work

REMEDIES = {
    True: "correct them, or name the right folder with its flag; if only part of the images is on disk, leave out "
    "the laterals with --views frontal or allow for missing images with --max_failures",
    False: "correct them, or name the right folder with its flag",
}
log = logging.getLogger(__name__)

LEFT_OUT_COLUMNS = ["id", "source", "split", "path", "reason"]


class Tally:
    """Counts the images that cannot be used, by role, and stops the build when there are too many."""

    def __init__(self, work: Work, plan: Plan):
        self.work, self.plan = work, plan
        self.failures = dict.fromkeys((*ROLES, KEPT_OUT), 0)

    def add(self, role: str, failures: int) -> None:
        """Count failures; once there are too many, list all in `left_out.csv` and raise `UserError`."""
        self.failures[role] += failures
        share = {"train": self.plan.finishing["max_failures"], KEPT_OUT: 1}.get(role, 0)
        if self.failures[role] <= share * self.plan.rows[role]:
            return
        row, reason = next(list_failures(self.work, self.plan, [role]))
        write_left_out(self.work, self.plan)
        limit = f"more than --max_failures {share:g} allows"
        if role != "train":
            limit = "and an evaluation set must be complete"
        raise UserError(
            f"{self.failures[role]} of {self.plan.rows[role]} {role} images cannot be used, {limit}: "
            f"{row.path} of {row.source} ({reason}); all are listed in {self.work.out / 'left_out.csv'}; "
            f"{REMEDIES[role == 'train']}, and run the same command again"
        )


def row_blocks(work: Work, plan: Plan, role: str) -> Iterator[tuple[int, list[Row]]]:
    """The rows of a role in blocks, with each block's index."""
    rows = read_rows(work.rows_path(role))
    for index in range(blocks.count(plan.rows[role])):
        yield index, list(islice(rows, blocks.SIZE))


def list_failures(work: Work, plan: Plan, roles: Sequence[str] = ROLES) -> Iterator[tuple[Row, str]]:
    """Yield the rows whose image is known to be unusable, with the reason."""
    for role in roles:
        for index, rows in row_blocks(work, plan, role):
            errors = blocks.read_errors(blocks.block_path(work.blocks(role), index), len(rows))
            for row, error in zip(rows, errors or [row.problem for row in rows], strict=True):
                if error:
                    yield row, error


def write_left_out(work: Work, plan: Plan, dropped: dict[str, str] | None = None) -> None:
    """Write `left_out.csv`: what the plan left out, what cannot be used, and what the audit drops (id: reason)."""
    with (
        atomic_path(work.out / "left_out.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as handle,
    ):
        writer = csv.DictWriter(UnixLines(handle), LEFT_OUT_COLUMNS)
        writer.writeheader()
        writer.writerows(read_left_out(work))
        writer.writerows(left_out(row, reason) for row, reason in list_failures(work, plan))
        if dropped:
            writer.writerows(
                left_out(row, dropped[row.id]) for row in read_rows(work.rows_path("train")) if row.id in dropped
            )


def write_odd_ranges(path: Path, odd: Sequence[tuple[Row, str]]) -> None:
    """List the images whose 16-bit range is unusual, in the columns of `left_out.csv`; no file if there is none."""
    if not odd:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(UnixLines(handle), LEFT_OUT_COLUMNS)
        writer.writeheader()
        writer.writerows(left_out(row, note) for row, note in odd)
    log.warning("%d images have samples far from all others: %s lists them; inspect some", len(odd), path)


def left_out(row: Row, reason: str) -> dict[str, str]:
    """A line of `left_out.csv`."""
    return {"id": row.id, "source": row.source, "split": row.split, "path": row.path, "reason": reason}


def read_left_out(work: Work) -> Iterator[dict[str, str]]:
    """The rows that the plan left out."""
    with open(work.left_out_path, newline="", encoding="utf-8") as handle:
        yield from csv.DictReader(handle)
