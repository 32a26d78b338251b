"""CheXbench's image perception for a CLIP model: multiple choice by similarity.

The questions come from any labelled set and a seed, or from the file of an earlier run, and are written beside the
results.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from chexzero.common.errors import UserError
from chexzero.common.files import read_table
from chexzero.report.format import interval
from chexzero.report.published import reported_figures
from chexzero.report.sections import Section, Table
from chexzero.suites import metrics
from chexzero.suites.context import EvaluationContext, file_flag
from chexzero.suites.questions import Maker, Question, read_questions, write_questions
from chexzero.suites.tables import LabelledImages, join, read_description, read_labelled, read_reports

DESCRIPTION = Path(__file__).with_suffix(".yaml")
QUESTIONS = "chexbench_questions.json"
KEYS = ("tasks", "views", "binary", "not_diseases", "swaps", "skip")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this suite."""
    group = parser.add_argument_group("suite chexbench")
    file_flag(group, "chexbench_images", "images to ask about (.h5 or a folder; default: the validation set)")
    file_flag(group, "chexbench_labels", "their labels (default: <images>_labels.csv)")
    file_flag(group, "chexbench_questions", "ask the questions of this file instead of making new ones")
    group.add_argument("--chexbench_per_task", type=int, default=1000, metavar="N", help="most questions a task")


def run(context: EvaluationContext) -> Section:
    """Make or read the questions, answer them, and compare with chance and the paper; see the module."""
    description = read_description(DESCRIPTION, KEYS)
    images = context.option("chexbench_images", "valid")
    section = Section("chexbench", "Multiple choice by similarity (CheXbench)")
    if given := context.option("chexbench_questions"):
        questions = read_questions(given)
        section.text.append(f"The questions are those of {Path(given).name}.")
    else:
        questions = make_questions(context, images, description, section)
        section.text.append(
            f"The questions were made with the seed {context.seed} and are in {QUESTIONS}; ask the "
            f"same again with --chexbench_questions."
        )
    made_from = {"file": Path(given).name} if given else {"images": str(images), "seed": context.seed}
    write_questions(context.out_dir / QUESTIONS, questions, made_from)
    section.text.append(
        "The option most similar to the image counts as the answer; ties share the credit. Intervals are 95 % Wilson "
        "intervals, widened for patients who are asked about more than once. Without the image, the mean of all "
        "images answers: what it has above chance is in the wording. The paper's figures are for its own questions."
    )
    ids, _ = context.image_ids(images)
    path = context.images_path(images)
    if ids is None:
        raise UserError(
            f"{path} carries no ids, so questions cannot be joined with its images; make it with "
            f"`python -m data_prep build`"
        )
    rows = join([question.image for question in questions], "the questions", ids, path)
    features = context.image_features(images)
    credit, blind = answer(context, questions, features[rows], features.mean(0))
    for task in dict.fromkeys(question.task for question in questions):
        index = np.flatnonzero([question.task == task for question in questions])
        section.metrics[task] = summary([questions[i] for i in index], credit[index], blind[index])
    section.tables.append(_table(section.metrics, description["tasks"]))
    if "view" in section.metrics:
        by_view = {
            text: {"questions": len(rows), "accuracy": metrics.number(credit[rows].mean())}
            for text in description["views"].values()
            if len(rows := np.flatnonzero([q.task == "view" and q.options[q.answer] == text for q in questions]))
        }
        section.metrics["view"]["by_view"] = by_view
        section.tables.append(
            Table(
                "View classification by the image's view",
                ["view", "questions", "accuracy"],
                [[text, *values.values()] for text, values in by_view.items()],
            )
        )
    return section


