"""Which checkpoints an evaluation is about, and why these."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexzero.common.errors import UserError
from chexzero.common.files import require_file, safe_name
from chexzero.evaluation.settings import EvaluationSettings
from chexzero.runs.run_folder import RunFolder, read_run, step_of

REMEDY = "name a run's folder with --run, or checkpoints with --checkpoint"


@dataclass(frozen=True)
class Choice:
    """What is evaluated: the checkpoints (several: an ensemble), the run they belong to, and why these."""

    name: str
    run: RunFolder | None
    checkpoints: list[Path]
    selected: dict[str, Any]


def choose(settings: EvaluationSettings) -> Choice:
    """The run's selected checkpoint, the top K of its validations, or the checkpoints that were named."""
    run = read_run(settings.run) if settings.run else None
    if settings.checkpoint:
        checkpoints = sorted(_existing(path) for path in settings.checkpoint)
        what = checkpoints[0].name if len(checkpoints) == 1 else f"The ensemble of {len(checkpoints)} checkpoints"
        reason = f"{what} was named with --checkpoint; how it was selected is not on record."
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
    selected = {"checkpoint": checkpoints[0].name, "step": step, "reason": reason}
    if len(checkpoints) > 1:
        selected |= {
            "checkpoint": run.checkpoint_of(step).name if run and step is not None else checkpoints[0].name,
            "ensemble": [path.name for path in checkpoints],
        }
    return Choice(safe_name(name, "name of the run"), run, checkpoints, selected)


def _existing(path: Path) -> Path:
    """A checkpoint is a file, or the folder of an exported model; whether it is one shows when it is loaded."""
    return path if path.is_dir() else require_file(path, REMEDY)
