"""CheXbench's image perception axis for a CLIP model: multiple choice by similarity.

The questions are made from any labelled set and a seed, or read from the file of an earlier run or from CheXbench's
`data.json`. Made and re-read questions are written beside the results.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from chexzero.common.errors import UserError
from chexzero.common.files import read_json, read_table
from chexzero.common.intervals import clustered_interval
from chexzero.report.beside.published import reported_figures
from chexzero.report.format import interval
from chexzero.report.sections import Section, Table
from chexzero.suites import metrics
from chexzero.suites.context import EvaluationContext, file_flag
from chexzero.suites.questions import Maker, Question, read_questions, write_questions
from chexzero.suites.released_questions import ASKED, Released, find_files, is_released, read_released
from chexzero.suites.tables import LabelledImages, join, read_description, read_labelled, read_reports

DESCRIPTION = Path(__file__).with_suffix(".yaml")
QUESTIONS = "chexbench_questions.json"
COLUMNS = ["questions", "accuracy", "95 % interval", "chance", "without the image", "CheXagent"]
KEYS = ("tasks", "views", "binary", "not_diseases", "swaps", "skip")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this suite."""
    group = parser.add_argument_group("suite chexbench")
    file_flag(group, "chexbench_images", "images to ask about (.h5 or a folder; default: the validation set)")
    file_flag(group, "chexbench_labels", "their labels (default: <images>_labels.csv)")
    group.add_argument(
        "--chexbench_questions",
        "--questions",
        metavar="FILE",
        help="ask the questions of this file instead of making new ones: one that this suite wrote, or CheXbench's "
        "data.json (with --chexbench_images, the folder that its image paths lie in)",
    )
    group.add_argument(
        "--chexbench_per_task", type=int, default=1000, metavar="N", help="maximum number of questions per task"
    )


def run(context: EvaluationContext) -> Section:
    """Make or read the questions, answer them, and compare with chance and the paper; see the module."""
    description = read_description(DESCRIPTION, KEYS)
    images = context.option("chexbench_images", "valid")
    section = Section("chexbench", "Multiple choice by similarity (CheXbench)")
    if given := context.option("chexbench_questions"):
        content = read_json(given, "name a file that this suite wrote, or CheXbench's data.json")
        if is_released(content):
            return run_released(context, section, given, read_released(given, content))
        questions = read_questions(given)
        section.text.append(f"The questions are those of {Path(given).name}.")
    else:
        questions = make_questions(context, images, description, section)
        section.text.append(
            f"The questions were made with the seed {context.seed} and are in {QUESTIONS}; to ask the same again, name "
            f"that file with --chexbench_questions."
        )
    made_from = {"file": Path(given).name} if given else {"images": str(images), "seed": context.seed}
    write_questions(context.out_dir / QUESTIONS, questions, made_from)
    section.text.append(
        "The option most similar to the image counts as the answer; ties share the credit. Intervals are 95 % Wilson "
        "intervals, widened for patients with more than one question. “Without the image” uses the mean of all images "
        "instead: accuracy above chance there comes from the wording. The paper's figures are for its own questions."
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


def run_released(context: EvaluationContext, section: Section, given: str, released: Released) -> Section:
    """Answer CheXbench's own questions, beside CheXagent's accuracy by task and source."""
    folder = Path(context.option("chexbench_images", context.data_dir))
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the folder of the images of {given} with --chexbench_images")
    files = find_files(folder, [question.image for question in released.questions])
    there = [i for i, file in enumerate(files) if file is not None]
    if not there:
        first = released.questions[0].image if released.questions else "none"
        raise UserError(
            f"none of the images that {given} asks about lies under {folder} (the first is {first}); name their folder "
            "with --chexbench_images"
        )
    released = released.kept(there, "its image is not in the folder")
    chosen = [file for file in files if file is not None]
    names = list(dict.fromkeys(chosen))
    features = context.file_features(names)
    place = {name: i for i, name in enumerate(names)}
    rows = [place[name] for name in chosen]
    credit, blind = answer(context, released.questions, features[rows], features.mean(0))
    table: list[list[Any]] = []
    figures = reported_figures()["chexbench_released"]
    for task in ASKED.values():
        for part in _parts(released, task):
            index = [i for i, q in enumerate(released.questions) if q.task == task and _part(released, i) == part]
            found = summary([released.questions[i] for i in index], credit[index], blind[index])
            paper = next((value for name, value in figures[task].items() if _same_source(name, part)), None)
            section.metrics.setdefault(task, {})[part] = found | {"chexagent": paper}
            table.append([task.replace("_", "-"), part, *_cells(found), paper])
    section.metrics["not_asked"] = {f"{task}: {why}": n for (task, why), n in released.not_asked.items()}
    section.text += [
        f"The questions are CheXbench's own ({Path(given).name}): {len(released.questions)} are asked, "
        f"{released.not_asked.total()} are not. The option most similar to the image counts as the answer; ties share the "
        "credit. Options that are only yes or no are asked together with their question. Intervals are Wilson's, "
        "clustered by image. “Without the image” uses the mean of all images instead.",
        f"CheXagent's accuracies: {figures['source']}. It is a generative model that was trained for such questions.",
    ]
    section.tables.append(Table("Accuracy on CheXbench's questions, by source", ["task", "source", *COLUMNS], table))
    left = [[task, why, n] for (task, why), n in sorted(released.not_asked.items())]
    section.tables.append(Table("Questions not asked, counted in no accuracy", ["task", "why", "questions"], left))
    return section


def _part(released: Released, i: int) -> str:
    """The part of the task that a question counts for: its slice if fine-grained, else its source."""
    return released.slices[i] if released.questions[i].task == "fine_grained" else released.sources[i]


def _parts(released: Released, task: str) -> list[str]:
    return sorted({_part(released, i) for i, question in enumerate(released.questions) if question.task == task})


def _same_source(published: str, name: str) -> bool:
    """`MIMIC` is `MIMIC-CXR`, `OpenI` is `Open-I`."""
    one, other = ("".join(filter(str.isalnum, text.lower())) for text in (published, name))
    return other.startswith(one)


def make_questions(
    context: EvaluationContext, images: str, description: dict[str, Any], section: Section
) -> list[Question]:
    """Make the questions of all tasks; the section's text names tasks that the set cannot supply."""
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
    """Credit 0..1 of each question with its image, and with the mean image. features: (Q, D), one row per question."""
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
    accuracy, lower, upper = clustered_interval(credit, [question.patient for question in questions])
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
    """AP, PA or lateral per image; frontal instead if no image of the set says AP or PA; None where unknown."""
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
        rows.append([title, *_cells(result), paper])
    return Table("Accuracy", ["task", *COLUMNS[:-1], "CheXagent (paper)"], rows)


def _cells(result: dict[str, Any]) -> list[Any]:
    """A row's cells for `COLUMNS`, except the published one."""
    ends = interval(result["lower"], result["upper"])
    return [result["questions"], result["accuracy"], ends, result["chance"], result["without_image"]]
