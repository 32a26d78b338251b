"""Other checkpoints (CheXzero's, say) on the same images, compared label by label."""

from pathlib import Path

from chexzero.common.errors import UserError
from chexzero.common.labels import LABELS
from chexzero.evaluation.results import SetResult, number
from chexzero.report import charts
from chexzero.report.beside.paired import EXPLAINED, differences
from chexzero.report.beside.published import reported_figures
from chexzero.report.format import p_text, signed, signed_interval
from chexzero.report.scores import MEAN_NAMES, positives
from chexzero.report.sections import Section, Table

SUFFIXES = (".pt", ".pth", ".safetensors")


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, sorted by path as upstream sorts its ensemble; an exported model's folder is one."""
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
    compared = differences(ours, theirs)
    difference, lower, upper, p = compared.found
    reported = reported_figures()["chexzero"]["test_auroc"]
    means = {title: (ours.mean(title), theirs.mean(title)) for title in MEAN_NAMES}
    rows, metrics = [], {}
    for i, title in enumerate(compared.titles):
        a, b = (one.value for one in means[title]) if title in means else (ours.auroc[i], theirs.auroc[i])
        rows.append(
            [
                MEAN_NAMES.get(title, title),
                f"{len(means[title][0].used)} labels" if title in means else positives(ours, i),
                number(a),
                number(b),
                signed(difference[i]),
                signed_interval(lower[i], upper[i]),
                p_text(p[i]),
                p_text(compared.holm[i]),
                reported[title][0] if title in reported else "",
            ]
        )
        metrics[title] = {
            "ours": number(a),
            "baseline": number(b),
            "difference": number(difference[i]),
            "lower": number(lower[i]),
            "upper": number(upper[i]),
            "p": number(p[i]),
            "p_holm": number(compared.holm[i]),
        }
    text = [
        f"The baseline is {'the ensemble (mean of the probabilities) of ' if len(names) > 1 else ''}{len(names)} "
        f"checkpoint{'s' * (len(names) > 1)}: {', '.join(names)}. Both were run here, on the same {len(ours)} "
        f"test cases with the same prompts.",
        EXPLAINED,
    ]
    shown = [MEAN_NAMES.get(title, title) for title in compared.titles]
    figure = charts.differences(shown, difference, lower, upper, figures)
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
            "p (Holm)",
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
            "means": {k: v for k, v in metrics.items() if k in MEAN_NAMES},
        },
    )
