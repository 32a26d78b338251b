"""Wrong inputs to a suite: one message that names the file and the position."""

import json

import h5py
import numpy as np
import pandas as pd
import pytest
from planted_suites import Corpus

from chexzero.common.errors import UserError
from chexzero.common.labels import LABELS
from chexzero.suites import SUITES
from chexzero.suites.finding_prompts import PROMPTS


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("suites"))


def broken_prompts(change):
    text = PROMPTS.read_text()
    assert change[0] in text
    return text.replace(*change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("findings:", "findngs:"), "lacks findings"),
        (("about: >", "extra: 1\nabout: >"), "unknown key extra"),
        (("{phrases: [edema, pulmonary edema, interstitial edema]}", "{phrases: []}"), "Edema must be"),
        (("{phrases: [edema, pulmonary edema, interstitial edema]}", "[edema]"), "Edema must be"),
        (("{phrases: [edema, pulmonary edema, interstitial edema]}", "{phrase: [edema]}"), "Edema must be"),
        (('positive: ["{}"]', 'positive: ["a finding"]'), "one {} each"),
        (('positive: ["{}"]', 'positive: ["{} and {x}"]'), "one {} each"),
        (("No Finding: Normal", "No Finding: Norml"), "'No Finding: Norml' leads to no finding"),
        (("unseen: [Bulla,", "unseen: [Bullla,"), "unseen names 'Bullla'"),
        (("templates:", "templates: ["), "not valid YAML"),
        (("  Bulla: {", "  Edema: {"), "'Edema' occurs twice"),
        (('positive: ["{}"]', 'positive: ["{:d}"]'), "one {} each"),
        (("task2: [", "task2: Edema\nextra: ["), "unknown key extra"),
        (
            (
                "critical: [Pneumothorax, Hydropneumothorax, Pneumomediastinum, Pneumoperitoneum, Pulmonary Embolism]",
                "critical: Pneumothorax",
            ),
            "critical must be a list",
        ),
        (("No Finding: Normal", "No Finding: [Normal]"), "leads to no finding"),
    ],
)
def test_a_broken_prompt_file_is_named_with_its_mistake(corpus, tmp_path, change, says):
    path = tmp_path / "prompts.yaml"
    path.write_text(broken_prompts(change))
    with pytest.raises(UserError, match=says.replace("{", r"\{").replace("}", r"\}")) as error:
        SUITES["cxr-lt"].run(corpus.random("--cxr_lt_prompts", str(path)))
    assert str(path) in str(error.value)


def csv(path, frame):
    frame.to_csv(path, index=False)
    return str(path)


def message(corpus, suite, *flags):
    with pytest.raises(UserError) as error:
        SUITES[suite].run(corpus.random(*flags))
    return str(error.value)


def test_labels_that_cannot_be_used_are_named(corpus, tmp_path):
    table = corpus.table["test"].reset_index()
    path = tmp_path / "labels.csv"
    assert "'Stroke' is no finding" in message(corpus, "cxr-lt", "--cxr_lt_labels", csv(path, table.assign(Stroke=0)))
    both = csv(path, table.assign(Normal=0))
    assert "two columns for 'Normal'" in message(corpus, "cxr-lt", "--cxr_lt_labels", both)
    uncertain = csv(path, table.assign(Edema=["-1"] + ["0"] * (len(table) - 1)))
    assert "row 1, column Edema: '-1' is not 0 or 1" in message(corpus, "cxr-lt", "--cxr_lt_labels", uncertain)
    assert "no label columns" in message(corpus, "cxr-lt", "--cxr_lt_labels", csv(path, table[["id", "view"]]))
    assert "has no rows" in message(corpus, "cxr-lt", "--cxr_lt_labels", csv(path, table.iloc[:0]))
    assert "lacks the column Stroke" in message(corpus, "subgroups", "--subgroups_findings", "Stroke")


