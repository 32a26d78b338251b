"""The parts of the evaluation against scikit-learn, published figures and planted mistakes."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from sklearn.metrics import f1_score, matthews_corrcoef, recall_score

from chexzero import metrics
from chexzero.common.errors import UserError
from chexzero.common.formats import check_images
from chexzero.common.intervals import newcombe_interval
from chexzero.common.labels import COMPETITION_LABELS, FINDINGS, LABELS, NO_FINDING
from chexzero.common.statistics import auroc, mean_over_labels
from chexzero.evaluation.calibration import platt, reliability
from chexzero.evaluation.prompts import UPSTREAM, best_on_validation, read_alternatives, upstream_prompts
from chexzero.evaluation.readers import mean_rates, read_reader, study_key
from chexzero.evaluation.results import SetResult, evaluate_set
from chexzero.evaluation.sets import EvaluationSet, Units, read_set, units
from chexzero.report import sanity
from chexzero.report.beside import readers
from chexzero.report.beside.baseline import baseline_section
from chexzero.report.beside.paper import paper_section
from chexzero.report.beside.published import reported_figures
from chexzero.report.sections import Figure
from chexzero.runs.run_folder import RunFolder, read_run, step_of
from chexzero.zero_shot import check_predictions


def table_of(n: int) -> pd.DataFrame:
    ids = [f"chexpert/test/patient{i}/study1" for i in range(n)]
    return pd.DataFrame({"id": ids, "patient_id": ids, "study_id": ids, "view": "frontal"})


def result(name: str, truth: np.ndarray, probability: np.ndarray, n_bootstrap: int = 100) -> SetResult:
    rows = np.arange(len(truth))
    counted = Units("image", table_of(len(truth)), truth, rows, rows, 0)
    at = metrics.best_thresholds(truth, probability)
    return evaluate_set(name, counted, probability, at, n_bootstrap)


def working(n: int, seed: int, strength: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n, 14) and probabilities of a model with AUROCs of about 0.85."""
    random = np.random.default_rng(seed)
    truth = (random.random((n, 14)) < 0.3).astype(float)
    return truth, 1 / (1 + np.exp(-(strength * truth + random.normal(0, 1, truth.shape))))


# --- operating points and calibration ---


def test_rates_equal_scikit_learn():
    random = np.random.default_rng(0)
    truth, called = random.integers(0, 2, (80, 5)), random.integers(0, 2, (80, 5))
    found = metrics.rates(truth, called)
    for i in range(5):
        t, c = truth[:, i], called[:, i]
        np.testing.assert_allclose(
            [found.f1[i], found.mcc[i], found.sensitivity[i], found.specificity[i]],
            [f1_score(t, c), matthews_corrcoef(t, c), recall_score(t, c), recall_score(1 - t, 1 - c)],
            atol=1e-12,
        )


def test_undefined_rates_are_nan_never_a_number():
    truth = np.array([[0, 1], [0, 0]])
    found = metrics.rates(truth, np.zeros_like(truth))
    assert np.isnan(found.f1[0]) and np.isnan(found.sensitivity[0]) and np.isnan(found.mcc[0])
    assert found.f1[1] == found.mcc[1] == 0 and found.specificity[0] == 1
    assert np.isnan(metrics.best_thresholds(truth, truth * 0.5)[0])
    at = np.array([np.nan, 0.4])
    assert np.isnan(metrics.rates_at(truth, truth * 0.5, at).specificity[0])


@pytest.mark.parametrize("label", [0, 1])
def test_of_one_class_alone_mcc_is_undefined_and_with_both_a_constant_call_is_chance(label):
    one_class, both = np.full((4, 1), label), np.array([[0], [1], [1], [0]])
    scores = np.array([[0.1], [0.4], [0.6], [0.9]])
    for threshold in (0.0, 0.5, 1.0):
        assert np.isnan(metrics.rates_at(one_class, scores, [threshold]).mcc).all()
    assert [float(metrics.rates_at(both, scores, [threshold]).mcc[0]) for threshold in (0.0, 1.0)] == [0, 0]


