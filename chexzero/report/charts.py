"""The report's figures: each written as PNG (for the page) and PDF (for the paper)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from sklearn.metrics import precision_recall_curve, roc_curve

from chexzero.common.files import atomic_path
from chexzero.common.labels import LABELS, MEAN_TITLES
from chexzero.evaluation.calibration import reliability
from chexzero.evaluation.readers import Reader
from chexzero.evaluation.results import SetResult
from chexzero.metrics import rates
from chexzero.report.beside.published import reported_figures
from chexzero.report.sections import Figure
from chexzero.runs.run_folder import RunFolder

# Okabe and Ito's palette, which readers with any colour vision can tell apart.
OURS, THEIRS, THIRD, MUTED = "#0072B2", "#D55E00", "#009E73", "#999999"
DPI = 130


#: Kind of file -> options; the PDF carries no date, so that equal input gives equal bytes.
KINDS: dict[str, dict[str, Any]] = {"png": {"dpi": DPI}, "pdf": {"metadata": {"CreationDate": None}}}


def save(canvas: Canvas, folder: Path, name: str, caption: str, kinds: Sequence[str] = ("png", "pdf")) -> Figure:
    """Write `<folder>/<name>.png` and `.pdf`."""
    FigureCanvasAgg(canvas)
    for kind in kinds:
        with atomic_path(folder / f"{name}.{kind}") as temporary:
            canvas.savefig(temporary, format=kind, **KINDS[kind])
    return Figure(folder / f"{name}.png", caption)


def style(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Give axes their title, names and the small type of all charts."""
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _grid(draw: Callable[[Axes, int], str | None], x: str, y: str) -> Canvas:
    """One small square plot per label; `draw` returns None, or the reason why nothing is drawn."""
    canvas = Canvas(figsize=(11, 7.2))  # a fixed layout: computing one for fifteen plots takes seconds
    canvas.subplots_adjust(left=0.06, right=0.99, bottom=0.07, top=0.96, wspace=0.08, hspace=0.16)
    cells = canvas.subplots(3, 5, sharex=True, sharey=True).ravel()
    for i, (label, axes) in enumerate(zip(LABELS, cells, strict=False)):
        style(axes, label)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_box_aspect(1)
        reason = draw(axes, i)
        if reason:
            axes.text(0.5, 0.5, f"n/a\n{reason}", ha="center", va="center", fontsize=8, color=MUTED)
    for axes in cells[len(LABELS) :]:
        axes.set_axis_off()
        named = {name: handle for cell in cells for handle, name in zip(*cell.get_legend_handles_labels(), strict=True)}
        axes.legend(named.values(), named.keys(), fontsize=8, loc="center", frameon=False)
    canvas.supxlabel(x, fontsize=9, y=0.01)
    canvas.supylabel(y, fontsize=9, x=0.01)
    return canvas


def _missing(result: SetResult, label: int) -> str:
    return f"{result.n_pos[label]} of {len(result)} positive"


def roc(valid: SetResult, test: SetResult, readers: Sequence[Reader], folder: Path) -> Figure:
    """ROC curves of both sets, with the radiologists' operating points where their files were given."""

    def draw(axes: Axes, i: int) -> str | None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.7, linestyle=":")
        for result, color, width in ((valid, MUTED, 1.0), (test, OURS, 1.6)):
            if np.isfinite(result.auroc[i]):
                fpr, tpr, _ = roc_curve(result.truth[:, i], result.probability[:, i], drop_intermediate=True)
                axes.plot(fpr, tpr, color=color, linewidth=width, label=result.title)
        for k, reader in enumerate(readers):
            if LABELS[i] in reader.labels:
                called = reader.values[:, [reader.labels.index(LABELS[i])]]
                point = rates(test.truth[:, [i]], called)
                axes.plot(
                    1 - point.specificity,
                    point.sensitivity,
                    "x",
                    color=THEIRS,
                    markersize=6,
                    label="radiologists" if k == 0 else None,
                )
        if not np.isfinite(test.auroc[i]):
            return _missing(test, i)
        axes.text(0.98, 0.03, f"{test.auroc[i]:.3f}", ha="right", fontsize=9, color=OURS)
        return None

    points = " Crosses mark the radiologists' operating points." if readers else ""
    return save(
        _grid(draw, "1 − specificity", "sensitivity"),
        folder,
        "roc",
        f"ROC curves on the test set, with its AUROC, and, in grey, on the validation set.{points}",
    )


