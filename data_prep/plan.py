"""The plan of a build: which row of which release plays which role, found on disk, with its report or labels."""

import argparse
import csv
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import cv2
import h5py
import numpy as np
import PIL

from chexzero.common.errors import UserError
from chexzero.common.files import atomic_path, sha256_of
from data_prep.failures import LEFT_OUT_COLUMNS, Tally, left_out
from data_prep.record import REDO, difference
from data_prep.releases.chexpert import Chexpert, view_number
from data_prep.releases.chexpert_plus import ChexpertPlus
from data_prep.releases.locate import find_images
from data_prep.releases.rexgradient import Rexgradient
from data_prep.releases.rows import Row, write_rows
from data_prep.roles import read_roles
from data_prep.work import Plan, Work

log = logging.getLogger(__name__)

VIEWS = ("all", "frontal", "not_lateral")
EVALUATION_VIEWS = ("all", "first_frontal")
SECTIONS = ("impression", "findings", "both")
EMPTY_REPORTS = ("space", "drop", "findings")
THREADS = 16  # that ask the disk whether a file is there; they wait more than they work
PIECE = 4096


class Releases:
    """The releases that the roles need, found on disk."""

    def __init__(self, args: argparse.Namespace, roles: dict[str, dict[str, list[str]]]):
        splits = {
            release: sorted({split for role in roles.values() for split in role.get(release, ())})
            for release in ("chexpert_plus", "chexpert", "rexgradient")
        }
        labelled = {split for role in ("valid", "test") for names in roles[role].values() for split in names}
        self.plus = ChexpertPlus.locate(args) if splits["chexpert_plus"] else None
        self.plus_has_test = bool(self.plus and self.plus.has("test"))
        in_plus = self.plus_has_test and any((root / "test").is_dir() for root in self.plus.images)
        own_images = bool(splits["chexpert"]) and not (splits["chexpert"] == ["test"] and in_plus)
        self.chexpert = Chexpert.locate(args, labelled, own_images)
        self.rexgradient = Rexgradient.locate(args, splits["rexgradient"]) if splits["rexgradient"] else None
        self.by_name = {"chexpert_plus": self.plus, "chexpert": self.chexpert, "rexgradient": self.rexgradient}

    def rows(self, release: str, split: str) -> Iterator[Row]:
        """The rows of a release's split; CheXpert-Plus's rows of the test set are used where its table has them."""
        if release == "chexpert" and split == "test" and self.plus_has_test:
            release = "chexpert_plus"
        return self.by_name[release].rows(split)

    def roots(self, source: str) -> list[Path]:
        """The folders in which a source's images may lie."""
        images = {name: release.images if release else [] for name, release in self.by_name.items()}
        if source == "chexpert_plus" and self.plus_has_test:
            return images["chexpert_plus"] + images["chexpert"]
        return images[source]

    def inputs(self) -> dict[str, Path]:
        """The tables that say what there is."""
        tables = {f"chexpert_{split}_csv": path for split, path in self.chexpert.tables.items()}
        if self.plus:
            tables["chexpert_plus_csv"] = self.plus.table
        if self.rexgradient:
            tables |= {f"rexgradient_{split}_json": path for split, path in self.rexgradient.tables.items()}
        return tables

    def tables_named(self, release: str = "") -> str:
        """The tables, of one release or of all, for a message."""
        return ", ".join(str(path) for name, path in self.inputs().items() if name.startswith(release))

    def drawn(self) -> bool:
        """Whether a release is the demo's: its folder says so in DRAWN.txt."""
        return any((folder / "DRAWN.txt").is_file() for path in self.inputs().values() for folder in path.parents[:2])


