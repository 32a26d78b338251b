"""The first stage of the audit: exact results, correct score floors, constant memory; and real data."""

import json
import tempfile
import tracemalloc

import numpy as np
import pytest

from chexzero.common.errors import UserError
from data_prep.__main__ import main as data_prep
from data_prep.overlap import nominate
from data_prep.overlap.nominate import SIGNATURE, Views, Vocabulary

SIZE = 500  # words of the artificial vocabulary


def some_views(n: int, views: int = 2, seed: int = 0) -> list[Views]:
    rng = np.random.default_rng(seed)
    return [
        Views(
            [rng.integers(0, SIZE, (30, nominate.PROBES), dtype=np.int32) for _ in range(views)],
            [rng.uniform(0, 144, (30, 2)).astype(np.float32) for _ in range(views)],
        )
        for _ in range(n)
    ]


def some_signatures(n: int, seed: int = 1) -> np.ndarray:
    rng, result = np.random.default_rng(seed), np.zeros(n, SIGNATURE)
    result["words"] = rng.integers(-1, SIZE, result["words"].shape)
    result["places"] = rng.integers(0, 256, result["places"].shape)
    return result


def words_of(row: np.void) -> set[int]:
    return set(row["words"].tolist()) - {-1}


def test_rarity_counts_images_not_words():
    signatures = some_signatures(50)
    weights = nominate.rarity(signatures, SIZE)
    for word in (0, 7, 499):
        having = sum(word in words_of(row) for row in signatures)
        assert weights[word] == pytest.approx(np.log(1 + 50 / max(having, 1)), rel=1e-6)


@pytest.mark.parametrize("workers", [1, 3])
def test_search_is_the_exact_best(workers, monkeypatch):
    monkeypatch.setattr(nominate, "ROWS", 16)
    views, signatures = some_views(4), some_signatures(200)
    weights = np.random.default_rng(2).uniform(0.5, 3, SIZE).astype(np.float32)
    best = nominate.search(views, weights, signatures, 20, workers)
    for query, one in enumerate(views):
        expected = [
            max(sum(weights[w] for w in words_of(row) & set(words.ravel().tolist())) for words in one.words)
            for row in signatures
        ]
        assert set(best.rows[query]) == set(np.argsort(-np.array(expected), kind="stable")[:20])
        np.testing.assert_allclose(best.scores[query], np.array(expected)[best.rows[query]], rtol=1e-5)
        assert best.floors[query] == best.scores[query].min()


def test_words_are_counted_that_one_map_explains():
    (views,) = some_views(1)
    signature = some_signatures(1)[0]
    signature["words"] = -1
    chosen = [2, 5, 9, 12, 20, 21, 28, 29]  # eight features of the second view, rotated and shifted; two elsewhere
    turned = views.points[1][chosen] @ np.array([[0, 1.2], [-1.2, 0]]) + [200, 20]
    turned[6:] = [[3, 3], [250, 240]]
    signature["words"][:8] = [views.words[1][k, k % nominate.PROBES] for k in chosen]
    signature["places"][:8] = turned.clip(0, 255).round()
    weights = np.ones(SIZE, np.float32)
    assert nominate.consistent_words(views, weights, signature[None]).tolist() == [6]
    signature["words"][6:] = -1  # the six alone are still enough
    assert nominate.consistent_words(views, weights, signature[None]).tolist() == [nominate.MIN_CONSISTENT] == [6]
    signature["places"][:8] = 100  # all at one place: no map
    assert nominate.consistent_words(views, weights, signature[None]).tolist() == [0]
    signature["words"] = -1
    assert nominate.consistent_words(views, weights, signature[None]).tolist() == [0]


def test_floors_are_what_a_row_had_to_reach():
    views, signatures = some_views(3), some_signatures(300)
    weights = nominate.rarity(signatures, SIZE)
    for one, query in zip(
        nominate.nominate(views, weights, signatures, 1, keep_shared=100, keep=10, least=0), views, strict=True
    ):
        assert len(one.rows) == 10 and (np.diff(one.scores) <= 0).all()
        assert one.consistent_floor == one.scores[-1] and one.shared_floor > 0
        np.testing.assert_array_equal(nominate.consistent_words(query, weights, signatures[one.rows]), one.scores)
    few = nominate.nominate(views, weights, signatures[:20], 1, least=40)
    assert all(len(one.rows) == 0 and one.consistent_floor == 40 and one.shared_floor == 0 for one in few)


