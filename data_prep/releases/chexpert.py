"""CheXpert: the images, and the labels of its three splits; radiologists labelled validation and test."""

import argparse
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from chexzero.common.errors import UserError
from chexzero.common.labels import COMPETITION_LABELS, LABELS
from data_prep.releases.locate import (
    SUFFIXES,
    Place,
    find_file,
    find_places,
    given,
    has_columns,
    release_root,
    split_ending,
    split_places,
)
from data_prep.releases.release import Release, bits
from data_prep.releases.rows import UNKNOWN, BadRecord, Row, checked_path, read_records

SPLITS = ("train", "valid", "test")
OTHER_NAMES = {"val": "valid", "validation": "valid"}  # CheXlocalize's

#: split -> the names of the table of its labels, the release's own first
LABEL_TABLES = {
    "train": ["train.csv"],
    "valid": ["valid.csv", "val_labels.csv"],
    "test": ["groundtruth.csv", "test_labels.csv", "test.csv"],
}


def image_key(text: str, where: str) -> str:
    """`train/patient00001/study1/view1_frontal` from a path in any spelling: with a prefix before the split or
    without, with either ending. This is the part that CheXpert and CheXpert-Plus share."""
    parts = _after_split(text, where)
    if len(parts) != 4:
        raise BadRecord(f"{where} is {text!r}, not like train/patient00001/study1/view1_frontal.jpg; correct the row")
    return split_ending("/".join(parts))[0]


def study_key(text: str, where: str) -> str:
    """`test/patient64741/study1` from a study's path or from the path of one of its images; `valid/patient64541` from a
    patient's."""
    parts = _after_split(text, where)
    if len(parts) not in (2, 3, 4):
        raise BadRecord(f"{where} is {text!r}, not like test/patient64741/study1; correct the row")
    return "/".join(parts[:3])


def _after_split(text: str, where: str) -> tuple[str, ...]:
    parts = checked_path(text, where).parts
    parts = tuple(OTHER_NAMES.get(part, part) for part in parts)
    start = next((i for i, part in enumerate(parts) if part in SPLITS), len(parts))
    if odd := [part for part in parts[start:] if not re.fullmatch(r"[\w.-]+", part)]:
        raise BadRecord(f"{where} has the invalid part {odd[0]!r}; correct it")
    return parts[start:]


def view_of(key: str, column: str = "") -> str:
    """`frontal` or `lateral` by the table's column, else by the file's name; `other` if neither says."""
    for text in (column, PurePosixPath(key).name):
        for view in ("frontal", "lateral"):
            if view in text.lower():
                return view
    return "other"


def view_number(row: Row) -> tuple[int, str]:
    """The order of the views within a study: view2 comes before view10."""
    digits = re.search(r"view(\d+)", row.id)
    return (int(digits[1]) if digits else 0, row.id)


def chexpert_row(source: str, key: str, **known: str) -> Row:
    """A row whose ids follow from the image's key."""
    split, patient, study, _ = key.split("/")
    known.setdefault("patient_id_column", patient)
    return Row(
        id=f"{source}/{key}",
        source=source,
        split=split,
        patient_id=patient,
        study_id=f"{source}/{split}/{patient}/{study}",
        **known,
    )


