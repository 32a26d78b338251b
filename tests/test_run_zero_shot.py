"""The evaluation command from a run's folder to its report, and its errors."""

import html
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
from evaluation_run import change_labels, metrics_of, write_run

import chexzero
import run_zero_shot
from chexzero.common.errors import EXIT_ALARM, UserError
from chexzero.common.files import sha256_of
from chexzero.common.labels import FINDINGS, LABELS, NO_FINDING
from chexzero.common.statistics import auroc, bootstrap_auroc, percentile_interval
from chexzero.compare import __main__ as compare
from chexzero.evaluation.checkpoint_choice import choose
from chexzero.evaluation.measure import measure as measured
from chexzero.evaluation.standing import read_standing
from chexzero.export.write import export
from chexzero.models.checkpoints import load_model
from chexzero.report.sanity import label_checks, sanity_section

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A data folder, a run, and its evaluation in `results/small`."""
    root = tmp_path_factory.mktemp("evaluation")
    write_run(root)
    evaluate(root, "--baseline", str(baseline(root)), "--thumbnails", "--n_bootstrap", "200")
    return root


def baseline(root: Path) -> Path:
    folder = root / "baseline"
    folder.mkdir()
    for step in (10, 20):
        shutil.copy(root / "checkpoints" / "small" / f"checkpoint_{step}.pt", folder)
    return folder


def arguments(root: Path, *more: str):
    return run_zero_shot.parse_args(
        ["--run", str(root / "checkpoints" / "small"), "--out", str(root / "results"), "--device", "cpu", *more]
    )


def evaluate(root: Path, *more: str) -> Path:
    return run_zero_shot.evaluate(arguments(root, *more))


def measure(root: Path, *more: str):
    args = arguments(root, "--n_bootstrap", "50", *more)
    return measured(args, choose(args))


@pytest.fixture
def copy(place, tmp_path) -> Path:
    """A copy of `place`, with the cache of predictions, that a test may damage."""
    shutil.copytree(place, tmp_path / "copy")
    config = tmp_path / "copy" / "checkpoints" / "small" / "config.json"
    config.write_text(config.read_text().replace(str(place), str(tmp_path / "copy")))
    return tmp_path / "copy"


def test_an_exported_folder_is_a_checkpoint(place, tmp_path):
    export(load_model(place / "checkpoints" / "small" / "checkpoint_20.pt"), "open_clip", tmp_path / "exported")
    found = measure(place, "--checkpoint", str(tmp_path / "exported"))
    np.testing.assert_allclose(found.by_image[1], measure(place).by_image[1], atol=1e-6)
    assert found.predictors[0].checkpoint.name == "exported"
    with pytest.raises(UserError, match="name a run's folder with --run"):
        measure(place, "--checkpoint", str(place / "checkpoints" / "small"))


def test_metrics_json_keeps_the_contract(place):
    found = metrics_of(place / "results" / "small")
    assert found["selected"] == {
        "checkpoint": "checkpoint_20.pt",
        "step": 20,
        "reason": "Step 20 had the highest mean_5 of 3.",
    }
    assert found["drawn"] is True
    for name, n in (("valid", 60), ("test", 90)):
        one = found[name]
        table = pd.read_csv(place / "results" / "small" / f"predictions_{name}.csv")
        labels = pd.read_csv(place / "data" / f"{name}_labels.csv").set_index("id").loc[table["id"]]
        assert list(table) == ["id", "patient_id", "study_id", "view", *LABELS] and len(table) == n
        assert (table["view"] == "frontal").all() and table["study_id"].is_unique
        truth, scores = labels[LABELS].to_numpy(), table[LABELS].to_numpy()
        areas = auroc(truth, scores)
        lower, upper = percentile_interval(bootstrap_auroc(truth, scores, 200))
        for i, label in enumerate(LABELS):
            values = one["labels"][label]
            assert values["n_pos"] == truth[:, i].sum() and values["n"] == n
            if np.isnan(areas[i]):
                assert values["auroc"] is values["lower"] is values["upper"] is values["f1"] is None
            else:
                np.testing.assert_allclose(
                    [values["auroc"], values["lower"], values["upper"]], [areas[i], lower[i], upper[i]], atol=1e-9
                )
        assert one["mean_14"] == pytest.approx(np.nanmean(areas), abs=1e-9)
        assert one["mean_13"] == pytest.approx(np.nanmean(areas[[LABELS.index(name) for name in FINDINGS]]), abs=1e-9)
        assert one["mean_13_interval"][0] < one["mean_13"] < one["mean_13_interval"][1]
    assert found["valid"]["labels"]["Fracture"]["auroc"] is None
    assert "Fracture" not in found["valid"]["mean_13_labels"]
    assert found["test"]["mean_13"] > 0.7  # the model was fitted to the findings
    assert found["sections"]["prompts"]["sound_no_finding"]["test"]["mean_14"] is not None


def test_report_has_what_a_reader_needs(place):
    folder = place / "results" / "small"
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    mean = metrics_of(folder)["valid"]["mean_5"]
    for wanted in (
        "the checkpoint was selected by mean_5 0.800",
        f"counts (60 of 72 images): mean_5 {mean:.3f} for the same",
        "drawn by a program",
        "Beside CheXzero",
        "0.889",
        "Step 20 had the highest",
        "Sanity checks",
        "Fracture (0 of 60 positive)",
        "SHA-256",
        "Most confident cases",
        "patient20000",
        "Beside the baseline",
    ):
        assert wanted in page and wanted in text, wanted
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "small &amp; &lt;b&gt;odd" in page
    for name in (
        "roc",
        "precision_recall",
        "reliability",
        "beside_chexzero",
        "validation_auroc",
        "training_loss",
        "baseline",
    ):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert page.count("data:image/png;base64,") == 7 + 14
    assert (folder / "tables" / "areas.csv").is_file() and (folder / "tables" / "areas.tex").is_file()
    rival = metrics_of(folder)["sections"]["baseline"]
    assert rival["checkpoints"] == ["checkpoint_10.pt", "checkpoint_20.pt"]
    assert 0 < rival["means"]["mean_13"]["p"] <= 1


def test_second_evaluation_reads_predictions_from_the_cache(place, monkeypatch):
    monkeypatch.setattr("chexzero.zero_shot.load_model", lambda *_: pytest.fail("the model was loaded again"))
    first = metrics_of(place / "results" / "small")["test"]["mean_14"]
    assert measure(place).test.mean("mean_14").value == pytest.approx(first, abs=1e-12)
    reads = json.loads((place / "data" / "test_reads.json").read_text())
    assert [(read["names"], read["run"]) for read in reads] == [(["checkpoint_20.pt"], "small")]


def test_cache_is_keyed_by_content_not_by_name(copy):
    run = copy / "checkpoints" / "small"
    before = measure(copy).test.auroc
    shutil.copy(run / "checkpoint_0.pt", run / "checkpoint_20.pt")
    assert not np.allclose(measure(copy).test.auroc, before)
    shutil.copy(run / "checkpoint_10.pt", run / "checkpoint_20.pt")
    cached = list((copy / "results" / ".cache").glob("*.npy"))
    for path in cached:
        path.write_bytes(path.read_bytes()[:100])  # a damaged cache is recomputed
    assert not np.allclose(measure(copy).test.auroc, before)


def test_ensemble_is_the_mean_of_the_probabilities(place):
    run = place / "checkpoints" / "small"
    both = measure(place, "--ensemble", "top", "2").test.probability
    each = [measure(place, "--checkpoint", str(run / f"checkpoint_{step}.pt")).test.probability for step in (20, 10)]
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-12)
    args = arguments(place, "--ensemble", "top", "2")
    assert choose(args).selected == {
        "checkpoint": "checkpoint_20.pt",
        "step": 20,
        "ensemble": ["checkpoint_10.pt", "checkpoint_20.pt"],
        "reason": "Ensemble (mean of the probabilities) of the 2 checkpoints with the best mean_5 on validation: "
        "steps 20, 10, of 3 validated.",
    }


def test_named_checkpoints_of_a_run_have_no_step(place):
    run = place / "checkpoints" / "small"
    named = [str(run / f"checkpoint_{step}.pt") for step in (20, 10)]
    selected = choose(arguments(place, "--checkpoint", *named)).selected
    assert (selected["checkpoint"], selected["step"]) == ("checkpoint_10.pt", None)
    assert selected["ensemble"] == ["checkpoint_10.pt", "checkpoint_20.pt"]


def test_the_best_of_several_runs_are_one_ensemble(place, tmp_path):
    first = place / "checkpoints" / "small"
    second = tmp_path / "smaller"
    shutil.copytree(first, second)
    words = ["--runs", str(first), str(second), "--ensemble", "top", "3", "--device", "cpu", "--n_bootstrap", "50"]
    settings = run_zero_shot.parse_args([*words, "--out", str(place / "results")])
    choice = choose(settings)
    assert choice.name == "small_top_3" and choice.data_dir() == place / "data"
    best = [path.parent.name + "/" + path.name for path in choice.checkpoints]
    assert (
        best
        == choice.selected["ensemble"]
        == ["small/checkpoint_20.pt", "smaller/checkpoint_20.pt", "small/checkpoint_10.pt"]
    )
    found = measured(settings, choice).test.probability
    each = [measure(place, "--checkpoint", str(path)).test.probability for path in choice.checkpoints]
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-12)


@pytest.mark.parametrize("words", [["--runs", "a", "b"], ["--runs", "a", "--run", "b", "--ensemble", "top", "2"]])
def test_several_runs_are_an_ensemble_and_nothing_else(words):
    with pytest.raises(UserError, match="--runs takes the best"):
        run_zero_shot.parse_args(words)


def test_study_level_uses_all_views(place):
    image, largest = measure(place).test, measure(place, "--level", "study_max").test
    assert len(image) == len(largest) == 90
    assert (largest.probability >= image.probability - 1e-12).all() and (largest.probability > image.probability).any()


def test_permuted_labels_are_flagged(copy):
    def permute(table: pd.DataFrame) -> pd.DataFrame:
        table[LABELS] = (
            table.groupby("study_id", sort=False)[LABELS]
            .first()
            .sample(frac=1, random_state=0)
            .set_axis(table["study_id"].unique())
            .loc[table["study_id"]]
            .to_numpy()
        )
        return table

    change_labels(copy / "data", "test", permute)
    found = measure(copy)
    assert abs(found.test.mean("mean_13").value - 0.5) < 0.08
    section = sanity_section(label_checks(found.valid, found.test))
    assert "test labels belong to the test images" in section.metrics["flagged"]
    assert any("LOOK HERE" in row for row in section.tables[0].rows)


@pytest.mark.usefixtures("blank_figures")
def test_alarms_stand_at_the_top_everywhere(copy, capsys, monkeypatch):
    folder = copy / "results" / "small"
    evaluate(copy, "--n_bootstrap", "20")
    made_up = {"validation AUROC as training recorded it", "validation labels are as frequent as can be expected"}
    assert set(metrics_of(folder)["alarms"]) == made_up  # from this run's artificial record and missing Fracture
    capsys.readouterr()
    change_labels(copy / "data", "test", lambda table: table.assign(**{NO_FINDING: 1 - table[NO_FINDING]}))
    words = ["--run", str(copy / "checkpoints" / "small"), "--out", str(copy / "results"), "--n_bootstrap", "20"]
    codes = []
    for more in ([], ["--strict"]):
        monkeypatch.setattr(sys, "argv", ["run_zero_shot.py", *words, *more])
        codes.append(run_zero_shot.main())
    assert codes == [0, EXIT_ALARM] and EXIT_ALARM == 3
    alarms = metrics_of(folder)["alarms"]
    assert set(alarms) > made_up and any(NO_FINDING in text for text in alarms.values())
    page, printed = (folder / "report.html").read_text(), capsys.readouterr().out
    for name in alarms:
        shown = html.escape(name, quote=False).replace("'", "&#39;")
        assert shown in page.partition("<h1>")[0] and shown in page.partition('class="summary"')[2].partition("</p>")[0]
        assert f"LOOK HERE  {name}" in printed


def test_runs_side_by_side(copy, capsys):
    run = copy / "checkpoints" / "small"
    words = [str(run), str(run / "checkpoint_10.pt"), str(run / "checkpoint_0.pt"), "--out", str(copy / "results")]
    compare.main([*words, "--device", "cpu"])
    folder = copy / "results" / "comparison"
    found = json.loads((folder / "metrics.json").read_text())
    whole = metrics_of(copy / "results" / "small")["test"]
    assert found["models"]["small"]["means"]["mean_13"] == pytest.approx(whole["mean_13"], abs=1e-6)
    worst = found["differences"]["checkpoint_0"]["Edema"]
    assert worst["difference"] < 0 and worst["p"] <= worst["p_holm"]
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "Difference in AUROC to small" in page
    assert len(json.loads((copy / "data" / "test_reads.json").read_text())) == 3
    with pytest.raises(UserError, match="one run cannot be compared"):
        compare.main([str(run)])
    with pytest.raises(UserError, match="is named twice"):
        compare.main([str(run), str(run), str(run)])


def test_the_reporting_checklist(place):
    folder = place / "results" / "small"
    text, latex = (folder / "reporting.md").read_text(), (folder / "reporting.tex").read_text()
    assert "the author's to write" in text and "Step 20 had the highest" in text
    assert latex.count(r"\begin{longtable}") == latex.count(r"\end{longtable}") == 1
    assert "Reporting checklist" in (folder / "report.html").read_text()


def test_what_the_figures_came_from(place):
    found = metrics_of(place / "results" / "small")
    kept = found["provenance"]
    assert kept["checkpoint_sha256"] == {
        "checkpoint_20.pt": sha256_of(place / "checkpoints" / "small" / "checkpoint_20.pt")
    }
    assert kept["settings"]["n_bootstrap"] == 200 and kept["versions"]["code"] and kept["command"]
    assert found["sections"]["overlap"]["holds_for_this_model"] is False
    page = (place / "results" / "small" / "report.html").read_text()
    assert "is unknown, because there is no overlap audit" in page
    assert found["test"]["labels"]["Edema"]["newcombe_lower"] < found["test"]["labels"]["Edema"]["auroc"]
    assert found["test"]["mean_counted"] is not None and "Fracture" not in found["valid"]["mean_counted_labels"]


def blank(table):
    return table.astype(object).assign(Edema=[None, *table["Edema"][1:]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.assign(Edema=[-1, *table["Edema"][1:]]), "row 1, column Edema: '-1' is not 0 or 1"),
        (blank, "row 1, column Edema: nan is not 0 or 1"),
        (lambda table: table.drop(columns="Edema"), "lacks the column Edema"),
        (lambda table: table[1:], "images but"),
        (lambda table: table[::-1], "row 0 of"),
        (lambda table: table.assign(Edema=[1 - table["Edema"][0], *table["Edema"][1:]]), "those of another view"),
    ],
)
def test_wrong_label_files_are_refused(copy, change, message):
    change_labels(copy / "data", "test", change)
    with pytest.raises(UserError, match=message):
        measure(copy)


def test_black_images_are_refused(copy):
    with h5py.File(copy / "data" / "test.h5", "a") as handle:
        handle["cxr"][...] = 0
    with pytest.raises(UserError, match="108 of 108 images are of one grey value"):
        measure(copy)


def test_constant_predictions_are_refused(copy):
    import torch

    path = copy / "checkpoints" / "small" / "checkpoint_20.pt"
    state = torch.load(path, weights_only=True)
    state["visual.ln_post.weight"].zero_()  # every image then has the same feature
    torch.save(state, path)
    with pytest.raises(UserError, match="the same for every image"):
        measure(copy)


def test_cached_predictions_outside_0_to_1_are_refused(copy):
    for path in (copy / "results" / ".cache").glob("*.npy"):
        np.save(path, np.load(path) + 1)
    with pytest.raises(UserError, match="outside 0..1"):
        measure(copy)


def test_a_folder_of_images(place, tmp_path):
    images = tmp_path / "my images"
    images.mkdir()
    with h5py.File(place / "data" / "test.h5") as handle:
        for i in range(3):
            cv2.imwrite(str(images / f"{i}.png"), handle["cxr"][i])
    (images / "broken.png").write_bytes(b"no image")
    cv2.imwrite(str(images / "black.jpg"), np.zeros((50, 50), np.uint8))
    args = arguments(place, "--images", str(images), "--labels", "Pleural Effusion", "pneumothorax")
    written = run_zero_shot.predict_images(args)
    assert written == place / "results" / "small" / "images_my_images.csv"
    table = pd.read_csv(written)
    assert table["image"].tolist() == ["0.png", "1.png", "2.png"]
    assert list(table) == ["image", "Pleural Effusion", "pneumothorax"]
    stands = pd.read_csv(written.with_name("images_my_images_standing.csv"))
    assert stands["finding"].tolist() == ["Pleural Effusion"] * 3
    valid = pd.read_csv(place / "results" / "small" / "predictions_valid.csv")["Pleural Effusion"]
    one, label = stands.iloc[0], metrics_of(place / "results" / "small")["test"]["labels"]["Pleural Effusion"]
    assert one["percentile"] == pytest.approx(100 * (valid < one["probability"]).mean(), abs=1)
    assert one["called"] == (one["probability"] >= label["threshold"]) and one["sensitivity"] == label["sensitivity"]
    assert read_standing(place / "results" / "small", "other weights") is None
    loaded = chexzero.load(place / "checkpoints" / "small")
    found = loaded.standing(place / "results" / "small").percentile("Pleural Effusion", one["probability"])
    assert found == pytest.approx(one["percentile"])
    with pytest.raises(UserError, match="not an evaluation of these weights"):
        loaded.standing(place)
    whole = pd.read_csv(place / "results" / "small" / "predictions_test.csv")["Pleural Effusion"]
    np.testing.assert_allclose(table["Pleural Effusion"][0], whole[0], atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to evaluate"),
        (["--run", "missing"], "missing is not a folder"),
        (["--checkpoint", "missing.pt"], "missing.pt does not exist"),
    ],
)
def test_what_is_evaluated_must_be_there(words, message):
    with pytest.raises(UserError, match=message):
        choose(run_zero_shot.parse_args(words))


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path):
    command = [sys.executable, ROOT / "run_zero_shot.py", "--labels", "edema"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "--labels belongs to --images" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
