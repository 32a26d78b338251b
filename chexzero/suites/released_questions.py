"""CheXbench's released questions (`data.json`): those that a CLIP model can answer, and their image files.

The file is one JSON object, task -> items. A choice item has `data_source, slice, image_path, question, option_0 ..
option_3, answer`; options that are not used are NaN, and several images are joined by `|`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexzero.common.errors import UserError
from chexzero.common.files import inside
from chexzero.suites.questions import N_OPTIONS, Question

#: Released task -> the name it has here. The option whose text is most similar to the image answers it.
ASKED: Mapping[str, str] = {
    "View Classification": "view",
    "Binary Disease Classification": "binary",
    "Single Disease Identification": "single",
    "Multiple Disease Identification": "multiple",
    "Fine-Grained Reasoning": "fine_grained",
}

#: Released task -> why it is not asked.
NOT_ASKED: Mapping[str, str] = {
    "Temporal Classification": "compares two images",
    "Visual Question Answering": "asks for an answer in words",
    "Phrase Grounding": "asks for boxes",
    "Findings Generation": "asks for text",
}
OTHER_TASK = "no task of images and options"

#: Options that say nothing without their question, and are asked together with it.
BARE = ("yes", "no", "true", "false")


@dataclass(frozen=True)
class Released:
    """Questions that can be asked, their sources, and the number not asked by task and reason.

    `questions[i].image` is the image's path as the file writes it; `sources[i]` is `data_source`, `slices[i]` `slice`.
    """

    questions: list[Question]
    sources: list[str]
    slices: list[str]
    not_asked: Counter[tuple[str, str]]

    def kept(self, rows: Sequence[int], reason: str) -> "Released":
        """Keep only these questions; the others count as not asked for `reason`."""
        wanted = set(rows)
        gone = (question.task for i, question in enumerate(self.questions) if i not in wanted)
        title = {name: task for task, name in ASKED.items()}
        return Released(
            [self.questions[i] for i in rows],
            [self.sources[i] for i in rows],
            [self.slices[i] for i in rows],
            self.not_asked + Counter((title[task], reason) for task in gone),
        )


def is_released(content: Any) -> bool:
    """Whether a JSON file's content is in the released format, and not one that this project wrote."""
    return (
        isinstance(content, dict) and "questions" not in content and any(isinstance(v, list) for v in content.values())
    )


def read_released(path: str | Path, content: Mapping[str, Any]) -> Released:
    """Read the questions of a released file's content. Raises `UserError` for an item that is no question."""
    questions, sources, slices = [], [], []
    not_asked: Counter[tuple[str, str]] = Counter()
    for task, items in content.items():
        if not isinstance(items, list):
            raise UserError(f"{path}: the task {task!r} holds no list of questions; name CheXbench's data.json")
        if task not in ASKED:
            not_asked[task, NOT_ASKED.get(task, OTHER_TASK)] += len(items)
            continue
        for number, item in enumerate(items, 1):
            question = _question(path, task, number, item)
            if "|" in question.image:
                not_asked[task, "is about several images"] += 1
                continue
            questions.append(question)
            sources.append(str(item.get("data_source", "")))
            slices.append(str(item.get("slice", "")))
    return Released(questions, sources, slices, not_asked)


def _question(path: str | Path, task: str, number: int, item: Any) -> Question:
    item = item if isinstance(item, dict) else {}
    options = [item.get(f"option_{k}") for k in range(N_OPTIONS)]
    texts = [text for text in options if isinstance(text, str)]  # those that are not used are NaN
    answer, image, asked = item.get("answer"), item.get("image_path"), item.get("question")
    if (
        not isinstance(image, str)
        or len(texts) < 2
        or options[: len(texts)] != texts
        or type(answer) is not int
        or not 0 <= answer < len(texts)
    ):
        raise UserError(
            f"{path}, {task}, question {number}: image_path must be a text, the options from option_0 on two texts or "
            "more, and answer the number of one; name CheXbench's data.json as it was released"
        )
    if isinstance(asked, str) and all(text.strip().lower() in BARE for text in texts):
        texts = [f"{asked} {text}" for text in texts]
    return Question(ASKED[task], image, image, tuple(texts), answer)


def find_files(folder: Path, names: Sequence[str]) -> list[Path | None]:
    """Find the image files of the questions' paths under a folder; None for a path without a file.

    `folder` may be the one that the paths start in, or one further down: `data/openi/images/x.png` is looked for as it
    is, then without `data/`, then without `data/openi/`, ...
    """
    found: dict[str, Path | None] = {}
    taken: dict[Path, str] = {}
    for name in dict.fromkeys(names):
        parts = Path(name).parts
        places = (inside(folder, "/".join(parts[k:])) for k in range(len(parts)))
        found[name] = place = next((place for place in places if place.is_file()), None)
        if place is not None and (other := taken.setdefault(place, name)) != name:
            raise UserError(
                f"{place} fits both {other!r} and {name!r}; name the folder that holds their data/ with "
                "--chexbench_images"
            )
    return [found[name] for name in names]
