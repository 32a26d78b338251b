"""Other readers of the same test studies, from their files: radiologists' calls, supervised models' predictions."""

from collections.abc import Sequence

import numpy as np

from chexzero.common.intervals import holm
from chexzero.common.labels import COMPETITION_LABELS, LABELS
from chexzero.common.statistics import auroc, mean_over_labels, paired_difference, percentile_interval, resample_counts
from chexzero.evaluation.readers import Reader, mean_rates
from chexzero.evaluation.results import SetResult, number
from chexzero.metrics import bootstrap_rates
from chexzero.report.beside.published import reported_figures
from chexzero.report.format import interval, p_text, signed, signed_interval
from chexzero.report.sections import Section, Table


def radiologist_section(test: SetResult, readers: Sequence[Reader], n_bootstrap: int) -> Section:
    """MCC and F1 at the thresholds chosen on validation, beside the radiologists' mean, with a paired bootstrap."""
    columns = [LABELS.index(label) for label in COMPETITION_LABELS]
    counts = resample_counts(len(test), n_bootstrap)
    theirs = mean_rates(test.truth, readers)
    drawn_theirs = mean_rates(test.truth, readers, counts=counts)
    drawn_ours = bootstrap_rates(test.truth, test.probability, test.at, n_bootstrap)
    rows, metrics = [], {}
    for name, title in (("mcc", "MCC"), ("f1", "F1")):
        ours, others = getattr(test.rates, name)[columns], getattr(theirs, name)
        a, b = getattr(drawn_ours, name)[:, columns], getattr(drawn_theirs, name)
        a, b = np.column_stack([a, a.mean(1)]), np.column_stack([b, b.mean(1)])
        low, high = percentile_interval(a)
        diff_low, diff_high, p = paired_difference(a, b)
        corrected = np.append(holm(p[:-1]), np.nan)
        values = np.append(ours, ours.mean()), np.append(others, others.mean())
        for i, label in enumerate([*COMPETITION_LABELS, "Mean of the five"]):
            rows.append(
                [
                    title,
                    label,
                    number(values[0][i]),
                    interval(low[i], high[i]),
                    number(values[1][i]),
                    signed(values[0][i] - values[1][i]),
                    signed_interval(diff_low[i], diff_high[i]),
                    p_text(p[i]),
                    p_text(corrected[i]),
                ]
            )
        metrics[f"mean_{name}"] = {"ours": number(values[0][-1]), "radiologists": number(values[1][-1])}
        metrics[f"{name}_radiologists"] = dict(zip(COMPETITION_LABELS, map(number, others), strict=True))
    figures = reported_figures()["chexpert_test_radiologists"]
    text = [
        f"Ours at the threshold that maximises MCC on the validation set; theirs is the mean of {len(readers)} "
        f"readers. On the 500 studies of the CheXpert test set the three benchmark radiologists reach a mean MCC "
        f"of {figures['mean_mcc']:.3f} and a mean F1 of {figures['mean_f1']:.3f} ({figures['source']})."
    ]
    table = Table(
        "Ours and the radiologists on the same test studies",
        [
            "Measure",
            "Label",
            "Ours",
            "95 % interval",
            "Radiologists",
            "Difference",
            "95 % interval (difference)",
            "p",
            "p (Holm)",
        ],
        rows,
    )
    return Section("radiologists", "Beside radiologists", text, [table], [], metrics)


def supervised_section(test: SetResult, models: Sequence[Reader]) -> Section:
    """AUROCs of models whose predictions for the same studies are given."""
    rows, metrics = [], {}
    for model in models:
        areas = np.full(len(LABELS), np.nan)
        columns = [LABELS.index(label) for label in model.labels]
        areas[columns] = auroc(test.truth[:, columns], model.values)
        mean, used = mean_over_labels(areas, COMPETITION_LABELS)
        rows.append([model.name, *(number(areas[LABELS.index(label)]) for label in COMPETITION_LABELS), number(mean)])
        metrics[model.name] = {"mean_5": number(mean), "labels": used}
    ours = test.mean("mean_5")
    rows.append(
        ["this run", *(number(test.auroc[LABELS.index(label)]) for label in COMPETITION_LABELS), number(ours.value)]
    )
    table = Table("AUROC on the same test studies", ["Model", *COMPETITION_LABELS, "Mean"], rows)
    return Section(
        "supervised",
        "Beside supervised models",
        ["Computed here from the predictions that were given."],
        [table],
        [],
        metrics,
    )
