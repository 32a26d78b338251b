"""The report's sections of scores: AUROC, operating points, calibration, prompts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from chexzero.common.intervals import FEW
from chexzero.common.labels import COUNTED, LABELS, MEAN_TITLES, NO_FINDING
from chexzero.common.statistics import auroc, bootstrap_auroc
from chexzero.evaluation.calibration import reliability
from chexzero.evaluation.prompts import UPSTREAM, Prompt, best_on_validation
from chexzero.evaluation.results import LABEL_METRICS, SetResult, number
from chexzero.report.format import interval, signed, unit_name
from chexzero.report.sections import Figure, Section, Table

MEAN_NAMES = {key: f"Mean of {title}" for key, title in MEAN_TITLES.items()} | {
    COUNTED: f"Mean of labels with {FEW} or more"
}


def areas_section(valid: SetResult, test: SetResult, figures: Sequence[Figure]) -> Section:
    """AUROC with counts on both sets, and the `LABEL_METRICS` on the test set."""
    rows = [
        [
            label,
            *_area_cells(valid, i),
            *_area_cells(test, i),
            *(number(test.per_label[key][i]) for key in LABEL_METRICS),
        ]
        for i, label in enumerate(LABELS)
    ]
    for key, title in MEAN_NAMES.items():
        rows.append([title, *_mean_cells(valid, key), *_mean_cells(test, key), *([""] * len(LABEL_METRICS))])
    per_set = ("Positive", "AUROC", "95 % interval", "as CheXzero")
    table = Table(
        "Zero-shot AUROC with 95 % intervals",
        [
            "Label",
            *(f"{name} ({one.title})" for one in (valid, test) for name in per_set),
            *(f"{metric.title} (test)" for metric in LABEL_METRICS.values()),
        ],
        rows,
    )
    text = [
        f"Validation: {len(valid)} {unit_name(valid)}; test: {len(test)} {unit_name(test)}. Prompts: “Edema” "
        f"against “no Edema” and so on. Where a class is missing, AUROC is undefined (n/a); means are taken over the "
        f"defined labels.{_undefined(valid)}{_undefined(test)}",
        f"The intervals are Newcombe's (2006), which also hold with few positive cases; those of the means combine the "
        f"labels' intervals and correlations. The columns “as CheXzero” are percentiles of {len(test.samples)} "
        f"resamples, CheXzero's method, which is too narrow where a label has few positive cases. A label with fewer "
        f"than {FEW} positive or negative cases is marked “few”: its AUROC is too imprecise to interpret.",
    ]
    left_out = valid.units.left_out + test.units.left_out
    if left_out:
        text.append(f"{left_out} studies have no frontal view and are left out (`--level study_mean` includes them).")
    text.append(
        f"{NO_FINDING} is asked with upstream's pair, “{NO_FINDING}” against “no {NO_FINDING}”, a double "
        f"negative: an AUROC below 0.5 is expected (CheXzero's own is 0.070). The section Prompts has a sound pair."
    )
    return Section("areas", "Zero-shot AUROC", text, [table], list(figures))


def _area_cells(result: SetResult, i: int) -> list:
    return [
        positives(result, i),
        number(result.auroc[i]),
        interval(*(end[i] for end in result.newcombe)),
        interval(result.lower[i], result.upper[i]),
    ]


def positives(result: SetResult, i: int) -> int | str:
    """The count of a label's positive cases, marked where positive or negative cases are few."""
    return int(result.n_pos[i]) if result.counted[i] else f"{result.n_pos[i]} (few)"


def _mean_cells(result: SetResult, key: str) -> list:
    mean = result.mean(key)
    return [f"{len(mean.used)} labels", number(mean.value), interval(*mean.interval), interval(mean.lower, mean.upper)]


def _undefined(result: SetResult) -> str:
    names = [
        f"{label} ({result.n_pos[i]} of {len(result)} positive)"
        for i, label in enumerate(LABELS)
        if np.isnan(result.auroc[i])
    ]
    return f" Undefined on {result.title}: {', '.join(names)}." if names else ""


