"""Planning at full size: tables of CheXpert-Plus and ReXGradient with made-up rows, and an empty file per image.

    python -m benchmarks.plan --rows 500000

Prints the rows planned, the seconds and the peak memory of `python -m data_prep build` until its plan is written. Each
empty file takes an inode; they are in a temporary folder and are removed.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.memory import peak
from benchmarks.preprocess import machine
from chexzero.common.labels import LABELS
from data_prep import build
from data_prep.releases.chexpert_plus import COLUMNS
from data_prep.steps.plan import describe, make_plan
from data_prep.steps.work import Work

TEXT = "The cardiac silhouette is within normal limits. There is no focal consolidation, effusion or pneumothorax. "
SHARE = 0.45  # of the rows are CheXpert-Plus's


def write_chexpert_plus(root: Path, rows: int) -> None:
    """Write the table and empty files of this many training images, two per study, and of one validation image."""
    (root / "PNG").mkdir(parents=True)
    with open(root / "df_chexpert_plus_240401.csv", "w", newline="") as handle:
        table = csv.DictWriter(handle, COLUMNS, restval="")
        table.writeheader()
        for i in range(rows + 1):
            split, patient = ("train", i // 4) if i < rows else ("valid", 64541)
            key = f"{split}/patient{patient:05d}/study{i // 2 % 2 + 1}/view{i % 2 + 1}_frontal"
            touch(root / "PNG" / f"{key}.png")
            table.writerow(
                {
                    "path_to_image": f"{key}.jpg",
                    "frontal_lateral": "Frontal",
                    "deid_patient_id": f"patient{patient:05d}",
                    "section_impression": f"{i}. {TEXT}",
                    "section_findings": 2 * TEXT,
                    "split": split,
                }
            )


def write_chexpert(root: Path) -> None:
    """Write the labels of the validation image, and one test study."""
    touch(root / "test/patient64741/study1/view1_frontal.jpg")
    labels = ",".join(LABELS)
    zeros = ",".join("0" * len(LABELS))
    name = next((root.parent / "chexpert_plus/PNG/valid").rglob("*.png"))
    path = name.relative_to(root.parent / "chexpert_plus/PNG").with_suffix(".jpg")
    (root / "valid.csv").write_text(f"Path,{labels}\n{path},{zeros}\n")
    (root / "groundtruth.csv").write_text(f"Study,{labels}\nCheXpert-v1.0/test/patient64741/study1,{zeros}\n")


def write_rexgradient(root: Path, rows: int) -> None:
    """Write the three JSON files and empty files of this many images, two per study."""
    (root / "metadata").mkdir(parents=True)
    for split, share in (("train", 0.88), ("valid", 0.06), ("test", 0.06)):
        studies = {}
        for i in range(int(rows * share / 2)):
            patient, accession = f"G{split}{i // 2}", f"A{split}{i}"
            names = [f"1.2.826.0.1.{i}.{k}" for k in (1, 2)]
            for name in names:
                touch(root / f"deid_png/{patient}/{accession}/studies/{i}/{name}.png")
            studies[f"p{patient}_a{accession}_s{i}"] = {
                "PatientID": patient,
                "AccessionNumber": accession,
                "PatientSex": "F",
                "PatientAge": "045Y",
                "Findings": 2 * TEXT,
                "Impression": f"{i}. {TEXT}",
                "ImageViewPosition": ["PA", "LATERAL"],
                "ImagePath": [f"../deid_png/{patient}/{accession}/studies/{i}/{name}.png" for name in names],
            }
        (root / f"metadata/{split}_metadata_view_position.json").write_text(json.dumps(studies))


def touch(path: Path) -> None:
    try:
        path.touch()
    except FileNotFoundError:
        path.parent.mkdir(parents=True)
        path.touch()


def plan(root: Path) -> dict[str, float]:
    """Plan a build of the drawn releases in this process: rows, seconds, and the peak of memory in MiB."""
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    args = parser.parse_args(["--data_root", str(root), "--out", str(root / "out")])
    args.splits = root / "splits"
    work = Work(args.out)
    work.folder.mkdir(parents=True)
    began = time.monotonic()
    rows = make_plan(args, *describe(args), work).rows
    seconds = time.monotonic() - began
    return {
        "rows": sum(rows.values()),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "peak_MiB": round(peak()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--planned", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.planned:
        print(json.dumps(plan(Path(args.planned))))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ours = int(args.rows * SHARE)
        write_chexpert_plus(root / "chexpert_plus", ours)
        write_chexpert(root / "chexpert")
        write_rexgradient(root / "rexgradient", args.rows - ours)
        command = [sys.executable, "-m", "benchmarks.plan", "--planned", folder]  # a new process, for its own peak
        result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(json.dumps({"machine": machine()} | result, indent=1))


if __name__ == "__main__":
    main()