def make_questions(
    context: EvaluationContext, images: str, description: dict[str, Any], section: Section
) -> list[Question]:
    """All tasks' questions; a task that the set cannot give is named in the section's text."""
    data = read_labelled(context, images, context.option("chexbench_labels"))
    chosen = [j for j, label in enumerate(data.labels) if label not in description["not_diseases"]]
    diseases, truth = [data.labels[j].lower() for j in chosen], data.truth[:, chosen]
    patients = data.patients()
    if (per_task := context.option("chexbench_per_task", 1000)) < 1:
        raise UserError("--chexbench_per_task must be 1 or more; choose another number")
    maker = Maker(data.ids, patients, per_task, context.seed)
    made = {
        "view": maker.view(_views(context, images, data), description["views"]),
        "binary": maker.binary(truth, diseases, description["binary"]),
        "single": maker.single(truth, diseases),
        "sets": maker.sets(truth, diseases),
        "reasoning": [],
    }
    why = dict.fromkeys(made, "the set has too few different images for it")
    try:
        ids, texts, _ = read_reports(context, images)
        patient = dict(zip(data.ids, patients, strict=True))
        reader = Maker(ids, [patient.get(name, name) for name in ids], per_task, context.seed)
        made["reasoning"] = reader.reasoning(texts, description["swaps"], description["skip"])
    except UserError as error:  # reports are optional here
        why["reasoning"] = str(error)
    section.text += [
        f"{description['tasks'][task]['title']} is left out: {why[task]}."
        for task, questions in made.items()
        if not questions
    ]
    if not any(made.values()):
        raise UserError(f"no question can be made from {data.path}: it needs images with different findings or views")
    return [question for questions in made.values() for question in questions]


def answer(
    context: EvaluationContext, questions: list[Question], features: np.ndarray, mean_image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Credit 0..1 of each question with its image, and with the mean image. features: (Q, D), one row a question."""
    texts = list(dict.fromkeys(text for question in questions for text in question.options))
    position = {text: i for i, text in enumerate(texts)}
    embedded = context.text_features(texts)
    credit = np.empty((2, len(questions)))
    for i, question in enumerate(questions):
        options = embedded[[position[text] for text in question.options]]
        credit[0, i] = metrics.choice_scores(options @ features[i], question.answer)
        credit[1, i] = metrics.choice_scores(options @ mean_image, question.answer)
    return credit[0], credit[1]


def summary(questions: list[Question], credit: np.ndarray, blind: np.ndarray) -> dict[str, Any]:
    """Accuracy of one task with its interval, chance from the numbers of options, and accuracy without the image."""
    accuracy, lower, upper = metrics.clustered_interval(credit, [question.patient for question in questions])
    chance = float(np.mean([1 / len(question.options) for question in questions]))
    return {
        "questions": len(questions),
        "images": len({question.image for question in questions}),
        "accuracy": metrics.number(accuracy),
        "lower": metrics.number(lower),
        "upper": metrics.number(upper),
        "chance": metrics.number(chance),
        "without_image": metrics.number(blind.mean()),
    }


def _views(context: EvaluationContext, images: str, data: LabelledImages) -> list[str | None]:
    """AP, PA or lateral per image; frontal where no image says which of the two it is; None where unknown."""
    views = [view.lower() for view in data.column("view", [""] * len(data.ids))]
    direction = data.column("ap_pa", data.column("AP/PA", [""] * len(data.ids)))
    manifest = context.manifest_path(images)
    if images in ("valid", "test") and manifest.is_file():
        table = read_table(manifest, ["id"])
        if "ap_pa" in table:
            direction = table["ap_pa"].fillna("").to_numpy(str)[join(data.ids, data.path, table["id"], manifest)]
    known = {"AP", "PA"} & set(direction)
    return [
        view if view == "lateral" or not known else str(way) if way in known else None
        for view, way in zip(views, direction, strict=True)
    ]


def _table(results: dict[str, Any], tasks: dict[str, Any]) -> Table:
    figures = reported_figures()["chexbench"]
    rows = []
    for task, result in results.items():
        title, paper = task, ""
        if task in tasks:
            title, paper = tasks[task]["title"], round(figures[tasks[task]["paper"]][0] / 100, 3)
        rows.append(
            [
                title,
                result["questions"],
                result["accuracy"],
                interval(result["lower"], result["upper"]),
                result["chance"],
                result["without_image"],
                paper,
            ]
        )
    return Table(
        "Accuracy",
        ["task", "questions", "accuracy", "95 % interval", "chance", "without the image", "CheXagent (paper)"],
        rows,
    )
