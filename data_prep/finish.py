"""`python -m data_prep finish`: check what was prepared, run the overlap audit, and write the sets."""

import argparse
import csv
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from tqdm import tqdm

from chexzero.data_process import RESOLUTION
from chexzero.errors import UserError
from chexzero.files import atomic_path, sha256_of, write_json
from chexzero.labels import LABELS
from data_prep import blocks
from data_prep.plan import read_left_out
from data_prep.prepare import IMAGE_BYTES, Tally, row_blocks, write_left_out
from data_prep.roles import ROLES, Audit, Role
from data_prep.rows import Row
from data_prep.work import Plan, Work, cpu_count, positive, remove_remains, require_space

log = logging.getLogger(__name__)

#: role -> its image file and the table beside it
FILES = {"train": ("cxr.h5", "impressions.csv"), "valid": ("valid.h5", "valid_labels.csv"),
         "test": ("test.h5", "test_labels.csv")}
OVERLAP_REPORT = [f"overlap_report.{ending}" for ending in ("json", "md", "html")]
OUTPUTS = [name for names in FILES.values() for name in names] + ["left_out.csv", *OVERLAP_REPORT, "build.json"]

IMPRESSION_COLUMNS = ["filename", "impression", "id", "source", "split", "patient_id", "study_id", "view"]
LABEL_COLUMNS = ["id", "patient_id", "study_id", "view", *LABELS]
MANIFEST_COLUMNS = ["id", "source", "split", "patient_id", "patient_id_column", "study_id", "view", "ap_pa", "sex", "age",
                    "race", "file_sha256", "pixel_sha256"]


@dataclass
class Good:
    """A row whose image was prepared."""

    row: Row
    image: np.ndarray | None
    file_sha256: str
    pixel_sha256: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("data"), help="the folder that `build --shard` was given")
    parser.add_argument("--workers", type=positive, default=cpu_count(), help="processes of the overlap audit")


def run(args: argparse.Namespace) -> None:
    if not args.out.is_dir():
        raise UserError(f"{args.out} does not exist; name the folder that `python -m data_prep build` was given with --out")
    work = Work(args.out)
    with work.lock():
        plan = work.read_plan()
        if plan is not None:
            finish(work, plan, args.workers)
        elif (args.out / "build.json").is_file():
            print(f"{args.out} is finished already; nothing to do")
        else:
            raise UserError(f"{args.out} holds no build to finish; run `python -m data_prep build --out {args.out}` first")


def finish(work: Work, plan: Plan, workers: int) -> None:
    """Join the blocks of all roles into the files that DESIGN.md names; `build.json` is the last of them."""
    remove_remains(work.out, OUTPUTS)
    _check_blocks(work, plan)
    require_space(work.out, sum(plan.rows.values()) * IMAGE_BYTES, "joining the images")
    audit = _audit(work, plan, workers)
    reasons = {name: audit.reasons.get(name, "overlap with an evaluation set") for name in audit.drop_ids}
    counts = Counts(plan)
    files = {}
    for role in ROLES:
        files |= _write_role(work, plan, role, reasons if role == "train" else {}, counts)
    write_left_out(work, plan, reasons)
    counts.add_left_out(work.out / "left_out.csv")
    for name in ("left_out.csv", *OVERLAP_REPORT):
        if (work.out / name).is_file():
            files[name] = _file_record(work.out / name)
    record = _build_record(plan, counts, files, audit)
    write_json(work.out / "build.json", record)
    work.discard()
    (work.out / ".lock").unlink(missing_ok=True)
    print(summary(record, work.out))


def _check_blocks(work: Work, plan: Plan) -> None:
    """Every block must be there, and no more images may have failed than the settings allow."""
    tally, missing = Tally(work, plan), 0
    for role in ROLES:
        for index in range(blocks.count(plan.rows[role])):
            errors = blocks.read_errors(blocks.block_path(work.blocks(role), index), blocks.length(index, plan.rows[role]))
            missing += errors is None
            if errors:
                tally.add(role, sum(map(bool, errors)))
    if missing:
        total = sum(blocks.count(rows) for rows in plan.rows.values())
        raise UserError(f"{missing} of {total} blocks of images in {work.folder} are not prepared yet; run the missing shards, "
                        f"or `python -m data_prep build` with the same flags and without --shard, which prepares what is "
                        f"missing")


