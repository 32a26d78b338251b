"""`python -m data_prep evaluation-set`: an evaluation set, the images and labels of a dataset.

Writes `<NAME>.h5` (`cxr`, uint8, N x size x size, and `id`), `<NAME>_labels.csv` (`id, patient_id, study_id, view`, then
one column per finding: 0, 1, or empty where it is unknown), and `<NAME>.json`, the record of what was used and left out.
"""

import argparse
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from chexzero.common.errors import UserError
from chexzero.common.files import sha256_of, write_json
from chexzero.data_process import RESOLUTION
from chexzero.imaging.decode import DEPTH16
from data_prep.build import IMAGE_SIZES, share
from data_prep.keep_out import Lists
from data_prep.releases import DATASETS, Release
from data_prep.releases.locate import find_images
from data_prep.releases.rows import Row, label_cells
from data_prep.steps import blocks
from data_prep.steps.plan import PIECE, THREADS, differing_counts
from data_prep.steps.prepare import progress, run_tasks
from data_prep.steps.sets import new_images, new_table
from data_prep.steps.work import cpu_count, positive, require_space, require_writable

log = logging.getLogger(__name__)

COLUMNS = ["id", "patient_id", "study_id", "view"]
VIEWS = ("all", "frontal", "not_lateral")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    labelled = [name for name, dataset in DATASETS.items() if dataset.labels]
    parser.add_argument("name", choices=labelled, metavar="NAME", help=f"the dataset: {', '.join(labelled)}")
    where = parser.add_argument_group("where it is")
    where.add_argument("--root", metavar="DIR", help="the dataset's folder on disk")
    where.add_argument("--data_root", metavar="DIR", help="one folder that holds several datasets, instead of --root")
    for dataset in DATASETS.values():
        dataset.add_arguments(where)
    what = parser.add_argument_group("what is selected")
    what.add_argument("--splits", nargs="+", metavar="SPLIT", help="default: the dataset's usual evaluation split")
    what.add_argument("--views", choices=VIEWS, help="default: the dataset's usual views")
    what.add_argument("--only", nargs="+", metavar="FILE", help="use only the listed images, studies or patients")
    what.add_argument("--depth16", choices=DEPTH16, default="stretch", help="how 16-bit images are converted to 8 bits")
    what.add_argument(
        "--image_size", type=int, choices=IMAGE_SIZES, default=RESOLUTION, help="side of the stored images"
    )
    what.add_argument(
        "--max_failures", type=share, default=0.01, metavar="SHARE", help="share of the images that may be unreadable"
    )
    how = parser.add_argument_group("output, and how it runs")
    how.add_argument("--out", type=Path, default=Path("data"), metavar="DIR", help="where the files go")
    how.add_argument("--workers", type=positive, default=cpu_count(), metavar="N", help="processes that prepare images")


def run(args: argparse.Namespace) -> None:
    dataset = DATASETS[args.name]
    splits = args.splits or list(dataset.evaluation_splits)
    if odd := [split for split in splits if split not in dataset.splits]:
        raise UserError(f"{args.name} has no split {odd[0]!r}; it has {', '.join(dataset.splits)}")
    if args.name != "table":
        setattr(args, args.name, args.root or getattr(args, args.name))
    elif args.root:
        args.table_images = args.root
    release = dataset.locate(args, splits, splits, {})
    out = require_writable(args.out, "--out")
    views = args.views or dataset.evaluation_views
    left_out: Counter[str] = Counter()
    in_tables: Counter[str] = Counter()
    only = Lists(args.only) if args.only else None
    rows = list(_chosen(release, splits, views, only, left_out, in_tables))
    if not rows:
        raise UserError(
            f"no image of {args.name} can be used ({_counted(left_out)}); name another folder with --root, or other "
            f"--splits or --views"
        )
    require_space(out, 2 * len(rows) * args.image_size**2, "preparing the images")
    work = out / f".{args.name}.work"
    work.mkdir(exist_ok=True)
    good, errors = _prepare(work, rows, args)
    if len(errors) > args.max_failures * len(rows):
        path, reason = next(iter(errors.items()))
        raise UserError(
            f"{len(errors)} of {len(rows)} images of {args.name} cannot be used, more than --max_failures "
            f"{args.max_failures:g} allows: {path} ({reason}); name the right folder with --root"
        )
    left_out["unreadable image"] += len(errors)
    record = _record(args, release, splits, views, in_tables, +left_out, errors)
    _write(out, args.name, release, rows, good, work, record)
    shutil.rmtree(work)
    for warning in record["warnings"]:
        log.warning("%s", warning)
    print(
        f"{len(good)} images in {out / args.name}.h5, {len(release.labels)} findings in {out / args.name}_labels.csv; "
        f"left out: {_counted(+left_out)}"
    )


