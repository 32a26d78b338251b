"""First stage: which training images may be the same picture as an evaluation image.

It nominates and never decides. Each evaluation image is tried at several sizes and places, because a crop changes
both; a negative correlation counts as well as a positive one, because an inverted copy has one. Two steps:
coarse, every training image, 16 x 16 in nine poses, matrix products in blocks, the best `KEEP_COARSE` for each;
fine, those only, 32 x 32 in 175 poses, the best `KEEP_FINE` that reach `NOMINATE`.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from data_prep.overlap.signatures import MAP_SIZE, THUMB_SIZE, ThumbnailFile, thumbnail

Thumbs = np.ndarray | ThumbnailFile  # int8 (N, 1024)

COARSE_POSES = (
    *((scale, 0.0, 0.0) for scale in (0.92, 0.97, 1.02, 1.06, 1.11)),  # scale, shifts in widths
    (1.04, 0.022, 0.0),
    (1.04, -0.022, 0.0),
    (1.04, 0.0, 0.022),
    (1.04, 0.0, -0.022),
)  # cut on one side
FINE_SCALES = (0.92, 0.95, 0.98, 1.01, 1.04, 1.07, 1.10)
FINE_SHIFTS = (-0.04, -0.02, 0.0, 0.02, 0.04)  # of the width
FINE_POSES = tuple(itertools.product(FINE_SCALES, FINE_SHIFTS, FINE_SHIFTS))
KEEP_COARSE = 2000
KEEP_FINE = 16
NOMINATE = 0.42
ROWS = 4096  # training rows of one matrix product


@dataclass
class Nominations:
    """What the first stage found for one evaluation image.

    `rows` are training rows, best first; `scores` the absolute fine correlations; `poses` (scale, shift x, shift y)
    and `signs` (-1 = inverted) where they occur. `coarse_floor` and `fine_floor` are what a row had to reach.
    """

    rows: np.ndarray
    scores: np.ndarray
    poses: np.ndarray
    signs: np.ndarray
    coarse_floor: float
    fine_floor: float


#: for an evaluation image that was compared with no training image: only the threshold stands
NOTHING = Nominations(np.empty(0, int), np.empty(0), np.empty((0, 3)), np.empty(0, int), 0.0, NOMINATE)


def posed(relief: np.ndarray, scale: float, dx: float, dy: float) -> np.ndarray:
    """The thumbnail of a relief map magnified by `scale` about its centre and moved by (dx, dy) widths."""
    centre = (MAP_SIZE - 1) / 2
    matrix = np.array(
        [[scale, 0, centre * (1 - scale) + dx * MAP_SIZE], [0, scale, centre * (1 - scale) + dy * MAP_SIZE]], np.float32
    )
    return thumbnail(cv2.warpAffine(relief, matrix, (MAP_SIZE, MAP_SIZE), flags=cv2.INTER_LINEAR))


def coarse_rows(thumbs: np.ndarray) -> np.ndarray:
    """int8 (n, 1024) -> float32 (n, 256): 16 x 16 cells, rows of length one."""
    half = THUMB_SIZE // 2
    cells = thumbs.astype(np.int16).reshape(-1, half, 2, THUMB_SIZE)
    cells = (cells[:, :, 0] + cells[:, :, 1]).reshape(-1, half, half, 2)
    return unit_rows((cells[..., 0] + cells[..., 1]).reshape(-1, half * half))


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Rows divided by their length (a row of zeros stays zero), float32."""
    values = np.asarray(values, np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-6)


def coarse_templates(reliefs: np.ndarray) -> np.ndarray:
    """Relief maps (Q, 96, 96) -> float32 (poses, Q, 256)."""
    return np.stack([coarse_rows(np.stack([posed(relief, *pose) for relief in reliefs])) for pose in COARSE_POSES])