def precision_recall(valid: SetResult, test: SetResult, folder: Path) -> Figure:
    """Precision-recall curves of both sets; the dotted line is the share of positives in the test set."""

    def draw(axes: Axes, i: int) -> str | None:
        for result, color, width in ((valid, MUTED, 1.0), (test, OURS, 1.6)):
            if np.isfinite(result.auroc[i]):
                precision, recall, _ = precision_recall_curve(result.truth[:, i], result.probability[:, i])
                axes.plot(recall, precision, color=color, linewidth=width, label=result.title)
        if not np.isfinite(test.auroc[i]):
            return _missing(test, i)
        axes.axhline(test.n_pos[i] / len(test), color=MUTED, linewidth=0.7, linestyle=":")
        axes.text(0.98, 0.93, f"{test.per_label['average_precision'][i]:.3f}", ha="right", fontsize=9, color=OURS)
        return None

    return save(
        _grid(draw, "recall (sensitivity)", "precision"),
        folder,
        "precision_recall",
        "Precision-recall curves on the test set, with its average precision, and, in grey, on the validation set. "
        "The dotted line is the share of positive cases in the test set.",
    )


def calibration(test: SetResult, scaled: np.ndarray, folder: Path) -> Figure:
    """Reliability diagrams of the probabilities and of `scaled` (N, 14); larger points hold more cases."""

    def draw(axes: Axes, i: int) -> str | None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.7, linestyle=":")
        shown = [(test.probability[:, i], OURS, "as predicted")]
        if np.isfinite(scaled[:, i]).all():
            shown.append((scaled[:, i], THEIRS, "scaled on validation"))
        for height, (probability, color, name) in zip((0.12, 0.03), shown, strict=False):
            found = reliability(test.truth[:, i], probability)
            axes.plot(found.mean_predicted, found.fraction_positive, color=color, linewidth=1, alpha=0.6, label=name)
            axes.scatter(
                found.mean_predicted,
                found.fraction_positive,
                s=4 + 80 * found.count / len(test),
                color=color,
                linewidths=0,
            )
            axes.text(0.98, height, f"ECE {found.ece:.3f}", ha="right", fontsize=8, color=color)
        return None

    return save(
        _grid(draw, "mean predicted probability", "fraction positive"),
        folder,
        "reliability",
        "Reliability on the test set in ten bins of equal width, of the probabilities as predicted and "
        "scaled on the validation set; larger points hold more cases. Points on the dotted line are perfectly "
        "calibrated.",
    )


