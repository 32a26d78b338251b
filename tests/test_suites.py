"""The suites on artificial models: chance for a random one, 1 for a perfect one; questions, findings, pairs."""

import json

import h5py
import numpy as np
import pandas as pd
import pytest
from planted_suites import DIM, Corpus, noise
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.metrics import top_k_accuracy_score

from chexzero.common.labels import LABELS
from chexzero.suites import SUITES, cxr_lt
from chexzero.suites.finding_prompts import read_prompts
from chexzero.suites.questions import exchange, read_questions

#: fitting the probe takes long; tests/test_suites_probe.py has quicker tests of it
EACH = [pytest.param(name, marks=pytest.mark.long) if name == "probe" else name for name in SUITES]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("suites"))


def accuracy_pairs(section):
    """(name, value, lower, upper, chance) of all figures of a section that have a chance."""
    m = section.metrics
    if section.key == "cxr_lt":
        return [(key, m[key], m[f"{key}_lower"], m[f"{key}_upper"], m[f"{key}_chance"]) for key in ("mAP", "mAUROC")]
    if section.key == "chexbench":
        return [(task, *(part[key] for key in ("accuracy", "lower", "upper", "chance"))) for task, part in m.items()]
    if section.key == "retrieval":
        return [
            (f"{direction} {at}", *(part[key] for key in ("recall", "lower", "upper", "chance")))
            for direction in ("image_to_report", "report_to_image")
            for at, part in m[direction].items()
        ]
    if section.key == "probe":
        return [(name, one["mean_auroc"], one["lower"], one["upper"], 0.5) for name, one in m["amounts"].items()]
    return [
        (f"{attribute} {label} {name}", g["auroc"], g["auroc_lower"], g["auroc_upper"], 0.5)
        for attribute, labels in m["attributes"].items()
        for label, entry in labels.items()
        for name, g in entry["groups"].items()
        if g["enough"]
    ]


@pytest.mark.parametrize("suite", EACH)
def test_a_random_model_lands_on_chance(corpus, suite):
    inside, total = 0, 0
    for salt in range(8 if suite not in ("subgroups", "probe") else 2):
        section = SUITES[suite].run(corpus.random("--probe_seeds", "2", salt=salt))
        for name, value, lower, upper, chance in accuracy_pairs(section):
            assert lower <= value <= upper, name
            inside, total = inside + (lower <= chance <= upper), total + 1
    assert total >= 16
    assert inside / total >= 0.88  # 0.95 expected


@pytest.mark.parametrize("suite", EACH)
def test_a_model_that_knows_reaches_1(corpus, suite):
    section = SUITES[suite].run(corpus.knowing("--probe_seeds", "2"))
    values = {name: value for name, value, *_ in accuracy_pairs(section)}
    if suite == "probe":  # few labels cannot use all information in the features
        assert values["zero-shot"] == 1 and values["100% of the labels"] > 0.98
        assert values["1 shot"] < values["16 shots"] < 1
        return
    assert values and min(values.values()) == 1, {name: value for name, value in values.items() if value < 1}
    if suite == "cxr-lt":
        assert section.metrics["mF1"] == section.metrics["micro_F1"] == 1
        assert section.metrics["mF1_at_threshold"] > 0.98  # a threshold is the lowest score of a validation case
        assert section.metrics["critical_FNR"] == 0
    if suite == "chexbench":
        assert set(values) == {"view", "binary", "single", "sets", "reasoning"}
        by_view = section.metrics["view"]["by_view"]
        assert [part["accuracy"] for part in by_view.values()] == [1, 1, 1]
    if suite == "subgroups":
        assert section.metrics["found"] == 0
        assert all(
            group["f1"] == 1
            for labels in section.metrics["attributes"].values()
            for entry in labels.values()
            for group in entry["groups"].values()
        )


@pytest.mark.parametrize("suite", EACH)
def test_sections_are_fit_for_the_report(corpus, suite):
    section = SUITES[suite].run(corpus.random())
    json.dumps(section.metrics, allow_nan=False)
    assert section.text and section.tables and section.title
    for table in section.tables:
        assert table.rows and all(len(row) == len(table.columns) for row in table.rows)
        assert all(value is None or isinstance(value, (str, int, float)) for row in table.rows for value in row)


