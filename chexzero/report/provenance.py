"""The report's sections about where the numbers come from: run, data, overlap audit, versions and hashes."""

import math
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from chexzero.common.formats import image_side, read_build
from chexzero.common.statistics import mean_over_labels
from chexzero.common.versions import git_revision, version
from chexzero.evaluation.results import SetResult
from chexzero.evaluation.sets import EvaluationSet
from chexzero.report.format import interval
from chexzero.report.sections import Figure, Section, Table
from chexzero.runs.evidence import Claim, read_audit
from chexzero.runs.run_folder import RunFolder, is_number
from chexzero.runs.selection import METRICS, members
from chexzero.zero_shot import Predictor

PACKAGES = ("torch", "open_clip_torch", "timm", "numpy", "scikit-learn", "h5py")


def flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested JSON as `(dotted key, cell)`; up to 12 scalars are joined, other lists counted."""
    if isinstance(value, Mapping):
        return [
            leaf for key, inner in value.items() for leaf in flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, list):
        plain = len(value) <= 12 and all(not isinstance(item, (Mapping, list)) for item in value)
        return [(prefix, ", ".join(map(str, value)) if plain else f"{len(value)} entries")]
    return [(prefix, value if value is None else repr(value) if isinstance(value, float) else str(value))]


def key_table(caption: str, value: Mapping[str, Any]) -> Table:
    """Return nested JSON as rows; unset values are left out."""
    return Table(caption, ["What", "Value"], [[key, cell] for key, cell in flatten(value) if cell not in (None, "")])


def selection_section(
    run: RunFolder | None,
    selected: Mapping[str, Any],
    figures: Sequence[Figure],
    test_reads: Sequence[Mapping[str, Any]],
    valid: SetResult,
    n_images: int,
) -> Section:
    """The selected checkpoint, the validations it was selected from, and how often the test set was read.

    n_images: rows of the validation set, all of which count in training's validations.
    """
    run = run or RunFolder(Path())
    selection, text, tables = run.selection, [selected["reason"]], []
    metric = selection.get("metric")
    if metric and metric in run.metrics and is_number(selection.get("value")):
        low, high = (_float(selection.get(end)) for end in ("lower", "upper"))
        values = run.metrics[["step", metric]].dropna().sort_values(metric, ascending=metric == "val_loss")
        if math.isfinite(low) and math.isfinite(high):
            close = int(values[metric].between(low, high).sum())
            rest = (
                f"{close - 1} of the others {'lies' if close == 2 else 'lie'} within its 95 % interval ({interval(low, high)}): the validation "
                f"set is too small to tell those apart"
                if close > 1
                else f"no other lies within its 95 % interval ({interval(low, high)})"
            )
            text.append(f"{len(values)} validations were compared by {metric}; {rest}.")
        if selected.get("step") == selection.get("step") and "ensemble" not in selected:
            text += counted_otherwise(metric, selection["value"], valid, n_images)
        rows = [
            [int(row["step"]), float(row[metric]), "selected" if row["step"] == selection.get("step") else ""]
            for _, row in values.head(5).iterrows()
        ]
        tables.append(Table(f"The best validations by {metric}", ["Step", metric, "Note"], rows))
    text.append(
        f"Training does not read the test set. Evaluations and comparisons keep their predictions, so that it is not "
        f"read again for the same checkpoint. Evaluated on this test set so far, from any run: {len(test_reads)} "
        f"choice{'s' * (len(test_reads) != 1)} of checkpoints."
    )
    if len(test_reads) > 1:
        text.append(
            "The test set has been read more than once. If the better number was then kept, it is a biased estimate "
            "for new patients."
        )
        tables.append(
            Table(
                "Evaluated on this test set",
                ["Date", "Run", "Checkpoints", "Level"],
                [
                    [
                        read.get("date"),
                        read.get("run", ""),
                        ", ".join(map(str, read.get("names", []))),
                        read.get("level"),
                    ]
                    for read in test_reads
                ],
            )
        )
    return Section(
        "selection",
        "Selected checkpoint",
        text,
        tables,
        list(figures),
        {"test_reads": len(test_reads)} | dict(selection),
    )


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def counted_otherwise(metric: str, value: float, valid: SetResult, n_images: int) -> list[str]:
    """Explain why the figure that selected the checkpoint differs from the report's; empty where they agree."""
    if metric not in METRICS or metric == "val_loss" or (valid.units.level == "image" and len(valid) == n_images):
        return []
    here = mean_over_labels(valid.auroc, members(metric))[0]
    counts = (
        f"the first frontal view of each study counts ({len(valid)} of {n_images} images)"
        if valid.units.level == "image"
        else f"each study counts once, with all its views ({len(valid)} studies of {n_images} images)"
    )
    return [
        f"In training, every image of the validation set counted: the checkpoint was selected by {metric} "
        f"{value:.3f}. In all other validation figures of this report, {counts}: {metric} {here:.3f} for the same "
        f"checkpoint."
    ]


