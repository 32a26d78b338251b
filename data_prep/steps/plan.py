"""The plan of a build: the rows of each role, their images found on disk, with their reports or labels."""

import argparse
import csv
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import PIL
import simplejpeg

from chexzero.common.errors import UserError
from chexzero.common.files import UnixLines, atomic_path, sha256_of
from chexzero.data_process import RESOLUTION
from chexzero.imaging.decode import BULK, REACH
from data_prep.keep_out import Lists
from data_prep.releases import DATASETS, Releases
from data_prep.releases.chexpert import view_number
from data_prep.releases.locate import find_images
from data_prep.releases.rows import UNKNOWN, Row, write_rows
from data_prep.report_text import choose_report
from data_prep.roles import KEPT_OUT, read_roles
from data_prep.steps.failures import LEFT_OUT_COLUMNS, Tally, left_out
from data_prep.steps.record import REDO, difference
from data_prep.steps.work import Plan, Work

log = logging.getLogger(__name__)

VIEWS = ("all", "frontal", "not_lateral")
EVALUATION_VIEWS = ("all", "first_frontal")
SECTIONS = ("impression", "findings", "both")
EMPTY_REPORTS = ("space", "drop", "findings")
THREADS = 16  # that check whether files exist; they mostly wait for the disk
PIECE = 4096
#: Most images of `--keep_out` lists that the audit compares with training; like the evaluation sets they are held in
#: memory, 102 kB of pixels each.
MOST_KEPT_OUT = 5000


def describe(args: argparse.Namespace) -> tuple[Releases, Plan]:
    """Find the releases, and describe the build that these flags ask for, before its rows are read."""
    roles = read_roles(args.roles)
    releases = Releases(args, roles)
    return releases, Plan(
        identity=_identity(args, roles, releases),
        finishing=_finishing(args),
        rows={},
        counts={},
        drawn=releases.drawn(),
    )


