"""Evaluation sets by name: unknown labels, custom protocols, and the figures against scikit-learn."""

import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from evaluation_run import draw, metrics_of, write_run
from sklearn.metrics import roc_auc_score

import run_zero_shot
from chexzero.common.errors import UserError
from chexzero.common.files import read_json, write_json
from chexzero.common.intervals import paired_areas
from chexzero.common.labels import LABELS
from chexzero.evaluation.checkpoint_choice import choose
from chexzero.evaluation.named_sets import (
    NamedSet,
    Protocol,
    Summary,
    mean_difference,
    read_named_set,
    read_protocol,
    score_choices,
    score_findings,
    summarise,
)
from chexzero.evaluation.prompt_choice import OWN, WAYS, ask_sets, pairs
from chexzero.evaluation.settings import EvaluationSettings
from chexzero.evaluation.trained_images import _end, image_hashes, trained_images
from chexzero.runs.run_folder import read_run

ROOT = Path(__file__).parents[1]
FINDINGS = ["edema", "fracture", "normal", "Pneumothorax, left"]


def write_set(folder: Path, name: str = "little", n: int = 40, **changes: object) -> pd.DataFrame:
    """`<name>.h5` and its labels: four columns, one with a comma in its name, a fifth of the cells empty."""
    random = np.random.default_rng(3)
    truth = (random.random((n, 4)) < 0.4).astype(int).astype(object)
    truth[random.random((n, 4)) < 0.2] = ""
    ids = [f"{name}/{i}" for i in range(n)]
    table = pd.DataFrame({"id": ids, "patient_id": ids, "study_id": ids, "view": "frontal"})
    table = pd.concat([table, pd.DataFrame(truth, columns=FINDINGS)], axis=1)
    for column, values in changes.items():
        table[column] = values
    with h5py.File(folder / f"{name}.h5", "w") as handle:
        handle["cxr"] = np.stack([draw(random.random(13) < 0.3, random) for _ in range(n)])
        handle.create_dataset("id", data=ids, dtype=h5py.string_dtype())
    table.to_csv(folder / f"{name}_labels.csv", index=False)
    return table


def set_of(truth: np.ndarray, protocol: Protocol) -> NamedSet:
    names = [f"f{j}" for j in range(truth.shape[1])]
    table = pd.DataFrame({"id": map(str, range(len(truth)))})
    return NamedSet("one", Path("one.h5"), Path("one_labels.csv"), table, names, truth, protocol, "aa")


def test_unknown_labels_are_left_out_and_areas_are_scikit_learns():
    random = np.random.default_rng(0)
    truth, scores = (random.random((60, 5)) < 0.3).astype(float), random.random((60, 5))
    truth[random.random((60, 5)) < 0.3] = np.nan
    truth[:, 4] = np.where(np.isnan(truth[:, 4]), np.nan, 0)  # no positive image
    found = score_findings(truth, scores)
    for j in range(4):
        known = np.isfinite(truth[:, j])
        assert found.auroc[j] == pytest.approx(roc_auc_score(truth[known, j], scores[known, j]), abs=1e-12)
        assert found.lower[j] < found.auroc[j] < found.upper[j]
        assert (found.n_pos[j], found.n_known[j]) == (truth[known, j].sum(), known.sum())
        assert not found.influence[~known, j].any()
    assert np.isnan([found.auroc[4], found.lower[4], found.upper[4]]).all()


def test_summaries_choose_columns_by_name_and_count():
    random = np.random.default_rng(1)
    truth = (random.random((400, 6)) < [0.5, 0.3, 0.1, 0.05, 0.02, 0.4]).astype(float)
    scores = np.clip(truth * 0.5 + random.random((400, 6)), 0, 2)
    summaries = [
        Summary("more", more_than=30),
        Summary("rarest", all_columns=True, rarest=2),
        Summary("only", only=["f0", "f1"], but=["f1"]),
    ]
    data = set_of(truth, Protocol("one", no_findings=["f5"], summaries=summaries))
    found = score_findings(truth, scores)
    every, more, rarest, only = summarise(data, found)
    assert every.used == [0, 1, 2, 3, 4] and every.mean == pytest.approx(found.auroc[:5].mean())
    assert more.used == [j for j in range(5) if found.n_pos[j] > 30]
    for count, used in ((found.n_pos[1], 1), (found.n_pos[1] - 1, 2)):
        few = set_of(truth, Protocol("one", no_findings=["f5"], summaries=[Summary("more", more_than=int(count))]))
        assert len(summarise(few, found)[1].used) == used
    assert sorted(rarest.used) == [3, 4] and only.used == [0]
    assert every.counts == {at: int((found.auroc[:5] >= at).sum()) for at in (0.9, 0.7)}
    assert every.lower < every.mean < every.upper


