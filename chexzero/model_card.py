"""The model card of an export, filled from what the run, its data and its evaluation recorded."""

from pathlib import Path
from typing import Any

import jinja2

from chexzero.data import read_build
from chexzero.files import read_json, write_text
from chexzero.labels import LABELS
from chexzero.model import CLIP

#: Target of an export -> the library's name as the hubs spell it.
LIBRARIES = {"hf": "transformers", "open_clip": "open_clip", "onnx": "onnx"}


def write_model_card(path: Path, model: CLIP, target: str, run: Path, checkpoint: Path, results: Path,
                     how: str) -> None:
    """Write the card as Markdown. What is not on record is said to be missing, never guessed."""
    config = _optional(run / "config.json")
    settings = config.get("settings", {})
    build = read_build(Path(settings.get("cxr_filepath", "data/cxr.h5")).parent)
    environment = jinja2.Environment(loader=jinja2.PackageLoader("chexzero"), undefined=jinja2.StrictUndefined,
                                     trim_blocks=False, autoescape=False)  # Markdown, not HTML
    environment.filters |= {"number": _number, "overlap_sentence": _overlap_sentence}
    card = environment.get_template("model_card.md").render(
        name=run.name, run=run, library=LIBRARIES[target], dinov3=hasattr(model.visual, "trunk"),
        drawn=bool(build.get("drawn")), settings={"vision": None} | settings, resolution=model.image_resolution,
        context_length=model.context_length, how=how, build=build, labels=LABELS, checkpoint=checkpoint.name,
        selection=_selection(run, checkpoint), metrics=_metrics(results, checkpoint))
    write_text(path, card + "\n")


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _selection(run: Path, checkpoint: Path) -> dict[str, Any]:
    selection = _optional(run / "selection.json")
    return selection if selection.get("checkpoint") == checkpoint.name else {}


def _metrics(results: Path, checkpoint: Path) -> dict[str, Any]:
    """The run's metrics, if they were measured with this checkpoint."""
    metrics = _optional(results / "metrics.json")
    measured = Path(str(metrics.get("selected", {}).get("checkpoint", ""))).name
    return metrics if measured == checkpoint.name else {}


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _overlap_sentence(overlap: dict[str, Any]) -> str:
    return "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in overlap.items()
                     if isinstance(value, str | int | float)) + "."
