"""`python -m data_prep download openi`: fetch and unpack a dataset that needs no agreement."""

import argparse
import logging
import os
import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from chexzero.common.errors import UserError
from data_prep.steps.work import require_space, require_writable

log = logging.getLogger(__name__)

ASK_FROM = 1 << 30  # bytes; the command asks before it fetches more


@dataclass(frozen=True)
class Archive:
    """An archive of a dataset: its name, size in bytes, and what it unpacks to (folder, ending, number of files)."""

    name: str
    size: int
    folder: str
    ending: str
    files: int


@dataclass(frozen=True)
class Source:
    """Where a dataset is published, and its terms."""

    url: str
    terms: str
    archives: tuple[Archive, ...]


SOURCES = {
    "openi": Source(
        "https://openi.nlm.nih.gov/imgs/collections",
        "CC BY-NC-ND 4.0; cite Demner-Fushman et al., JAMIA 2016",
        (
            Archive("NLMCXR_reports.tgz", 1_200_000, "ecgen-radiology", ".xml", 3_955),
            Archive("NLMCXR_png.tgz", 1_360_000_000, "NLMCXR_png", ".png", 7_470),
        ),
    )
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=list(SOURCES), metavar="NAME", help=f"the dataset: {', '.join(SOURCES)}")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where it is unpacked")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FOLDER_OR_URL",
        help="take the archives from this folder or URL, or the unpacked files from this folder",
    )
    parser.add_argument("--yes", action="store_true", help="fetch large archives without asking")
    parser.add_argument("--any_count", action="store_true", help="accept an incomplete dataset")


def run(args: argparse.Namespace) -> None:
    source = SOURCES[args.name]
    out = require_writable(args.out, "--out")
    place = args.source or source.url
    missing = [archive for archive in source.archives if _count(out, archive) == 0]
    for archive in missing:
        if os.path.isdir(place):
            _from_folder(Path(place), out, archive)
        else:
            _allow(archive, place, args)
            require_space(out, 2 * archive.size if archive.size > ASK_FROM else 0, f"unpacking {archive.name}")
            _unpack(_fetch(place, archive, out / "archives"), out, archive)
    for archive in source.archives:
        there = _count(out, archive)
        if there != archive.files and not args.any_count:
            raise UserError(
                f"{out / archive.folder} has {there:,} {archive.ending} files where the dataset has {archive.files:,}; "
                f"remove that folder and run the command again, or accept what is there with --any_count"
            )
    counts = ", ".join(f"{_count(out, archive):,} {archive.ending}" for archive in source.archives)
    print(f"{args.name} in {out}: {counts} ({source.terms})")


def _count(out: Path, archive: Archive) -> int:
    folder = out / archive.folder
    return sum(name.endswith(archive.ending) for name in os.listdir(folder)) if folder.is_dir() else 0


def _allow(archive: Archive, place: str, args: argparse.Namespace) -> None:
    """Ask before a large archive is fetched; without a terminal, require `--yes`."""
    if args.yes or archive.size < ASK_FROM:
        return
    question = f"fetch {archive.name}, {archive.size / 1e9:.1f} GB, from {place}?"
    if not sys.stdin.isatty():
        raise UserError(f"{question} Say --yes, or name a folder that has it with --from")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError(f"{archive.name} was not fetched; name a folder that has it with --from")


def _fetch(place: str, archive: Archive, folder: Path) -> Path:
    """Fetch the archive to `folder`, resuming an earlier attempt."""
    import pooch

    def resume(url: str, output: str, pooch_: object) -> None:
        partial = folder / f"{archive.name}.part"
        done = partial.stat().st_size if partial.is_file() else 0
        headers = {"Range": f"bytes={done}-"} if done else {}
        with open(partial, "ab") as handle:
            fetch = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), headers=headers, timeout=60)
            fetch(url, handle, pooch_)
        shutil.move(partial, output)

    url = f"{place.rstrip('/')}/{archive.name}"
    log.info("fetching %s", url)
    try:
        return Path(pooch.retrieve(url, None, archive.name, folder, downloader=resume))
    except (OSError, ValueError) as error:  # exceptions of requests are OSErrors
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{url} cannot be fetched ({reason}); run the command again, which resumes the download, or fetch "
            f"it by other means and name its folder with --from"
        ) from error


def _from_folder(place: Path, out: Path, archive: Archive) -> None:
    if (place / archive.name).is_file():
        _unpack(place / archive.name, out, archive)
    elif (place / archive.folder).is_dir():
        (out / archive.folder).symlink_to((place / archive.folder).resolve())
    else:
        raise UserError(f"{place} has neither {archive.name} nor {archive.folder}/; name another folder with --from")


def _unpack(path: Path, out: Path, archive: Archive) -> None:
    """Unpack the files with the archive's ending into its folder, which appears only when complete."""
    temporary = out / f".{archive.folder}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                name = os.path.basename(member.name)
                if member.isfile() and name.endswith(archive.ending) and not name.startswith("."):
                    member.name = name  # the file name alone, so nothing is written elsewhere
                    tar.extract(member, temporary, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{path} is damaged or cut short ({error}); remove it and run the command again") from error
    temporary.rename(out / archive.folder)
