"""Multiple-choice questions from a labelled set: the same seed gives the same questions, and they are saved in a file.

In every task the answers are balanced (as many images of each view, with as without a finding, ...), so that an
answer chosen without the image stays near chance; the suite measures what remains above chance.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chexzero.common.errors import UserError
from chexzero.common.files import read_json, write_json

N_OPTIONS = 4
N_CANDIDATES = 200  # images searched for three sets of diseases that are wrong for the question's image


@dataclass(frozen=True)
class Question:
    """One question: an image id, its patient, the options in the order asked, and the index of the right one."""

    task: str
    image: str
    patient: str
    options: tuple[str, ...]
    answer: int


class Maker:
    """Make the questions of each task. ids, patients: one per image; per_task: most questions per task."""

    def __init__(self, ids: Iterable[str], patients: Iterable[str], per_task: int, seed: int) -> None:
        self.ids, self.patients, self.per_task, self.seed = list(ids), list(patients), per_task, seed

    def view(self, views: Sequence[str | None], wording: dict[str, str]) -> list[Question]:
        """Ask for the view. views: AP, PA, frontal, lateral or None (not asked about) per image."""
        rng = self._rng("view")
        names = [name for name in wording if name in views]
        if len(names) < 2:
            return []
        rows = [np.flatnonzero([view == name for view in views]) for name in names]
        size = min(self.per_task // len(names), *map(len, rows))
        return [
            self._ask("view", i, wording[name], [wording[n] for n in names if n != name], rng)
            for name, among in zip(names, rows, strict=True)
            for i in _draw(rng, among, size)
        ]

    def binary(self, truth: np.ndarray, diseases: Sequence[str], wording: Sequence[str]) -> list[Question]:
        """Ask whether a disease is present, of as many images with as without it. truth: (N, L), one column each."""
        rng = self._rng("binary")
        most = max(1, self.per_task // (2 * max(len(diseases), 1)))
        questions = []
        for j, disease in enumerate(diseases):
            yes, no = (form.format(disease) for form in wording)
            size = min(most, int(truth[:, j].sum()), int((1 - truth[:, j]).sum()))
            for present, absent, value in ((yes, no, 1), (no, yes, 0)):
                questions += [
                    self._ask("binary", i, present, [absent], rng)
                    for i in _draw(rng, np.flatnonzero(truth[:, j] == value), size)
                ]
        return questions

    def single(self, truth: np.ndarray, diseases: Sequence[str]) -> list[Question]:
        """Ask which of four diseases the image has; the other three are absent. Answers are balanced if possible."""
        rng = self._rng("single")
        enough = (truth == 0).sum(1) >= N_OPTIONS - 1
        rows = [np.flatnonzero((truth[:, j] == 1) & enough) for j in range(len(diseases))]
        size = max(1, self.per_task // max(sum(len(among) > 0 for among in rows), 1))
        questions = []
        for j, among in enumerate(rows):
            for i in _draw(rng, among, min(size, len(among))):
                absent = _draw(rng, np.flatnonzero(truth[i] == 0), N_OPTIONS - 1)
                questions.append(self._ask("single", i, diseases[j], [diseases[k] for k in absent], rng))
        return questions

    def sets(self, truth: np.ndarray, diseases: Sequence[str]) -> list[Question]:
        """Ask which of four sets of diseases the image has; the others are other images', with one absent here."""
        rng = self._rng("sets")
        several = np.flatnonzero(truth.sum(1) >= 2)
        questions = []
        for i in _draw(rng, several, min(self.per_task, len(several))):
            among = _draw(rng, several, min(N_CANDIDATES, len(several)))
            foreign = among[(truth[among] > truth[i]).any(1)]
            others = list(dict.fromkeys(_phrase(truth[k], diseases) for k in foreign))[: N_OPTIONS - 1]
            if len(others) == N_OPTIONS - 1:
                questions.append(self._ask("sets", i, _phrase(truth[i], diseases), others, rng))
        return questions

    def reasoning(self, texts: Sequence[str], swaps: Sequence[Sequence[str]], skip: Sequence[str]) -> list[Question]:
        """Ask which sentence is the report's: one of its own, or the same with a side or a severity exchanged.

        Each exchange is asked equally often in both directions, so that no word is more likely to be right.
        """
        rng = self._rng("reasoning")
        found: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
        for i, text in enumerate(texts):
            for sentence in dict.fromkeys(re.split(r"(?<=[.!?])\s+", text)):
                if pair := exchange(sentence, swaps, skip):
                    found.setdefault(pair[:2], []).append((i, sentence.strip(), pair[2]))
        questions = []
        for first, second in swaps:
            ways = [found.get((first, second), []), found.get((second, first), [])]
            size = min(self.per_task // (2 * len(swaps)), *map(len, ways))
            for way in ways:
                questions += [
                    self._ask("reasoning", way[k][0], way[k][1], [way[k][2]], rng)
                    for k in _draw(rng, np.arange(len(way)), size)
                ]
        return questions

    def _ask(self, task: str, i: int, answer: str, others: Iterable[str], rng: np.random.Generator) -> Question:
        options = [answer, *others]
        order = rng.permutation(len(options))
        return Question(task, self.ids[i], self.patients[i], tuple(options[k] for k in order), int(np.argmin(order)))

    def _rng(self, task: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *task.encode()])  # a task's questions do not depend on the other tasks


