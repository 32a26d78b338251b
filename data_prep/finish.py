"""`python -m data_prep finish`: check what was prepared, run the overlap audit, and write the sets."""

import argparse
import logging
from pathlib import Path

import pandas as pd

from chexzero.common.errors import UserError
from chexzero.common.files import write_json
from data_prep.overlap.contract import Audit, Role
from data_prep.releases.rows import read_rows
from data_prep.roles import KEPT_OUT, ROLES
from data_prep.steps import blocks
from data_prep.steps.failures import Tally, write_left_out, write_odd_ranges
from data_prep.steps.plan import patients_of
from data_prep.steps.record import Counts, build_record, summary
from data_prep.steps.sets import FILES, MANIFESTS, good_blocks, write_role
from data_prep.steps.work import Plan, Work, cpu_count, positive, remove_remains, require_space

log = logging.getLogger(__name__)

SETS = [name for names in FILES.values() for name in names]
OVERLAP_REPORT = [f"overlap_report.{ending}" for ending in ("json", "md", "html")]
OUTPUTS = ["build.json", *SETS, "left_out.csv", "odd_ranges.csv", *OVERLAP_REPORT]
AUDIT_COLUMNS = (
    "id",
    "source",
    "split",
    "patient_id",
    "patient_id_column",
    "study_id",
    "view",
    "report",
    "file_sha256",
    "pixel_sha256",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("data"), metavar="DIR", help="the folder given to `build --shard` with --out"
    )
    parser.add_argument(
        "--workers", type=positive, default=cpu_count(), metavar="N", help="threads of the overlap audit"
    )


def run(args: argparse.Namespace) -> None:
    work = Work(args.out)
    if not args.out.is_dir():
        raise UserError(f"{args.out} is not a folder; name the folder given to `build` with --out")
    with work.lock():
        if (args.out / "build.json").is_file():
            work.discard()
            print(f"{args.out} is already finished; nothing to do")
        elif (plan := work.read_plan()) is not None:
            finish(work, plan, args.workers)
        else:
            work.discard()
            raise UserError(
                f"{args.out} holds no build to finish; run `python -m data_prep build --out {args.out}` first"
            )


def finish(work: Work, plan: Plan, workers: int) -> None:
    """Write the files that docs/DESIGN.md names from the blocks of all roles, `build.json` last."""
    remove_remains(work.out, OUTPUTS)
    remove_remains(Path(plan.finishing["splits"]), MANIFESTS.values())
    log.info("checking what was prepared")
    _check_blocks(work, plan)
    require_space(work.out, sum(plan.rows.values()) * plan.image_size**2, "joining the images")
    audit = _audit(work, plan, workers)
    dropped = {name: audit.reasons.get(name, "overlap with an evaluation set") for name in audit.drop_ids}
    listed = {name for name, reason in dropped.items() if reason.startswith(f"overlap with {KEPT_OUT}")}
    kept = _of_kept_out_patients(work, plan)
    dropped |= {name: reason for name, reason in kept.items() if name not in dropped or name in listed}
    counts = Counts(plan)
    rows: dict[str, int] = {}
    for role in ROLES:
        rows |= write_role(work, plan, role, dropped if role == "train" else {}, counts.add)
    write_left_out(work, plan, dropped)
    write_odd_ranges(work.out / "odd_ranges.csv", counts.odd)
    counts.add_left_out(work.out / "left_out.csv")
    log.info("computing the files' SHA-256")
    record = build_record(plan, counts, work.out, rows, audit)
    write_json(work.out / "build.json", record)
    work.discard()
    print(summary(record, work.out, plan.finishing["splits"]))


def _of_kept_out_patients(work: Work, plan: Plan) -> dict[str, str]:
    """Training images to drop because `--keep_out` lists another image of their patient: id -> reason.

    The lists are another evaluation's sets, so `--on_overlap` applies to them as to our own: drop, stop or keep.
    """
    kept = plan.counts.get("kept_patients") or {}
    rows = read_rows(work.rows_path("train")) if kept else ()
    found = {row.id: kept[name] for row in rows for name in sorted(patients_of(row) & kept.keys())}
    on_overlap, first = plan.finishing["on_overlap"], next(iter(found), None)
    if first and on_overlap == "stop":
        raise UserError(
            f"{len(found)} training images are of patients with another image listed in {found[first]}, the first is "
            f"{first}; leave them out with --on_overlap drop, or keep them with --on_overlap keep"
        )
    if found and on_overlap == "keep":
        log.warning("%d training images are of patients with another image in a list of --keep_out", len(found))
    return {name: f"patient of {file}" for name, file in found.items()} if on_overlap == "drop" else {}


def _check_blocks(work: Work, plan: Plan) -> None:
    """Raise `UserError` unless all blocks exist and no more images have failed than the settings allow."""
    tally, missing = Tally(work, plan), 0
    for role in plan.rows:
        for index in range(blocks.count(plan.rows[role])):
            path, n = blocks.block_path(work.blocks(role), index), blocks.length(index, plan.rows[role])
            errors = blocks.read_errors(path, n)
            missing += errors is None
            tally.add(role, sum(map(bool, errors or ())))
    if missing:
        total = sum(blocks.count(rows) for rows in plan.rows.values())
        raise UserError(
            f"{missing} of {total} blocks of images in {work.folder} are not prepared yet; run the "
            f"shards that are missing, or `python -m data_prep build` with the same flags and without "
            f"--shard, which prepares what is missing"
        )


def _audit(work: Work, plan: Plan, workers: int) -> Audit:
    from data_prep.overlap.audit import AuditOptions, run_audit  # slow to import; a shard does not need it

    roles = {
        role: Role(
            blocks.GoodImages(work.blocks(role), plan.rows[role], plan.image_size), _audit_rows(work, plan, role)
        )
        for role in plan.rows
    }
    options = AuditOptions(
        on_overlap=plan.finishing["on_overlap"],
        workers=workers,
        drawn=plan.drawn,
        copies=plan.finishing["audit_copies"],
        unrelated=plan.finishing["audit_unrelated"],
    )
    return run_audit(roles, work.out, options)


def _audit_rows(work: Work, plan: Plan, role: str) -> pd.DataFrame:
    columns: dict[str, list[str]] = {name: [] for name in AUDIT_COLUMNS}
    known: dict[str, str] = {}  # the images of a study share their ids and their report: hold each text once
    for block in good_blocks(work, plan, role):
        for row, hashes in zip(block.rows, block.hashes, strict=True):
            for name, values in columns.items():
                value = hashes[name] if name in hashes else getattr(row, name)
                values.append(value if name == "id" or name in hashes else known.setdefault(value, value))
    return pd.DataFrame(columns, dtype=object)