def test_the_prompt_file_has_the_45_findings_and_the_three_tasks():
    prompts = read_prompts()
    tasks = [len(members) for members in cxr_lt._tasks(prompts).values()]
    assert len(prompts["findings"]) == 45 and tasks == [40, 26, 5]
    assert set(LABELS) <= set(prompts["findings"]) | set(prompts["aliases"])
    phrases = [text for entry in prompts["findings"].values() for text in entry["phrases"]]
    assert len(phrases) > 100


@pytest.mark.parametrize("n_findings", [40, 26, 5])
def test_any_set_of_findings_is_scored_and_ranked(corpus, tmp_path, n_findings):
    tasks = cxr_lt._tasks(read_prompts())
    names = next(members for members in tasks.values() if len(members) == n_findings)
    ids = corpus.table["test"].index
    truth = np.random.default_rng(0).random((len(ids), n_findings)) < 0.2
    path = tmp_path / "labels.csv"
    table = pd.DataFrame(truth.astype(int), columns=names).assign(dicom_id=ids)
    table.sample(frac=1, random_state=0).to_csv(path, index=False)
    section = SUITES["cxr-lt"].run(corpus.random("--cxr_lt_labels", str(path)))
    assert section.metrics["findings"] == n_findings
    ranked = next(
        table for table in section.tables if f"({n_findings} classes)" in table.caption and "rank" in table.columns
    )
    assert [row[1] for row in ranked.rows] == [1, 2, 3, 4, 5][: len(ranked.rows)]
    assert sum("this model" in row[0] for row in ranked.rows) == 1
    values = [row[2] for row in ranked.rows]
    assert values == sorted(values, reverse=True)


def test_frequency_groups_come_from_the_training_counts(corpus, tmp_path):
    counts = {label: 11 if j < 3 else 10 if j < 8 else 1 if j < 10 else 0 for j, label in enumerate(LABELS)}
    counts["images"] = 100  # 11 % is head; 10 % and 1 % are medium; 0 is tail
    path = tmp_path / "counts.csv"
    pd.DataFrame(counts.items(), columns=["finding", "count"]).to_csv(path, index=False)
    section = SUITES["cxr-lt"].run(corpus.random("--cxr_lt_counts", str(path)))
    groups = section.metrics["groups"]
    assert [groups[name]["findings"] for name in ("head", "medium", "tail")] == [3, 7, 4]
    per_label = [entry["average_precision"] for entry in section.metrics["per_label"].values()]
    assert groups["head"]["average_precision"] == pytest.approx(np.mean(per_label[:3]), abs=1e-5)
    means = [groups[name]["average_precision"] for name in ("head", "medium", "tail")]
    assert groups["average"]["average_precision"] == pytest.approx(np.mean(means), abs=1e-5)


def test_findings_without_a_case_and_a_single_image_are_undefined_not_wrong(corpus, tmp_path):
    path = tmp_path / "one.csv"
    corpus.table["test"].reset_index().iloc[:1][["id", "Edema", "Fracture"]].assign(Edema=1, Fracture=0).to_csv(path)
    pd.read_csv(path, index_col=0).to_csv(path, index=False)
    section = SUITES["cxr-lt"].run(corpus.random("--cxr_lt_labels", str(path)))
    labels = section.metrics["per_label"]
    assert labels["Edema"]["average_precision"] is labels["Edema"]["auroc"] is None
    assert labels["Fracture"]["average_precision"] is None and labels["Fracture"]["ece"] is not None
    assert section.metrics["mAUROC"] is None


def test_questions_are_the_same_for_a_seed_and_can_be_asked_again(corpus, tmp_path):
    first = corpus.random()
    section = SUITES["chexbench"].run(first)
    path = first.out_dir / "chexbench_questions.json"
    kept = path.read_bytes()
    (tmp_path / "kept.json").write_bytes(kept)
    assert SUITES["chexbench"].run(corpus.random()).metrics == section.metrics and path.read_bytes() == kept
    assert SUITES["chexbench"].run(corpus.random(salt=1)).metrics != section.metrics and path.read_bytes() != kept
    again = corpus.random("--chexbench_questions", str(tmp_path / "kept.json"))
    assert SUITES["chexbench"].run(again).metrics == section.metrics


