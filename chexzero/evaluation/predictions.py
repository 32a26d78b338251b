"""From images and a checkpoint to probabilities: which rows count, what is cached, how an ensemble is averaged."""

import hashlib
import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from chexzero.common.errors import UserError
from chexzero.common.files import atomic_path, require_file, sha256_of
from chexzero.common.formats import check_rows, image_ids, open_images, read_labels
from chexzero.common.labels import LABELS
from chexzero.evaluation.prompts import Prompt, probabilities

log = logging.getLogger(__name__)

LEVELS = ("image", "study_mean", "study_max")

#: Part of every cache key; raise it when the way from image to probability changes.
CACHE_VERSION = 2

#: Features (of length 1, float32) that differ by less than this are the same up to rounding.
SAME_FEATURES = 1e-7


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


def read_set(data_dir: Path, name: str) -> EvaluationSet:
    """Read `<name>.h5` and `<name>_labels.csv`, sure that rows match and that every image shows something."""
    remedy = "run `python -m data_prep build` first, or name the folder that holds it with --data"
    images, labels = (require_file(data_dir / name, remedy) for name in (f"{name}.h5", f"{name}_labels.csv"))
    table, truth = read_labels(labels)
    check_rows(images, labels, table)
    check_images(images)
    return EvaluationSet(name, images, labels, _identity(table, labels), truth, sha256_of(images), sha256_of(labels))


