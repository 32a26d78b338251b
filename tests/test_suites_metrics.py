"""The suites' metrics against scikit-learn, SciPy, enumeration and plain double loops."""

from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, f1_score, recall_score, roc_auc_score
from sklearn.utils import resample

from chexzero.common.intervals import clustered_interval
from chexzero.eval import average_precision
from chexzero.evaluation.calibration import expected_calibration_error
from chexzero.metrics import best_thresholds, rates
from chexzero.suites import metrics
from chexzero.suites.cxr_lt import score
from chexzero.suites.retrieval import ranks_of_images, ranks_of_reports


@pytest.fixture(params=[(1, 3), (2, 3), (40, 5), (300, 4)], ids=lambda shape: f"{shape[0]}x{shape[1]}")
def drawn(request):
    """Labels and tied scores (N, L); column 0 has no positive, column 1 no negative."""
    rng = np.random.default_rng(request.param[0])
    truth = rng.integers(0, 2, request.param).astype(float)
    truth[:, 0], truth[:, 1] = 0, 1
    return truth, rng.integers(0, 8, request.param) / 7


def test_average_precision_is_scikit_learns(drawn):
    truth, scores = drawn
    got = average_precision(truth, scores)
    for j in range(truth.shape[1]):
        both = 0 < truth[:, j].sum() < len(truth)
        want = average_precision_score(truth[:, j], scores[:, j]) if both else np.nan
        assert got[j] == pytest.approx(want, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("n_patients", [None, 12])
def test_bootstrap_is_scikit_learns_in_upstreams_resamples_of_patients(drawn, n_patients, monkeypatch):
    truth, scores = drawn
    monkeypatch.setattr(metrics, "BLOCK", 3 * len(truth))  # several blocks
    patients = np.arange(len(truth)) if n_patients is None else np.arange(len(truth)) * 7 % n_patients
    names = pd.unique(patients)
    precision, area = metrics.bootstrap(truth, scores, patients.astype(str), 7)
    assert precision.shape == area.shape == (7, truth.shape[1])
    for i in range(7):
        chosen = resample(np.arange(len(names)), replace=True, random_state=i)  # upstream's call
        rows = np.concatenate([np.flatnonzero(patients == names[k]) for k in chosen])
        for j in range(truth.shape[1]):
            y, x = truth[rows, j], scores[rows, j]
            assert precision[i, j] == pytest.approx(average_precision_score(y, x) if y.any() else np.nan, nan_ok=True)
            wanted = roc_auc_score(y, x) if 0 < y.sum() < len(y) else np.nan
            assert area[i, j] == pytest.approx(wanted, nan_ok=True)


def test_intervals_of_random_scores_hold_chance():
    rng, held = np.random.default_rng(0), 0
    for _ in range(30):
        truth, scores = (rng.random((100, 40)) < 0.15).astype(float), rng.random((100, 40))
        scored = score(truth, scores, np.full(40, 0.5), np.arange(100), 200)
        lower, upper, chance = scored.intervals(np.arange(40))["mAP"]
        held += lower <= chance <= upper
    assert held >= 27  # plain percentiles cover it in 0.6 of the draws


def test_f1_and_misses_are_scikit_learns(drawn):
    truth, scores = drawn
    predicted = scores >= 0.5
    found = rates(truth, predicted)
    assert np.isnan(found.f1[0]) and np.isnan(found.sensitivity[0])
    for j in range(1, truth.shape[1]):
        if truth[:, j].any():
            assert found.f1[j] == pytest.approx(f1_score(truth[:, j], predicted[:, j], zero_division=0))
            assert found.sensitivity[j] == pytest.approx(recall_score(truth[:, j], predicted[:, j]))
    assert rates(truth.ravel(), predicted.ravel()).f1 == pytest.approx(
        f1_score(truth.astype(int), predicted.astype(int), average="micro", zero_division=0)
    )
    assert np.isnan(rates(np.zeros(6), np.ones(6)).f1)


def test_thresholds_have_the_best_f1_of_all(drawn):
    truth, scores = drawn
    chosen = best_thresholds(truth, scores, f1_score)
    assert np.isnan(chosen[0])
    for j in range(1, truth.shape[1]):
        if 0 < truth[:, j].sum() < len(truth):
            every = [f1_score(truth[:, j], scores[:, j] >= cut) for cut in np.unique(scores[:, j])]
            assert f1_score(truth[:, j], scores[:, j] >= chosen[j]) == pytest.approx(max(every))


def test_calibration_error_by_hand():
    # Bin [0, 0.1): 0.05 and 0.05, none positive: 0.05. Bin [0.8, 0.9): 0.8 and 0.86, one positive: 0.83 - 0.5 = 0.33.
    # Bin [0.9, 1]: 1.0, positive: 0. Mean over the five rows: (2 * 0.05 + 2 * 0.33 + 0) / 5 = 0.152.
    truth, probability = [[0], [0], [1], [0], [1]], [[0.05], [0.05], [0.8], [0.86], [1.0]]
    assert expected_calibration_error(truth, probability)[0] == pytest.approx(0.152)
    assert expected_calibration_error([[1]], [[0.25]])[0] == pytest.approx(0.75)  # a single case


def test_calibration_error_is_that_of_a_double_loop(drawn):
    truth, probability = drawn
    got = expected_calibration_error(truth, probability)
    for j in range(truth.shape[1]):
        want = 0.0
        for b in range(10):
            rows = [i for i in range(len(truth)) if min(int(probability[i, j] * 10), 9) == b]
            if rows:
                want += abs(sum(probability[i, j] - truth[i, j] for i in rows)) / len(truth)
        assert got[j] == pytest.approx(want)


@pytest.mark.parametrize(("n", "positive"), [(1, 1), (4, 1), (5, 2), (6, 4), (6, 6)])
def test_chance_of_average_precision_is_the_mean_of_all_orders(n, positive):
    scores = np.arange(n, 0, -1)
    truths = [np.isin(np.arange(n), rows) for rows in combinations(range(n), positive)]
    every = np.mean([average_precision_score(truth, scores) for truth in truths])
    assert metrics.random_average_precision(n, positive) == pytest.approx(every)
    assert np.isnan(metrics.random_average_precision(n, 0))


@pytest.mark.parametrize(("n", "hits", "k"), [(6, 1, 1), (6, 2, 3), (6, 5, 2), (4, 1, 10), (1, 1, 1)])
def test_chance_of_a_hit_is_the_share_of_all_orders(n, hits, k):
    every = [any(place < hits for place in order[:k]) for order in permutations(range(n))]
    assert metrics.hit_chance(n, hits, k) == pytest.approx(np.mean(every))


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 1, 1), (2, 1, 3, 1, 2), (1, 5, 1, 4)])
@pytest.mark.parametrize("k", [1, 3, 5, 10])
def test_chance_of_a_block_is_the_share_of_all_orders(sizes, k):
    orders = list(permutations(range(len(sizes))))
    want = [
        np.mean([sum(sizes[b] for b in order[: order.index(own)]) < k for order in orders]) for own in range(len(sizes))
    ]
    assert metrics.block_chance(sizes, k) == pytest.approx(want)