def test_the_packages_protocols_can_be_read_and_name_their_sources(tmp_path):
    folder = ROOT / "chexzero/evaluation/protocols"
    names = [path.stem for path in folder.glob("*.yaml")]
    known = {"padchest", "openi", "chestxray14", "rsna", "siim", "montgomery", "shenzhen", "chexpert", "vindr", "mimic"}
    assert known | {"chexpert5x200", "mimic5x200"} <= set(names)
    for name in names:
        protocol = read_protocol(tmp_path, name)
        assert protocol.source and protocol.summaries
        for summary in protocol.summaries:
            assert all(figures["where"] for figures in summary.published.values())
    padchest = read_protocol(tmp_path, "padchest")
    assert padchest.prompts("COPD signs") == (["copd signs"], ["no copd signs"])  # CheXzero's own wording
    assert [one.title for one in padchest.summaries][2:] == [
        "192 labels (the list without normal)",
        "the 20 rarest of the 192",
    ]


def test_a_protocol_of_ones_own(tmp_path):
    own = {
        "title": "Little",
        "synonyms": {"edema": ["edema", "fluid"]},
        "pairs": {"normal": {"positive": ["normal chest"], "negative": ["abnormal chest"]}},
        "templates": {"positive": ["there is {}"], "negative": ["there is no {}", "without {}"]},
    }
    (tmp_path / "little.yaml").write_text(yaml.safe_dump(own))
    protocol = read_protocol(tmp_path, "little")
    assert protocol.prompts("edema")[0] == ["there is edema", "there is fluid"]
    assert len(protocol.prompts("edema")[1]) == 4 and protocol.prompts("normal")[1] == ["abnormal chest"]
    assert protocol.prompts("mass {x}")[0] == ["there is mass {x}"]  # braces in a name are not a format field


@pytest.mark.parametrize(
    "text",
    [
        "title: [",
        "title: x\ntitle: y",
        "- a",
        "titel: x",
        "title: x\nsummaries: [{name: x}]",
        "title: x\npairs: {a: {positive: [b]}}",
        "title: x\ntemplates: {positive: ['{}'], negative: []}",
        "title: x\nsynonyms: {a: [1]}",
    ],
)
def test_a_wrong_protocol_is_one_sentence(tmp_path, text):
    (tmp_path / "little.yaml").write_text(text)
    with pytest.raises(UserError, match="little.yaml is (no protocol|not valid YAML)"):
        read_protocol(tmp_path, "little")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edema": 2}, "row 1, column edema: '2' is not 0, 1 or empty"),
        ({"edema": "yes"}, "'yes' is not 0, 1 or empty"),
        ({"id": [f"little/{i}" for i in range(40)][::-1]}, "row 0 of"),
    ],
)
def test_wrong_labels_are_refused(tmp_path, change, message):
    write_set(tmp_path, **change)
    with pytest.raises(UserError, match=message):
        read_named_set(tmp_path, "little")
    with pytest.raises(UserError, match="evaluation-set other"):
        read_named_set(tmp_path, "other")