def test_questions_are_true_balanced_and_have_one_right_answer(corpus):
    context = corpus.random()
    SUITES["chexbench"].run(context)
    questions = read_questions(context.out_dir / "chexbench_questions.json")
    table = corpus.table["valid"]
    right = {}
    for q in questions:
        right.setdefault(q.task, []).append(q.options[q.answer])
        row = table.loc[q.image]
        has = {label.lower() for label in LABELS if row[label] and label not in ("No Finding", "Support Devices")}
        wrong = [text for i, text in enumerate(q.options) if i != q.answer]
        if q.task == "single":
            assert right["single"][-1] in has and not has & set(wrong) and len(wrong) == 3
        if q.task == "sets":
            sets = [set(text.replace(" and ", ", ").split(", ")) for text in (right["sets"][-1], *wrong)]
            assert sets[0] == has and not any(other <= has for other in sets[1:]) and len(wrong) == 3
        if q.task == "binary":
            assert (right["binary"][-1] in has) != right["binary"][-1].startswith("no ")
        if q.task == "view":
            assert right["view"][-1].split()[0] == (row["ap_pa"] or "lateral") and len(wrong) == 2
        if q.task == "reasoning":
            assert right["reasoning"][-1] in corpus.reports[q.image] and wrong[0] not in corpus.reports[q.image]
    assert len(set(np.unique(right["view"], return_counts=True)[1])) == 1
    assert sum(text.startswith("no ") for text in right["binary"]) * 2 == len(right["binary"])
    words = " ".join(right["reasoning"]).split()
    assert words.count("left") == words.count("right") > 0 and words.count("mild") == words.count("severe") > 0


@pytest.mark.parametrize(
    ("sentence", "want"),
    [
        ("Small left effusion, left base.", "Small right effusion, right base."),
        ("Severe edema is present.", "Mild edema is present."),
        ("Large right effusion.", "Large left effusion."),
        ("Large effusions, right over left.", "Tiny effusions, right over left."),
        ("Left and right effusions are seen.", None),
        ("No left effusion.", None),
        ("Leftward shift is present.", None),
    ],
)
def test_a_hard_negative_exchanges_one_word(sentence, want):
    made = exchange(sentence, [["left", "right"], ["severe", "mild"], ["large", "tiny"]], ["no"])
    assert (made and made[2]) == want


def test_retrieval_draws_pairs_when_there_are_many(corpus, tmp_path, monkeypatch):
    description = tmp_path / "retrieval.yaml"
    description.write_text("recall_at: [1, 3]\nmax_pairs: 50\n")
    monkeypatch.setattr("chexzero.suites.retrieval.DESCRIPTION", description)
    section = SUITES["retrieval"].run(corpus.knowing())
    assert section.metrics["pairs"] == 50 and section.metrics["image_to_report"]["recall@3"]["recall"] == 1


def test_chexpert_plus_own_table_gives_the_reports(corpus, tmp_path):
    texts = [text if i % 5 else "" for i, text in enumerate(corpus.reports.values())]
    paths = [f"{name.removeprefix('chexpert_plus/')}.jpg" for name in corpus.reports]
    plus = pd.DataFrame({"path_to_image": paths, "section_impression": texts})
    plus.to_csv(tmp_path / "plus.csv", index=False)
    section = SUITES["retrieval"].run(corpus.knowing("--report_texts", str(tmp_path / "plus.csv")))
    assert section.metrics["pairs"] == 192 and "48 images have none" in section.text[0]