@pytest.mark.parametrize(("right", "n"), [(0, 7), (3, 7), (7, 7), (1, 1), (60, 100)])
def test_interval_without_clusters_is_wilsons(right, n):
    mean, lower, upper = clustered_interval([1] * right + [0] * (n - right), np.arange(n))
    want = binomtest(right, n).proportion_ci(method="wilson")
    assert (mean, lower, upper) == pytest.approx((right / n, want.low, want.high))


def test_interval_counts_each_cluster_once():
    values = np.repeat([1, 0, 1, 0, 0], 8)
    clustered = clustered_interval(values, np.repeat(np.arange(5), 8))
    once = clustered_interval(values[::8], np.arange(5))
    assert clustered == pytest.approx(once)
    assert np.isnan(clustered_interval([], [])).all()
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):  # 40 patients, 1 to 9 questions each; the share of right answers differs between patients
        size = rng.integers(1, 10, 40)
        clusters = np.repeat(np.arange(40), size)
        right = rng.random(len(clusters)) < rng.beta(2, 2, 40)[clusters]
        _, lower, upper = clustered_interval(right, clusters)
        covered += lower <= 0.5 <= upper
    assert 0.90 <= covered / 400 <= 0.99


def test_expanded_level_widens_small_samples_only():
    assert metrics.expanded_level(0.95, 10) == pytest.approx(0.98291, abs=1e-4)
    assert metrics.expanded_level(0.95, 100_000) == pytest.approx(0.95, abs=1e-4)


def test_ties_share_the_credit():
    assert metrics.choice_scores([0.2, 0.9, 0.1], 1) == 1
    assert metrics.choice_scores([0.9, 0.9, 0.1], 1) == 0.5
    assert metrics.choice_scores([0.9, 0.9, 0.1], 2) == 0
    assert metrics.choice_scores([0.5] * 4, 0) == 0.25


@pytest.mark.parametrize(("n", "n_reports"), [(1, 1), (30, 12), (25, 25)])
def test_retrieval_ranks_are_those_of_a_double_loop(n, n_reports, monkeypatch):
    monkeypatch.setattr("chexzero.suites.retrieval.BLOCK", 70)  # several blocks
    rng = np.random.default_rng(n)
    report = np.concatenate([np.arange(n_reports), rng.integers(0, n_reports, n - n_reports)])
    images, reports = (rng.integers(-1, 2, (rows, 3)).astype(float) for rows in (n, n_reports))  # many ties
    for i in range(n):
        own = images[i] @ reports[report[i]]
        before = sum(report[j] != report[i] and images[i] @ reports[report[j]] >= own for j in range(n))
        assert ranks_of_reports(images, reports, report)[i] == before
    for u in range(n_reports):
        best = max(images[i] @ reports[u] for i in range(n) if report[i] == u)
        before = sum(report[i] != u and images[i] @ reports[u] >= best for i in range(n))
        assert ranks_of_images(images, reports, report)[u] == before
