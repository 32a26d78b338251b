"""The demo corpus: drawn chest radiographs with composed reports, written in the three releases' layouts.

Nothing in it comes from a patient, and no number computed from it is a clinical result. Every image has its own
random generator, seeded by (seed, part, patient, study, view): the same settings give the same bytes on any
number of processes.
"""

import argparse
import ctypes
import itertools
import logging
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from chexzero.common.errors import UserError
from chexzero.common.files import read_json, write_json, write_text
from chexzero.common.folders import hold
from chexzero.common.labels import LABELS
from chexzero.common.processes import processes_can_share
from data_prep.demo.cases import Study, sample_patient, sample_study
from data_prep.demo.draw import draw_view, to_uint8, to_uint16
from data_prep.demo.reports import Report, write_report

log = logging.getLogger(__name__)

VERSION = 2  # of the drawing code; another version draws another corpus
WORDS = 100  # separates the wording's random numbers from the pictures', so that new wording keeps the pictures
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
FEW = 100  # pictures for which starting processes would take longer than drawing them
WHOLE, UNFINISHED = "demo.json", ".unfinished"
RELEASES = ("chexpert_plus", "chexpert", "rexgradient")
PARTS = {"plus_train": 0, "plus_valid": 1, "chexpert_test": 2, "rex_train": 3, "rex_valid": 4, "rex_test": 5}
NOTICE = (
    "Everything in this folder is drawn by code (python -m data_prep demo): no image, report or name comes from a "
    "patient.\nIt shows that the software works. No number computed from it is a clinical result.\n"
)

PLUS_COLUMNS = [
    "path_to_image",
    "path_to_dcm",
    "frontal_lateral",
    "ap_pa",
    "deid_patient_id",
    "patient_report_date_order",
    "report",
    "section_narrative",
    "section_clinical_history",
    "section_history",
    "section_comparison",
    "section_technique",
    "section_procedure_comments",
    "section_findings",
    "section_impression",
    "section_end_of_impression",
    "section_summary",
    "section_accession_number",
    "age",
    "sex",
    "race",
    "ethnicity",
    "interpreter_needed",
    "insurance_type",
    "recent_bmi",
    "deceased",
    "split",
]
CHEXPERT_LABELS = [
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
]  # in the order of CheXpert's own files
FIRST_PATIENT = {"plus_train": 1, "plus_valid": 64541, "chexpert_test": 64741}
PATIENTS = {"plus_train": 64540, "plus_valid": 200}  # CheXpert's numbering has no more
REX_COLUMNS = [
    "PatientID",
    "AccessionNumber",
    "StudyInstanceUid",
    "StudyDate",
    "PatientSex",
    "PatientAge",
    "EthnicGroup",
    "InstitutionName",
    "Manufacturer",
    "Indication",
    "Comparison",
    "Findings",
    "Impression",
    "ImageViewPosition",
    "ImagePath",
]
POSITIONS = {
    "PA": ["PA", "PA", "POSTERO_ANTERIOR", "UNKNOWN"],
    "AP": ["AP", "AP", "ANTERO_POSTERIOR", "AP AXIAL"],
    "LATERAL": ["LATERAL", "LL", "LAT"],
}


@dataclass(frozen=True)
class Case:
    """A planned study: its place in the part (patient, study, both from 0), what it shows, and its report."""

    part: str
    patient: int
    number: int
    study: Study
    report: Report


@dataclass(frozen=True)
class Picture:
    """One image to draw: everything a worker needs."""

    path: str
    seed: tuple[int, ...]
    study: Study
    projection: str
    bits: int  # 8, or 12 or 16 for a 16-bit file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m data_prep demo`."""
    sizes = parser.add_argument_group("how much is drawn")
    sizes.add_argument(
        "--train",
        type=int,
        default=3000,
        metavar="N",
        help="training images: half in CheXpert-Plus's train, half in ReXGradient's three splits",
    )
    sizes.add_argument(
        "--valid", type=int, default=200, metavar="N", help="images of CheXpert-Plus's valid, some of them lateral"
    )
    sizes.add_argument("--test", type=int, default=200, metavar="N", help="studies of CheXpert's test set")
    sizes.add_argument("--seed", type=int, default=1234, help="random seed; the same seed gives the same bytes")
    where = parser.add_argument_group("where and how")
    where.add_argument(
        "--out", required=True, metavar="DIR", help="folder for chexpert_plus/, chexpert/ and rexgradient/"
    )
    where.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")