def test_the_2026_edition_is_ranked_by_map_beside_its_winners(corpus, tmp_path):
    prompts = read_prompts(cxr_lt.EDITIONS[2026].prompts)
    tasks = cxr_lt._tasks(prompts)
    assert [len(tasks[group]) for group in ("seen", "unseen")] == [30, 6] and len(prompts["findings"]) == 36
    ids = list(corpus.table["test"].index)
    for group, winner in (("seen", 0.5854), ("unseen", 0.4315)):
        truth = np.random.default_rng(0).random((len(ids), len(tasks[group]))) < 0.2
        table = pd.DataFrame(
            truth.astype(int), columns=[name.upper() for name in tasks[group]]
        )  # cases are mixed there
        table = table.assign(ImageID=[f"{name}.png" for name in ids], PatientID="1" * 39, StudyDate_DICOM="20150101")
        table["PatientID"] = [f"{'1' * 39}{i // 2}" for i in range(len(ids))]
        table.to_csv(tmp_path / "labels.csv", index=False)
        section = SUITES["cxr-lt"].run(
            corpus.random("--cxr_lt_edition", "2026", "--cxr_lt_labels", str(tmp_path / "labels.csv"))
        )
        task = next(key for key, (name, _, _) in cxr_lt.EDITIONS[2026].tasks.items() if name == group)
        assert section.metrics[task]["findings"] == len(tasks[group]) and "2026" in section.title
        (ranked,) = [one for one in section.tables if "rank" in one.columns]
        assert ranked.columns[2] == "mAP" and ["team winner", 1, winner, "", "", ""] in ranked.rows
        assert all(isinstance(value, (str, int, float)) for row in ranked.rows for value in row)


def test_the_2026_names_are_those_of_the_facts(shared):
    known = json.loads((shared / "datasets/cxr_lt_labels.json").read_text())["2026"]
    tasks = cxr_lt._tasks(read_prompts(cxr_lt.EDITIONS[2026].prompts))
    assert tasks["seen"] == known["known_30"] and tasks["unseen"] == known["unseen_6"]


@pytest.mark.long
def test_retrieval_over_thousands_of_real_reports(corpus, tmp_path, shared):
    table = pd.read_csv(shared / "datasets" / "openi" / "reports.csv")[["uid", "impression"]].dropna()
    table["impression"] = table["impression"].str.split().str.join(" ")
    table = table[table["impression"] != ""].set_index("uid")
    words = HashingVectorizer(n_features=DIM, norm=None, alternate_sign=False)

    def of_text(text):
        return words.transform([text]).toarray()[0] + 1e-3 * noise(text)

    def retrieval(name, rows):
        """The suite's figures, the similarity of each image to each pair's report, and which report each has."""
        with h5py.File(tmp_path / f"{name}.h5", "w") as handle:
            handle["cxr"] = np.zeros((len(rows), 2, 2), np.uint8)
            handle.create_dataset("id", data=list(rows.index), dtype=h5py.string_dtype())
        rows.reset_index(names="id").to_csv(tmp_path / f"{name}.csv", index=False)
        images, reports = str(tmp_path / f"{name}.h5"), str(tmp_path / f"{name}.csv")
        context = corpus.context("--retrieval_images", images, "--report_texts", reports)
        context.plant(lambda image: of_text(rows.loc[image, "impression"]) + 0.5 * noise(image), of_text)
        distinct, report = np.unique(rows["impression"], return_inverse=True)
        likeness = context.image_features(images) @ context.text_features(distinct.tolist()).T
        return SUITES["retrieval"].run(context).metrics, likeness[:, report], report

    one_each = table.drop_duplicates("impression")
    found, likeness, _ = retrieval("one_each", one_each)
    pairs = np.arange(len(one_each))
    for way, scores in (("image_to_report", likeness), ("report_to_image", likeness.T)):
        for k in (1, 5, 10):
            want = top_k_accuracy_score(pairs, scores, k=k, labels=pairs)
            assert 0.1 < want < 0.99 and found[way][f"recall@{k}"]["recall"] == pytest.approx(want, abs=1e-6)

    found, likeness, report = retrieval("all", table)
    assert found["pairs"] == len(report) > 3_500 and found["distinct_reports"] < len(report) - 500
    for way, scores in (("image_to_report", likeness), ("report_to_image", likeness.T)):
        best = np.argsort(-scores, axis=1)[:, :10]
        for k in (1, 5, 10):
            want = (report[best[:, :k]] == report[:, None]).any(axis=1).mean()
            assert found[way][f"recall@{k}"]["recall"] == pytest.approx(want, abs=1e-6)
