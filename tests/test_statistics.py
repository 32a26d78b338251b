"""AUROCs and intervals against scikit-learn, upstream's recorded numbers and the plain loop."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.utils import resample

from chexzero.common.errors import UserError
from chexzero.common.labels import COMPETITION_LABELS, LABELS
from chexzero.common.statistics import (
    auroc,
    bootstrap_auroc,
    mean_of_samples,
    mean_over_labels,
    paired_difference,
    percentile_interval,
    resample_counts,
)

GOLDEN = np.load(Path(__file__).parent / "golden" / "evaluation.npz")


def reference(truth, scores):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array(
            [roc_auc_score(t, s) if len(set(t)) == 2 else np.nan for t, s in zip(truth.T, scores.T, strict=True)]
        )


@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_auroc_equals_scikit_learn_with_ties(seed, n, levels):
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, (n, 3))
    scores = random.integers(0, levels, (n, 3)) / levels
    np.testing.assert_allclose(auroc(truth, scores), reference(truth, scores), atol=1e-12)
    boot = bootstrap_auroc(truth, scores, n_samples=5)
    for i, row in enumerate(boot):
        index = resample(np.arange(n), replace=True, random_state=i)
        np.testing.assert_allclose(row, reference(truth[index], scores[index]), atol=1e-12)


def test_exact_values_for_ties_and_missing_class():
    truth = np.array([[0, 1, 0], [1, 1, 0], [0, 1, 0], [1, 1, 0]])
    scores = np.array([[0.5, 0.1, 0.2], [0.5, 0.2, 0.2], [0.5, 0.3, 0.2], [0.5, 0.4, 0.2]])
    assert auroc(truth, scores)[0] == 0.5
    assert np.isnan(auroc(truth, scores)[1:]).all()
    assert np.isnan(bootstrap_auroc(truth, scores, 3)[:, 1:]).all()


def test_upstreams_recorded_numbers():
    truth, scores = GOLDEN["y_true"], GOLDEN["y_pred"]
    np.testing.assert_allclose(auroc(truth, scores), GOLDEN["auc"], rtol=0, atol=1e-9)
    boot = bootstrap_auroc(truth, scores, n_samples=200)
    np.testing.assert_allclose(boot, GOLDEN["boot"], atol=1e-6)  # recorded as float32
    lower, upper = percentile_interval(boot)
    np.testing.assert_array_equal(np.round([boot.mean(0), lower, upper], 4), GOLDEN["ci"])


def test_counts_are_scikit_learns_resamples():
    counts = resample_counts(500, 20, start=3)
    for i in range(20):
        drawn = resample(np.arange(500), replace=True, random_state=3 + i)
        np.testing.assert_array_equal(counts[:, i], np.bincount(drawn, minlength=500))


def test_blocks_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    truth, scores = random.integers(0, 2, (40, 2)), random.random((40, 2))
    whole = bootstrap_auroc(truth, scores, 50)
    monkeypatch.setattr("chexzero.common.statistics.BLOCK", 40 * 7)
    np.testing.assert_array_equal(bootstrap_auroc(truth, scores, 50), whole)


def test_interval_leaves_out_undefined_resamples():
    samples = np.full((1000, 2), np.nan)
    samples[100:300, 0] = np.arange(200)[::-1]
    lower, upper = percentile_interval(samples)
    assert (lower[0], upper[0]) == (int(0.025 * 200) - 1, int(0.975 * 200) - 1)
    assert np.isnan([lower[1], upper[1]]).all()
    assert percentile_interval(np.arange(1000.0)) == (24, 974)


def test_means_skip_undefined_labels_and_say_so():
    values = np.linspace(0.5, 0.9, 14)
    values[LABELS.index("Edema")] = np.nan
    mean, used = mean_over_labels(values, COMPETITION_LABELS)
    assert used == ["Atelectasis", "Cardiomegaly", "Consolidation", "Pleural Effusion"]
    assert mean == pytest.approx(np.mean([values[LABELS.index(name)] for name in used]))
    nothing, none_used = mean_over_labels(np.full(14, np.nan), LABELS)
    assert np.isnan(nothing) and none_used == []
    samples = np.tile(values, (3, 1))
    samples[1, 0] = np.nan
    np.testing.assert_allclose(mean_of_samples(samples, used), [mean, np.nan, mean])


def test_paired_difference():
    random = np.random.default_rng(1)
    truth = random.integers(0, 2, (200, 2))
    good = truth + random.normal(0, 0.5, truth.shape)
    noise = random.random(truth.shape)
    ours, theirs = bootstrap_auroc(truth, good, 300), bootstrap_auroc(truth, noise, 300)
    lower, upper, p = paired_difference(ours, theirs)
    assert (lower > 0.2).all() and (p < 0.02).all()
    lower, upper, p = paired_difference(ours, ours)
    assert (lower == 0).all() and (upper == 0).all() and (p == 1).all()


@pytest.mark.parametrize(
    ("truth", "scores", "message"),
    [
        ([[0], [-1]], [[0.1], [0.2]], "row 2, label column 1: -1 is not 0 or 1"),
        ([[0], [np.nan]], [[0.1], [0.2]], "nan is not 0 or 1"),
        ([[0], [1]], [[0.1], [np.nan]], "row 2, prediction column 1 is nan"),
        ([[0], [1]], [[0.1], [0.2], [0.3]], "do not match"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "at least one row"),
    ],
)
def test_wrong_input_is_refused_with_the_place(truth, scores, message):
    with pytest.raises(UserError, match=message):
        auroc(truth, scores)


def test_p_is_twice_the_share_of_resamples_on_the_rarer_side():
    """Of nine resamples two are below 0 and one is 0, which counts on both sides; each count is increased by one."""
    apart = np.array([-2, -1, 0, 1, 2, 3, 4, 5, 6.0])
    above, nothing = np.arange(1, 10.0), np.full(9, np.nan)
    partly = np.where(apart < 4, nothing, apart)  # three are defined, all above 0
    _, _, p = paired_difference(np.column_stack([apart, -apart, above, nothing, partly]), np.zeros((9, 5)))
    np.testing.assert_allclose(p, [2 * 4 / 10, 2 * 4 / 10, 2 * 1 / 10, np.nan, 2 * 1 / 4])


@pytest.mark.parametrize(("n", "lower", "upper"), [(1, 1, 1), (2, 1, 1), (3, 1, 2), (40, 1, 39), (80, 2, 78)])
def test_an_interval_of_few_values_never_begins_before_the_first(n, lower, upper):
    assert percentile_interval(np.arange(n, 0, -1)) == (lower, upper)


def test_more_rows_than_a_block_holds_are_resampled_one_at_a_time(monkeypatch):
    random = np.random.default_rng(0)
    truth, scores = random.integers(0, 2, 40), random.random(40)
    whole = bootstrap_auroc(truth, scores, 5)
    monkeypatch.setattr("chexzero.common.statistics.BLOCK", 39)
    np.testing.assert_array_equal(bootstrap_auroc(truth, scores, 5), whole)
