"""Fast downscaling gives Pillow's bytes, or falls back to Pillow."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chexzero.common import resample
from chexzero.data_process import preprocess

LANCZOS = Image.Resampling.LANCZOS


def picture(height: int, width: int, kind: str) -> np.ndarray:
    rng = np.random.default_rng(height * 10_000 + width)
    noise = rng.integers(0, 256, (height, width), np.uint8)
    return {"noise": noise, "black and white": (noise > 127).astype(np.uint8) * 255, "bright": noise // 8 + 224}[kind]


@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(1030, 5000),
    width=st.integers(1030, 5000),
    kind=st.sampled_from(["noise", "black and white", "bright"]),
    side=st.sampled_from([320, 320, 257, 511]),
)
def test_equal_to_pillow(height, width, kind, side):
    size = tuple(int(length * side / max(height, width)) for length in (width, height))
    image = Image.fromarray(picture(height, width, kind))
    assert np.array_equal(np.asarray(resample.lanczos(image, size)), np.asarray(image.resize(size, LANCZOS)))


@pytest.mark.parametrize(
    ("height", "width", "fast"),
    [
        (2320, 2828, True),
        (2828, 2320, True),
        (1024, 1024, True),
        (3200, 3000, True),
        (5000, 4000, True),
        (1100, 4000, True),
        (1500, 1000, True),
        (1502, 1000, False),
        (3000, 1000, False),
        (900, 900, False),
    ],
)
def test_where_it_is_exact(height, width, fast):
    size = tuple(int(length * 320 / max(height, width)) for length in (width, height))
    assert resample.can_shrink(height, width, size[1], size[0]) is fast


def test_the_error_of_a_float32_sum_stays_below_its_bound():
    """Includes the worst rows: white where the weights are positive, or where they are negative."""
    for old, new in [(3200, 320), (2828, 320), (1025, 1024), (12000, 317)]:
        kernel = resample._filter(old, new)
        assert (np.abs(kernel.weights.sum(1) - 2**resample.SHIFT) < 64).all(), "weights add up to 1"
        assert kernel.error < 0.05, "few sums are computed twice"
        for i, (_, _, weights) in enumerate(kernel.groups):
            some = np.random.default_rng(i).random((8, len(weights))) > 0.5
            white = np.vstack([weights.T > 0, weights.T < 0, some])
            pixels = np.where(white, np.float32(255), np.float32(0))
            exact = pixels.astype(np.float64) @ weights.astype(np.float64)
            assert np.abs(pixels @ weights - exact).max() < kernel.error


def test_pixels_on_the_edge_of_two_grey_levels_are_rounded_as_pillow_does(monkeypatch):
    """Recomputing every sum in integers gives the same image as recomputing only the uncertain ones."""
    image = picture(1400, 1300, "noise")
    theirs = np.asarray(Image.fromarray(image).resize((297, 320), LANCZOS))
    assert np.array_equal(resample.shrink(image, 320, 297), theirs)
    exact = resample._filter.__wrapped__
    monkeypatch.setattr(resample, "_filter", lambda old, new: replace(exact(old, new), error=0.5))
    assert np.array_equal(resample.shrink(image, 320, 297), theirs)


def test_a_pillow_that_computes_otherwise_is_not_contradicted(monkeypatch):
    resample._agrees_with_pillow.cache_clear()
    monkeypatch.setattr(resample, "SHIFT", 21)  # as if Pillow's precision were different
    resample._filter.cache_clear()
    try:
        image = Image.fromarray(picture(1500, 1400, "noise"))
        assert np.array_equal(np.asarray(preprocess(image)), np.asarray(preprocess(image.convert("RGB"))))
        assert not resample.can_shrink(1500, 1400, 320, 298)
    finally:
        resample._agrees_with_pillow.cache_clear()
        resample._filter.cache_clear()


@pytest.mark.parametrize("size", [(1100, 600), (600, 1100), (1100, 1100), (1200, 600)])
def test_what_does_not_shrink_both_ways_is_left_to_pillow(size):
    assert not resample.can_shrink(1100, 1100, *size) and resample.can_shrink(1100, 1100, 1099, 1099)


def test_a_picture_just_tall_enough_is_still_pillows():
    image = picture(1500, 1000, "noise")
    theirs = np.asarray(Image.fromarray(image).resize((213, 320), LANCZOS))
    assert np.array_equal(resample.shrink(image, 320, 213), theirs)


@pytest.mark.parametrize(("mode", "fast"), [("L", True), ("RGB", False)])
def test_only_grey_images_take_the_fast_way(mode, fast, monkeypatch):
    shrunk = []
    monkeypatch.setattr(resample, "can_shrink", lambda *sizes: sizes == (90, 120, 30, 40))
    monkeypatch.setattr(resample, "shrink", lambda *_: shrunk.append(1) or np.zeros((30, 40), np.uint8))
    assert resample.lanczos(Image.new(mode, (120, 90)), (40, 30)).size == (40, 30) and bool(shrunk) is fast
