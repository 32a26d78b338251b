"""Figures that others reported (`reported_figures.json`, each with its source), to stand beside ours."""

import json
from functools import cache
from importlib.resources import files


@cache
def reported_figures() -> dict:
    """The figures by publication: `chexzero`, `chexpert_test_radiologists`, `cxr_lt_2024`, ...

    Every entry has a `source`. AUROCs are in 0..1; `chexzero.test_auroc` gives mean, lower and upper a label.
    """
    return json.loads(files("chexzero.report").joinpath("published_figures.json").read_text(encoding="utf-8"))
