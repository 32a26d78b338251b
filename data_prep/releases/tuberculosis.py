"""The tuberculosis sets of Montgomery County and of Shenzhen."""

import argparse
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from data_prep.releases.locate import Folder, Place, find_places, release_root
from data_prep.releases.release import SHARES, Release, split_of
from data_prep.releases.rows import BadRecord, Row

SEXES = {"M": "Male", "F": "Female"}


@dataclass
class _TuberculosisSet(Release):
    """A folder of images whose names end in 0 (normal) or 1 (tuberculosis), with a text file of readings each."""

    splits = tuple(SHARES)
    labels = ("Tuberculosis",)
    has_reports = True
    evaluation_splits = tuple(SHARES)
    prefix: ClassVar[str]

    @classmethod
    def locate(
        cls, args: argparse.Namespace, splits: Collection[str], labelled: Collection[str], found: dict[str, Release]
    ) -> Self:
        def place(folder: Folder) -> list[Place]:
            there = folder.path.name == "CXR_png" or any(name.startswith(cls.prefix) for name in folder.files)
            pictures = any(re.fullmatch(rf"{cls.prefix}_\d+_[01]\.(png|jpg)", name) for name in folder.files)
            return [Place(folder.path)] * (there and pictures and "mask" not in folder.path.name.lower())

        what = f"{cls.name}'s images ({cls.prefix}_0001_0.png)"
        return cls({}, find_places([release_root(args, cls.name)], place, what, f"--{cls.name}")[:1])

    def records(self, split: str) -> Iterator[tuple[str, Path]]:
        folder = self.images[0].root
        for path in sorted(folder.iterdir()):
            is_image = path.name.startswith(self.prefix) and path.suffix.lower() in (".png", ".jpg")
            if is_image and split_of(path.stem) == split:
                yield str(path), path

    def read(self, entry: Path, split: str, where: str) -> Iterable[Row]:
        if not re.fullmatch(rf"{self.prefix}_\d+_[01]", entry.stem):
            raise BadRecord(f"{where}: the name does not end in _0 or _1, so it has no label")
        sex, age, reading = _readings(entry)
        name = f"{self.name}/{entry.stem}"
        yield Row(
            id=name,
            source=self.name,
            split=split,
            patient_id=name,
            patient_id_column=name,
            study_id=name,
            view="frontal",
            path=entry.name,
            ap_pa="PA",
            sex=sex,
            age=age,
            findings=reading,
            impression=reading,
            labels=entry.stem[-1],
        )


def _readings(image: Path) -> tuple[str, str, str]:
    """Sex, age in years, and the reading, from `ClinicalReadings/<name>.txt`; each "" where it is missing."""
    try:
        text = (image.parents[1] / "ClinicalReadings" / f"{image.stem}.txt").read_text("utf-8", errors="replace")
    except OSError:
        return "", "", ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    sex = re.search(r"\b(F|M|female|male)\b", text, re.IGNORECASE)
    age = re.search(r"0*(\d+)\s*(?:Y|yrs?|years?)\b", text, re.IGNORECASE)
    about = [line for line in lines if re.search(r"Patient's|\d+\s*yrs?\b", line, re.IGNORECASE)]
    reading = " ".join(line for line in lines if line not in about)
    return SEXES.get(sex[0][0].upper(), "") if sex else "", age[1] if age else "", reading


@dataclass
class Montgomery(_TuberculosisSet):
    """Montgomery County's tuberculosis set: frontal radiographs of a screening programme (Jaeger et al. 2014).

    From: the National Library of Medicine (`MontgomerySet/CXR_png`), open. Counts: 138 images, 58 with tuberculosis.
    Labels: the last digit of the name. Splits: 70, 10 and 20 percent of the images by a hash of the name; all of
    them are the evaluation set. Cite: Jaeger et al., Quantitative Imaging in Medicine and Surgery 2014.
    """

    name = "montgomery"
    prefix = "MCUCXR"


@dataclass
class Shenzhen(_TuberculosisSet):
    """Shenzhen's tuberculosis set: frontal radiographs of Shenzhen No. 3 People's Hospital (Jaeger et al. 2014).

    From: the National Library of Medicine (`ChinaSet_AllFiles/CXR_png`), open. Counts: 662 images, 336 with tuberculosis.
    Labels: the last digit of the name. Splits: 70, 10 and 20 percent of the images by a hash of the name; all of
    them are the evaluation set. Cite: Jaeger et al., Quantitative Imaging in Medicine and Surgery 2014.
    """

    name = "shenzhen"
    prefix = "CHNCXR"
