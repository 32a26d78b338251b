"""Upstream's functions for PadChest, with paths as arguments.

`python -m data_prep evaluation-set padchest` does all of it at once, from the downloaded release.
"""

import ast
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from chexzero.common.errors import UserError
from chexzero.common.files import atomic_path, require_file
from chexzero.data_process import RESOLUTION, _attempt, _in_parallel

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

#: A file's line of `unzip -l`: size, date, time, name. Headings, rules and the line of totals have no date.
_LISTED = re.compile(r"\s*\d+\s+[\d-]{8,10}\s+\d\d:\d\d\s+(\S.*?)\s*$")


def extract_filenames(txt_path: str | os.PathLike) -> list[str]:
    """The names in a listing that `unzip -l` wrote, in order; `UserError` if it lists no file."""
    text = require_file(txt_path, "name a listing made with `unzip -l`").read_text(encoding="utf-8")
    names = [match[1] for line in text.splitlines() if (match := _LISTED.match(line))]
    if not names:
        raise UserError(f"{txt_path} lists no file; name a listing made with `unzip -l`")
    return names


def read_list(cell: object) -> list[str] | None:
    """The distinct names in a cell like `['cardiomegaly', ' pleural effusion', '']`, stripped and in lower case.

    None for a cell that is not a list of strings.
    """
    try:
        names = ast.literal_eval(str(cell).strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return list(dict.fromkeys(name.strip().lower() for name in names if name.strip()))


def get_unique_labels(labels_df: "pd.DataFrame", column: str = "Labels") -> list[str]:
    """Every name in a column of lists, sorted, in lower case; cells that cannot be read are skipped."""
    return sorted({name for cell in labels_df[column] for name in read_list(cell) or ()})


def create_multi_hot_labels(
    labels_df: "pd.DataFrame", unique_labels_list: Sequence[str], column: str = "Labels"
) -> "pd.DataFrame":
    """`ImageID` and one column per label: 1 where the row's list contains exactly that name, else 0.

    Rows whose list cannot be read are left out, and a warning counts them.
    """
    lists = [read_list(cell) for cell in labels_df[column]]
    kept = [i for i, names in enumerate(lists) if names is not None]
    if len(kept) < len(lists):
        log.warning("%d of %d rows have a list of labels that cannot be read", len(lists) - len(kept), len(lists))
    hot = [[int(label in (lists[i] or ())) for label in unique_labels_list] for i in kept]
    import pandas as pd

    table = pd.DataFrame(np.array(hot).reshape(len(kept), -1), columns=list(unique_labels_list))
    table.insert(0, "ImageID", labels_df["ImageID"].iloc[kept].to_numpy())
    return table


def get_paths(directory: str | os.PathLike) -> list[str]:
    """The `.png` files in a folder, sorted."""
    return sorted(str(path) for path in Path(directory).glob("*.png"))


def img_to_h5(
    cxr_paths: Sequence[str | os.PathLike], out_filepath: str | os.PathLike, resolution: int = RESOLUTION
) -> list[str]:
    """Preprocess the images and write `cxr`, uint8 (N, resolution, resolution); returns the paths stored, in order.

    A file that cannot be read is left out with a warning that names it. `UserError` where none is left.
    """
    stored: list[str] = []
    from chexzero.common.hdf5 import NewFile  # here: processes that only read lists do not need h5py

    with atomic_path(out_filepath) as temporary, NewFile(temporary) as file:
        shape = (resolution, resolution)
        dataset = file.create_dataset(
            "cxr", (len(cxr_paths), *shape), np.uint8, maxshape=(None, *shape), chunks=(1, *shape)
        )
        images = _in_parallel(lambda path: _attempt(path, resolution), cxr_paths)
        for path, image in zip(tqdm(cxr_paths, unit="image", disable=None), images, strict=True):
            if isinstance(image, str):
                log.warning("%s is left out: it cannot be read %s", path, image)
                continue
            dataset[len(stored)] = image
            stored.append(str(path))
            file.check()
        dataset.resize(len(stored), axis=0)
        if not stored:
            raise UserError(
                f"none of {len(cxr_paths)} images can be read, so {out_filepath} is not written; check the paths"
            )
    return stored


def order_labels(df: "pd.DataFrame", cxr_paths: Sequence[str | os.PathLike]) -> "pd.DataFrame":
    """The rows of `df` in the order of the images, by `ImageID` and the file's name; one row per image."""
    names = [Path(path).name for path in cxr_paths]
    by_name = df.drop_duplicates("ImageID").set_index("ImageID", drop=False)
    missing = [name for name in names if name not in by_name.index]
    if missing:
        raise UserError(f"{len(missing)} images have no row of labels (the first is {missing[0]}); leave them out")
    return by_name.loc[names].reset_index(drop=True)
