"""How good is a trained model, against CheXzero, and how sure are we? Checkpoints in, report out.

    python run_zero_shot.py --run checkpoints/pt-imp
    python run_zero_shot.py --images FOLDER --labels "pleural effusion" "pneumothorax" --run checkpoints/pt-imp

The first writes `results/<run>/report.html`, `report.md`, `metrics.json`, predictions, figures and tables. It is the
only command that opens the test set.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chexzero.common.errors import UserError, run_command
from chexzero.common.files import write_json, write_text
from chexzero.common.folders import replaced_together
from chexzero.common.formats import read_build
from chexzero.common.labels import LABELS
from chexzero.common.settings import parse_with_config
from chexzero.evaluation.calibration import platt
from chexzero.evaluation.checkpoint_choice import Choice, choose
from chexzero.evaluation.prompts import Prompt, read_alternatives, upstream_prompts
from chexzero.evaluation.results import SetResult, evaluate_set
from chexzero.evaluation.sets import LEVELS, EvaluationSet, read_set, units
from chexzero.evaluation.test_set_ledger import record_test_read
from chexzero.metrics import best_thresholds
from chexzero.model import pick_device
from chexzero.report import charts, paper, provenance, readers, sanity, scores
from chexzero.report.baseline import baseline_section, checkpoints_in
from chexzero.report.cases import thumbnails_section
from chexzero.report.sections import Section, Table
from chexzero.report.summary import banner, facts, print_table, summary
from chexzero.report.write import Report, as_csv, write_report
from chexzero.suites import SUITES, EvaluationContext
from chexzero.suites import add_arguments as add_suite_arguments
from chexzero.zero_shot import Predictor, check_predictions, ensemble


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what is evaluated")
    what.add_argument("--run", metavar="DIR", help="a run's folder, checkpoints/<model_name>: its selected checkpoint")
    what.add_argument(
        "--checkpoint",
        nargs="+",
        metavar="FILE",
        help="these instead: files, or folders of exported models; several are an ensemble",
    )
    what.add_argument(
        "--ensemble", nargs="+", metavar=("top", "K"), help="the K best checkpoints of the run by validation"
    )
    what.add_argument("--data", metavar="DIR", help="folder of valid.h5, test.h5 and their labels (default: the run's)")
    what.add_argument(
        "--splits", default="splits", metavar="DIR", help="folder of the manifests (default: %(default)s)"
    )
    what.add_argument(
        "--level",
        choices=LEVELS,
        default="image",
        help="image: first frontal view of each study, as upstream; study_mean, study_max: mean or "
        "maximum over a study's views (default: %(default)s)",
    )
    what.add_argument(
        "--prompts", metavar="FILE", help="YAML file with alternative prompts (default: chexzero/prompts.yaml)"
    )
    beside = parser.add_argument_group("beside whom")
    beside.add_argument(
        "--baseline", metavar="DIR", help="folder of checkpoints, CheXzero's say, to run on the same images"
    )
    beside.add_argument(
        "--radiologists",
        nargs="+",
        default=[],
        metavar="FILE",
        help="CSVs of radiologists' calls on the test studies: Study and labels, each 0 or 1",
    )
    beside.add_argument(
        "--supervised",
        nargs="+",
        default=[],
        metavar="FILE",
        help="CSVs of other models' predictions for the test studies: Study and labels",
    )
    report = parser.add_argument_group("the report")
    report.add_argument(
        "--out", default="results", metavar="DIR", help="<model_name>/ is written here (default: %(default)s)"
    )
    report.add_argument(
        "--n_bootstrap",
        type=positive,
        default=1000,
        metavar="N",
        help="resamples of the intervals (default: %(default)s)",
    )
    report.add_argument("--thumbnails", action="store_true", help="show the most confident cases: images of patients")
    report.add_argument(
        "--suite", nargs="+", default=[], choices=["chexpert", *SUITES], help="evaluations beside the 14 labels"
    )
    folder = parser.add_argument_group("a folder of images instead of the evaluation")
    folder.add_argument("--images", metavar="FOLDER", help="PNG, JPEG or DICOM images to predict")
    folder.add_argument(
        "--labels", nargs="+", metavar="FINDING", help="any findings to look for (default: the 14 labels)"
    )
    how = parser.add_argument_group("how it is computed")
    how.add_argument(
        "--batch_size", type=positive, default=64, metavar="N", help="images at a time (default: %(default)s)"
    )
    how.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    how.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="(default: %(default)s)")
    how.add_argument("--seed", type=int, default=1234, help="of the suites that sample (default: %(default)s)")
    add_suite_arguments(parser)
    return parse_with_config(parser, argv)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def predict(
    checkpoints: Sequence[Path],
    sets: Sequence[EvaluationSet],
    prompts: Sequence[Prompt],
    args: argparse.Namespace,
    device: str,
) -> tuple[list[np.ndarray], list[Predictor]]:
    """The ensemble's probabilities (N images, len(prompts)) of each set. One model is in memory at a time."""
    cache, pairs = Path(args.out) / ".cache", [prompt.pair for prompt in prompts]
    names = [f"{prompt.label} ({prompt.name})" for prompt in prompts]
    how = {"batch_size": args.batch_size, "precision": args.precision, "progress": sys.stderr.isatty()}
    members: list[list[np.ndarray]] = [[] for _ in sets]
    predictors = [Predictor(checkpoint, cache, device=device, **how) for checkpoint in checkpoints]
    for predictor in predictors:
        for one, found in zip(sets, members, strict=True):
            found.append(predictor.predict(one.images, pairs, images_sha256=one.images_sha256))
            check_predictions(found[-1], f"{predictor.checkpoint} on {one.images}", names)
        predictor.forget_model()
    return [ensemble(found) for found in members], predictors


