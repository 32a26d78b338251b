"""Prompts: upstream's pair, and alternatives per label from a small YAML file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from chexzero.common.errors import UserError
from chexzero.common.files import read_yaml
from chexzero.common.labels import LABELS, PAIR_TEMPLATE
from chexzero.common.statistics import auroc

UPSTREAM = "upstream"


@dataclass(frozen=True)
class Prompt:
    """The prompts of one label: `name` says which alternative it is; the texts of a side are averaged."""

    label: str
    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]

    @property
    def pair(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Both sides, as `zero_shot.predict_pairs` takes them."""
        return self.positive, self.negative

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def pair(label: str, name: str, words: str, template: Sequence[str] = PAIR_TEMPLATE) -> Prompt:
    """Put `words` in a pair of templates."""
    return Prompt(label, name, (template[0].format(words),), (template[1].format(words),))


def upstream_prompts(labels: Sequence[str] = LABELS) -> list[Prompt]:
    """Upstream's pair for each label, with the label's name unchanged."""
    return [pair(label, UPSTREAM, label) for label in labels]


def read_alternatives(path: str | Path | None = None) -> list[Prompt]:
    """Read the alternatives of a YAML file (default: the package's), in label order.

    Raises `UserError` for a file that is not YAML, an unknown key or label, a text that is no string, a template
    without `{}`, and a pair that lacks a side.
    """
    if path is None:
        with as_file(files("chexzero.evaluation").joinpath("prompts.yaml")) as default:
            return read_alternatives(default)
    path = Path(path)
    content = read_yaml(path, "name a YAML file with --prompts") or {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold templates, synonyms and pairs; correct it")
    unknown = sorted(map(str, set(content) - {"templates", "synonyms", "pairs"}))
    if unknown:
        raise UserError(f"{path} must hold templates, synonyms and pairs, not {', '.join(unknown)}; correct it")
    by_label: dict[str, list[Prompt]] = {label: [] for label in LABELS}
    _add_pairs(by_label, path, content.get("pairs") or {})
    _add_templates(by_label, path, content.get("templates"), skip=set(content.get("pairs") or {}))
    for label, words in (content.get("synonyms") or {}).items():
        for word in _texts(path, f"synonyms of {label}", words):
            _of(by_label, path, label).append(pair(label, word, word))
    return [prompt for prompts in by_label.values() for prompt in prompts]


def known_synonyms() -> dict[str, list[str]]:
    """The words of the package's prompt file by label in lower case, the label itself first."""
    with as_file(files("chexzero.evaluation").joinpath("prompts.yaml")) as path:
        synonyms = read_yaml(path, "install the package again")["synonyms"]
    return {label.lower(): list(dict.fromkeys([label.lower(), *words])) for label, words in synonyms.items()}


def _of(by_label: dict[str, list[Prompt]], path: Path, label: str) -> list[Prompt]:
    if label not in by_label:
        raise UserError(f"{path}: {label!r} is none of the labels ({', '.join(LABELS)}); correct it")
    return by_label[label]


def _texts(path: Path, what: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise UserError(f"{path}: the {what} must be a list of texts; correct it")
    return tuple(value)


def _sides(path: Path, what: str, value: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if not isinstance(value, dict) or set(value) != {"positive", "negative"}:
        raise UserError(f"{path}: {what} must have `positive` and `negative`; correct it")
    positive, negative = (_texts(path, f"{side} texts of {what}", value[side]) for side in ("positive", "negative"))
    return positive, negative


def _add_pairs(by_label: dict[str, list[Prompt]], path: Path, pairs: object) -> None:
    if not isinstance(pairs, dict):
        raise UserError(f"{path}: pairs must hold labels; correct it")
    for label, value in pairs.items():
        _of(by_label, path, label).append(Prompt(label, "pair", *_sides(path, f"the pair of {label}", value)))


def _add_templates(by_label: dict[str, list[Prompt]], path: Path, templates: object, skip: set[str]) -> None:
    if not templates:
        return
    positive, negative = _sides(path, "templates", templates)
    without = [text for text in positive + negative if "{}" not in text]
    if without:
        raise UserError(f"{path}: the template {without[0]!r} has no {{}} for the label's name; correct it")
    for label in set(by_label) - skip:
        name = label.lower()
        by_label[label].append(
            Prompt(
                label,
                "templates",
                tuple(text.replace("{}", name) for text in positive),
                tuple(text.replace("{}", name) for text in negative),
            )
        )


def best_on_validation(prompts: Sequence[Prompt], truth: np.ndarray, scores: np.ndarray) -> dict[str, int]:
    """Upstream's choice among alternatives: for each label the prompt with the highest validation AUROC.

    truth: (N, 14). scores: (N, len(prompts)). Returns the label's index into `prompts`; labels whose AUROC is
    undefined keep their first prompt, and ties go to the earlier one.
    """
    areas = auroc(truth[:, [LABELS.index(prompt.label) for prompt in prompts]], scores)
    best: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        if prompt.label not in best or areas[index] > areas[best[prompt.label]]:
            best[prompt.label] = index
    return best