def run(args: argparse.Namespace) -> None:
    """Run `python -m data_prep demo`."""
    if write_corpus(Path(args.out), args.train, args.valid, args.test, args.seed, workers=args.workers):
        print(
            f"Drawn, not real: {args.train} training images, {args.valid} validation images and {args.test} test "
            f"studies are in {args.out}; no number computed from them is a clinical result."
        )
    else:
        print(f"{args.out} holds this corpus already (drawn, not real); nothing to do.")


def write_corpus(out: Path, train: int, valid: int, test: int, seed: int, *, workers: int | None = None) -> bool:
    """Draw the corpus into `out`/{chexpert_plus,chexpert,rexgradient}; False if it is there already.

    train: images, `train - train // 2` in CheXpert-Plus's train, the rest in ReXGradient's train, valid and test
        (90, 5 and 5 %); valid: images of CheXpert-Plus's valid; test: studies of CheXpert's test set.
    Drawn in `out`/.unfinished, moved into place when complete. `UserError` where `out` holds other folders so named.
    """
    out = Path(out)
    settings = {"version": VERSION, "train": train, "valid": valid, "test": test, "seed": seed}
    if _is_there(out, settings):
        return False
    _check_sizes(settings)
    with hold(out):
        if _is_there(out, settings):  # another command has just drawn it
            return False
        try:
            if not _is_of(out / UNFINISHED, settings):
                _draw(out / UNFINISHED, settings, workers or _cores())
            _move_in(out)
        except OSError as error:
            raise UserError(
                f"cannot write the demo corpus to {out}: {error.strerror or error}; check the disk's space and "
                f"the folder's permissions, or give another --out"
            ) from error
    return True


