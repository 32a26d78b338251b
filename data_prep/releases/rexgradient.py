"""ReXGradient-160K: images of 109,487 patients with their reports; all of it is training data here."""

import argparse
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import ijson

from chexzero.common.errors import UserError
from chexzero.common.files import require_file
from data_prep.releases.locate import Folder, Place, find_file, find_places, folders_above, given, release_root
from data_prep.releases.release import Release
from data_prep.releases.rows import BadRecord, Row

PIECE = 1 << 16  # characters read at a time
TEXT = ("Impression", "Findings", "PatientSex", "PatientAge")

#: Spelling of `ImageViewPosition` -> view. Anything else, UNKNOWN included, is `other`.
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


@dataclass
class Rexgradient(Release):
    """ReXGradient-160K: reports and 16-bit PNG at a quarter of the original size (Zhang et al. 2025).

    From: Hugging Face, `rajpurkarlab/ReXGradient-160K`, on request. Licence: its data use agreement, non-commercial.
    Counts: 273,004 images of 109,487 patients; 140,000 + 10,000 + 10,000 studies in train, valid and test.
    A report serves every image of its study. No labels. Cite: Zhang et al. 2025.
    """

    name = "rexgradient"
    splits = ("train", "valid", "test")
    counts = {"train": 238_968, "valid": 17_007, "test": 17_029}
    has_reports = True

    @classmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        parser.add_argument("--rexgradient", metavar="DIR", help="ReXGradient-160K's folder: metadata/ and deid_png/")
        parser.add_argument(
            "--rexgradient_metadata", metavar="DIR", help="the folder with *_metadata_view_position.json"
        )
        parser.add_argument("--rexgradient_images", metavar="DIR", help="the folder deid_png, or the one that holds it")

    @classmethod
    def locate(
        cls, args: argparse.Namespace, splits: Collection[str], labelled: Collection[str], found: dict[str, Release]
    ) -> Self:
        root = given(args.rexgradient_metadata, "--rexgradient_metadata", folder=True)
        root = root or release_root(args, cls.name)
        tables = {
            split: find_file(
                root, [f"{split}_metadata_view_position.json"], f"ReXGradient's {split} split", "--rexgradient_metadata"
            )
            for split in sorted(splits)
        }
        images = given(args.rexgradient_images, "--rexgradient_images", folder=True)
        if images and images.name == "deid_png":
            return cls(tables, [Place(images), Place(images, flat=True)])
        table = next(iter(tables.values()))
        roots = [images] if images else [table.parents[1], *folders_above(table, args, cls.name)]
        places = find_places(
            roots, _image_places, "ReXGradient's images (a folder with deid_png/ in it)", "--rexgradient_images"
        )
        return cls(tables, places)

    def records(self, split: str) -> Iterator[tuple[str, Any]]:
        for key, study in read_entries(self.tables[split]):
            yield f"{self.tables[split]}, {key}", study

    def read(self, entry: Any, split: str, where: str) -> Iterable[Row]:
        return study_rows(entry, split, where)


def _image_places(folder: Folder) -> list[Place]:
    """`deid_png/`, and folders that hold all images directly (`images/<uid>.png`)."""
    if "deid_png" in folder.folders:
        return [Place(folder.path / "deid_png"), Place(folder.path / "deid_png", flat=True)]
    flat = sum(name.endswith(".png") for name in folder.files) > 1
    return [Place(folder.path, flat=True)] if flat else []


def study_rows(study: Any, split: str, where: str) -> list[Row]:
    """The rows of one study; raises `BadRecord` that says what is wrong in its entry."""
    if not isinstance(study, dict):
        raise BadRecord(f"{where}: the entry is a {type(study).__name__}, not an object; copy the file again")
    ids = {name: _text(study, name, where) for name in ("PatientID", "AccessionNumber")}
    for name, value in ids.items():
        if value.lower() in ("nan", "none") or not re.fullmatch(r"[\w.-]+", value):
            raise BadRecord(f"{where}: {name} is {value!r}, so the study cannot be identified; correct the entry")
    known = {name: _text(study, name, where) for name in TEXT}
    paths, views = (_list(study, name, where) for name in ("ImagePath", "ImageViewPosition"))
    if len(paths) != len(views):
        raise BadRecord(f"{where}: {len(paths)} ImagePath but {len(views)} ImageViewPosition; correct the entry")
    study_id = f"rexgradient/{ids['PatientID']}/{ids['AccessionNumber']}"
    if not paths:  # the plan lists a row without a path, so that the study does not vanish
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
    images = [image_path(path, f"{where}: ImagePath") for path in paths]
    stems = [posixpath.splitext(posixpath.basename(image))[0] for image in images]
    # two series of a study may each have a `1.png`: the id then names the series too
    names = [
        stem if stems.count(stem) == 1 else f"{posixpath.basename(posixpath.dirname(_series(image)))}/{stem}"
        for image, stem in zip(images, stems, strict=True)
    ]
    return [
        _row(split, study_id, known, image, f"{study_id}/{name}", view or "")
        for image, name, view in zip(images, names, views, strict=True)
    ]