def exchange(sentence: str, swaps: Sequence[Sequence[str]], skip: Sequence[str]) -> tuple[str, str, str] | None:
    """The first word of `swaps` whose opposite a sentence lacks, the opposite, and the sentence with it; or None."""
    words = re.findall(r"[a-z]+", sentence.lower())
    present = [(a, b) for pair in swaps for a, b in (pair, pair[::-1]) if a in words and b not in words]
    if not present or not 3 <= len(words) <= 30 or set(words) & set(skip):
        return None
    word, opposite = present[0]

    def matched(match: re.Match) -> str:
        return opposite.capitalize() if match[0][0].isupper() else opposite

    return word, opposite, re.sub(rf"\b{word}\b", matched, sentence.strip(), flags=re.IGNORECASE)


def write_questions(path: Path, questions: Sequence[Question], made_from: dict[str, Any]) -> None:
    """Write the questions and what they were made from."""
    write_json(path, {"made_from": made_from, "questions": [asdict(question) for question in questions]})


def read_questions(path: str | Path) -> list[Question]:
    """Read a question file; an entry that is no question raises `UserError` with its number."""
    content = read_json(path, "name a file that this suite wrote")
    entries = content.get("questions") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} holds no list `questions`; name a file that this suite wrote")
    return [_question(path, n, entry) for n, entry in enumerate(entries, 1)]


def _question(path: str | Path, n: int, entry: Any) -> Question:
    names = ("task", "image", "patient")
    options = entry.get("options") if isinstance(entry, dict) else None
    if (
        not isinstance(options, list)
        or len(options) < 2
        or len(set(map(str, options))) < len(options)
        or not all(isinstance(text, str) for text in [*options, *(entry.get(name) for name in names)])
        or type(entry.get("answer")) is not int
        or not 0 <= entry["answer"] < len(options)
    ):
        raise UserError(
            f"{path}, question {n}: task, image and patient must be texts, options two or more different "
            f"texts, and answer the position of one; correct it"
        )
    return Question(entry["task"], entry["image"], entry["patient"], tuple(options), entry["answer"])


def _draw(rng: np.random.Generator, among: np.ndarray, size: int) -> np.ndarray:
    return rng.choice(among, size, replace=False) if size else np.empty(0, dtype=int)


def _phrase(present: np.ndarray, diseases: Sequence[str]) -> str:
    names = [disease for disease, here in zip(diseases, present, strict=True) if here]
    return f"{', '.join(names[:-1])} and {names[-1]}"