def test_threshold_is_the_best_of_all_cuts():
    truth, scores = (values[:, :4] for values in working(60, 3))
    for i, threshold in enumerate(metrics.best_thresholds(truth, scores)):
        every = [matthews_corrcoef(truth[:, i], scores[:, i] >= cut) for cut in np.unique(scores[:, i])]
        assert matthews_corrcoef(truth[:, i], scores[:, i] >= threshold) == pytest.approx(max(every), abs=1e-12)


def test_of_equally_good_thresholds_the_lowest_is_taken_as_upstream():
    truth, scores = np.array([[1], [0], [1], [0]]), np.array([[4.0], [3.0], [2.0], [1.0]])
    assert matthews_corrcoef(truth, scores >= 2) == matthews_corrcoef(truth, scores >= 4) > 0
    assert metrics.get_best_p_vals(scores, truth, ["Edema"]) == {"Edema": 2.0}
    assert metrics.best_thresholds(truth, scores).tolist() == [2.0]


def test_bootstrapped_rates_are_those_of_the_resampled_rows():
    truth, scores = working(60, 4)
    at = np.full(14, 0.6)
    drawn = metrics.bootstrap_rates(truth, scores, at, n_samples=3)
    index = np.random.RandomState(2).randint(0, 60, 60)
    direct = metrics.rates_at(truth[index], scores[index], at)
    np.testing.assert_allclose(drawn.mcc[2], direct.mcc, atol=1e-12)
    np.testing.assert_allclose(drawn.f1[2], direct.f1, atol=1e-12)


def test_ece_of_bins_by_hand():
    found = reliability([0, 1, 1, 1], [0.15, 0.15, 0.95, 1.0])
    np.testing.assert_allclose(found.mean_predicted, [0.15, 0.975])
    np.testing.assert_allclose(found.fraction_positive, [0.5, 1.0])
    assert found.ece == pytest.approx(0.5 * 0.35 + 0.5 * 0.025)
    with pytest.raises(UserError, match="outside 0..1"):
        reliability([0, 1], [0.1, 1.2])


def test_platt_keeps_the_order_and_mends_the_scale():
    truth, squashed = working(400, 5)
    squashed = 0.48 + 0.04 * squashed
    test_truth, test_scores = working(400, 6)
    test_scores = 0.48 + 0.04 * test_scores
    scaled = platt(truth, squashed, test_scores)
    np.testing.assert_allclose(auroc(test_truth, scaled), auroc(test_truth, test_scores), atol=1e-12)
    before = np.mean([reliability(test_truth[:, i], test_scores[:, i]).ece for i in range(14)])
    after = np.mean([reliability(test_truth[:, i], scaled[:, i]).ece for i in range(14)])
    assert after < before / 2
    truth[:, 0] = 0
    assert np.isnan(platt(truth, squashed, test_scores)[:, 0]).all()


def test_platt_is_maximum_likelihood_and_platts_targets_where_classes_are_apart():
    random = np.random.default_rng(3)
    truth = (np.arange(200) < 8)[:, None].astype(float)
    scores = 1 / (1 + np.exp(-(0.02 * random.normal(size=(200, 1)) + 0.02 * truth)))
    grid = np.linspace(0.45, 0.55, 9)[:, None]
    found = platt(truth, scores, grid)[:, 0]

    def loss(parameters):
        at = parameters[0] + parameters[1] * 50 * np.log(scores / (1 - scores))[:, 0]
        return np.logaddexp(0, at).sum() - at @ truth[:, 0]

    a, b = minimize(loss, [-3, 1], tol=1e-12, method="Nelder-Mead").x
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-(a + b * 50 * np.log(grid / (1 - grid))[:, 0]))), rtol=1e-3)
    apart = platt(truth, 0.4 + 0.2 * truth, np.array([[0.4], [0.6]]))[:, 0]
    np.testing.assert_allclose(apart, [1 / 194, 9 / 10], rtol=1e-3)