def operating_section(valid: SetResult, test: SetResult) -> Section:
    """F1, MCC, sensitivity and specificity on the test set at thresholds chosen on the validation set."""
    rows = [
        [
            label,
            None if np.isnan(test.at[i]) else f"{test.at[i]:.5f}",
            int(test.n_pos[i]),
            *(number(getattr(test.rates, name)[i]) for name in ("f1", "mcc", "sensitivity", "specificity")),
            number(valid.rates.mcc[i]),
        ]
        for i, label in enumerate(LABELS)
    ]
    table = Table(
        "On the test set, at the threshold with the highest MCC on the validation set",
        [
            "Label",
            "Threshold",
            "Positive (test)",
            "F1",
            "MCC",
            "Sensitivity",
            "Specificity",
            "MCC (validation, where it was chosen)",
        ],
        rows,
    )
    return Section(
        "operating_points",
        "Operating points",
        [
            "A case counts as positive at or above the threshold. Labels without both positive and negative cases in "
            "the validation set have no threshold (n/a)."
        ],
        [table],
    )


def calibration_section(valid: SetResult, test: SetResult, scaled: np.ndarray, figure: Figure) -> Section:
    """Expected calibration error per label, as predicted and after scaling on validation (`scaled`, (N, 14))."""
    rows, metrics = [], {}
    for i, label in enumerate(LABELS):
        defined = np.isfinite(scaled[:, i]).all()
        after = reliability(test.truth[:, i], scaled[:, i]).ece if defined else None
        rows.append(
            [
                label,
                number(valid.per_label["ece"][i]),
                number(test.per_label["ece"][i]),
                after,
                number(test.probability[:, i].mean()),
                test.n_pos[i] / len(test),
            ]
        )
        metrics[label] = {"ece_scaled_on_validation": after}
    table = Table(
        "Expected calibration error in ten bins",
        [
            "Label",
            "ECE (validation)",
            "ECE (test)",
            "ECE (test), scaled on validation",
            "Mean probability (test)",
            "Share positive (test)",
        ],
        rows,
    )
    return Section(
        "calibration",
        "Calibration",
        [
            "The probabilities are upstream's: the softmax of two plain cosines, not scaled by the model's logit scale. "
            "They rank cases; they lie between 0.12 and 0.88 by construction and are not probabilities of disease. "
            "Scaled on validation: an unpenalised logistic regression (Platt) fitted per label to the validation set "
            "and applied to the test set; no other number here uses it."
        ],
        [table],
        [figure],
        metrics,
    )


