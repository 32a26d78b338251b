"""Two models on the same cases: differences in AUROC with DeLong's test, corrected over the labels."""

from dataclasses import dataclass

import numpy as np

from chexzero.common.intervals import FEW, Paired, holm, paired_areas
from chexzero.common.labels import LABELS
from chexzero.common.statistics import Floats
from chexzero.evaluation.results import SetResult
from chexzero.report.scores import MEAN_NAMES

#: Explains the p values; shown with every table of differences.
EXPLAINED = (
    f"Differences are paired: both models on the same cases, intervals and two-sided p values by DeLong's test. Labels "
    f"with fewer than {FEW} positive or negative cases, and means that include such a label, get no p value. “p "
    f"(Holm)” is corrected for the number of labels tested; the means are not part of that family."
)


@dataclass(frozen=True)
class Differences:
    """Differences ours − theirs of the 14 labels, then of the means in `MEAN_NAMES`: each (18,)."""

    titles: list[str]
    found: Paired
    holm: Floats

    @property
    def p(self) -> Floats:
        """Uncorrected p values, NaN where none is given."""
        return self.found.p


def differences(ours: SetResult, theirs: SetResult) -> Differences:
    """Compare two models on the same cases; the truth of both must be the same."""
    members = {key: [LABELS.index(label) for label in ours.mean(key).used] for key in MEAN_NAMES}
    weights = np.eye(len(LABELS))
    for columns in members.values():
        row = np.zeros(len(LABELS))
        row[columns] = 1 / max(len(columns), 1)
        weights = np.vstack([weights, row])
    found = paired_areas(ours.truth, ours.probability, theirs.probability, weights)
    tested = np.append(ours.counted, [bool(c) and bool(ours.counted[c].all()) for c in members.values()])
    empty = np.append(np.zeros(len(LABELS), bool), [not columns for columns in members.values()])
    difference, lower, upper = (np.where(empty, np.nan, values) for values in found[:3])
    found = Paired(difference, lower, upper, np.where(tested, found.p, np.nan))
    corrected = np.append(holm(found.p[: len(LABELS)]), np.full(len(members), np.nan))
    return Differences([*LABELS, *MEAN_NAMES], found, corrected)
