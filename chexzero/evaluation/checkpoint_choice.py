"""The choice of the checkpoints to evaluate, and its reason."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexzero.common.errors import UserError
from chexzero.common.files import require_file, safe_name
from chexzero.common.resample import RESOLUTION
from chexzero.evaluation.settings import EvaluationSettings
from chexzero.runs.run_folder import RunFolder, best_checkpoints, read_run, step_of

REMEDY = "name a run's folder with --run, or checkpoints with --checkpoint"


@dataclass(frozen=True)
class Choice:
    """The checkpoints to evaluate (several: an ensemble), their run or runs, and the reason for the choice."""

    name: str
    run: RunFolder | None
    checkpoints: list[Path]
    selected: dict[str, Any]
    runs: tuple[RunFolder, ...] = ()

    def data_dir(self) -> Path | None:
        """The folder whose validation set the run or runs used, if recorded."""
        found = (run.data_dir() for run in ((self.run,) if self.run else self.runs))
        return next((folder for folder in found if folder), None)

    def image_size(self) -> int:
        """The side in pixels of the run's stored images, 320 without a run."""
        return next((run.image_size() for run in ((self.run,) if self.run else self.runs)), RESOLUTION)

    def pixel_range(self) -> str | None:
        """The run's `--pixel_range`, so that its evaluation reads images alike."""
        found = (run.settings.get("pixel_range") for run in ((self.run,) if self.run else self.runs))
        return next((one for one in found if isinstance(one, str)), None)


def choose(settings: EvaluationSettings) -> Choice:
    """Choose the run's selected checkpoint, its K best by validation, or the named checkpoints."""
    if settings.runs and settings.ensemble:
        return best_of_runs([read_run(path) for path in dict.fromkeys(settings.runs)], settings.ensemble)
    run = read_run(settings.run) if settings.run else None
    if settings.checkpoint:
        checkpoints = sorted(_existing(path) for path in settings.checkpoint)
        what = checkpoints[0].name if len(checkpoints) == 1 else f"The ensemble of {len(checkpoints)} checkpoints"
        reason = f"{what} was named with --checkpoint; how it was selected is not recorded."
        step = step_of(checkpoints[0]) if len(checkpoints) == 1 else None
    elif run is None:
        raise UserError(f"nothing to evaluate; {REMEDY}")
    elif settings.ensemble:
        steps = run.best_steps(settings.ensemble)
        checkpoints, step = sorted(run.checkpoint_of(step) for step in steps), steps[0]
        reason = (
            f"Ensemble (mean of the probabilities) of the {len(steps)} checkpoints with the best "
            f"{run.ranking_metric} on validation: steps {', '.join(map(str, steps))}, of "
            f"{len(run.metrics)} validated."
        )
    else:
        checkpoints, step = [run.selected()], run.selection.get("step")
        reason = str(run.selection.get("reason") or "The run's selection.json names it.")
    name = run.path.resolve().name if run else checkpoints[0].stem if len(checkpoints) == 1 else "ensemble"
    selected: dict[str, Any] = {"checkpoint": checkpoints[0].name, "step": step, "reason": reason}
    if len(checkpoints) > 1:
        selected |= {
            "checkpoint": run.checkpoint_of(step).name if run and step is not None else checkpoints[0].name,
            "ensemble": [path.name for path in checkpoints],
        }
    return Choice(safe_name(name, "name of the run"), run, checkpoints, selected)


def best_of_runs(runs: Sequence[RunFolder], count: int) -> Choice:
    """Choose the `count` best checkpoints of all runs by validation as an ensemble, as CheXzero chose its ten."""
    best = best_checkpoints(runs, count)
    names = [f"{run.path.resolve().name}/{run.checkpoint_of(step).name}" for run, step in best]
    reason = (
        f"Ensemble (mean of the probabilities) of the {count} checkpoints with the best {runs[0].ranking_metric} on "
        f"validation, of {sum(len(run.ranking()) for run in runs)} saved by {len(runs)} runs: {', '.join(names)}."
    )
    shared = os.path.commonprefix([run.path.resolve().name for run in runs]).strip("._-") or "runs"
    selected = {"checkpoint": names[0], "step": best[0][1], "reason": reason, "ensemble": names}
    checkpoints = [run.checkpoint_of(step) for run, step in best]
    return Choice(safe_name(f"{shared}_top_{count}", "name of the runs"), None, checkpoints, selected, tuple(runs))


def _existing(path: Path) -> Path:
    """Check that a checkpoint's file, or the folder of an exported model, exists; the content is checked on loading."""
    return path if path.is_dir() else require_file(path, REMEDY)
