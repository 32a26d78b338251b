"""One row is one image: what the readers yield, and the table of rows that the later steps go through."""

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath

from chexzero.common.errors import UserError
from chexzero.common.files import atomic_path, require_file

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a report may be longer than the csv module's 128 KiB


@dataclass(slots=True)
class Row:
    """An image of a release with what the release says about it. Every field is text; unknown is "".

    `path` is relative to `root`, the folder of the release's images. `patient_id` comes from the path, and
    `patient_id_column` from the table. `labels` is fourteen characters 0 or 1 in the order of
    `chexzero.common.labels.LABELS`, for evaluation sets only. `problem` says why the image cannot be used.
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


COLUMNS = [field.name for field in fields(Row) if field.name not in ("impression", "findings")]


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write the rows as CSV, atomically and one at a time; returns how many there were."""
    count = 0
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([getattr(row, name) for name in COLUMNS])
            count += 1
    return count


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows that `write_rows` wrote, one at a time."""
    for _, record in read_records(path, COLUMNS, remedy="start the build again with --overwrite"):
        yield Row(**record)


def read_records(path: Path, columns: Sequence[str], remedy: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield `(row number, {column: text})` for each row of a CSV of any size, rows counted from 1, header apart.

    Raises `UserError` for a missing file or column, another encoding than UTF-8, or a row with too few or many cells.
    """
    require_file(path, remedy)
    number = 0
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            lines = csv.reader(handle, strict=True)
            header = next(lines, [])
            missing = [name for name in columns if name not in header]
            if missing:
                raise UserError(
                    f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} (it has: "
                    f"{', '.join(header[:30])[:600] or 'nothing'}); {remedy}"
                )
            places = [(name, header.index(name)) for name in columns]
            for number, line in enumerate(lines, start=1):
                if len(line) != len(header):
                    if not line:
                        continue
                    raise UserError(
                        f"{path}, row {number}: {len(line)} cells where the header has {len(header)}; "
                        f"the file is damaged, copy it again"
                    )
                yield number, {name: line[place] for name, place in places}
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (after row {number}); convert it, for instance with `iconv -f latin1 -t utf-8`"
        ) from error
    except csv.Error as error:
        raise UserError(f"{path}, after row {number}: not readable as CSV ({error}); copy it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error


def checked_path(text: str, where: str) -> PurePosixPath:
    """The relative path a table names, without `.` parts; refused if it is empty, absolute or climbs with `..`."""
    if not text.strip() or "\0" in text:
        raise UserError(
            f"{where} is {'empty' if not text.strip() else 'no path (it holds a NUL byte)'}; correct the row"
        )
    path = PurePosixPath(text.strip().replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{where} is {text!r}, which leads out of the release's folder; correct the row")
    return path
