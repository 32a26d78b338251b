"""Read files of unknown origin safely, and write files atomically."""

import codecs
import csv
import functools
import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from chexzero.common.errors import UserError

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    import pandas as pd


def require_file(path: str | os.PathLike, remedy: str) -> Path:
    """Return `path` if it is a file; else raise a `UserError` that ends with `remedy`."""
    path = Path(path)
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {kind}; {remedy}")
    return path


def inside(root: str | os.PathLike, relative: str) -> Path:
    """Resolve `relative` under `root`; raise `UserError` if it leaves it (absolute, `..`, a symbolic link out)."""
    root = Path(root).resolve()
    if "\0" in relative:
        raise UserError(f"the path holds a NUL byte ({relative!r}); correct the entry")
    try:
        path = (root / relative).resolve()
    except (OSError, RuntimeError) as error:  # a loop of symbolic links
        raise UserError(f"the path cannot be followed ({relative!r} under {root}: {error}); correct it") from error
    if not path.is_relative_to(root):
        raise UserError(
            f"the path leads out of its root ({relative!r}, out of {root}); correct the entry or name the right root"
        )
    return path


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it into place.

    A reader sees the old file or the whole new one. On an exception the temporary file is removed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; check the disk's space and the folder's permissions"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as JSON (indented, keys in the order given), atomically. NaN is refused: use None."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike, remedy: str = "name another file or make it again") -> Any:
    """Read a JSON file; a missing, damaged or wrongly encoded one raises a `UserError` with the place."""
    path = require_file(path, remedy)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); {remedy}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); {remedy}") from error
    except (RecursionError, ValueError) as error:  # nested a thousand deep, or a number of ten thousand digits
        raise UserError(f"{path} cannot be read as JSON ({' '.join(str(error).split())[:120]}); {remedy}") from error


class _UniqueKeys(yaml.SafeLoader):
    """A YAML loader that runs no code and rejects duplicate keys (YAML silently takes the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} occurs twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | os.PathLike, remedy: str = "name another file or correct it") -> Any:
    """Read a YAML file, running no code; damage, another encoding or a duplicate key raises `UserError`."""
    path = require_file(path, remedy)
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_UniqueKeys)  # noqa: S506  (a SafeLoader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); {remedy}") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        found = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        raise UserError(f"{path} is not valid YAML ({found}); {remedy}") from error


def read_table(
    path: str | os.PathLike,
    columns: Sequence[str] = (),
    *,
    remedy: str = "name another file or make it again",
    all_columns: bool = True,
    also: Sequence[str] | None = None,
) -> "pd.DataFrame":
    """Read a CSV as strings (an empty cell is NaN) and check that it has `columns`.

    With `all_columns=False` only `columns` are kept, so that a table with a million reports stays small; with `also`
    the columns it names are kept too, if the table has them.
    Raises `UserError` for a missing file, another encoding, a ragged row or a missing column.
    """
    import pandas as pd  # here: a process that only prepares images saves its 40 MiB

    path = require_file(path, remedy)
    with open(path, "rb") as raw:
        if raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise UserError(f"{path} is UTF-16; convert it, for instance with `iconv -f utf-16 -t utf-8`")
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            header = next(csv.reader(handle), [])
        missing = [name for name in columns if name not in header]
        if missing:
            raise UserError(
                f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} "
                f"(it has: {', '.join(header[:20])[:300]}); {remedy}"
            )
        twice = [name for name in columns if header.count(name) > 1]
        if twice:
            raise UserError(f"{path} has the column {twice[0]} {header.count(twice[0])} times; keep one of them")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
            table = pd.read_csv(
                path,
                dtype=str,
                keep_default_na=False,
                na_values=[""],
                encoding="utf-8-sig",
                index_col=False,  # else such rows silently shift every column by one
                usecols=None
                if all_columns and also is None
                else [name for name in header if name in columns or name in (also or ())],
            )
        if not ends_a_line(path):
            _require_whole_last_row(path, len(header))
        return table
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start}); convert it, for instance with `iconv -f latin1 -t utf-8`"
        ) from error
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError, csv.Error, ValueError) as error:
        raise UserError(f"{path} cannot be read as CSV ({' '.join(str(error).split())}); {remedy}") from error


def ends_a_line(path: str | os.PathLike) -> bool:
    """Whether a text file ends with a line end, as every table written by a program does, or is empty."""
    with open(path, "rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - 1))
        return handle.read(1) in (b"\n", b"\r", b"")


def _require_whole_last_row(path: Path, cells: int) -> None:
    """Raise `UserError` if a table ends within a row (pandas reads missing cells as empty); else warn of its end."""
    rows, last = -1, []  # the header is row 0
    with open(path, newline="", encoding="utf-8-sig") as handle:
        for line in csv.reader(handle):
            rows, last = rows + 1, line
    if len(last) < cells:
        raise UserError(
            f"{path}, row {rows}, the last: {len(last)} cells where the header has {cells}, and no line end; the file is "
            "cut short, copy it again"
        )
    warn_of_the_end(path, rows)


@functools.cache  # once per file and process, however often it is read
def warn_of_the_end(path: str | os.PathLike, row: int) -> None:
    """Warn that a table's last row has all its cells but no line end."""
    log.warning("%s does not end with a line end: the file may be cut short; check its last row (%d)", path, row)


class UnixLines:
    """A wrapper of a text file that makes `csv.writer` end rows with a line feed.

    The writer keeps its own line end, CR LF, so that it quotes a cell with a bare carriage return; otherwise readers
    would take that for the end of a row.
    """

    def __init__(self, handle: IO[str]):
        self.handle = handle

    def write(self, line: str) -> int:
        return self.handle.write(f"{line.removesuffix(_CRLF)}\n")


_CRLF = "\r\n"


def no_formula(cell: Any) -> Any:
    """Return a cell of a table that people open, with `'` before text that a spreadsheet would run as a formula."""
    if isinstance(cell, str) and cell[:1] in tuple("=+-@\t\r") and not _NUMBERS.fullmatch(cell):
        return f"'{cell}"
    return cell


#: A number, or an interval of two numbers.
_NUMBERS = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?( ?(to|–) ?[-+]?[\d.]+(e[-+]?\d+)?)?")


def sha256_of(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces; for a folder, of its files' hashes and names, sorted."""
    if os.path.isdir(path):
        files = sorted(file for file in Path(path).iterdir() if file.is_file())
        return hashlib.sha256("".join(f"{sha256_of(file)}  {file.name}\n" for file in files).encode()).hexdigest()
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def safe_name(name: str, what: str = "name") -> str:
    """Return `name` if it can be used as a folder's name; else raise a `UserError`.

    Letters and digits of any script, `. _ - = + , ( )`, and single spaces before such a bracket (a copy's name).
    """
    if not re.fullmatch(r"\w(?:[\w.=+,()-]| (?=\()){0,127}", name) or len(os.fsencode(name)) > 200:
        raise UserError(
            f"the {what} {name!r} must be at most 128 letters, digits, and '.', '_', '-', '=', '+', ',' and brackets; "
            "choose another"
        )
    return name