# --- published figures from released files ---


@pytest.fixture(scope="module")
def released(shared: Path) -> tuple[Path, pd.DataFrame, np.ndarray]:
    folder = shared / "reference" / "chexpert_test"
    truth = pd.read_csv(folder / "groundtruth.csv")
    return folder, truth["Study"], truth[LABELS].to_numpy(float)


@pytest.mark.parametrize("name", ["hieupham", "ngango3", "desmond"])
def test_leaderboard_areas_as_reported(released, name):
    folder, studies, truth = released
    model = read_reader(folder / f"leaderboard_{name}.csv", studies, binary=False)
    areas = np.full(14, np.nan)
    columns = [LABELS.index(label) for label in model.labels]
    areas[columns] = auroc(truth[:, columns], model.values)
    mean, used = mean_over_labels(areas, COMPETITION_LABELS)
    reported = reported_figures()["chexpert_test_supervised_leaderboard"]["mean_auroc_5"][name]
    assert len(used) == 5 and round(mean, 4) == reported


def test_radiologists_mcc_and_f1_as_reported(released):
    folder, studies, truth = released
    doctors = [read_reader(folder / f"radiologist_bc{i}.csv", studies, binary=True) for i in (4, 6, 8)]
    found, reported = mean_rates(truth, doctors), reported_figures()["chexpert_test_radiologists"]
    np.testing.assert_array_equal(np.round(found.mcc, 3), reported["mcc"])
    np.testing.assert_array_equal(np.round(found.f1, 3), reported["f1"])
    assert round(found.mcc.mean(), 3) == reported["mean_mcc"] == 0.530
    assert round(found.f1.mean(), 3) == reported["mean_f1"] == 0.616


def test_model_beside_the_radiologists(released):
    folder, studies, truth = released
    doctors = [read_reader(folder / f"radiologist_bc{i}.csv", studies, binary=True) for i in (4, 6, 8)]
    probability = np.clip(truth * 0.2 + 0.4 + np.random.default_rng(0).normal(0, 0.05, truth.shape), 0, 1)
    section = readers.radiologist_section(result("test", truth, probability), doctors, n_bootstrap=50)
    row = next(row for row in section.tables[0].rows if row[:2] == ["MCC", "Mean of the five"])
    assert row[2] > 0.8 and row[4] == pytest.approx(0.530, abs=5e-4) and section.metrics["mean_f1"]["ours"] > 0.8


def test_reader_files_are_joined_by_name_and_refused_with_the_place(tmp_path):
    table = pd.DataFrame(
        {
            "Study": ["CheXpert-v1.0/test/patient2/study1", "CheXpert-v1.0/test/patient1/study1"],
            "Edema": [1, 0],
            "Atelectasis": [0, 1],
        }
    )
    path = tmp_path / "reader.csv"
    table.to_csv(path, index=False)
    studies = ["chexpert/test/patient1/study1", "chexpert/test/patient2/study1"]
    reader = read_reader(path, studies, binary=True)
    assert reader.labels == ["Atelectasis", "Edema"] and reader.values.tolist() == [[1, 0], [0, 1]]
    for wrong, message in (
        (table[:1], "no row for 1 of our 2"),
        (pd.concat([table, table]), "more than one row for the study 'patient2/study1'"),
        (pd.concat([table, table[1:]]), "more than one row for the study 'patient1/study1'"),
        (table.assign(Edema=[1, -1]), "'-1' is not 0 or 1"),
        (table.assign(Edema=[1, None]), "nan is not 0 or 1"),
        (table[["Study"]], "none of the labels"),
        (table.drop(columns="Study"), "lacks the column Study"),
    ):
        wrong.to_csv(path, index=False)
        with pytest.raises(UserError, match=message):
            read_reader(path, studies, binary=True)
    assert study_key("CheXpert-v1.0/test/patient9/study2/view1_frontal.jpg") == "patient9/study2"
    for other in ("patient9/view1/a", "of/study2/a", "case patient9/study2/a", "patient9"):
        assert study_key(f" {other} ") == other


