"""The first stage of the audit: exact, with floors that hold, in memory that does not grow; and real data."""

import json
import tempfile
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from chexzero.common.errors import UserError
from data_prep.__main__ import main as data_prep
from data_prep.overlap import nominate, signatures


def some_reliefs(n: int, seed: int = 0) -> np.ndarray:
    size = (n, signatures.MAP_SIZE, signatures.MAP_SIZE)
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def some_thumbs(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(-60, 60, (n, signatures.THUMB_SIZE**2)).astype(np.int8)


@pytest.mark.parametrize("workers", [1, 3])
def test_coarse_search_is_the_exact_best(workers, monkeypatch):
    monkeypatch.setattr(nominate, "ROWS", 64)
    templates, thumbs = nominate.coarse_templates(some_reliefs(5)), some_thumbs(1000)
    best = nominate.coarse_search(templates, thumbs, 40, workers)
    cells = thumbs.astype(float).reshape(-1, 16, 2, 16, 2).mean(axis=(2, 4)).reshape(-1, 256)
    cells /= np.linalg.norm(cells, axis=1, keepdims=True)
    expected = np.abs(np.einsum("sqd,nd->sqn", templates, cells)).max(axis=0)
    for query in range(5):
        assert set(best.rows[query]) == set(np.argsort(-expected[query])[:40])
        np.testing.assert_allclose(best.scores[query], expected[query][best.rows[query]], atol=1e-5)
        assert best.floors[query] == best.scores[query].min()


def test_floors_are_what_a_row_had_to_reach():
    reliefs, thumbs = some_reliefs(3), some_thumbs(300)
    found = nominate.nominate(reliefs, thumbs, 1, keep_coarse=100, keep_fine=10, threshold=0.0)
    for one, relief in zip(found, reliefs, strict=True):
        assert len(one.rows) == 10 and (np.diff(one.scores) <= 0).all()
        assert one.fine_floor == pytest.approx(one.scores[-1]) and one.coarse_floor > 0
        again, poses, signs = nominate.fine_scores(relief, thumbs[one.rows])
        np.testing.assert_allclose(again, one.scores, atol=1e-5)
        np.testing.assert_array_equal(np.array(nominate.FINE_POSES)[poses], one.poses)
        np.testing.assert_array_equal(signs, one.signs)
    few = nominate.nominate(reliefs, thumbs[:20], 1, threshold=0.9)
    assert all(len(one.rows) == 0 and one.fine_floor == 0.9 and one.coarse_floor == 0 for one in few)


def test_a_moved_scaled_and_inverted_relief_is_nominated_with_its_pose():
    reliefs, thumbs = some_reliefs(2), some_thumbs(50)
    smooth = signatures.local_contrast((40 * reliefs[0] + 128), np.ones((96, 96), np.float32), 4.0)
    pose = nominate.FINE_POSES[40]
    thumbs[17] = -nominate.posed(smooth, *pose)
    found = nominate.nominate(smooth[None], thumbs, 1)[0]
    assert found.rows[0] == 17 and found.signs[0] == -1 and found.scores[0] > 0.99
    assert tuple(found.poses[0]) == pose


def test_thumbnails_on_disk_are_those_of_the_images():
    images, done = np.random.default_rng(2).integers(0, 255, (7, 320, 320), dtype=np.uint8), []
    expected = np.stack([signatures.thumbnail(signatures.relief_map(image)) for image in images])
    with tempfile.TemporaryFile() as handle:
        thumbs = signatures.write_thumbnails(images, handle, 2, done.append)
        np.testing.assert_array_equal(thumbs[0:7], expected)
        np.testing.assert_array_equal(thumbs[np.array([5, 1])], expected[[5, 1]])
        assert len(thumbs) == 7 == sum(done) and handle.tell() == 7 * 1024


def test_a_full_disk_is_said():
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(UserError, match="thumbnails: No space left"):
        signatures.write_thumbnails(np.zeros((1, 320, 320), np.uint8), file, 1)


def test_memory_does_not_grow_with_the_training_set(tmp_path):
    reliefs, block = some_reliefs(4), some_thumbs(5000)
    peaks = []
    for times in (4, 16):
        with tempfile.TemporaryFile(dir=tmp_path) as file:
            file.write(times * block.tobytes())
            file.flush()
            tracemalloc.start()
            nominate.nominate(reliefs, signatures.ThumbnailFile(file, times * len(block)), 1)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 60e6 < times * block.nbytes, peaks


def test_planted_copies_in_real_radiographs_are_found_dropped_and_shown(shared, tmp_path):
    out = tmp_path / "data"
    data_prep(["build", "--data_root", str(shared / "real_cxr"), "--out", str(out), "--workers", "1"])
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
    assert Counter(check["found"] for check in report["checks"]) == {0: 15, 1: 1, 2: 2}  # one is equal to the byte
    measured = report["summary"]
    assert measured["recall"] == 1.0 and measured["recall_lower_95"] > 0.99 and measured["false_alarm_rate"] == 0.0
    assert measured["dropped"] == 4 and measured["image_pairs_compared"] == 154 * 47 + 29 * 18
