"""Intervals and tests against simulations with a known answer, and against published or independent values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, permutation_test, rankdata
from sklearn.metrics import roc_auc_score

from chexzero.common.intervals import FEW, case_influence, enough, holm, mean_interval, newcombe_interval, paired_areas
from chexzero.common.statistics import auroc


@pytest.mark.parametrize("n_pos", [3, 4, 5, 9, 30])
@pytest.mark.parametrize("area", [0.65, 0.8, 0.9])
def test_newcombe_holds_at_small_counts(n_pos, area):
    random = np.random.default_rng(n_pos)
    truth = np.zeros((200, 1500))
    truth[:n_pos] = 1
    found = auroc(truth, random.normal(size=truth.shape) + truth * norm.ppf(area) * 2**0.5)
    lower, upper = newcombe_interval(found, n_pos, 200 - n_pos)
    assert 0.93 <= np.mean((lower <= area) & (area <= upper)) <= 0.98


def test_newcombe_at_the_edges():
    lower, upper = newcombe_interval([1.0, 0.0, np.nan, 0.5], [4, 4, 0, 50], [96, 96, 100, 50])
    assert upper[0] == 1 and 0.3 < lower[0] < 0.9 and lower[1] == 0 and upper[1] == pytest.approx(1 - lower[0])
    assert np.isnan([lower[2], upper[2]]).all() and lower[3] + upper[3] == pytest.approx(1)


@given(st.integers(0, 1000), st.integers(2, 30), st.integers(2, 30))
@settings(max_examples=25, deadline=None)
def test_delong_variance_is_that_of_its_components(seed, n_pos, n_neg):
    random = np.random.default_rng(seed)
    truth = np.repeat([1, 0], [n_pos, n_neg])
    scores = random.integers(0, 12, n_pos + n_neg).astype(float)
    wins = (scores[truth == 1][:, None] > scores[truth == 0]) + 0.5 * (
        scores[truth == 1][:, None] == scores[truth == 0]
    )
    direct = wins.mean(1).var(ddof=1) / n_pos + wins.mean(0).var(ddof=1) / n_neg
    assert (case_influence(truth, scores) ** 2).sum() == pytest.approx(direct, abs=1e-12)


def test_paired_p_is_near_a_permutation_test():
    random = np.random.default_rng(4)
    truth = np.repeat([1, 0], [60, 90])
    ours, theirs = (truth * shift + random.normal(size=150) for shift in (1.6, 1.0))
    found = paired_areas(truth, ours, theirs)

    def statistic(a, b, axis=-1):  # AUROCs differ as the positives' rank sums do
        ranks_of_positives = (rankdata(x, axis=axis)[..., truth == 1].sum(axis) for x in (a, b))
        return np.subtract(*ranks_of_positives) / (60 * 90)

    ranked = tuple(np.argsort(np.argsort(x)) for x in (ours, theirs))  # exchangeable under equal models
    exact = permutation_test(ranked, statistic, permutation_type="samples", n_resamples=400, rng=1)
    assert statistic(*ranked) == pytest.approx(roc_auc_score(truth, ours) - roc_auc_score(truth, theirs))
    assert found.p[0] == pytest.approx(exact.pvalue, abs=0.05)
    assert found.lower[0] < found.difference[0] < found.upper[0]


def test_mean_interval_of_one_label_is_its_own_and_correlation_widens():
    random = np.random.default_rng(5)
    truth = np.repeat([1.0, 0.0], [40, 60])[:, None]
    one = truth + random.normal(size=(100, 1))
    other = truth + random.normal(size=(100, 1))
    for pair, factor in ((np.hstack([one, one]), 1.0), (np.hstack([one, other]), 0.85)):
        areas = auroc(np.hstack([truth, truth]), pair)
        lower, upper = newcombe_interval(areas, 40, 60)
        ends = mean_interval(areas, lower, upper, case_influence(np.hstack([truth, truth]), pair))
        if factor == 1:
            np.testing.assert_allclose(ends, [lower[0], upper[0]], atol=1e-9)
        else:
            assert ends[1] - ends[0] < factor * (upper - lower).mean()
    assert np.isnan(mean_interval([], [], [], np.zeros((100, 0)))).all()


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04, 0.03]), [0.03, np.nan, 0.06, 0.06])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_two_equal_models_seldom_differ():
    """The share of reports with some p < 0.05 after Holm, over 14 labels at the smallest counts tested."""
    alarms = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        truth = (np.arange(300)[:, None] < random.integers(FEW, 40, 14)).astype(float)
        shared = random.normal(size=truth.shape) + 1.5 * truth
        ours, theirs = (shared + random.normal(size=truth.shape) for _ in range(2))
        alarms += bool((holm(paired_areas(truth, ours, theirs).p) < 0.05).any())
    assert alarms <= 11


def test_enough_counts_both_classes():
    truth = np.stack([np.arange(30) < n for n in (9, 10, 20, 21)], axis=1)
    assert enough(truth).tolist() == [False, True, True, False]


def test_a_mean_of_equal_labels_differs_as_one_of_them():
    random = np.random.default_rng(6)
    truth = np.repeat([1, 0], [30, 50])[:, None]
    ours, theirs, other = (truth * shift + random.normal(size=(80, 1)) for shift in (1.5, 1.0, 0.5))
    one = paired_areas(truth, ours, theirs)
    both = paired_areas(np.hstack([truth] * 2), np.hstack([ours] * 2), np.hstack([theirs] * 2), [[0.5, 0.5]])
    np.testing.assert_allclose(both, one, atol=1e-12)
    three = [np.hstack([values, other, values]) for values in (ours, theirs)]
    labels = np.hstack([truth, np.ones_like(truth), truth])  # the one in the middle has no negative case
    found = paired_areas(labels, *three, [[0.5, 0, 0.5], [0.5, 0.5, 0]])
    np.testing.assert_allclose([part[0] for part in found], np.ravel(one), atol=1e-12)
    assert all(np.isnan(part[1]) for part in found)
    assert np.ravel(paired_areas(truth, ours, ours)).tolist() == [0, 0, 0, 1]


def test_a_perfect_area_among_others_leaves_their_mean_an_interval():
    """Its variance is zero, so it is correlated with no other AUROC."""
    truth = np.repeat([1.0, 0.0], [20, 30])[:, None].repeat(2, axis=1)
    scores = np.column_stack([truth[:, 0], np.random.default_rng(0).normal(size=50) + truth[:, 0]])
    areas = auroc(truth, scores)
    lower, upper = newcombe_interval(areas, 20, 30)
    ends = mean_interval(areas, lower, upper, case_influence(truth, scores))
    assert areas[0] == 1 and ends[0] < areas.mean() < ends[1] <= 1
    down, up = (np.hypot(*apart) / 2 for apart in (areas - lower, upper - areas))
    assert ends == pytest.approx((areas.mean() - down, areas.mean() + up))
