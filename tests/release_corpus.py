"""A few noisy pictures in the releases' layouts, small enough to build from in seconds."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from chexzero.common.labels import LABELS
from data_prep.__main__ import main

PLUS_TRAIN, PLUS_VALID, TEST = 14, 4, 3
REX = {"train": 4, "valid": 2, "test": 1}
QUICK_AUDIT = ["--audit_copies", "5", "--audit_unrelated", "5"]
PLUS_COLUMNS = [
    "path_to_image",
    "frontal_lateral",
    "ap_pa",
    "deid_patient_id",
    "report",
    "section_findings",
    "section_impression",
    "age",
    "sex",
    "race",
    "split",
]


@dataclass
class Corpus:
    """The folders of the three releases."""

    root: Path

    @property
    def plus(self) -> Path:
        return self.root / "chexpert_plus"

    @property
    def plus_csv(self) -> Path:
        return self.plus / "df_chexpert_plus_240401.csv"

    @property
    def chexpert(self) -> Path:
        return self.root / "chexpert"

    @property
    def rex(self) -> Path:
        return self.root / "rexgradient"

    def rex_json(self, split: str) -> Path:
        return self.rex / "metadata" / f"{split}_metadata_view_position.json"

    def edit_plus(self, edit) -> None:
        """Pass CheXpert-Plus's table through `edit` (which may return another one)."""
        table = pd.read_csv(self.plus_csv, dtype=str, keep_default_na=False)
        changed = edit(table)
        (table if changed is None else changed).to_csv(self.plus_csv, index=False)

    def edit_rex(self, edit, split: str = "train") -> None:
        """Pass the first study of a ReXGradient split to `edit`."""
        studies = json.loads(self.rex_json(split).read_text())
        edit(next(iter(studies.values())))
        self.rex_json(split).write_text(json.dumps(studies))

    def flags(self, *more: str) -> list[str]:
        return [
            "--chexpert_plus",
            str(self.plus),
            "--chexpert",
            str(self.chexpert),
            "--rexgradient",
            str(self.rex),
            *more,
        ]

    def build(self, out: Path, *more: str) -> None:
        """Run the whole command in this process."""
        main(["build", *self.flags("--out", str(out), "--workers", "1", *QUICK_AUDIT, *more)])


def picture(rng: np.random.Generator, height: int = 90, width: int = 70) -> np.ndarray:
    """A smooth random field with some noise, uint8, different for every seed."""
    coarse = rng.integers(0, 256, (9, 7), dtype=np.uint8)
    return cv2.add(
        cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC),
        rng.integers(0, 20, (height, width), dtype=np.uint8),
    )


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def write_releases(root: Path, times: int = 1) -> Corpus:
    """Write the three releases under `root`, the training parts `times` as large."""
    rng = np.random.default_rng(5)
    corpus = Corpus(root)
    _write_plus(corpus, rng, times)
    _write_chexpert(corpus, rng)
    for split, studies in REX.items():
        _write_rex(corpus, rng, split, studies * times)
    return corpus


def _write_plus(corpus: Corpus, rng: np.random.Generator, times: int) -> None:
    rows = []
    names = [
        ("train", 1 + i // 2, 1 + i % 2, "lateral" if i % 5 == 4 else "frontal") for i in range(PLUS_TRAIN * times)
    ]
    names += [("valid", 64541 + i, 1, "lateral" if i == 3 else "frontal") for i in range(PLUS_VALID)]
    for split, patient, study, view in names:
        patient = f"patient{patient:05d}"
        key = f"{split}/{patient}/study{study}/view1_{view}"
        save(corpus.plus / "PNG" / f"{key}.png", picture(rng))
        rows.append(
            [
                f"{key}.jpg",
                view.capitalize(),
                "AP",
                patient,
                "the whole report",
                f"Findings of {key}.",
                "" if len(rows) == 2 else f"1.  Impression,\n\nof {key}.",
                "60",
                "Female",
                "Unknown",
                split,
            ]
        )
    pd.DataFrame(rows, columns=PLUS_COLUMNS).to_csv(corpus.plus_csv, index=False)


def _write_chexpert(corpus: Corpus, rng: np.random.Generator) -> None:
    turned = LABELS[::-1]  # the two tables have their columns in different orders
    plus = pd.read_csv(corpus.plus_csv, dtype=str)
    valid = plus[plus["split"] == "valid"]
    table = pd.DataFrame(
        {
            "Path": "CheXpert-v1.0/" + valid["path_to_image"],
            "Sex": "Female",
            "Age": "60",
            "Frontal/Lateral": "Frontal",
            "AP/PA": "AP",
        }
    )
    for j, label in enumerate(LABELS):
        table[label] = [float((i + j) % 2) for i in range(len(table))]
    corpus.chexpert.mkdir(parents=True, exist_ok=True)
    table.to_csv(corpus.chexpert / "valid.csv", index=False)
    studies = []
    for i in range(TEST):
        study = f"test/patient{64741 + i}/study1"
        for view in ("view1_lateral", "view2_frontal", "view10_frontal") if i == 0 else ("view1_frontal",):
            save(corpus.chexpert / study / f"{view}.jpg", picture(rng))
        studies.append({"Study": f"CheXpert-v1.0/{study}"} | {label: (i + j) % 2 for j, label in enumerate(turned)})
    pd.DataFrame(studies).to_csv(corpus.chexpert / "groundtruth.csv", index=False)


def _write_rex(corpus: Corpus, rng: np.random.Generator, split: str, count: int) -> None:
    studies = {}
    for i in range(count):
        patient, accession, uid = f"G{split}{i}", f"A{split}{i}", f"1.2.{i}"
        names = [f"{uid}.{n}" for n in range(1 + i % 2)]
        for name in names:
            image = picture(rng, 60, 80).astype(np.uint16) * (16 if i % 2 else 257)  # every second image uses 12 bits
            save(corpus.rex / "deid_png" / patient / accession / "studies" / uid / f"{name}.png", image)
        studies[f"p{patient}_a{accession}_s{uid}"] = {
            "PatientID": patient,
            "AccessionNumber": accession,
            "StudyInstanceUid": uid,
            "StudyDate": "20200101",
            "PatientSex": "F",
            "PatientAge": "045Y",
            "EthnicGroup": None,
            "InstitutionName": "SITE01",
            "Manufacturer": "Unknown",
            "Indication": "Cough.",
            "Comparison": None,
            "Findings": f"Findings of {split} {i}.",
            "Impression": f"Impression of {split} {i}: ü.",
            "ImageViewPosition": ["PA", "LATERAL"][: len(names)],
            "ImagePath": [f"../deid_png/{patient}/{accession}/studies/{uid}/{name}.png" for name in names],
        }
    corpus.rex_json(split).parent.mkdir(parents=True, exist_ok=True)
    corpus.rex_json(split).write_text(json.dumps(studies, indent=1))


def copy_releases(corpus: Corpus, target: Path) -> Corpus:
    """Copy the releases, so that a test may damage them."""
    shutil.copytree(corpus.root, target)
    return Corpus(target)
