"""The suites' inputs besides images: labels, manifests, reports and their own description files."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chexzero.common.errors import UserError
from chexzero.common.files import read_table, read_yaml, require_file
from chexzero.common.formats import read_build, read_labels
from chexzero.evaluation.named_sets import labels_or_unknown
from chexzero.suites.context import EvaluationContext

#: Columns that identify a row rather than a finding; `dicom_id` ... `ViewPosition` are MIMIC-CXR-LT's, `ImageID` ...
#: `PatientID` those of CXR-LT 2026.
ID_COLUMNS = (
    "id",
    "patient_id",
    "study_id",
    "view",
    "source",
    "split",
    "filename",
    "impression",
    "ap_pa",
    "dicom_id",
    "subject_id",
    "fpath",
    "path",
    "StudyDate",
    "StudyTime",
    "ViewPosition",
    "ViewCodeSequence_CodeMeaning",
    "Path",
    "Study",
    "Sex",
    "Age",
    "Frontal/Lateral",
    "AP/PA",
    "ImageID",
    "StudyDate_DICOM",
    "PatientID",
)

#: Columns of image ids and of patient ids, in order of preference.
KEYS = ("id", "dicom_id", "ImageID")
PATIENTS = ("patient_id", "subject_id", "PatientID")

LABELS_REMEDY = "name a CSV that has one 0/1 column per label"


def read_description(path: str | Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read a suite's YAML description. Raises `UserError` unless it has exactly the keys `keys` (and maybe `about`)."""
    values = read_yaml(path, "correct it, or name a description file like those in chexzero/suites")
    if not isinstance(values, dict):
        raise UserError(f"{path} must be a mapping with the keys {', '.join(keys)}; correct it")
    missing = [key for key in keys if key not in values]
    unknown = [str(key) for key in values if key not in keys and key != "about"]
    if missing or unknown:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has the unknown key {', '.join(unknown)}"
        raise UserError(f"{path} {wrong} (keys: {', '.join(keys)}); correct it")
    return values


def join(wanted: Iterable[str], wanted_in: str | Path, there: Iterable[str], there_in: str | Path) -> np.ndarray:
    """Return the position in `there` of each id of `wanted`; `UserError` for missing ids and duplicates in `there`."""
    wanted, position = list(wanted), pd.Index(list(there))
    if position.has_duplicates:
        double = position[position.duplicated()][0]
        raise UserError(f"{there_in} has the id {double!r} twice; leave one of the rows out")
    rows = position.get_indexer(pd.Index(wanted))
    if (rows < 0).any():
        first = wanted[int(np.argmax(rows < 0))]
        raise UserError(
            f"{(rows < 0).sum()} of {len(rows)} ids of {wanted_in} are not in {there_in} (the first is "
            f"{first!r}); name the files that belong together, or build them again with "
            f"`python -m data_prep build`"
        )
    return rows


@dataclass
class LabelledImages:
    """Images with labels: row i of `features` (N, D), `truth` (N, L) and `table` is the image `ids[i]`."""

    context: EvaluationContext
    images: str | Path
    rows: np.ndarray  # row i is the image file's row rows[i]
    ids: list[str]
    truth: np.ndarray
    labels: list[str]
    table: pd.DataFrame
    path: Path

    @cached_property
    def features(self) -> np.ndarray:
        """Embed the images, on first use: by then every table of the suite has been checked."""
        return self.context.features_of(self.images, self.rows)

    def column(self, name: str, default: Sequence[str] | np.ndarray) -> np.ndarray:
        """A column of the label table as strings, `default` where the table has none or a blank."""
        values = self.table[name] if name in self.table else pd.Series(default, dtype=object)
        return np.where(values.isna(), np.asarray(default, dtype=object), values.to_numpy()).astype(str)

    def patients(self) -> np.ndarray:
        """The patient of each image (`PATIENTS`); the image's id if none is named."""
        return self.column(next((name for name in PATIENTS if name in self.table), PATIENTS[0]), self.ids)


def labels_file(context: EvaluationContext, images: str | Path, given: str | Path | None = None) -> Path:
    """The label CSV of an image file: the one given, else `<images>_labels.csv` beside the images."""
    path = context.images_path(images)
    return Path(given) if given else path.with_name(f"{path.stem}_labels.csv")


def header(path: str | Path, remedy: str) -> list[str]:
    """The column names of a CSV, without reading its rows; `UserError` for a repeated name."""
    path = require_file(path, remedy)
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            names = next(csv.reader(handle), [])
    except (UnicodeDecodeError, csv.Error):
        return list(read_table(path, remedy=remedy).columns)  # raises the error that says what is wrong
    if double := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path} has two columns {double[0]!r}; remove one of them")
    return names


def label_columns(path: str | Path) -> list[str]:
    """The columns of a label CSV that do not identify a row; `UserError` if there are none."""
    labels = [name for name in header(path, LABELS_REMEDY) if name not in ID_COLUMNS]
    if not labels:
        raise UserError(f"{path} has no label columns; name a CSV that has one 0/1 column per finding")
    return labels