def data_section(data_dir: Path, sets: Sequence[EvaluationSet], run: RunFolder | None) -> Section:
    """The build's record of the data, the contents of the two evaluation sets, and the sizes of stored images."""
    rows = [
        [
            one.name,
            len(one.table),
            one.table["study_id"].nunique(),
            one.table["patient_id"].nunique(),
            _views(one.table),
            _size(image_side(one.images)),
        ]
        for one in sets
    ]
    columns = ["Set", "Images", "Studies", "Patients", "Views", "Stored pixels"]
    tables = [Table("The evaluation sets as read", columns, rows)]
    build = read_build(data_dir)
    text = [] if build else [f"{data_dir} has no build.json: how these files were made is unknown."]
    if run:
        text.append(f"The run was trained on images stored at {_size(run.image_size())} pixels.")
    tables += [table for table in (_counts(build.get("counts")), _left_out(build.get("left_out"))) if table]
    rest = {key: value for key, value in build.items() if key not in ("overlap", "files", "counts", "left_out")}
    if rest:
        tables.append(key_table("Further records of the build (build.json)", rest))
    return Section("data", "Data", text, tables)


def _size(side: int | None) -> str:
    return f"{side} × {side}" if side else "not square"


def _counts(counts: Any) -> Table | None:
    """The build's counts: role -> release/split -> numbers."""
    parts = (
        [
            (role, part, found)
            for role, inner in counts.items()
            if isinstance(inner, Mapping)
            for part, found in inner.items()
            if isinstance(found, Mapping)
        ]
        if isinstance(counts, Mapping)
        else []
    )
    columns = {
        "in_tables": "In the tables",
        "images": "Images",
        "studies": "Studies",
        "patients": "Patients",
        "sixteen_bit": "16-bit",
        "empty_reports": "Empty reports",
    }
    rows = [
        [role, part, *(found.get(key) for key in columns), ", ".join(f"{n} {v}" for v, n in views.items())]
        for role, part, found in parts
        for views in [found.get("views") or {}]
    ]
    return Table("What was built", ["Role", "Release and split", *columns.values(), "Views"], rows) if rows else None


def _left_out(reasons: Any) -> Table | None:
    if not isinstance(reasons, Mapping) or not reasons:
        return None
    return Table(
        "Rows left out by the build (each is listed in left_out.csv)",
        ["Reason", "Rows"],
        [[reason, count] for reason, count in reasons.items()],
    )


def _views(table: pd.DataFrame) -> str:
    return ", ".join(f"{count} {view}" for view, count in table["view"].value_counts().items())


def overlap_section(data_dir: Path, claim: Claim) -> Section:
    """What is known about overlap of training and evaluation data, and the overlap audit's summary."""
    report = data_dir / "overlap_report.json"
    summary, _ = read_audit(data_dir)
    if not summary:
        return Section(
            "overlap",
            "Overlap of training and evaluation data",
            [f"No overlap audit of these data was found. {claim.text}"],
        )
    text = [claim.text]
    if claim.known:
        text.append(
            "The SHA-256 of the run's training images and of the evaluated files are those that the audit covered. The "
            "audit does not cover what the initial weights were trained on, if they were not random."
        )
    elif summary.get("sentence"):
        text.append(f"The audit's result holds for the data folder, not for this model: {summary['sentence']}")
    text += [f"The whole audit is in {report.name} beside the data."] if report.is_file() else []
    rest = {key: value for key, value in summary.items() if key != "sentence"}
    return Section(
        "overlap",
        "Overlap of training and evaluation data",
        text,
        [key_table("Result of the overlap audit", rest)],
        [],
        {"summary": summary, "holds_for_this_model": claim.known, "reason": claim.reason},
    )


def record(
    run: RunFolder | None, settings: Mapping[str, Any], predictors: Sequence[Predictor], sets: Sequence[EvaluationSet]
) -> dict[str, Any]:
    """Return the provenance that `metrics.json` stores."""
    hashes = {str(one.checkpoint): one.sha256 for one in predictors}
    for one in sets:
        hashes |= {str(one.images): one.images_sha256, str(one.labels): one.labels_sha256}
    return {
        "run_id": run.config.get("run_id") if run else None,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "settings": dict(settings),
        "checkpoint_sha256": {one.checkpoint.name: one.sha256 for one in predictors},
        "sha256": hashes,
        "versions": {"python": platform.python_version(), "code": git_revision()}
        | {name: version(name) for name in PACKAGES},
    }


def provenance_section(
    run: RunFolder | None, settings: Mapping[str, Any], predictors: Sequence[Predictor], sets: Sequence[EvaluationSet]
) -> Section:
    """Settings, versions and SHA-256 of all inputs."""
    kept = record(run, settings, predictors, sets)
    hashes, versions = kept["sha256"], kept["versions"]
    tables = [
        Table("SHA-256", ["File", "SHA-256"], [list(item) for item in hashes.items()]),
        key_table("Settings of this evaluation", settings),
        key_table("Versions of this evaluation", versions),
    ]
    if run and run.config:
        tables.append(key_table("The training run (config.json)", run.config))
    return Section("provenance", "Settings, versions, hashes", [], tables, [], {"sha256": hashes, "versions": versions})


def model_words(run: RunFolder | None) -> str:
    """The model in a few words, from the run's record: `dinov3_tiny (0.9 million parameters, images of 160 px)`."""
    model = run.config.get("model") if run else None
    if not isinstance(model, Mapping):
        return "a model without a training record"
    vision = str(model.get("vision") or "unknown vision tower")
    facts = []
    if is_number(model.get("parameters")):
        facts.append(f"{model['parameters'] / 1e6:.1f} million parameters")
    if is_number(model.get("image_resolution")):
        facts.append(f"images of {int(model['image_resolution'])} px")
    if model.get("vision_weights"):
        facts.append(f"vision weights: {model['vision_weights']}")
    return vision + (f" ({', '.join(facts)})" if facts else "")
