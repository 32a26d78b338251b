"""Which checkpoint is selected, and why."""

import json
import math

import numpy as np
import pytest

from chexzero.common.errors import UserError
from chexzero.common.labels import COMPETITION_LABELS, LABELS
from chexzero.common.statistics import auroc
from chexzero.runs import selection
from chexzero.runs.run_folder import best_checkpoints, checkpoint_name, checkpoint_steps, read_run, remove_checkpoints
from chexzero.runs.selection_bias import SelectionBias, keep_predictions, kept_predictions
from chexzero.training.validation import bootstrap_interval, labels_with_both_classes, zero_shot_row

ROWS = [
    {"step": step, "mean_5": value, "val_loss": loss}
    for step, value, loss in [
        (0, 0.5, 3.0),
        (100, 0.7, 2.0),
        (200, None, 1.5),
        (300, 0.8, 1.0),
        (400, 0.8, 2.5),
        (500, 0.6, 2.6),
    ]
]


def test_the_highest_is_selected_and_of_equals_the_earlier():
    found = selection.describe(ROWS, "mean_5", "mean_5", (0.75, 0.85), 234)
    assert (found["step"], found["checkpoint"], found["value"]) == (300, "checkpoint_300.pt", 0.8)
    assert found["runner_up"] == {"step": 400, "value": 0.8} and found["n_compared"] == 5
    assert found["reason"] == (
        "The checkpoint of step 300 was selected because its mean zero-shot AUROC over the 5 competition "
        "labels on the 234 validation images (0.800, 95 % CI 0.750 to 0.850) was the highest of 5 validated "
        "checkpoints; the runner-up was step 400 (0.800). The test set played no part."
    )
    lowest = selection.describe(ROWS, "val_loss", "val_loss", (None, None), 234)
    assert lowest["step"] == 300 and "lowest of 6" in lowest["reason"]
    first = selection.describe(ROWS[:1], "mean_5", "mean_5", (None, None), 234)
    known = selection.describe(ROWS, "mean_5", "mean_5", (0.75, 0.85), 234, 0.786)
    assert known["value_corrected"] == 0.786 and "it is estimated at 0.786" in known["reason"]
    assert first["runner_up"] is None and first["n_compared"] == 1


def test_patience_counts_validations_without_enough_improvement():
    def exhausted(patience, min_delta=0.0, metric="mean_5"):
        return selection.is_exhausted(ROWS, metric, patience, min_delta)

    assert exhausted(2) and not exhausted(3) and not exhausted(0)
    assert exhausted(4, 0.15) and not exhausted(5, 0.15)  # 0.8 is no improvement of 0.15 on 0.7
    assert exhausted(2, metric="val_loss") and not exhausted(3, metric="val_loss")
    assert not exhausted(1, metric=None)


def test_the_best_and_the_next_k_are_kept(tmp_path):
    assert selection.steps_to_keep(ROWS, "mean_5", 0) == {300}
    assert selection.steps_to_keep(ROWS, "mean_5", 2) == {300, 400, 100}
    assert selection.steps_to_keep(ROWS, None, 2) == {500}
    for step in (5, 40, 300):
        (tmp_path / checkpoint_name(step)).touch()
    (tmp_path / "checkpoint.pt").touch()
    remove_checkpoints(tmp_path, {300})
    assert checkpoint_steps(tmp_path) == [300] and (tmp_path / "checkpoint.pt").exists()


def test_a_metric_that_is_not_defined_falls_back():
    assert selection.usable_metric("mean_5", ["Edema"]) == "mean_5"
    assert selection.usable_metric("mean_5", ["Fracture"]) == "mean_13"
    assert selection.usable_metric("Fracture_auc", ["Edema"]) == "mean_5"
    assert selection.usable_metric("mean_5", ["No Finding"]) == "mean_14"
    assert selection.usable_metric("mean_5", []) is None
    assert selection.usable_metric("val_loss", []) == "val_loss"


def test_the_optimism_of_the_selection_is_taken_off():
    """Of twenty equally good checkpoints, the best is better only by chance."""
    rng = np.random.default_rng(0)
    apart = []
    for _ in range(12):
        labels = np.zeros((120, 14))
        labels[:, 0] = rng.permutation(np.arange(120) < 20)
        bias, values = SelectionBias(labels, ["Atelectasis"], n_resamples=100), []
        for step in range(20):
            scores = rng.normal(size=labels.shape) + labels
            values.append(auroc(labels[:, :1], scores[:, :1])[0])
            bias.add(step, scores)
        apart.append((max(values) - 0.7602, bias.corrected(range(20)) - 0.7602))  # the AUROC of a shift by one
    optimistic, corrected = np.mean(apart, axis=0)
    assert optimistic > 0.06 and abs(corrected) < 0.03
    assert bias.corrected([0]) is None and SelectionBias(labels, []).corrected([0, 1]) is None