def describe(args: argparse.Namespace) -> tuple[Releases, Plan]:
    """Find the releases, and say what a build with these flags is, before its rows are read."""
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
    """Read the releases' tables, find the images, and write the rows of each role; an equal plan is taken as it is.

    Raises `UserError` if more images are missing than may be.
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
        listed = csv.DictWriter(handle, LEFT_OUT_COLUMNS, lineterminator="\n")
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
    plan.counts = {"in_tables": dict(planner.in_tables), "empty_reports": dict(planner.empty_reports)}
    tally = Tally(work, plan)
    for role, missing in planner.missing.items():
        tally.add(role, missing)
    work.write_plan(plan)
    return plan


def _finishing(args: argparse.Namespace) -> dict:
    """The settings that may change between two attempts, for nothing that is prepared depends on them."""
    names = ("max_failures", "on_overlap", "audit_copies", "audit_unrelated")
    return {name: getattr(args, name) for name in names} | {"splits": str(args.splits.absolute())}


class Planner:
    """Goes through the rows of the roles and lists what is left out before any image is read."""

    def __init__(
        self, args: argparse.Namespace, releases: Releases, listed: csv.DictWriter, threads: ThreadPoolExecutor
    ):
        self.args, self.releases, self.listed, self.threads = args, releases, listed, threads
        self.in_tables: Counter[str] = Counter()
        self.empty_reports: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.seen: set[bytes] = set()

    def role_rows(self, role: str, names: dict[str, list[str]]) -> Iterator[Row]:
        """The rows of a role, found on disk."""
        chosen = chain.from_iterable(
            self._training_rows(release, split) if role == "train" else self._evaluation_rows(role, release, split)
            for release, splits in names.items()
            for split in splits
        )
        while piece := list(islice(chosen, PIECE)):
            for source in dict.fromkeys(row.source for row in piece):
                find_images([row for row in piece if row.source == source], self.releases.roots(source), self.threads)
            self.missing[role] += sum(bool(row.problem) for row in piece)
            yield from piece

    def _training_rows(self, release: str, split: str) -> Iterator[Row]:
        for row in self.releases.rows(release, split):
            self.in_tables[f"{row.source}/{row.split}"] += 1
            reason = self._reason_against(row)
            if reason:
                self._leave_out(row, reason)
                continue
            row.report = choose_report(row, self.args.section)
            if not row.report and self.args.empty_report == "findings":
                row.report = choose_report(row, "findings")
            if not row.report:
                self.empty_reports[f"{row.source}/{row.split}"] += 1
                if self.args.empty_report == "drop":
                    self._leave_out(row, "empty report")
                    continue
            yield row

    def require_rows(self, names: dict[str, list[str]]) -> None:
        """No training release may be missing as a whole; that one of its splits is empty is said."""
        for release, splits in names.items():
            empty = [split for split in splits if not self.in_tables[f"{release}/{split}"]]
            what = f"{self.releases.tables_named(release)}: no row is of the split {' or '.join(empty)}"
            if len(empty) == len(splits):
                raise UserError(f"{what}; name the right table, or other roles with --roles")
            if empty:
                log.warning("%s", what)

    def _reason_against(self, row: Row) -> str:
        if not row.path:
            return "study without an image"
        if not _wanted(row.view, self.args.views):
            return f"view is {row.view}"
        return "" if self._is_new(row) else "duplicate of an earlier row"

    def _evaluation_rows(self, role: str, release: str, split: str) -> list[Row]:
        labels = self.releases.chexpert.labels(split)
        rows = list(self.releases.rows(release, split))
        table = self.releases.chexpert.tables[split]
        for row in rows:
            self.in_tables[f"{row.source}/{row.split}"] += 1
            key = row.id.removeprefix(f"{row.source}/")
            found = key if key in labels else key.rsplit("/", 1)[0]
            if found not in labels:
                raise UserError(
                    f"{row.id} is in the {role} set but {table} has no labels for it; name the table that has"
                )
            row.labels = labels[found]
            row.report = choose_report(row, self.args.section)  # for the overlap audit; never trained with
            if not self._is_new(row):
                raise UserError(f"{row.id} is in the tables of the {role} set twice; remove one of the rows")
        named = {row.id.removeprefix(f"{row.source}/") for row in rows}
        named |= {key.rsplit("/", 1)[0] for key in named}
        if unused := [key for key in labels if key not in named]:
            raise UserError(
                f"{table} labels {unused[0]} ({len(unused)} such), but the {role} set has no such image; "
                f"complete the tables or name the right ones"
            )
        return self._choose_views(rows, role, getattr(self.args, f"{role}_views"))

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
        key = hashlib.blake2b(row.id.encode(), digest_size=16).digest()
        if key in self.seen:
            return False
        self.seen.add(key)
        return True

    def _leave_out(self, row: Row, reason: str) -> None:
        self.listed.writerow(left_out(row, reason))


def choose_report(row: Row, section: str) -> str:
    """The text to train with, words joined by single spaces as upstream's reports are; "" if there is none."""
    texts = {"impression": row.impression, "findings": row.findings, "both": f"{row.findings} {row.impression}"}
    return " ".join(texts[section].replace("\0", " ").split())


def _wanted(view: str, choice: str) -> bool:
    return choice == "all" or view == "frontal" or (choice == "not_lateral" and view != "lateral")


def _identity(args: argparse.Namespace, roles: dict, releases: Releases) -> dict:
    names = ("views", "valid_views", "test_views", "section", "empty_report", "depth16")
    return {
        "roles": roles,
        "settings": {name: getattr(args, name) for name in names},
        "inputs": {name: {"path": str(path), "sha256": sha256_of(path)} for name, path in releases.inputs().items()},
        "images": {
            source: [str(root) for root in releases.roots(source)]
            for source in ("chexpert_plus", "chexpert", "rexgradient")
        },
        "libraries": {library.__name__: library.__version__ for library in (cv2, PIL, np, h5py)},
    }