def _draw(folder: Path, settings: dict[str, int], workers: int) -> None:
    """Draw everything into a new `folder`; the record of what was drawn comes last."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pictures = [*_write_chexpert(folder, settings), *_write_rexgradient(folder, settings)]
    _draw_all(pictures, workers)
    for release in RELEASES:
        write_text(folder / release / "DRAWN.txt", NOTICE)
    write_json(folder / WHOLE, {"drawn": True, **settings})


def _move_in(out: Path) -> None:
    """Move the drawn releases into place, then the record; a killed move is completed by the next call."""
    for release in RELEASES:
        if (out / UNFINISHED / release).exists():
            (out / UNFINISHED / release).rename(out / release)
    (out / UNFINISHED / WHOLE).replace(out / WHOLE)
    shutil.rmtree(out / UNFINISHED)


def _is_there(out: Path, settings: dict[str, int]) -> bool:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a folder; give another --out")
    there = [name for name in RELEASES if (out / name).exists()]
    same = _is_of(out, settings)
    if same and len(there) == len(RELEASES):
        return True
    if same is not None:
        raise UserError(
            f"{out} holds a demo corpus with other settings ({out / WHOLE}); remove the folder or give another --out"
        )
    if there and not _is_of(out / UNFINISHED, settings):  # else a kill interrupted the move, which goes on
        raise UserError(
            f"{out} holds {', '.join(there)} already, not (or not completely) drawn by this command; give another "
            f"--out, or remove what is left of an interrupted drawing"
        )
    return False


def _is_of(folder: Path, settings: dict[str, int]) -> bool | None:
    """Whether the record of what was drawn into `folder` has these settings; None without a record."""
    if not (folder / WHOLE).exists():
        return None
    found = read_json(folder / WHOLE, "remove the folder or give another --out")
    return isinstance(found, dict) and all(found.get(key) == value for key, value in settings.items())


def _check_sizes(settings: dict[str, int]) -> None:
    for name in ("train", "valid", "test"):
        if settings[name] < 1:
            raise UserError(f"--{name} is {settings[name]}, but at least 1 is needed; give a larger number")
    if settings["seed"] < 0:
        raise UserError(f"--seed is {settings['seed']}; give a whole number from 0 on")
    if settings["train"] > 2 * PATIENTS["plus_train"]:
        raise UserError(
            f"--train is {settings['train']}, but CheXpert's training numbers end at patient64540; give at most "
            f"{2 * PATIENTS['plus_train']}"
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _draw_all(pictures: list[Picture], workers: int) -> None:
    bar: dict[str, Any] = {"total": len(pictures), "desc": "drawing", "unit": " images", "mininterval": 1}
    if workers == 1 or len(pictures) < FEW or not processes_can_share():
        for picture in tqdm(pictures, **bar):
            draw_picture(picture)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker) as pool:
        for _ in tqdm(pool.map(draw_picture, pictures, chunksize=16), **bar):
            pass


def _begin_worker() -> None:
    """Set up a worker: one thread; the process keeps freed memory for its next picture.

    By default glibc returns every large array to the system and gets the next one page by page; keeping it lowered the
    system's share of processor time from a fifth to a twentieth.
    """
    cv2.setNumThreads(1)
    if os.name == "posix" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            libc.mallopt(option, 2**30)


def draw_picture(picture: Picture) -> None:
    """Draw one image and write it, JPEG or PNG by its path."""
    drawn = draw_view(picture.study, picture.projection, np.random.default_rng(picture.seed))
    pixels = to_uint8(drawn) if picture.bits == 8 else to_uint16(drawn, picture.bits)
    options = (
        [cv2.IMWRITE_JPEG_QUALITY, 92]
        if picture.path.endswith(".jpg")
        else [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    )
    os.makedirs(os.path.dirname(picture.path), exist_ok=True)
    if not cv2.imwrite(picture.path, pixels, options):
        raise OSError(f"{picture.path} could not be written")


def plan(part: str, count: int, seed: int) -> Iterator[Case]:
    """The studies of one part: exactly `count` images, or for the test set `count` studies, one per patient.

    The first studies of the evaluation parts go through the labels in turn, so that small sets have both classes.
    """
    evaluation = part in ("plus_valid", "chexpert_test")
    planned = 0
    for patient in itertools.count():
        rng = np.random.default_rng((seed, PARTS[part], patient))
        person, earlier = sample_patient(rng), None
        for number in range(_studies_of_a_patient(part, count, rng)):
            wanted = LABELS[patient % len(LABELS)] if evaluation and patient < 2 * len(LABELS) else None
            study = earlier = sample_study(rng, person, earlier, wanted)
            if part != "chexpert_test":
                study = replace(study, views=study.views[: count - planned])
            words = np.random.default_rng((seed, PARTS[part], patient, number, WORDS))
            yield Case(part, patient, number, study, write_report(words, study))
            planned += 1 if part == "chexpert_test" else len(study.views)
            if planned == count:
                return


def _studies_of_a_patient(part: str, count: int, rng: np.random.Generator) -> int:
    if part == "chexpert_test":
        return 1
    if part == "plus_valid":
        return -(-count // PATIENTS[part])
    return min(int(rng.geometric(0.55)), 6)


def _picture(case: Case, view: int, seed: int, path: Path, bits: int = 8) -> Picture:
    return Picture(
        str(path), (seed, PARTS[case.part], case.patient, case.number, view), case.study, case.study.views[view], bits
    )


# CheXpert-Plus (training and validation images, reports) and CheXpert (validation labels, test images and labels)


def _write_chexpert(root: Path, settings: dict[str, int]) -> list[Picture]:
    train, seed = settings["train"], settings["seed"]
    plus, chexpert = root / "chexpert_plus", root / "chexpert"
    plus.mkdir()
    chexpert.mkdir()
    pictures, rows, valid, truth = [], [], [], []
    for case in itertools.chain(
        plan("plus_train", train - train // 2, seed), plan("plus_valid", settings["valid"], seed)
    ):
        split = case.part.removeprefix("plus_")
        for view, projection in enumerate(case.study.views):
            name = f"{split}/{_study_folder(case)}/view{view + 1}_{_plane(projection).lower()}"
            rows.append(_plus_row(case, projection, name, split))
            pictures.append(_picture(case, view, seed, plus / "PNG" / f"{name}.png"))
            if split == "valid":
                valid.append(
                    {
                        "Path": f"CheXpert-v1.0/{name}.jpg",
                        "Sex": case.study.patient.sex,
                        "Age": case.study.patient.age,
                        "Frontal/Lateral": _plane(projection),
                        "AP/PA": "" if projection == "LATERAL" else projection,
                    }
                    | {label: float(case.study.labels[label]) for label in CHEXPERT_LABELS}
                )
    for case in plan("chexpert_test", settings["test"], seed):
        folder = f"test/{_study_folder(case)}"
        truth.append(
            {"Study": f"CheXpert-v1.0/{folder}"} | {label: case.study.labels[label] for label in CHEXPERT_LABELS}
        )
        pictures += [
            _picture(case, view, seed, chexpert / folder / f"view{view + 1}_{_plane(projection).lower()}.jpg")
            for view, projection in enumerate(case.study.views)
        ]
    pd.DataFrame(rows, columns=PLUS_COLUMNS).to_csv(plus / "df_chexpert_plus_240401.csv", index=False)
    pd.DataFrame(valid).to_csv(chexpert / "valid.csv", index=False)
    pd.DataFrame(truth).to_csv(chexpert / "groundtruth.csv", index=False)
    return pictures


def _study_folder(case: Case) -> str:
    return f"patient{FIRST_PATIENT[case.part] + case.patient:05d}/study{case.number + 1}"


def _plane(projection: str) -> str:
    return "Lateral" if projection == "LATERAL" else "Frontal"


def _plus_row(case: Case, projection: str, name: str, split: str) -> dict[str, object]:
    report, patient = case.report, case.study.patient
    sections = {
        "NARRATIVE": "Radiograph of the chest.",
        "CLINICAL HISTORY": report.indication,
        "COMPARISON": report.comparison,
        "TECHNIQUE": report.technique,
        "FINDINGS": report.findings,
        "IMPRESSION": report.impression,
    }
    return {
        "path_to_image": f"{name}.jpg",
        "path_to_dcm": f"{name}.dcm",
        "frontal_lateral": _plane(projection),
        "ap_pa": "" if projection == "LATERAL" else projection,
        "deid_patient_id": name.split("/")[1],
        "patient_report_date_order": case.number + 1,
        "report": "\n".join(f"{heading}: {text}" for heading, text in sections.items() if text),
        **{f"section_{heading.lower().replace(' ', '_')}": text for heading, text in sections.items()},
        "age": float(patient.age),
        "sex": patient.sex,
        "race": patient.race,
        "ethnicity": "Unknown",
        "interpreter_needed": "No",
        "insurance_type": "Unknown",
        "deceased": "Unknown",
        "split": split,
    }


# ReXGradient


def _write_rexgradient(root: Path, settings: dict[str, int]) -> list[Picture]:
    images, seed = settings["train"] // 2, settings["seed"]
    release = root / "rexgradient"
    (release / "metadata").mkdir(parents=True)
    few = images // 20
    pictures = []
    for split, count in {"train": images - 2 * few, "valid": few, "test": few}.items():
        studies = {}
        for case in plan(f"rex_{split}", count, seed) if count else ():
            key, study, paths = _rex_study(case, seed)
            studies[key] = study
            bits = (
                12 if int(study["PatientID"][-1], 36) % 2 else 16
            )  # as released, some files leave the top bits unused
            pictures += [_picture(case, view, seed, release / path, bits) for view, path in enumerate(paths)]
        write_json(release / "metadata" / f"{split}_metadata_view_position.json", studies)
        columns = [name for name in REX_COLUMNS if not name.startswith("Image")]
        table = pd.DataFrame([{"id": key, **study} for key, study in studies.items()], columns=["id", *columns])
        table.to_csv(release / "metadata" / f"{split}_metadata.csv", index=False)
    return pictures


def _rex_study(case: Case, seed: int) -> tuple[str, dict[str, Any], list[str]]:
    """A study's key, its metadata, and its images' paths under the release's root."""
    own = np.random.default_rng((seed, PARTS[case.part], case.patient, 1))
    patient_id = "GRDN" + "".join(own.choice(list("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"), 12))
    site = f"SITE{int(own.integers(1, 19)):02d}"
    rng = np.random.default_rng((seed, PARTS[case.part], case.patient, 2, case.number))
    accession = "GRDN" + "".join(rng.choice(list("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"), 12))
    uid = f"1.2.826.0.1.{case.patient + 1}.{int(rng.integers(10**8, 10**9))}"
    folder = f"deid_png/{patient_id}/{accession}/studies/{uid}/series"
    paths = [f"{folder}/{uid}.{view}/instances/{uid}.{view}.1.png" for view in range(len(case.study.views))]
    positions = [POSITIONS[view][int(rng.integers(len(POSITIONS[view])))] for view in case.study.views]
    patient, report = case.study.patient, case.report
    values = [
        patient_id,
        accession,
        uid,
        f"20{int(rng.integers(10, 21))}0101",
        patient.sex[0],
        f"{patient.age:03d}Y",
        None,
        site,
        "Drawn",
        report.indication,
        report.comparison,
        report.findings or None,
        report.impression or None,
        positions,
        [f"../{path}" for path in paths],
    ]
    return f"p{patient_id}_a{accession}_s{uid}", dict(zip(REX_COLUMNS, values, strict=True)), paths
