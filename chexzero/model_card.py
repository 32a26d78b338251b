"""The model card of an export, filled from what the run, its data and its evaluation recorded."""

from pathlib import Path
from typing import Any

import jinja2

from chexzero.data import read_build
from chexzero.files import read_json, write_text
from chexzero.labels import LABELS
from chexzero.model import CLIP
from chexzero.run_folder import RunFolder

#: Target of an export -> the library's name as the hubs spell it.
LIBRARIES = {"hf": "transformers", "open_clip": "open_clip", "onnx": "onnx"}


def write_model_card(path: Path, model: CLIP, target: str, run: RunFolder, checkpoint: Path, results: Path,
                     how: str) -> None:
    """Write the card as Markdown. What is not on record is said to be missing, never guessed."""
    build = read_build(Path(run.settings.get("cxr_filepath", "data/cxr.h5")).parent)
    environment = jinja2.Environment(loader=jinja2.PackageLoader("chexzero"), undefined=jinja2.StrictUndefined,
                                     trim_blocks=False, autoescape=False)  # Markdown, not HTML
    environment.filters |= {"number": _number, "overlap_sentence": _overlap_sentence}
    card = environment.get_template("model_card.md").render(
        name=run.path.name, run=run.path, library=LIBRARIES[target], dinov3=hasattr(model.visual, "trunk"),
        drawn=bool(build.get("drawn")), settings={"vision": None} | run.settings, resolution=model.image_resolution,
        context_length=model.context_length, how=how, build=build, labels=LABELS, checkpoint=checkpoint.name,
        selection=run.selection if run.selection.get("checkpoint") == checkpoint.name else {},
        metrics=_metrics(results, checkpoint))
    write_text(path, card + "\n")


def _metrics(results: Path, checkpoint: Path) -> dict[str, Any]:
    """The run's metrics, if they were measured with this checkpoint."""
    path = results / "metrics.json"
    metrics = read_json(path) if path.is_file() else {}
    measured = Path(str(metrics.get("selected", {}).get("checkpoint", ""))).name
    return metrics if measured == checkpoint.name else {}


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _overlap_sentence(overlap: dict[str, Any]) -> str:
    return "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in overlap.items()
                     if isinstance(value, str | int | float)) + "."