@dataclass(frozen=True)
class Measured:
    """Everything that was computed before anything is written. `scores` are per set (N cases, len(prompts))."""

    data_dir: Path
    build: dict[str, Any]
    sets: list[EvaluationSet]
    prompts: list[Prompt]
    by_image: list[np.ndarray]
    scores: list[np.ndarray]
    predictors: list[Predictor]
    valid: SetResult
    test: SetResult


def measure(args: argparse.Namespace, choice: Choice, device: str) -> Measured:
    """Predict both sets, choose thresholds on validation, and compute every number of the 14 labels."""
    data_dir = data_folder(args, choice)
    sets = [read_set(data_dir, "valid"), read_set(data_dir, "test")]
    counted = [units(one, args.level) for one in sets]
    prompts = upstream_prompts() + read_alternatives(args.prompts)
    by_image, predictors = predict(choice.checkpoints, sets, prompts, args, device)
    scores = [unit.reduce(values) for unit, values in zip(counted, by_image, strict=True)]
    upstream = [values[:, : len(LABELS)] for values in scores]
    for one, values in zip(sets, upstream, strict=True):
        check_predictions(values, f"the predictions for {one.images}")
    at = best_thresholds(counted[0].truth, upstream[0])
    valid, test = (
        evaluate_set(one.name, unit, values, at, args.n_bootstrap)
        for one, unit, values in zip(sets, counted, upstream, strict=True)
    )
    return Measured(data_dir, read_build(data_dir), sets, prompts, by_image, scores, predictors, valid, test)


def data_folder(args: argparse.Namespace, choice: Choice) -> Path:
    """`--data`, else the folder whose validation set the run used, else `data`."""
    return Path(args.data) if args.data else (choice.run and choice.run.data_dir()) or Path("data")


def evaluate(args: argparse.Namespace) -> Path:
    """The whole evaluation; returns the report's path."""
    choice, device = choose(args), str(pick_device(args.device))
    out = Path(args.out) / choice.name
    others = read_others(args, data_folder(args, choice))
    found = measure(args, choice, device)
    reads = record_test_read(out / "test_reads.json", found.predictors, found.sets[1], args.level)
    with replaced_together(out) as folder:
        write_results(args, choice, found, others, reads, folder, device)
    print_table(found.valid, found.test)
    print(f"report: {out / 'report.html'}")
    return out / "report.html"


def write_results(
    args: argparse.Namespace,
    choice: Choice,
    found: Measured,
    others: "Others",
    reads: list[dict],
    out: Path,
    device: str,
) -> None:
    """Write the report, its figures and tables, the predictions and `metrics.json` into `out`, an empty folder."""
    sections = [
        *main_sections(args, choice, found, others, reads, out / "figures", device),
        *run_suites(args, choice, found.data_dir, out, device),
        *closing_sections(args, choice, found, out / "figures"),
    ]
    for result in (found.valid, found.test):
        write_predictions(out / f"predictions_{result.name}.csv", result)
    drawn = bool(found.build.get("drawn"))
    write_json(
        out / "metrics.json",
        {
            "model_name": choice.name,
            "drawn": drawn,
            "selected": choice.selected,
            "level": args.level,
            "n_bootstrap": args.n_bootstrap,
            "valid": found.valid.metrics(),
            "test": found.test.metrics(),
            "sections": {section.key: section.metrics for section in sections if section.metrics},
        },
    )
    report = Report(
        f"Zero-shot evaluation of {choice.name}",
        summary(choice, found.valid, found.test, drawn),
        banner(choice, drawn),
        facts(choice, found.valid, found.test, found.data_dir),
        sections,
    )
    write_report(report, out)


@dataclass(frozen=True)
class Others:
    """Those that the run is compared with, from the files that were named."""

    radiologists: list[readers.Reader]
    supervised: list[readers.Reader]
    baseline: list[Path]


def read_others(args: argparse.Namespace, data_dir: Path) -> Others:
    """Read them before anything is predicted, so that a wrong file costs no time."""
    baseline = checkpoints_in(Path(args.baseline)) if args.baseline else []
    if not args.radiologists and not args.supervised:
        return Others([], [], baseline)
    studies = units(read_set(data_dir, "test"), args.level).table["study_id"]
    return Others(
        [readers.read_reader(path, studies, binary=True) for path in args.radiologists],
        [readers.read_reader(path, studies, binary=False) for path in args.supervised],
        baseline,
    )


