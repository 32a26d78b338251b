"""The reports as the training loop wants them: tokenised once, kept on disk, mapped into memory.

Half a million reports of 77 tokens are 77 MB as uint16. They are written once beside the CSV (or, where that folder
cannot be written to, under the run) into a folder named after the CSV's SHA-256, so that a changed CSV is tokenised
again.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexzero.clip import tokenize
from chexzero.common.files import atomic_path, read_table, require_file, sha256_of
from chexzero.common.formats import REMEDY, check_rows

log = logging.getLogger(__name__)

CACHE = "tokens_cache"
#: Columns that number what rows share, and what is kept of each: one whole number a row.
GROUPS = {"study_id": "studies", "patient_id": "patients"}
PIECE = 20_000  # texts tokenised at a time


@dataclass
class Texts:
    """`tokens`: uint16 (N, T), padded with 0. `studies`, `patients`: int32 (N,), or None without such a column."""

    tokens: NDArray[np.uint16]
    studies: NDArray[np.int32] | None
    patients: NDArray[np.int32] | None


def prepare_texts(
    txt_filepath: str | os.PathLike, cxr_filepath: str | os.PathLike, context_length: int, fallback: Path
) -> Path:
    """Check that row i of the reports is row i of the images; tokenise them; return the folder of the tokens."""
    columns = available_columns(txt_filepath)
    table = read_table(txt_filepath, ["impression", *columns], all_columns=False, remedy=REMEDY)
    check_rows(cxr_filepath, txt_filepath, table)
    name = f"{sha256_of(txt_filepath)[:16]}-{context_length}"
    places = [Path(txt_filepath).parent / CACHE / name, fallback / CACHE / name]
    done = next((place for place in places if (place / "done").exists()), None)
    if done:
        return done
    writable = places[0] if os.access(places[0].parent.parent, os.W_OK) else places[1]
    _write(table, context_length, writable)
    return writable


def load_texts(folder: Path) -> Texts:
    """Map what `prepare_texts` wrote. Raises `UserError` where it wrote nothing."""
    require_file(folder / "tokens.npy", "every node must have the same reports under the same path")

    def load(name: str) -> NDArray | None:
        path = folder / f"{name}.npy"
        return np.load(path, mmap_mode="r", allow_pickle=False) if path.exists() else None

    return Texts(load("tokens"), *(load(name) for name in GROUPS.values()))


def available_columns(path: str | os.PathLike) -> list[str]:
    """Which of the columns that training can use beside the text a report CSV has; `id` and those of `GROUPS`."""
    try:
        header = pd.read_csv(require_file(path, REMEDY), nrows=0, encoding="utf-8-sig").columns
    except (UnicodeDecodeError, pd.errors.EmptyDataError, pd.errors.ParserError):
        return []  # read_table says what is wrong with the file
    return [name for name in ("id", *GROUPS) if name in header]


def _write(table: pd.DataFrame, context_length: int, folder: Path) -> None:
    texts = table["impression"].fillna(" ")  # an empty cell trains as one space, as upstream
    codes, unique = pd.factorize(texts)
    log.info("tokenising %d different reports of %d", len(unique), len(texts))
    tokens = np.concatenate(
        [
            tokenize(list(unique[start : start + PIECE]), context_length, truncate=True).numpy().astype(np.uint16)
            for start in range(0, len(unique), PIECE)
        ]
    )
    save_array(folder / "tokens.npy", tokens[codes])
    for column, name in GROUPS.items():
        if column in table:
            save_array(folder / f"{name}.npy", pd.factorize(table[column])[0].astype(np.int32))
    with atomic_path(folder / "done") as temporary:
        temporary.write_text("")


def save_array(path: Path, values: NDArray) -> None:
    """Write an array atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, values, allow_pickle=False)
