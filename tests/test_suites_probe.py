"""The linear probe: patients are not split, AUROCs equal scikit-learn's, more labels help, the command writes it."""

import numpy as np
import pandas as pd
import pytest
from evaluation_run import metrics_of, write_run
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

import run_zero_shot
from chexzero.common.errors import UserError
from chexzero.suites import probe


def drawn(n, salt, n_labels=2, dim=20):
    """Features that encode the labels weakly; two images per patient; a tenth of the labels are unknown."""
    random = np.random.default_rng(salt)
    truth = (random.random((n, n_labels)) < 0.3).astype(float)
    features = random.normal(size=(n, dim))
    features[:, :n_labels] += 1.2 * truth
    truth[random.random(truth.shape) < 0.1] = np.nan
    return probe.Part(features, truth, np.array([f"{salt}-{i // 2}" for i in range(n)]))


@pytest.fixture(scope="module")
def parts():
    return drawn(400, 1), drawn(120, 2), drawn(300, 3)


def test_all_labels_are_scikit_learns_regression(parts):
    train, valid, test = parts
    *_, every = probe.label_fractions(train, valid, test, 5, 0)
    assert len(every.means) == 1 and every.images == 400  # all labels are one draw
    areas = {}
    for strength in probe.STRENGTHS:
        areas[strength] = []
        for part in (valid, test):
            of_part = []
            for j in range(2):
                known, asked = np.isfinite(train.truth[:, j]), np.isfinite(part.truth[:, j])
                scaler = StandardScaler().fit(train.features[known])
                model = LogisticRegression(C=strength, max_iter=1000)
                model.fit(scaler.transform(train.features[known]), train.truth[known, j])
                found = model.decision_function(scaler.transform(part.features[asked]))
                of_part.append(roc_auc_score(part.truth[asked, j], found))
            areas[strength].append(np.mean(of_part))
    (chosen,) = every.strengths
    assert areas[chosen][0] == pytest.approx(max(found[0] for found in areas.values()), abs=2e-3)
    assert every.means[0] == pytest.approx(areas[chosen][1], abs=2e-3)  # both solvers stop near the optimum
    assert every.lower < every.means[0] < every.upper


def test_more_labels_help_and_draws_differ(parts):
    one, ten, every = probe.label_fractions(*parts, 5, 0)
    assert one.means.mean() < ten.means.mean() < every.means.mean()
    assert one.images == 4 and ten.images == 40 and len(set(ten.means)) == 5
    shots = probe.few_shots(*parts, 5, 0)
    assert [round(shot.images) for shot in shots] == [2, 4, 8, 16, 32]
    assert shots[0].means.mean() < shots[-1].means.mean()
    again = probe.label_fractions(*parts, 5, 0)
    assert np.array_equal(again[1].means, ten.means)


def test_a_shot_is_one_image_per_patient_and_of_its_class(parts):
    rows = probe._shots(parts[0], 1, 8, np.random.default_rng(0))
    truth, patients = parts[0].truth[rows, 1], parts[0].patients[rows]
    assert list(truth) == [1] * 8 + [0] * 8 and len(set(patients)) == 16


def test_a_class_that_is_not_there_counts_as_one_half(parts):
    train, valid, test = parts
    alone = probe.Part(train.features, np.column_stack([train.truth[:, 0], np.zeros(400)]), train.patients)
    *_, every = probe.label_fractions(alone, valid, test, 1, 0)
    assert every.areas[1] == 0.5 and every.learnt == 1


@pytest.mark.usefixtures("blank_figures")
def test_the_command_keeps_patients_together(tmp_path):
    data, run = write_run(tmp_path)
    flags = ["--run", str(run), "--out", str(tmp_path / "results"), "--n_bootstrap", "20", "--device", "cpu"]
    flags += ["--suite", "probe", "--probe_seeds", "2"]
    shared = pd.read_csv(data / "test_labels.csv", dtype=object)
    shared.loc[:3, "patient_id"] = list(pd.read_csv(data / "valid_labels.csv")["patient_id"][[0, 1, 2, 3]])
    shared.loc[3:5, "Edema"] = ""
    kept = ["id", "patient_id", "study_id", "view", "Edema", "Pneumothorax", "Pleural Effusion"]
    shared[kept].to_csv(data / "test_labels_of_probe.csv", index=False)
    flags += [
        "--probe_test_images",
        str(data / "test.h5"),
        "--probe_test_labels",
        str(data / "test_labels_of_probe.csv"),
    ]
    path = run_zero_shot.evaluate(run_zero_shot.parse_args(flags))
    found = metrics_of(path.parent)["sections"]["probe"]
    assert found["images"]["test"] == len(shared)
    assert found["images"]["train"] + found["images"]["valid"] < len(pd.read_csv(data / "valid_labels.csv"))
    assert {"zero-shot", "1% of the labels", "100% of the labels", "16 shots"} <= set(found["amounts"])
    assert found["amounts"]["zero-shot"]["mean_auroc"] > 0.7  # the model of this test is fitted
    assert "images of patients of the test part are left out of training" in path.read_text()
    with pytest.raises(UserError, match="--probe_seeds must be 1 or more"):
        run_zero_shot.evaluate(run_zero_shot.parse_args([*flags[:-6], "--suite", "probe", "--probe_seeds", "0"]))


def test_the_published_table_stands_beside_its_set_alone():
    (table,) = probe._published("rsna")
    assert ["MaCo", 0.915, 0.927, 0.936] in table.rows and "other protocols" in table.caption
    assert probe._published("valid") == []