def _identity(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The four columns that say what a row is. Upstream's files lack them: each row is then a study of its own."""
    if "study_id" not in table or "view" not in table:
        log.warning("%s has no columns study_id and view: each row is taken for one frontal view of one study", path)
    row = pd.Series([f"row {i + 1}" for i in range(len(table))])
    ids = table.get("id", row)
    study = table.get("study_id", ids)
    columns = {
        "id": ids,
        "patient_id": table.get("patient_id", study),
        "study_id": study,
        "view": table["view"] if "view" in table and "study_id" in table else "frontal",
    }
    found = pd.DataFrame(columns)
    blank = found.isna().any(axis=1)
    if blank.any():
        raise UserError(
            f"{path}, row {int(blank.argmax()) + 1} has a blank id, patient, study or view; build it "
            f"again with `python -m data_prep build`"
        )
    return found


def check_images(path: Path) -> None:
    """Refuse an image file in which an image is of one grey value (black rows are images that failed to be read)."""
    with open_images(path) as handle:
        images, ids = handle["cxr"], image_ids(handle)
        constant = []
        for start in range(0, len(images), 64):
            block = images[start : start + 64].reshape(len(images[start : start + 64]), -1)
            constant.extend(start + np.flatnonzero(block.max(1) == block.min(1)))
        if constant:
            first = ids[constant[0]] if ids else f"row {constant[0] + 1}"
            raise UserError(
                f"{path}: {len(constant)} of {len(images)} images are of one grey value (the first is "
                f"{first}); they were not read, so no number from them would mean anything; build the "
                f"file again with `python -m data_prep build`"
            )


@dataclass(frozen=True)
class Units:
    """What is counted: images or studies. `table` and `truth` have one row a unit.

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

    `image`: upstream's way, the first frontal view of each study (studies without one are left out and counted).
    `study_mean`, `study_max`: every study with all its views. Raises `UserError` where the labels of two
    views of a study differ, or where nothing is left.
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


def check_predictions(scores: np.ndarray, where: str, names: Sequence[str] = LABELS) -> None:
    """Refuse probabilities (N, K) that are not finite, lie outside 0..1, or are the same for every image."""
    if scores.ndim != 2 or scores.shape[1] != len(names):
        raise UserError(
            f"{where}: predictions of shape {scores.shape} do not have the {len(names)} columns wanted; predict again"
        )
    bad = np.argwhere(~((scores >= 0) & (scores <= 1)))
    if len(bad):
        i, j = bad[0]
        raise UserError(
            f"{where}, row {i + 1}, {names[j]}: the prediction {scores[i, j]} is outside 0..1 "
            f"({len(bad)} such cells); predict again with a sound checkpoint"
        )
    if len(scores) > 1:
        constant = [name for name, spread in zip(names, np.ptp(scores, axis=0), strict=True) if spread == 0]
        if constant:
            raise UserError(
                f"{where}: the prediction for {constant[0]} is the same for every image "
                f"({len(constant)} of {len(names)} predictions are constant); the checkpoint tells "
                f"images not apart, or the images are all alike"
            )


class Predictor:
    """A checkpoint that predicts sets, each once: results are cached by the content of all that they depend on."""

    def __init__(
        self,
        checkpoint: Path,
        cache_dir: Path,
        *,
        device: str = "cpu",
        batch_size: int = 64,
        precision: str = "fp32",
        progress: bool = False,
    ):
        self.checkpoint, self.cache_dir = checkpoint, cache_dir
        self.device, self.batch_size, self.precision, self.progress = device, batch_size, precision, progress

    @cached_property
    def sha256(self) -> str:
        return sha256_of(self.checkpoint)

    @cached_property
    def model(self):
        from chexzero.models.checkpoints import load_model

        return load_model(self.checkpoint, self.device)

    def forget_model(self) -> None:
        """Free the model's memory; it is loaded again if it is needed again."""
        self.__dict__.pop("model", None)

    def cache_file(self, evaluation_set: EvaluationSet, prompts: Sequence[Prompt]) -> Path:
        """Where the probabilities lie: a digest of the checkpoint, the images, the prompts and the precision."""
        parts = [
            CACHE_VERSION,
            self.sha256,
            evaluation_set.images_sha256,
            self.precision,
            [prompt.as_dict() for prompt in prompts],
        ]
        return self.cache_dir / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}.npz"

    def predict(self, evaluation_set: EvaluationSet, prompts: Sequence[Prompt]) -> np.ndarray:
        """Probabilities of every prompt for every image: float64 (N, len(prompts)), checked."""
        path = self.cache_file(evaluation_set, prompts)
        shape = (len(evaluation_set.table), len(prompts))
        scores = _read_cache(path, shape)
        if scores is None:
            scores = self._compute(evaluation_set, prompts)
            with atomic_path(path) as temporary, open(temporary, "wb") as handle:
                np.savez(handle, probabilities=scores)
        names = [f"{prompt.label} ({prompt.name})" for prompt in prompts]
        check_predictions(scores, f"{self.checkpoint} on {evaluation_set.images}", names)
        return scores.astype(np.float64)

    def _compute(self, evaluation_set: EvaluationSet, prompts: Sequence[Prompt]) -> np.ndarray:
        from chexzero.evaluation.inference import embed_images

        log.info("%s: %d images of %s", self.checkpoint, len(evaluation_set.table), evaluation_set.images)
        with open_images(evaluation_set.images) as handle:
            features = embed_images(
                self.model,
                handle["cxr"],
                batch_size=self.batch_size,
                device=self.device,
                precision=self.precision,
                progress=self.progress,
            )
        if len(features) > 1 and np.ptp(features, axis=0).max() < SAME_FEATURES:
            raise UserError(
                f"{self.checkpoint} gives every image of {evaluation_set.images} the same features, so "
                f"its predictions are the same for every image; take another checkpoint, or look at the "
                f"images"
            )
        return probabilities(self.model, features, prompts)


def _read_cache(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The cached probabilities, or None where there are none that can be used."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            scores = archive["probabilities"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        log.warning("%s is damaged and is made again", path)
        return None
    return scores if scores.shape == shape and np.issubdtype(scores.dtype, np.floating) else None


def ensemble(members: Sequence[np.ndarray]) -> np.ndarray:
    """Upstream's ensemble: the mean of the members' probabilities."""
    return np.mean(members, axis=0)
