"""CheXpert: the radiologists' labels of the validation set, and the images and labels of the test set."""

import argparse
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from chexzero.common.errors import UserError
from chexzero.common.formats import read_labels
from chexzero.common.labels import LABELS
from data_prep.releases.locate import SUFFIXES, find_file, find_folders, given, has_columns, release_root
from data_prep.releases.rows import Row, checked_path

SPLITS = ("train", "valid", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--chexpert", metavar="DIR", help="CheXpert's folder: valid.csv, groundtruth.csv and test/")
    parser.add_argument("--chexpert_valid_csv", metavar="FILE", help="the radiologists' labels of the validation set")
    parser.add_argument(
        "--chexpert_test_csv", metavar="FILE", help="the radiologists' labels of the test set (groundtruth.csv)"
    )
    parser.add_argument("--chexpert_images", metavar="DIR", help="the folder that holds test/")


def image_key(text: str, where: str) -> str:
    """`train/patient00001/study1/view1_frontal` from a path in any spelling: with a prefix before the split or
    without, with either ending. This is the part that CheXpert and CheXpert-Plus share."""
    parts = _after_split(text, where)
    if len(parts) != 4:
        raise UserError(f"{where} is {text!r}, not like train/patient00001/study1/view1_frontal.jpg; correct the row")
    return os.path.splitext("/".join(parts))[0]


def study_key(text: str, where: str) -> str:
    """`test/patient64741/study1` from a study's path or from the path of one of its images."""
    parts = _after_split(text, where)
    if len(parts) not in (3, 4):
        raise UserError(f"{where} is {text!r}, not like test/patient64741/study1; correct the row")
    return "/".join(parts[:3])


def _after_split(text: str, where: str) -> tuple[str, ...]:
    parts = checked_path(text, where).parts
    start = next((i for i, part in enumerate(parts) if part in SPLITS), len(parts))
    if odd := [part for part in parts[start:] if not re.fullmatch(r"[\w.-]+", part)]:
        raise UserError(f"{where} has the odd part {odd[0]!r}; correct it")
    return parts[start:]


def view_of(key: str, column: str = "") -> str:
    """`frontal` or `lateral` by the table's column, else by the file's name; `other` if neither tells."""
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


@dataclass(frozen=True)
class Chexpert:
    """CheXpert (Irvin et al., AAAI 2019): 234 validation images labelled by three radiologists (`valid.csv`), the 500
    test studies labelled by five (`groundtruth.csv`, Saporta et al. 2022); 14 labels, each 0 or 1. Patients are
    numbered through with CheXpert-Plus."""

    tables: dict[str, Path]
    images: list[Path]

    @classmethod
    def locate(cls, args: argparse.Namespace, splits: set[str], need_images: bool) -> "Chexpert":
        """Find the label tables of `splits`, and the images if they are needed from here."""
        tables = {split: find_labels(args, split) for split in sorted(splits)}
        images = given(args.chexpert_images, "--chexpert_images", folder=True)
        if not need_images:
            return cls(tables, [images] if images else [])
        roots = [images] if images else [release_root(args, "chexpert")]
        return cls(tables, find_folders(roots, sorted(splits), "CheXpert's images", "--chexpert_images"))

    def labels(self, split: str) -> dict[str, str]:
        """The labels by image (`valid/patient64541/study1/view1_frontal`) or by study (`test/patient64741/study1`),
        as fourteen characters 0 or 1, in the order of the table."""
        path = self.tables[split]
        table, values = read_labels(path)
        column = "Study" if "Study" in table else "Path"
        if column not in table:
            raise UserError(f"{path} has neither a column Path nor a column Study; name CheXpert's own file")
        key_of = image_key if split == "valid" else study_key
        labels: dict[str, str] = {}
        seen = set()
        for number, (text, line) in enumerate(zip(table[column].fillna(""), values, strict=True), start=1):
            where = f"{path}, row {number}"
            key = key_of(text, f"{where}: {column}")
            bits = "".join(str(int(value)) for value in line)
            if not key.startswith(f"{split}/"):
                raise UserError(f"{where}: {text!r} is not of the split {split}; name the right file")
            if text in seen or labels.setdefault(key, bits) != bits:
                raise UserError(f"{where}: {text!r} is labelled twice; remove one of the rows")
            seen.add(text)
        return labels

    def rows(self, split: str) -> Iterator[Row]:
        """The images of the labelled studies that are in the folders, by study in the table's order, then by view."""
        for key in self.labels(split):
            study = "/".join(key.split("/")[:3])
            names = {
                image_key(f"{study}/{name}", f"{root / study}: a file's name")
                for root in self.images
                for name in _image_names(root / study)
            }
            keys = [name for name in names if name == key or key == study]
            if not keys:
                raise UserError(
                    f"{self.tables[split]} labels {key}, but it has no image under "
                    f"{' or '.join(map(str, self.images))}; name their folder with --chexpert_images"
                )
            rows = [chexpert_row("chexpert", name, view=view_of(name), path=f"{name}.jpg") for name in keys]
            yield from sorted(rows, key=view_number)


def find_labels(args: argparse.Namespace, split: str) -> Path:
    """The label table of `valid` or `test`."""
    flag = f"--chexpert_{split}_csv"
    if path := given(getattr(args, f"chexpert_{split}_csv"), flag, folder=False):
        return path
    patterns = {"valid": ["valid.csv"], "test": ["groundtruth.csv", "test_labels.csv", "test.csv"]}[split]
    return find_file(
        release_root(args, "chexpert"),
        patterns,
        f"the labels of CheXpert's {split} set",
        flag,
        has_columns(("Path", *LABELS), ("Study", *LABELS)),
    )


def _image_names(folder: Path) -> list[str]:
    try:
        return [
            name for name in os.listdir(folder) if name.endswith(SUFFIXES) and not name.startswith(".")
        ]  # ._x.jpg: what macOS leaves beside x.jpg
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); check its permissions") from error
