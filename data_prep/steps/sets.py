"""Write the images of a role, the table beside them and its manifest, in one pass over the prepared blocks."""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chexzero.common.errors import UserError
from chexzero.common.files import UnixLines, atomic_path
from chexzero.common.formats import DATA_FILES
from chexzero.common.hdf5 import NewFile
from chexzero.common.labels import LABELS
from chexzero.data_process import RESOLUTION
from data_prep.releases.rows import Row, label_cells
from data_prep.roles import ROLES
from data_prep.steps import blocks
from data_prep.steps.failures import row_blocks
from data_prep.steps.prepare import progress
from data_prep.steps.work import Plan, Work

FILES = DATA_FILES
MANIFESTS = {role: f"{role}.csv" for role in ROLES}
MANIFEST_COLUMNS = [
    "id",
    "source",
    "split",
    "patient_id",
    "patient_id_column",
    "study_id",
    "view",
    "ap_pa",
    "sex",
    "age",
    "race",
    "bits",
    "file_sha256",
    "pixel_sha256",
]


@dataclass
class GoodBlock:
    """The rows of a block whose images are good, and these images, uint8 (n, size, size); n = 0 if they were not read.
    `hashes` has per row the bits per sample, SHA-256 of the file and of the prepared image, and the range's note."""

    rows: list[Row]
    images: np.ndarray
    hashes: list[dict[str, str]]


def good_blocks(
    work: Work, plan: Plan, role: str, dropped: dict[str, str] | None = None, images: bool = False
) -> Iterator[GoodBlock]:
    """The good rows of a role without the `dropped` ids, one block in memory at a time; with the images if asked."""
    finished = blocks.read_all(work.blocks(role), plan.rows[role], images)
    for (_, rows), block in zip(row_blocks(work, plan, role), finished, strict=True):
        kept = [i for i, row in enumerate(rows) if not block.errors[i] and row.id not in (dropped or ())]
        yield GoodBlock(
            [rows[i] for i in kept],
            block.images[kept] if images else block.images,
            [
                {
                    "bits": str(block.bits[i]),
                    "file_sha256": block.file_sha256[i].tobytes().hex(),
                    "pixel_sha256": block.pixel_sha256[i].tobytes().hex(),
                    "note": str(block.notes[i]),
                }
                for i in kept
            ],
        )


def write_role(
    work: Work, plan: Plan, role: str, dropped: dict[str, str], count: Callable[[str, Row, dict[str, str]], None]
) -> dict[str, int]:
    """Write the files of a role, each atomically; calls `count` for every row. Returns file name -> rows."""
    image_name, table_name = FILES[role]
    ids = [row.id.encode() for block in good_blocks(work, plan, role, dropped) for row in block.rows]
    if not ids:
        raise UserError(f"no image is left for the role {role}; check the tables and {work.out / 'left_out.csv'}")
    columns, line = _WITH_FINDINGS if role == "train" and plan.identity["settings"].get("findings") else TABLES[role]
    with (
        new_table(work.out / table_name, columns) as write_line,
        new_table(Path(plan.finishing["splits"]) / MANIFESTS[role], MANIFEST_COLUMNS) as write_manifest,
        new_images(work.out / image_name, ids, made_by(plan), plan.image_size) as file,
        progress(len(ids), f"writing {image_name}") as bar,
    ):
        at = 0
        for block in good_blocks(work, plan, role, dropped, images=True):
            file["cxr"][at : at + len(block.rows)] = block.images
            file.check()
            at += len(block.rows)
            for row, hashes in zip(block.rows, block.hashes, strict=True):
                write_line(line(row))
                write_manifest([hashes[name] if name in hashes else getattr(row, name) for name in MANIFEST_COLUMNS])
                count(role, row, hashes)
            bar.update(len(block.rows))
    return {image_name: len(ids), table_name: len(ids)}


@contextmanager
def new_images(path: Path, ids: list[bytes], attribute: dict[str, Any], size: int = RESOLUTION) -> Iterator[NewFile]:
    """Create an image file atomically, with the dataset `cxr`: one row per id, one chunk per image."""
    with atomic_path(path) as temporary, NewFile(temporary, libver="v110") as handle:
        handle.attrs["build"] = json.dumps(attribute, sort_keys=True)
        handle.create_dataset("id", data=np.array(ids), chunks=True, fletcher32=True)
        handle.create_dataset("cxr", (len(ids), size, size), np.uint8, chunks=(1, size, size), fletcher32=True)
        yield handle


@contextmanager
def new_table(path: Path, columns: list[str]) -> Iterator[Callable[[list], Any]]:
    """Create a CSV atomically; yields a function that appends one line."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(UnixLines(handle))
        writer.writerow(columns)
        yield writer.writerow


def made_by(plan: Plan) -> dict[str, Any]:
    """The record of how an image file was made, without the machine's folders."""
    identity = plan.identity
    return {
        "command": "python -m data_prep build",
        "drawn": plan.drawn,
        "roles": identity["roles"],
        "settings": identity["settings"],
        "libraries": identity["libraries"],
        "inputs": {name: file["sha256"] for name, file in identity["inputs"].items()},
    }


def _impression_line(row: Row) -> list[str]:
    return [row.path, row.report, row.id, row.source, row.split, row.patient_id, row.study_id, row.view]


def _label_line(row: Row) -> list[str]:
    return [row.id, row.patient_id, row.study_id, row.view, *label_cells(row.labels)]


_REPORTED = (["filename", "impression", "id", "source", "split", "patient_id", "study_id", "view"], _impression_line)
_WITH_FINDINGS = ([*_REPORTED[0], "findings"], lambda row: [*_impression_line(row), row.findings])
_LABELLED = (["id", "patient_id", "study_id", "view", *LABELS], _label_line)

#: role -> the columns of the table beside its images, and a row's line in it
TABLES = {"train": _REPORTED, "valid": _LABELLED, "test": _LABELLED}
