"""Equal reports across the roles, and which of them tell something.

"No acute cardiopulmonary disease." under two names proves nothing. A shared report is telling if enough of its words
remain after the normal phrases and the sentences that many training studies use are taken out.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import pandas as pd

from data_prep.overlap.identity import Match

TELLING_WORDS = 8  # words left after the common sentences are taken out
COMMON_STUDIES = 5  # a sentence in so many training studies is common ...
COMMON_SHARE = 0.0005  # ... or in this share of them, whichever is more
MAX_STUDIES = 3  # a whole report in more training studies than this is a template

NORMAL = re.compile(
    r"^(there (is|are) )?(no|without|negative|none|n/a|stable|unchanged)\b"
    r"|\b(clear|normal|unremarkable|intact)\b"
)
NORMAL_LENGTH = 14  # words; a longer sentence says more than that something is normal


def normalise(text: object) -> str:
    """White space to single spaces, case levelled; a missing text is empty."""
    return " ".join(text.split()).casefold() if isinstance(text, str) else ""


def sentences(text: str) -> list[str]:
    """The sentences of a normalised report, without list numbers and closing marks."""
    parts = re.split(r"(?<=[.!?;])\s+", text)
    return [part for part in (re.sub(r"^\(?\d+[.)]\s*", "", p).strip(" .;!?") for p in parts) if part]


def equal_reports(a_role: str, a_rows: pd.DataFrame, b_role: str, b_rows: pd.DataFrame) -> tuple[list[Match], int]:
    """Telling matches (one a pair of studies) and the number of pairs of studies that share a common report only."""
    b_studies = _studies_by_report(b_rows)
    a_studies = _studies_by_report(a_rows, wanted=b_studies.keys())
    counts, n_studies = _sentence_counts(a_rows, {s for text in a_studies for s in sentences(text)})
    limit = max(COMMON_STUDIES, COMMON_SHARE * n_studies)
    matches, common = [], 0
    for text, own in a_studies.items():
        others = b_studies[text]
        if len(own) <= MAX_STUDIES and telling_words(text, counts, limit) >= TELLING_WORDS:
            matches += [
                Match("report", a_role, a, b_role, b, key=f"{len(text.split())} words")
                for b in others.values()
                for a in own.values()
            ]
        else:
            common += len(own) * len(others)
    return matches, common


def telling_words(text: str, counts: Counter, limit: float) -> int:
    """Words of the sentences that are neither a normal phrase nor in `limit` or more training studies."""
    return sum(
        len(sentence.split()) for sentence in sentences(text) if counts[sentence] < limit and not is_normal(sentence)
    )


def is_normal(sentence: str) -> bool:
    """Whether a sentence only says that something is normal, absent or unchanged."""
    return len(sentence.split()) <= NORMAL_LENGTH and NORMAL.search(sentence) is not None


def n_reports(rows: pd.DataFrame) -> int:
    """Studies of `rows` that have report text."""
    return sum(1 for _ in _one_a_study(rows))


def _one_a_study(rows: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    if "report" not in rows:
        return
    seen = set()
    for study, image, report in zip(rows["study_id"], rows["id"], rows["report"], strict=True):
        if study not in seen and (text := normalise(report)):
            seen.add(study)
            yield study, image, text


def _studies_by_report(rows: pd.DataFrame, wanted: Iterable[str] | None = None) -> dict[str, dict[str, str]]:
    """Normalised report -> {study: its first image}; only the `wanted` texts, if given."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for study, image, text in _one_a_study(rows):
        if wanted is None or text in wanted:
            found[text][study] = image
    return found


def _sentence_counts(rows: pd.DataFrame, wanted: set[str]) -> tuple[Counter, int]:
    counts: Counter = Counter()
    n = 0
    for _, _, text in _one_a_study(rows):
        n += 1
        if wanted:
            counts.update(wanted.intersection(sentences(text)))
    return counts, n