@pytest.mark.usefixtures("blank_figures")
def test_the_command_scores_sets_beside_the_14_labels(tmp_path):
    data, run = write_run(tmp_path)
    table = write_set(data)
    shutil.copy(data / "little.h5", data / "padchest.h5")
    shutil.copy(data / "little_labels.csv", data / "padchest_labels.csv")
    flags = ["--run", str(run), "--out", str(tmp_path / "results"), "--n_bootstrap", "20", "--device", "cpu"]
    path = run_zero_shot.evaluate(run_zero_shot.parse_args([*flags, "--sets", "little", "padchest"]))
    found = metrics_of(path.parent)["sections"]
    predicted = pd.read_csv(path.parent / "predictions_little.csv")
    for name in FINDINGS:
        known = table[name].ne("").to_numpy()
        truth, area = table[name][known].astype(int), found["set_little"]["findings"][name]
        assert area["auroc"] == pytest.approx(roc_auc_score(truth, predicted[name][known]), abs=1e-9)
        assert (area["n"], area["n_pos"]) == (known.sum(), truth.sum())
    assert found["sets"]["padchest"]["findings"] == 3 and found["sets"]["little"]["findings"] == 4
    choice = found["prompt_choice"]["little"]
    assert (
        choice["chosen"] == found["prompt_choice"]["padchest"]["chosen"] and choice["chosen_on"] == "valid_labels.csv"
    )
    assert choice["worth"] == pytest.approx(choice["means"][choice["chosen"]] - choice["means"]["pair"], abs=2e-6)
    assert choice["lower"] <= choice["worth"] <= choice["upper"]
    assert choice["means"]["pair"] == pytest.approx(found["sets"]["little"]["mean_auroc"], abs=1e-9)  # same prompts
    page = path.read_text()
    assert "PadChest, physicians’ labels" in page and "RadZero" in page and "Pneumothorax, left" in page
    assert (path.parent / "figures/set_little.pdf").is_file()


FIVE = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]


def test_the_likeliest_of_five_and_the_precision_of_retrieval():
    truth = np.eye(5)[np.arange(60) % 5]
    truth[0, 1] = 1  # two findings: excluded
    truth[1] = np.nan
    random = np.random.default_rng(4)
    scores = np.where(np.nan_to_num(truth) == 1, 0.6, 0.4) + 0.2 * random.random(truth.shape)
    scores[2] = [0.9, 0.1, 0.1, 0.1, 0.1]  # wrong
    scores[3] = 0.5  # a tie of five
    data = replace(set_of(truth, Protocol("one", one_of=[f"f{j}" for j in range(5)])))
    found = score_choices(data, scores)
    assert len(found.credit) == 58 and found.credit.sum() == pytest.approx(58 - 2 + 0.2)
    for k in (5, 10):
        by_hand = [np.mean(found.labels[np.argsort(-np.delete(scores, [0, 1], 0)[:, j])[:k]] == j) for j in range(5)]
        assert list(found.precision[k]) == pytest.approx(by_hand)
    assert 100 not in found.precision  # there are fewer images


def test_ways_of_asking():
    protocol = Protocol(
        "one", synonyms={"Effusion": ["pleural effusion", "fluid"]}, pairs={"N": {"positive": ["a"], "negative": ["b"]}}
    )
    findings = ["Effusion", "N", "Pleural_Effusion"]
    asked = {name: pairs(protocol, findings, way) for name, way in WAYS.items()}
    assert asked["pair"][0] == (["pleural effusion"], ["no pleural effusion"]) and asked["pair"][1] == (["a"], ["b"])
    assert asked["positive only"][:2] == [(["pleural effusion"], []), (["a"], [])]
    assert asked["there is"][2] == (["there is Pleural_Effusion"], ["there is no Pleural_Effusion"])
    assert asked["synonyms averaged"][0][0] == ["pleural effusion", "fluid"]
    assert {"pleural fluid", "effusion"} < set(asked["synonyms averaged"][2][0])  # from the package's prompt file


def test_each_model_is_loaded_once_and_each_file_embedded_once(tmp_path, monkeypatch):
    from chexzero import zero_shot

    data, run = write_run(tmp_path)
    write_set(data)
    calls = []
    for name in ("load_clip", "embed_images", "embed_texts"):
        real = getattr(zero_shot, name)

        def counted(*args, _name=name, _real=real, **kwargs):
            calls.append((_name, len(args[1]) if len(args) > 1 else 0))
            return _real(*args, **kwargs)

        monkeypatch.setattr(zero_shot, name, counted)
    settings = EvaluationSettings(run=run, out=tmp_path / "results", device="cpu")
    choice = choose(settings)
    (one,) = ask_sets(settings, choice, [read_named_set(data, "little")], data)
    names = [name for name, _ in calls]
    assert names.count("load_clip") == 1 and names.count("embed_images") == 2  # the set and the validation set
    texts = [n for name, n in calls if name == "embed_texts"]
    assert sum(texts) < sum(len({*p, *n}) for way in WAYS.values() for p, n in pairs(one.data.protocol, LABELS, way))
    assert set(one.probability) == {OWN, *WAYS} and one.chosen in WAYS