# --- comparison with the paper, baselines ---


def test_beside_the_paper(tmp_path):
    truth, scores = working(120, 7)
    truth[:, LABELS.index("Fracture")] = 0
    section = paper_section(result("test", truth, scores), False, Figure(tmp_path / "a.png", ""))
    rows = {row[0]: row for row in section.tables[1].rows}
    edema = rows["Edema"]
    assert edema[5:] == [0.8994, "0.866–0.929"] and rows["Fracture"][1:5] == ["0 (few)", None, None, None]
    assert "The sets differ" in section.text[0] and "120" in section.text[0]
    assert not section.metrics["same_test_set"] and section.metrics["labels"]["Edema"]["difference"] is None
    assert not any("overlap" in column or column == "Difference" for column in section.tables[1].columns)
    means = section.tables[0].rows
    assert means[0][5:8] == [0.889, "reported (paper)", ""] and means[1][1] == "12 of 13"
    assert means[2][6].startswith("computed here")
    assert "0.931" in means[0][8]


def test_differences_to_the_paper_only_on_its_own_labels(tmp_path, released):
    _, studies, truth = released
    _, scores = working(500, 7)
    table = table_of(500).assign(study_id=studies)
    counted = Units("image", table, truth, np.arange(500), np.arange(500), 0)
    figure = Figure(tmp_path / "a.png", "")
    same = evaluate_set("test", counted, scores, np.full(14, 0.5), 20)
    section = paper_section(same, False, figure)
    edema = next(row for row in section.tables[1].rows if row[0] == "Edema")
    assert edema[7] == f"{edema[2] - 0.8994:+.3f}" and "unpaired and approximate" in section.text[0]
    low, high = (section.metrics["labels"]["Edema"][end] for end in ("lower", "upper"))
    n_pos = truth.sum(0)
    np.testing.assert_array_equal(same.newcombe, newcombe_interval(same.auroc, n_pos, 500 - n_pos))
    ours = (same.newcombe[1][3] - same.newcombe[0][3]) / 3.92
    assert (high - low) / 3.92 == pytest.approx(np.hypot(ours, (0.9295 - 0.8662) / 3.92), rel=1e-4)
    assert [round(row[5], 3) for row in section.tables[0].rows[1:3]] == [0.799, 0.747]
    swapped = truth.copy()
    swapped[0, 3] = 1 - swapped[0, 3]
    other = evaluate_set("test", Units("image", table, swapped, np.arange(500), np.arange(500), 0), scores, same.at, 20)
    assert "The sets differ" in paper_section(other, False, figure).text[0]


def test_baseline_against_itself_and_against_noise(tmp_path):
    truth, scores = working(150, 8)
    ours = result("test", truth, scores, n_bootstrap=200)
    same = baseline_section(ours, ours, ["a.pt"], tmp_path).metrics
    assert {one["p"] for one in same["labels"].values()} == {one["p_holm"] for one in same["labels"].values()} == {1.0}
    assert {one["difference"] for one in same["labels"].values()} == {0.0}
    noise = result("test", truth, np.random.default_rng(1).random(truth.shape), n_bootstrap=200)
    found = baseline_section(ours, noise, ["a.pt", "b.pt"], tmp_path).metrics
    assert found["means"]["mean_14"]["p"] < 0.02 and found["means"]["mean_14"]["lower"] > 0.1
    rare = truth.copy()
    rare[:, 2] = np.arange(150) < 9
    few = baseline_section(result("test", rare, scores), result("test", rare, scores[:, ::-1]), ["a"], tmp_path).metrics
    assert few["labels"]["Consolidation"]["p"] is None and few["means"]["mean_5"]["p"] is None
    assert few["means"]["mean_counted"]["p"] is not None
    assert all(one["p"] is None or one["p_holm"] >= one["p"] for one in few["labels"].values())