def _good_rows(work: Work, plan: Plan, role: str, images: bool = False) -> Iterator[Good]:
    """The rows of a role whose image was prepared, one block in memory at a time; with the images if asked."""
    finished = blocks.read_all(work.blocks(role), plan.rows[role], images)
    for (_, rows), block in zip(row_blocks(work, plan, role), finished, strict=True):
        for i, row in enumerate(rows):
            if not block.errors[i]:
                yield Good(row, block.images[i] if images else None, block.file_sha256[i].tobytes().hex(),
                           block.pixel_sha256[i].tobytes().hex())


def _audit(work: Work, plan: Plan, workers: int) -> Audit:
    try:
        from data_prep.audit import AuditOptions, run_audit
    except ImportError as error:
        log.warning("the overlap audit is not available (%s)", error)
        return Audit(set(), {"status": "not run"})

    roles = {role: Role(blocks.GoodImages(work.blocks(role), plan.rows[role]), _audit_rows(work, plan, role))
             for role in ROLES}
    return run_audit(roles, work.out, AuditOptions(on_overlap=plan.finishing["on_overlap"], workers=workers, drawn=plan.drawn))


def _audit_rows(work: Work, plan: Plan, role: str) -> pd.DataFrame:
    columns: dict[str, list[str]] = {name: [] for name in ("id", "source", "split", "patient_id", "patient_id_column",
                                                           "study_id", "view", "report", "file_sha256", "pixel_sha256")}
    known: dict[str, str] = {}  # the views of a study share their ids and their report: hold each text once
    for good in _good_rows(work, plan, role):
        for name, values in columns.items():
            value = getattr(good, name, None) or getattr(good.row, name, "")
            values.append(value if name in ("id", "file_sha256", "pixel_sha256") else known.setdefault(value, value))
    return pd.DataFrame(columns)


def _write_role(work: Work, plan: Plan, role: str, dropped: dict[str, str], counts: "Counts") -> dict[str, Any]:
    """Write a role's images, the table beside them and its manifest, in one pass; returns the files' records."""
    image_name, table_name = FILES[role]
    splits = Path(plan.finishing["splits"])
    ids = [good.row.id.encode() for good in _good_rows(work, plan, role) if good.row.id not in dropped]
    if not ids:
        raise UserError(f"every image of the role {role} is left out; see {work.out / 'left_out.csv'}")
    with _table(work.out / table_name, *TABLES[role]) as write_table, \
            _table(splits / f"{role}.csv", MANIFEST_COLUMNS, _manifest_line) as write_manifest, \
            _images(work.out / image_name, ids, plan) as write_image:
        for good in _good_rows(work, plan, role, images=True):
            if good.row.id not in dropped:
                write_image(good.image)
                write_table(good)
                write_manifest(good)
                counts.add(role, good.row)
    return {name: _file_record(work.out / name, len(ids)) for name in (image_name, table_name)}


@contextmanager
def _images(path: Path, ids: list[bytes], plan: Plan) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that appends one image after another to a new HDF5 file; whole or not there."""
    made_by = json.dumps(_made_by(plan), sort_keys=True)
    try:
        with atomic_path(path) as temporary, h5py.File(temporary, "w", libver="v110") as handle:
            handle.attrs["build"] = made_by
            handle["id"] = np.array(ids)
            images = handle.create_dataset("cxr", (len(ids), RESOLUTION, RESOLUTION), np.uint8,
                                           chunks=(1, RESOLUTION, RESOLUTION))
            places = iter(tqdm(range(len(ids)), desc=f"writing {path.name}", unit="image", dynamic_ncols=True,
                               mininterval=0.5 if sys.stderr.isatty() else 30))

            def write(image: np.ndarray) -> None:
                images[next(places)] = image

            yield write
    except RuntimeError as error:  # what HDF5 raises when a full disk keeps it from closing the file
        raise UserError(f"cannot write {path} ({' '.join(str(error).split())}); check the disk's space") from error


@contextmanager
def _table(path: Path, columns: list[str], line: Callable[[Good], list]) -> Iterator[Callable[[Good], None]]:
    """A function that appends one row after another to a new CSV; whole or not there."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(columns)
        yield lambda good: writer.writerow(line(good))


def _impression_line(good: Good) -> list[str]:
    row = good.row
    return [row.path, row.report, row.id, row.source, row.split, row.patient_id, row.study_id, row.view]


def _label_line(good: Good) -> list[str]:
    row = good.row
    return [row.id, row.patient_id, row.study_id, row.view, *row.labels]


def _manifest_line(good: Good) -> list[str]:
    return [getattr(good, name) if name.endswith("sha256") else getattr(good.row, name) for name in MANIFEST_COLUMNS]


