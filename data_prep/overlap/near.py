"""Near-equal images: both stages over whole roles, and their recall and false alarms, measured."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.stats import binomtest
from threadpoolctl import threadpool_limits

from data_prep.overlap import disguise, nominate, verify
from data_prep.overlap.disguise import DISGUISES, Disguise
from data_prep.overlap.features import Features

PREPARED = 200  # nominated images kept prepared for comparison; each takes 0.8 MB


@dataclass
class Pair:
    """An evaluation image (`query`) and another image (`row`) that the second stage compared.

    `nominated` is the first stage's score; `comparison` is None where no affine map relates the two.
    """

    query: int
    row: int
    nominated: int
    comparison: verify.Comparison | None

    @property
    def same(self) -> bool:
        return self.comparison is not None and self.comparison.same

    @property
    def score(self) -> float:
        return self.comparison.score if self.comparison else 0.0

    @property
    def inliers(self) -> int:
        return self.comparison.inliers if self.comparison else 0


@dataclass
class Copy:
    """A planted copy: which evaluation image, which disguise, and which stages it passed."""

    query: int
    disguise: Disguise
    nominated: bool
    score: float
    found: bool


@dataclass
class Search:
    """Both stages prepared for evaluation images uint8 (Q, 320, 320): words, weights, nominations, features.

    `signatures` are the evaluation images' own, so that they can be searched for among each other.
    """

    images: np.ndarray
    vocabulary: nominate.Vocabulary
    views: list[nominate.Views]
    signatures: np.ndarray
    weights: np.ndarray
    nominations: list[nominate.Nominations]
    features: list[Features]

    @classmethod
    def prepare(cls, images: np.ndarray, workers: int) -> "Search":
        vocabulary, views = nominate.prepare(images, workers)
        weights, nothing = np.ones(vocabulary.size, np.float32), [nominate.NOTHING] * len(images)
        signatures = nominate.make_signatures(images, vocabulary, workers)
        with ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(verify.extract, images))
        return cls(images, vocabulary, views, signatures, weights, nothing, found)

    def poses(self, query: int) -> list[verify.Prepared]:
        return verify.prepare_poses(self.images[query], self.features[query])

    def prepared(self, query: int) -> verify.Prepared:
        return verify.prepare(self.images[query], self.features[query])


def reader(images: Any) -> Callable[[int], verify.Prepared]:
    """Return a function that reads, under a lock for HDF5, and prepares one image by row."""
    lock = threading.Lock()

    def prepared(row: int) -> verify.Prepared:
        with lock:
            image = np.asarray(images[row : row + 1])[0].astype(np.uint8, copy=False)
        return verify.prepare(image)

    return prepared


def second_stage(
    search: Search,
    nominations: dict[int, nominate.Nominations],
    prepared: Callable[[int], verify.Prepared],
    workers: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Pair]:
    """Compare evaluation images (the keys of `nominations`) with the rows nominated for them."""
    kept = lru_cache(maxsize=PREPARED)(prepared)  # a row may be nominated many times

    def examine(query: int) -> list[Pair]:
        found = nominations[query]
        own = search.poses(query) if len(found.rows) else []
        return [
            Pair(query, int(row), int(score), verify.compare(own, kept(int(row))))
            for row, score in zip(found.rows, found.scores, strict=True)
        ]

    pairs: list[Pair] = []
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        for done, part in enumerate(pool.map(examine, nominations), 1):
            pairs += part
            progress(done)
    return pairs


def planted_copies(search: Search, n: int, seed: int, workers: int) -> list[Copy]:
    """Make `n` disguised copies of evaluation images and send each through both stages as an additional training image.

    A copy is nominated if it meets the conditions for training images: the minimum of consistent words, and a place
    among the best of its evaluation image. Disguises take turns, and so do the evaluation images, in random order.
    """
    order = np.random.default_rng(seed).permutation(len(search.images))
    n = min(n, len(DISGUISES) * len(order))
    cycle = math.lcm(len(DISGUISES), len(order))  # after so many copies, pairs of disguise and image would repeat

    def run(number: int) -> Copy:
        kind = DISGUISES[number % len(DISGUISES)]
        place = number + number // cycle
        query = int(order[place % len(order)])
        other = search.images[order[(place + 1) % len(order)]]
        copy = disguise.disguised(search.images[query], kind, np.random.default_rng([seed, number]), other)
        return Copy(query, kind, *plant(search, query, copy))

    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, range(n)))


def plant(search: Search, query: int, copy: np.ndarray) -> tuple[bool, float, bool]:
    """Send a copy of an evaluation image through both stages: whether nominated, its score, and whether found."""
    mark = nominate.signature(copy, search.vocabulary)[None]
    views, floors = search.views[query], search.nominations[query]
    shared = nominate.shared_weights(mark, nominate.query_matrix([views], search.weights), len(views.words))[0, 0]
    consistent = nominate.consistent_words(views, search.weights, mark)[0]
    if shared <= 0 or shared < floors.shared_floor or consistent < floors.consistent_floor:
        return False, 0.0, False
    result = verify.compare(search.poses(query), verify.prepare(copy))
    return True, result.score if result else 0.0, bool(result and result.same)


def unrelated_pairs(search: Search, related: Callable[[int, int], bool], n: int, workers: int) -> list[Pair]:
    """Compare the `n` pairs of evaluation images of different patients that the first stage ranks most similar.

    The first stage's minimum is not applied, so the second stage is tested on more pairs than it would receive.
    """
    weights, few = nominate.rarity(search.signatures, search.vocabulary.size), nominate.KEEP_SHARED // 4
    found = nominate.nominate(search.views, weights, search.signatures, workers, keep_shared=few, keep=few, least=0)
    scored = sorted(
        (-int(score), query, int(row))
        for query, one in enumerate(found)
        for row, score in zip(one.rows, one.scores, strict=True)
        if query < row and not related(query, int(row))
    )[:n]
    chosen: dict[int, list[tuple[int, int]]] = {}
    for score, query, row in scored:
        chosen.setdefault(query, []).append((row, -score))
    picked = {
        query: nominate.Nominations(np.array([row for row, _ in one]), np.array([score for _, score in one]), 0, 0)
        for query, one in sorted(chosen.items())
    }
    return second_stage(search, picked, search.prepared, workers)


def rate(hits: int, total: int) -> dict[str, Any]:
    """Return hits / total with its exact 95 % (Clopper-Pearson) interval; None where nothing was measured."""
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
    """Summarise planted copies: recall over all, of the first stage alone, and by disguise; weak and untried ones."""
    by_disguise = {}
    for kind in DISGUISES:
        group = [copy for copy in copies if copy.disguise == kind]
        by_disguise[kind.name] = {"kind": kind.kind, "strength": kind.strength} | rate(
            sum(copy.found for copy in group), len(group)
        )
    return {
        "recall": rate(sum(copy.found for copy in copies), len(copies)),
        "first_stage": rate(sum(copy.nominated for copy in copies), len(copies)),
        "by_disguise": by_disguise,
        "weak_at": [name for name, one in by_disguise.items() if one["of"] and one["rate"] < WEAK],
        "not_tried": [name for name, one in by_disguise.items() if not one["of"]],
        "scores": [round(copy.score, 4) for copy in copies if copy.nominated],
    }


WEAK = 0.9  # a disguise with a smaller share of its copies found is named beside the recall


def measured_false_alarms(pairs: list[Pair]) -> dict[str, Any]:
    """Summarise unrelated pairs: false alarms, their texture scores, and the most features that agreed."""
    return {
        "false_alarms": rate(sum(pair.same for pair in pairs), len(pairs)),
        "scores": [round(pair.score, 4) for pair in pairs],
        "most_inliers": max((pair.inliers for pair in pairs), default=0),
    }
