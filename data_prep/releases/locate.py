"""Find a release's files in the layouts people have, and say which flag would point to what is not found."""

import fnmatch
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chexzero.common.errors import UserError
from data_prep.releases.rows import Row

DEPTH = 5
CROWD = 1000  # folders in one folder, from which on they are patients or studies of some set, not looked into
SUFFIXES = (".png", ".jpg", ".jpeg", ".PNG", ".JPG")

#: Folders that hold images by the hundred thousand; nothing that is looked for lies in them.
IMAGE_FOLDERS = ("train", "valid", "test", "deid_png", "patient*", "study*", ".*")


def folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders from `root` down to `DEPTH`, the shallow ones first, each with its file names."""
    layer = [root]
    for depth in range(DEPTH + 1):
        below = []
        for folder in layer:
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                if depth == 0:
                    raise UserError(
                        f"{folder} cannot be read ({error.strerror}); name a folder that exists and that you may read"
                    ) from error
                continue
            names = [entry.name for entry in entries if entry.is_file()]
            yield folder, names
            skipped = (*IMAGE_FOLDERS, "work") if ".lock" in names else IMAGE_FOLDERS  # a build's own train/, valid/
            inner = [
                folder / entry.name
                for entry in entries
                if entry.is_dir() and not any(fnmatch.fnmatch(entry.name, name) for name in skipped)
            ]
            below += inner if depth == 0 or len(inner) < CROWD else []
        layer = below


def find_file(
    root: Path, patterns: Sequence[str], what: str, flag: str, accept: Callable[[Path], bool] = lambda path: True
) -> Path:
    """The file under `root` whose name matches a pattern: the first pattern that has one, of its files those that
    `accept` takes, of these the least deep. A file that it does not take is returned only if it is alone and has
    the usual name, the first pattern, so that its reader can say what is wrong with it."""
    for pattern in patterns:
        named = [folder / name for folder, names in folders(root) for name in names if fnmatch.fnmatch(name, pattern)]
        found = [path for path in named if accept(path)] or (named if pattern == patterns[0] else [])
        found = [path for path in found if len(path.parts) == min(len(path.parts) for path in found)]
        if len(found) > 1:
            raise UserError(f"{what}: both {found[0]} and {found[1]} could be meant; name one with {flag}")
        if found:
            return found[0]
    raise UserError(f"{what} ({' or '.join(patterns)}) is nowhere under {root}; name it with {flag}")


def find_folders(roots: Sequence[Path], children: Sequence[str], what: str, flag: str) -> list[Path]:
    """The folders under `roots` that hold a folder named as one of `children`; at least one."""
    found = [
        folder for root in roots for folder, _ in folders(root) if any((folder / child).is_dir() for child in children)
    ]
    if not found:
        names = " or ".join(f"{child}/" for child in children)
        raise UserError(f"{what} (a folder with {names} in it) are nowhere under {roots[0]}; name it with {flag}")
    return list(dict.fromkeys(found))


def has_columns(*alternatives: Sequence[str]) -> Callable[[Path], bool]:
    """A test whether a CSV's header has all the columns of one of the alternatives."""

    def accept(path: Path) -> bool:
        try:
            with open(path, encoding="utf-8-sig", errors="replace") as handle:
                header = handle.readline(100_000).strip().replace('"', "").split(",")
        except OSError:
            return False
        return any(set(columns) <= set(header) for columns in alternatives)

    return accept


def given(path: str | None, flag: str, folder: bool) -> Path | None:
    """The path a flag gave, sure that it is there; None if the flag was not given."""
    if path is None:
        return None
    if not (os.path.isdir(path) if folder else os.path.isfile(path)):
        raise UserError(f"{flag} {path}: there is no such {'folder' if folder else 'file'}; correct the path")
    return Path(path).resolve()


def release_root(args, release: str) -> Path:
    """The folder to look for a release in: its own flag, else `--data_root`."""
    root = given(getattr(args, release), f"--{release}", folder=True)
    root = root or given(args.data_root, "--data_root", folder=True)
    if root is None:
        raise UserError(
            f"where is {release}? Name its folder with --{release}, or the folder that holds all "
            f"releases with --data_root"
        )
    return root


def find_images(rows: list[Row], roots: Sequence[Path], threads: ThreadPoolExecutor) -> None:
    """Set `root` and `path` of each row to the file that is there, with either ending; else set `problem`."""
    places = threads.map(lambda row: _find_image(row.path, roots), rows)
    for row, (root, path, problem) in zip(rows, places, strict=True):
        row.root, row.path, row.problem = str(root), path, problem


def _find_image(path: str, roots: Sequence[Path]) -> tuple[Path, str, str]:
    stem, suffix = os.path.splitext(path)
    problem = "not found, with any ending"
    for ending in dict.fromkeys((suffix, *SUFFIXES)):  # the usual ending anywhere, before another one
        for root in roots:
            try:
                mode = os.stat(f"{root}/{stem}{ending}").st_mode
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, ValueError) as error:
                problem = getattr(error, "strerror", None) or str(error)
                continue
            if stat.S_ISREG(mode):
                return root, stem + ending, ""
            problem = "is not a file"
    return roots[0], path, problem
