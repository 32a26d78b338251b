"""Rank the validations of a run, choose the checkpoints to keep, and decide when to stop early.

Everything follows from the rows of `metrics.csv`, so a resumed run decides as an uninterrupted one.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

from chexzero.common.labels import LABELS, MEAN_TITLES, MEANS

Row = dict[str, Any]

METRICS = [*MEANS, "val_loss", *(f"{label}_auc" for label in LABELS)]
_LONG_NAMES = {key: f"mean zero-shot AUROC over {title}" for key, title in MEAN_TITLES.items()} | {
    "val_loss": "contrastive loss on held-out pairs"
}


def members(metric: str) -> list[str]:
    """Labels whose AUROCs a metric averages; none for the loss."""
    if metric == "val_loss":
        return []
    return MEANS.get(metric, [metric.removesuffix("_auc")])


def usable_metric(wanted: str, defined: Collection[str]) -> str | None:
    """`wanted`, or the first of the means that has a label among `defined`, or None if none has."""
    if wanted == "val_loss":
        return wanted
    return next((name for name in [wanted, *MEANS] if set(members(name)) & set(defined)), None)


def ranked(rows: Sequence[Row], metric: str | None) -> list[Row]:
    """The validations with a defined `metric`, best first; ties with the earlier first."""
    if metric is None:
        return []
    defined = [row for row in rows if row.get(metric) is not None and math.isfinite(row[metric])]
    return sorted(defined, key=lambda row: (-_gain(row, metric), row["step"]))


def best(rows: Sequence[Row], metric: str | None) -> Row | None:
    return next(iter(ranked(rows, metric)), None)


def steps_to_keep(rows: Sequence[Row], metric: str | None, keep_top_k: int) -> set[int]:
    """Steps whose checkpoints are kept: the best and the `keep_top_k` after it (the last if no metric is defined)."""
    kept = ranked(rows, metric)[: keep_top_k + 1] or list(rows[-1:])
    return {row["step"] for row in kept}


def is_exhausted(rows: Sequence[Row], metric: str | None, patience: int, min_delta: float) -> bool:
    """Whether none of the last `patience` validations beat the best before it by more than `min_delta`."""
    if metric is None or patience == 0:
        return False
    highest, waited = -math.inf, 0
    for row in rows:
        if row.get(metric) is not None and _gain(row, metric) > highest + min_delta:
            highest, waited = _gain(row, metric), 0
        else:
            waited += 1
    return waited >= patience


def describe(
    rows: Sequence[Row],
    metric: str | None,
    wanted: str,
    ends: Sequence[float | None],
    n_images: int,
    corrected: float | None = None,
) -> dict[str, Any]:
    """Return the content of `selection.json`.

    ends: the metric's interval at the best step. wanted: the requested metric, which may be undefined.
    corrected: the metric's value without the optimism of the selection, if known.
    """
    order = ranked(rows, metric)
    chosen = order[0] if order else rows[-1]
    runner_up = {"step": order[1]["step"], "value": order[1][metric]} if metric and len(order) > 1 else None
    lower, upper = ends if order else (None, None)
    reason = (
        _sentence(order, metric, wanted, (lower, upper), n_images, corrected)
        if metric and order
        else (
            f"The last validated checkpoint (step {chosen['step']}) was taken: no label of the validation set has both "
            f"classes, so the checkpoints could not be compared. The test set played no part."
        )
    )
    return {
        "step": chosen["step"],
        "checkpoint": f"checkpoint_{chosen['step']}.pt",
        "checkpoint_sha256": str(chosen.get("checkpoint_sha256") or "").removeprefix("sha256:") or None,
        "metric": metric if order else None,
        "value": chosen[metric] if metric and order else None,
        "lower": lower,
        "upper": upper,
        "value_corrected": corrected if order else None,
        "n_compared": len(order),
        "runner_up": runner_up,
        "reason": reason,
    }


def _sentence(
    order: list[Row],
    metric: str,
    wanted: str,
    ends: tuple[float | None, float | None],
    n_images: int,
    corrected: float | None,
) -> str:
    chosen = order[0]
    name = _LONG_NAMES.get(metric, f"zero-shot AUROC for {metric.removesuffix('_auc')}")
    extreme, where = ("lowest", "") if metric == "val_loss" else ("highest", f" on the {n_images} validation images")
    bounds = f", 95 % CI {ends[0]:.3f} to {ends[1]:.3f}" if None not in ends else ""
    text = (
        f"The checkpoint of step {chosen['step']} was selected because its {name}{where} "
        f"({chosen[metric]:.3f}{bounds}) was the {extreme} of {len(order)} validated checkpoints"
    )
    if len(order) > 1:
        text += f"; the runner-up was step {order[1]['step']} ({order[1][metric]:.3f})"
    if corrected is not None:
        text += (
            f"; without the optimism of choosing the highest it is estimated at {corrected:.3f} "
            f"(bootstrap over the selection)"
        )
    if metric != wanted:
        text += f"; {wanted} is not defined on this validation set, so {metric} was used"
    return text + ". The test set played no part."


def _gain(row: Row, metric: str) -> float:
    """The metric, negated if lower is better."""
    return -row[metric] if metric == "val_loss" else row[metric]
