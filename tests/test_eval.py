"""AUROCs, intervals and curves equal upstream's; errors name the wrong array."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from small_clip import GOLDEN, recorded

from chexzero.common.errors import UserError
from chexzero.common.labels import COMPETITION_LABELS, LABELS
from chexzero.eval import (
    bootstrap,
    choose_operating_point,
    compute_cis,
    compute_mean,
    evaluate,
    plot_pr,
    plot_roc,
    sigmoid,
)
from chexzero.metrics import y_true_csv_to_np
from tests.parity import inputs

matplotlib.use("agg")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "evaluation.npz") as arrays:
        return dict(arrays)


def test_golden_areas_and_intervals(golden):
    frame = evaluate(golden["y_pred"], golden["y_true"], LABELS)
    assert frame.shape == (1, 14) and list(frame) == [f"{label}_auc" for label in LABELS]
    np.testing.assert_allclose(frame.to_numpy()[0], golden["auc"], atol=1e-9, rtol=0)
    samples, intervals = bootstrap(golden["y_pred"], golden["y_true"], LABELS, n_samples=200)
    np.testing.assert_allclose(samples, golden["boot"], atol=1e-7)  # recorded as float32
    np.testing.assert_array_equal(intervals, golden["ci"])
    assert list(intervals.index) == ["mean", "lower", "upper"] and list(intervals) == list(frame)


def test_recorded_areas_curves_and_operating_points():
    theirs = recorded()
    y_true, y_pred = inputs.evaluation()
    samples, intervals = bootstrap(y_pred, y_true, LABELS, n_samples=200)
    np.testing.assert_allclose(evaluate(y_pred, y_true, LABELS), theirs["areas/areas"], atol=1e-9)
    np.testing.assert_allclose(samples, theirs["areas/samples"], atol=1e-9)
    np.testing.assert_array_equal(intervals, theirs["areas/intervals"])
    rocs = [plot_roc(y_pred[:, i], y_true[:, i], "ROC") for i in range(14)]
    np.testing.assert_allclose(np.concatenate([part for roc in rocs for part in roc[:2]]), theirs["areas/curves"])
    np.testing.assert_allclose([choose_operating_point(*roc[:3]) for roc in rocs], theirs["areas/points"])


@pytest.mark.parametrize("name, mean", [("hieupham", 0.9243), ("ngango3", 0.9277), ("desmond", 0.9182)])
def test_leaderboard_models(shared, name, mean):
    folder = shared / "reference/chexpert_test"
    y_true = y_true_csv_to_np(folder / "groundtruth.csv", COMPETITION_LABELS)
    y_pred = pd.read_csv(folder / f"leaderboard_{name}.csv")[COMPETITION_LABELS].to_numpy()
    assert compute_mean(evaluate(y_pred, y_true, COMPETITION_LABELS)) == pytest.approx(mean, abs=5e-5)


def test_mean_of_frames_and_mappings():
    frame = pd.DataFrame([[0.1, 0.2, 0.3, 0.4, 0.5, 0.9]], columns=[*COMPETITION_LABELS, "Fracture"])
    assert compute_mean(frame) == pytest.approx(0.3)
    assert compute_mean(frame.add_suffix("_auc")) == pytest.approx(0.3)
    assert compute_mean({label: [i] for i, label in enumerate(LABELS)}, is_df=False) == pytest.approx(3.0)
    frame.loc[0, "Edema"] = np.nan
    assert compute_mean(frame) == pytest.approx((0.1 + 0.2 + 0.3 + 0.5) / 4)
    with pytest.raises(UserError, match="needs Edema, Pleural Effusion"):
        compute_mean(frame.drop(columns=["Edema", "Pleural Effusion"]))


def test_a_label_with_one_class_is_undefined_and_harms_no_other(golden):
    y_true = golden["y_true"].copy()
    y_true[:, 2] = 0
    frame = evaluate(golden["y_pred"], y_true, LABELS)
    assert np.isnan(frame["Consolidation_auc"][0]) and np.isfinite(frame.drop(columns="Consolidation_auc")).all(None)
    intervals = bootstrap(golden["y_pred"], y_true, LABELS, n_samples=50)[1]
    assert intervals["Consolidation_auc"].isna().all() and intervals["Edema_auc"].notna().all()


def test_few_samples_give_an_interval_in_order():
    intervals = compute_cis(pd.DataFrame({"a": [3.0, 1.0, 2.0]}))["a"]
    assert intervals.tolist() == [2.0, 1.0, 2.0]


def test_other_names_of_a_finding_share_its_column(golden):
    y_pred = golden["y_pred"][:, :2]
    frame = evaluate(y_pred, golden["y_true"], ["Edema", "fluid"], label_idx_map={"Edema": 3, "fluid": 3})
    expected = [evaluate(y_pred[:, [i]], golden["y_true"][:, [3]], ["x"]).iloc[0, 0] for i in range(2)]
    np.testing.assert_array_equal(frame.to_numpy()[0], expected)
    with pytest.raises(UserError, match="label_idx_map lacks fluid"):
        evaluate(y_pred, golden["y_true"], ["Edema", "fluid"], label_idx_map={"Edema": 3})


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda pred, true: (pred[:-1], true), "do not match"),
        (lambda pred, true: (pred[:, :5], true), "14 labels were named, but there are 5 columns of predictions"),
        (lambda pred, true: (pred, true[:, :5]), "5 of labels"),
        (lambda pred, true: (np.where(pred == pred[0, 0], np.nan, pred), true), "row 1, prediction column 1 is nan"),
        (lambda pred, true: (pred, true.astype(float) - 1), "is not 0 or 1"),
        (lambda pred, true: (pred, np.where(true == 1, np.nan, 0.0)), "nan is not 0 or 1"),
    ],
)
def test_wrong_arrays(golden, change, message):
    for function in (evaluate, bootstrap):
        with pytest.raises(UserError, match=message):
            function(*change(golden["y_pred"], golden["y_true"]), LABELS)


def test_curves_are_drawn_on_demand(golden):
    from matplotlib import pyplot

    figure = pyplot.figure()
    fpr, tpr, thresholds, area = plot_roc(golden["y_pred"][:, 0], golden["y_true"][:, 0], "Edema", plot=True)
    assert area == pytest.approx(golden["auc"][0]) and len(fpr) == len(tpr) == len(thresholds)
    assert figure.axes[0].get_title() == "Edema"
    figure.clear()
    precision, recall, cuts = plot_pr(golden["y_pred"][:, 0], golden["y_true"][:, 0], "Edema", plot=True)
    assert len(precision) == len(recall) == len(cuts) + 1 and len(figure.axes[0].lines) == 2
    pyplot.close(figure)


def test_operating_point_takes_the_highest_threshold_of_equals():
    assert choose_operating_point(np.array([0, 0, 0.5, 0.5, 1]), np.array([0, 0.5, 0.5, 1, 1]), np.zeros(5)) == (
        0.5,
        1.0,
    )


def test_sigmoid_does_not_overflow():
    with np.errstate(all="raise"):
        assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