def make_plan(args: argparse.Namespace, releases: Releases, plan: Plan, work: Work) -> Plan:
    """Read the releases' tables, find the images, and write the rows of each role; an existing equal plan is reused.

    Raises `UserError` if more images are missing than allowed.
    """
    if (old := work.read_plan()) is not None:
        if old.fingerprint != plan.fingerprint:
            raise UserError(
                f"{work.folder} holds the unfinished work of a build with other settings "
                f"({difference(old.identity, plan.identity)}); {REDO}"
            )
        old.finishing = plan.finishing
        work.write_plan(old)
        return old
    log.info("reading the tables and looking for the images")
    work.forget_blocks()
    with (
        atomic_path(work.left_out_path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as handle,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        listed = csv.DictWriter(UnixLines(handle), LEFT_OUT_COLUMNS)
        listed.writeheader()
        planner = Planner(args, releases, listed, threads)
        for role, names in plan.identity["roles"].items():
            plan.rows[role] = write_rows(work.rows_path(role), planner.role_rows(role, names))
            if plan.rows[role] == 0:
                raise UserError(
                    f"the role {role} has no images: none of its rows in {releases.tables_named()} can "
                    f"be used; name the right tables, or other roles with --roles"
                )
            if role == "train":
                planner.require_rows(names)
        if rows := planner.kept_out_rows():
            plan.rows[KEPT_OUT] = write_rows(work.rows_path(KEPT_OUT), rows)
    plan.counts = {
        "in_tables": dict(planner.in_tables),
        "empty_reports": dict(planner.empty_reports),
        "warnings": ([] if plan.drawn else differing_counts(planner.in_tables)) + without_labels(planner.unlabelled),
    }
    if planner.keep_out:
        plan.counts["keep_out"] = planner.keep_out.counts()
        plan.counts["kept_patients"] = planner.kept_patients
        if (more := sum(planner.kept_out.values()) - len(planner.kept)) > 0:
            plan.counts["warnings"].append(
                f"--keep_out leaves out {len(planner.kept) + more:,} images; the overlap audit looks for copies of "
                f"only the first {len(planner.kept):,}"
            )
        for file, counted in plan.counts["keep_out"].items():
            counted["images"] = planner.kept_out[file]
            if counted["found"] < counted["entries"]:
                plan.counts["warnings"].append(
                    f"{file}: {counted['entries'] - counted['found']:,} of its {counted['entries']:,} entries match "
                    f"nothing in the training releases; they may belong to another release or be spelled differently"
                )
    for warning in plan.counts["warnings"]:
        log.warning("%s", warning)
    tally = Tally(work, plan)
    for role, missing in planner.missing.items():
        tally.add(role, missing)
    work.write_plan(plan)
    return plan


def _finishing(args: argparse.Namespace) -> dict:
    """The settings that may change between two attempts, as no prepared image depends on them."""
    names = ("max_failures", "on_overlap", "audit_copies", "audit_unrelated")
    return {name: getattr(args, name) for name in names} | {"splits": str(args.splits.absolute())}


class Planner:
    """Select the rows of each role and list what is left out, before any image is read."""

    def __init__(
        self, args: argparse.Namespace, releases: Releases, listed: csv.DictWriter, threads: ThreadPoolExecutor
    ):
        self.args, self.releases, self.listed, self.threads = args, releases, listed, threads
        self.in_tables: Counter[str] = Counter()
        self.empty_reports: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.unlabelled: dict[str, list[str]] = {}
        self.seen: set[int] = set()
        self.bad_records = 0
        self.keep_out = Lists(args.keep_out) if args.keep_out else None
        self.kept_out: Counter[str] = Counter()
        self.kept: dict[str, Row] = {}  # the listed images whose copies the audit looks for
        self.kept_patients: dict[str, str] = {}  # patient -> the list that names one of the patient's images

    def role_rows(self, role: str, names: dict[str, list[str]]) -> Iterator[Row]:
        """Yield the rows of a role, their images found on disk or their `problem` set."""
        chosen = chain.from_iterable(
            self._training_rows(release, split) if role == "train" else self._evaluation_rows(role, release, split)
            for release, splits in names.items()
            for split in splits
        )
        while piece := list(islice(chosen, PIECE)):
            for source in dict.fromkeys(row.source for row in piece):
                find_images([row for row in piece if row.source == source], self.releases[source].images, self.threads)
            self.missing[role] += sum(bool(row.problem) for row in piece)
            yield from piece

    def _training_rows(self, release: str, split: str) -> Iterator[Row]:
        for row in self.releases.rows(release, split):
            self.in_tables[f"{row.source}/{row.split}"] += 1
            reason = self._reason_against(row)
            if reason:
                self._leave_out(row, reason)
                continue
            if not self.releases[row.source].has_reports:
                row.impression = row.findings = self.releases[row.source].sentence(row)
            row.report = choose_report(row, self.args.section, self.args.clean_reports)
            if not row.report and self.args.empty_report == "findings":
                row.report = choose_report(row, "findings", self.args.clean_reports)
            if not row.report:
                self.empty_reports[f"{row.source}/{row.split}"] += 1
                if self.args.empty_report == "drop":
                    self._leave_out(row, "empty report")
                    continue
            row.findings = choose_report(row, "findings", self.args.clean_reports) if self.args.findings else ""
            yield row

    def kept_out_rows(self) -> list[Row]:
        """The kept-out images whose files exist, with their reports, for the audit."""
        for source in dict.fromkeys(row.source for row in self.kept.values()):
            rows = [row for row in self.kept.values() if row.source == source]
            find_images(rows, self.releases[source].images, self.threads)
            for row in rows if self.releases[source].has_reports else ():
                row.report = choose_report(row, self.args.section)
                row.findings = ""
        return [row for row in self.kept.values() if not row.problem]

    def require_rows(self, names: dict[str, list[str]]) -> None:
        """Raise `UserError` if a training release has no rows at all; warn if one of its splits has none."""
        for release, splits in names.items():
            empty = [split for split in splits if not self.in_tables[f"{release}/{split}"]]
            what = f"{self.releases.tables_named(release)}: no row belongs to the split {' or '.join(empty)}"
            if len(empty) == len(splits):
                raise UserError(f"{what}; name the right table, or other roles with --roles")
            if empty:
                log.warning("%s", what)

    def _reason_against(self, row: Row) -> str:
        if row.problem:
            self._count_bad_record(row)
            return f"entry that cannot be used ({row.problem})"
        if not row.path:
            return "study without an image"
        if self.keep_out and (file := self.keep_out.match(row)):
            self.kept_out[file] += 1
            self.kept_patients.update(dict.fromkeys(patients_of(row), Path(file).name))
            if len(self.kept) < MOST_KEPT_OUT:
                self.kept[row.id] = row
            return f"kept out by {Path(file).name}"
        if not _wanted(row.view, self.args.views):
            return f"view is {row.view}"
        return "" if self._is_new(row) else "duplicate of an earlier row"

    def _count_bad_record(self, row: Row) -> None:
        self.bad_records += 1
        if self.bad_records > self.args.max_bad_records:
            raise UserError(
                f"{row.problem} ({self.bad_records} such entries, more than --max_bad_records "
                f"{self.args.max_bad_records} allows)"
            )

    def _evaluation_rows(self, role: str, release: str, split: str) -> list[Row]:
        rows = list(self.releases.rows(release, split))
        for row in rows:
            self.in_tables[f"{row.source}/{row.split}"] += 1
            if row.problem:
                raise UserError(f"{row.problem} (the {role} set must be complete)")
            if not row.path or not row.labels:
                if row.path:
                    self.unlabelled.setdefault(f"{row.source}/{row.split}", []).append(row.id)
                self._leave_out(row, "no labels" if row.path else "study without an image")
                row.labels = ""
                continue
            row.labels = self.releases[row.source].as_chexpert(row.labels)
            if self.args.unknown_labels == "negative":
                row.labels = row.labels.replace(UNKNOWN, "0")
            row.report = choose_report(row, self.args.section)  # for the overlap audit; never trained with
            row.findings = ""
            if not self._is_new(row):
                raise UserError(f"{row.id} is in the tables of the {role} set twice; remove one of the rows")
        return self._choose_views([row for row in rows if row.labels], role, getattr(self.args, f"{role}_views"))

    def _choose_views(self, rows: list[Row], role: str, choice: str) -> list[Row]:
        if choice == "all":
            return rows
        first: dict[str, Row] = {}
        for row in sorted(rows, key=view_number):
            if row.view == "frontal":
                first.setdefault(row.study_id, row)
        for row in rows:
            if row.study_id not in first:
                raise UserError(
                    f"{row.study_id} of the {role} set has no frontal view; add it, or use --{role}_views all"
                )
            if first[row.study_id] is not row:
                self._leave_out(row, "not the study's first frontal view")
        return [row for row in rows if first[row.study_id] is row]

    def _is_new(self, row: Row) -> bool:
        key = int.from_bytes(hashlib.blake2b(row.id.encode(), digest_size=8).digest())
        if key in self.seen:
            return False
        self.seen.add(key)
        return True

    def _leave_out(self, row: Row, reason: str) -> None:
        self.listed.writerow(left_out(row, reason))


def patients_of(row: Row) -> set[str]:
    """The patients of an image, by its path and by the table, in a spelling shared by releases of the same patients."""
    own = "" if row.source in ("chexpert", "chexpert_plus", "chexpert5x200") else f"{row.source}/"
    names = {name.removeprefix(f"{row.source}/") for name in (row.patient_id, row.patient_id_column) if name}
    return {own + name for name in names}


def _keep_out_inputs(args: argparse.Namespace) -> dict[str, Path]:
    return {f"keep_out_{i}": Path(file).absolute() for i, file in enumerate(args.keep_out, start=1)}


def differing_counts(in_tables: Counter[str]) -> list[str]:
    """A warning for each split whose table differs from the published number of images."""
    sentences = []
    for part, images in in_tables.items():
        source, split = part.split("/", 1)
        published = DATASETS[source].counts.get(split, images)
        if images != published:
            sentences.append(
                f"{source}, split {split}: the table has {images:,} images where the release has {published:,}; "
                f"unless a subset is intended, this is a derived or truncated table"
            )
    return sentences


def without_labels(unlabelled: dict[str, list[str]]) -> list[str]:
    """A warning for each split of an evaluation set in which images have no labels."""
    return [
        f"{part.replace('/', ', split ')}: {len(ids):,} images have no labels and are left out, the first is {ids[0]}; "
        "complete the table of labels if it was truncated"
        for part, ids in unlabelled.items()
    ]


def _wanted(view: str, choice: str) -> bool:
    return choice == "all" or view == "frontal" or (choice == "not_lateral" and view != "lateral")


#: Settings added later, with their defaults. They are recorded only where they differ from the default, so that a build
#: made before they existed equals one made now with the defaults.
LATER_SETTINGS: dict[str, Any] = {
    "clean_reports": False,
    "findings": False,
    "image_size": RESOLUTION,
    "unknown_labels": "empty",
}


def _identity(args: argparse.Namespace, roles: dict, releases: Releases) -> dict:
    names = ("views", "valid_views", "test_views", "section", "empty_report", "depth16")
    later = {name: getattr(args, name) for name, default in LATER_SETTINGS.items() if getattr(args, name) != default}
    return {
        "roles": roles,
        "settings": {name: getattr(args, name) for name in names}
        | {"range16": f"bulk {BULK[0]:g}..{BULK[1]:g}, reach {REACH:g}" if args.depth16 == "stretch" else "0..65535"}
        | later,
        "inputs": {
            name: {"path": str(path), "sha256": sha256_of(path)}
            for name, path in (releases.inputs() | _keep_out_inputs(args)).items()
        },
        "images": {name: [str(place) for place in release.images] for name, release in releases.by_name.items()},
        "libraries": {library.__name__: library.__version__ for library in (cv2, simplejpeg, PIL, np, h5py)},
    }
