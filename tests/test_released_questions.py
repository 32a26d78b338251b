"""CheXbench's released questions, imitated in their format: NaN options, joined paths, tasks that are not asked."""

import argparse
import json

import numpy as np
import pytest
from planted_suites import PlantedContext, noise
from release_corpus import picture, save

from chexzero.common.errors import UserError
from chexzero.suites import SUITES, add_arguments
from chexzero.suites.released_questions import BARE, find_files, is_released, read_released

NAN = float("nan")


def item(source, image, options, answer, slice_="", question="Which is it?"):
    options = [*options, *[NAN] * (4 - len(options))]
    named = {f"option_{k}": text for k, text in enumerate(options)}
    return {
        "data_source": source,
        "slice": slice_,
        "image_path": image,
        "question": question,
        **named,
        "answer": answer,
    }


def data_json(n=6):
    """The file in the released format: one object, task -> items."""
    view = [
        item("CheXpert", f"data/chexpert/valid/patient{i}/study1/view1_frontal.jpg", ["AP", "PA", "Lateral"], i % 3)
        for i in range(n)
    ]
    binary = [
        item("RSNA", f"data/rsna/images/{i}.png", ["yes", "no"], i % 2, question="Is there pneumonia?")
        for i in range(n)
    ]
    fine = [
        item("OpenI", f"data/openi/images/CXR{i}.png", ["left-sided effusion", "right-sided effusion"], i % 2, "side")
        for i in range(n)
    ]
    temporal = [item("MS-CXR-T", "data/mimic/a.jpg|data/mimic/b.jpg", ["improving", "stable", "worsening"], 2)]
    generation = [{"image_path": ["data/mimic/a.jpg"], "section_findings": "Clear."}] * 2
    return {
        "View Classification": view,
        "Binary Disease Classification": binary,
        "Fine-Grained Reasoning": fine,
        "Temporal Classification": temporal,
        "Findings Generation": generation,
    }


class Knowing(PlantedContext):
    """A model whose image features equal those of the right option's text."""

    def file_features(self, files):
        right = {q.image: q.options[q.answer] for q in self.released.questions}
        texts = [next(text for image, text in right.items() if str(file).endswith(image)) for file in files]
        return self.text_features(texts)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    content = data_json()
    (tmp_path / "data.json").write_text(json.dumps(content))
    for task in ("View Classification", "Binary Disease Classification", "Fine-Grained Reasoning"):
        for one in content[task]:
            save(tmp_path / one["image_path"], picture(rng))
    return tmp_path


def context(folder, *flags):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = ["--questions", str(folder / "data.json"), "--chexbench_images", str(folder), *flags]
    found = Knowing(None, "cpu", folder, folder, folder / "out", options=vars(parser.parse_args(flags)))
    found.released = read_released("data.json", data_json())
    return found.plant(noise, noise)


def test_a_model_that_knows_answers_everything_and_what_is_not_asked_is_counted(folder):
    (folder / "data/rsna/images/0.png").unlink()
    section = SUITES["chexbench"].run(context(folder))
    found = section.metrics
    assert found["view"]["CheXpert"]["accuracy"] == found["binary"]["RSNA"]["accuracy"] == 1
    assert found["fine_grained"]["side"]["accuracy"] == 1 and found["binary"]["RSNA"]["questions"] == 5
    assert found["view"]["CheXpert"]["chexagent"] == 0.993 and found["fine_grained"]["side"]["chexagent"] == 0.788
    assert found["view"]["CheXpert"]["chance"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["not_asked"] == {
        "Temporal Classification: compares two images": 1,
        "Findings Generation: asks for text": 2,
        "Binary Disease Classification: its image is not in the folder": 1,
    }
    assert "17 are asked, 4 are not" in section.text[0]


def test_bare_answers_are_asked_with_their_question(folder):
    questions = read_released("data.json", data_json()).questions
    assert ("Is there pneumonia? yes", "Is there pneumonia? no") in {q.options for q in questions}
    assert not any(text in BARE for q in questions for text in q.options)


def test_images_are_found_wherever_their_paths_begin(folder):
    names = [one["image_path"] for one in data_json()["View Classification"]]
    assert (
        find_files(folder, names) == find_files(folder / "data", names) == find_files(folder / "data/chexpert", names)
    )
    assert find_files(folder / "data/rsna", names) == [None] * 6
    with pytest.raises(UserError, match="fits both"):
        find_files(folder / "data/chexpert/valid/patient0/study1", names)  # would match every view1_frontal.jpg
    with pytest.raises(UserError, match="leads out of its root"):
        find_files(folder, ["../secret.png"])


@pytest.mark.parametrize(
    "change",
    [
        {"answer": 3},
        {"answer": "0"},
        {"answer": True},
        {"option_1": NAN, "option_2": NAN},
        {"option_1": NAN},
        {"image_path": ["a"]},
    ],
)
def test_a_broken_item_is_named(change):
    content = {"View Classification": [item("X", "a.png", ["AP", "PA", "Lateral"], 0) | change]}
    assert is_released(content) and not is_released({"questions": []})
    with pytest.raises(UserError, match="data.json, View Classification, question 1: image_path must be"):
        read_released("data.json", content)


def test_no_image_at_hand_is_one_sentence(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match="none of the images that .* asks about lies under"):
        SUITES["chexbench"].run(context(folder, "--chexbench_images", str(tmp_path / "elsewhere")))