@dataclass
class Chexpert(Release):
    """CheXpert: chest radiographs with fourteen labels (Irvin et al., AAAI 2019).

    From: Stanford AIMI (`CheXpert-v1.0`, `CheXpert-v1.0-small`, or in batches); the validation and test images and
    labels also with CheXlocalize (Saporta et al., 2022). Licence: Stanford's research use agreement.
    Counts: 223,414 training images of 64,540 patients, 234 for validation, 668 (500 studies) for test.
    Labels: for training a program's from the reports, where blank and uncertain (-1) are unknown here; for validation
    three radiologists', for test five radiologists', each 0 or 1. No reports: these are in CheXpert-Plus, which has the
    same images and patient numbers.
    Cite: Irvin et al. 2019; for the test labels Saporta et al. 2022.
    """

    name = "chexpert"
    splits = SPLITS
    labels = tuple(LABELS)
    counts = {"train": 223_414, "valid": 234, "test": 668}

    plus: Release | None = None  # CheXpert-Plus, where its table has the test rows

    @classmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        parser.add_argument("--chexpert", metavar="DIR", help="CheXpert's folder: valid.csv, groundtruth.csv and test/")
        parser.add_argument("--chexpert_train_csv", metavar="FILE", help="CheXpert's own labels of the training set")
        parser.add_argument(
            "--chexpert_valid_csv", metavar="FILE", help="the radiologists' labels of the validation set"
        )
        parser.add_argument(
            "--chexpert_test_csv", metavar="FILE", help="the radiologists' labels of the test set (groundtruth.csv)"
        )
        parser.add_argument("--chexpert_images", metavar="DIR", help="the folder that holds test/")

    @classmethod
    def locate(
        cls, args: argparse.Namespace, splits: Collection[str], labelled: Collection[str], found: dict[str, Release]
    ) -> Self:
        """Find the label tables and the images. The test set uses CheXpert-Plus's rows, if its table has them."""
        tables = {split: find_labels(args, split) for split in sorted(splits)}
        images = given(args.chexpert_images, "--chexpert_images", folder=True)
        plus = found.get("chexpert_plus")
        plus = plus if plus and "test" in splits and "test" in plus.own_splits() else None
        if plus and set(splits) == {"test"} and any((place.root / "test").is_dir() for place in plus.images):
            return cls(tables, [Place(images)] if images else [], plus)
        roots = [images or release_root(args, cls.name)]
        places = find_places(roots, split_places(splits), _what("CheXpert's images", splits), "--chexpert_images")
        if plus:
            plus.images.extend(places)  # where its test rows' images may be
        return cls(tables, places, plus)

    def records(self, split: str) -> Iterator[tuple[str, str]]:
        """The labelled images or studies, by their key."""
        for number, key in enumerate(read_table(self.tables[split], split), start=1):
            yield f"{self.tables[split]}, row {number}", key

    def read(self, entry: str, split: str, where: str) -> Iterable[Row]:
        """The images in the folders that an entry labels, by view."""
        if split == "train":
            return [chexpert_row(self.name, entry, view=view_of(entry), path=f"{entry}.jpg")]
        study = "/".join(entry.split("/")[:3])
        names = {
            image_key(f"{study}/{name}", f"{place.root}, {study}: a file's name")
            for place in self.images
            if (folder := place.relative(study)) is not None
            for name in _image_names(place.root / folder)
        }
        keys = [name for name in names if name == entry or entry == study]
        if not keys:
            raise UserError(
                f"{self.tables[split]} labels {entry}, but it has no image under "
                f"{' or '.join(map(str, self.images))}; name their folder with --chexpert_images"
            )
        rows = [chexpert_row(self.name, name, view=view_of(name), path=f"{name}.jpg") for name in keys]
        return sorted(rows, key=view_number)

    def rows(self, split: str) -> Iterator[Row]:
        """Yield the labelled images, then the images beside them on disk that have no labels."""
        rows = self.plus.rows(split) if split == "test" and self.plus else super().rows(split)
        yield from labelled_rows(rows, self.tables[split], split)
        if split != "train":
            yield from self._unlabelled(split)

    def _unlabelled(self, split: str) -> Iterator[Row]:
        labels = read_table(self.tables[split], split)
        seen = set()
        for place in self.images:
            if (top := place.relative(f"{split}/")) is None:
                continue
            for patient in _names_like(r"patient\d+", place.root / top):
                for study in _names_like(r"study\d+", place.root / top / patient):
                    for name in sorted(_image_names(place.root / top / patient / study)):
                        key = split_ending(f"{split}/{patient}/{study}/{name}")[0]
                        if key not in seen and not {key, key.rsplit("/", 1)[0], key.rsplit("/", 2)[0]} & labels.keys():
                            yield chexpert_row(self.name, key, view=view_of(key), path=f"{key}.jpg")
                        seen.add(key)


def _what(images: str, splits: Collection[str]) -> str:
    return f"{images} (a folder with {' or '.join(f'{split}/' for split in sorted(splits))} in it)"


def find_labels(args: argparse.Namespace, split: str) -> Path:
    """The label table of a split."""
    flag = f"--chexpert_{split}_csv"
    if path := given(getattr(args, f"chexpert_{split}_csv"), flag, folder=False):
        return path
    return find_file(
        release_root(args, "chexpert"),
        LABEL_TABLES[split],
        f"the labels of CheXpert's {split} set",
        flag,
        has_columns(("Path", *LABELS), ("Study", *LABELS)),
    )


