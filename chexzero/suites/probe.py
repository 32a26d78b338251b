"""Linear probe and few shots: what labels add to frozen image features.

A logistic regression per finding (scikit-learn) on the features of 1 %, 10 % and 100 % of the patients, and of a few
images per class. No patient is in two of the parts for training, validation and test; each amount of labels is drawn
several times; the strength of the penalty is chosen on the validation part.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from chexzero.common.errors import UserError
from chexzero.common.intervals import mean_interval, newcombe_interval
from chexzero.common.statistics import Floats
from chexzero.evaluation.named_sets import read_protocol, score_findings
from chexzero.report.beside.published import reported_figures
from chexzero.report.format import interval
from chexzero.report.sections import Section, Table
from chexzero.suites import metrics
from chexzero.suites.context import EvaluationContext, file_flag
from chexzero.suites.tables import LabelledImages, read_labelled

#: Inverse strengths of the penalty (scikit-learn's C), on features of unit variance, from strong to weak.
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FRACTIONS = (0.01, 0.1, 1.0)
SHOTS = (1, 2, 4, 8, 16)

#: Shares of the patients set aside for a part for which no images are named.
TEST_SHARE, VALID_SHARE = 0.2, 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this suite."""
    group = parser.add_argument_group("suite probe")
    file_flag(group, "probe_images", "labelled images to learn from (.h5 or a folder; default: the validation set)")
    file_flag(group, "probe_labels", "their labels: 0, 1 or empty where unknown (default: <images>_labels.csv)")
    for part, default in (
        ("valid", f"{VALID_SHARE:.0%}% of the training patients"),
        ("test", f"the test set; with --probe_images, {TEST_SHARE:.0%}% of its patients"),
    ):
        file_flag(group, f"probe_{part}_images", f"images for the {part} part (default: {default})")
        file_flag(group, f"probe_{part}_labels", "their labels (default: <images>_labels.csv)")
    group.add_argument(
        "--probe_seeds",
        type=int,
        default=5,
        metavar="N",
        help="random draws per amount of labels (default: %(default)s)",
    )


@dataclass(frozen=True)
class Part:
    """Features (N, D), labels (N, L; 0, 1 or NaN where unknown) and patients (N,) of some images."""

    features: Floats
    truth: Floats
    patients: NDArray

    def rows(self, chosen: NDArray) -> "Part":
        return Part(self.features[chosen], self.truth[chosen], self.patients[chosen])


@dataclass(frozen=True)
class Outcome:
    """One amount of labels on the test part. areas: (L,), mean of the draws. means: (draws,), macro mean of each.

    lower, upper: 95 % interval of the mean of `means` over test images. strengths: the C that each draw chose. images,
    learnt: mean number of training images, and of findings for which a draw had both classes.
    """

    name: str
    areas: Floats
    means: Floats
    lower: float
    upper: float
    strengths: list[float]
    images: float
    learnt: float


def run(context: EvaluationContext) -> Section:
    """Probe the model's image features; see the module."""
    if (draws := context.option("probe_seeds", 5)) < 1:
        raise UserError("--probe_seeds must be 1 or more; choose another number")
    images = context.option("probe_images", "valid")
    train, valid, test, findings, text = read_parts(context, images)
    outcomes = [*label_fractions(train, valid, test, draws, context.seed)]
    outcomes += few_shots(train, valid, test, draws, context.seed)
    path = context.images_path(images)
    protocol = read_protocol(path.parent, path.stem)
    zero_shot = context.probabilities(test.features, [protocol.prompts(finding) for finding in findings])
    outcomes.insert(0, summarise("zero-shot", [zero_shot], test, [], 0, 0))
    section = Section("probe", "Linear probe and few shots", [*text, *_explain(draws)])
    section.tables += [
        _amounts_table(outcomes, draws),
        *_published(path.stem),
        _findings_table(outcomes, findings, test),
    ]
    section.metrics = {
        "images": {"train": len(train.truth), "valid": len(valid.truth), "test": len(test.truth)},
        "findings": len(findings),
        "amounts": {one.name: _as_metrics(one, findings) for one in outcomes},
    }
    return section