# --- sanity checks ---


def verdicts(valid: SetResult, test: SetResult) -> set[str]:
    return {check.name for check in sanity.alarms_of(sanity.label_checks(valid, test))}


def test_sound_sets_raise_no_flag_and_permuted_ones_do():
    valid, test = working(150, 10), working(300, 11)
    good_valid, good_test = result("valid", *valid), result("test", *test)
    assert verdicts(good_valid, good_test) == set()
    shuffled = result("test", np.random.default_rng(0).permutation(test[0]), test[1])
    assert "test labels belong to the test images" in verdicts(good_valid, shuffled)
    shuffled_valid = result("valid", np.random.default_rng(0).permutation(valid[0]), valid[1])
    assert "validation labels belong to the validation images" in verdicts(shuffled_valid, good_test)
    columns = np.roll(np.arange(14), 1)
    moved = verdicts(good_valid, result("test", test[0][:, columns], test[1]))
    assert "test label columns stand under their names" in moved
    swapped = test[0].copy()
    edema, fracture = LABELS.index("Edema"), LABELS.index("Fracture")
    swapped[:, [edema, fracture]] = swapped[:, [fracture, edema]]
    exchanged = verdicts(good_valid, result("test", swapped, test[1]))
    assert "test label columns stand under their names" in exchanged
    upside_down = result("test", test[0], 1 - test[1])
    assert "no finding is upside down on test" in verdicts(good_valid, upside_down)


def test_recorded_validation_and_built_files():
    truth, scores = working(100, 12)
    mean = mean_over_labels(auroc(truth, scores), FINDINGS)[0]
    assert sanity.as_recorded({"mean_13": mean}, scores, truth).verdict == sanity.PASSED
    assert sanity.as_recorded({"mean_13": mean - 0.05}, scores, truth).verdict == sanity.LOOK
    assert sanity.as_recorded({}, scores, truth).verdict == sanity.NOT_POSSIBLE
    one = EvaluationSet("test", Path("test.h5"), Path("test_labels.csv"), table_of(1), truth, "aa", "bb")
    assert sanity.as_built({"files": {"test.h5": {"sha256": "aa"}}}, [one]).verdict == sanity.PASSED
    assert sanity.as_built({"files": {"test.h5": {"sha256": "ab"}}}, [one]).verdict == sanity.LOOK
    assert sanity.as_built({}, [one]).verdict == sanity.NOT_POSSIBLE
    shared = {check.name: check.verdict for check in sanity.shared_cases(one, one)}
    assert shared["no patient is in both sets"] == shared["the two image files differ"] == sanity.LOOK


# --- sets, levels, predictions ---


def set_of(views: list[tuple[str, str]], truth: list[int]) -> EvaluationSet:
    table = pd.DataFrame(views, columns=["study_id", "view"])
    table.insert(0, "id", [f"row{i}" for i in range(len(table))])
    table.insert(1, "patient_id", table["study_id"])
    return EvaluationSet(
        "test",
        Path("test.h5"),
        Path("test_labels.csv"),
        table,
        np.tile(np.array(truth, float)[:, None], (1, 14)),
        "",
        "",
    )


