"""The fast way to shrink gives Pillow's bytes, or leaves the work to Pillow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chexzero import resample
from chexzero.data_process import preprocess

LANCZOS = Image.Resampling.LANCZOS


def picture(height: int, width: int, kind: str) -> np.ndarray:
    rng = np.random.default_rng(height * 10_000 + width)
    noise = rng.integers(0, 256, (height, width), np.uint8)
    return {"noise": noise, "black and white": (noise > 127).astype(np.uint8) * 255, "bright": noise // 8 + 224}[kind]


@settings(max_examples=12, deadline=None)
@given(height=st.integers(1030, 3400), width=st.integers(1030, 3400),
       kind=st.sampled_from(["noise", "black and white", "bright"]), side=st.sampled_from([320, 320, 257, 511]))
def test_equal_to_pillow(height, width, kind, side):
    size = tuple(int(length * side / max(height, width)) for length in (width, height))
    image = Image.fromarray(picture(height, width, kind))
    assert np.array_equal(np.asarray(resample.lanczos(image, size)), np.asarray(image.resize(size, LANCZOS)))


@pytest.mark.parametrize(("height", "width", "fast"), [
    (2320, 2828, True), (2828, 2320, True), (1024, 1024, True), (3200, 3000, True),
    (5000, 4000, False), (3000, 1000, False), (900, 900, False), (1100, 4000, False)])
def test_where_it_is_exact(height, width, fast):
    size = tuple(int(length * 320 / max(height, width)) for length in (width, height))
    assert resample.can_shrink(height, width, size[1], size[0]) is fast


def test_sums_stay_exact_in_float32():
    """The largest sums that weights and pixels allow are whole numbers below 2**24."""
    for old, new in [(3200, 320), (2828, 320), (1025, 1024), (3100, 317)]:
        assert resample._taps(old, new) <= resample.MOST_TAPS
        for _, start, stop, weights in resample._weights(old, new):
            assert stop - start == len(weights) and 255 * np.abs(weights).sum(axis=0).max() < 2**24
            high, low = np.hsplit(weights.sum(axis=0, dtype=np.float64), 2)
            total = high * 2**resample.LOW + low
            assert all((abs(total - 2**resample.SHIFT) < 64) | (total == 0)), "weights add up to 1"


def test_a_pillow_that_computes_otherwise_is_not_contradicted(monkeypatch):
    resample._agrees_with_pillow.cache_clear()
    monkeypatch.setattr(resample, "SHIFT", 21)  # as if Pillow had another precision than is thought
    resample._weights.cache_clear()
    try:
        image = Image.fromarray(picture(1500, 1400, "noise"))
        assert np.array_equal(np.asarray(preprocess(image)), np.asarray(preprocess(image.convert("RGB"))))
        assert not resample.can_shrink(1500, 1400, 320, 298)
    finally:
        resample._agrees_with_pillow.cache_clear()
        resample._weights.cache_clear()
