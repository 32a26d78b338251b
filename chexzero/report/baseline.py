"""Other checkpoints (CheXzero's, say) on the same images, compared label by label with a paired bootstrap."""

from pathlib import Path

import numpy as np

from chexzero.common.errors import UserError
from chexzero.common.labels import LABELS, MEANS
from chexzero.common.statistics import paired_difference
from chexzero.evaluation.results import SetResult, number
from chexzero.report import charts
from chexzero.report.format import p_text, signed, signed_interval
from chexzero.report.published import reported_figures
from chexzero.report.scores import MEAN_NAMES
from chexzero.report.sections import Section, Table

SUFFIXES = (".pt", ".pth", ".safetensors")


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, sorted by path as upstream sorts its ensemble; an exported model is one."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name one that holds checkpoints (.pt) with --baseline")
    from chexzero.models.other_libraries import is_model_folder  # imports torch

    if is_model_folder(folder):
        return [folder]
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if not found:
        raise UserError(
            f"{folder} holds no checkpoint ({', '.join(SUFFIXES)}); put CheXzero's released .pt files there"
        )
    return found


def baseline_section(ours: SetResult, theirs: SetResult, names: list[str], figures: Path) -> Section:
    """Difference ours − baseline on the test set: per label and for the means, with interval and p value."""
    columns_ours, columns_theirs, titles = [], [], list(LABELS)
    for key, title in MEAN_NAMES.items():
        columns_ours.append(ours.mean(key))
        columns_theirs.append(theirs.mean(key))
        titles.append(title)
    a = np.append(ours.auroc, [mean.value for mean in columns_ours])
    b = np.append(theirs.auroc, [mean.value for mean in columns_theirs])
    low, high, p = paired_difference(
        np.column_stack([ours.samples, *(mean.samples for mean in columns_ours)]),
        np.column_stack([theirs.samples, *(mean.samples for mean in columns_theirs)]),
    )
    defined = np.isfinite(a)
    low, high, p = (np.where(defined, values, np.nan) for values in (low, high, p))
    reported = reported_figures()["chexzero"]["test_auroc"]
    counts = [int(count) for count in ours.n_pos] + [None] * len(MEANS)
    rows = [
        [
            title,
            counts[i] if counts[i] is not None else "",
            number(a[i]),
            number(b[i]),
            signed(a[i] - b[i]),
            signed_interval(low[i], high[i]),
            p_text(p[i]),
            reported[title][0] if title in reported else "",
        ]
        for i, title in enumerate(titles)
    ]
    text = [
        f"The baseline is {'the ensemble (mean of the probabilities) of ' if len(names) > 1 else ''}{len(names)} "
        f"checkpoint{'s' * (len(names) > 1)}: {', '.join(names)}. Both were run here, on the same {len(ours)} "
        f"test cases with the same prompts. Interval and two-sided p value come from resamples of the cases that "
        f"are the same for both; p is not corrected for the number of labels."
    ]
    figure = charts.differences(titles, a - b, low, high, figures)
    metrics = {
        title: {
            "ours": number(a[i]),
            "baseline": number(b[i]),
            "difference": number(a[i] - b[i]),
            "lower": number(low[i]),
            "upper": number(high[i]),
            "p": number(p[i]),
        }
        for i, title in enumerate([*LABELS, *MEAN_NAMES])
    }
    table = Table(
        "AUROC on the same test images",
        [
            "Label",
            "Positive",
            "Ours",
            "Baseline",
            "Difference",
            "95 % interval (difference)",
            "p",
            "CheXzero as reported",
        ],
        rows,
    )
    return Section(
        "baseline",
        "Beside the baseline checkpoints",
        text,
        [table],
        [figure],
        {
            "checkpoints": names,
            "labels": {k: v for k, v in metrics.items() if k in LABELS},
            "means": {k: v for k, v in metrics.items() if k in MEANS},
        },
    )
