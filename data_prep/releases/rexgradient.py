"""ReXGradient-160K: images of 109,487 patients with their reports; all of it is training data here."""

import argparse
import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexzero.common.errors import UserError
from chexzero.common.files import require_file
from data_prep.releases.locate import find_file, find_folders, given, release_root
from data_prep.releases.rows import Row

PIECE = 1 << 22  # characters read at a time
LONGEST_ENTRY = 1 << 24  # a study's entry is some thousand characters
TEXT = ("Impression", "Findings", "PatientSex", "PatientAge")

#: `ImageViewPosition` as spelled -> view. Anything else, UNKNOWN among it, is `other`.
VIEWS = {
    "PA": "frontal",
    "POSTERO_ANTERIOR": "frontal",
    "AP": "frontal",
    "ANTERO_POSTERIOR": "frontal",
    "AP AXIAL": "frontal",
    "LATERAL": "lateral",
    "LL": "lateral",
    "LAT": "lateral",
}
PROJECTIONS = {"PA": "PA", "POSTERO_ANTERIOR": "PA", "AP": "AP", "ANTERO_POSTERIOR": "AP", "AP AXIAL": "AP"}
SEXES = {"M": "Male", "F": "Female"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rexgradient", metavar="DIR", help="ReXGradient-160K's folder: metadata/ and deid_png/")
    parser.add_argument("--rexgradient_metadata", metavar="DIR", help="the folder with *_metadata_view_position.json")
    parser.add_argument("--rexgradient_images", metavar="DIR", help="the folder deid_png, or the one that holds it")


@dataclass(frozen=True)
class Rexgradient:
    """ReXGradient-160K (Zhang et al. 2025): 273,004 images, 16-bit grey PNG at a quarter of the size, and a report a
    study; 140,000 + 10,000 + 10,000 studies in train, valid and test. No labels."""

    tables: dict[str, Path]
    images: list[Path]

    @classmethod
    def locate(cls, args: argparse.Namespace, splits: list[str]) -> "Rexgradient":
        root = given(args.rexgradient_metadata, "--rexgradient_metadata", folder=True)
        root = root or release_root(args, "rexgradient")
        tables = {
            split: find_file(
                root, [f"{split}_metadata_view_position.json"], f"ReXGradient's {split} split", "--rexgradient_metadata"
            )
            for split in splits
        }
        images = given(args.rexgradient_images, "--rexgradient_images", folder=True)
        if images and images.name == "deid_png":
            return cls(tables, [images])
        root = images or given(args.rexgradient, "--rexgradient", folder=True) or tables[splits[0]].parents[1]
        holders = find_folders([root], ["deid_png"], "ReXGradient's images", "--rexgradient_images")
        return cls(tables, [holder / "deid_png" for holder in holders])

    def rows(self, split: str) -> Iterator[Row]:
        """The images of a split, in the file's order; the report of a study serves each of its images."""
        path = self.tables[split]
        for key, study in read_entries(path):
            yield from study_rows(study, split, f"{path}, {key}")


def study_rows(study: Any, split: str, where: str) -> list[Row]:
    """The rows of one study, or a `UserError` that says what in its entry is wrong."""
    if not isinstance(study, dict):
        raise UserError(f"{where}: the entry is a {type(study).__name__}, not an object; copy the file again")
    ids = {name: _text(study, name, where) for name in ("PatientID", "AccessionNumber")}
    for name, value in ids.items():
        if value.lower() in ("nan", "none") or not re.fullmatch(r"[\w.-]+", value):
            raise UserError(f"{where}: {name} is {value!r}, so the study cannot be told from others; correct the entry")
    known = {name: _text(study, name, where) for name in TEXT}
    paths, views = (_list(study, name, where) for name in ("ImagePath", "ImageViewPosition"))
    if len(paths) != len(views):
        raise UserError(f"{where}: {len(paths)} ImagePath but {len(views)} ImageViewPosition; correct the entry")
    study_id = f"rexgradient/{ids['PatientID']}/{ids['AccessionNumber']}"
    if not paths:  # no image, and yet no study may vanish: the plan lists a row without a path
        patient = f"rexgradient/{ids['PatientID']}"
        return [
            Row(
                id=study_id,
                source="rexgradient",
                split=split,
                patient_id=patient,
                patient_id_column=patient,
                study_id=study_id,
                view="",
                path="",
            )
        ]
    return [
        _row(split, study_id, known, path, view or "", f"{where}: ImagePath")
        for path, view in zip(paths, views, strict=True)
    ]


def _row(split: str, study_id: str, known: dict[str, str], path: str | None, view: str, where: str) -> Row:
    path = image_path(path, where)
    view = view.strip().upper()
    return Row(
        id=f"{study_id}/{posixpath.splitext(posixpath.basename(path))[0]}",
        source="rexgradient",
        split=split,
        patient_id=f"rexgradient/{path.split('/')[0]}",
        patient_id_column=study_id.rsplit("/", 1)[0],
        study_id=study_id,
        view=VIEWS.get(view, "other"),
        path=path,
        ap_pa=PROJECTIONS.get(view, ""),
        sex=SEXES.get(known["PatientSex"], ""),
        age=re.sub(r"^0*(\d+)Y$", r"\1", known["PatientAge"]),
        impression=known["Impression"],
        findings=known["Findings"],
    )


def image_path(text: str | None, where: str) -> str:
    """`<Patient>/<Accession>/...png`, relative to deid_png, from a path relative to `metadata/`; what leaves the
    release's folder is refused."""
    if not text or "\0" in text:
        raise UserError(f"{where} is empty or no path; correct the entry")
    path = posixpath.normpath(posixpath.join("metadata", text.replace("\\", "/")))
    if path.startswith(("/", "../")) or path == "..":
        raise UserError(f"{where} is {text!r}, which leads out of the release's folder; correct the entry")
    path = path.removeprefix("images/")
    inner = path.removeprefix("deid_png/")
    if inner == path or "/" not in inner:
        raise UserError(
            f"{where} is {text!r}, not like ../deid_png/<patient>/<accession>/.../<uid>.png; correct the entry"
        )
    return inner


def _text(study: dict, name: str, where: str) -> str:
    if name not in study:
        raise UserError(f"{where} lacks {name}; copy the file again")
    value = study[name]
    if value is None or value != value:  # JSON's null, or NaN as pandas writes it
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} is {value!r}, not text; correct the entry")
    return _storable(value)


