"""First stage: nominate training images that may be the same picture as an evaluation image.

A bag of visual words (Sivic and Zisserman 2003). Each training image is stored as 64 local features, 384 bytes: words
of a vocabulary of about a million (a product quantiser with two codebooks, Babenko and Lempitsky 2012) and their
positions. Crops, borders, rotations and adjacent pictures remove some of the words and keep the others. Changes that
affect all words (mirroring, inversion, strong local contrast, another scale) are applied to the evaluation images
instead, which are few. Two steps: shared words, weighted by their rarity, for every training image (one sparse product
per block); then, for the best of each evaluation image, how many shared words are consistent with one affine map.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import cv2
import numpy as np
from scipy.sparse import csr_matrix
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from chexzero.common.errors import UserError
from data_prep.overlap import features
from data_prep.overlap.features import Features

SIDE = 144  # pixels of the shorter side at which features are found
WORDS = 64  # per training image
QUERY_WORDS = 96  # per view of an evaluation image
CODES = 1024  # of each of the two codebooks
DIMENSIONS = 32  # kept of a descriptor's 128, half per codebook
PROBES = 12  # nearest words assigned to each feature of an evaluation image
ZOOM = 0.12  # share cut off each side in the view that finds crops
KEEP_SHARED = 64  # training images per evaluation image whose geometry is checked
KEEP = 4  # of those, how many are nominated
MIN_CONSISTENT = 6  # words that must agree with one affine map: unrelated images of a small set reach 4 or 5, copies 8
TOLERANCE = 0.03  # of that map, as a share of the image's side
MAX_STRETCH = 1.6  # of that map: ratio of magnifications between directions
ROWS = 1024  # training images per sparse product
READ = 512  # images read at once

SIGNATURE = np.dtype([("words", np.int32, WORDS), ("places", np.uint8, (WORDS, 2))])  # a missing word is -1


@dataclass
class Nominations:
    """What the first stage found for one evaluation image.

    `rows` are training rows, best first; `scores` the numbers of consistent words. `shared_floor` and
    `consistent_floor` are the minimum values for a row to be checked and to be nominated.
    """

    rows: np.ndarray
    scores: np.ndarray
    shared_floor: float
    consistent_floor: float


#: for an evaluation image that was compared with no training image: only `MIN_CONSISTENT` applies
NOTHING = Nominations(np.empty(0, int), np.empty(0, int), 0.0, MIN_CONSISTENT)


@dataclass
class Vocabulary:
    """A product quantiser of descriptors: `mean` (128,), `axes` (128, 32), `codebooks` two of (codes, 16)."""

    mean: np.ndarray
    axes: np.ndarray
    codebooks: tuple[np.ndarray, np.ndarray]

    @property
    def size(self) -> int:
        return len(self.codebooks[0]) * len(self.codebooks[1])

    @classmethod
    def learn(cls, descriptors: np.ndarray, seed: int = 0) -> "Vocabulary":
        """Learn the codebooks from descriptors (n, 128): principal axes, then k-means of each half of them."""
        mean = descriptors.mean(axis=0)
        axes = np.linalg.svd(np.cov((descriptors - mean).T))[0][:, :DIMENSIONS].astype(np.float32)
        number = np.arange(DIMENSIONS) % 4
        axes = axes[:, np.argsort(np.isin(number, (1, 2)), kind="stable")]  # both halves get an equal share of variance
        values, half = (descriptors - mean) @ axes, DIMENSIONS // 2
        books = [
            MiniBatchKMeans(
                min(CODES, max(1, len(values) // 4)),
                random_state=seed,
                n_init=1,
                max_iter=20,
                batch_size=4096,
                init_size=3 * CODES,
            )
            .fit(part)
            .cluster_centers_.astype(np.float32)
            for part in (values[:, :half], values[:, half:])
        ]
        return cls(mean.astype(np.float32), axes, (books[0], books[1]))

    def nearest(self, descriptors: np.ndarray, n: int) -> np.ndarray:
        """Return the `n` nearest words of each descriptor, nearest first: (m, 128) -> int32 (m, n)."""
        values, half = (descriptors - self.mean) @ self.axes, DIMENSIONS // 2
        ids, distances = [], []
        for book, part in zip(self.codebooks, (values[:, :half], values[:, half:]), strict=True):
            distance = (book**2).sum(axis=1) - 2 * part @ book.T
            best = _nearest_first(distance, min(n, 6))
            ids.append(best)
            distances.append(np.take_along_axis(distance, best, axis=1))
        shape = (len(values), ids[0].shape[1] * ids[1].shape[1])
        together = (distances[0][:, :, None] + distances[1][:, None, :]).reshape(shape)
        words = (ids[0][:, :, None] * len(self.codebooks[1]) + ids[1][:, None, :]).reshape(shape)
        return np.take_along_axis(words, _nearest_first(together, n), axis=1).astype(np.int32)


def _nearest_first(distances: np.ndarray, n: int) -> np.ndarray:
    """The columns of the `n` smallest values of each row, smallest first: (m, k) -> (m, min(n, k))."""
    n = min(n, distances.shape[1])
    if n == 1:
        return distances.argmin(axis=1)[:, None]
    best = np.argpartition(distances, n - 1, axis=1)[:, :n]  # sorting whole rows takes five times as long
    order = np.argsort(np.take_along_axis(distances, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)


@dataclass
class Views:
    """What is searched for of one evaluation image: per view, the words (n, PROBES) and the points (n, 2)."""

    words: list[np.ndarray]
    points: list[np.ndarray]


def view_features(image: np.ndarray) -> list[Features]:
    """Features of an evaluation image in each view (unchanged, local contrast enhanced, zoomed in) and pose."""
    image = features.without_specks(image)
    box = features.content_box(image)
    content = np.ascontiguousarray(image[box])
    dy, dx = (round(ZOOM * side) for side in content.shape)
    inner = content[dy : content.shape[0] - dy, dx : content.shape[1] - dx]
    views = (content, cv2.createCLAHE(4, (8, 8)).apply(content), inner)
    return [
        features.posed_features(found, view.shape[1], *pose)
        for view in views
        for found in [features.extract(view, SIDE, QUERY_WORDS)]
        for pose in features.POSES
    ]


def make_views(found: list[Features], vocabulary: Vocabulary) -> Views:
    """Quantise the features of each view into words."""
    words = [vocabulary.nearest(features.root_sift(one.histograms), PROBES) for one in found]  # not cached
    return Views(words, [one.points for one in found])


def prepare(images: np.ndarray, workers: int) -> tuple[Vocabulary, list[Views]]:
    """Learn the vocabulary from evaluation images uint8 (Q, H, W) and quantise each of them into words."""
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(view_features, images))
        plain = features.root_sift(np.concatenate([one[0].histograms for one in found]))
        vocabulary = Vocabulary.learn(np.concatenate([plain, np.eye(2, 128, dtype=np.float32)]))
        return vocabulary, list(pool.map(lambda one: make_views(one, vocabulary), found))


def signature(image: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Make the signature of one training image: the words and places of its features, a SIGNATURE scalar array."""
    found = features.extract(features.without_specks(image), SIDE, WORDS)
    result = np.zeros((), SIGNATURE)
    n = len(found.points)
    result["words"] = -1
    result["words"][:n] = vocabulary.nearest(found.descriptors, 1)[:, 0]
    result["places"][:n] = np.clip(found.points * (256 / max(image.shape)), 0, 255)
    return result


