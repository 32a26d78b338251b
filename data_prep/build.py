"""`python -m data_prep build`: the training set and the evaluation sets from the releases."""

import argparse
import logging
import re
from pathlib import Path

from chexzero.common.errors import UserError
from chexzero.data_process import RESOLUTION
from chexzero.imaging.decode import DEPTH16
from data_prep.finish import OUTPUTS, SETS, finish
from data_prep.releases import DATASETS
from data_prep.roles import ROLES_FILE
from data_prep.steps.plan import EMPTY_REPORTS, EVALUATION_VIEWS, SECTIONS, VIEWS, describe, make_plan
from data_prep.steps.prepare import prepare
from data_prep.steps.record import REDO, is_finished
from data_prep.steps.work import Work, cpu_count, positive, remove_remains, require_writable

#: Sides at which images can be stored; 320 is CheXzero's.
IMAGE_SIZES = (320, 448, 512)

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("where the releases are")
    where.add_argument("--data_root", metavar="DIR", help="one folder that holds all releases")
    for dataset in DATASETS.values():
        dataset.add_arguments(where)
    files = parser.add_argument_group("output and roles")
    files.add_argument("--out", type=Path, default=Path("data"), metavar="DIR", help="where the sets go")
    files.add_argument(
        "--splits", type=Path, metavar="DIR", help="where the manifests go (default: `splits` beside --out)"
    )
    files.add_argument(
        "--roles",
        default=ROLES_FILE,
        metavar="FILE",
        help="which role each release's splits play: a file, or a dataset's name",
    )
    choices = parser.add_argument_group("what is selected")
    choices.add_argument("--views", choices=VIEWS, default="all", help="views in the training set")
    choices.add_argument("--valid_views", choices=EVALUATION_VIEWS, default="all", help="views in the validation set")
    choices.add_argument(
        "--test_views", choices=EVALUATION_VIEWS, default="first_frontal", help="views in the test set"
    )
    choices.add_argument(
        "--section", choices=SECTIONS, default="impression", help="the section of the report to train with"
    )
    choices.add_argument(
        "--findings",
        action="store_true",
        help="also write the findings, in a separate column beside the impression, for run_train's --text_section "
        "findings, both and alternate",
    )
    choices.add_argument(
        "--empty_report",
        choices=EMPTY_REPORTS,
        default="space",
        help="images without that section: train with a space as upstream does, leave the image out, or "
        "use the findings (then a space)",
    )
    choices.add_argument(
        "--clean_reports",
        action="store_true",
        help="remove de-identification marks, the numbering of sentences, and signatures from the reports",
    )
    choices.add_argument(
        "--unknown_labels",
        choices=("empty", "negative"),
        default="empty",
        help="how to write evaluation labels that the release leaves blank or uncertain; a label that is blank for "
        "only some images cannot be scored",
    )
    choices.add_argument(
        "--image_size", type=int, choices=IMAGE_SIZES, default=RESOLUTION, help="side of the stored images in pixels"
    )
    choices.add_argument(
        "--depth16",
        choices=DEPTH16,
        default="stretch",
        help="16-bit images: scale each image's own range to 0..255, or drop the low byte as upstream does",
    )
    choices.add_argument(
        "--max_failures",
        type=share,
        default=0.001,
        metavar="SHARE",
        help="share of the training images that may be unreadable; evaluation sets may have none",
    )
    choices.add_argument(
        "--keep_out",
        nargs="+",
        default=[],
        metavar="FILE",
        help="lists of patients, studies or images to leave out of training, for instance another test set's",
    )
    choices.add_argument(
        "--max_bad_records",
        type=int,
        default=100,
        metavar="N",
        help="how many unusable entries of the training tables may be left out (and listed); more stop the build",
    )
    audit = parser.add_argument_group("the overlap audit")
    audit.add_argument(
        "--on_overlap",
        choices=("drop", "stop", "keep"),
        default="drop",
        help="what to do with training images that match an evaluation image or patient",
    )
    audit.add_argument(
        "--audit_copies", type=positive, default=450, metavar="N", help="disguised copies planted to measure the recall"
    )
    audit.add_argument(
        "--audit_unrelated",
        type=positive,
        default=1000,
        metavar="N",
        help="unrelated pairs of images compared to measure the false alarms",
    )
    how = parser.add_argument_group("how it runs")
    how.add_argument("--workers", type=positive, default=cpu_count(), metavar="N", help="processes that prepare images")
    how.add_argument(
        "--shard", type=shard, metavar="I/N", help="prepare one of N parts; `python -m data_prep finish` joins them"
    )
    how.add_argument("--overwrite", action="store_true", help="discard what an earlier build left in --out")


def run(args: argparse.Namespace) -> None:
    args.splits = args.splits or args.out.absolute().parent / "splits"
    if args.findings and args.section != "impression":
        raise UserError(f"--findings and --section {args.section} do not go together: both would hold the findings")
    work = Work(args.out)
    label = f"{args.shard[0]}/{args.shard[1]}" if args.shard else None
    with work.lock(label):
        releases, plan = describe(args)
        if args.overwrite:
            _overwrite(work, label)
        if is_finished(plan, work.out):
            work.discard()
            print(f"{work.out} already holds this build; nothing to do")
            return
        _protect(work)
        require_writable(args.splits, "--splits")  # fail now, not after hours of work
        with work.planning():
            plan = make_plan(args, releases, plan, work)
        log.info("%s", ", ".join(f"{role}: {rows} images" for role, rows in plan.rows.items()))
        prepare(work, plan, args.workers, args.shard or (0, 1))
        if args.shard:
            print(f"shard {label} is prepared; when all are, run: python -m data_prep finish --out {args.out}")
        else:
            finish(work, plan, args.workers)


def _protect(work: Work) -> None:
    """Raise `UserError` rather than replace sets that no unfinished build here was making."""
    if not work.plan_path.is_file() and (strangers := [name for name in SETS if (work.out / name).exists()]):
        raise UserError(f"{work.out / strangers[0]} already exists and belongs to no build; {REDO}")


def _overwrite(work: Work, label: str | None) -> None:
    if label:
        raise UserError("--overwrite and --shard do not go together; remove the output folder before the array starts")
    for name in OUTPUTS:
        (work.out / name).unlink(missing_ok=True)
    remove_remains(work.out, OUTPUTS)
    work.discard()


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def shard(text: str) -> tuple[int, int]:
    """`i/n`, counted from 0 or from 1: 0/4 and 4/4 are the same part."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 0 <= int(match[1]) <= int(match[2]) or int(match[2]) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not like 3/8")
    return int(match[1]), int(match[2])
