"""The roles of a finished data set, read back from `data/` and the manifests in `splits/`."""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from chexzero.common.errors import UserError
from chexzero.common.files import read_json, read_table, sha256_of
from chexzero.common.formats import DATA_FILES, check_rows, image_ids, open_images
from chexzero.imaging.image_files import ImageFiles, images_in
from data_prep.overlap.contract import Role
from data_prep.overlap.nominate import blocks

log = logging.getLogger(__name__)

FILES = DATA_FILES
FROM_MANIFEST = ("source", "split", "patient_id_column", "file_sha256", "pixel_sha256")


@dataclass
class Opened:
    """Roles open for reading, the SHA-256 of their files, whether the corpus is drawn, and what the build's audit
    said."""

    roles: dict[str, Role]
    files: dict[str, str]
    drawn: bool
    earlier: list[str]


@contextmanager
def open_roles(data: Path, splits: Path) -> Iterator[Opened]:
    """Yield the roles of a data folder.

    A role whose two files are both missing is left out, but at least two roles must remain. Without a manifest, file
    hashes and the table's patients are not compared, and pixel hashes are computed.
    """
    build = _read_build(data / "build.json")
    with ExitStack() as stack:
        roles: dict[str, Role] = {}
        files: dict[str, str] = {}
        for name, (images, table) in FILES.items():
            if (data / images).exists() or (data / table).exists():
                check_rows(data / images, data / table, read_table(data / table, ["id"], all_columns=False))
                handle = stack.enter_context(open_images(data / images))
                manifest = splits / f"{name}.csv"
                _check_manifest(build, data, manifest)
                files |= {path.name: sha256_of(path) for path in (data / images, data / table)}
                own = _square(handle, data / images)
                roles[name] = Role(own, _rows(data / table, manifest, own))
        if len(roles) < 2:
            raise UserError(
                f"{data} holds fewer than two of cxr.h5, valid.h5 and test.h5, so there is nothing to "
                f"compare; run `python -m data_prep build` first or name the folder with --data"
            )
        yield Opened(roles, files, bool(build.get("drawn")), _earlier(build))


@contextmanager
def open_sets(sets: dict[str, Path]) -> Iterator[Opened]:
    """Yield roles that have only images and ids, each from a folder of images or an HDF5 file."""
    with ExitStack() as stack:
        roles: dict[str, Role] = {}
        files: dict[str, str] = {}
        for name, path in sets.items():
            images: Any
            if path.is_dir():
                paths = images_in(path)
                images, ids = ImageFiles(paths), [str(file.relative_to(path)) for file in paths]
                columns = {"file_sha256": [sha256_of(file) for file in paths]}
                files[str(path)] = hashlib.sha256("\n".join(columns["file_sha256"]).encode()).hexdigest()
            else:
                handle = stack.enter_context(open_images(path))
                images = _square(handle, path)
                ids = image_ids(handle) or [f"row {row}" for row in range(len(images))]
                columns = {"pixel_sha256": _pixel_hashes(images)}
                files[str(path)] = sha256_of(path)
            rows = pd.DataFrame({"id": [f"{name}: {one}" for one in ids]} | columns)
            roles[name] = Role(images, rows.assign(source=path.name, split="", patient_id="", study_id="", view=""))
        yield Opened(roles, files, False, [])


def _square(handle: Any, path: Path) -> Any:
    """The images of an open file, which must be square."""
    shape = handle["cxr"].shape[1:]
    if shape[0] != shape[1]:
        raise UserError(
            f"{path} holds images of {shape} pixels, but the audit compares square ones; make it again with "
            f"`python -m data_prep build`, or name a folder of images"
        )
    return handle["cxr"]


def _pixel_hashes(images: Any) -> list[str]:
    return [hashlib.sha256(image.tobytes()).hexdigest() for _, block in blocks(images) for image in block]


def keep_build_report(folder: Path) -> None:
    """Rename the report of the build to `overlap_report_build.*`, so that this audit's does not replace it."""
    path = folder / "overlap_report.json"
    if path.is_file() and isinstance(report := read_json(path), dict) and not report.get("finished"):
        for ending in ("json", "md", "html"):
            if (folder / f"overlap_report.{ending}").is_file():
                os.replace(folder / f"overlap_report.{ending}", folder / f"overlap_report_build.{ending}")


def _rows(table_path: Path, manifest_path: Path, images: Any) -> pd.DataFrame:
    table = read_table(table_path, ["id", "patient_id", "study_id", "view"])
    rows = table[["id", "patient_id", "study_id", "view"]].copy()
    for name in ("source", "split"):
        if name in table:
            rows[name] = table[name]
    if "impression" in table:
        rows["report"] = table["impression"]
    if manifest_path.is_file():
        manifest = read_table(manifest_path, ["id"]).drop_duplicates("id").set_index("id")
        known = manifest.reindex(rows["id"])
        for name in FROM_MANIFEST:
            if name in known and name not in rows:
                rows[name] = known[name].to_numpy()
    else:
        log.warning("%s is missing: file hashes and the table's patient ids cannot be compared", manifest_path)
    parts = rows["id"].str.split("/")
    if "source" not in rows:
        rows["source"] = parts.str[0]
    if "split" not in rows:
        rows["split"] = parts.str[1].where(rows["source"] != "rexgradient", "")
    if "pixel_sha256" not in rows or rows["pixel_sha256"].isna().any():
        rows["pixel_sha256"] = _pixel_hashes(images)
    return rows.fillna("")


def _read_build(path: Path) -> dict[str, Any]:
    build = read_json(path) if path.is_file() else {}
    if not isinstance(build, dict) or not isinstance(build.get("manifests", {}), dict):
        raise UserError(f"{path} is not the record of a build; build again, or remove it")
    return build


def _check_manifest(build: dict[str, Any], data: Path, manifest: Path) -> None:
    """Raise `UserError` if the manifest is not the one that the build wrote: its hashes are not recomputed."""
    expected = build.get("manifests", {}).get(manifest.name)
    if expected and manifest.is_file() and sha256_of(manifest) != expected:
        raise UserError(
            f"{manifest} is not the manifest of {data / 'build.json'} (its SHA-256 differs); name the "
            f"folder of this build's manifests with --splits, or build again"
        )


def _earlier(build: dict[str, Any]) -> list[str]:
    overlap = build.get("overlap")
    if not isinstance(overlap, dict) or not overlap.get("sentence"):
        return []
    return [f"When these files were built, the audit said: {overlap['sentence']}"]
