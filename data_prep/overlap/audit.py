"""The overlap audit: does any evaluation patient, study, report or image also appear in the training set?

`python -m data_prep build` runs it on the prepared images, before it writes the training set; `python -m data_prep
audit` runs it over finished files and does not change them. Both write `overlap_report.json`, `.md` and `.html`.
Method and limitations: docs/AUDIT.md.
"""

import argparse
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from chexzero.common.errors import UserError
from data_prep.overlap import cards, checks, finished, report
from data_prep.overlap.contract import Audit, Role
from data_prep.overlap.features import workers_available
from data_prep.roles import KEPT_OUT, ROLES
from data_prep.steps.work import require_writable

log = logging.getLogger(__name__)

ACTIONS = ("drop", "stop", "keep")


@dataclass
class AuditOptions:
    """What to do and how much to measure.

    `copies` disguised copies are planted to measure the recall, and `unrelated` pairs are compared for the rate of
    false alarms. `finished`: the sets are complete and are not changed, whatever `on_overlap` says. `earlier`:
    what the build's audit said. `drawn`: the corpus is drawn, no patient is in it. `on_disagreement`: what to do
    where path and table name different patients, `list` or `stop`. `files`: SHA-256 of the audited files.
    """

    on_overlap: str = "drop"
    workers: int = field(default_factory=workers_available)
    seed: int = 1234
    copies: int = 450
    unrelated: int = 1000
    finished: bool = False
    drawn: bool = False
    earlier: list[str] = field(default_factory=list)
    on_disagreement: str = "list"
    files: dict[str, str] = field(default_factory=dict)


def run_audit(roles: dict[str, Role], out_dir: str | Path, options: AuditOptions | None = None) -> Audit:
    """Compare the roles with each other, write the report under `out_dir`, and return what to leave out.

    With `on_overlap="drop"`, all training images of a patient with any match in an evaluation set go into `drop_ids`.
    With `"stop"` any match raises `UserError` after the report is written; with `"keep"` it is only reported. A match
    between validation and test is reported and never dropped: both sets are fixed by their releases.
    With `on_disagreement="stop"` a row whose path and table name different patients raises `UserError` as well.
    Memory: the evaluation sets' images and features (0.16 MB for each image), a block of training images, the rows; 384
    bytes per training image on disk.
    """
    options = options or AuditOptions()
    if options.on_overlap not in ACTIONS:
        raise UserError(f"--on_overlap {options.on_overlap} is unknown; choose {', '.join(ACTIONS)}")
    roles = {
        name: _checked(name, roles[name]) for name in (*ROLES, KEPT_OUT) if name in roles and len(roles[name].rows)
    }
    out_dir = require_writable(Path(out_dir), "--out")
    started = time.monotonic()
    found = checks.compare_records(roles)
    images = checks.compare_images(
        roles, out_dir, copies=options.copies, unrelated=options.unrelated, seed=options.seed, workers=options.workers
    )
    found += images.checks
    reasons = checks.reasons_to_leave_out(roles["train"].rows, found) if "train" in roles else {}
    facts = {name: checks.facts(role) for name, role in roles.items()}
    concerned = checks.concerned(roles["train"].rows, reasons) if reasons else checks.NOBODY
    document = report.document(
        facts,
        found,
        images,
        reasons,
        concerned,
        on_overlap=options.on_overlap,
        finished=options.finished,
        drawn=options.drawn,
        earlier=options.earlier,
        seed=options.seed,
        files=options.files,
    )
    report.write(
        out_dir,
        document,
        cards.found(roles, found, images),
        cards.rejected(roles, images),
        cards.shared_texts(roles, found),
    )
    summary = document["summary"]
    log.info(
        "audit: %s; report: %s (%.0f s)",
        summary["sentence"],
        out_dir / "overlap_report.html",
        time.monotonic() - started,
    )
    disagree = [image for fact in facts.values() for image in fact["ids_that_disagree"]]
    if options.on_disagreement == "stop" and disagree:
        raise UserError(
            f"path and table name different patients in {len(disagree)} images, the first is {disagree[0]}; correct "
            f"the table, or use --on_disagreement list to compare both"
        )
    if options.on_overlap == "stop" and summary["found_all"]:
        raise UserError(
            f"the sets overlap ({summary['sentence']}) and --on_overlap is stop; read "
            f"{out_dir / 'overlap_report.html'} and choose --on_overlap drop or keep"
        )
    return Audit(set(reasons) if options.on_overlap == "drop" else set(), summary, reasons)


def _checked(name: str, role: Role) -> Role:
    if len(role.images) != len(role.rows):
        raise UserError(f"the role {name} has {len(role.images)} images but {len(role.rows)} rows; build it again")
    rows = role.rows.reset_index(drop=True)
    twice = rows["id"][rows["id"].duplicated()]
    if len(twice):
        raise UserError(f"the role {name} has the id {twice.iloc[0]!r} twice; build it again")
    return Role(role.images, rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `python -m data_prep audit`."""
    files = parser.add_argument_group("what is read and written")
    files.add_argument("--data", default="data", metavar="DIR", help="folder with the finished files of a build")
    files.add_argument(
        "--splits",
        default="splits",
        metavar="DIR",
        help="folder with the manifests (file hashes, the table's patient ids)",
    )
    files.add_argument(
        "--out", metavar="DIR", help="where the report goes; default: the --data folder, or . with --images_only"
    )
    files.add_argument("--images_only", action="store_true", help="compare only the images of --train and --test")
    files.add_argument("--train", metavar="PATH", help="with --images_only: folder of images, or HDF5 file")
    files.add_argument("--test", metavar="PATH", help="with --images_only: folder of images, or HDF5 file")
    how = parser.add_argument_group("what to do, and how it runs")
    how.add_argument(
        "--on_overlap",
        choices=ACTIONS,
        default="drop",
        help="finished files are never changed: stop ends with exit code 2, drop and keep only report",
    )
    how.add_argument(
        "--on_disagreement",
        choices=("list", "stop"),
        default="list",
        help="what to do where an image's path and the release's table name different patients",
    )
    how.add_argument(
        "--copies", type=int, default=450, metavar="N", help="disguised copies planted to measure the recall"
    )
    how.add_argument("--seed", type=int, default=1234, help="random seed of the planted copies")
    how.add_argument("--workers", type=int, default=workers_available(), metavar="N", help="threads")


def run(args: argparse.Namespace) -> int | None:
    """Audit finished files, or any two sets of images."""
    if args.workers < 1:
        raise UserError(f"--workers {args.workers} must be at least 1")
    if bool(args.train and args.test) != args.images_only or bool(args.train) != bool(args.test):
        raise UserError("--images_only needs --train and --test, and they need it; name all three or none")
    if args.images_only:
        opened = finished.open_sets({"train": Path(args.train), "test": Path(args.test)})
        out = args.out or "."
    else:
        opened = finished.open_roles(Path(args.data), Path(args.splits))
        out = args.out or args.data
    with opened as sets:
        options = AuditOptions(
            args.on_overlap,
            args.workers,
            args.seed,
            copies=args.copies,
            finished=True,
            drawn=sets.drawn,
            earlier=sets.earlier,
            on_disagreement=args.on_disagreement,
            files=sets.files,
        )
        out_dir = require_writable(Path(out), "--out")
        if not args.images_only:
            finished.keep_build_report(out_dir)
        audit = run_audit(sets.roles, out_dir, options)
    print(audit.summary["sentence"])
    return None
