"""Near-equal images: both stages over whole roles, and what they find of copies planted on purpose."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from data_prep.overlap import disguise, nominate, verify
from data_prep.overlap.signatures import relief_map, thumbnail


@dataclass
class Pair:
    """An evaluation image (`query`) and another image (`row`) that the second stage looked at.

    `nominated` is the first stage's score; `comparison` is None where the two could not be aligned.
    """

    query: int
    row: int
    nominated: float
    comparison: verify.Comparison | None

    @property
    def same(self) -> bool:
        return self.comparison is not None and self.comparison.same

    @property
    def score(self) -> float:
        return self.comparison.score if self.comparison else 0.0


@dataclass
class Copy:
    """A planted copy: which evaluation image, which disguise, and how far it came."""

    query: int
    kind: str
    nominated: bool
    score: float
    found: bool


def fetcher(images: Any) -> Callable[[int], np.ndarray]:
    """One image by row number from anything sliceable, one reader at a time (HDF5 is read under a lock)."""
    lock = threading.Lock()

    def fetch(row: int) -> np.ndarray:
        with lock:
            return np.asarray(images[row : row + 1])[0].astype(np.uint8, copy=False)

    return fetch


def second_stage(
    images: np.ndarray,
    nominations: list[nominate.Nominations],
    fetch: Callable[[int], np.ndarray],
    workers: int,
    progress: Callable[[int], None] = lambda done: None,
    at_least: float = verify.ALIKE,
) -> list[Pair]:
    """Compare each evaluation image (uint8 (Q, 320, 320)) with the rows nominated for it."""

    def examine(query: int) -> list[Pair]:
        found = nominations[query]
        if not len(found.rows):
            return []
        own = verify.prepare(images[query])
        result = []
        for row, score, pose, sign in zip(found.rows, found.scores, found.poses, found.signs, strict=True):
            comparison = verify.compare(own, verify.prepare(fetch(int(row))), tuple(pose), int(sign), at_least)
            result.append(Pair(query, int(row), float(score), comparison))
        return result

    pairs: list[Pair] = []
    with ThreadPoolExecutor(workers) as pool:
        for done, part in enumerate(pool.map(examine, range(len(images))), 1):
            pairs += part
            progress(done)
    return pairs


def planted_copies(
    images: np.ndarray, reliefs: np.ndarray, nominations: list[nominate.Nominations], n: int, seed: int, workers: int
) -> list[Copy]:
    """Disguise `n` evaluation images and send each copy through both stages, as one more training image.

    A copy is nominated if it reaches what the training images had to reach: the thresholds, and a place
    among the best of its evaluation image. Evaluation images and kinds of disguise take turns; no image is planted
    more often than there are kinds.
    """
    n = min(n, len(disguise.KINDS) * len(images))
    order = np.random.default_rng(seed).permutation(len(images))
    queries = np.resize(order, n)
    templates = nominate.coarse_templates(reliefs)

    def run(number: int) -> Copy:
        query, kind = int(queries[number]), disguise.KINDS[number % len(disguise.KINDS)]
        copy = disguise.disguised(images[query], kind, np.random.default_rng([seed, number]))
        thumb = thumbnail(relief_map(copy))[None]
        coarse = nominate.coarse_scores(templates[:, query : query + 1], thumb)[0, 0]
        fine, pose, sign = nominate.fine_scores(reliefs[query], thumb)
        floors = nominations[query]
        if coarse < floors.coarse_floor or fine[0] < floors.fine_floor:
            return Copy(query, kind, False, 0.0, False)
        result = verify.compare(
            verify.prepare(images[query]), verify.prepare(copy), nominate.FINE_POSES[pose[0]], int(sign[0])
        )
        return Copy(query, kind, True, result.score if result else 0.0, bool(result and result.same))

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, range(n)))


def unrelated_pairs(
    images: np.ndarray,
    thumbs: np.ndarray,
    reliefs: np.ndarray,
    related: Callable[[int, int], bool],
    n: int,
    workers: int,
) -> list[Pair]:
    """The `n` pairs of evaluation images of different patients that the first stage finds most alike, compared.

    The thresholds before the last are left out, so that the last is tried on more than it would be given.
    """
    nominations = nominate.nominate(reliefs, thumbs, workers, threshold=0.0)
    scored = [
        (score, query, k)
        for query, found in enumerate(nominations)
        for k, (row, score) in enumerate(zip(found.rows, found.scores, strict=True))
        if query < row and not related(query, int(row))
    ]
    chosen = {(query, k) for _, query, k in sorted(scored, key=lambda item: (-item[0], item[1:]))[:n]}
    for query, found in enumerate(nominations):
        kept = [k for k in range(len(found.rows)) if (query, k) in chosen]
        found.rows, found.scores, found.poses, found.signs = (
            values[kept] for values in (found.rows, found.scores, found.poses, found.signs)
        )
    return second_stage(images, nominations, lambda row: images[row], workers, at_least=-1)


def rate(hits: int, total: int) -> dict[str, Any]:
    """hits / total with its exact 95 % (Clopper-Pearson) interval; None where nothing was measured."""
    if not total:
        return {"hits": 0, "of": 0, "rate": None, "lower_95": None, "upper_95": None}
    interval = binomtest(hits, total).proportion_ci(0.95, method="exact")
    return {
        "hits": hits,
        "of": total,
        "rate": hits / total,
        "lower_95": float(interval.low),
        "upper_95": float(interval.high),
    }


def measured_recall(copies: list[Copy]) -> dict[str, Any]:
    """Recall over all planted copies, of the first stage alone, and by disguise; the scores of those nominated."""
    kinds = {kind: [copy for copy in copies if copy.kind == kind] for kind in disguise.KINDS}
    return {
        "recall": rate(sum(c.found for c in copies), len(copies)),
        "first_stage": rate(sum(c.nominated for c in copies), len(copies)),
        "by_disguise": {
            kind: {"what": disguise.WHAT[kind], **rate(sum(c.found for c in group), len(group))}
            for kind, group in kinds.items()
        },
        "scores": [round(c.score, 4) for c in copies if c.nominated],
    }


def measured_false_alarms(pairs: list[Pair]) -> dict[str, Any]:
    """False alarms among unrelated pairs, and their scores."""
    return {
        "false_alarms": rate(sum(pair.same for pair in pairs), len(pairs)),
        "scores": [round(pair.score, 4) for pair in pairs],
    }
