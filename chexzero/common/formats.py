"""The files that `data_prep` writes and training and evaluation read.

`<name>.h5` holds `cxr`, uint8, N x 320 x 320 (upstream's float32 is also accepted), and `id`, one string per row; the
CSV beside it has the same ids in its column `id`, in the same order. Upstream's own files have no ids; for those only
the number of rows can be compared, and a warning says so.
"""

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np

from chexzero.common.errors import UserError, refusal
from chexzero.common.files import read_json, read_table, require_file
from chexzero.common.labels import LABELS

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

REMEDY = "run `python -m data_prep build` first, or name the file with its flag"


def images_file(name: str) -> str:
    """File name of a labelled set's images: `valid.h5`."""
    return f"{name}.h5"


def labels_file(name: str) -> str:
    """File name of a labelled set's labels: `valid_labels.csv`."""
    return f"{name}_labels.csv"


#: Set -> its images and its table in a data folder.
DATA_FILES = {
    "train": ("cxr.h5", "impressions.csv"),
    **{name: (images_file(name), labels_file(name)) for name in ("valid", "test")},
}


#: Mean and standard deviation of CheXzero's training pixels on the 0..255 scale, the same for every channel.
MEAN = 101.48761
STD = 83.43944


@dataclass(frozen=True)
class PixelRange:
    """The stored values that stand for black and for white, in files of floating-point images: `--pixel_range`."""

    black: float
    white: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `BLACK,WHITE`, such as `0,1` or `-1,1`; raises `UserError` for anything else."""
        try:
            black, white = (float(part) for part in text.split(","))
        except ValueError:
            black = white = math.nan
        if not math.isfinite(black) or not math.isfinite(white) or black >= white:
            raise UserError(
                f"--pixel_range={text}: write the value of black and the value of white, as in --pixel_range=-1,1"
            )
        return cls(black, white)

    def to_grey(self, stored: np.ndarray) -> np.ndarray:
        """Map stored values to float32, 0..255."""
        return np.clip(
            (np.asarray(stored, np.float64) - self.black) * (255 / (self.white - self.black)), 0, 255
        ).astype(np.float32)

    def __str__(self) -> str:
        return f"{self.black:g},{self.white:g}"


class _InGrey:
    """A dataset of floating-point images that is read as 0..255, in slices."""

    def __init__(self, images: h5py.Dataset, pixel_range: PixelRange):
        self.images, self.pixel_range = images, pixel_range
        self.shape, self.dtype = images.shape, np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.pixel_range.to_grey(self.images[rows])


def grey_images(handle: h5py.File, pixel_range: str | None = None) -> Any:
    """The images of an open file, (N, H, W), read in slices as 0..255.

    pixel_range: `BLACK,WHITE` of a file of floating-point images; ignored for bytes, which hold 0..255.
    """
    images = handle["cxr"]
    if pixel_range is None or images.dtype == np.uint8:
        return images
    return _InGrey(images, PixelRange.parse(pixel_range))


def open_images(path: str | os.PathLike) -> h5py.File:
    """Open an image file read-only and check that it has `cxr`, of shape (N, H, W) with N > 0, stored in this file.

    Raises `UserError` for anything else: HDF5 could otherwise read from other files that the file names.
    """
    path = require_file(path, REMEDY)
    handle = None
    try:
        handle = h5py.File(path, "r")
        problem = _problem(handle)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # h5py raises any of these on damage
        first = " ".join(str(error).split())[:120]
        why = refusal(error)
        problem = f"cannot be read ({why})" if why else f"is not a whole HDF5 file ({first})"
        if "unable to lock" in str(error):
            raise UserError(
                f"{path} is locked by another program, which may be writing it; wait for it, or if nothing writes it, "
                "set HDF5_USE_FILE_LOCKING=FALSE"
            ) from error
    if problem is None and handle is not None:
        return handle
    if handle is not None:
        handle.close()
    raise UserError(f"{path} {problem}; make it with `python -m data_prep build`")


def _problem(handle: h5py.File) -> str | None:
    """What is wrong with an image file, or None."""
    images = handle.get("cxr")
    if not isinstance(images, h5py.Dataset):
        return f"has no dataset `cxr` (it holds: {', '.join(handle)[:200] or 'nothing'})"
    for name in ("cxr", "id"):
        link, one = handle.get(name, getlink=True), handle.get(name)
        stored_here = not isinstance(link, h5py.ExternalLink)
        if isinstance(one, h5py.Dataset):
            stored_here &= not one.external and not one.is_virtual and one.file.filename == handle.filename
        if not stored_here:
            return f"keeps `{name}` in another file, which is not read"
    if images.ndim != 3 or 0 in images.shape or images.dtype not in (np.uint8, np.float32, np.float64):
        return (
            f"has `cxr` as {images.dtype} of shape {images.shape}, but images of shape (N, height, width), N > 0, uint8 or "
            f"float32 are needed"
        )
    ids = handle.get("id")
    if ids is not None and not (
        isinstance(ids, h5py.Dataset) and ids.shape == images.shape[:1] and ids.dtype.kind in "SO"
    ):
        return "has an `id` that is not one text per image"
    return None


def image_side(path: str | os.PathLike) -> int | None:
    """The side of a file's square images in pixels; None if they are not square or the file is not an image file."""
    try:
        with open_images(path) as handle:
            height, width = handle["cxr"].shape[1:]
    except UserError:
        return None
    return int(width) if height == width else None