def read_labelled(
    context: EvaluationContext,
    images: str | Path,
    labels_path: str | Path | None = None,
    labels: Sequence[str] | None = None,
    unknown: bool = False,
) -> LabelledImages:
    """Join the label CSV of an image file by id (`id`, MIMIC's `dicom_id`, or `ImageID` without its ending).

    images: `"valid"`, `"test"`, an image file or a folder of images. labels_path: by default `<images>_labels.csv`
    beside the images. labels: the columns to read; by default every column that does not identify a row. unknown:
    whether a label may be empty (NaN). Images without ids (upstream's files) are joined by position when there are as
    many rows.
    """
    path = labels_file(context, images, labels_path)
    labels = label_columns(path) if labels is None else list(labels)
    if unknown:
        table = read_table(path, labels, remedy=LABELS_REMEDY)
        truth = np.column_stack([labels_or_unknown(path, table[label]) for label in labels])
    else:
        table, truth = read_labels(path, labels)
    if len(table) == 0:
        raise UserError(f"{path} has no rows; name a CSV with at least one labelled image")
    there, n_there = context.image_ids(images)
    there_in = context.images_path(images)
    key = next((name for name in KEYS if name in table), None)
    if there is None:
        if len(table) != n_there:
            raise UserError(
                f"{path} has {len(table)} rows but {there_in} has {n_there} images, and without ids in "
                f"both they cannot be joined; name the files that belong together"
            )
        ids = table[key].fillna("").tolist() if key else [f"row {i + 1}" for i in range(n_there)]
        rows = np.arange(n_there)
    elif key is None:
        raise UserError(
            f"{path} has no column id (or dicom_id), so its rows cannot be joined with {there_in}, which "
            f"carries ids; add the column, or name labels that `python -m data_prep build` made"
        )
    else:
        ids = table[key].fillna("").tolist()
        if key == "ImageID":
            ids = [str(Path(name).with_suffix("")) for name in ids]
        if double := next((name for name, n in Counter(ids).items() if n > 1), None):
            raise UserError(f"{path} has the {key} {double!r} twice; leave one of the rows out")
        rows = join(ids, path, there, there_in)
    return LabelledImages(context, images, rows, ids, truth, labels, table, path)


def read_reports(context: EvaluationContext, images: str | Path) -> tuple[list[str], list[str], int]:
    """The reports of `--report_texts` that belong to an image file (or `"valid"`, `"test"`).

    Takes a CSV with `id, impression` (as `data_prep` writes) or CheXpert-Plus's own table with `path_to_image,
    section_impression`; by default the CheXpert-Plus table that the data were built from, if it still exists. Returns
    the ids, their texts, and how many of the images have no text.
    """
    texts_path = context.option("report_texts") or _table_of_the_build(context)
    if not texts_path:
        raise UserError(
            "this needs reports of images that were not trained on: name a CSV with the columns id and "
            "impression, or CheXpert-Plus's own table, with --report_texts"
        )
    (ids, _), path = context.image_ids(images), context.images_path(images)
    if ids is None:
        raise UserError(f"{path} carries no ids, so reports cannot be joined; make it with `python -m data_prep build`")
    plus = "path_to_image" in header(texts_path, "name a CSV with the columns id and impression")
    columns = ["path_to_image", "section_impression"] if plus else ["id", "impression"]
    table = read_table(texts_path, columns, all_columns=False, remedy="name a CSV with these columns")
    names = table[columns[0]].fillna("")
    if plus:
        names = names.map(_chexpert_plus_id)
    wanted = set(ids)
    if double := next((name for name, n in Counter(names).items() if n > 1 and name in wanted), None):
        raise UserError(f"{texts_path} has two reports of the image {double!r}; leave one of the rows out")
    texts = dict(zip(names, table[columns[1]].fillna("").str.split().str.join(" "), strict=True))
    kept = [name for name in ids if texts.get(name)]
    if not kept:
        raise UserError(
            f"none of the {len(ids)} images of {path} has a report in {texts_path} (the first id is "
            f"{ids[0]!r}); name the reports that belong to these images with --report_texts"
        )
    return kept, [texts[name] for name in kept], len(ids) - len(kept)


def _chexpert_plus_id(path: str) -> str:
    """The id that the build gives an image of CheXpert-Plus, for any path before its split and any file ending."""
    parts = path.replace("\\", "/").split("/")
    parts = [{"val": "valid", "validation": "valid"}.get(part, part) for part in parts]
    start = next((i for i, part in enumerate(parts) if part in ("train", "valid", "test")), 0)
    return f"chexpert_plus/{'/'.join(parts[start:]).rsplit('.', 1)[0]}"


def _table_of_the_build(context: EvaluationContext) -> Path | None:
    path = Path(read_build(context.data_dir).get("inputs", {}).get("chexpert_plus_csv", {}).get("path", ""))
    return path if path.is_file() else None
