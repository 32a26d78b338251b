"""Which validation is the best, which come after it, and when nothing better is to be expected.

All of it is read off the rows of `metrics.csv`, so a resumed run decides as an undisturbed one.
"""

import math
from collections.abc import Sequence
from typing import Any

from chexzero.labels import LABELS, MEANS
from chexzero.validation import ValidationSet

Row = dict[str, Any]

METRICS = [*MEANS, "val_loss", *(f"{label}_auc" for label in LABELS)]
#: Where the metric that was asked for has no defined label, the next of these is taken.
FALLBACK = list(MEANS)


def usable_metric(wanted: str, validation: ValidationSet) -> str | None:
    """`wanted`, or the first of the means that is defined on this validation set, or None if none is."""
    if wanted == "val_loss":
        return wanted
    for name in [wanted, *FALLBACK]:
        if validation.defined(MEANS.get(name, [name.removesuffix("_auc")])):
            return name
    return None


def lower_is_better(metric: str) -> bool:
    return metric == "val_loss"


def ranked(rows: Sequence[Row], metric: str) -> list[Row]:
    """The validations with a defined `metric`, best first; of equal ones the earlier first."""
    sign = 1 if lower_is_better(metric) else -1
    defined = [row for row in rows if _number(row.get(metric)) is not None]
    return sorted(defined, key=lambda row: (sign * float(row[metric]), row["step"]))


def steps_to_keep(rows: Sequence[Row], metric: str | None, keep_top_k: int) -> set[int]:
    """Steps whose checkpoints stay: the best and the `keep_top_k` after it."""
    if metric is None:
        return {rows[-1]["step"]} if rows else set()
    return {row["step"] for row in ranked(rows, metric)[:keep_top_k + 1]}


def is_exhausted(rows: Sequence[Row], metric: str | None, patience: int, min_delta: float) -> bool:
    """Whether the last `patience` validations brought nothing that beats the best before them by more than `min_delta`."""
    if metric is None or patience == 0:
        return False
    sign = -1 if lower_is_better(metric) else 1
    best, waited = -math.inf, 0
    for row in rows:
        value = _number(row.get(metric))
        if value is not None and sign * value > best + min_delta:
            best, waited = sign * value, 0
        else:
            waited += 1
    return waited >= patience


def describe(rows: Sequence[Row], metric: str | None, wanted: str, ends: tuple[float | None, float | None],
             n_images: int) -> dict[str, Any]:
    """The content of `selection.json`. `ends` is the metric's interval at the best step."""
    order = ranked(rows, metric) if metric else []
    if not order:
        last = rows[-1]
        return {"step": last["step"], "checkpoint": f"checkpoint_{last['step']}.pt", "metric": None, "value": None,
                "lower": None, "upper": None, "n_compared": 0, "runner_up": None,
                "reason": f"The last validated checkpoint (step {last['step']}) was taken: no label of the validation set "
                          f"has both classes, so the checkpoints could not be compared."}
    best = order[0]
    runner_up = {"step": order[1]["step"], "value": order[1][metric]} if len(order) > 1 else None
    return {"step": best["step"], "checkpoint": f"checkpoint_{best['step']}.pt", "metric": metric,
            "value": best[metric], "lower": ends[0], "upper": ends[1], "n_compared": len(order), "runner_up": runner_up,
            "reason": _sentence(best, order, metric, wanted, ends, n_images)}


_NAMES = {"mean_5": "mean zero-shot AUROC over the five CheXpert competition labels",
          "mean_13": "mean zero-shot AUROC over the 13 findings", "mean_14": "mean zero-shot AUROC over all 14 labels",
          "val_loss": "contrastive loss on held-out pairs"}


def _sentence(best: Row, order: list[Row], metric: str, wanted: str, ends: tuple, n_images: int) -> str:
    name = _NAMES.get(metric, f"zero-shot AUROC for {metric.removesuffix('_auc')}")
    extreme = "lowest" if lower_is_better(metric) else "highest"
    where = "" if metric == "val_loss" else f" on the {n_images} validation images"
    bounds = f", 95 % CI {ends[0]:.3f} to {ends[1]:.3f}" if None not in ends else ""
    text = (f"The checkpoint of step {best['step']} was selected because its {name}{where} ({best[metric]:.3f}{bounds}) was "
            f"the {extreme} of {len(order)} validated checkpoints")
    if len(order) > 1:
        text += f"; the runner-up was step {order[1]['step']} ({order[1][metric]:.3f})"
    if metric != wanted:
        text += f"; {wanted} is not defined on this validation set, so {metric} was used"
    return text + ". The test set played no part."


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
