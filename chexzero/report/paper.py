"""Our areas beside those that CheXzero reported."""

import numpy as np

from chexzero.common.labels import LABELS, MEANS
from chexzero.common.statistics import mean_over_labels
from chexzero.evaluation.results import SetResult, number
from chexzero.report.format import interval, signed, unit_name, yes_no
from chexzero.report.published import reported_figures
from chexzero.report.sections import Figure, Section, Table


def paper_section(test: SetResult, drawn: bool, figure: Figure) -> Section:
    """Per label: ours, CheXzero's ensemble with its interval, the difference, and whether the intervals overlap."""
    paper = reported_figures()["chexzero"]
    rows, metrics = [], {}
    for i, label in enumerate(LABELS):
        theirs, low, high = paper["test_auroc"][label]
        ours = test.auroc[i]
        defined = np.isfinite(ours)
        overlap = bool(test.lower[i] <= high and low <= test.upper[i]) if defined else None
        difference = ours - theirs
        rows.append(
            [
                label,
                int(test.n_pos[i]),
                number(ours),
                interval(test.lower[i], test.upper[i]),
                theirs,
                interval(low, high),
                signed(difference),
                yes_no(overlap),
            ]
        )
        metrics[label] = {
            "ours": number(ours),
            "chexzero": theirs,
            "difference": number(difference),
            "overlap": overlap,
        }
    table = Table(
        f"AUROC on the test set ({len(test)} {unit_name(test)}), and CheXzero's ensemble of ten checkpoints",
        [
            "Label",
            "Positive",
            "Ours",
            "95 % interval",
            "CheXzero",
            "95 % interval (CheXzero)",
            "Difference",
            "Intervals overlap",
        ],
        rows,
    )
    text = [f"CheXzero's figures: {paper['source']}."]
    if drawn:
        text.insert(
            0,
            "The images of this run were drawn by a program. The two columns come from different images; "
            "their difference says nothing about either model.",
        )
    elif len(test) != 500:
        text.insert(
            0,
            f"CheXzero was tested on 500 studies, this run on {len(test)} {unit_name(test)}: the two "
            f"columns do not come from the same images.",
        )
    return Section("chexzero", "Beside CheXzero", text, [_means(test), table], [figure], metrics)


def _means(test: SetResult) -> Table:
    figures = reported_figures()
    paper = figures["chexzero"]
    theirs = np.array([paper["test_auroc"][label][0] for label in LABELS])
    leaderboard = figures["chexpert_test_supervised_leaderboard"]["mean_auroc_5"].values()
    supervised = f"{min(leaderboard):.3f}–{max(leaderboard):.3f} ({len(leaderboard)} leaderboard models)"
    names = {
        "mean_5": "5 competition labels",
        "mean_13": "13 findings (without No Finding)",
        "mean_14": "all 14 labels",
    }
    rows = []
    for key in MEANS:
        mean = test.mean(key)
        same = mean.used or MEANS[key]  # theirs over the labels that ours is over
        reported = paper["test_mean_auroc_5"] if same == MEANS["mean_5"] else mean_over_labels(theirs, same)[0]
        rows.append(
            [
                names[key],
                number(mean.value),
                interval(mean.lower, mean.upper),
                f"{len(mean.used)} of {len(MEANS[key])}",
                reported,
                supervised if key == "mean_5" else "",
            ]
        )
    return Table(
        "Mean AUROC on the test set. The leaderboard models were trained on CheXpert's labels",
        ["Mean over", "Ours", "95 % interval", "Labels defined", "CheXzero", "Supervised"],
        rows,
    )
