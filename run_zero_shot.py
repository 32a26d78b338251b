"""Evaluate trained checkpoints with confidence intervals, alone or against CheXzero's, and write a report.

    python run_zero_shot.py --run checkpoints/pt-imp
    python run_zero_shot.py --images FOLDER --labels "pleural effusion" "pneumothorax" --run checkpoints/pt-imp

The first form writes `results/<run>/report.html`, `report.md`, `metrics.json`, predictions, figures and tables.
Besides it, only `python -m chexzero.compare` evaluates models on the test set.
"""

import chexzero.common.interrupts  # noqa: F401  (first: the other imports take seconds)

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from chexzero.common.errors import EXIT_ALARM, UserError, run_command
from chexzero.common.files import read_json, sha256_of, write_text
from chexzero.common.folders import replaced_together
from chexzero.common.labels import LABELS
from chexzero.common.settings import parse_with_config
from chexzero.evaluation.checkpoint_choice import Choice, choose
from chexzero.evaluation.settings import LEVELS, PRECISIONS, EvaluationSettings
from chexzero.report.sections import Section
from chexzero.suites import SUITES, EvaluationContext
from chexzero.suites import add_arguments as add_suite_arguments


def parse_args(argv: Sequence[str] | None = None) -> EvaluationSettings:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what to evaluate")
    what.add_argument(
        "--run",
        type=Path,
        metavar="DIR",
        help="a run's folder, checkpoints/<model_name>; its selected checkpoint is used",
    )
    what.add_argument(
        "--checkpoint",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="checkpoint files or folders of exported models instead of a run; several form an ensemble",
    )
    what.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="several runs, such as a sweep's, for an ensemble of their best",
    )
    what.add_argument(
        "--ensemble",
        nargs="+",
        metavar=("top", "K"),
        help="evaluate the ensemble of the K best checkpoints of the run, or of all runs, by validation",
    )
    what.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of valid.h5, test.h5 and their labels (default: the run's)"
    )
    what.add_argument(
        "--splits", type=Path, default="splits", metavar="DIR", help="folder of the manifests (default: %(default)s)"
    )
    what.add_argument(
        "--level",
        choices=LEVELS,
        default="image",
        help="image: first frontal view of each study, as upstream; study_mean, study_max: mean or "
        "maximum over a study's views (default: %(default)s)",
    )
    what.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="YAML file with alternative prompts (default: chexzero/evaluation/prompts.yaml)",
    )
    beside = parser.add_argument_group("comparisons")
    beside.add_argument(
        "--baseline",
        type=Path,
        metavar="DIR",
        help="folder of checkpoints, such as CheXzero's, to run on the same images",
    )
    beside.add_argument(
        "--radiologists",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="CSVs of radiologists' calls on the test studies: Study and labels, each 0 or 1",
    )
    beside.add_argument(
        "--supervised",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="CSVs of other models' predictions for the test studies: Study and labels",
    )
    report = parser.add_argument_group("the report")
    report.add_argument(
        "--out",
        type=Path,
        default="results",
        metavar="DIR",
        help="folder in which <model_name>/ is written (default: %(default)s)",
    )
    report.add_argument(
        "--n_bootstrap",
        type=positive,
        default=1000,
        metavar="N",
        help="bootstrap resamples for the intervals (default: %(default)s)",
    )
    report.add_argument(
        "--strict", action="store_true", help="end with exit code 3 if a check of the data or the model fails"
    )
    report.add_argument("--full_paths", action="store_true", help="show absolute paths in the report (default: no)")
    report.add_argument(
        "--thumbnails", action="store_true", help="show images of the most confident cases (patients' images)"
    )
    report.add_argument(
        "--suite", nargs="+", default=[], choices=["chexpert", *SUITES], help="evaluations in addition to the 14 labels"
    )
    report.add_argument(
        "--sets",
        nargs="+",
        default=[],
        metavar="NAME",
        help="evaluation sets by name (padchest, openi, ...): <data>/NAME.h5 and NAME_labels.csv, as "
        "`python -m data_prep evaluation-set` writes them",
    )
    folder = parser.add_argument_group("predict a folder of images instead of evaluating")
    folder.add_argument(
        "--images", type=Path, metavar="FOLDER", help="images to predict: PNG, JPEG, DICOM, TIFF or BMP, by content"
    )
    folder.add_argument(
        "--labels", nargs="+", metavar="FINDING", help="any findings to look for (default: the 14 labels)"
    )
    how = parser.add_argument_group("computation")
    how.add_argument(
        "--batch_size", type=positive, default=64, metavar="N", help="images per batch (default: %(default)s)"
    )
    how.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    how.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="number format of the model (default: %(default)s)"
    )
    how.add_argument(
        "--pixel_range",
        metavar="BLACK,WHITE",
        help="the values of black and white in image files of floating-point numbers (default: the run's, else 0,255)",
    )
    how.add_argument(
        "--seed", type=int, default=1234, help="random seed of the suites that sample (default: %(default)s)"
    )
    add_suite_arguments(parser)
    return EvaluationSettings.from_args(parse_with_config(parser, argv))


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def evaluate(settings: EvaluationSettings) -> Path:
    """Run the whole evaluation; return the report's path."""
    # modules that need torch are imported where they are used, so that --help and a wrong flag are answered at once
    from chexzero.evaluation.measure import data_folder, measure
    from chexzero.evaluation.named_sets import read_named_set
    from chexzero.evaluation.test_set_ledger import ledger_path, record_test_read
    from chexzero.model import pick_device
    from chexzero.report.assemble import read_others, score_sets, write_results
    from chexzero.report.summary import print_alarms, print_table

    settings = replace(settings, device=str(pick_device(settings.device)))
    choice = choose(settings)
    settings = replace(settings, pixel_range=settings.pixel_range or choice.pixel_range())
    out = settings.out / choice.name
    others = read_others(settings, data_folder(settings, choice))
    sets = [
        read_named_set(data_folder(settings, choice), name, settings.pixel_range)
        for name in dict.fromkeys(settings.sets)
    ]
    found = measure(settings, choice)
    ledger = ledger_path(found.data_dir, settings.out)
    reads = record_test_read(ledger, found.predictors, found.sets[1], settings.level, choice.name)
    with replaced_together(out) as folder:
        scored, checks = score_sets(settings, choice, sets, found.data_dir, folder)
        more = [*scored, *run_suites(settings, choice, found.data_dir, folder)]
        alarms = write_results(settings, choice, found, others, reads, more, folder, checks)
    print_table(found.valid, found.test)
    print_alarms(alarms)
    print(f"report: {out / 'report.html'}")
    return out / "report.html"


