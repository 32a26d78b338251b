"""Evaluation sets by name: `<NAME>.h5` and `<NAME>_labels.csv` scored as a protocol file describes.

The CSV has `id, patient_id, study_id, view`, then one column per finding: 0, 1, or empty where unknown; such images are
left out of that finding's figures. The protocol (`<NAME>.yaml` beside the CSV, else one of those in `protocols/`, else
a default with every column as a finding) gives the prompts of findings, the columns that are no findings, the means to
take, and published figures to show beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from chexzero.common.errors import UserError
from chexzero.common.files import read_table, read_yaml, require_file, safe_name, sha256_of
from chexzero.common.formats import check_images, check_rows, images_file, labels_file
from chexzero.common.intervals import Z95, case_influence, mean_interval, newcombe_interval
from chexzero.common.labels import PAIR_TEMPLATE
from chexzero.common.statistics import Floats, auroc

#: Columns of a label file that say which image a row is.
IDENTITY = ("id", "patient_id", "study_id", "view")

#: Areas at and above which findings are counted, as CheXzero counts them on PadChest.
COUNTED_AT = (0.9, 0.7)


@dataclass(frozen=True)
class Summary:
    """A mean over some of the columns, and the published figures for the same mean (`{model: {...}}`).

    `all_columns`: include columns that are no findings. `only`: these columns; `but`: not these; `more_than`: columns
    with more positive images than this; `rarest`: this many columns with the fewest positive images.
    """

    title: str
    all_columns: bool = False
    only: Sequence[str] = ()
    but: Sequence[str] = ()
    more_than: int = 0
    rarest: int | None = None
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """The prompts and the scoring of a set. `templates` are the forms of both sides, where `{}` stands for each of a
    finding's words: its synonyms, else its column's name (in lower case if `lower_case`). `pairs` replaces both sides.
    `one_of`: columns of which an image has exactly one; the most probable of them is scored too."""

    title: str
    protocol: str = "Every column is a finding; its name is asked for."
    source: str = ""
    lower_case: bool = False
    templates: Mapping[str, Sequence[str]] = field(
        default_factory=lambda: {"positive": [PAIR_TEMPLATE[0]], "negative": [PAIR_TEMPLATE[1]]}
    )
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pairs: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    no_findings: Sequence[str] = ()
    one_of: Sequence[str] = ()
    summaries: Sequence[Summary] = ()

    def words(self, finding: str) -> list[str]:
        """The words for a finding in prompts: its synonyms, else its column's name."""
        return list(self.synonyms.get(finding, [finding.lower() if self.lower_case else finding]))

    def prompts(self, finding: str) -> tuple[list[str], list[str]]:
        """The prompts of both sides; those of a side are averaged."""
        if finding in self.pairs:
            return list(self.pairs[finding]["positive"]), list(self.pairs[finding]["negative"])
        positive, negative = (filled(self.templates[side], self.words(finding)) for side in ("positive", "negative"))
        return positive, negative


def filled(forms: Sequence[str], words: Sequence[str]) -> list[str]:
    """Put each word in place of `{}` in each form."""
    return [form.replace("{}", word) for form in forms for word in words]


@dataclass(frozen=True)
class NamedSet:
    """Row i of `table` (strings), `truth` and the images are one image. truth: (N, L), 0, 1 or NaN for unknown."""

    name: str
    images: Path
    labels: Path
    table: pd.DataFrame
    findings: list[str]
    truth: Floats
    protocol: Protocol
    images_sha256: str


@dataclass(frozen=True)
class FindingScores:
    """Per column (L,): positive and known images, AUROC with Newcombe's 95 % interval; NaN without both classes.

    `influence` (N, L): `case_influence`, 0 for images whose label is unknown.
    """

    n_pos: Floats
    n_known: Floats
    auroc: Floats
    lower: Floats
    upper: Floats
    influence: Floats


@dataclass(frozen=True)
class SummaryScore:
    """A macro mean over the columns `used` (those of the summary that are defined), and the counts at `COUNTED_AT`."""

    summary: Summary
    used: list[int]
    mean: float
    lower: float
    upper: float
    counts: dict[float, int]


def read_named_set(data_dir: Path, name: str, pixel_range: str | None = None) -> NamedSet:
    """Read a set and its protocol. Raises `UserError` with the file, the row and the remedy."""
    safe_name(name, "name of an evaluation set")
    remedy = f"make it with `python -m data_prep evaluation-set {name}`, or name the folder that holds it with --data"
    images, labels = (require_file(data_dir / file, remedy) for file in (images_file(name), labels_file(name)))
    table = read_table(labels, ["id"], remedy=remedy)
    findings = [str(column) for column in table.columns if column not in IDENTITY]
    if not findings:
        raise UserError(f"{labels} has no column but {', '.join(IDENTITY)}; add one 0/1 column per finding")
    truth = np.column_stack([labels_or_unknown(labels, table[finding]) for finding in findings])
    check_rows(images, labels, table)
    check_images(images, pixel_range=pixel_range)
    protocol = read_protocol(data_dir, name)
    if astray := [name for name in protocol.one_of if name not in findings]:
        raise UserError(f"{labels} has no column {astray[0]!r}, which its protocol lists under one_of; add it")
    return NamedSet(name, images, labels, table, findings, truth, protocol, sha256_of(images))


