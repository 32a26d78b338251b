"""The reporting checklist, filled from records: `reporting.md` and `reporting.tex` beside the report.

Topics of CLAIM 2024 and TRIPOD+AI that the build, the run or the evaluation recorded are filled in; the rest are listed
as the author's to write. A draft paragraph for the Methods and the flow of exclusions follow.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from chexzero.common.files import write_text
from chexzero.common.intervals import FEW
from chexzero.common.markup import without_folders
from chexzero.common.resample import RESOLUTION
from chexzero.evaluation.checkpoint_choice import Choice
from chexzero.evaluation.results import SetResult
from chexzero.report.format import unit_name
from chexzero.report.sanity import Check
from chexzero.report.sections import Section, Table
from chexzero.report.summary import say
from chexzero.report.write import latex_text, markdown_text
from chexzero.runs.evidence import Claim

AUTHOR = "the author's to write"


@dataclass(frozen=True)
class Records:
    """The records that fill the checklist."""

    choice: Choice
    build: Mapping[str, Any]
    claim: Claim
    valid: SetResult
    test: SetResult
    alarms: list[Check]
    provenance: Mapping[str, Any]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The training run's settings; empty without a run."""
        return self.choice.run.settings if self.choice.run else {}


def _parts(records: Records) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return role, release/split and counts of each part of the build."""
    counts = records.build.get("counts")
    return [
        (str(role), str(part), found)
        for role, inner in (counts.items() if isinstance(counts, Mapping) else ())
        if isinstance(inner, Mapping)
        for part, found in inner.items()
        if isinstance(found, Mapping)
    ]


def _sources(records: Records) -> str | None:
    parts = [
        f"{role}: {part} ({found.get('images')} images, {found.get('patients')} patients)"
        for role, part, found in _parts(records)
    ]
    return "; ".join(parts) or None


def _exclusions(records: Records) -> str | None:
    reasons = records.build.get("left_out")
    if not isinstance(reasons, Mapping):
        return None
    listed = "; ".join(f"{reason} ({count})" for reason, count in reasons.items())
    return f"Left out while building: {listed}" if listed else "No row was left out while building"


def _preprocessing(records: Records) -> str | None:
    built = records.build.get("settings")
    if not isinstance(built, Mapping):
        return None
    return (
        f"Longer side scaled to {built.get('image_size', RESOLUTION)} pixels, centred on black, 8 bits (16-bit images: "
        f"{built.get('depth16')}); text: the report's {built.get('section')}"
    )


def _roles(records: Records) -> str | None:
    built = records.build.get("settings")
    if not isinstance(built, Mapping):
        return None
    return (
        f"Views: training {built.get('views')}, validation {built.get('valid_views')}, test {built.get('test_views')}; "
        f"evaluated: {unit_name(records.test)}"
    )


def _missing(records: Records) -> str | None:
    built = records.build.get("settings")
    empty = sum(int(found.get("empty_reports") or 0) for _, _, found in _parts(records))
    return f"{empty} training reports are empty ({built.get('empty_report')})" if isinstance(built, Mapping) else None


def _model(records: Records) -> str | None:
    model = records.choice.run.config.get("model") if records.choice.run else None
    if not isinstance(model, Mapping):
        return None
    return (
        f"Vision tower {model.get('vision')} at {model.get('image_resolution')} pixels, text tower "
        f"{model.get('text_encoder')}, {model.get('parameters')} parameters"
    )


def _initial(records: Records) -> str | None:
    model = records.choice.run.config.get("model") if records.choice.run else None
    if not isinstance(model, Mapping) or not model.get("vision_weights"):
        return None
    return f"Vision tower: {model['vision_weights']}; text tower: {model.get('text_weights')}"


def _training(records: Records) -> str | None:
    names = ("optimizer", "lr", "batch_size", "epochs", "max_steps", "lr_schedule", "warmup_steps", "precision", "seed")
    told = [f"{name} {records.settings[name]}" for name in names if records.settings.get(name) is not None]
    return f"Contrastive loss on image-report pairs; {', '.join(told)}" if told else None


def _ensemble(records: Records) -> str:
    number = len(records.choice.checkpoints)
    return "None" if number == 1 else f"Mean of the probabilities of {number} checkpoints"


def _software(records: Records) -> str:
    versions = records.provenance["versions"]
    return ", ".join(f"{name} {value}" for name, value in versions.items() if value)


def _results(records: Records) -> str:
    test = records.test
    return (
        f"Mean AUROC {say(test.mean('mean_5'))} over the competition labels, {say(test.mean('mean_13'))} over the "
        f"findings, {say(test.mean('mean_counted'))} over labels with {FEW} or more positive cases"
    )


def _failures(records: Records) -> str | None:
    names = ", ".join(check.name for check in records.alarms)
    return f"Checks that failed: {names}" if names else "No check of the data or the model failed"


#: `from` of checklist.yaml -> text from the records, None if they have none.
FROM_RECORDS: dict[str, Callable[[Records], str | None]] = {
    "sources": _sources,
    "exclusions": _exclusions,
    "preprocessing": _preprocessing,
    "roles": _roles,
    "missing": _missing,
    "overlap": lambda r: r.claim.text,
    "sizes": lambda r: f"{len(r.valid)} validation and {len(r.test)} test cases; given by the releases",
    "model": _model,
    "software": _software,
    "initial": _initial,
    "training": _training,
    "selection": lambda r: str(r.choice.selected["reason"]),
    "ensemble": _ensemble,
    "measures": lambda r: "AUROC (ties one half) and average precision; MCC, F1, sensitivity and specificity; ECE",
    "uncertainty": lambda r: "95 % intervals by Newcombe (2006), of means by MOVER; differences by DeLong with Holm",
    "imbalance": lambda r: f"No resampling; labels with fewer than {FEW} cases of a class are marked",
    "output": lambda r: "Softmax of two cosines; threshold of highest MCC on the validation set",
    "flow": lambda r: "Figure below" if _parts(r) else None,
    "results": _results,
    "failures": _failures,
}


def filled(records: Records) -> list[list[str]]:
    """Return one row per topic: its name, and what the records say about it."""
    topics = yaml.safe_load(files("chexzero.report").joinpath("checklist.yaml").read_text(encoding="utf-8"))
    rows = []
    for one in topics:
        found = FROM_RECORDS[one["from"]](records) if "from" in one else None
        rows.append([one["topic"], found or AUTHOR])
    return rows


def methods(records: Records) -> str:
    """Return a draft paragraph for the Methods, from the records."""
    keys = ("sources", "preprocessing", "model", "initial", "training", "selection", "overlap")
    told = [FROM_RECORDS[key](records) for key in keys]
    sentences = [text.rstrip(".") + "." for text in told if text]
    return " ".join(
        [
            *sentences,
            f"The checkpoint was evaluated zero-shot on {len(records.test)} {unit_name(records.test)}: the probability "
            f"of a finding is the softmax of the cosines of the image with the finding and with its negation.",
            f"{FROM_RECORDS['uncertainty'](records)}.",
        ]
    )


def flow(records: Records) -> list[tuple[str, str, str]]:
    """Return the flow diagram's boxes, per part of the build: in the tables, left out, kept."""
    boxes = []
    for role, part, found in _parts(records):
        reasons = found.get("left_out")
        left_out = reasons if isinstance(reasons, Mapping) else {}
        out = "; ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
        kept = f"{found.get('images')} images of {found.get('studies')} studies, {found.get('patients')} patients"
        boxes.append((f"{role}, {part}: {found.get('in_tables')} rows in the tables", f"left out: {out}", kept))
    return boxes