def _chosen(
    release: Release, splits: list[str], views: str, only: Lists | None, left_out: Counter[str], in_tables: Counter[str]
) -> Iterator[Row]:
    """Yield the rows to prepare, found on disk; count the others by reason."""
    seen: set[str] = set()
    with ThreadPoolExecutor(THREADS) as threads:
        for split in splits:
            rows = release.rows(split)
            while piece := list(islice(rows, PIECE)):
                kept = []
                for row in piece:
                    in_tables[f"{row.source}/{row.split}"] += 1
                    reason = _reason_against(row, views, only, seen)
                    seen.add(row.id)
                    if reason:
                        left_out[reason] += 1
                        log.debug("%s: %s", row.id, row.problem or reason)
                    else:
                        kept.append(row)
                find_images(kept, release.images, threads)
                yield from kept


def _reason_against(row: Row, views: str, only: Lists | None, seen: set[str]) -> str:
    if row.problem:
        return "entry that cannot be used"
    if not row.path:
        return "study without an image"
    if row.id in seen:
        return "duplicate of an earlier row"
    if not row.labels:
        return "no labels"
    if only is not None and only.match(row) is None:
        return "not in the list"
    if views == "frontal" and row.view != "frontal" or views == "not_lateral" and row.view == "lateral":
        return f"view is {row.view}"
    return ""


def _prepare(work: Path, rows: list[Row], args: argparse.Namespace) -> tuple[list[int], dict[str, str]]:
    """Prepare the images in blocks; returns the indices of the good rows, and the other rows' path -> reason."""
    tasks = []
    for index in range(blocks.count(len(rows))):
        part = rows[index * blocks.SIZE : (index + 1) * blocks.SIZE]
        files = [(row.root, row.path, row.problem) for row in part]
        tasks.append((args.name, blocks.Task(blocks.block_path(work, index), files, args.depth16, args.image_size)))
    with progress(len(rows), "preparing") as bar, closing(run_tasks(tasks, args.workers)) as done:
        for _, task, _ in done:
            bar.update(len(task.files))
    good, errors = [], {}
    for block, start in zip(
        blocks.read_all(work, len(rows), images=False), range(0, len(rows), blocks.SIZE), strict=True
    ):
        for i, error in enumerate(block.errors, start):
            if error:
                errors[rows[i].path] = str(error)
            else:
                good.append(i)
    return good, errors


def _record(
    args: argparse.Namespace,
    release: Release,
    splits: list[str],
    views: str,
    in_tables: Counter[str],
    left_out: Counter[str],
    errors: dict[str, str],
) -> dict[str, Any]:
    sheet = " ".join((release.__doc__ or "").split())
    return {
        "command": "python -m data_prep evaluation-set",
        "name": release.name,
        "about": sheet,
        "splits": splits,
        "views": views,
        "depth16": args.depth16,
        "image_size": args.image_size,
        "only": [{"path": str(path), "sha256": sha256_of(path)} for path in args.only or ()],
        "inputs": {name: {"path": str(path), "sha256": sha256_of(path)} for name, path in release.inputs().items()},
        "images": [str(place) for place in release.images],
        "in_tables": dict(in_tables),
        "left_out": dict(left_out.most_common()),
        "unreadable": errors,
        "warnings": differing_counts(in_tables),
    }


def _write(
    out: Path, name: str, release: Release, rows: list[Row], good: list[int], work: Path, record: dict[str, Any]
) -> None:
    kept = np.array(good)
    made_by = {key: record[key] for key in ("command", "name", "splits", "views", "depth16")}
    positives = Counter({finding: 0 for finding in release.labels})
    with (
        new_table(out / f"{name}_labels.csv", [*COLUMNS, *release.labels]) as write_line,
        new_images(out / f"{name}.h5", [rows[i].id.encode() for i in good], made_by, record["image_size"]) as file,
    ):
        at = 0
        for start, block in zip(range(0, len(rows), blocks.SIZE), blocks.read_all(work, len(rows)), strict=True):
            mine = kept[(kept >= start) & (kept < start + blocks.SIZE)]
            file["cxr"][at : at + len(mine)] = block.images[mine - start]
            file.check()
            at += len(mine)
            for i in mine:
                row = rows[i]
                write_line([row.id, row.patient_id, row.study_id, row.view, *label_cells(row.labels)])
                positives.update(f for f, label in zip(release.labels, row.labels, strict=True) if label == "1")
    files = (f"{name}.h5", f"{name}_labels.csv")
    record |= {
        "images_written": len(good),
        "positives": dict(positives),
        "files": {file: sha256_of(out / file) for file in files},
    }
    write_json(out / f"{name}.json", record)


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{n:,} × {reason}" for reason, n in reasons.most_common()) or "nothing"