def labels_or_unknown(path: Path, column: "pd.Series[str]") -> Floats:
    """Labels (N,) of a column: 0, 1, or NaN where the cell is empty. Raises `UserError` with the row for anything else."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    wrong = np.flatnonzero(column.notna().to_numpy() & ~np.isin(values, (0, 1)))
    if len(wrong):
        raise UserError(
            f"{path}, row {wrong[0] + 1}, column {column.name}: {column.iloc[wrong[0]]!r} is not 0, 1 or empty "
            f"({len(wrong)} such cells); decide the label, or leave the cell empty where it is not known"
        )
    return values


def read_protocol(data_dir: Path, name: str) -> Protocol:
    """Read `<data_dir>/<name>.yaml`, else the package's; else every column is a finding, under its own name."""
    own = data_dir / f"{name}.yaml"
    packaged = files("chexzero.evaluation").joinpath("protocols", f"{name}.yaml")
    if not own.is_file() and not packaged.is_file():
        return Protocol(name)
    path = own if own.is_file() else Path(str(packaged))
    values = read_yaml(path, "see docs/EVALUATION.md")
    try:
        summaries = [Summary(**entry) for entry in values.pop("summaries", [])]
        protocol = Protocol(**values, summaries=summaries)
        texts = [protocol.prompts(name) for name in {*protocol.synonyms, *protocol.pairs, "x"}]
        if not all(isinstance(text, str) and text.strip() for pair in texts for side in pair for text in side):
            raise TypeError("templates, synonyms and pairs must be lists of texts")
        if not all(side for pair in texts for side in pair):
            raise TypeError("both sides of a pair of prompts need a text")
    except (TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is no protocol of an evaluation set ({reason}); see docs/EVALUATION.md") from error
    return protocol


@dataclass(frozen=True)
class Choices:
    """How often the most probable of the `one_of` columns is right, over the images that have exactly one of them.

    credit, labels: (n,), 1 where right (shared among ties), and which column is right. patients: (n,). precision:
    k -> (columns,), the share of a column's images among the k that its prompts rank first.
    """

    names: Sequence[str]
    credit: Floats
    labels: NDArray[np.intp]
    patients: NDArray
    precision: dict[int, Floats]


#: Ranks down to which the precision of retrieval by a finding's prompts is taken.
PRECISION_AT = (5, 10, 100)


def score_choices(data: NamedSet, probability: Floats) -> Choices:
    """Score the most probable of the protocol's `one_of` columns. probability: (N, L)."""
    columns = [data.findings.index(name) for name in data.protocol.one_of]
    truth = data.truth[:, columns]
    rows = np.flatnonzero((truth == 1).sum(1) == 1)
    right, scores = truth[rows].argmax(1), probability[rows][:, columns]
    best = scores == scores.max(1, keepdims=True) if len(rows) else scores == 1
    credit = best[np.arange(len(rows)), right] / np.maximum(best.sum(1), 1)
    order = np.argsort(-scores, axis=0, kind="stable")
    precision = {k: (right[order[:k]] == np.arange(len(columns))).mean(0) for k in PRECISION_AT if 0 < k <= len(rows)}
    known = data.table["patient_id"] if "patient_id" in data.table else data.table["id"]
    return Choices(data.protocol.one_of, credit, right, known.fillna(data.table["id"]).to_numpy()[rows], precision)


def score_findings(truth: Floats, probability: Floats) -> FindingScores:
    """AUROC per column over the images whose label is known. truth: (N, L), 0, 1 or NaN. probability: (N, L)."""
    known = np.isfinite(truth)
    areas, influence = np.full(truth.shape[1], np.nan), np.zeros(truth.shape)
    for j, rows in enumerate(known.T):
        if rows.any():
            areas[j] = auroc(truth[rows, j], probability[rows, j])[0]
        if np.isfinite(areas[j]):
            influence[rows, j] = case_influence(truth[rows, j], probability[rows, j])[:, 0]
    n_pos, n_known = np.nansum(truth, axis=0), known.sum(0).astype(np.float64)
    lower, upper = newcombe_interval(areas, n_pos, n_known - n_pos)
    return FindingScores(n_pos, n_known, areas, lower, upper, influence)


def mean_difference(ours: FindingScores, theirs: FindingScores, columns: Sequence[int]) -> tuple[float, ...]:
    """Macro mean of ours minus theirs over some columns of one set: value, 95 % interval (DeLong's) and p value.

    NaN without columns, or if one is undefined.
    """
    apart = ours.auroc[columns] - theirs.auroc[columns]
    if not len(apart) or not np.isfinite(apart).all():
        return (float("nan"),) * 4
    value = float(apart.mean())
    error = float(np.sqrt(((ours.influence[:, columns] - theirs.influence[:, columns]).mean(1) ** 2).sum()))
    p = float(2 * norm.sf(abs(value) / error)) if error > 0 else 1.0 if value == 0 else float("nan")
    return value, value - Z95 * error, value + Z95 * error, p


def summarise(data: NamedSet, scores: FindingScores) -> list[SummaryScore]:
    """Return the mean over all findings, then the protocol's other means."""
    every = Summary("all findings")
    return [_summarise(one, data, scores) for one in (every, *data.protocol.summaries)]


def _summarise(summary: Summary, data: NamedSet, scores: FindingScores) -> SummaryScore:
    columns = [
        j
        for j, name in enumerate(data.findings)
        if (summary.all_columns or name not in data.protocol.no_findings)
        and (not summary.only or name in summary.only)
        and name not in summary.but
        and scores.n_pos[j] > summary.more_than
        and np.isfinite(scores.auroc[j])
    ]
    if summary.rarest is not None:
        columns = sorted(columns, key=lambda j: scores.n_pos[j])[: summary.rarest]
    areas = scores.auroc[columns]
    ends = mean_interval(areas, scores.lower[columns], scores.upper[columns], scores.influence[:, columns])
    counts = {at: int((areas >= at).sum()) for at in COUNTED_AT}
    return SummaryScore(summary, columns, float(areas.mean()) if columns else float("nan"), *ends, counts)
