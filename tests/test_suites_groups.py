"""Gaps between groups of patients: found if planted, and rarely reported if there are none."""

import numpy as np
import pandas as pd
import pytest
from planted_suites import Corpus

from chexzero.common.labels import LABELS
from chexzero.suites import SUITES, subgroups
from chexzero.suites.groups import assign, read_groups


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("suites"))


def planted(seed, gap, n=400, groups=2):
    """One label, AUROC about 0.86; with `gap` the labels of group 0 are shuffled."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, 1)) < 0.3).astype(float)
    score = 1 / (1 + np.exp(-(1.5 * truth + rng.normal(size=(n, 1)))))
    group = rng.integers(0, groups, n)
    if gap:
        rows = np.flatnonzero(group == 0)
        truth[rows] = truth[rng.permutation(rows)]
    members = {"group": {f"{i}": group == i for i in range(groups)}}
    result = subgroups.compare(
        truth, score, np.array([np.median(score)]), ["finding"], members, np.arange(n).astype(str), 10, seed, 500
    )["group"]["finding"]
    return {metric: any(gaps[metric]["found"] for gaps in result["gaps"].values()) for metric in ("auroc", "f1")}


@pytest.mark.parametrize("groups", [2, 4])
def test_a_planted_gap_is_found_and_200_draws_without_one_give_few_alarms(groups):
    found = [planted(seed, True, 250 * groups, groups) for seed in range(10)]
    assert all(result["auroc"] for result in found) and sum(result["f1"] for result in found) >= 9
    alarms = [planted(seed, False, 150 * groups, groups) for seed in range(200)]
    for metric in ("auroc", "f1"):
        assert sum(result[metric] for result in alarms) <= 20  # 10 expected; 20 or more occur once in 500 runs


def test_a_gap_planted_in_one_sex_is_found_by_the_suite(corpus, tmp_path):
    people = pd.read_csv(corpus.folder / "splits" / "valid.csv").set_index("id")
    women = (people.loc[corpus.table["valid"].index, "sex"] == "Female").to_numpy()
    table = corpus.table["valid"].reset_index().drop(columns="ap_pa")
    rng = np.random.default_rng(2)
    shuffled = table.loc[women, LABELS].to_numpy()[rng.permutation(women.sum())]
    table.loc[women, LABELS] = shuffled
    table.to_csv(tmp_path / "labels.csv", index=False)
    section = SUITES["subgroups"].run(corpus.knowing("--subgroups_labels", str(tmp_path / "labels.csv")))
    by_sex = section.metrics["attributes"]["sex"]
    gaps = [gap["auroc"] for entry in by_sex.values() for gap in entry["gaps"].values()]
    assert len(gaps) >= 10 and all(gap["found"] for gap in gaps)


def test_balanced_f1_and_its_resamples_are_those_of_a_double_loop():
    rng = np.random.default_rng(0)
    positive, score = np.repeat([True, False], [8, 30]), rng.integers(0, 5, 38) / 4
    predicted, patients = score >= 0.5, np.arange(38).astype(str)
    drawn = subgroups.balanced_resamples(positive, score, predicted, patients, np.random.default_rng(1), 4)
    replay = np.random.default_rng(1)
    index = [replay.integers(0, 8, (4, 8)), replay.integers(0, 30, (4, 30))]
    order = [np.argsort(patients[:8], kind="stable"), 8 + np.argsort(patients[8:], kind="stable")]
    for i in range(4):
        yes, no = order[0][index[0][i]], order[1][index[1][i]]
        wins = [(score[a] > score[b]) + 0.5 * (score[a] == score[b]) for a in yes for b in no]
        assert drawn["auroc"][i] == pytest.approx(np.mean(wins))
        tp = np.mean([predicted[a] for a in yes])
        fp = np.mean([predicted[b] for b in no])
        assert drawn["f1"][i] == pytest.approx(2 * tp / (2 * tp + fp + (1 - tp)))


def test_a_patients_images_are_drawn_together():
    positive, score = np.repeat([True, False], 30), np.tile(np.arange(3) / 2, 20)
    apart = subgroups.balanced_resamples(
        positive, score, score > 0.4, np.arange(60).astype(str), np.random.default_rng(0), 400
    )["auroc"].std()
    together = subgroups.balanced_resamples(
        positive, score, score > 0.4, np.repeat(np.arange(20), 3).astype(str), np.random.default_rng(0), 400
    )["auroc"].std()
    assert together < 0.2 * apart  # every patient has the same three scores, so drawing patients changes nothing


def test_groups_with_too_few_cases_are_shown_with_a_warning_and_not_compared(corpus, tmp_path):
    people = pd.read_csv(corpus.folder / "splits" / "valid.csv").assign(race="White")
    people.loc[:11, "race"] = "Black or African American"
    people.to_csv(tmp_path / "valid.csv", index=False)
    section = SUITES["subgroups"].run(corpus.random("--subgroups_manifest", str(tmp_path / "valid.csv")))
    for entry in section.metrics["attributes"]["race"].values():
        assert not entry["groups"]["Black"]["enough"] and "Black" not in entry["gaps"]
    table = next(table for table in section.tables if table.caption == "By race")
    assert all(row[-1] == "too few" for row in table.rows if row[1] == "Black")
    assert any("Asian" in text and "No image" in text for text in section.text)


@pytest.mark.parametrize(("age", "known"), [("64", 1), ("64.0", 1), ("064Y", 1), ("006M", 1), ("", 0), ("?", 0)])
def test_ages_are_read_as_the_releases_spell_them(age, known):
    people = pd.DataFrame({"sex": [""], "race": [""], "age": [age]})
    groups, _ = assign(people, read_groups(subgroups.DESCRIPTION))
    assert groups.get("age (65)") == ({"under 65": np.array([True])} if known else None)


@pytest.mark.parametrize(
    ("race", "group"),
    [
        ("White, non-Hispanic", "White"),
        ("Black or African American", "Black"),
        ("Asian, Hispanic", "Asian"),
        ("Native American, non-Hispanic", "Native or Pacific"),
        ("Other, Hispanic", "Other"),
        ("Unknown", None),
        ("Race and Ethnicity Unknown", None),
        ("Patient Refused", None),
        ("something else", "Other"),
    ],
)
def test_races_are_read_as_the_releases_spell_them(race, group):
    people = pd.DataFrame({"sex": ["f"], "race": [race], "age": ["70"]})
    groups, _ = assign(people, read_groups(subgroups.DESCRIPTION))
    assert list(groups.get("race", [])) == ([group] if group else [])
    assert list(groups["sex"]) == ["Female"]


def test_without_a_threshold_f1_is_undefined_and_no_gap():
    rng = np.random.default_rng(0)
    truth, score, group = (rng.random((200, 1)) < 0.3) * 1.0, rng.random((200, 1)), rng.random(200) < 0.5
    result = subgroups.compare(
        truth,
        score,
        np.array([np.nan]),
        ["finding"],
        {"sex": {"a": group, "b": ~group}},
        np.arange(200).astype(str),
        10,
        0,
        100,
    )["sex"]["finding"]
    gap = next(iter(result["gaps"].values()))
    assert np.isnan(gap["f1"]["gap"]) and not gap["f1"]["found"] and np.isfinite(gap["auroc"]["gap"])


def test_thresholds_for_other_images_come_from_the_validation_set(corpus, tmp_path):
    section = SUITES["subgroups"].run(corpus.random("--subgroups_images", "test"))
    assert any("thresholds have the best F1 on the validation set" in text for text in section.text)
    table = corpus.table["test"].reset_index().rename(columns={"Edema": "Oedema"})[["id", "Oedema"]]
    table.to_csv(tmp_path / "labels.csv", index=False)
    flags = ["--subgroups_images", "test", "--subgroups_labels", str(tmp_path / "labels.csv")]
    section = SUITES["subgroups"].run(corpus.random(*flags))
    assert any("pooled over the groups" in text for text in section.text)
