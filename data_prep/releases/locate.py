"""Find a release's files in the usual layouts, and name the flag for what is not found."""

import argparse
import fnmatch
import os
import re
import shlex
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from chexzero.common.errors import UserError
from data_prep.releases.rows import Row, column_names

DEPTH = 5
CROWD = 1000  # subfolders; a folder with so many holds patients or studies, and they are not searched
SUFFIXES = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG", ".dcm", ".dicom", ".DCM", ".dcm.gz")

#: Folders that may hold hundreds of thousands of images; they are not searched.
IMAGE_FOLDERS = ("train", "valid", "val", "test", "deid_png", "patient*", "study*", ".*")

#: Names of the archives that releases come in -> the command that unpacks them
ARCHIVES = {
    r"(.+)\.part\w*": "cat {all} | tar --zstd -x -C {folder}",
    r"(.+)\.tar\.zst": "tar --zstd -xf {file} -C {folder}",
    r"(.+)(\.tar\.gz|\.tgz)": "tar -xzf {file} -C {folder}",
    r"(.+)\.tar": "tar -xf {file} -C {folder}",
    r"(.+?)_?\d*\.zip": 'for part in {all}; do unzip -q "$part" -d {folder}; done',
}


@dataclass(frozen=True)
class Place:
    """A folder of images. A path of the table that begins with `prefix` is looked for under `root` without it; with
    `flat`, by its file name alone."""

    root: Path
    prefix: str = ""
    flat: bool = False

    def relative(self, path: str) -> str | None:
        """Where the image would be under `root`; None if it cannot be there."""
        if not path.startswith(self.prefix):
            return None
        return path.rsplit("/", 1)[-1] if self.flat else path[len(self.prefix) :]

    def __str__(self) -> str:
        return f"{self.root}{f' for {self.prefix}' if self.prefix else ''}{' by file name' if self.flat else ''}"


@dataclass(frozen=True)
class Folder:
    """A folder with the names of its files and of its folders, sorted."""

    path: Path
    files: list[str]
    folders: list[str]


def folders(root: Path) -> Iterator[Folder]:
    """Yield the folders from `root` down to `DEPTH`, the shallow ones first; links to folders are followed."""
    layer, seen = [root], set()
    for depth in range(DEPTH + 1):
        below = []
        for folder in layer:
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
                kinds = [(entry.name, entry.is_dir()) for entry in entries]
            except OSError as error:
                if depth == 0:
                    raise UserError(
                        f"{folder} cannot be read ({error.strerror}); name a folder that exists and that you may read"
                    ) from error
                continue
            names = [name for name, is_folder in kinds if not is_folder]
            inner = [name for name, is_folder in kinds if is_folder]
            yield Folder(folder, names, inner)
            skipped = (*IMAGE_FOLDERS, "work") if ".lock" in names else IMAGE_FOLDERS  # a build's own train/, valid/
            inner = [name for name in inner if not any(fnmatch.fnmatch(name, pattern) for pattern in skipped)]
            for name in inner if depth == 0 or len(inner) < CROWD else []:
                if (folder / name).is_symlink():
                    if (real := os.path.realpath(folder / name)) in seen:
                        continue  # a circular link
                    seen.add(real)
                below.append(folder / name)
        layer = below


def find_file(
    root: Path, patterns: Sequence[str], what: str, flag: str, accept: Callable[[Path], bool] = lambda path: True
) -> Path:
    """The file under `root` whose name matches a pattern: the first pattern with a match, of its files those that
    `accept` takes, of these the least deep. A file that `accept` rejects is returned only if it is the only match of
    the first pattern, so that its reader can say what is wrong with it."""
    there = [(folder.path, name) for folder in folders(root) for name in folder.files if not name.startswith(".")]
    for pattern in patterns:
        named = [folder / name for folder, name in there if fnmatch.fnmatch(name, pattern)]
        found = [path for path in named if accept(path)] or (named if pattern == patterns[0] else [])
        found = [path for path in found if len(path.parts) == min(len(path.parts) for path in found)]
        found = list({path.resolve(): path for path in reversed(found)}.values())[::-1]  # a link and what it names
        if len(found) > 1:
            raise UserError(f"{what}: both {found[0]} and {found[1]} match; name one with {flag}")
        if found:
            return found[0]
    raise not_found(f"{what} ({' or '.join(patterns)}) is", [root], flag)


def find_places(roots: Sequence[Path], place: Callable[[Folder], list[Place]], what: str, flag: str) -> list[Place]:
    """The places that `place` finds in the folders of the first of `roots` that has one."""
    for root in roots:
        if found := [one for folder in folders(root) for one in place(folder)]:
            return list(dict.fromkeys(found))
    raise not_found(f"{what} are", roots, flag)


def split_places(splits: Collection[str]) -> Callable[[Folder], list[Place]]:
    """For `find_places`: images of CheXpert, in `train/`, `valid/` and `test/`, or with the patients' folders directly
    in a folder whose name says the split (`PNG_train`, `val`, `CheXpert-v1.0 batch 2 (train 1)`) or does not."""

    def place(folder: Folder) -> list[Place]:
        found = [Place(folder.path)] if set(splits) & set(folder.folders) else []
        if "valid" in splits and "val" in folder.folders and "valid" not in folder.folders:
            found.append(Place(folder.path / "val", "valid/"))
        if any(re.fullmatch(r"patient\d+", name) for name in folder.folders):
            named = [split for split in splits if split[:3] in folder.path.name.lower()]
            found += [Place(folder.path, f"{split}/") for split in named or splits]
        return found

    return place


