"""One row is one image: what the readers yield, the tables they read, and the table of rows that later steps use."""

import csv
import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import IO

from chexzero.common.errors import UserError
from chexzero.common.files import atomic_path, ends_a_line, require_file, warn_of_the_end

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a report may be longer than the csv module's 128 KiB

UNKNOWN = "-"  # a label that is neither 0 nor 1


class BadRecord(UserError):
    """One entry of a release's table cannot be used; the others can."""


@dataclass(slots=True)
class Row:
    """An image of a release with what the release says about it. Every field is text; unknown is "".

    `path` is relative to `root`, the folder of the release's images. `patient_id` comes from the path, and
    `patient_id_column` from the table. `labels` has one character per finding of the release, in its order: 0, 1 or
    `UNKNOWN`; "" where the release has no labels for the image. `problem` says why the image cannot be used.
    """

    id: str
    source: str
    split: str
    patient_id: str
    patient_id_column: str
    study_id: str
    view: str
    path: str
    root: str = ""
    ap_pa: str = ""
    sex: str = ""
    age: str = ""
    race: str = ""
    impression: str = ""
    findings: str = ""
    report: str = ""
    labels: str = ""
    problem: str = ""


#: The stored columns: `report` replaces `impression`; `findings` are kept where a build writes them.
COLUMNS = [field.name for field in fields(Row) if field.name != "impression"]


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write the rows as CSV, atomically and one at a time; returns how many there were."""
    count = 0
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(
            handle, lineterminator="\n", quoting=csv.QUOTE_ALL
        )  # else a bare carriage return ends a row
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([getattr(row, name) for name in COLUMNS])
            count += 1
    return count


def label_cells(labels: str) -> list[str]:
    """A row's labels as the cells of a table: 0, 1, or empty for one that is not known."""
    return ["" if label == UNKNOWN else label for label in labels]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows that `write_rows` wrote, one at a time."""
    needed = [name for name in COLUMNS if name != "findings"]  # earlier versions did not store them
    for _, record in read_records(path, needed, "start the build again with --overwrite", optional=["findings"]):
        yield Row(**record)


def read_records(
    path: Path, columns: Sequence[str], remedy: str, optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield `(row number, {column: text})` for each row of a table of any size, rows counted from 1, header apart.

    The table is a CSV, plain or gzipped, or a Parquet file. `columns` are required; those of `optional` are
    included if present. Blanks around header names are removed. Raises `UserError` for a missing file or column, a
    wanted column that occurs twice, an encoding other than UTF-8, or a row with too few or too many cells.
    """
    path = require_file(path, remedy)
    lines = _parquet_lines(path) if path.suffix == ".parquet" else _csv_lines(path)
    header = [name.strip() for name in next(lines, [])]
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} (it has: "
            f"{', '.join(header[:30])[:600] or 'nothing'}); {remedy}"
        )
    wanted = [*columns, *(name for name in optional if name in header)]
    if twice := [name for name in wanted if header.count(name) > 1]:
        raise UserError(f"{path} has the column {twice[0]} twice; remove or rename the one that does not count")
    places = [(name, header.index(name)) for name in wanted]
    for number, line in enumerate(lines, start=1):
        if len(line) > len(header) and not any(line[len(header) :]):
            line = line[: len(header)]  # a comma at the end of each line
        if len(line) != len(header):
            if not line:
                continue
            raise UserError(
                f"{path}, row {number}: {len(line)} cells where the header has {len(header)}; "
                f"the file is damaged, copy it again"
            )
        yield number, {name: line[place] for name, place in places}


def column_names(path: Path) -> list[str]:
    """The names in a table's header; empty where it cannot be read as a table."""
    try:
        lines = _parquet_lines(path) if path.suffix == ".parquet" else _csv_lines(path)
        return [name.strip() for name in next(lines, [])]
    except UserError:
        return []


def _csv_lines(path: Path) -> Iterator[list[str]]:
    number = -1  # the header is line 0
    try:
        with _open_text(path) as handle:
            for number, line in enumerate(csv.reader(handle, strict=True)):  # noqa: B007 (for the message)
                yield line
        if path.suffix != ".gz" and not ends_a_line(path):
            warn_of_the_end(path, number)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (after row {max(number, 0)}); convert it, for instance with "
            f"`iconv -f latin1 -t utf-8`"
        ) from error
    except csv.Error as error:
        raise UserError(f"{path}, after row {max(number, 0)}: not readable as CSV ({error}); copy it again") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}); check its permissions or copy it again") from error


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", newline="", encoding="utf-8-sig")
    return open(path, newline="", encoding="utf-8-sig")


def _parquet_lines(path: Path) -> Iterator[list[str]]:
    import pyarrow
    import pyarrow.parquet  # here, because few tables are Parquet (60 MiB)

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield list(file.schema_arrow.names)
            for batch in file.iter_batches(1024):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield ["" if value is None or value != value else str(value) for value in values]
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({' '.join(str(error).split())}); copy it again") from error


def checked_path(text: str, where: str) -> PurePosixPath:
    """The relative path a table names, without `.` parts; `BadRecord` if it is empty, absolute or has `..` parts."""
    if not text.strip() or "\0" in text:
        raise BadRecord(
            f"{where} is {'empty' if not text.strip() else 'not a path (it contains a NUL byte)'}; correct the row"
        )
    path = PurePosixPath(text.strip().replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise BadRecord(f"{where} is {text!r}, which leads out of the release's folder; correct the row")
    return path
