"""Predict both labelled sets, choose thresholds on validation, and compute every number of the 14 labels."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chexzero.common.errors import UserError
from chexzero.common.formats import image_side, read_build
from chexzero.common.labels import LABELS
from chexzero.evaluation.checkpoint_choice import Choice
from chexzero.evaluation.prompts import Prompt, read_alternatives, upstream_prompts
from chexzero.evaluation.results import SetResult, evaluate_set
from chexzero.evaluation.sets import EvaluationSet, read_set, units
from chexzero.evaluation.settings import EvaluationSettings
from chexzero.metrics import best_thresholds
from chexzero.zero_shot import Pair, Predictor, check_predictions, ensemble

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """All results, before anything is written. `scores` are per set (N cases, len(prompts))."""

    data_dir: Path
    build: dict[str, Any]
    sets: list[EvaluationSet]
    prompts: list[Prompt]
    by_image: list[np.ndarray]
    scores: list[np.ndarray]
    predictors: list[Predictor]
    valid: SetResult
    test: SetResult

    @property
    def drawn(self) -> bool:
        """Whether the images were drawn by a program."""
        return bool(self.build.get("drawn"))


@dataclass(frozen=True)
class Request:
    """A request to every model: an image file with its SHA-256, pairs of prompts, and their names in messages."""

    images: Path
    sha256: str
    pairs: Sequence[Pair]
    names: Sequence[str]


def measure(settings: EvaluationSettings, choice: Choice) -> Measured:
    """Predict, choose thresholds and evaluate; see the module. Only the cache of predictions is written."""
    data_dir = data_folder(settings, choice)
    sets = [read_set(data_dir, name, settings.pixel_range) for name in ("valid", "test")]
    check_the_runs_data(choice, sets[0], named=settings.data is not None)
    counted = [units(one, settings.level) for one in sets]
    prompts = upstream_prompts() + read_alternatives(settings.prompts)
    by_image, predictors = predict(choice.checkpoints, sets, prompts, settings)
    scores = [unit.reduce(values) for unit, values in zip(counted, by_image, strict=True)]
    upstream = [values[:, : len(LABELS)] for values in scores]
    for one, values in zip(sets, upstream, strict=True):
        check_predictions(values, f"the predictions for {one.images}")
    at = best_thresholds(counted[0].truth, upstream[0])
    valid, test = (
        evaluate_set(one.name, unit, values, at, settings.n_bootstrap)
        for one, unit, values in zip(sets, counted, upstream, strict=True)
    )
    return Measured(data_dir, read_build(data_dir), sets, prompts, by_image, scores, predictors, valid, test)


def check_the_runs_data(choice: Choice, valid: EvaluationSet, named: bool) -> None:
    """Compare a validation set with the run's record of the set that selected its checkpoint.

    Raises `UserError` if it is another set and the user did not name it (`named`): a run's folder that was moved may
    find another `data/` at the recorded path. A named one only gives a warning, and so do images of another size than
    the run's.
    """
    for run in (choice.run,) if choice.run else choice.runs:
        recorded = run.validated_on()
        here = {"valid": (valid.images, valid.images_sha256), "valid_labels": (valid.labels, valid.labels_sha256)}
        other = [path for name, (path, sha256) in here.items() if recorded.get(name, sha256) != sha256]
        if other and not named:
            raise UserError(
                f"{other[0]} is not the file that {run.path} was validated on (its config.json has another SHA-256): "
                "the run was moved, or the data were made again; name the folder of the data with --data"
            )
        if other:
            log.warning("%s is not the file that %s was validated on", " and ".join(map(str, other)), run.path)
        if (side := image_side(valid.images)) and side != run.image_size():
            log.warning(
                "%s holds images of %d x %d pixels, but %s trained on images of %d x %d (--image_size of the build): "
                "figures may be lower for this reason alone",
                *(valid.images, side, side, run.path, run.image_size(), run.image_size()),
            )


def predict(
    checkpoints: Sequence[Path], sets: Sequence[EvaluationSet], prompts: Sequence[Prompt], settings: EvaluationSettings
) -> tuple[list[np.ndarray], list[Predictor]]:
    """Return the ensemble's probabilities (N images, len(prompts)) per set, and the predictors."""
    names = [f"{prompt.label} ({prompt.name})" for prompt in prompts]
    pairs = [prompt.pair for prompt in prompts]
    return predict_files(checkpoints, [Request(one.images, one.images_sha256, pairs, names) for one in sets], settings)


def predict_files(
    checkpoints: Sequence[Path], requests: Sequence[Request], settings: EvaluationSettings
) -> tuple[list[np.ndarray], list[Predictor]]:
    """Return the ensemble's checked probabilities (N images, len(pairs)) per request, and the predictors.

    One model is in memory at a time; consecutive requests for the same file embed it once.
    """
    members: list[list[np.ndarray]] = [[] for _ in requests]
    predictors = [predictor_of(checkpoint, settings) for checkpoint in checkpoints]
    for predictor in predictors:
        for one, found in zip(requests, members, strict=True):
            found.append(predictor.predict(one.images, one.pairs, images_sha256=one.sha256))
            check_predictions(found[-1], f"{predictor.checkpoint} on {one.images}", one.names)
        predictor.forget_model()
    return [ensemble(found) for found in members], predictors


def predictor_of(checkpoint: Path, settings: EvaluationSettings) -> Predictor:
    """Make a checkpoint's predictor, with the cache in the results folder."""
    return Predictor(
        checkpoint,
        settings.out / ".cache",
        device=settings.device,
        batch_size=settings.batch_size,
        precision=settings.precision,
        progress=sys.stderr.isatty(),
        pixel_range=settings.pixel_range,
    )


def data_folder(settings: EvaluationSettings, choice: Choice) -> Path:
    """`--data`, else the folder whose validation set the run used, else `data`."""
    return settings.data or choice.data_dir() or Path("data")
