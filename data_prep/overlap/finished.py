"""The roles of a finished data set, read back from `data/` and the manifests in `splits/`."""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chexzero.common.errors import UserError
from chexzero.common.files import read_json, read_table, sha256_of
from chexzero.common.formats import DATA_FILES, check_rows, open_images
from data_prep.overlap.contract import Role
from data_prep.overlap.signatures import blocks

log = logging.getLogger(__name__)

FILES = DATA_FILES
FROM_MANIFEST = ("source", "split", "patient_id_column", "file_sha256", "pixel_sha256")


@contextmanager
def open_roles(data: Path, splits: Path) -> Iterator[tuple[dict[str, Role], bool, list[str]]]:
    """Yield the roles, whether the corpus is drawn, and sentences on what was left out before.

    A role whose two files are both missing is left out, but there must be two; what a manifest would add and does not
    (file hashes, the table's patients) is not compared, and pixel hashes are computed.
    """
    build = _read_build(data / "build.json")
    with ExitStack() as stack:
        roles = {}
        for name, (images, table) in FILES.items():
            if (data / images).exists() or (data / table).exists():
                check_rows(data / images, data / table, read_table(data / table, ["id"], all_columns=False))
                handle = stack.enter_context(open_images(data / images))
                if handle["cxr"].shape[1] != handle["cxr"].shape[2]:
                    raise UserError(
                        f"{data / images} holds images of {handle['cxr'].shape[1:]} pixels, but the "
                        f"audit compares square ones; make it again with `python -m data_prep build`"
                    )
                manifest = splits / f"{name}.csv"
                _check_manifest(build, data, manifest)
                roles[name] = Role(handle["cxr"], _rows(data / table, manifest, handle["cxr"]))
        if len(roles) < 2:
            raise UserError(
                f"{data} holds fewer than two of cxr.h5, valid.h5 and test.h5, so there is nothing to "
                f"compare; run `python -m data_prep build` first or name the folder with --data"
            )
        yield roles, bool(build.get("drawn")), _earlier(build)


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
        log.warning("%s is not there: file hashes and the table's patient ids cannot be compared", manifest_path)
    parts = rows["id"].str.split("/")
    if "source" not in rows:
        rows["source"] = parts.str[0]
    if "split" not in rows:
        rows["split"] = parts.str[1].where(rows["source"] != "rexgradient", "")
    if "pixel_sha256" not in rows or rows["pixel_sha256"].isna().any():
        rows["pixel_sha256"] = [
            hashlib.sha256(np.ascontiguousarray(image)).hexdigest() for _, block in blocks(images) for image in block
        ]
    return rows.fillna("")


def _read_build(path: Path) -> dict[str, Any]:
    build = read_json(path) if path.is_file() else {}
    if not isinstance(build, dict) or not isinstance(build.get("manifests", {}), dict):
        raise UserError(f"{path} is not the record of a build; build again, or remove it")
    return build


def _check_manifest(build: dict[str, Any], data: Path, manifest: Path) -> None:
    """The manifest must be the one that the build wrote: its hashes stand for the images."""
    expected = build.get("manifests", {}).get(manifest.name)
    if expected and manifest.is_file() and sha256_of(manifest) != expected:
        raise UserError(
            f"{manifest} is not the manifest of {data / 'build.json'} (its SHA-256 is another); name the "
            f"folder of this build's manifests with --splits, or build again"
        )


def _earlier(build: dict[str, Any]) -> list[str]:
    overlap = build.get("overlap")
    if not isinstance(overlap, dict) or not overlap.get("sentence"):
        return []
    return [f"When these files were built, the audit said: {overlap['sentence']}"]
