"""What the suites read beside the images: labels, manifests, reports and their own description files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from chexzero.data import open_images, read_labels
from chexzero.errors import UserError
from chexzero.files import read_table, require_file
from chexzero.suites.context import EvaluationContext

#: Columns that name a row rather than a finding; `dicom_id` ... `ViewPosition` stand in MIMIC-CXR-LT's tables.
ID_COLUMNS = ("id", "patient_id", "study_id", "view", "source", "split", "filename", "impression",
              "ap_pa", "dicom_id", "subject_id", "fpath", "path", "StudyDate", "StudyTime", "ViewPosition",
              "ViewCodeSequence_CodeMeaning", "Path", "Study", "Sex", "Age", "Frontal/Lateral", "AP/PA")


def read_description(path: str | Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read a suite's YAML description, sure that it is a mapping with exactly the keys `keys` (`about` apart)."""
    path = require_file(path, "name a description file like those in chexzero/suites")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())}); correct it") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must be a mapping with the keys {', '.join(keys)}; correct it")
    missing = [key for key in keys if key not in values]
    unknown = [str(key) for key in values if key not in keys and key != "about"]
    if missing or unknown:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has the unknown key {', '.join(unknown)}"
        raise UserError(f"{path} {wrong} (keys: {', '.join(keys)}); correct it")
    return values


def join(wanted: Sequence[str], wanted_in: str | Path, there: Sequence[str], there_in: str | Path) -> np.ndarray:
    """For each id of `wanted` its position in `there`; `UserError` for ids that are missing or stand there twice."""
    position = pd.Index(there)
    if position.has_duplicates:
        double = position[position.duplicated()][0]
        raise UserError(f"{there_in} has the id {double!r} twice; leave one of the rows out")
    rows = position.get_indexer(pd.Index(wanted))
    if (rows < 0).any():
        first = wanted[int(np.argmax(rows < 0))]
        raise UserError(f"{(rows < 0).sum()} of {len(rows)} ids of {wanted_in} are not in {there_in} (the first is "
                        f"{first!r}); name the files that belong together, or build them again with "
                        f"`python -m data_prep build`")
    return rows


@dataclass
class LabelledImages:
    """Images with labels: row i of `features` (N, D), `truth` (N, L) and `table` is the image `ids[i]`."""

    ids: list[str]
    features: np.ndarray
    truth: np.ndarray
    labels: list[str]
    table: pd.DataFrame
    path: Path

    def column(self, name: str, default: Sequence[str]) -> np.ndarray:
        """A column of the label table as strings, or `default` where the table has none."""
        return np.asarray(self.table.get(name, default), dtype=str)


def labels_file(context: EvaluationContext, images: str | Path, given: str | Path | None = None) -> Path:
    """The label CSV of an image file: the one given, else `<images>_labels.csv` beside the images."""
    path = context.images_path(images)
    return Path(given) if given else path.with_name(f"{path.stem}_labels.csv")


def read_labelled(context: EvaluationContext, images: str | Path, labels_path: str | Path | None = None,
                  labels: Sequence[str] | None = None) -> LabelledImages:
    """Embed an image file and join its label CSV by id (`id`, or MIMIC's `dicom_id`).

    images: `"valid"`, `"test"` or an image file. labels_path: by default `<images>_labels.csv` beside the images.
    labels: the columns to read; by default every column that does not name a row. Files without ids (upstream's)
    are joined by position when both have as many rows.
    """
    path = labels_file(context, images, labels_path)
    if labels is None:
        labels = [name for name in read_table(path, remedy="name a CSV that has one 0/1 column a label").columns
                  if name not in ID_COLUMNS]
    if not labels:
        raise UserError(f"{path} has no label columns; name a CSV that has one 0/1 column a finding")
    table, truth = read_labels(path, list(labels))
    if len(table) == 0:
        raise UserError(f"{path} has no rows; name a CSV with at least one labelled image")
    found = context.image_features(images)
    key = next((name for name in ("id", "dicom_id") if name in table), None)
    if found.ids is None or key is None:
        if len(table) != len(found.features):
            raise UserError(f"{path} has {len(table)} rows but {found.path} has {len(found.features)} images, and "
                            f"without ids in both they cannot be joined; name the files that belong together")
        rows, ids = np.arange(len(table)), found.ids or [f"row {i + 1}" for i in range(len(table))]
    else:
        ids = table[key].astype(str).tolist()
        rows = join(ids, path, found.ids, found.path)
    return LabelledImages(ids, found.features[rows], truth, list(labels), table, path)


def read_reports(context: EvaluationContext, images: str | Path) -> tuple[list[str], list[str], int]:
    """The reports of `--report_texts` that belong to an image file (or `"valid"`, `"test"`).

    Takes a CSV with `id, impression` (as `data_prep` writes) or CheXpert-Plus's own table with `path_to_image,
    section_impression`. Returns the ids, their texts, and how many of the images have no text.
    """
    if not (texts_path := context.option("report_texts")):
        raise UserError("this needs reports of images that were not trained on: name a CSV with the columns id and "
                        "impression, or CheXpert-Plus's own table, with --report_texts")
    images = context.images_path(images)
    header = read_table(texts_path, remedy="name a CSV with the columns id and impression").columns
    plus = "path_to_image" in header
    columns = ["path_to_image", "section_impression"] if plus else ["id", "impression"]
    table = read_table(texts_path, columns, all_columns=False, remedy="name a CSV with these columns")
    names = table[columns[0]].fillna("")
    if plus:
        names = [f"chexpert_plus/{name.rsplit('.', 1)[0]}" for name in names]
    texts = dict(zip(names, table[columns[1]].fillna("").str.split().str.join(" "), strict=True))
    with open_images(images) as handle:
        if "id" not in handle:
            raise UserError(f"{images} carries no ids, so reports cannot be joined; make it with "
                            f"`python -m data_prep build`")
        ids = [value.decode() for value in handle["id"][:]]
    kept = [name for name in ids if texts.get(name)]
    if not kept:
        raise UserError(f"none of the {len(ids)} images of {images} has a report in {texts_path} (the first id is "
                        f"{ids[0]!r}); name the reports that belong to these images with --report_texts")
    return kept, [texts[name] for name in kept], len(ids) - len(kept)
