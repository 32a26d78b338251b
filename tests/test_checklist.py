"""The reporting checklist: filled from records; items without a record are left to the author."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from chexzero.evaluation.checkpoint_choice import Choice
from chexzero.evaluation.results import SetResult, evaluate_set
from chexzero.evaluation.sets import Units
from chexzero.report.checklist import AUTHOR, FROM_RECORDS, Records, filled, write_reporting
from chexzero.runs.evidence import Claim
from chexzero.runs.run_folder import RunFolder

BUILD = {
    "settings": {
        "views": "all",
        "valid_views": "all",
        "test_views": "first_frontal",
        "section": "impression",
        "empty_report": "space",
        "depth16": "stretch",
    },
    "counts": {
        "train": {
            "a & b/train": {
                "in_tables": 12,
                "images": 9,
                "studies": 8,
                "patients": 7,
                "empty_reports": 2,
                "left_out": {"no file": 3},
            }
        }
    },
    "left_out": {"no file": 3},
}


def result(name: str) -> SetResult:
    random = np.random.default_rng(0)
    truth = (random.random((60, 14)) < 0.4).astype(float)
    ids = [str(i) for i in range(60)]
    units = Units("image", pd.DataFrame({"id": ids, "study_id": ids}), truth, np.arange(60), np.arange(60), 0)
    return evaluate_set(name, units, np.clip(truth * 0.1 + random.random((60, 14)) * 0.5, 0, 1), np.full(14, 0.5), 5)


def records(build: dict, run: RunFolder | None) -> Records:
    choice = Choice("x", run, [Path("x.pt")], {"checkpoint": "x.pt", "step": 1, "reason": "Named."})
    claim = Claim("None found.", True)
    return Records(choice, build, claim, result("valid"), result("test"), [], {"versions": {"torch": "2"}})


def test_filled_from_records_or_the_authors(tmp_path):
    model = {
        "vision": "dinov3_tiny",
        "text_encoder": "tiny",
        "parameters": 5,
        "image_resolution": 128,
        "vision_weights": "random",
        "text_weights": "random",
    }
    run = RunFolder(tmp_path, {"settings": {"lr": 0.1, "optimizer": "adam"}, "model": model})
    whole, nothing = (filled(records(*given)) for given in ((BUILD, run), ({}, None)))
    assert [row[0] for row in whole] == [row[0] for row in nothing]
    known = {row[0]: row[1] for row in whole}
    assert "dinov3_tiny" in known["Model"] and known["De-identification"] == AUTHOR
    assert known["Inclusion and exclusion criteria"] == "Left out while building: no file (3)"
    assert sum(row[1] == AUTHOR for row in whole) < sum(row[1] == AUTHOR for row in nothing)
    assert len(FROM_RECORDS) == len({row[1] for row in whole} - {AUTHOR})  # every filler is used and returns text


def test_markdown_and_latex_carry_the_flow(tmp_path):
    section = write_reporting(records(BUILD, None), tmp_path)
    text, latex = (tmp_path / "reporting.md").read_text(), (tmp_path / "reporting.tex").read_text()
    assert 'a0["train, a & b/train: 12 rows in the tables"] --> b0["9 images of 8 studies, 7 patients"]' in text
    assert "left out: 3 no file" in text and r"a \& b/train: 12 rows" in latex and "None found." in latex
    assert latex.count(r"\begin{tikzpicture}") == latex.count(r"\end{tikzpicture}") == 1
    assert section.tables[1].rows[0][1] == "left out: 3 no file"
    assert json.dumps(section.tables[0].rows)