def image_ids(handle: h5py.File) -> list[str] | None:
    """The row ids of an image file, or None for upstream's files, which have none; whole numbers become text."""
    if "id" not in handle:
        return None
    try:
        values = handle["id"][:]
        ids = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{handle.filename}: an `id` is not UTF-8 ({error.object!r}); write the ids again as UTF-8"
        ) from error
    except (OSError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{handle.filename}: `id` cannot be read ({str(error).split(',')[0]})") from error
    if len(ids) != len(handle["cxr"]):
        raise UserError(f"{handle.filename} has {len(handle['cxr'])} images but {len(ids)} ids; make it again")
    return ids


def read_build(data_dir: str | os.PathLike) -> dict:
    """`build.json` of a data folder, or an empty dict where there is none (upstream's files)."""
    path = Path(data_dir) / "build.json"
    return read_json(path, "build the data again with `python -m data_prep build`") if path.is_file() else {}


def check_rows(image_path: str | os.PathLike, table_path: str | os.PathLike, table: "pd.DataFrame") -> None:
    """Raise `UserError` unless row i of the images is row i of the table, by id if both have ids."""
    with open_images(image_path) as handle:
        n_images, ids = len(handle["cxr"]), image_ids(handle)
    if n_images != len(table):
        raise UserError(
            f"{image_path} has {n_images} images but {table_path} has {len(table)} rows; build both "
            f"again with `python -m data_prep build`"
        )
    if ids is None or "id" not in table:
        log.warning("%s and %s do not both have ids: whether their rows match is unknown", image_path, table_path)
        return
    wrong = next((i for i, (a, b) in enumerate(zip(ids, table["id"], strict=True)) if a != b), None)
    if wrong is not None:
        raise UserError(
            f"row {wrong} of {image_path} is {ids[wrong]!r} but row {wrong} of {table_path} is "
            f"{table['id'][wrong]!r}; build both again with `python -m data_prep build`"
        )


def check_images(path: str | os.PathLike, most: int | None = None, pixel_range: str | None = None) -> None:
    """Raise `UserError` for an image file that would be misread; training and evaluation make the same checks.

    Errors are an image of one grey value (black rows are images that failed to be read), values that are not 0..255
    (0..1, -1..1 or standardised floats) unless `pixel_range` names a range that contains them all, and rows that cannot
    be read (wrong checksums). Images that are nearly black, of almost one grey value, or very small get a warning.
    most: check at most this many images, spread over the file (None: all); then an image of one grey value only gets a
    warning, because CheXzero's own training files have black rows.
    """
    wanted = PixelRange.parse(pixel_range) if pixel_range else None
    with open_images(path) as handle:
        images, ids = handle["cxr"], image_ids(handle)
        constant: list[int] = []
        flat: list[int] = []
        low, high, total, seen = np.inf, -np.inf, 0.0, 0
        step = max(1, -(-len(images) // most)) if most else 1
        for start in range(0, len(images), 64 * step):
            try:
                rows = range(start, min(start + 64 * step, len(images)), step)
                # h5py reads a slice with steps 30 times slower than its rows one by one
                block = images[start : rows.stop] if step == 1 else np.stack([images[row] for row in rows])
                block = block.reshape(len(rows), -1)
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"{path}: an image of rows {start + 1} to {start + 64 * step} is damaged "
                    f"({str(error).split(',')[0]}); copy the file again, or build it again"
                ) from error
            if not np.isfinite(block).all():
                raise UserError(f"{path}: images from row {start + 1} on have values that are not finite; correct them")
            low, high = min(low, float(block.min())), max(high, float(block.max()))
            if wanted and images.dtype != np.uint8:
                block = wanted.to_grey(block)
            spread = block.max(1).astype(np.float64) - block.min(1)
            constant.extend(int(start + step * i) for i in np.flatnonzero(spread == 0))
            flat.extend(int(start + step * i) for i in np.flatnonzero((spread > 0) & (spread < FLAT)))
            total, seen = total + float(block.mean(dtype=np.float64)) * len(block), seen + len(block)
        _check_range(path, low, high, images.dtype, wanted)
        if constant and most:
            log.warning(
                "%s: %d of %d images checked are of one grey value; nothing can be learned from them",
                path,
                len(constant),
                seen,
            )
        elif constant:
            first = ids[constant[0]] if ids else f"row {constant[0] + 1}"
            raise UserError(
                f"{path}: {len(constant)} of {len(images)} images are of one grey value (the first is "
                f"{first}); they were not read, so results from them would mean nothing; build the "
                f"file again with `python -m data_prep build`"
            )
        if flat:
            first = ids[flat[0]] if ids else f"row {flat[0] + 1}"
            log.warning(
                "%s: %d of %d images checked have fewer than %d grey values between their darkest and brightest pixel "
                "(the first is %s); were they stored on another scale than the rest?",
                *(path, len(flat), seen, FLAT, first),
            )
        if 2 < high < 128 and seen >= 8:
            log.warning(
                "%s: no pixel of %d images is brighter than %g of 255; were they stored on another scale (0 to %g)?",
                *(path, seen, high, high),
            )
        if total / seen < 10:
            log.warning("%s: the images are nearly black (mean %.1f of 255); look at some", path, total / seen)
        if min(images.shape[1:]) < 64:
            log.warning("%s: the images are only %d x %d pixels", path, *images.shape[1:])


#: Smallest difference of the darkest and brightest pixel at which an image shows anything that a model can use.
FLAT = 16


def _check_range(path: str | os.PathLike, low: float, high: float, dtype: np.dtype, wanted: PixelRange | None) -> None:
    """Raise `UserError` for values that are not 0..255, or not within the range that was named."""
    is_bytes = dtype == np.uint8
    if wanted and not is_bytes:
        slack = (wanted.white - wanted.black) / 100
        used = (high - low) / (wanted.white - wanted.black)
        if low < wanted.black - slack or high > wanted.white + slack or used < 0.1:
            raise UserError(
                f"{path}: the images' values are {low:g} to {high:g}, which --pixel_range={wanted} "
                f"{'does not contain' if used >= 0.1 else 'would show as nearly one grey value'}; name their range"
            )
        return
    if low >= 0 and high <= 255 and not 0 < high <= 2:
        return
    if is_bytes:  # 0..1 truncated to whole numbers
        raise UserError(
            f"{path}: the images' values are {low:g} to {high:g}, whole numbers, which hold nothing of the pictures "
            "(0..1 written as bytes?); write the file again with 0 to 255"
        )
    known = ((0, 1), (-1, 1), ((0 - MEAN) / STD, (255 - MEAN) / STD))  # the last is CheXzero's normalisation
    near = ((black, white, (white - black) / 4) for black, white in known)  # some values lie near both ends
    guess = next(
        (
            f"{black:.5g},{white:.5g}"
            for black, white, part in near
            if black - 0.01 <= low < black + part and white - part < high <= white + 0.01
        ),
        None,
    )
    how = (
        f"if black is {guess.partition(',')[0]} and white is {guess.partition(',')[2]} in it, add --pixel_range={guess}"
        if guess
        else "name the values of black and white with --pixel_range=BLACK,WHITE; of standardised images these are "
        "(0 - mean) / deviation and (255 - mean) / deviation"
    )
    raise UserError(
        f"{path}: the images' values are {low:g} to {high:g}, but 0 to 255 are needed, as CheXzero stores them; {how}"
    )


def read_labels(path: str | os.PathLike, labels: list[str] = LABELS) -> "tuple[pd.DataFrame, np.ndarray]":
    """Read a label CSV by column name.

    Returns the whole table (strings) and the labels as float64, N x len(labels), each exactly 0 or 1.
    A wholly blank column is a label that the set does not have: it is read as 0, so that it has one class and is not
    measured. A missing column, a blank among values, NaN or any other value raises `UserError` with the row (counted
    from 1 after the header) and the column.
    """
    import pandas as pd  # here: worker processes of a build import this module and save its 40 MiB

    table = read_table(path, labels, remedy="name a CSV that has one 0/1 column per label")
    values = np.full((len(table), len(labels)), np.nan)
    unknown = [label for label in labels if table[label].isna().all()]
    for j, label in enumerate(labels):
        values[:, j] = 0.0 if label in unknown else pd.to_numeric(table[label], errors="coerce")
    if len(table) and unknown and len(unknown) == len(labels):
        raise UserError(f"{Path(path)}: every label is blank; name a CSV that has one 0/1 column per label")
    if unknown:
        log.warning("%s has no labels for %s: these are not measured", path, ", ".join(unknown))
    wrong = np.argwhere(~np.isin(values, (0.0, 1.0)))
    if len(wrong):
        i, j = wrong[0]
        raise UserError(
            f"{Path(path)}, row {i + 1}, column {labels[j]}: {table[labels[j]][i]!r} is not 0 or 1 "
            f"({len(wrong)} such cells); a label that is uncertain or blank must be decided first"
        )
    return table, values
