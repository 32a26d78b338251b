"""Near-equal reports across the roles, and which of them are telling.

Two reports are near-equal if their sets of three-word shingles have a Jaccard index of `NEAR` or more: exact, by one
sparse product per block. "No acute cardiopulmonary disease." in two studies proves nothing, so a near-equal report
is telling only if enough of the shared shingles are rare and outside normal phrases.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from data_prep.overlap.identity import Match

WORDS = 3  # per shingle
NEAR = 0.5  # Jaccard index from which two reports are near-equal
TELLING_SHINGLES = 6  # rare shingles that must be shared: eight words in a row
COMMON_STUDIES = 5  # a shingle in so many training studies is common ...
COMMON_SHARE = 0.0005  # ... or in this share of them, whichever is more
MAX_STUDIES = 3  # a report that is near-equal to more training studies is a template
BLOCK = 20_000  # reports per sparse product

NORMAL = re.compile(
    r"^(there (is|are) )?(no|without|negative|none|n/a|stable|unchanged)\b"
    r"|\b(clear|normal|unremarkable|intact)\b"
)
NORMAL_LENGTH = 14  # words; a longer sentence says more than that something is normal
MASK = re.compile(r"\bx{2,}\b|_+|\[[^\]]*\]")


def normalise(text: object) -> str:
    """Collapse white space and fold case; a missing text becomes empty."""
    return " ".join(text.split()).casefold() if isinstance(text, str) else ""


def sentences(text: str) -> list[str]:
    """Split a normalised report at full stops, question marks and semicolons, list numbers removed."""
    parts = re.split(r"(?<=[.!?;])\s+", text)
    return [part for part in (re.sub(r"^\(?\d+[.)]\s*", "", p).strip(" .;!?") for p in parts) if part]


def shingles(text: str) -> set[str]:
    """The set of three-word sequences, without numbers, punctuation and masked words; one of all words if fewer."""
    words = re.findall(r"[^\W\d_]+", MASK.sub(" ", text))
    return {" ".join(words[k : k + WORDS]) for k in range(max(1, len(words) - WORDS + 1))} if words else set()


def is_normal(sentence: str) -> bool:
    """Whether a sentence only says that something is normal, absent or unchanged."""
    return len(sentence.split()) <= NORMAL_LENGTH and NORMAL.search(sentence) is not None


def near_reports(a_role: str, a_rows: pd.DataFrame, b_role: str, b_rows: pd.DataFrame) -> tuple[list[Match], int]:
    """Compare the reports of `a` with those of `b`.

    Returns the telling matches (one per pair of studies) and how many pairs of studies share only an untelling report.
    """
    evaluation = list(_one_per_study(b_rows))
    sets = [shingles(text) for _, _, text in evaluation]
    column = {shingle: k for k, shingle in enumerate(sorted(set().union(*sets)))}
    b = _matrix(sets, column)
    b_sizes = np.array([len(one) for one in sets])
    studies = np.zeros(len(column))
    near: dict[int, list[tuple[str, float, csr_matrix]]] = defaultdict(list)  # the first few of each evaluation report
    counts: dict[int, int] = defaultdict(int)
    n_studies, reports = 0, _one_per_study(a_rows)
    while block := list(islice(reports, BLOCK)):
        own = [shingles(text) for _, _, text in block]
        a = _matrix(own, column)
        sizes = np.array([len(one) for one in own])
        studies += np.asarray(a.sum(axis=0)).ravel()
        n_studies += len(block)
        shared = (a @ b.T).tocoo()
        jaccard = shared.data / (sizes[shared.row] + b_sizes[shared.col] - shared.data)
        for k in np.flatnonzero(jaccard >= NEAR):
            query = int(shared.col[k])
            counts[query] += 1
            if counts[query] <= MAX_STUDIES:
                near[query].append((block[shared.row[k]][1], float(jaccard[k]), a[shared.row[k]]))
    limit = max(COMMON_STUDIES, COMMON_SHARE * n_studies)
    rare = {shingle for shingle, k in column.items() if studies[k] < limit}
    matches, common = [], 0
    for query in sorted(near):
        _, b_id, text = evaluation[query]
        spoken = set().union(*(shingles(part) for part in sentences(text) if not is_normal(part)))
        telling = _matrix([spoken & rare], column)
        found = [
            Match("report", a_role, a_id, b_role, b_id, key=f"Jaccard index {jaccard:.2f}", score=round(jaccard, 4))
            for a_id, jaccard, row in near[query]
            if counts[query] <= MAX_STUDIES and (row @ telling.T).sum() >= TELLING_SHINGLES
        ]
        matches += found
        common += counts[query] - len(found)
    return matches, common


def _matrix(sets: list[set[str]], column: dict[str, int]) -> csr_matrix:
    """Sparse (reports, shingles): 1 where a report has a shingle of `column`."""
    found = [[column[shingle] for shingle in one if shingle in column] for one in sets]
    ends = np.cumsum([0, *map(len, found)])
    places = np.array([k for one in found for k in one], np.int64)
    return csr_matrix((np.ones(len(places), np.float32), places, ends), shape=(len(sets), len(column)))


def n_reports(rows: pd.DataFrame) -> int:
    """Count the studies of `rows` that have report text."""
    return sum(1 for _ in _one_per_study(rows))


def _one_per_study(rows: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Yield (study, its first image, normalised report) of the studies that have one."""
    if "report" not in rows:
        return
    seen = set()
    for study, image, report in zip(rows["study_id"], rows["id"], rows["report"], strict=True):
        if study not in seen and (text := normalise(report)):
            seen.add(study)
            yield study, image, text