def test_ids_that_do_not_join_are_named(corpus, tmp_path):
    path = tmp_path / "labels.csv"
    table = corpus.table["test"].reset_index()
    other = csv(path, table.assign(id=[f"x{name}" for name in table["id"]]))
    said = message(corpus, "cxr-lt", "--cxr_lt_labels", other)
    assert "240 of 240 ids" in said and "test.h5" in said and table["id"][0] in said
    people = pd.read_csv(corpus.folder / "splits" / "valid.csv")
    said = message(corpus, "subgroups", "--subgroups_manifest", csv(path, people.iloc[5:]))
    assert "5 of 240 ids" in said and "labels.csv" in said
    said = message(corpus, "subgroups", "--subgroups_manifest", csv(path, pd.concat([people, people[:1]])))
    assert "twice" in said
    said = message(corpus, "retrieval", "--report_texts", csv(path, pd.DataFrame({"id": ["a"], "impression": ["b"]})))
    assert "none of the 240 images" in said
    said = message(
        corpus,
        "subgroups",
        "--subgroups_labels",
        csv(path, pd.concat([table, table[1:2]])),
        "--subgroups_images",
        "test",
    )
    assert f"the id {table['id'][1]!r} twice" in said and str(path) in said
    said = message(corpus, "cxr-lt", "--cxr_lt_labels", csv(path, table.drop(columns="id")))  # as many, but no ids
    assert "no column id" in said and "test.h5" in said
    twice = csv(path, pd.DataFrame({"id": [corpus.table["valid"].index[0]] * 2, "impression": ["a", "b"]}))
    assert "two reports of the image" in message(corpus, "retrieval", "--report_texts", twice)


def test_images_without_ids_are_joined_by_position_or_not_at_all(corpus, tmp_path):
    table = corpus.table["test"].reset_index()
    with h5py.File(tmp_path / "upstream.h5", "w") as handle:
        handle["cxr"] = np.zeros((len(table), 2, 2), np.uint8)
    flags = ["--cxr_lt_images", str(tmp_path / "upstream.h5"), "--cxr_lt_labels"]
    assert "7 rows" in message(corpus, "cxr-lt", *flags, csv(tmp_path / "labels.csv", table.iloc[:7]))
    said = message(corpus, "retrieval", "--retrieval_images", str(tmp_path / "upstream.h5"))
    assert "carries no ids" in said


def test_counts_demographics_and_reports_that_are_missing_are_named(corpus, tmp_path):
    path, counts = tmp_path / "given.csv", pd.DataFrame({"finding": ["images", *LABELS], "count": ["9"] * 15})
    assert "'images'" in message(corpus, "cxr-lt", "--cxr_lt_counts", csv(path, counts[1:]))
    assert "no count for" in message(corpus, "cxr-lt", "--cxr_lt_counts", csv(path, counts[:-1]))
    wrong = csv(path, counts.assign(count=["9", "many", *["9"] * 13]))
    assert "row 2: the count 'many'" in message(corpus, "cxr-lt", "--cxr_lt_counts", wrong)
    twice = csv(path, pd.concat([counts, pd.DataFrame({"finding": ["Normal"], "count": ["9"]})]))  # No Finding's
    assert "row 16: 'Normal' has a count already" in message(corpus, "cxr-lt", "--cxr_lt_counts", twice)
    larger = csv(path, counts.assign(count=["9", "10", *["9"] * 13]))
    assert "more cases than" in message(corpus, "cxr-lt", "--cxr_lt_counts", larger)
    people = pd.read_csv(corpus.folder / "splits" / "valid.csv").assign(sex="", age="", race="Unknown")
    said = message(corpus, "subgroups", "--subgroups_manifest", csv(path, people))
    assert "gives no sex, age or race" in said and "--subgroups_manifest" in said
    context = corpus.random()
    context.options["report_texts"] = None
    with pytest.raises(UserError, match="--report_texts"):
        SUITES["retrieval"].run(context)
    left_out = SUITES["chexbench"].run(context)
    assert "reasoning" not in left_out.metrics and any("--report_texts" in text for text in left_out.text)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"answer": 2}, "question 1"),
        ({"answer": "0"}, "question 1"),
        ({"answer": True}, "question 1"),
        ({"options": ["a"]}, "question 1"),
        ({"options": ["a", "a"]}, "question 1"),
        ({"image": 3}, "question 1"),
        ({"image": "elsewhere"}, "1 of 1 ids of the questions"),
    ],
)
def test_a_broken_question_is_named(corpus, tmp_path, entry, says):
    path = tmp_path / "questions.json"
    image = corpus.table["valid"].index[0]
    sound = {"task": "view", "image": image, "patient": "p", "options": ["a", "b"], "answer": 0}
    path.write_text(json.dumps({"questions": [sound | entry]}))
    assert says in message(corpus, "chexbench", "--chexbench_questions", str(path))
    path.write_text("{}")
    assert "no list `questions`" in message(corpus, "chexbench", "--chexbench_questions", str(path))