def test_a_vocabulary_gives_the_nearest_words():
    descriptors = np.random.default_rng(3).random((400, 128), dtype=np.float32)
    vocabulary = Vocabulary.learn(descriptors)
    words = vocabulary.nearest(descriptors, 12)
    np.testing.assert_array_equal(words[:, 0], vocabulary.nearest(descriptors, 1)[:, 0])
    values = (descriptors - vocabulary.mean) @ vocabulary.axes
    first, second = vocabulary.codebooks
    distances = (
        np.linalg.norm(values[:, None, :16] - first, axis=2)[:, :, None] ** 2
        + np.linalg.norm(values[:, None, 16:] - second, axis=2)[:, None, :] ** 2
    ).reshape(400, -1)
    assert distances.shape[1] == vocabulary.size and (words[:, 0] == distances.argmin(axis=1)).all()
    own = np.take_along_axis(distances, words, axis=1)
    assert (np.diff(own, axis=1) >= -1e-5).all() and all(len(set(row)) == 12 for row in words.tolist())


def test_signatures_on_disk_are_those_of_the_images():
    images, done = np.random.default_rng(2).integers(0, 255, (5, 320, 320), dtype=np.uint8), []
    images[3] = 0  # an empty image: no words
    vocabulary, _ = nominate.prepare(images[:2], 1)
    expected = np.stack([nominate.signature(image, vocabulary) for image in images])
    assert (expected["words"][3] == -1).all() and (expected["words"][0] >= 0).all()
    with tempfile.TemporaryFile() as handle:
        signatures = nominate.write_signatures(images, vocabulary, handle, 2, done.append)
        np.testing.assert_array_equal(signatures[0:5], expected)
        np.testing.assert_array_equal(signatures[np.array([4, 1])], expected[[4, 1]])
        assert len(signatures) == 5 == sum(done) and handle.tell() == 5 * 384
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(UserError, match="signatures: No space left"):
        nominate.write_signatures(images[:1], vocabulary, file, 1)


def test_memory_does_not_grow_with_the_training_set(tmp_path):
    views, block = some_views(4), some_signatures(5000)
    weights, peaks = np.ones(SIZE, np.float32), []
    for times in (4, 16):
        with tempfile.TemporaryFile(dir=tmp_path) as file:
            file.write(times * block.tobytes())
            file.flush()
            tracemalloc.start()
            nominate.nominate(views, weights, nominate.SignatureFile(file, times * len(block)), 1)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < times * block.nbytes, peaks


@pytest.mark.long
def test_planted_copies_in_real_radiographs_are_found_dropped_and_shown(shared, tmp_path):
    out = tmp_path / "data"
    few = ["--workers", "1", "--audit_copies", "53", "--audit_unrelated", "40"]
    data_prep(["build", "--data_root", str(shared / "real_cxr"), "--out", str(out), *few])
    planted = json.loads((shared / "real_cxr" / "planted_overlaps.json").read_text())
    report = json.loads((out / "overlap_report.json").read_text())

    def image_id(path: str) -> str:
        parts = path.rsplit(".", 1)[0].split("/")
        return (
            "/".join(["rexgradient", parts[2], parts[3], parts[-1]])
            if parts[0] == "rexgradient"
            else "/".join(part for part in parts if part != "PNG")
        )

    pairs = {(image_id(entry["copy"]), image_id(entry["of"])) for entry in planted}
    near = {(m["a_id"], m["b_id"]) for check in report["checks"] if check["kind"] == "near" for m in check["matches"]}
    assert near == pairs
    assert {item["id"] for item in report["left_out_images"]} == {copy for copy, _ in pairs}
    trained = (out / "impressions.csv").read_text()
    page = (out / "overlap_report.html").read_text()
    assert not any(copy in trained for copy, _ in pairs)
    assert all(copy in page and original in page for copy, original in pairs)
    measured = report["summary"]
    assert measured["recall"] >= 0.9 and measured["false_alarm_rate"] == 0.0
    assert measured["dropped"] == 4 and measured["image_pairs_compared"] == 154 * 47 + 29 * 18


def test_the_best_are_cut_when_twice_as_many_have_gathered():
    best = nominate.Best(2, 3)
    best.add(10, np.array([[5, 0], [4, 0], [6, 0], [5, 0], [1, 0]], np.float32))
    assert best.rows[0].tolist() == [10, 11, 12, 13, 14] and best.floors.tolist() == [0, 0] and not len(best.rows[1])
    best.add(20, np.array([[4, 0]], np.float32))
    assert best.rows[0].tolist() == [12, 10, 13] and best.scores[0].tolist() == [6, 5, 5]  # first of equal scores
    assert best.floors.tolist() == [5, 0]
    best.add(30, np.array([[5, 0], [5.5, 1]], np.float32))
    assert best.rows[0].tolist() == [12, 10, 13, 31] and best.rows[1].tolist() == [31]