def test_predictions_are_kept_and_a_damaged_file_is_none(tmp_path):
    predictions = np.random.default_rng(0).random((30, 14))
    keep_predictions(tmp_path, 7, predictions)
    np.testing.assert_allclose(kept_predictions(tmp_path, 7, 30), predictions, atol=1e-7)
    assert kept_predictions(tmp_path, 7, 31) is None and kept_predictions(tmp_path, 8, 30) is None
    (tmp_path / "validation_predictions" / "step_7.npy").write_bytes(b"x")
    assert kept_predictions(tmp_path, 7, 30) is None


def area(labels, scores):
    positive, negative = scores[labels == 1], scores[labels == 0]
    return np.mean(positive[:, None] > negative[None])


def test_the_row_and_the_interval_agree_with_their_definitions():
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 14)) < 0.4).astype(float)
    labels[:, LABELS.index("Edema")] = 0
    predictions = rng.random((60, 14)) + 0.2 * labels
    row = zero_shot_row(labels, predictions)
    defined = labels_with_both_classes(labels)
    assert math.isnan(row["Edema_auc"]) and "Edema" not in defined
    columns = [LABELS.index(name) for name in COMPETITION_LABELS if name != "Edema"]
    assert row["mean_5"] == pytest.approx(np.mean([area(labels[:, j], predictions[:, j]) for j in columns]))
    means = []
    for i in range(1000):
        index = np.random.RandomState(i).randint(0, 60, 60)  # what sklearn.utils.resample draws
        means.append(np.mean([area(labels[index, j], predictions[index, j]) for j in columns]))
    means.sort()
    assert bootstrap_interval(labels, predictions, "mean_5", defined) == pytest.approx((means[24], means[974]))
    assert bootstrap_interval(labels, predictions, "val_loss", defined) == (None, None)


def _run(path, values, metric="mean_13", labels="a" * 64):
    """A run's folder with these validations at steps 10, 20, ..., each with a checkpoint."""
    path.mkdir()
    (path / "selection.json").write_text(json.dumps({"metric": metric}))
    files = {"data/valid_labels.csv": {"sha256": labels}}
    (path / "config.json").write_text(
        json.dumps({"settings": {"valid_labels": "data/valid_labels.csv"}, "data": {"files": files}})
    )
    rows = [f"{10 * place + 10},{value}\n" for place, value in enumerate(values)]
    (path / "metrics.csv").write_text(f"step,{metric}\n" + "".join(rows))
    for place in range(len(values)):
        (path / checkpoint_name(10 * place + 10)).touch()
    return read_run(path)


def test_the_best_checkpoints_of_several_runs_are_ranked_together(tmp_path):
    one, other = _run(tmp_path / "one", [0.5, 0.9, 0.7]), _run(tmp_path / "other", [0.8, 0.7, 0.6])
    found = best_checkpoints([one, other], 4)
    assert [(run.path.name, step) for run, step in found] == [("one", 20), ("other", 10), ("other", 20), ("one", 30)]
    (one.path / checkpoint_name(20)).unlink()  # not saved: not in the ranking
    assert [(run.path.name, step) for run, step in best_checkpoints([one, other], 1)] == [("other", 10)]
    losses = [_run(tmp_path / name, values, "val_loss") for name, values in (("low", [2.0, 1.0]), ("high", [3.0]))]
    assert [(run.path.name, step) for run, step in best_checkpoints(losses, 3)] == [
        ("low", 20),
        ("low", 10),
        ("high", 10),
    ]


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    one = _run(tmp_path / "one", [0.5])
    with pytest.raises(UserError, match="have 2 validated checkpoints, fewer than the 3"):
        best_checkpoints([one, _run(tmp_path / "two", [0.6])], 3)
    with pytest.raises(UserError, match="selected by mean_13 and .* by mean_5"):
        best_checkpoints([one, _run(tmp_path / "other_metric", [0.5], "mean_5")], 1)
    with pytest.raises(UserError, match="not validated on the same data"):
        best_checkpoints([one, _run(tmp_path / "other_data", [0.5], labels="b" * 64)], 1)


@pytest.mark.parametrize(("kept", "said"), [("sha256:ab", "ab"), ("ab", "ab"), ("", None), (None, None)])
def test_the_selection_names_the_weights_by_their_hash(kept, said):
    found = selection.describe([{**ROWS[0], "checkpoint_sha256": kept}], "mean_5", "mean_5", (None, None), 1)
    assert found["checkpoint_sha256"] == said