def write_reporting(records: Records, folder: Path, full_paths: bool = False) -> Section:
    """Write `reporting.md` and `reporting.tex` into `folder`; returns the report's section."""
    rows, boxes, text = filled(records), flow(records), methods(records)
    if not full_paths:
        rows, boxes, text = without_folders(rows), without_folders(boxes), without_folders(text)
    write_text(folder / "reporting.md", _markdown(rows, boxes, text))
    write_text(folder / "reporting.tex", _latex(rows, boxes, text))
    open_topics = sum(row[1] == AUTHOR for row in rows)
    return Section(
        "reporting",
        "Reporting checklist",
        [
            f"Topics of CLAIM 2024 and TRIPOD+AI, without the items' numbers (a journal's own form has them): "
            f"{len(rows) - open_topics} of {len(rows)} are filled from records, {open_topics} are the author's to write. reporting.md and reporting.tex beside this page hold the table, "
            f"the paragraph below and the flow of exclusions.",
            f"Draft of the Methods, from the records: {text}",
        ],
        [
            Table("Topics and what the records say", ["Topic", "Recorded"], rows),
            Table("Flow of exclusions", ["In the tables", "Left out", "Kept"], [list(box) for box in boxes]),
        ],
    )


def _markdown(rows: list[list[str]], boxes: list[tuple[str, str, str]], text: str) -> str:
    table = [f"| {' | '.join(map(markdown_text, row))} |" for row in rows]
    chart = []
    for k, box in enumerate(boxes):
        names = [part.replace('"', "'") for part in box]
        chart += [f'  a{k}["{names[0]}"] --> b{k}["{names[2]}"]', f'  a{k} --> c{k}["{names[1]}"]']
    head = ["| Topic | Recorded |", "|---|---|"]
    diagram = ["## Flow of exclusions", "", "```mermaid", "flowchart TD", *chart, "```", ""] if boxes else []
    return "\n".join(
        ["# Reporting checklist", "", *head, *table, "", "## Methods", "", markdown_text(text), "", *diagram]
    )


def _latex(rows: list[list[str]], boxes: list[tuple[str, str, str]], text: str) -> str:
    table = [" & ".join(map(latex_text, row)) + r" \\" for row in rows]
    nodes = []
    for k, box in enumerate(boxes):
        x = 5 * k
        start, out, kept = map(latex_text, box)
        nodes += [
            rf"\node[box] (a{k}) at ({x},0) {{{start}}};",
            rf"\node[box] (c{k}) at ({x},-2.5) {{{out}}};",
            rf"\node[box] (b{k}) at ({x},-5) {{{kept}}};",
            rf"\draw[->] (a{k}) -- (c{k}); \draw[->] (c{k}) -- (b{k});",
        ]
    diagram = [r"\begin{tikzpicture}[box/.style={draw, text width=4.2cm, align=center}]", *nodes, r"\end{tikzpicture}"]
    return "\n".join(
        [
            "% needs booktabs, longtable, tikz",
            r"\begin{longtable}{p{5cm}p{9.5cm}}",
            r"\toprule",
            r"Topic & Recorded \\",
            r"\midrule",
            *table,
            r"\bottomrule",
            r"\end{longtable}",
            "",
            latex_text(text),
            "",
            *(diagram if boxes else []),
            "",
        ]
    )
