"""Our AUROCs beside reported ones. The comparison is unpaired, as the others' predictions are not available."""

import numpy as np

from chexzero.common.intervals import Z95
from chexzero.common.labels import LABELS
from chexzero.common.statistics import mean_over_labels
from chexzero.evaluation.results import SetResult, number
from chexzero.report.beside.published import is_chexpert_test, reported_figures
from chexzero.report.format import interval, signed, signed_interval, unit_name
from chexzero.report.scores import MEAN_NAMES, positives
from chexzero.report.sections import Figure, Section, Table


def unpaired_interval(ours: tuple[float, float, float], theirs: tuple[float, float, float]) -> tuple[float, float]:
    """Approximate 95 % interval of ours − theirs from value, lower and upper end of each, as if independent.

    A standard error is the width of an interval over 2 × 1.96. Both models read the same cases, so the true error of
    the difference is smaller: the interval is too wide rather than too narrow.
    """
    error = np.hypot(ours[2] - ours[1], theirs[2] - theirs[1]) / (2 * Z95)
    difference = ours[0] - theirs[0]
    return float(difference - Z95 * error), float(difference + Z95 * error)


def paper_section(test: SetResult, drawn: bool, figure: Figure) -> Section:
    """Per label: ours, CheXzero's ensemble with its interval, and, on the same test set only, the difference."""
    paper = reported_figures()["chexzero"]
    same = is_chexpert_test(list(test.units.table["study_id"]), test.truth)
    rows, metrics = [], {}
    for i, label in enumerate(LABELS):
        theirs = paper["test_auroc"][label]
        ours = (float(test.auroc[i]), float(test.newcombe[0][i]), float(test.newcombe[1][i]))
        difference = ours[0] - theirs[0] if same else float("nan")
        ends = unpaired_interval(ours, theirs) if same else (float("nan"), float("nan"))
        rows.append(
            [
                label,
                positives(test, i),
                number(ours[0]),
                interval(*ours[1:]),
                interval(test.lower[i], test.upper[i]),
                theirs[0],
                interval(*theirs[1:]),
                *([signed(difference), signed_interval(*ends)] if same else []),
            ]
        )
        metrics[label] = {
            "ours": number(ours[0]),
            "chexzero": theirs[0],
            "difference": number(difference),
            "lower": number(ends[0]),
            "upper": number(ends[1]),
        }
    table = Table(
        f"AUROC on the test set ({len(test)} {unit_name(test)}), and CheXzero's ensemble of ten checkpoints as its "
        f"public notebook recorded it (not the paper's table)",
        [
            "Label",
            "Positive",
            "Ours",
            "95 % interval",
            "as CheXzero",
            "CheXzero (its notebook)",
            "95 % interval (CheXzero, percentiles)",
            *(["Difference", "95 % interval (difference, unpaired, approximate)"] if same else []),
        ],
        rows,
    )
    text = [
        _comparable(test, drawn, same),
        f"CheXzero's figures per label: {paper['source']}. They are the notebook's, not the paper's table.",
    ]
    return Section(
        "chexzero",
        "Beside CheXzero",
        text,
        [_means(test, same), table, _others(test)],
        [figure],
        {"same_test_set": same, "labels": metrics},
    )


def _comparable(test: SetResult, drawn: bool, same: bool) -> str:
    """Say whether the reported figures can be compared with ours."""
    if drawn:
        return (
            "The images of this run were drawn by a program. The two columns come from different images; their "
            "difference says nothing about either model."
        )
    if same:
        return (
            "The labels are those of CheXpert's 500 test studies, by SHA-256, on which CheXzero's figures were "
            "measured. Differences are unpaired and approximate: CheXzero's predictions are not available, so both "
            "standard errors come from the intervals and the pairing of cases is not used (`--baseline` with "
            "CheXzero's checkpoints compares case by case)."
        )
    return (
        f"The sets differ: the labels of this run ({len(test)} {unit_name(test)}) are not those of CheXpert's 500 test "
        f"studies, by SHA-256, on which CheXzero was tested. No difference is given; the two columns do not come from "
        f"the same cases."
    )


def _means(test: SetResult, same: bool) -> Table:
    figures = reported_figures()
    paper = figures["chexzero"]
    theirs = np.array([paper["test_auroc"][label][0] for label in LABELS])
    leaderboard = figures["chexpert_test_supervised_leaderboard"]["mean_auroc_5"].values()
    best = paper["supervised_best_mean_auroc_5 (Deep AUC Maximization)"]
    supervised = f"{best:.3f} best (Deep AUC Maximization); {min(leaderboard):.3f}–{max(leaderboard):.3f} leaderboard"
    rows = []
    for key, title in MEAN_NAMES.items():
        mean = test.mean(key)
        members = mean.used or test.members(key)  # theirs over the same labels as ours
        is_headline = members == test.members("mean_5")
        reported = paper["test_mean_auroc_5"] if is_headline else mean_over_labels(theirs, members)[0]
        rows.append(
            [
                title,
                f"{len(mean.used)} of {len(test.members(key))}",
                number(mean.value),
                interval(*mean.interval),
                interval(mean.lower, mean.upper),
                number(reported),
                "reported (paper)" if is_headline else "computed here from the notebook's figures per label",
                signed(mean.value - reported) if same else "",
                supervised if key == "mean_5" else "",
            ]
        )
    return Table(
        "Mean AUROC on the test set. The supervised models were trained on CheXpert's labels",
        [
            "Mean over",
            "Labels",
            "Ours",
            "95 % interval",
            "as CheXzero",
            "CheXzero",
            "CheXzero's figure is",
            "Difference",
            "Supervised",
        ],
        rows,
    )


def _others(test: SetResult) -> Table:
    """Zero-shot figures of other models, none measured here, beside ours over the same labels."""
    rows = []
    for model in reported_figures()["chexpert_zero_shot"]["models"]:
        ours = test.mean(model["mean"])
        rows.append(
            [model["model"], model["mean_over"], model["auroc"], number(ours.value), model["kind"], model["source"]]
        )
    return Table(
        "Zero-shot mean AUROC on CheXpert as others report it. None was measured here: prompts, images and labels differ",
        ["Model", "Mean over", "Reported", "Ours", "Kind", "Source"],
        rows,
    )