def _series(path: str) -> str:
    """The path without the folder `instances`, which every series has."""
    return path.replace("/instances/", "/")


def _row(split: str, study_id: str, known: dict[str, str], path: str, id: str, view: str) -> Row:
    view = view.strip().upper()
    return Row(
        id=id,
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
    """`<Patient>/<Accession>/...png`, relative to deid_png, from a path relative to `metadata/`; a path outside
    the release's folder raises `BadRecord`."""
    if not text or "\0" in text:
        raise BadRecord(f"{where} is empty or not a path; correct the entry")
    path = posixpath.normpath(posixpath.join("metadata", text.replace("\\", "/")))
    if path.startswith(("/", "../")) or path == "..":
        raise BadRecord(f"{where} is {text!r}, which leads out of the release's folder; correct the entry")
    path = path.removeprefix("images/")
    inner = path.removeprefix("deid_png/")
    if inner == path or "/" not in inner:
        raise BadRecord(
            f"{where} is {text!r}, not like ../deid_png/<patient>/<accession>/.../<uid>.png; correct the entry"
        )
    return inner


def _text(study: dict, name: str, where: str) -> str:
    if name not in study:
        raise BadRecord(f"{where} lacks {name}; copy the file again")
    value = study[name]
    if value is None or value != value:  # JSON's null, or NaN as pandas writes it
        return ""
    if not isinstance(value, str):
        raise BadRecord(f"{where}: {name} is {value!r}, not text; correct the entry")
    return _storable(value)


def _list(study: dict, name: str, where: str) -> list[str | None]:
    if name not in study:
        raise BadRecord(
            f"{where} lacks {name}; name the *_metadata_view_position.json files with --rexgradient_metadata"
        )
    value = study[name]
    if not isinstance(value, list) or not all(item is None or isinstance(item, str) for item in value):
        raise BadRecord(f"{where}: {name} is {str(value)[:80]!r}, not a list of texts; correct the entry")
    return [item and _storable(item) for item in value]


def _storable(text: str) -> str:
    """The text with lone surrogates replaced, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the `(key, value)` pairs of a JSON object of any size, one at a time, in the file's order.

    The three files have 160,000 studies; parsed whole, they would need more memory than the rest of the build.
    """
    require_file(path, "name the folder of ReXGradient's JSON files with --rexgradient_metadata")
    seen: set[str] = set()
    try:
        with open(path, encoding="utf-8-sig") as handle:
            for key, value in ijson.kvitems(_WithoutNaN(handle), "", use_float=True):
                if key in seen:
                    raise UserError(f"{path}: the study {key} occurs twice; remove one of the entries")
                seen.add(key)
                yield key, value
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8; convert it, for instance with `iconv -f latin1 -t utf-8`") from error
    except ijson.JSONError as error:
        reason = " ".join(str(error).split("\n")[0].split())[:200]
        raise UserError(f"{path}, after {len(seen)} studies: not valid JSON ({reason}); copy the file again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error


class _WithoutNaN:
    """Read a JSON text with NaN, which pandas writes and JSON does not allow, replaced by null."""

    def __init__(self, handle: IO[str]):
        self.handle, self.rest = handle, ""

    def read(self, size: int) -> str:
        while size:
            piece = self.handle.read(PIECE)
            text, self.rest = self.rest + piece, ""
            kept: list[str] = []
            at = end = 0
            opened = -1
            for token in _TOKEN.finditer(text):
                if token[0] != "NaN" and not token["closed"]:  # an unfinished string, in which NaN is text
                    opened = token.start()
                    break
                end = token.end()
                if token[0] == "NaN":
                    kept += text[at : token.start()], "null"
                    at = end
            if piece:  # the rest may be the beginning of a token
                cut = opened if opened >= 0 else max(end, len(text) - len("Na"))
                text, self.rest = text[:cut], text[cut:]
            if kept or text or not piece:
                return "".join((*kept, text[at:]))
        return ""


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*(?P<closed>")?|NaN', re.DOTALL)
