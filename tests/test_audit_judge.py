"""The mathematics of the audit's second stage, each part compared with an independent computation."""

import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from chexzero.imaging.image_files import ImageFiles, images_in
from data_prep.overlap import disguise, features, near, verify
from data_prep.overlap.features import extract  # before `conftest` replaces it by one that remembers
from data_prep.overlap.verify import Comparison, Prepared

WHOLE = np.ones((320, 320), np.float32)
SHIFT = [[1, 0, 5], [0, 1, -7]]


def noise(seed: int = 0, sigma: float = 4.0) -> np.ndarray:
    """Noise of one grain size, uint8 (320, 320), mean 128."""
    values = gaussian_filter(np.random.default_rng(seed).standard_normal((320, 320)), sigma)
    return np.clip(128 + 40 * values / values.std(), 0, 255).astype(np.uint8)


def bare(image: np.ndarray, mask: np.ndarray = WHOLE) -> Prepared:
    return Prepared(image, mask, features.Features(np.empty((0, 2)), np.empty((0, 128))))


def shift(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0, x], [0, 1, y]])


def test_correlations_are_pearsons_over_the_mask():
    rng = np.random.default_rng(0)
    x, y, m = rng.normal(5, 2, (4, 200)), rng.normal(-3, 2, (4, 200)), (rng.random((4, 200)) < 0.7).astype(float)
    y += 0.5 * x
    m[3] = 1
    expected = [np.corrcoef(x[k][m[k] > 0], y[k][m[k] > 0])[0, 1] for k in range(4)]
    np.testing.assert_allclose(verify.correlations(x, y, m), expected, atol=1e-6)
    x[~(m > 0)] = 1e3  # masked pixels have no influence
    np.testing.assert_allclose(verify.correlations(x, y, m), expected, atol=1e-6)
    assert verify.correlations(np.full((1, 9), 7.0), x[:1, :9], np.ones((1, 9)))[0] == 0  # flat


def test_the_local_mean_is_taken_over_the_mask_alone():
    picture, mask = noise().astype(np.float32), WHOLE.copy()
    mask[:, 200:] = 0
    weights = gaussian_filter(mask.astype(float), 3, mode="mirror", truncate=4)
    expected = gaussian_filter((picture * mask).astype(float), 3, mode="mirror", truncate=4) / (weights + 1e-6)
    found = verify.local_mean(picture, mask, 3)
    np.testing.assert_allclose(found[:, :200], expected[:, :200], atol=0.2)
    picture[:, 200:] = 0
    np.testing.assert_array_equal(verify.local_mean(picture, mask, 3), found)