def _list(study: dict, name: str, where: str) -> list[str | None]:
    if name not in study:
        raise UserError(
            f"{where} lacks {name}; name the *_metadata_view_position.json files with --rexgradient_metadata"
        )
    value = study[name]
    if not isinstance(value, list) or not all(item is None or isinstance(item, str) for item in value):
        raise UserError(f"{where}: {name} is {str(value)[:80]!r}, not a list of texts; correct the entry")
    return [item and _storable(item) for item in value]


def _storable(text: str) -> str:
    """The text with what JSON can spell and UTF-8 cannot (half a surrogate pair) replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the `(key, value)` pairs of a JSON object of any size, one at a time, in the file's order.

    The three files have 160,000 studies; parsed whole they would need more memory than all else in the build.
    """
    require_file(path, "name the folder of ReXGradient's JSON files with --rexgradient_metadata")
    decoder, seen = json.JSONDecoder(), set()
    try:
        with open(path, encoding="utf-8-sig") as handle:
            buffer = _Buffer(handle, path)
            if buffer.next_character() != "{":
                raise UserError(f"{path} does not begin with an object of studies; name the right file")
            mark = buffer.next_character(peek=True)
            while mark != "}":
                key = buffer.value(decoder)
                if not isinstance(key, str) or buffer.next_character() != ":":
                    raise UserError(f"{path}, after {len(seen)} studies: not valid JSON; copy the file again")
                if key in seen:
                    raise UserError(f"{path}: the study {key} is there twice; remove one of the entries")
                seen.add(key)
                yield key, buffer.value(decoder)
                mark = buffer.next_character()
                if mark not in ",}":
                    raise UserError(f"{path}, after the study {key}: not valid JSON; copy the file again")
            if not seen:
                buffer.next_character()
            buffer.must_end()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8; convert it, for instance with `iconv -f latin1 -t utf-8`") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error


class _Buffer:
    """A window on a text file from which JSON values are taken one by one."""

    def __init__(self, handle, path: Path):
        self.handle, self.path, self.text, self.at, self.ended = handle, path, "", 0, False

    def more(self) -> None:
        piece = self.handle.read(PIECE)
        self.ended = not piece
        self.text, self.at = self.text[self.at :] + piece, 0

    def next_character(self, peek: bool = False) -> str:
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                self.at += not peek
                return self.text[self.at - (not peek)]
            if self.ended:
                raise UserError(f"{self.path} ends too early; copy the file again")
            self.more()

    def must_end(self) -> None:
        """Only white space may follow."""
        while not self.ended:
            if self.text[self.at :].strip():
                raise UserError(f"{self.path} goes on after its last study; copy the file again")
            self.at = len(self.text)
            self.more()

    def value(self, decoder: json.JSONDecoder) -> Any:
        self.next_character(peek=True)
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except (json.JSONDecodeError, RecursionError) as error:
                if self.ended or len(self.text) - self.at > LONGEST_ENTRY:
                    raise UserError(f"{self.path}: not valid JSON ({error}); copy the file again") from error
            else:
                if self.ended or (end < len(self.text) and self.text[end] in " \t\r\n,:}"):  # else a number goes on
                    self.at = end
                    return value
            self.more()
