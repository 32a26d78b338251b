"""Compare several runs or checkpoints on the same test images: `python -m chexzero.compare RUN RUN ...`.

    python -m chexzero.compare checkpoints/dinov3 checkpoints/vit_b_32 checkpoints/without_rexgradient

A RUN is a run's folder (its selected checkpoint), a checkpoint, or an exported model. All are compared with the first.
Writes `report.html`, `report.md`, `metrics.json`, one table and one figure per comparison into `--out`.
"""

import chexzero.common.interrupts  # noqa: F401  (first: the other imports take seconds)

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from chexzero.common.errors import EXIT_CODES, UserError, run_command
from chexzero.common.files import write_json
from chexzero.common.folders import replaced_together
from chexzero.common.formats import images_file
from chexzero.common.intervals import holm
from chexzero.common.labels import LABELS
from chexzero.compare.sets import score_models, sets_section
from chexzero.evaluation.checkpoint_choice import Choice, choose
from chexzero.evaluation.measure import check_the_runs_data, data_folder, predict
from chexzero.evaluation.named_sets import read_named_set
from chexzero.evaluation.prompts import upstream_prompts
from chexzero.evaluation.results import SetResult, evaluate_set, number
from chexzero.evaluation.sets import EvaluationSet, read_set, units
from chexzero.evaluation.settings import LEVELS, PRECISIONS, EvaluationSettings
from chexzero.evaluation.test_set_ledger import ledger_path, record_test_read
from chexzero.model import pick_device
from chexzero.report import charts
from chexzero.report.beside.paired import EXPLAINED, Differences, differences
from chexzero.report.format import interval, p_text, signed, signed_interval
from chexzero.report.scores import MEAN_NAMES, positives
from chexzero.report.sections import Section, Table
from chexzero.report.summary import say
from chexzero.report.write import Report, write_report


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chexzero.compare",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="runs, checkpoints or exported models")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the test set (default: the first run's)")
    parser.add_argument("--level", choices=LEVELS, default="image", help="what counts as a case (default: %(default)s)")
    parser.add_argument(
        "--sets",
        nargs="+",
        default=[],
        metavar="NAME",
        help="also compare on these evaluation sets: <data>/NAME.h5 and its labels",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="folder in which comparison/ is written (%(default)s)",
    )
    parser.add_argument("--batch_size", type=int, default=64, metavar="N", help="images per batch (%(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="number format of the models (%(default)s)"
    )
    return parser.parse_args(argv)


def chosen(paths: Sequence[Path], settings: EvaluationSettings) -> dict[str, Choice]:
    """Resolve each RUN to its checkpoints, under a unique name."""
    if len(paths) < 2:
        raise UserError("one run cannot be compared; name two or more runs or checkpoints")
    found: dict[str, Choice] = {}
    for path in paths:
        is_run = any((path / name).is_file() for name in ("selection.json", "train_log.csv"))
        one = choose(replace(settings, run=path) if is_run else replace(settings, checkpoint=(path,)))
        name = one.name if one.name not in found else str(path)
        if name in found:
            raise UserError(f"{path} is named twice; name each run once")
        found[name] = one
    return found


def measured(
    choices: dict[str, Choice], test: EvaluationSet, data_dir: Path, settings: EvaluationSettings
) -> dict[str, SetResult]:
    """Evaluate every model on the same cases, and enter each in the ledger of test-set reads."""
    counted = units(test, settings.level)
    results = {}
    for name, choice in choices.items():
        (by_image,), predictors = predict(choice.checkpoints, [test], upstream_prompts(), settings)
        record_test_read(ledger_path(data_dir, settings.out), predictors, test, settings.level, choice.name)
        unset = np.full(len(LABELS), np.nan)  # no thresholds: only areas are compared
        results[name] = evaluate_set("test", counted, counted.reduce(by_image), unset, settings.n_bootstrap)
    return results


def areas_table(results: dict[str, SetResult]) -> Table:
    first = next(iter(results.values()))
    rows: list[list[Any]] = [[label, positives(first, i), *_area_cells(results, i)] for i, label in enumerate(LABELS)]
    for key, title in MEAN_NAMES.items():
        means = [one.mean(key) for one in results.values()]
        cells = [cell for mean in means for cell in (number(mean.value), interval(*mean.interval))]
        rows.append([title, f"{len(means[0].used)} labels", *cells])
    columns = ["Label", "Positive", *(text for name in results for text in (name, f"95 % interval ({name})"))]
    return Table("AUROC on the same test cases", columns, rows)


def _area_cells(results: dict[str, SetResult], i: int) -> list[Any]:
    return [
        cell
        for one in results.values()
        for cell in (number(one.auroc[i]), interval(*(float(end[i]) for end in one.newcombe)))
    ]


