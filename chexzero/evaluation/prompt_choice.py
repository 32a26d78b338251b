"""What the wording of prompts is worth: every set asked in several ways, one of them chosen on validation alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from chexzero.common.formats import images_file
from chexzero.common.labels import PAIR_TEMPLATE
from chexzero.common.statistics import Floats
from chexzero.evaluation.checkpoint_choice import Choice
from chexzero.evaluation.measure import Request, predict_files
from chexzero.evaluation.named_sets import (
    FindingScores,
    NamedSet,
    Protocol,
    filled,
    mean_difference,
    read_named_set,
    read_protocol,
    score_findings,
)
from chexzero.evaluation.prompts import known_synonyms
from chexzero.evaluation.settings import EvaluationSettings
from chexzero.zero_shot import Pair


@dataclass(frozen=True)
class Way:
    """How findings are asked: forms of both sides (`negative` empty: nothing is denied), with synonyms or without."""

    positive: Sequence[str]
    negative: Sequence[str]
    synonyms: bool = False


#: CheXzero's way, with which the others are compared.
REFERENCE = "pair"

#: What a protocol says itself: the figures of the set's own section.
OWN = "protocol"

#: Name of a way -> the way.
WAYS: Mapping[str, Way] = {
    REFERENCE: Way(PAIR_TEMPLATE[:1], PAIR_TEMPLATE[1:]),
    "positive only": Way(["{}"], []),
    "there is": Way(["there is {}"], ["there is no {}"]),
    "there is, positive only": Way(["there is {}"], []),
    "synonyms averaged": Way(PAIR_TEMPLATE[:1], PAIR_TEMPLATE[1:], synonyms=True),
}


def pairs(protocol: Protocol, findings: Sequence[str], way: Way) -> list[Pair]:
    """The prompts of each finding. Where the protocol has whole texts for a finding, these are taken."""
    known = known_synonyms() if way.synonyms else {}
    return [_pair(protocol, finding, way, known) for finding in findings]


def _pair(protocol: Protocol, finding: str, way: Way, known: Mapping[str, Sequence[str]]) -> Pair:
    if finding in protocol.pairs:
        positive, negative = protocol.prompts(finding)
        return positive, negative if way.negative else []
    words = protocol.words(finding)
    if way.synonyms:
        words = list(dict.fromkeys([*words, *known.get(finding.replace("_", " ").lower(), [])]))
    else:
        words = words[:1]
    return filled(way.positive, words), filled(way.negative, words)


@dataclass(frozen=True)
class SetWays:
    """A set asked in every way of `WAYS` and as its protocol says (`OWN`).

    probability: way -> (N, L). scores: way -> its findings' scores. chosen: the way that is best on `chosen_on`.
    """

    data: NamedSet
    probability: Mapping[str, Floats]
    scores: Mapping[str, FindingScores]
    chosen_on: str = ""
    chosen: str = REFERENCE

    def columns(self) -> list[int]:
        """Findings that are defined, and are findings: those that every mean is over."""
        areas = self.scores[REFERENCE].auroc
        return [
            j
            for j, name in enumerate(self.data.findings)
            if np.isfinite(areas[j]) and name not in self.data.protocol.no_findings
        ]

    def mean(self, way: str) -> float:
        columns = self.columns()
        return float(self.scores[way].auroc[columns].mean()) if columns else float("nan")

    def best(self) -> str:
        """The way of `WAYS` with the highest mean here; of equally good ones the first."""
        return max(WAYS, key=self.mean) if self.columns() else REFERENCE

    def worth(self, way: str) -> tuple[float, ...]:
        """Mean AUROC of `way` minus that of CheXzero's pair, with a 95 % interval (the same images, DeLong's)."""
        return mean_difference(self.scores[way], self.scores[REFERENCE], self.columns())[:3]


#: Folder within the data folder that may hold a named set's own validation part, `<NAME>.h5` and its labels.
VALIDATION = "valid"


def validation_of(data_dir: Path, name: str, pixel_range: str | None = None) -> NamedSet:
    """The set that a named set's way of asking is chosen on: its own validation part, else CheXpert's."""
    if (data_dir / VALIDATION / images_file(name)).is_file():
        return replace(read_named_set(data_dir / VALIDATION, name, pixel_range), protocol=read_protocol(data_dir, name))
    return replace(read_named_set(data_dir, VALIDATION, pixel_range), protocol=read_protocol(data_dir, "chexpert"))


def ask_sets(settings: EvaluationSettings, choice: Choice, sets: Sequence[NamedSet], data_dir: Path) -> list[SetWays]:
    """Every set asked in every way, each with the way that validation images choose."""
    validations = {one.name: validation_of(data_dir, one.name, settings.pixel_range) for one in sets}
    asked = list({one.images: one for one in (*validations.values(), *sets)}.values())
    requests = [
        Request(one.images, one.images_sha256, texts, one.findings)
        for one in asked
        for texts in _all_pairs(one).values()
    ]
    predictions = iter(predict_files(choice.checkpoints, requests, settings)[0])
    found = {}
    for one in asked:
        probability = {way: next(predictions) for way in _all_pairs(one)}
        scores = {way: score_findings(one.truth, values) for way, values in probability.items()}
        found[one.images] = SetWays(one, probability, scores)
    return [
        replace(
            found[one.images],
            chosen_on=str(validations[one.name].labels.relative_to(data_dir)),
            chosen=found[validations[one.name].images].best(),
        )
        for one in sets
    ]


def _all_pairs(data: NamedSet) -> dict[str, list[Pair]]:
    own: list[Pair] = [data.protocol.prompts(finding) for finding in data.findings]
    return {OWN: own} | {name: pairs(data.protocol, data.findings, way) for name, way in WAYS.items()}
