"""Retrieval: from an image to its report among all reports, and back.

Candidates are the reports (images) of all pairs. Reports with the same words are all hits. A non-hit that is as similar
as the best hit ranks before it, so a model that cannot tell candidates apart finds nothing.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from chexzero.common.errors import UserError
from chexzero.common.intervals import clustered_interval
from chexzero.report.format import interval
from chexzero.report.sections import Section, Table
from chexzero.suites import metrics
from chexzero.suites.context import EvaluationContext, file_flag
from chexzero.suites.tables import join, read_description, read_reports

DESCRIPTION = Path(__file__).with_suffix(".yaml")
BLOCK = 4_000_000  # similarities held at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this suite."""
    group = parser.add_argument_group("suite retrieval")
    file_flag(group, "retrieval_images", "images to pair with reports (.h5 or a folder; default: the validation set)")


def run(context: EvaluationContext) -> Section:
    """Measure recall at k in both directions, beside chance; see the module."""
    description = read_settings(DESCRIPTION)
    images = context.option("retrieval_images", "valid")
    ids, texts, without = read_reports(context, images)
    n_found = len(ids)
    if n_found > description["max_pairs"]:
        chosen = np.random.default_rng(context.seed).choice(n_found, description["max_pairs"], replace=False)
        ids, texts = [ids[i] for i in chosen], [texts[i] for i in chosen]
    path = context.images_path(images)
    there = context.image_ids(images)[0] or []  # `read_reports` refused images without ids
    features = context.features_of(images, join(ids, "the reports", there, path))
    distinct, report = np.unique(texts, return_inverse=True)
    results = recall(features, context.text_features(distinct.tolist()), report, description["recall_at"])
    section = Section("retrieval", "Image to report and back")
    section.text = [
        f"{len(ids)} pairs of {path.name} with {len(distinct)} different reports ({without} images have none"
        + (f"; {len(ids)} of {n_found} drawn with the seed {context.seed})" if len(ids) < n_found else ")")
        + ". Equal reports are all hits; chance is the expected recall of a random order. Intervals are 95 % Wilson "
        "intervals, widened because images with the same report are not independent."
    ]
    section.metrics = {"pairs": len(ids), "distinct_reports": len(distinct), **results}
    section.tables.append(
        Table(
            "Recall",
            ["direction", "k", "recall", "95 % interval", "chance"],
            [
                [
                    direction.replace("_", " "),
                    int(at.rpartition("@")[2]),
                    part["recall"],
                    interval(part["lower"], part["upper"]),
                    part["chance"],
                ]
                for direction, parts in results.items()
                for at, part in parts.items()
            ],
        )
    )
    return section


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read the description; a mistake raises `UserError`."""
    description = read_description(path, ("recall_at", "max_pairs"))
    ks, most = description["recall_at"], description["max_pairs"]
    if not isinstance(ks, list) or not ks or not all(type(value) is int and value > 0 for value in [*ks, most]):
        raise UserError(f"{path}: recall_at must list whole numbers above 0, and max_pairs be one; correct it")
    return description


def recall(images: np.ndarray, reports: np.ndarray, report: np.ndarray, ks: list[int]) -> dict[str, Any]:
    """Recall at each k in both directions.

    images: (N, D). reports: (U, D), the distinct ones. report: (N,), index of each image's report. Returns
    `image_to_report` and `report_to_image` -> `recall@k` -> recall, lower, upper, chance.
    """
    sizes = np.bincount(report, minlength=len(reports))
    ways = {
        "image_to_report": (ranks_of_reports(images, reports, report), lambda k: metrics.block_chance(sizes, k)),
        "report_to_image": (
            ranks_of_images(images, reports, report)[report],
            lambda k: metrics.hit_chance(len(images), sizes, k),
        ),
    }
    results: dict[str, dict[str, Any]] = {}
    for direction, (before, chance_at) in ways.items():
        results[direction] = {}
        for k in ks:
            mean, lower, upper = clustered_interval(before < k, report)
            chance = chance_at(k)[report].mean()
            values = {"recall": mean, "lower": lower, "upper": upper, "chance": float(chance)}
            results[direction][f"recall@{k}"] = {key: metrics.number(value) for key, value in values.items()}
    return results


def ranks_of_reports(images: np.ndarray, reports: np.ndarray, report: np.ndarray) -> np.ndarray:
    """Count the non-hit reports ranked before each image's own: (N,), in blocks of images."""
    shares = np.bincount(report, minlength=len(reports))
    before = np.empty(len(images), dtype=np.int64)
    step = max(1, BLOCK // len(reports))
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        similarity = images[part] @ reports.T
        own = np.take_along_axis(similarity, report[part, None], axis=1)
        before[part] = (similarity >= own) @ shares - shares[report[part]]
    return before


def ranks_of_images(images: np.ndarray, reports: np.ndarray, report: np.ndarray) -> np.ndarray:
    """Count the non-hit images ranked before each distinct report's best hit: (U,), in blocks of reports."""
    before = np.empty(len(reports), dtype=np.int64)
    step = max(1, BLOCK // len(images))
    for start in range(0, len(reports), step):
        similarity = reports[start : start + step] @ images.T
        hit = report[None] == np.arange(start, start + len(similarity))[:, None]
        best = np.where(hit, similarity, -np.inf).max(1, keepdims=True)
        before[start : start + step] = ((similarity >= best) & ~hit).sum(1)
    return before