def test_levels():
    one = set_of(
        [("b", "lateral"), ("b", "frontal"), ("a", "frontal"), ("b", "frontal"), ("c", "lateral")], [1, 1, 0, 1, 0]
    )
    scores = np.array([[0.9], [0.2], [0.3], [0.4], [0.5]])
    image = units(one, "image")
    assert image.table["id"].tolist() == ["row1", "row2"] and image.left_out == 1
    assert image.reduce(scores).ravel().tolist() == [0.2, 0.3]
    mean, largest = units(one, "study_mean"), units(one, "study_max")
    assert mean.table["study_id"].tolist() == ["b", "a", "c"] and mean.truth[:, 0].tolist() == [1, 0, 0]
    np.testing.assert_allclose(mean.reduce(scores).ravel(), [0.5, 0.3, 0.5])
    np.testing.assert_allclose(largest.reduce(scores).ravel(), [0.9, 0.3, 0.5])
    with pytest.raises(UserError, match="row 2: the labels differ"):
        units(set_of([("a", "frontal"), ("a", "frontal")], [0, 1]), "image")
    with pytest.raises(UserError, match="no frontal view"):
        units(set_of([("a", "lateral")], [0]), "image")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores: scores.fill(0.5), "the same for every image"),
        (lambda scores: scores.__setitem__((3, 2), 1.5), r"row 4, Consolidation: the prediction 1.5 is outside 0..1"),
        (lambda scores: scores.__setitem__((0, 0), np.nan), "outside 0..1"),
    ],
)
def test_impossible_predictions_are_refused(change, message):
    scores = np.random.default_rng(0).random((10, 14))
    check_predictions(scores, "x")
    change(scores)
    with pytest.raises(UserError, match=message):
        check_predictions(scores, "x")


def test_constant_images_are_refused_by_name(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (70, 8, 8)).astype(np.uint8)
    with h5py.File(tmp_path / "test.h5", "w") as handle:
        handle["cxr"] = images
        handle["id"] = [f"study{i}" for i in range(70)]
    check_images(tmp_path / "test.h5")
    with h5py.File(tmp_path / "test.h5", "a") as handle:
        handle["cxr"][66] = 0
    with pytest.raises(UserError, match="1 of 70 images are of one grey value .the first is study66"):
        check_images(tmp_path / "test.h5")


def test_upstreams_files_without_ids(tmp_path, caplog):
    with h5py.File(tmp_path / "test.h5", "w") as handle:
        handle["cxr"] = np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.float32)
    pd.DataFrame(np.eye(3, 14, dtype=int), columns=LABELS).to_csv(tmp_path / "test_labels.csv", index=False)
    assert len(units(read_set(tmp_path, "test"), "image").table) == 3
    assert "do not both have ids" in caplog.text
    with pytest.raises(UserError, match="--data"):
        read_set(tmp_path, "valid")


@pytest.mark.parametrize("missing", ["study_id", "view"])
def test_rows_without_a_study_or_a_view_are_studies_of_their_own(tmp_path, missing, caplog):
    with h5py.File(tmp_path / "test.h5", "w") as handle:
        handle["cxr"] = np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.uint8)
        handle["id"] = list("abc")
    table = pd.DataFrame(np.eye(3, 14, dtype=int), columns=LABELS)
    table = table.assign(id=list("abc"), study_id=list("ssu"), view=[" Lateral", "frontal", "frontal"])
    table.to_csv(tmp_path / "test_labels.csv", index=False)
    assert list(read_set(tmp_path, "test").table["view"]) == ["lateral", "frontal", "frontal"] and not caplog.text
    table.drop(columns=missing).to_csv(tmp_path / "test_labels.csv", index=False)
    found = read_set(tmp_path, "test").table
    assert "has no columns study_id and view" in caplog.text and list(found["view"]) == ["frontal"] * 3
    assert list(found["study_id"]) == list(found["patient_id"]) == list("abc" if missing == "study_id" else "ssu")


# --- prompts ---