def read_parts(context: EvaluationContext, images: str) -> tuple[Part, Part, Part, list[str], list[str]]:
    """Return the parts for training, validation and test, their findings, and sentences on the parts' origin.

    Findings are the columns that all parts have, with both classes in each part.
    """
    given = {name: context.option(f"probe_{name}_images") for name in ("valid", "test")}
    if context.option("probe_images") is None:
        given["test"] = given["test"] or "test"
    flags = {"train": "probe_labels", "valid": "probe_valid_labels", "test": "probe_test_labels"}
    places = {"train": images} | {name: place for name, place in given.items() if place is not None}
    read = {
        name: read_labelled(context, place, context.option(flags[name]), unknown=True) for name, place in places.items()
    }
    shared = [label for label in read["train"].labels if all(label in one.labels for one in read.values())]
    parts, text = {name: _part(one, shared) for name, one in read.items()}, []
    rng = np.random.default_rng([context.seed, 0])
    for name, share in (("test", TEST_SHARE), ("valid", VALID_SHARE)):
        if name in parts:
            known = np.isin(parts["train"].patients, parts[name].patients)
            if known.any():
                text.append(f"{known.sum()} images of patients of the {name} part are left out of training.")
            if known.all():
                raise UserError(
                    f"every patient of {read['train'].path} is one of the {name} part ({read[name].path}), so nothing is "
                    "left to learn from; name other images with --probe_images"
                )
            parts["train"] = parts["train"].rows(~known)
            text.append(f"The {name} part is {read[name].path.name}.")
        else:
            aside = np.isin(parts["train"].patients, _draw(parts["train"].patients, share, rng))
            parts[name], parts["train"] = parts["train"].rows(aside), parts["train"].rows(~aside)
            text.append(f"The {name} part is {share:.0%} of the patients of {read['train'].path.name}.")
    whole = [part.truth for part in parts.values()]
    both = np.all([((truth == 1).any(0) & (truth == 0).any(0)) for truth in whole], axis=0)
    findings = [label for label, has in zip(shared, both, strict=True) if has]
    if not findings:
        raise UserError(
            f"{read['train'].path}: no finding has positive and negative images in the parts for learning, validation "
            f"and test; name more images with --probe_images"
        )
    left = [label for label, has in zip(shared, both, strict=True) if not has]
    if left:
        text.append(f"Left out, because a part lacks one class: {', '.join(left)}.")
    train, valid, test = (
        Part(part.features, part.truth[:, both], part.patients)
        for part in (parts["train"], parts["valid"], parts["test"])
    )
    return train, valid, test, findings, text


def _part(data: LabelledImages, findings: Sequence[str]) -> Part:
    columns = [data.labels.index(finding) for finding in findings]
    return Part(data.features.astype(np.float64), data.truth[:, columns], data.patients())


def _draw(patients: NDArray, share: float, rng: np.random.Generator) -> NDArray:
    """Draw a share of the patients, at least one."""
    names = np.unique(patients)
    return rng.permutation(names)[: max(1, round(share * len(names)))]


def label_fractions(train: Part, valid: Part, test: Part, draws: int, seed: int) -> list[Outcome]:
    """Probes on shares of the patients; the full share is drawn once."""
    found = []
    for share in FRACTIONS:
        rngs = [np.random.default_rng([seed, 1, draw]) for draw in range(draws if share < 1 else 1)]
        chosen = [np.isin(train.patients, _draw(train.patients, share, rng)) for rng in rngs]
        rows = [lambda _, mask=mask: np.flatnonzero(mask) for mask in chosen]
        images = float(np.mean([mask.sum() for mask in chosen]))
        found.append(_probe(f"{share:.0%} of the labels", train, valid, test, rows, images))
    return found


def few_shots(train: Part, valid: Part, test: Part, draws: int, seed: int) -> list[Outcome]:
    """Probes on k positive and k negative images of each finding, of different patients."""
    found = []
    patients = np.unique(train.patients, return_inverse=True)[1]
    coded = Part(train.features, train.truth, patients)  # integers compare faster than strings
    for shots in SHOTS:
        rows = [
            lambda label, draw=draw, shots=shots: _shots(
                coded, label, shots, np.random.default_rng([seed, 2, draw, label])
            )
            for draw in range(draws)
        ]
        found.append(_probe(f"{shots} {'shot' if shots == 1 else 'shots'}", train, valid, test, rows, 2.0 * shots))
    return found


def _shots(train: Part, label: int, shots: int, rng: np.random.Generator) -> NDArray:
    """Rows of `shots` positive and as many negative images of a finding, one per patient; fewer if too few exist."""
    order = rng.permutation(len(train.truth))
    rows = order[
        np.sort(np.unique(train.patients[order], return_index=True)[1])
    ]  # one image per patient, in that order
    return np.concatenate([rows[train.truth[rows, label] == value][:shots] for value in (1, 0)])


def _probe(
    name: str, train: Part, valid: Part, test: Part, draws: Sequence[Callable[[int], NDArray]], images: float
) -> Outcome:
    """Fit each draw, choose its strength on `valid`, score it on `test`. draws: label -> the training rows."""
    scores, strengths, learnt = [], [], []
    for rows in draws:
        on_valid, on_test, known = fit(train, rows, (valid.features, test.features))
        areas = [metrics.nan_mean(score_findings(valid.truth, one).auroc) for one in on_valid]
        best = int(np.argmax(areas))  # ties go to the strongest penalty
        scores.append(on_test[best])
        strengths.append(STRENGTHS[best])
        learnt.append(known)
    return summarise(name, scores, test, strengths, images, float(np.mean(learnt)))