def read_table(path: Path, split: str) -> dict[str, str]:
    """The labels of a split by image (`valid/patient64541/study1/view1_frontal`) or by study
    (`test/patient64741/study1`), one character each in the order of `LABELS`, in the order of the table.

    Those of validation and test must be 0 or 1.
    """
    column = "Study" if has_columns(["Study"])(path) else "Path"
    if split == "train":
        cells = ((record[column], bits(record[label] for label in LABELS)) for _, record in _label_records(path))
    else:
        from chexzero.common.formats import read_labels  # here: processes that prepare images do not need pandas

        table, values = read_labels(path)
        if column not in table:
            raise UserError(f"{path} has neither a column Path nor a column Study; name CheXpert's own file")
        cells = ((text, bits(line)) for text, line in zip(table[column].fillna(""), values, strict=True))
    labels: dict[str, str] = {}
    seen = set()
    for number, (text, line) in enumerate(cells, start=1):
        where = f"{path}, row {number}"
        study = study_key(text, f"{where}: {column}")
        image = len(checked_path(text, where).parts) > len(study.split("/")) and "view" in PurePosixPath(text).name
        key = image_key(text, f"{where}: {column}") if image and split != "test" else study
        if not key.startswith(f"{split}/"):
            raise UserError(f"{where}: {text!r} is not of the split {split}; name the right file")
        if text in seen or labels.setdefault(key, line) != line:
            raise UserError(f"{where}: {text!r} is labelled twice; remove one of the rows")
        seen.add(text)
    return labels


def _label_records(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    return read_records(path, ["Path", *LABELS], "name CheXpert's train.csv with --chexpert_train_csv")


def labelled_rows(rows: Iterable[Row], table: Path, split: str) -> Iterator[Row]:
    """Yield the rows with the labels that `table` has for their image, study or patient.

    Raises `UserError` for an image without labels, and after the last row for a label without an image: an evaluation
    set must be complete.
    """
    labels = read_table(table, split)
    used = set()
    for row in rows:
        if row.problem:
            raise UserError(f"{row.problem} (the {split} set is labelled and must be complete)")
        key = row.id.removeprefix(f"{row.source}/")
        study, patient = key.rsplit("/", 1)[0], key.rsplit("/", 2)[0]
        found = next((name for name in (key, study, patient) if name in labels), None)
        if found is None:
            raise UserError(f"{row.id} is in the {split} set but {table} has no labels for it; name the table that has")
        used.add(found)
        row.labels = labels[found]
        yield row
    if unused := [key for key in labels if key not in used]:
        raise UserError(
            f"{table} labels {unused[0]} ({len(unused)} such), but the {split} set has no such image; "
            f"complete the tables or name the right ones"
        )


def _image_names(folder: Path) -> list[str]:
    """The names of the images in a folder, without `._x.jpg`, which macOS leaves beside `x.jpg`."""
    return [name for name in _names_like(r"[^.].*", folder) if name.endswith(SUFFIXES)]


def _names_like(pattern: str, folder: Path) -> list[str]:
    """The names in a folder that match the pattern, sorted; none if it is not a folder."""
    try:
        return sorted(name for name in os.listdir(folder) if re.fullmatch(pattern, name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); check its permissions") from error


@dataclass
class Chexpert5x200(Release):
    """CheXpert-5x200: 1,000 frontal training images of CheXpert with exactly one of five findings (Huang et al. 2021).

    From: GLoRIA's authors, `chexpert_5x200.csv`; the images are CheXpert's. MedCLIP's set of this name has other images,
    some of them lateral. Counts: 1,000 images, 200 per finding. Labels: the five findings, exactly one of them 1. A
    model trained on CheXpert has seen the images, unless `build --keep_out chexpert_5x200.csv` left them out.
    Cite: Huang et al., ICCV 2021, and Irvin et al. 2019.
    """

    name = "chexpert5x200"
    splits = ("test",)
    labels = tuple(COMPETITION_LABELS)
    counts = {"test": 1_000}

    @classmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--chexpert5x200_images", metavar="DIR", help="CheXpert's folder, the one that holds train/"
        )

    @classmethod
    def locate(
        cls, args: argparse.Namespace, splits: Collection[str], labelled: Collection[str], found: dict[str, Release]
    ) -> Self:
        root = release_root(args, cls.name)
        accept = has_columns(["Path", *cls.labels])
        table = find_file(
            root, ["chexpert_5x200.csv", "*5x200*.csv"], "CheXpert-5x200's table", f"--{cls.name}", accept
        )
        flag = "--chexpert5x200_images"
        roots = [given(args.chexpert5x200_images, flag, folder=True) or root]
        return cls(
            {"": table}, find_places(roots, split_places(["train"]), _what("CheXpert's images", ["train"]), flag)
        )

    def records(self, split: str) -> Iterator[tuple[str, dict[str, str]]]:
        remedy = "name GLoRIA's table's folder with --chexpert5x200"
        for number, record in read_records(self.tables[""], ["Path", *self.labels], remedy):
            yield f"{self.tables['']}, row {number}", record

    def read(self, entry: dict[str, str], split: str, where: str) -> Iterable[Row]:
        key = image_key(entry["Path"], f"{where}: Path")
        labels = bits(entry[name] for name in self.labels).replace(UNKNOWN, "0")  # blank counts as 0 in this set
        row = chexpert_row(self.name, key, view=view_of(key), path=f"{key}.jpg", labels=labels)
        row.split = split
        yield row