def differences_table(compared: dict[str, Differences], corrected: dict[str, np.ndarray], first: str) -> Table:
    rows = [
        [
            MEAN_NAMES.get(title, title),
            name,
            signed(one.found.difference[i]),
            signed_interval(one.found.lower[i], one.found.upper[i]),
            p_text(one.p[i]),
            p_text(corrected[name][i]),
        ]
        for name, one in compared.items()
        for i, title in enumerate(one.titles)
    ]
    columns = ["Label", "Model", "Difference", "95 % interval (difference)", "p", "p (Holm)"]
    return Table(f"Difference in AUROC to {first}", columns, rows)


def compare(args: argparse.Namespace) -> Path:
    """Run the whole comparison; return the report's path."""
    settings = EvaluationSettings(
        data=args.data,
        level=args.level,
        out=args.out,
        batch_size=args.batch_size,
        device=str(pick_device(args.device)),
        precision=args.precision,
        n_bootstrap=1,  # these intervals need no resamples
    )
    choices = chosen(args.runs, settings)
    first, *others = choices
    data_dir = data_folder(settings, choices[first])
    settings = replace(settings, pixel_range=choices[first].pixel_range())
    if (data_dir / images_file("valid")).is_file():
        valid = read_set(data_dir, "valid", settings.pixel_range)
        for choice in choices.values():
            check_the_runs_data(choice, valid, named=args.data is not None)
    test = read_set(data_dir, "test", settings.pixel_range)
    sets = [read_named_set(data_dir, name, settings.pixel_range) for name in dict.fromkeys(args.sets)]
    results = measured(choices, test, data_dir, settings)
    compared = {name: differences(results[name], results[first]) for name in others}
    corrected = _corrected_together(compared)
    on_sets = score_models(choices, sets, settings) if sets else {}
    with replaced_together(args.out / "comparison") as folder:
        figures = [
            charts.differences(
                [MEAN_NAMES.get(title, title) for title in one.titles],
                *one.found[:3],
                folder / "figures",
                name=f"difference_{k}",
                of=(name, first),
            )
            for k, (name, one) in enumerate(compared.items(), 1)
        ]
        text = [
            f"All models were run on the same {len(results[first])} test cases of {data_dir} with CheXzero's prompts, "
            f"and each is compared with {first}. {EXPLAINED} The correction is over all models and labels together."
        ]
        section = Section(
            "comparison",
            "Side by side",
            text,
            [areas_table(results), differences_table(compared, corrected, first)],
            figures,
        )
        sections = [section, *([sets_section(sets, on_sets, folder / "figures")] if sets else [])]
        metrics = _metrics(choices, results, compared, corrected, test)
        write_json(folder / "metrics.json", metrics | {one.key: one.metrics for one in sections if one.metrics})
        facts = {name: ", ".join(str(path) for path in choice.checkpoints) for name, choice in choices.items()}
        summary = [f"Mean AUROC over the five competition labels: {_means_said(results)}."]
        write_report(Report(f"Comparison of {', '.join(choices)}", summary, [], facts, sections), folder)
    for name, one in results.items():
        print(f"{name:32} mean of 5: {say(one.mean('mean_5'))}; mean of 13: {say(one.mean('mean_13'))}")
    path = args.out / "comparison" / "report.html"
    print(f"report: {path}")
    return path


def _means_said(results: dict[str, SetResult]) -> str:
    return "; ".join(f"{name} {say(one.mean('mean_5'))}" for name, one in results.items())


def _corrected_together(compared: dict[str, Differences]) -> dict[str, np.ndarray]:
    """Holm's correction over the labels of all models, each (18,); the means are not part of the family."""
    family = holm(np.concatenate([one.p[: len(LABELS)] for one in compared.values()]))
    parts = np.split(family, len(compared))
    return {
        name: np.append(part, np.full(len(one.titles) - len(LABELS), np.nan))
        for (name, one), part in zip(compared.items(), parts, strict=True)
    }


def _metrics(
    choices: dict[str, Choice],
    results: dict[str, SetResult],
    compared: dict[str, Differences],
    corrected: dict[str, np.ndarray],
    test: EvaluationSet,
) -> dict[str, Any]:
    return {
        "models": {
            name: {
                "checkpoints": [str(path) for path in choices[name].checkpoints],
                "auroc": dict(zip(LABELS, map(number, one.auroc), strict=True)),
                "means": {key: number(one.mean(key).value) for key in MEAN_NAMES},
            }
            for name, one in results.items()
        },
        "differences": {
            name: {
                title: {
                    "difference": number(one.found.difference[i]),
                    "lower": number(one.found.lower[i]),
                    "upper": number(one.found.upper[i]),
                    "p": number(one.p[i]),
                    "p_holm": number(corrected[name][i]),
                }
                for i, title in enumerate(one.titles)
            }
            for name, one in compared.items()
        },
        "test_images_sha256": test.images_sha256,
        "test_labels_sha256": test.labels_sha256,
    }


def main(argv: Sequence[str] | None = None) -> None:
    compare(parse_args(argv))


if __name__ == "__main__":
    run_command(lambda: main())