@pytest.mark.usefixtures("blank_figures")
def test_training_images_within_a_set_are_an_alarm(tmp_path):
    data, run = write_run(tmp_path)
    table = pd.concat([pd.read_csv(data / "test_labels.csv")[["id", "patient_id", "study_id", "view", *FIVE]]])
    shutil.copy(data / "test.h5", data / "chexpert5x200.h5")
    table.to_csv(data / "chexpert5x200_labels.csv", index=False)
    hashes = image_hashes(data / "test.h5")
    (tmp_path / "splits").mkdir()
    manifest = pd.DataFrame({"id": [f"chexpert_plus/train/patient9/study1/view{i}" for i in range(4)]})
    manifest["pixel_sha256"] = [*hashes[:3], "ab"]  # three by their pixels
    manifest.loc[3, "id"] = "chexpert_plus/train/" + "/".join(table["id"][7].split("/")[-3:])  # and one by its id
    manifest.to_csv(tmp_path / "splits/train.csv", index=False)
    build, config = read_json(data / "build.json"), read_json(run / "config.json")
    write_json(data / "build.json", build | {"files": {"cxr.h5": {"sha256": "aa"}}})
    config["settings"]["cxr_filepath"] = "data/cxr.h5"
    write_json(run / "config.json", config | {"data": {"files": {"data/cxr.h5": {"sha256": "aa"}}}})
    flags = ["--run", str(run), "--out", str(tmp_path / "results"), "--n_bootstrap", "20", "--device", "cpu"]
    flags += ["--splits", str(tmp_path / "splits"), "--sets", "chexpert5x200"]
    path = run_zero_shot.evaluate(run_zero_shot.parse_args(flags))
    found = metrics_of(path.parent)
    assert "4 of 108 images" in found["alarms"]["no image of chexpert5x200 was trained on"]
    assert "Warning: 4 of 108 images of chexpert5x200 are training images" in path.read_text()
    likeliest = found["sections"]["set_chexpert5x200"]["likeliest"]["protocol"]
    assert 0.3 < likeliest["accuracy"] <= 1 and likeliest["images"] == (table[FIVE].sum(1) == 1).sum()
    assert trained_images(None, data, tmp_path).why_unknown
    write_json(data / "build.json", build)
    assert "does not hold" in trained_images(read_run(run), data, tmp_path / "splits").why_unknown


@pytest.mark.parametrize(
    ("name", "end"), [("a/b/c", "a/b/c"), ("x/a/b/c", "a/b/c"), ("chexpert/x/a/b/c", "a/b/c"), ("b/c", None)]
)
def test_an_image_is_known_again_by_the_last_three_parts_of_its_id(name, end):
    assert _end(name) == end


def test_a_difference_of_means_is_delongs():
    random = np.random.default_rng(2)
    truth = np.repeat([1.0, 0.0], [30, 50])[:, None]
    ours, theirs = (truth * shift + random.normal(size=(80, 1)) for shift in (1.5, 1.0))
    one = np.ravel(paired_areas(truth, ours, theirs))
    labels = np.hstack([truth, truth, np.ones_like(truth)])  # the last has no negative case
    ours, theirs = (score_findings(labels, np.hstack([values] * 3)) for values in (ours, theirs))
    for columns in ([0], [0, 1]):
        np.testing.assert_allclose(mean_difference(ours, theirs, columns), one, atol=1e-12)
    assert np.isnan([mean_difference(ours, theirs, columns) for columns in ([], [0, 2])]).all()
    assert mean_difference(ours, ours, [0, 1]) == (0, 0, 0, 1)


def test_areas_that_just_reach_a_mark_are_counted():
    scores = np.column_stack([[0.5, 0.6] + [0.1] * 9, [0.5] + [0.6] * 2 + [0.1] * 8, [0.5] * 11])
    found = score_findings(np.eye(11)[:, [0, 0, 0]], scores)  # one positive image beside ten others
    assert found.auroc.tolist() == [0.9, 0.8, 0.5]
    data = set_of(np.eye(11)[:, [0, 0, 0]], Protocol("one"))
    assert summarise(data, found)[0].counts == {0.9: 1, 0.7: 2}