def test_texture_is_a_band_of_unit_contrast():
    mask = WHOLE.copy()
    mask[:40] = 0
    picture = noise(sigma=5)
    found = verify.texture(picture, mask)
    assert (found[:40] == 0).all()

    def mean(sigma):
        return verify.local_mean(picture.astype(np.float32), mask, sigma)

    band = (mean(verify.FINE_SIGMA) - mean(verify.COARSE_SIGMA)) * mask
    energy = cv2.blur((band * band).astype(np.float64), (20, 20))
    np.testing.assert_allclose(found, band / (np.sqrt(energy) + 0.5), atol=2e-3)
    assert found[60:].std() == pytest.approx(1, abs=0.1)
    assert np.corrcoef(found[60:].ravel(), picture[60:].ravel())[0, 1] > 0.6  # no inversion
    np.testing.assert_allclose(verify.texture((picture // 2 + 20).astype(np.uint8), mask), found, atol=0.6)
    assert np.abs(verify.texture(np.full((320, 320), 90, np.uint8), WHOLE)).max() < 1e-3


def test_tiles_are_squares_of_the_picture():
    values = np.arange(320 * 320, dtype=np.float32).reshape(320, 320)
    tiles = verify._tiles(values)
    assert tiles.shape == (64, 1600)
    for row, column in ((0, 0), (0, 7), (3, 5), (7, 7)):
        square = values[40 * row : 40 * row + 40, 40 * column : 40 * column + 40]
        np.testing.assert_array_equal(tiles[8 * row + column], square.ravel())


def test_agreement_of_a_picture_with_its_moved_self():
    picture = noise()
    moved = cv2.warpAffine(picture, shift(24, -16), (320, 320))  # `moved` has the pixel (x, y) at (x + 24, y - 16)
    mask = cv2.warpAffine(WHOLE, shift(24, -16), (320, 320))
    score, overlap = verify.texture_agreement(bare(picture), bare(moved, mask), shift(24, -16))
    assert score > 0.98 and overlap == pytest.approx(1, abs=0.01)  # all of the smaller one
    assert verify.texture_agreement(bare(picture), bare(moved, mask), shift(-24, 16))[0] < 0.2
    assert verify.texture_agreement(bare(picture), bare(noise(1)), shift(0, 0))[0] < 0.2
    assert verify.texture_agreement(bare(picture), bare(255 - picture), shift(0, 0))[0] < -0.98


def test_the_overlap_is_the_shared_part_of_the_smaller_picture():
    picture, half = noise(), WHOLE.copy()
    half[160:] = 0
    assert verify.texture_agreement(bare(picture), bare(picture, half), shift(0, 0))[1] == pytest.approx(1, abs=0.01)
    assert verify.texture_agreement(bare(picture, half), bare(picture), shift(0, 0))[1] == pytest.approx(1, abs=0.01)
    assert verify.texture_agreement(bare(picture), bare(picture), shift(80, 0))[1] == pytest.approx(0.75, abs=0.01)
    zoom = np.array([[0.5, 0, 0], [0, 0.5, 0]])  # b shows the content of a at half the size
    small = WHOLE.copy()
    small[:, 160:] = small[160:] = 0
    assert verify.texture_agreement(bare(picture), bare(picture, small), zoom)[1] == pytest.approx(1, abs=0.02)
    corner = np.zeros_like(WHOLE)
    corner[:80, :80] = 1
    assert verify.texture_agreement(bare(picture), bare(picture, corner), shift(0, 0))[0] == 0  # four tiles: too few


def test_features_are_matched_both_ways_and_without_a_rival():
    def unit(*degrees):
        angle = np.radians(degrees)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    a = unit(0, 90, 200, 203)
    b = unit(1, 100, 101, 201.5, 300)
    # 0 and 1 are alone; 90 has rivals at 100 and 101; 200 and 203 are as near to 201.5, but only one may have it
    assert verify.matched(a, b)[:, 1].tolist() == [0, 3]
    assert len(verify.matched(a[:1], b)) == 0 == len(verify.matched(a, b[:1]))
    for factor, kept in ((0.97, False), (1.06, True)):  # the second is 1 / 0.85 times as far, about (chords, not arcs)
        found = verify.matched(unit(0, 180), unit(10, -10 / verify.RATIO * factor, 100, 260))
        assert ([0, 0] in found.tolist()) is kept


@pytest.mark.parametrize(
    ("matrix", "sane"),
    [
        ([[1, 0], [0, 1]], True),
        ([[0, -1], [1, 0]], True),
        ([[-1, 0], [0, 1]], False),  # mirrored copies are tried as a separate pose
        ([[1.34, 0], [0, 1]], True),
        ([[1.36, 0], [0, 1]], False),
        ([[2.99, 0], [0, 2.99]], True),
        ([[3.01, 0], [0, 3.01]], False),
        ([[0.31, 0], [0, 0.31]], True),
        ([[0.29, 0], [0, 0.29]], False),
        ([[0, 0], [0, 0]], False),
    ],
)
def test_maps_that_a_copy_may_have(matrix, sane):
    assert verify.is_sane(np.column_stack([np.array(matrix, float), [50, -50]])) is sane


@pytest.mark.parametrize(
    ("inliers", "share", "score", "overlap", "same"),
    [
        (10, 0.1, 0.92, 0.3, True),
        (9, 1.0, 0.99, 1.0, False),
        (69, 0.74, 0.91, 1.0, False),
        (69, 0.75, 0.82, 1.0, False),
        (19, 0.75, 0.83, 1.0, False),
        (20, 0.75, 0.83, 0.3, True),
        (70, 0.1, 0.5, 0.3, True),
        (300, 1.0, 0.49, 1.0, False),
        (300, 1.0, 0.99, 0.29, False),
    ],
)
def test_what_is_called_one_picture(inliers, share, score, overlap, same):
    matrix = np.array([[1.2, 0, 0], [0, 1, 0]])
    comparison = Comparison(inliers, share, score, overlap, matrix, False, False)
    assert comparison.same is same and comparison.stretch == pytest.approx(1.2)


def pair_of_features(right: int, wrong: int, matrix: list[list[float]]) -> list[Prepared]:
    """Two pictures whose features all match, `right` of them in agreement with the map."""
    rng = np.random.default_rng(right)
    descriptors = np.abs(rng.normal(size=(right + wrong, 128))).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    here = rng.uniform(100, 220, (right + wrong, 2)).astype(np.float32)
    there = (here @ np.array(matrix, np.float32)[:, :2].T + np.array(matrix, np.float32)[:, 2]).astype(np.float32)
    there[right:] = rng.uniform(0, 320, (wrong, 2))
    points = zip((here, there), (noise(), cv2.warpAffine(noise(), np.array(matrix, float), (320, 320))), strict=True)
    return [Prepared(image, WHOLE, features.Features(place, descriptors**2)) for place, image in points]


@pytest.mark.parametrize(
    ("right", "wrong", "matrix", "inliers"),
    [
        (10, 0, SHIFT, 10),
        (9, 0, SHIFT, 0),  # too few features to decide
        (40, 20, SHIFT, 40),
        (40, 20, [[0.9, -0.2, 40], [0.2, 0.9, -20]], 40),
        (60, 0, [[1.6, 0, 0], [0, 1, 0]], 0),  # no copy is stretched that much
    ],
)
def test_a_map_is_fitted_to_the_features_that_agree(right, wrong, matrix, inliers):
    a, b = pair_of_features(right, wrong, matrix)
    found, share, fitted = verify._fit(a.features, b.features)
    assert found == pytest.approx(inliers, abs=1 if wrong else 0)
    if inliers:
        assert share == pytest.approx(right / (right + wrong), abs=0.03)
        np.testing.assert_allclose(fitted, matrix, atol=0.05)
    else:
        assert fitted is None and share == 0


def test_ten_inliers_are_looked_at_and_fewer_are_no_copy():
    a, b = pair_of_features(8, 30, SHIFT)
    assert verify.compare([a], b) is None
    a, b = pair_of_features(10, 0, SHIFT)
    found = verify.compare([a], b)
    assert found is not None and found.inliers == 10 and found.score > 0.9


def test_six_tiles_are_enough_and_five_are_not():
    for tiles, agreement in ((6, True), (5, False)):
        strip = np.zeros_like(WHOLE)
        strip[35:85, 35 : 45 + 40 * tiles] = 1  # the picture's edge, four pixels of it, is no texture
        score, _ = verify.texture_agreement(bare(noise(), strip), bare(noise()), shift(0, 0))
        assert (score > 0.9) is agreement and (score == 0) is not agreement


@pytest.mark.parametrize("pose", features.POSES)
def test_a_copy_is_moved_onto_its_original(pose):
    mirrored, inverted = pose
    picture = noise(3, 3)
    moved = cv2.warpAffine(picture, np.array([[0.9, 0, 20.0], [0, 0.9, 10]]), (320, 320))
    copy = features.posed(moved, mirrored, inverted)
    result = verify.compare(verify.prepare_poses(picture), verify.prepare(copy))
    assert result is not None and result.same and (result.mirrored, result.inverted) == pose
    assert result.inliers > 100 and result.score > 0.95
    np.testing.assert_allclose(np.abs(np.diag(result.matrix[:, :2])), 0.9, atol=0.01)
    again = verify.aligned(copy, result).astype(float)
    assert np.corrcoef(again[20:-20, 20:-20].ravel(), picture[20:-20, 20:-20].ravel())[0, 1] > 0.95
    assert verify.compare(verify.prepare_poses(noise(4, 3)), verify.prepare(copy)) is None


def test_images_of_another_size_are_compared_at_320():
    large = cv2.resize(noise(3, 3), (448, 448), interpolation=cv2.INTER_CUBIC)
    result = verify.compare(verify.prepare_poses(noise(3, 3)), verify.prepare(large))
    assert result is not None and result.same
    np.testing.assert_allclose(result.matrix[:, :2], np.eye(2), atol=0.02)
    assert result.matrix[:, 2] == pytest.approx(0, abs=1)
    assert verify.prepare(large).mask.shape == (320, 320)


def test_the_content_box_leaves_flat_lines_away():
    image = np.full((320, 320), 77, np.uint8)
    image[40:200, 30:310] = noise()[40:200, 30:310]
    assert features.content_box(image) == (slice(40, 200), slice(30, 310))
    image[0, :5] = 255  # a speck on the border does not make it part of the picture
    assert features.content_box(image) == (slice(40, 200), slice(30, 310))
    inverted = features.posed(image, False, True)
    np.testing.assert_array_equal(inverted[40:200, 30:310], 255 - image[40:200, 30:310])
    np.testing.assert_array_equal(inverted[:40], image[:40])


def test_features_are_spread_and_stand_where_the_picture_has_them():
    image = np.full((320, 320), 60, np.uint8)
    image[100:220, 80:240] = noise(5, 2)[100:220, 80:240]
    found = extract(image, 144, 64)
    assert found.points.shape == (64, 2) and found.descriptors.shape == (64, 128)
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-5)
    assert (found.points >= [79, 99]).all() and (found.points <= [241, 221]).all()
    cells = ((found.points - [80, 100]) * 5 / [160, 120]).astype(int).clip(0, 4) @ (1, 5)
    assert np.bincount(cells, minlength=25).max() <= 6  # of 64 in 25 cells
    assert len(extract(np.zeros((320, 320), np.uint8), 144, 64).points) == 0


@pytest.mark.parametrize(
    ("height", "width", "size"), [(160, 200, (180, 144)), (60, 320, (288, 54)), (300, 100, (96, 288))]
)
def test_the_shorter_side_is_resized_unless_the_longer_would_be_twice_as_long(height, width, size, monkeypatch):
    image = np.full((320, 320), 77, np.uint8)
    image[:height, :width] = noise()[:height, :width]
    seen, real = [], cv2.resize
    monkeypatch.setattr(cv2, "resize", lambda *args, **options: seen.append(args[1]) or real(*args, **options))
    extract(image, 144, 64)
    assert seen == [size]


def test_the_pairs_that_should_not_be_called_equal(monkeypatch):
    """Each pair of unrelated images once, the most similar first."""
    alike = [([0, 1, 2], [9, 8, 7]), ([0, 2], [8, 6]), ([0, 1], [7, 6])]
    found = [near.nominate.Nominations(np.array(rows), np.array(scores), 0, 0) for rows, scores in alike]
    monkeypatch.setattr(near.nominate, "rarity", lambda *_: None)
    monkeypatch.setattr(near.nominate, "nominate", lambda *_, **__: found)
    monkeypatch.setattr(near, "second_stage", lambda _search, picked, *_: picked)
    search = SimpleNamespace(signatures=None, vocabulary=SimpleNamespace(size=1), views=None, prepared=None)
    for n, rows in ((1, {0: [2]}), (5, {0: [2], 1: [2]})):
        picked = near.unrelated_pairs(search, lambda i, j: {i, j} == {0, 1}, n, 1)
        assert {query: one.rows.tolist() for query, one in picked.items()} == rows


class Ends:
    """A generator that always draws the lowest or the highest number."""

    def __init__(self, greatest: bool):
        self.greatest = greatest

    def integers(self, low: int, high: int | None = None) -> int:
        low, high = (0, low) if high is None else (low, high)
        return high - 1 if self.greatest else low

    def random(self) -> float:
        return 0.999 if self.greatest else 0.0

    def choice(self, values: list) -> object:
        return values[-1 if self.greatest else 0]


def test_a_box_may_lie_anywhere_within_the_picture():
    picture = np.full((40, 60), 100, np.uint8)
    for greatest in (False, True):
        changed = disguise._box(picture, 25, Ends(greatest), picture) != 100
        rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
        assert (rows[0], rows[-1]) == ((20, 39) if greatest else (0, 19))
        assert (columns[0], columns[-1]) == ((30, 59) if greatest else (0, 29))


def test_a_window_clips_the_ends_and_uses_the_whole_range():
    picture = np.arange(100, 200, dtype=np.uint8)[:, None]
    found = disguise._window(picture, 10, np.random.default_rng(0), picture)[:, 0].astype(int)
    low, high = np.percentile(picture, [10, 90])
    np.testing.assert_allclose(found, np.clip((picture[:, 0] - low) / (high - low) * 255, 0, 255), atol=0.5)
    assert (found[:10] == 0).all() and (found[-10:] == 255).all()


def test_another_exposure_of_a_patient_is_no_copy_in_either_order(shared):
    by_patient: dict[str, list[Path]] = {}
    for path in images_in(shared / "real_cxr"):
        by_patient.setdefault(re.search(r"patient\d+|GRDN\w+", str(path))[0], []).append(path)
    judged, copies = 0, []
    for paths in (each for each in by_patient.values() if len(each) > 1):
        images = [verify.prepare_poses(image) for image in ImageFiles(paths)[:]]
        for (a, x), (b, y) in itertools.permutations(enumerate(images), 2):
            found = verify.compare(x, y[0])
            judged += 1
            if found and found.same and found.score < 0.995:  # above: the same picture, stored twice
                copies.append((paths[a], paths[b], found))
    assert judged >= 60 and copies == []


def test_a_crop_takes_from_both_sides():
    picture, rng = noise(), np.random.default_rng(0)
    found = disguise.OPERATIONS["cropped"](picture[:200], 10, rng, picture)
    np.testing.assert_array_equal(found, picture[20:180, 32:288])


def test_disguises_are_named_by_their_values_where_there_are_several_or_a_unit():
    names = {one.name for one in disguise.DISGUISES}
    assert {"grey levels", "gamma 0.4", "window 5 % at both ends", "inverted", "JPEG quality 5"} <= names


@pytest.mark.parametrize("images", [1, 2, 6, 53, 54])
def test_each_image_is_planted_once_in_each_disguise_before_any_twice(images, monkeypatch):
    monkeypatch.setattr(near, "plant", lambda *_: (True, 1.0, True))
    monkeypatch.setattr(disguise, "disguised", lambda *_: None)
    search = SimpleNamespace(images=list(range(images)))
    every = len(disguise.DISGUISES) * images
    found = near.planted_copies(search, every + 5, 0, 1)
    assert len(found) == len({(copy.query, copy.disguise) for copy in found}) == every
    first = near.planted_copies(search, 12, 0, 1)
    assert len({copy.disguise for copy in first}) == 12 and len({copy.query for copy in first}) == min(12, images)


def test_the_stretch_of_a_map_is_the_ratio_of_its_singular_values():
    for linear in np.random.default_rng(0).normal(size=(30, 2, 2)):
        large, small = np.linalg.svd(linear, compute_uv=False)
        assert features.stretch(np.column_stack([linear, [3, 4]])) == pytest.approx(large / small, rel=1e-6)
    assert features.stretch(np.array([[0, -2.0, 5], [2, 0, 1]])) == 1
    assert features.stretch(np.array([[1.0, 2, 0], [2, 4, 0]])) == np.inf


def disguise_by(name: str, value: float, picture: np.ndarray, greatest: bool = False) -> np.ndarray:
    other = np.full((100, 80), 9, np.uint8)
    return disguise.OPERATIONS[name](picture, value, Ends(greatest), other)


TALL = noise()[:200, :100]


@pytest.mark.parametrize(
    ("name", "value", "least", "greatest"),
    [
        ("bordered", 10, np.pad(TALL, 20), np.pad(TALL, 20)),
        ("pasted", 1.5, np.pad(TALL, ((0, 100), (0, 50))), np.pad(TALL, ((100, 0), (50, 0)), constant_values=255)),
        ("one_side", 10, TALL[20:], TALL[:, 10:]),
        ("beside", 0, np.hstack([TALL, np.full((200, 160), 9)]), np.hstack([np.full((200, 160), 9), TALL])),
        ("inverted", 0, 255 - TALL, 255 - TALL),
        ("turned", 270, np.rot90(TALL, 3), np.rot90(TALL, 3)),
        ("levels", 32, TALL - TALL % 8, TALL - TALL % 8),
        ("gamma", 2, np.rint((TALL / 255.0) ** 2 * 255), np.rint((TALL / 255.0) ** 2 * 255)),
    ],
)
def test_disguises_at_the_ends_of_what_is_drawn(name, value, least, greatest):
    np.testing.assert_array_equal(disguise_by(name, value, TALL), least)
    np.testing.assert_array_equal(disguise_by(name, value, TALL, greatest=True), greatest)


def test_stretched_and_reduced_pictures_have_the_size_that_is_named():
    assert disguise_by("stretched", 10, TALL).shape == (200, 110)
    assert disguise_by("stretched", 10, TALL, greatest=True).shape == (220, 100)
    assert disguise_by("pixels", 50, TALL).shape == (50, 25)


def test_a_turn_is_about_the_middle():
    picture = np.zeros((200, 120), np.uint8)
    picture[98:103, 78:83] = 255  # 20 pixels to the right of the middle
    for greatest, y in ((False, 120), (True, 80)):
        rows, columns = np.nonzero(disguise_by("rotated", 90, picture, greatest) > 128)
        assert (rows.mean(), columns.mean()) == pytest.approx((y, 60), abs=0.5)


@pytest.mark.parametrize("greatest", [False, True])
@pytest.mark.parametrize("lines", [2, 4])
def test_burned_in_lines_stand_below_each_other_within_the_picture(lines, greatest):
    written = disguise_by("text", lines, np.zeros((320, 320), np.uint8), greatest).any(axis=1)
    edges = np.flatnonzero(np.diff(written.astype(int)))
    assert len(edges) == 2 * lines and (np.diff(edges[::2]) == 35).all()  # evenly spaced
    assert edges[0] < 30 if not greatest else 275 < edges[-1] < 320


def test_a_disguised_picture_fills_the_square_and_lies_in_its_middle():
    for side in (640, 16):
        placed = disguise._placed(np.full((side, side // 2), 200, np.uint8))
        assert (placed[:, 80:240] > 150).all() and not placed[:, :80].any() and not placed[:, 240:].any()
    assert disguise._placed(np.full((640, 1), 200, np.uint8)).any(axis=1).all()
    framed = np.pad(TALL, ((3, 5), (7, 11)))
    np.testing.assert_array_equal(disguise._content(framed), TALL)
    assert disguise._content(np.zeros((4, 6), np.uint8)).shape == (4, 6)


@pytest.mark.parametrize("images", [2, 53, 106])
def test_a_disguise_that_needs_another_picture_gets_another(images, monkeypatch):
    pairs = []
    monkeypatch.setattr(near, "plant", lambda *_: (True, 1.0, True))
    monkeypatch.setattr(disguise, "disguised", lambda image, _kind, _rng, other: pairs.append((image, other)))
    near.planted_copies(SimpleNamespace(images=list(range(images))), 300, 0, 1)
    assert len(pairs) == min(300, images * len(disguise.DISGUISES)) and all(a != b for a, b in pairs)


@pytest.mark.parametrize("span", [9, 10])
def test_a_line_is_flat_whose_bulk_spans_less_than_10(span):
    """Three of a hundred pixels at each end are ignored."""
    line = np.repeat(np.array([0, 100, 100 + span, 255], np.uint8), [3, 93, 1, 3])
    lines = np.stack([np.random.default_rng(k).permutation(line) for k in range(200)])
    found = [features._span(one[None].repeat(2, 0)) for one in lines]
    assert found == [slice(0, 2)] * 200
    image = np.full((202, 100), 7, np.uint8)
    image[1:-1] = lines
    assert features._span(image) == (slice(1, 201) if span == 10 else slice(0, 202))


@pytest.mark.parametrize(
    ("line", "live"), [([50], False), ([0, 50], True), ([0, 50, 50], False), ([0, 25, 50, 50], True)]
)
def test_short_lines_keep_a_bulk(line, live):
    """One pixel at each end is ignored if there are more than two."""
    lines = np.array([[7] * len(line), line, [7] * len(line)], np.uint8)
    assert features._span(lines) == (slice(1, 2) if live else slice(0, 3))


def test_every_cell_gives_its_strongest_features_before_another_gives_more():
    first, last = [(1, 1)] * (features.PER_ROUND + 1), [(99, 99)]
    strengths = np.array([*range(9, 9 - len(first), -1), 1.0])
    order = features._spread(np.array(first + last, np.float32), strengths, (100, 100))
    assert order.tolist() == [*range(features.PER_ROUND), len(first), features.PER_ROUND]
    at_the_edge = features._spread(np.array([(100, 100), (99, 99)], np.float32), np.array([1.0, 2.0]), (100, 100))
    assert at_the_edge.tolist() == [1, 0]
