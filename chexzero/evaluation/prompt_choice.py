"""Comparison of prompt wordings: every set is scored with each, and one is chosen on validation images alone."""

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
    """A prompt wording: forms of both sides (`negative` empty: no negative prompt), with or without synonyms."""

    positive: Sequence[str]
    negative: Sequence[str]
    synonyms: bool = False


#: CheXzero's wording, with which the others are compared.
REFERENCE = "pair"

#: The wording of a set's own protocol, used for the figures of the set's section.
OWN = "protocol"

#: Name of a wording -> the wording.
WAYS: Mapping[str, Way] = {
    REFERENCE: Way(PAIR_TEMPLATE[:1], PAIR_TEMPLATE[1:]),
    "positive only": Way(["{}"], []),
    "there is": Way(["there is {}"], ["there is no {}"]),
    "there is, positive only": Way(["there is {}"], []),
    "synonyms averaged": Way(PAIR_TEMPLATE[:1], PAIR_TEMPLATE[1:], synonyms=True),
}


def pairs(protocol: Protocol, findings: Sequence[str], way: Way) -> list[Pair]:
    """Return the prompts of each finding. If the protocol has whole texts for a finding, these are used."""
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
    """A set scored with every wording of `WAYS` and with its protocol's (`OWN`).

    probability: wording -> (N, L). scores: wording -> its findings' scores. chosen: the best wording on `chosen_on`.
    """

    data: NamedSet
    probability: Mapping[str, Floats]
    scores: Mapping[str, FindingScores]
    chosen_on: str = ""
    chosen: str = REFERENCE

    def columns(self) -> list[int]:
        """The columns of every mean: findings (not `no_findings`) with a defined AUROC."""
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
        """The wording of `WAYS` with the highest mean here; ties go to the first."""
        return max(WAYS, key=self.mean) if self.columns() else REFERENCE

    def worth(self, way: str) -> tuple[float, ...]:
        """Mean AUROC of `way` minus that of CheXzero's pair, with a 95 % interval (the same images, DeLong's)."""
        return mean_difference(self.scores[way], self.scores[REFERENCE], self.columns())[:3]


#: Folder within the data folder that may hold a named set's own validation part, `<NAME>.h5` and its labels.
VALIDATION = "valid"


def validation_of(data_dir: Path, name: str, pixel_range: str | None = None) -> NamedSet:
    """The set on which a named set's wording is chosen: its own validation part, else CheXpert's."""
    if (data_dir / VALIDATION / images_file(name)).is_file():
        return replace(read_named_set(data_dir / VALIDATION, name, pixel_range), protocol=read_protocol(data_dir, name))
    return replace(read_named_set(data_dir, VALIDATION, pixel_range), protocol=read_protocol(data_dir, "chexpert"))


def ask_sets(settings: EvaluationSettings, choice: Choice, sets: Sequence[NamedSet], data_dir: Path) -> list[SetWays]:
    """Score every set with every wording, and choose each set's wording on validation images."""
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
