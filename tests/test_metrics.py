"""Thresholds, MCC and F1: upstream's choices, scikit-learn's numbers, columns by name."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef
from sklearn.utils import resample
from small_clip import recorded

from chexzero.common.errors import UserError
from chexzero.common.labels import COMPETITION_LABELS, LABELS
from chexzero.metrics import (
    compute_f1,
    compute_mcc,
    f1_at,
    f1_mcc_bootstrap,
    get_best_alt_labels,
    get_best_p_vals,
    mcc_at,
    y_true_csv_to_np,
)
from tests.parity import inputs

HALF = dict.fromkeys(LABELS, 0.5)


@pytest.fixture(scope="module")
def arrays():
    return inputs.evaluation()


def test_radiologists_whose_columns_stand_in_another_order(shared):
    folder = shared / "reference/chexpert_test"
    headers = [list(pd.read_csv(folder / f"{name}.csv", nrows=0)) for name in ("groundtruth", "radiologist_bc4")]
    assert headers[0] != headers[1] and sorted(headers[0]) == sorted(headers[1])
    y_true = y_true_csv_to_np(folder / "groundtruth.csv", LABELS)
    assert y_true.shape == (500, 14) and y_true.dtype == np.int64
    found = []
    for reader in ("bc4", "bc6", "bc8"):
        decisions = y_true_csv_to_np(folder / f"radiologist_{reader}.csv", LABELS)
        found.append(
            [
                compute(decisions, y_true, LABELS, HALF, n_samples=100).loc["mean", COMPETITION_LABELS].mean()
                for compute in (compute_mcc, compute_f1)
            ]
        )
    np.testing.assert_allclose(np.mean(found, axis=0), [0.530, 0.616], atol=5e-4)


def test_thresholds_are_upstreams(arrays):
    y_true, y_pred = arrays
    mcc = get_best_p_vals(y_pred, y_true, LABELS)
    f1 = get_best_p_vals(y_pred, y_true, LABELS, metric_func=f1_score)
    np.testing.assert_array_equal([mcc[label] for label in LABELS], recorded()["thresholds/mcc"])
    np.testing.assert_array_equal([f1[label] for label in LABELS], recorded()["thresholds/f1"])


@pytest.mark.filterwarnings("ignore:A single label")
def test_ties_take_the_lowest_threshold_and_a_missing_class_is_survived(capsys):
    y_pred, y_true = np.array([[0.8], [0.6], [0.4], [0.2]]), np.array([[1], [0], [1], [0]])
    assert get_best_p_vals(y_pred, y_true, ["a"], verbose=True) == {"a": 0.4}
    assert "a: 0.5774 at 0.4000" in capsys.readouterr().out
    assert get_best_p_vals(y_pred, y_true * 0, ["a"]) == get_best_p_vals(y_pred, y_true * 0 + 1, ["a"]) == {"a": 0.2}


def test_values_are_scikit_learns(arrays):
    y_true, y_pred = arrays
    y_true = y_true.copy()
    y_true[:, 1] = 0  # one class only
    thresholds = {**HALF, "Edema": 9.0}  # nothing is called positive
    for at, reference in ((mcc_at, matthews_corrcoef), (f1_at, f1_score)):
        frame = at(y_pred, y_true, thresholds, LABELS)
        expected = [reference(y_true[:, i], y_pred[:, i] >= thresholds[label]) for i, label in enumerate(LABELS)]
        np.testing.assert_allclose(frame[LABELS].to_numpy()[0], expected, atol=1e-12)
        assert frame["Mean"][0] == pytest.approx(frame[COMPETITION_LABELS].to_numpy().mean())


def test_bootstrap_at_once_equals_one_by_one(arrays):
    y_true, y_pred = arrays
    fast, intervals = f1_mcc_bootstrap(y_pred, y_true, LABELS, HALF, f1_at, n_samples=7)
    slow, _ = f1_mcc_bootstrap(y_pred, y_true, LABELS, HALF, lambda *a, **k: f1_at(*a, **k), n_samples=7)
    np.testing.assert_allclose(fast, slow, atol=1e-12)
    rows = resample(np.arange(len(y_true)), replace=True, random_state=6)
    expected = [f1_score(y_true[rows, i], y_pred[rows, i] >= 0.5) for i in range(14)]
    np.testing.assert_allclose(fast[LABELS].iloc[6], expected, atol=1e-12)
    assert intervals.shape == (3, 15) and list(intervals)[-1] == "Mean"


def test_tables(arrays):
    y_true, y_pred = arrays
    table = compute_mcc(y_pred, y_true, LABELS, HALF, n_samples=60)
    assert list(table.index) == ["mean", "lower", "upper"] and list(table) == [*LABELS, "Mean"]
    assert (table.loc["lower"] <= table.loc["mean"]).all() and (table.loc["mean"] <= table.loc["upper"]).all()
    pd.testing.assert_frame_equal(table, compute_mcc(y_pred, y_true, LABELS, HALF, n_samples=60))
    index = {"Edema": 3, "fluid": 3}
    one = compute_f1(y_pred[:, [3, 3]], y_true, ["Edema", "fluid"], {"Edema": 0.5, "fluid": 0.5}, index, n_samples=60)
    assert one["Edema"].tolist() == one["fluid"].tolist() == one["Mean"].tolist()


def test_best_names():
    frame = pd.DataFrame(
        [[0.5, 0.7, 0.6, 0.9, 0.9]],
        columns=["Edema_auc", "fluid_auc", "Fracture_auc", "broken rib_auc", "split rib_auc"],
    )
    assert get_best_alt_labels(frame, ["Edema", "Fracture"]) == {"Edema": ["fluid"], "Fracture": ["broken rib"]}
    with pytest.raises(UserError, match="fluid_auc comes before"):
        get_best_alt_labels(frame[["fluid_auc", "Edema_auc"]], ["Edema"])


def test_a_missing_threshold_is_named(arrays):
    with pytest.raises(UserError, match="no threshold is given for Edema"):
        compute_f1(arrays[1], arrays[0], LABELS, {label: 0.5 for label in LABELS if label != "Edema"})


@pytest.mark.parametrize(
    "cells, message",
    [
        (["0", "2"], "row 2, column Edema: '2' is not 0 or 1"),
        (["", "1"], "row 1, column Edema: nan is not 0 or 1"),
        (["0", "-1.0"], "'-1.0' is not 0 or 1"),
    ],
)
def test_label_files(tmp_path, cells, message):
    pd.DataFrame({"Study": ["a", "b"], "Fracture": [0, 1], "Edema": cells}).to_csv(tmp_path / "y.csv", index=False)
    assert y_true_csv_to_np(tmp_path / "y.csv", ["Fracture"]).tolist() == [[0], [1]]
    with pytest.raises(UserError, match=message):
        y_true_csv_to_np(tmp_path / "y.csv", ["Fracture", "Edema"])
    with pytest.raises(UserError, match="lacks the column Atelectasis"):
        y_true_csv_to_np(tmp_path / "y.csv", LABELS[:1])
