"""Figures that others reported (`published_figures.json`, each with its source), for comparison with ours."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from chexzero.evaluation.readers import study_key


@cache
def reported_figures() -> dict:
    """The figures by publication: `chexzero`, `chexpert_test_radiologists`, `cxr_lt_2024`, ...

    Entries have a `source`. AUROCs are in 0..1; `chexzero.test_auroc` gives mean, lower and upper end per label.
    """
    return json.loads(files("chexzero.report.beside").joinpath("published_figures.json").read_text(encoding="utf-8"))


def labels_digest(studies: Sequence[str], truth: NDArray) -> str:
    """SHA-256 of the labels (N, 14) of N studies, 0 or 1, as bytes in the order of the studies' names.

    Ids may be spelled in any way that `study_key` knows; rows of files without ids keep their order.
    """
    keys = [study_key(study) for study in studies]
    named = all("/" in key for key in keys)
    order = sorted(range(len(keys)), key=keys.__getitem__) if named else range(len(keys))
    return hashlib.sha256(np.asarray(truth, dtype=np.uint8)[list(order)].tobytes()).hexdigest()


def is_chexpert_test(studies: Sequence[str], truth: NDArray) -> bool:
    """Whether these are the labels of CheXpert's released test set, on which CheXzero's figures were measured."""
    return labels_digest(studies, truth) == reported_figures()["chexpert_test_labels"]["sha256"]