def make_signatures(images: np.ndarray, vocabulary: Vocabulary, workers: int) -> np.ndarray:
    """Signatures of images uint8 (n, H, W): SIGNATURE (n,). OpenCV releases the GIL, so threads use all cores."""
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        return np.stack(list(pool.map(lambda image: signature(image, vocabulary), images)))


class SignatureFile:
    """Signatures in an open file. `signatures[a:b]` and `signatures[rows]` read only these rows.

    A memory map would count as this process's memory, and its page faults would read far more than the rows.
    """

    def __init__(self, file: IO[bytes], length: int) -> None:
        self.file, self.length = file, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        size, descriptor = SIGNATURE.itemsize, self.file.fileno()
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.length)
            data = os.pread(descriptor, max(0, stop - start) * size, start * size)
        else:
            data = b"".join(os.pread(descriptor, size, int(row) * size) for row in rows)
        return np.frombuffer(data, SIGNATURE)


Signatures = np.ndarray | SignatureFile


def blocks(images: Any, size: int = READ) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, uint8 (b, H, W)) of anything sliceable, `size` images at a time."""
    for start in range(0, len(images), size):
        yield start, np.asarray(images[start : start + size]).astype(np.uint8, copy=False)


def write_signatures(
    images: Any,
    vocabulary: Vocabulary,
    file: IO[bytes],
    workers: int,
    progress: Callable[[int], object] = lambda done: None,
) -> SignatureFile:
    """Write the signatures of all images into `file`, block by block with `workers` threads.

    The images are read once, in order; `progress` receives the length of each block. A full disk raises `UserError`.
    """
    for _, block in blocks(images):
        made = make_signatures(block, vocabulary, workers)
        try:
            file.write(made.tobytes())
            file.flush()
        except OSError as error:
            raise UserError(
                f"cannot write the audit's signatures: {error.strerror}; free "
                f"{len(images) * SIGNATURE.itemsize / 2**20:.0f} MiB in the output folder"
            ) from error
        progress(len(block))
    return SignatureFile(file, len(images))


def rarity(signatures: Signatures, size: int) -> np.ndarray:
    """Weight of each word: log(1 + images / images that have it), float32 (size,)."""
    counts = np.zeros(size, np.int64)
    for start in range(0, len(signatures), 16 * ROWS):
        words = np.sort(signatures[start : start + 16 * ROWS]["words"], axis=1)
        first = np.diff(words, axis=1, prepend=-1) > 0
        counts += np.bincount(words[first], minlength=size)
    return np.log1p(len(signatures) / np.maximum(counts, 1)).astype(np.float32)


def query_matrix(views: list[Views], weights: np.ndarray) -> csr_matrix:
    """Sparse (words, queries * views): the weight of a word in a view that has it, else 0."""
    every = [np.unique(words) for one in views for words in one.words]
    columns = np.repeat(np.arange(len(every)), [len(words) for words in every])
    rows = np.concatenate(every).astype(np.int64)
    return csr_matrix((weights[rows], (rows, columns)), shape=(len(weights), len(every)))


def shared_weights(signatures: np.ndarray, matrix: csr_matrix, n_views: int) -> np.ndarray:
    """Weight of the words that signatures (n,) share with the best view of each query: float32 (n, Q)."""
    words = np.sort(signatures["words"], axis=1)
    first = np.diff(words, axis=1, prepend=-1) > 0  # a word twice in an image counts once; -1 is none
    ends = np.concatenate([[0], first.sum(axis=1).cumsum()])
    block = csr_matrix((np.ones(ends[-1], np.float32), words[first], ends), shape=(len(words), matrix.shape[0]))
    return (block @ matrix).toarray().reshape(len(words), -1, n_views).max(axis=2)


class Best:
    """The `keep` best rows of each query so far. Of a block, only rows that beat the worst one kept are considered."""

    def __init__(self, queries: int, keep: int) -> None:
        self.keep = keep
        self.rows = [np.empty(0, np.int32)] * queries
        self.scores = [np.empty(0, np.float32)] * queries
        self.floors = np.zeros(queries, np.float32)

    def add(self, start: int, scores: np.ndarray) -> None:
        """Add the rows from `start` on that may be among the best: scores (n, Q)."""
        for query, own in enumerate(np.ascontiguousarray(scores.T)):
            better = np.flatnonzero(own > self.floors[query])
            if len(better):
                self.extend(query, (better + start).astype(np.int32), own[better])

    def extend(self, query: int, rows: np.ndarray, scores: np.ndarray) -> None:
        """Add rows of one query; they are cut to `keep` once there are twice as many."""
        self.rows[query] = np.concatenate([self.rows[query], rows])
        self.scores[query] = np.concatenate([self.scores[query], scores])
        if len(self.rows[query]) >= 2 * self.keep:
            self.cut(query)

    def cut(self, query: int) -> None:
        """Keep the best `keep`, the first of equal ones; later rows must beat the worst of them."""
        if len(self.rows[query]) > self.keep:
            order = np.lexsort((self.rows[query], -self.scores[query]))[: self.keep]
            self.rows[query], self.scores[query] = self.rows[query][order], self.scores[query][order]
            self.floors[query] = self.scores[query].min()


def search(views: list[Views], weights: np.ndarray, signatures: Signatures, keep: int, workers: int) -> Best:
    """Find the `keep` rows of `signatures` that share most with each query, the first of equal ones."""
    matrix, n_views = query_matrix(views, weights), len(views[0].words)

    def part(bounds: tuple[int, int]) -> Best:
        best = Best(len(views), keep)
        for start in range(*bounds, ROWS):
            best.add(start, shared_weights(signatures[start : min(start + ROWS, bounds[1])], matrix, n_views))
        return best

    edges = np.linspace(0, len(signatures), workers + 1).astype(int)
    with ThreadPoolExecutor(workers) as pool:
        first, *others = pool.map(part, zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    for query in range(len(views)):
        for other in others:
            first.extend(query, other.rows[query], other.scores[query])
        first.cut(query)
    return first


def consistent_words(views: Views, weights: np.ndarray, signatures: np.ndarray) -> np.ndarray:
    """Count, for each signature (n,), the shared words consistent with one affine map of the best view: (n,)."""
    words = np.concatenate([one.ravel() for one in views.words])
    view = np.repeat(np.arange(len(views.words)), [one.size for one in views.words])
    points = np.concatenate(
        [np.repeat(one, w.shape[1], axis=0) for one, w in zip(views.points, views.words, strict=True)]
    )
    order = np.argsort(words, kind="stable")
    words, view, points = words[order], view[order], points[order]
    n, n_views = len(signatures), len(views.words)
    wanted = signatures["words"].ravel()
    first = np.searchsorted(words, wanted)
    lengths = np.searchsorted(words, wanted, side="right") - first
    owner = np.repeat(np.arange(n * WORDS), lengths)  # the signature's word that each hit belongs to
    hit = np.arange(len(owner)) + np.repeat(first - np.cumsum(lengths) + lengths, lengths)
    shares = np.bincount(owner // WORDS * n_views + view[hit], weights[words[hit]], minlength=n * n_views)
    in_best = view[hit] == shares.reshape(n, n_views).argmax(axis=1)[owner // WORDS]
    here = points[hit[in_best]]
    there = signatures["places"].reshape(-1, 2)[owner[in_best]].astype(np.float32)
    edges = np.searchsorted(owner[in_best], np.arange(n + 1) * WORDS)
    return np.array([_affine_inliers(here[a:b], there[a:b]) for a, b in itertools.pairwise(edges)], int)


def _affine_inliers(a: np.ndarray, b: np.ndarray) -> int:
    """The most pairs of points that one affine map explains; a point counts once on each side."""
    if min(_distinct(a), _distinct(b)) < MIN_CONSISTENT:
        return 0
    matrix, inside = cv2.estimateAffine2D(
        a, b, method=cv2.RANSAC, ransacReprojThreshold=256 * TOLERANCE, maxIters=300, confidence=0.99
    )
    if matrix is None or features.stretch(matrix) > MAX_STRETCH:
        return 0
    chosen = inside.ravel() > 0
    return min(_distinct(a[chosen]), _distinct(b[chosen]))


def _distinct(points: np.ndarray) -> int:
    return len(set(map(tuple, points.tolist())))  # for so few, numpy takes three times as long


def nominate(
    views: list[Views],
    weights: np.ndarray,
    signatures: Signatures,
    workers: int,
    *,
    keep_shared: int = KEEP_SHARED,
    keep: int = KEEP,
    least: int = MIN_CONSISTENT,
) -> list[Nominations]:
    """Nominate rows of `signatures` for each evaluation image; `weights` are the words' rarity."""
    best = search(views, weights, signatures, keep_shared, workers)

    def refine(query: int) -> Nominations:
        rows = np.sort(best.rows[query])
        counts = consistent_words(views[query], weights, signatures[rows])
        order = np.argsort(-counts, kind="stable")[:keep]
        floor = max(least, int(counts[order[-1]])) if len(order) == keep else least
        order = order[counts[order] >= least]
        return Nominations(rows[order], counts[order], float(best.floors[query]), floor)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(refine, range(len(views))))