def coarse_scores(templates: np.ndarray, thumbs: np.ndarray) -> np.ndarray:
    """Best absolute correlation over the poses: (Q, n) float32 for n thumbnails."""
    rows = coarse_rows(thumbs)
    best = np.abs(templates[0] @ rows.T)
    for template in templates[1:]:
        product = template @ rows.T
        np.maximum(best, np.abs(product, out=product), out=best)
    return best


def fine_scores(relief: np.ndarray, thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best absolute correlation over the poses for each of n thumbnails: scores, pose numbers, signs."""
    templates = unit_rows(np.stack([posed(relief, *pose) for pose in FINE_POSES]))
    products = templates @ unit_rows(thumbs).T
    poses = np.abs(products).argmax(axis=0)
    chosen = products[poses, np.arange(products.shape[1])]
    return np.abs(chosen), poses, np.where(chosen < 0, -1, 1)


class Best:
    """The `keep` best rows of each query so far. Of a block, only what beats the worst that is kept is looked at."""

    def __init__(self, queries: int, keep: int) -> None:
        self.keep = keep
        self.rows = [np.empty(0, np.int32)] * queries
        self.scores = [np.empty(0, np.float32)] * queries
        self.floors = np.full(queries, -np.inf, np.float32)

    def add(self, query: int, rows: np.ndarray, scores: np.ndarray) -> None:
        """Take what may belong to the best; they are cut to `keep` when twice as many have gathered."""
        better = scores > self.floors[query]
        self.rows[query] = np.concatenate([self.rows[query], rows[better]])
        self.scores[query] = np.concatenate([self.scores[query], scores[better]])
        if len(self.rows[query]) >= 2 * self.keep:
            self.cut(query)

    def cut(self, query: int) -> None:
        """Keep the best `keep`; from then on a row must beat the worst of them."""
        if len(self.rows[query]) > self.keep:
            order = np.argpartition(self.scores[query], -self.keep)[-self.keep :]
            self.rows[query], self.scores[query] = self.rows[query][order], self.scores[query][order]
            self.floors[query] = self.scores[query].min()


def coarse_search(templates: np.ndarray, thumbs: Thumbs, keep: int, workers: int) -> Best:
    """The `keep` best rows of `thumbs` for each query of `templates`, unordered."""
    queries = templates.shape[1]

    def part(bounds: tuple[int, int]) -> Best:
        best = Best(queries, keep)
        for start in range(*bounds, ROWS):
            stop = min(start + ROWS, bounds[1])
            scores, rows = coarse_scores(templates, thumbs[start:stop]), np.arange(start, stop, dtype=np.int32)
            for query in range(queries):
                best.add(query, rows, scores[query])
        return best

    edges = np.linspace(0, len(thumbs), workers + 1).astype(int)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        first, *others = pool.map(part, zip(edges[:-1], edges[1:], strict=True))
    for query in range(queries):
        for other in others:
            first.add(query, other.rows[query], other.scores[query])
        first.cut(query)
    return first


def nominate(
    reliefs: np.ndarray,
    thumbs: Thumbs,
    workers: int,
    *,
    keep_coarse: int = KEEP_COARSE,
    keep_fine: int = KEEP_FINE,
    threshold: float = NOMINATE,
) -> list[Nominations]:
    """Nominate rows of `thumbs` (N, 1024) for each relief map (Q, 96, 96)."""
    best = coarse_search(coarse_templates(reliefs), thumbs, keep_coarse, workers)

    def refine(query: int) -> Nominations:
        rows = np.sort(best.rows[query])
        fine, poses, signs = fine_scores(reliefs[query], thumbs[rows])
        order = np.argsort(-fine, kind="stable")[:keep_fine]
        full = len(order) == keep_fine
        order = order[fine[order] >= threshold]
        floor = max(threshold, float(fine[order[-1]]) if full and len(order) == keep_fine else threshold)
        return Nominations(
            rows[order],
            fine[order],
            np.array(FINE_POSES)[poses[order]],
            signs[order],
            max(0.0, float(best.floors[query])),
            floor,
        )

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        return list(pool.map(refine, range(len(reliefs))))