def run_suites(settings: EvaluationSettings, choice: Choice, data_dir: Path, out: Path) -> list[Section]:
    """Run the requested suites with the first checkpoint's model."""
    wanted = [name for name in dict.fromkeys(settings.suite) if name in SUITES]
    if not wanted:
        return []
    from chexzero.models.checkpoints import load_model

    context = EvaluationContext(
        load_model(choice.checkpoints[0], settings.device or "cpu"),
        settings.device,
        data_dir,
        settings.splits,
        out,
        settings.batch_size,
        settings.seed,
        settings.flags(),
        choice.image_size(),
    )
    return [SUITES[name].run(context) for name in wanted]


def predict_images(settings: EvaluationSettings) -> Path:
    """Write the probabilities for a folder of images to `<out>/<name>/images_<folder>.csv`; return its path.

    `images_<folder>_standing.csv` has the percentile of each value of the 14 labels among the validation images;
    `images_<folder>_left_out.csv` lists the files that were skipped or could not be read. For another folder with the
    same name, a digest is added to the files' names.
    """
    import pandas as pd

    from chexzero.evaluation.standing import read_standing
    from chexzero.folder import images_result, predict_folder
    from chexzero.imaging.image_files import find_images
    from chexzero.model import pick_device
    from chexzero.models.checkpoints import load_model
    from chexzero.report.write import frame_csv

    choice, folder = choose(settings), Path(settings.images or "")
    find_images(folder)  # before the model is loaded
    if len(choice.checkpoints) > 1:
        raise UserError("--images takes one checkpoint; name one with --checkpoint")
    device = pick_device(settings.device)
    model = load_model(choice.checkpoints[0], device)
    size = choice.image_size()
    table = predict_folder(
        model, folder, settings.labels or LABELS, batch_size=settings.batch_size, device=device, size=size
    )
    left_out = pd.DataFrame(table.attrs["left_out"], columns=["image", "reason"])
    path = images_result(settings.out / choice.name, folder)
    write_text(path, frame_csv(table))
    write_text(path.with_name(f"{path.stem}_left_out.csv"), frame_csv(left_out))
    print(table.head(20).to_string(index=False, float_format="{:.4f}".format))
    standing = read_standing(settings.out / choice.name, sha256_of(choice.checkpoints[0]))
    stands = standing.table(table) if standing else pd.DataFrame()
    if len(stands):
        write_text(path.with_name(f"{path.stem}_standing.csv"), frame_csv(stands))
        print(stands.head(20).to_string(index=False, float_format="{:.4f}".format))
        print(
            f"{path.stem}_standing.csv: percentile among the validation images, and side of the threshold chosen there"
        )
    else:
        print("The percentiles among validation images are not known; evaluate this checkpoint, then predict again")
    print(f"{len(table)} images, prepared at {size} x {size} pixels, with {choice.checkpoints[0].name}: {path}")
    if len(left_out):
        print(f"{len(left_out)} files are left out; {path.stem}_left_out.csv says why")
    print("Probabilities compare “finding” with “no finding”; they rank images and are not a diagnosis.")
    return path


def main() -> int:
    settings = parse_args()
    if settings.images:
        predict_images(settings)
        return 0
    report = evaluate(settings)
    return EXIT_ALARM if settings.strict and read_json(report.with_name("metrics.json"))["alarms"] else 0


def cli() -> None:
    """The installed command."""
    run_command(main)


if __name__ == "__main__":
    cli()
