"""The labelled sets of an evaluation: read, checked, and grouped into cases."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from chexzero.common.errors import UserError
from chexzero.common.files import require_file, sha256_of
from chexzero.common.formats import check_images, check_rows, images_file, labels_file, read_labels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationSet:
    """One labelled set: row i of `table` (`id, patient_id, study_id, view`), `truth` and the images are one image.

    truth: (N, 14), 0 or 1, in `LABELS` order. The digests identify the two files.
    """

    name: str
    images: Path
    labels: Path
    table: pd.DataFrame
    truth: np.ndarray
    images_sha256: str
    labels_sha256: str
    pixel_range: str | None = None


def read_set(data_dir: Path, name: str, pixel_range: str | None = None) -> EvaluationSet:
    """Read `<name>.h5` and `<name>_labels.csv`; check that rows match and that no image is blank.

    pixel_range: `BLACK,WHITE`, the values that stand for 0 and 255 in a file of floating-point images.
    """
    remedy = "run `python -m data_prep build` first, or name the folder that holds it with --data"
    images, labels = (require_file(data_dir / file, remedy) for file in (images_file(name), labels_file(name)))
    table, truth = read_labels(labels)
    check_rows(images, labels, table)
    check_images(images, pixel_range=pixel_range)
    digests = sha256_of(images), sha256_of(labels)
    return EvaluationSet(name, images, labels, _identity(table, labels), truth, *digests, pixel_range)


def _identity(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return the four columns that identify a row. Upstream's files lack them: each row is then its own study."""
    if "study_id" not in table or "view" not in table:
        log.warning("%s has no columns study_id and view: each row is taken for one frontal view of one study", path)
    row = pd.Series([f"row {i + 1}" for i in range(len(table))])
    ids = table.get("id", row)
    study = table.get("study_id", ids)
    columns = {
        "id": ids,
        "patient_id": table.get("patient_id", study),
        "study_id": study,
        "view": table["view"].str.strip().str.lower() if "view" in table and "study_id" in table else "frontal",
    }
    found = pd.DataFrame(columns)
    blank = found.isna().any(axis=1)
    if blank.any():
        raise UserError(
            f"{path}, row {int(blank.argmax()) + 1} has a blank id, patient, study or view; build it "
            f"again with `python -m data_prep build`"
        )
    return found


@dataclass(frozen=True)
class Units:
    """The cases that are counted: images or studies. `table` and `truth` have one row per unit.

    `members[k]` is the unit of the image row `rows[k]`.
    """

    level: str
    table: pd.DataFrame
    truth: np.ndarray
    rows: np.ndarray
    members: np.ndarray
    left_out: int

    def reduce(self, image_scores: np.ndarray) -> np.ndarray:
        """(N images, K) -> (N units, K): the image itself, or the mean or maximum over the study's views."""
        scores = np.asarray(image_scores, dtype=np.float64)[self.rows]
        if self.level == "study_max":
            out = np.full((len(self.table), scores.shape[1]), -np.inf)
            np.maximum.at(out, self.members, scores)
            return out
        out = np.zeros((len(self.table), scores.shape[1]))
        np.add.at(out, self.members, scores)
        return out / np.bincount(self.members)[:, None]


def units(evaluation_set: EvaluationSet, level: str) -> Units:
    """Group a set's rows.

    `image`: as upstream, the first frontal view of each study (`left_out` counts the studies without one).
    `study_mean`, `study_max`: every study with all its views. Raises `UserError` if the labels of two views of a study
    differ, or if no case is left.
    """
    table, truth = evaluation_set.table, evaluation_set.truth
    codes, studies = pd.factorize(table["study_id"])
    first = np.unique(codes, return_index=True)[1]
    differ = np.flatnonzero((truth != truth[first[codes]]).any(1))
    if len(differ):
        raise UserError(
            f"{evaluation_set.labels}, row {differ[0] + 1}: the labels differ from those of another view "
            f"of the study {table['study_id'][differ[0]]!r}; correct the file"
        )
    if level == "image":
        frontal = np.flatnonzero(table["view"] == "frontal")
        rows = frontal[np.unique(codes[frontal], return_index=True)[1]]
        rows.sort()
        members = np.arange(len(rows))
        chosen = table.iloc[rows].reset_index(drop=True)
    else:
        rows, members = np.arange(len(table)), codes
        chosen = table.iloc[first].reset_index(drop=True).assign(id=studies, view="all")
    if len(chosen) == 0:
        raise UserError(f"{evaluation_set.labels} has no frontal view; evaluate with --level study_mean")
    kept = truth[rows] if level == "image" else truth[first]
    return Units(level, chosen, kept, rows, members, len(studies) - len(chosen))