def holds(*children: str) -> Callable[[Folder], list[Place]]:
    """For `find_places`: the folders that hold a folder named as one of `children`."""
    return lambda folder: [Place(folder.path)] if set(children) & set(folder.folders) else []


def not_found(what: str, roots: Sequence[Path], flag: str) -> UserError:
    """The error for what is not found: it names the command that unpacks an archive found there, else the flag."""
    for root in roots:
        for folder in folders(root):
            for name in folder.files:
                for pattern, command in ARCHIVES.items():
                    if match := re.fullmatch(pattern, name):
                        stem = shlex.quote(str(folder.path / match[1]))
                        unpack = command.format(
                            all=stem + ("*.zip" if name.endswith(".zip") else ".part*"),
                            file=shlex.quote(str(folder.path / name)),
                            folder=shlex.quote(str(folder.path)),
                        )
                        return UserError(
                            f"{what} nowhere under {roots[0]}, but {name} is there, not unpacked; unpack it: "
                            f"{unpack} (or name the unpacked files with {flag})"
                        )
    return UserError(f"{what} nowhere under {roots[0]}; name it with {flag}")


def has_columns(*alternatives: Sequence[str]) -> Callable[[Path], bool]:
    """Return a test of whether a table's header has all columns of one of the alternatives."""
    return lambda path: any(set(columns) <= set(column_names(path)) for columns in alternatives)


def given(path: str | None, flag: str, folder: bool) -> Path | None:
    """The path that a flag gave, checked to exist; None if the flag was not given."""
    if path is None:
        return None
    if not (os.path.isdir(path) if folder else os.path.isfile(path)):
        raise UserError(f"{flag} {path}: there is no such {'folder' if folder else 'file'}; correct the path")
    return Path(path).resolve()


def release_root(args: argparse.Namespace, release: str) -> Path:
    """The folder to search for a release: its own flag's, else `--data_root`."""
    root = given(getattr(args, release), f"--{release}", folder=True)
    root = root or given(args.data_root, "--data_root", folder=True)
    if root is None:
        raise UserError(
            f"where is {release}? Name its folder with --{release}, or the folder that holds all "
            f"releases with --data_root"
        )
    return root


def folders_above(table: Path, args: argparse.Namespace, release: str) -> list[Path]:
    """The folders to search for a table's images: the table's own, then those above it up to the folder given
    for the release or for all."""
    named = getattr(args, release) or args.data_root
    top = Path(named).resolve() if named else table.parent
    above = [folder for folder in table.parents if folder.is_relative_to(top)]
    return list(dict.fromkeys([table.parent, *above, top]))


def find_images(rows: list[Row], places: Sequence[Place], threads: ThreadPoolExecutor) -> None:
    """Set `root` and `path` of each row to its file, found with any ending; else set `problem`."""
    found = threads.map(lambda row: _find_image(row.path, places), rows)
    for row, (root, path, problem) in zip(rows, found, strict=True):
        row.root, row.path, row.problem = root, path, problem


def split_ending(path: str) -> tuple[str, str]:
    """As `os.path.splitext`, but `.dcm.gz` is one ending."""
    stem, ending = os.path.splitext(path)
    if ending.lower() == ".gz":
        stem, inner = os.path.splitext(stem)
        return stem, inner + ending
    return stem, ending


def _find_image(path: str, places: Sequence[Place]) -> tuple[str, str, str]:
    stem, suffix = split_ending(path)
    problem = "not found, with any ending"
    for ending in dict.fromkeys((suffix, *SUFFIXES)):  # the table's ending in every place, before another ending
        for place in places:
            relative = place.relative(stem + ending)
            if relative is None:
                continue
            try:
                mode = os.stat(f"{place.root}/{relative}").st_mode
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, ValueError) as error:
                problem = getattr(error, "strerror", None) or str(error)
                continue
            if stat.S_ISREG(mode):
                return *_real(place.root, relative), ""
            problem = "is not a file"
    return str(places[0].root), path, problem


@lru_cache(maxsize=4096)
def _real_folder(path: str) -> str:
    """`os.path.realpath` of an existing folder, with one disk access per new folder."""
    parent, name = os.path.split(path)
    if os.path.islink(path):
        return os.path.realpath(path)
    return path if parent == path else os.path.join(_real_folder(parent), name)


def _real(root: Path, path: str) -> tuple[str, str]:
    """The root and the path under it of a file whose folder may be a link to another disk: the path keeps the
    trailing folders that it shares with the real folder."""
    folder, name = os.path.split(path)
    real = _real_folder(f"{root}/{folder}" if folder else str(root))
    if real == f"{root}/{folder}" or real == str(root) or real.startswith(f"{root}/"):
        return str(root), path
    kept: list[str] = []
    parts, rest = list(PurePosixPath(folder).parts), Path(real)
    while parts and rest.name == parts[-1]:
        kept.insert(0, parts.pop())
        rest = rest.parent
    return str(rest), "/".join((*kept, name))