def beside_paper(test: SetResult, folder: Path) -> Figure:
    """AUROC and interval per label, ours and CheXzero's."""
    paper = reported_figures()["chexzero"]["test_auroc"]
    canvas = Canvas(figsize=(7.5, 5), layout="constrained")
    axes = canvas.subplots()
    for y, label in enumerate(reversed(LABELS)):
        i = LABELS.index(label)
        middle, low, high = paper[label]
        axes.plot([low, high], [y - 0.14, y - 0.14], color=THEIRS, linewidth=1.6)
        axes.plot(middle, y - 0.14, "s", color=THEIRS, markersize=5, label="CheXzero (reported)" if y == 0 else None)
        if np.isfinite(test.auroc[i]):
            axes.plot([end[i] for end in test.newcombe], [y + 0.14, y + 0.14], color=OURS, linewidth=1.6)
            axes.plot(test.auroc[i], y + 0.14, "o", color=OURS, markersize=5)
        else:
            axes.text(0.01, y + 0.06, f"n/a ({_missing(test, i)})", fontsize=7, color=OURS)
    axes.plot([], [], "o", color=OURS, label="this run")
    axes.axvline(0.5, color=MUTED, linewidth=0.7, linestyle=":")
    axes.set_yticks(range(len(LABELS)), list(reversed(LABELS)))
    axes.set_xlim(-0.01, 1.01)  # so that a marker at 1 is not clipped
    style(axes, x="AUROC on the test set, with 95 % interval")
    axes.tick_params(axis="y", labelsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return save(
        canvas,
        folder,
        "beside_chexzero",
        "AUROC per label on the test set with 95 % intervals: Newcombe's for this run, and the percentile intervals "
        "that CheXzero reported, which are too narrow where a label has few positive cases.",
    )


def differences(
    labels: Sequence[str],
    difference: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    folder: Path,
    name: str = "baseline",
    of: tuple[str, str] = ("this run", "the baseline"),
) -> Figure:
    """Paired differences of two models, the first minus the second, with their intervals."""
    canvas = Canvas(figsize=(7.5, 0.7 + 0.3 * len(labels)), layout="constrained")
    axes = canvas.subplots()
    for y, i in enumerate(reversed(range(len(labels)))):
        if np.isfinite(difference[i]):
            axes.plot([lower[i], upper[i]], [y, y], color=OURS, linewidth=1.6)
            axes.plot(difference[i], y, "o", color=OURS, markersize=5)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_yticks(range(len(labels)), list(reversed(labels)))
    style(axes, x=f"AUROC of {of[0]} − AUROC of {of[1]}, with 95 % interval")
    axes.tick_params(axis="y", labelsize=9)
    return save(canvas, folder, name, f"Difference in AUROC on the same test images, {of[0]} minus {of[1]}.")


def training_loss(run: RunFolder, folder: Path) -> Figure | None:
    """Loss over steps: the recorded batches, their running median, and the validation loss; None without a record."""
    log = run.train_log.dropna(subset=["loss"]) if "loss" in run.train_log else run.train_log[:0]
    if log.empty:
        return None
    canvas = Canvas(figsize=(7.5, 3.2), layout="constrained")
    axes = canvas.subplots()
    window = max(3, len(log) // 40)
    axes.plot(log["step"], log["loss"], color=OURS, linewidth=0.6, alpha=0.35, label="training batches")
    axes.plot(
        log["step"],
        log["loss"].rolling(window, center=True, min_periods=1).median(),
        color=OURS,
        linewidth=1.8,
        label=f"running median of {window}",
    )
    if "val_loss" in run.metrics and run.metrics["val_loss"].notna().any():
        axes.plot(run.metrics["step"], run.metrics["val_loss"], ".-", color=THEIRS, linewidth=1, label="validation")
    style(axes, x="step", y="contrastive loss")
    axes.legend(fontsize=8, frameon=False)
    return save(canvas, folder, "training_loss", "Training loss over steps.")


def validation_curve(run: RunFolder, folder: Path) -> Figure | None:
    """Validation AUROC over steps with the selected step and the runner-up; None without a record."""
    metric = run.ranking_metric
    names = {key: f"mean of {title}" for key, title in MEAN_TITLES.items()}
    if metric not in run.metrics or run.metrics[metric].isna().all():
        return None
    canvas = Canvas(figsize=(7.5, 3.6), layout="constrained")
    axes = canvas.subplots()
    for name, color in zip(dict.fromkeys([metric, "mean_5", "mean_13"]), (OURS, THIRD, MUTED), strict=False):
        if name in run.metrics:
            axes.plot(
                run.metrics["step"],
                run.metrics[name],
                ".-",
                color=color,
                label=names.get(name, name),
                linewidth=1.8 if name == metric else 1,
            )
    axes.axhline(0.5, color=MUTED, linewidth=0.7, linestyle=":")
    step, value = run.selection.get("step"), run.selection.get("value")
    if step is not None and value is not None:
        axes.axvline(step, color=THEIRS, linewidth=0.8, linestyle="--")
        axes.plot(step, value, "o", color=THEIRS, markersize=8, label=f"selected: step {step}")
    rival = run.selection.get("runner_up") or {}
    if rival.get("step") is not None and rival.get("value") is not None:
        axes.plot(
            rival["step"],
            rival["value"],
            "o",
            color=THEIRS,
            markersize=8,
            fillstyle="none",
            label=f"runner-up: step {rival['step']}",
        )
    style(axes, x="step", y="validation AUROC")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return save(
        canvas,
        folder,
        "validation_auroc",
        "Zero-shot AUROC on the validation set over training steps, the selected step and its runner-up marked.",
    )