def fit(train: Part, rows: Callable[[int], NDArray], others: Sequence[Floats]) -> tuple[Floats, Floats, int]:
    """Scores (len(STRENGTHS), N, L) of two sets of features, and how many findings could be learnt.

    If the rows have only one class of a finding, every image gets the same score (AUROC 0.5).
    """
    n_labels, known = train.truth.shape[1], 0
    scores = [np.zeros((len(STRENGTHS), len(features), n_labels)) for features in others]
    for label in range(n_labels):
        chosen = rows(label)
        chosen = chosen[np.isfinite(train.truth[chosen, label])]
        truth = train.truth[chosen, label]
        if len(np.unique(truth)) < 2:
            continue
        known += 1
        scaler = StandardScaler().fit(train.features[chosen])
        features, scaled = scaler.transform(train.features[chosen]), [scaler.transform(one) for one in others]
        model = LogisticRegression(max_iter=1000, warm_start=True)
        for k, strength in enumerate(STRENGTHS):
            model.set_params(C=strength).fit(features, truth)
            for found, one in zip(scores, scaled, strict=True):
                found[k, :, label] = model.decision_function(one)
    return scores[0], scores[1], known


def summarise(
    name: str, scores: Sequence[Floats], test: Part, strengths: list[float], images: float, learnt: float
) -> Outcome:
    """AUROCs on the test part, each the mean of the draws; scores: (N, L) per draw."""
    found = [score_findings(test.truth, one) for one in scores]
    areas = np.mean([one.auroc for one in found], axis=0)
    ends = newcombe_interval(areas, found[0].n_pos, found[0].n_known - found[0].n_pos)
    lower, upper = mean_interval(areas, *ends, np.mean([one.influence for one in found], axis=0))
    means = np.array([one.auroc.mean() for one in found])
    return Outcome(name, areas, means, lower, upper, strengths, images, learnt)


def _explain(draws: int) -> list[str]:
    return [
        "The image encoder is frozen; per finding, a logistic regression (scikit-learn) learns from its features, "
        "scaled to unit variance. Its C is the one of "
        f"{', '.join(f'{strength:g}' for strength in STRENGTHS)} with the best mean AUROC on the validation part, the "
        "same for all findings. A draw trains on all images of its patients; k shots are k positive and k negative "
        "images per finding, one per patient.",
        f"Each amount of labels is drawn {draws} times (100 % once). SD is over the draws, the interval over the test "
        "images. A finding with only one class in a draw counts as 0.5.",
    ]


def _amounts_table(outcomes: Sequence[Outcome], draws: int) -> Table:
    rows: list[list[Any]] = [
        [
            one.name,
            round(one.images),
            len(one.means) if one.strengths else "",
            metrics.number(one.learnt, 1) if one.strengths else "",
            metrics.number(one.means.mean(), 3),
            metrics.number(one.means.std(ddof=1), 3) if len(one.means) > 1 else "",
            interval(one.lower, one.upper),
            ", ".join(f"{strength:g}" for strength in sorted(set(one.strengths))),
        ]
        for one in outcomes
    ]
    columns = ["labels", "images", "draws", "findings learnt", "mean AUROC", "SD", "95 % interval", "C chosen"]
    return Table("Mean AUROC over the findings of the test part", columns, rows)


def _published(name: str) -> list[Table]:
    """The published table of the set, where there is one."""
    figures = reported_figures()["label_fractions"]
    if (column := figures["sets"].get(name)) is None:
        return []
    rows = [[model, *found] for model, sets in figures["rows"].items() if (found := sets.get(column))]
    title = f"Published for {column} with other protocols: {figures['source']}. {figures['note']}"
    return [Table(title, ["model", *(f"{share:.0%} of the labels" for share in FRACTIONS)], rows)]


def _findings_table(outcomes: Sequence[Outcome], findings: Sequence[str], test: Part) -> Table:
    rows = [
        [finding, int((test.truth[:, j] == 1).sum()), *(metrics.number(one.areas[j], 3) for one in outcomes)]
        for j, finding in enumerate(findings)
    ]
    columns = ["finding", "positive", *(one.name for one in outcomes)]
    return Table("AUROC of each finding, mean of the draws", columns, rows)


def _as_metrics(one: Outcome, findings: Sequence[str]) -> dict[str, Any]:
    return {
        "images": metrics.number(one.images),
        "mean_auroc": metrics.number(one.means.mean()),
        "lower": metrics.number(one.lower),
        "upper": metrics.number(one.upper),
        "draws": [metrics.number(value) for value in one.means],
        "strengths": one.strengths,
        "findings": {name: metrics.number(area) for name, area in zip(findings, one.areas, strict=True)},
    }