def main_sections(
    args: argparse.Namespace,
    choice: Choice,
    found: Measured,
    others: Others,
    reads: list[dict],
    figures: Path,
    device: str,
) -> list[Section]:
    """The sections about the 14 labels, those that a reader wants first at the top."""
    run, valid, test = choice.run, found.valid, found.test
    curves = [draw(run, figures) for draw in (charts.validation_curve, charts.training_loss) if run]
    recorded = run.recorded(choice.selected["step"]) if run and len(choice.checkpoints) == 1 else {}
    scaled = platt(valid.truth, valid.probability, test.probability)
    sections = [
        paper.paper_section(test, bool(found.build.get("drawn")), charts.beside_paper(test, figures)),
        scores.areas_section(
            valid,
            test,
            [charts.roc(valid, test, others.radiologists, figures), charts.precision_recall(valid, test, figures)],
        ),
        provenance.selection_section(
            run, choice.selected, [curve for curve in curves if curve], reads, valid, len(found.by_image[0])
        ),
        sanity.sanity_section(
            valid,
            test,
            [
                *sanity.shared_cases(*found.sets),
                sanity.as_built(found.build, found.sets),
                sanity.as_recorded(recorded, found.by_image[0][:, : len(LABELS)], found.sets[0].truth),
            ],
        ),
    ]
    if others.baseline:
        (by_image,), _ = predict(others.baseline, found.sets[1:], upstream_prompts(), args, device)
        theirs = evaluate_set("test", test.units, test.units.reduce(by_image), test.at, args.n_bootstrap)
        sections.append(baseline_section(test, theirs, [path.name for path in others.baseline], figures))
    if others.radiologists:
        sections.append(readers.radiologist_section(test, others.radiologists, args.n_bootstrap))
    if others.supervised:
        sections.append(readers.supervised_section(test, others.supervised))
    return [
        *sections,
        scores.operating_section(valid, test),
        scores.calibration_section(valid, test, scaled, charts.calibration(test, scaled, figures)),
        scores.prompts_section(found.prompts, valid, test, *found.scores, args.n_bootstrap),
    ]


def closing_sections(args: argparse.Namespace, choice: Choice, found: Measured, figures: Path) -> list[Section]:
    """Cases to look at, if they were asked for, and where everything comes from."""
    cases = [thumbnails_section(found.test, found.sets[1].images, figures)] if args.thumbnails else []
    return [
        *cases,
        provenance.overlap_section(found.data_dir),
        provenance.data_section(found.data_dir, found.sets),
        provenance.provenance_section(choice.run, vars(args), found.predictors, found.sets),
    ]


def run_suites(args: argparse.Namespace, choice: Choice, data_dir: Path, out: Path, device: str) -> list[Section]:
    """The suites that were asked for, with the first checkpoint's model."""
    wanted = [name for name in dict.fromkeys(args.suite) if name in SUITES]
    if not wanted:
        return []
    from chexzero.models.checkpoints import load_model

    context = EvaluationContext(
        load_model(choice.checkpoints[0], device),
        device,
        data_dir,
        Path(args.splits),
        out,
        args.batch_size,
        args.seed,
        vars(args),
    )
    return [SUITES[name].run(context) for name in wanted]


def write_predictions(path: Path, result: SetResult) -> None:
    """`id, patient_id, study_id, view` and the 14 probabilities of each case."""
    table = result.units.table.copy()
    for i, label in enumerate(LABELS):
        table[label] = result.probability[:, i]
    write_text(path, as_csv(Table("", list(table.columns), table.to_numpy(object).tolist())))


def predict_images(args: argparse.Namespace) -> Path:
    """Probabilities for a folder of images, to `<out>/<name>/images_<folder>.csv`."""
    from chexzero.folder import predict_folder
    from chexzero.imaging.image_files import images_in
    from chexzero.models.checkpoints import load_model

    choice, folder = choose(args), Path(args.images)
    found = len(images_in(folder))
    if len(choice.checkpoints) > 1:
        raise UserError("--images takes one checkpoint; name one with --checkpoint")
    device = str(pick_device(args.device))
    table = predict_folder(
        load_model(choice.checkpoints[0], device),
        folder,
        args.labels or LABELS,
        batch_size=args.batch_size,
        device=device,
    )
    path = Path(args.out) / choice.name / f"images_{re.sub('[^A-Za-z0-9._-]+', '_', folder.resolve().name)}.csv"
    write_text(path, as_csv(Table("", list(table.columns), table.to_numpy(object).tolist())))
    print(table.head(20).to_string(index=False, float_format="{:.4f}".format))
    left_out = f"; {found - len(table)} that cannot be read are left out" if len(table) < found else ""
    print(f"{len(table)} images with {choice.checkpoints[0].name}: {path}{left_out}")
    print("Probabilities compare “finding” with “no finding”; they rank images and are no diagnosis.")
    return path


def main() -> None:
    args = parse_args()
    if args.labels and not args.images:
        raise UserError("--labels belongs to --images FOLDER; add it, or leave --labels out")
    (predict_images if args.images else evaluate)(args)


def cli() -> None:
    """The installed command."""
    run_command(main)


if __name__ == "__main__":
    cli()