TABLES = {"train": (IMPRESSION_COLUMNS, _impression_line), "valid": (LABEL_COLUMNS, _label_line),
          "test": (LABEL_COLUMNS, _label_line)}


class Counts:
    """Images, patients, studies and views by role, release and split, and what was left out for which reason."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.images: dict[str, dict[str, Counter[str]]] = {role: {} for role in ROLES}
        self.patients: dict[tuple[str, str], set[str]] = {}
        self.studies: dict[tuple[str, str], set[str]] = {}
        self.left_out: dict[str, Counter[str]] = {}

    def add(self, role: str, row: Row) -> None:
        part = f"{row.source}/{row.split}"
        self.images[role].setdefault(part, Counter())[row.view] += 1
        self.patients.setdefault((role, part), set()).add(row.patient_id)
        self.studies.setdefault((role, part), set()).add(row.study_id)

    def add_left_out(self, path: Path) -> None:
        for record in read_left_out(path):
            self.left_out.setdefault(f"{record['source']}/{record['split']}", Counter())[record["reason"]] += 1

    def by_role(self) -> dict[str, dict[str, dict[str, Any]]]:
        empty, in_tables = self.plan.counts["empty_reports"], self.plan.counts["in_tables"]
        return {role: {part: {
            "in_tables": in_tables.get(part, 0), "images": views.total(), "studies": len(self.studies[role, part]),
            "patients": len(self.patients[role, part]), "views": dict(sorted(views.items())),
            "empty_reports": empty.get(part, 0) if role == "train" else None,
            "left_out": dict(self.left_out.get(part, Counter()).most_common()),
        } for part, views in parts.items()} for role, parts in self.images.items()}


def _file_record(path: Path, rows: int | None = None) -> dict[str, Any]:
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size} | ({} if rows is None else {"rows": rows})


def _made_by(plan: Plan) -> dict[str, Any]:
    """What made an image file, without the folders of the machine it was made on."""
    identity = plan.identity
    return {"command": "python -m data_prep build", "drawn": plan.drawn, "roles": identity["roles"],
            "settings": identity["settings"], "libraries": identity["libraries"],
            "inputs": {name: file["sha256"] for name, file in identity["inputs"].items()}}


def _build_record(plan: Plan, counts: Counts, files: dict[str, Any], audit: Audit) -> dict[str, Any]:
    """What goes into `build.json`."""
    identity = plan.identity
    return {
        "command": "python -m data_prep build",
        "drawn": plan.drawn,
        "settings": identity["settings"] | {name: plan.finishing[name] for name in ("on_overlap", "max_failures")},
        "roles": identity["roles"],
        "inputs": identity["inputs"],
        "images": identity["images"],
        "libraries": identity["libraries"],
        "counts": counts.by_role(),
        "left_out": dict(sum(counts.left_out.values(), Counter()).most_common()),
        "files": files,
        "overlap": audit.summary,
    }


def identity_of(record: dict[str, Any]) -> dict[str, Any]:
    """What a later build must agree with to be the same build: the plan's identity and the treatment of overlaps."""
    settings = {name: value for name, value in record["settings"].items() if name not in ("on_overlap", "max_failures")}
    return {name: record[name] for name in ("roles", "inputs", "images", "libraries")} | {
        "settings": settings, "on_overlap": record["settings"]["on_overlap"]}


def summary(record: dict[str, Any], out: Path) -> str:
    """The table that ends a build."""
    lines = [f"{'role':6} {'release/split':22} {'in tables':>10} {'left out':>9} {'images':>9} {'studies':>9} {'patients':>9}"]
    for role, parts in record["counts"].items():
        for part, n in parts.items():
            lines.append(f"{role:6} {part:22} {n['in_tables']:>10,} {sum(n['left_out'].values()):>9,} {n['images']:>9,} "
                         f"{n['studies']:>9,} {n['patients']:>9,}")
    lines += [f"left out: {n:,} × {reason}" for reason, n in record["left_out"].items()]
    empty = sum(n["empty_reports"] or 0 for n in record["counts"]["train"].values())
    if empty and record["settings"]["empty_report"] != "drop":
        lines.append(f"{empty:,} training images have no {record['settings']['section']} and train with a space")
    if record["drawn"]:
        lines.append("The releases are drawn by `data_prep demo`; no number from them is a clinical result.")
    return "\n".join([*lines, f"written to {out}: {', '.join(record['files'])}, build.json"])
