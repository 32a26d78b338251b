"""The model card of an export, filled from the records of the run, its data and its evaluation."""

import logging
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from chexzero.common.files import read_json, sha256_of
from chexzero.common.folders import is_unfinished
from chexzero.common.formats import read_build
from chexzero.common.labels import LABELS, MEAN_TITLES
from chexzero.common.markup import escape_markdown, without_folders
from chexzero.export.write import is_dinov3
from chexzero.imaging.normalise import MEAN, STD
from chexzero.model import CLIP
from chexzero.runs.evidence import training_claim
from chexzero.runs.run_folder import RunFolder, is_number

log = logging.getLogger(__name__)

#: Target of an export -> the library's name as the hubs spell it.
LIBRARIES = {"hf": "transformers", "open_clip": "open_clip", "onnx": "onnx"}
#: Settings of the command rather than of the model.
NOT_THE_MODEL = (
    "config",
    "print_completion",
    "resume",
    "overwrite",
    "save_dir",
    "tensorboard",
    "wandb",
    "wandb_project",
)


def _build_of(run: RunFolder, data_dir: Path) -> dict[str, Any]:
    """`build.json` of the run's data; {} if the folder now holds other data."""
    build = read_build(data_dir)
    images = Path(str(run.settings.get("cxr_filepath", "cxr.h5"))).name
    entry = build.get("files", {}).get(images)
    now, then = entry.get("sha256") if isinstance(entry, dict) else None, run.recorded_sha256("cxr_filepath")
    return {} if now and then and now != then else build


def model_card(
    model: CLIP, target: str, folder: Path, run: RunFolder, checkpoint: Path, results: Path, full_paths: bool = False
) -> str:
    """Render the card as Markdown. It says which records are missing and guesses none.

    Every text from the records is escaped, and without `full_paths` absolute paths are shortened.

    folder: the export's final folder. results: the folder with the `metrics.json` of this run's evaluation.
    """
    data_dir = Path(run.settings.get("cxr_filepath", "data/cxr.h5")).parent
    build, digest = _build_of(run, data_dir), sha256_of(checkpoint)
    claim = training_claim(run, {checkpoint: digest}, data_dir, {})
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("chexzero.export"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown, not HTML:
        finalize=_escape,
    )
    environment.filters["interval"] = _interval
    settings = {name: value for name, value in run.settings.items() if name not in NOT_THE_MODEL and value is not None}
    if not full_paths:
        settings, folder = without_folders(settings), Path(folder.name)
    dinov3, metrics = is_dinov3(model), _metrics(results, checkpoint, digest)
    cases = "the first frontal view of a study" if metrics.get("level") == "image" else "a study with all its views"
    return environment.get_template("model_card.md").render(
        name=run.path.resolve().name,
        run=run.path if full_paths else run.path.name,
        target=target,
        library=LIBRARIES[target],
        folder=folder,
        vision=run.settings.get("vision", "unknown"),
        dinov3=dinov3,
        model_class="VisionTextDualEncoderModel" if dinov3 else "CLIPModel",
        drawn=run.drawn or bool(build.get("drawn")),
        settings=settings,
        resolution=model.image_resolution,
        stored=run.image_size(),
        context_length=model.context_length,
        mean=MEAN,
        std=STD,
        counts=build.get("counts") or {},
        overlap=without_folders(build.get("overlap") or {}),
        claim=without_folders(claim.text),
        claim_known=claim.known,
        labels=LABELS,
        means={key: f"mean of {title}" for key, title in MEAN_TITLES.items()},
        checkpoint=checkpoint.name,
        cases=cases,
        selection=run.selection if run.selection.get("checkpoint") == checkpoint.name else {},
        metrics=metrics,
    )


def _metrics(results: Path, checkpoint: Path, digest: str) -> dict[str, Any]:
    """The run's metrics, if they were measured with this checkpoint, by SHA-256.

    Evaluations of older versions may have recorded no hash; then only the file's name is compared.
    """
    path = results / "metrics.json"
    if is_unfinished(results):
        log.warning("the model card will have no figures: the evaluation in %s was killed; run it again", results)
        return {}
    metrics = read_json(path) if path.is_file() else {}
    measured = Path(str(metrics.get("selected", {}).get("checkpoint", ""))).name
    hashes = _measured_hashes(metrics)
    alone = measured and "ensemble" not in metrics["selected"]
    if alone and (digest in hashes if hashes else measured == checkpoint.name):
        return metrics
    about = f"{path} is about {measured}, not {checkpoint.name}"
    if measured == checkpoint.name:
        about = f"{path} was measured with other weights of the name {measured}, by SHA-256"
    log.warning(
        "the model card will have no figures: %s; name the folder with --results",
        about if measured else f"there is no {path}",
    )
    return {}


def _measured_hashes(metrics: dict[str, Any]) -> set[str]:
    """SHA-256 of the checkpoints that an evaluation measured; older ones listed every file's hash by path."""
    kept = metrics.get("provenance", {}).get("checkpoint_sha256")
    if kept:
        return set(kept.values())
    listed = metrics.get("sections", {}).get("provenance", {}).get("sha256", {})
    return {digest for path, digest in listed.items() if Path(path).suffix not in (".h5", ".csv")}


def _escape(value: Any) -> Any:
    """Escape every value that the template prints, except code made by `tojson`, which is escaped already."""
    return value if isinstance(value, Markup) else escape_markdown(str(value))


def _interval(value: float | None, lower: float | None, upper: float | None) -> str:
    if not is_number(value):
        return "n/a"
    return (
        f"{value:.3f}" if not (is_number(lower) and is_number(upper)) else f"{value:.3f} ({lower:.3f} to {upper:.3f})"
    )