def test_the_packages_prompts():
    prompts = read_alternatives()
    assert {prompt.label for prompt in prompts} == set(LABELS)
    sound = [prompt for prompt in prompts if prompt.label == NO_FINDING]
    assert [prompt.name for prompt in sound] == ["pair"]
    assert not any("no no" in text.lower() for prompt in prompts for text in prompt.positive + prompt.negative)
    assert upstream_prompts()[8].negative == ("no No Finding",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("synonyms: {Oedema: [a]}", "none of the labels"),
        ("templates: {positive: [a], negative: [b]}", "has no {}"),
        ("pairs: {Edema: {positive: [a]}}", "positive. and .negative"),
        ("synonyms: {Edema: words}", "list of texts"),
        ("words: {}", "not words"),
        ("[1]", "must hold"),
        ("a: [", "not valid YAML"),
    ],
)
def test_wrong_prompt_files(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_alternatives(tmp_path / "p.yaml")


def test_alternative_is_chosen_by_validation_alone():
    prompts = [prompt for prompt in upstream_prompts() + read_alternatives() if prompt.label in ("Edema", "Fracture")]
    truth = np.zeros((40, 14))
    truth[:20, LABELS.index("Edema")] = 1
    scores = np.random.default_rng(0).random((40, len(prompts)))
    best = [k for k, prompt in enumerate(prompts) if prompt.label == "Edema"][2]
    scores[:20, best] += 1
    chosen = best_on_validation(prompts, truth, scores)
    assert chosen["Edema"] == best and prompts[chosen["Fracture"]].name == UPSTREAM  # Fracture has no positive case


# --- a run's folder ---


def test_best_steps_and_paths_stay_in_the_run(tmp_path):
    for step in (0, 10, 20):
        (tmp_path / f"checkpoint_{step}.pt").write_bytes(b"x")
    (tmp_path / "metrics.csv").write_text("step,mean_5,val_loss\n0,,3\n10,0.7,1\n20,0.7,2\n30,0.9,0\n")
    run = read_run(tmp_path)
    assert run.best_steps(2) == [10, 20]  # step 30 was validated but its checkpoint is gone
    assert RunFolder(tmp_path, selection={"metric": "val_loss"}, metrics=run.metrics).best_steps(3) == [10, 20, 0]
    with pytest.raises(UserError, match="fewer than the 3"):
        run.best_steps(3)
    run.selection = {"checkpoint": "../../etc/passwd"}
    with pytest.raises(UserError, match="does not exist"):
        run.selected()
    assert step_of(Path("best_64_0.0001_original_17000_0.863.pt")) == 17000 and step_of(Path("model.pt")) is None


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_calibration_of_what_is_no_probability_is_refused(value):
    with pytest.raises(UserError, match="outside 0..1"):
        reliability([0, 1], [0.5, value])
    assert reliability([0, 1], [0.0, 1.0]).ece == 0


def test_a_constant_prediction_is_scaled_to_the_frequency_of_its_label():
    """A constant cannot separate the classes, so the result is the mean of Platt's targets: 4/5 three times and 1/3."""
    found = platt([[1], [1], [0], [1]], np.full((4, 1), 0.3), [[0.3], [0.3]])
    np.testing.assert_allclose(found, (3 * 4 / 5 + 1 / 3) / 4, atol=1e-4)


def test_a_probability_on_the_edge_of_two_bins_belongs_to_the_upper_one_and_1_to_the_last():
    found = reliability([0, 0, 1, 1, 0], [0.0, 0.24, 0.25, 1.0, 0.75], n_bins=4)
    assert found.count.tolist() == [2, 1, 2]
    np.testing.assert_allclose(found.mean_predicted, [0.12, 0.25, 0.875])
    assert found.fraction_positive.tolist() == [0, 1, 0.5]
    assert found.ece == pytest.approx((2 * 0.12 + 0.75 + 2 * 0.375) / 5)


@pytest.mark.parametrize("turned", [False, True])
def test_classes_that_touch_are_apart_and_no_probability_is_too_large_or_small(turned):
    """Without regularisation four cases would give probabilities of 0 and 1."""
    scores = np.array([[0.2], [0.5], [0.5], [0.8]])
    found = platt(np.array([[0], [0], [1], [1]]), 1 - scores if turned else scores, np.array([[0.0], [0.8], [1.0]]))
    assert np.isfinite(found).all() and (np.abs(found[1] - 0.5) < 0.35).all()
    assert (found[0] > found[2]) if turned else (found[0] < found[2])
    for one_class in (0, 1):
        assert np.isnan(platt([[one_class]] * 2, [[0.2], [0.3]], [[0.5]])).all()
