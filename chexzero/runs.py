"""A run's folder, `checkpoints/<name>/`: which checkpoint was selected, and with which settings it was made."""

from pathlib import Path

from chexzero.checkpoints import load_model
from chexzero.errors import UserError
from chexzero.files import inside, read_json
from chexzero.model import CLIP

REMEDY = "name a folder that run_train.py wrote: checkpoints/<name>"


def selected_model(run: Path, checkpoint: Path | None = None) -> tuple[CLIP, Path]:
    """The model of `checkpoint`, or of the one the run selected, and its path.

    Raises `UserError` where the run has made no selection yet or its checkpoint is gone.
    """
    if checkpoint is None:
        selection = read_json(run / "selection.json", REMEDY)
        checkpoint = inside(run, str(selection.get("checkpoint", "")))
        if not checkpoint.is_file():
            raise UserError(f"{run}/selection.json names {checkpoint.name}, which is not there; name one with "
                            f"--checkpoint")
    return load_model(checkpoint), checkpoint