def prompts_section(
    prompts: Sequence[Prompt],
    valid: SetResult,
    test: SetResult,
    valid_scores: np.ndarray,
    test_scores: np.ndarray,
    n_bootstrap: int,
) -> Section:
    """Upstream's prompt beside the best alternative, chosen per label on validation.

    prompts: upstream's 14 pairs first, then the alternatives; scores: (N units, len(prompts)) in this order.
    """
    best = best_on_validation(prompts, valid.truth, valid_scores)
    chosen = [best[label] for label in LABELS]
    on_valid, on_test = auroc(valid.truth, valid_scores[:, chosen]), auroc(test.truth, test_scores[:, chosen])
    rows = []
    for i, label in enumerate(LABELS):
        rows.append(
            [
                label,
                sum(prompt.label == label for prompt in prompts),
                describe(prompts[chosen[i]]),
                number(valid.auroc[i]),
                number(on_valid[i]),
                number(test.auroc[i]),
                number(on_test[i]),
                signed(on_test[i] - test.auroc[i]),
            ]
        )
    table = Table(
        "The alternative with the highest validation AUROC, label by label",
        [
            "Label",
            "Tried",
            "Chosen on validation",
            "Upstream's (validation)",
            "Chosen (validation)",
            "Upstream's (test)",
            "Chosen (test)",
            "Difference (test)",
        ],
        rows,
    )
    tables, metrics = (
        [table],
        {
            label: {
                "prompt": prompts[chosen[i]].as_dict(),
                "valid_auroc": number(on_valid[i]),
                "test_auroc": number(on_test[i]),
            }
            for i, label in enumerate(LABELS)
        },
    )
    sound = next((k for k, one in enumerate(prompts) if one.label == NO_FINDING and one.name == "pair"), None)
    if sound is not None:
        found = {
            result.name: _with_sound(result, scores[:, sound], n_bootstrap)
            for result, scores in ((valid, valid_scores), (test, test_scores))
        }
        tables.append(_sound_table(prompts[sound], valid, test, found))
        metrics["sound_no_finding"] = {
            name: {key: number(value) for key, value in one.items()} for name, one in found.items()
        }
    return Section(
        "prompts",
        "Prompts",
        [
            "Every other number in this report uses upstream's pair for every label. Here each label's alternatives "
            "(several templates, synonyms, a sound pair for No Finding) are compared on the validation set and the best "
            "is applied to the test set; because it was chosen there, its validation AUROC is optimistic."
        ],
        tables,
        [],
        metrics,
    )


def describe(prompt: Prompt) -> str:
    """A prompt in a table cell."""
    if prompt.name == UPSTREAM:
        return "upstream's pair"
    return (
        f"{prompt.name}: “{prompt.positive[0]}”{_more(prompt.positive)} / "
        f"“{prompt.negative[0]}”{_more(prompt.negative)}"
    )


def _more(texts: Sequence[str]) -> str:
    return f" (+{len(texts) - 1})" if len(texts) > 1 else ""


def _with_sound(result: SetResult, scores: np.ndarray, n_bootstrap: int) -> dict[str, float]:
    """AUROC of the sound pair with its interval, and the mean over 14 with it."""
    i = LABELS.index(NO_FINDING)
    probability, values, samples = result.probability.copy(), result.auroc.copy(), result.samples.copy()
    probability[:, i] = scores
    values[i] = auroc(result.truth[:, i], scores)[0]
    samples[:, i] = bootstrap_auroc(result.truth[:, i], scores, n_bootstrap)[:, 0]
    with_sound = replace(result, probability=probability, auroc=values, samples=samples)
    mean = with_sound.mean("mean_14")
    return {
        "auroc": values[i],
        "lower": with_sound.newcombe[0][i],
        "upper": with_sound.newcombe[1][i],
        "mean_14": mean.value,
        "mean_14_lower": mean.interval[0],
        "mean_14_upper": mean.interval[1],
    }


def _sound_table(prompt: Prompt, valid: SetResult, test: SetResult, found: dict[str, dict[str, float]]) -> Table:
    i = LABELS.index(NO_FINDING)
    rows = []
    for result in (valid, test):
        one = found[result.name]
        rows += [
            [
                f"{NO_FINDING}, upstream's double negative",
                result.title,
                number(result.auroc[i]),
                interval(*(end[i] for end in result.newcombe)),
            ],
            [
                f"{NO_FINDING}, {describe(prompt)}",
                result.title,
                number(one["auroc"]),
                interval(one["lower"], one["upper"]),
            ],
        ]
        rows += [
            [f"Mean of 13, without {NO_FINDING}", result.title, *_mean_cells(result, "mean_13")[1:3]],
            ["Mean of 14, upstream's pair", result.title, *_mean_cells(result, "mean_14")[1:3]],
            [
                "Mean of 14, sound pair",
                result.title,
                number(one["mean_14"]),
                interval(one["mean_14_lower"], one["mean_14_upper"]),
            ],
        ]
    return Table(
        f"{NO_FINDING}: upstream's pair and a sound one, and the means with and without it",
        ["What", "Set", "AUROC", "95 % interval"],
        rows,
    )
