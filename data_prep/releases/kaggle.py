"""RSNA's pneumonia and SIIM-ACR's pneumothorax challenge, from Kaggle: NIH ChestX-ray14's images with new labels."""

import argparse
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from data_prep.releases.locate import SUFFIXES, Place, find_file, has_columns, not_found, release_root, split_ending
from data_prep.releases.release import Release
from data_prep.releases.rows import BadRecord, Row, read_records


@dataclass
class _Challenge(Release):
    """A table with one row per box or mask, so several per image, and one finding.

    Splits: the images sorted by id, 70 percent for training, and half of the rest each for test and validation, by
    scikit-learn's `train_test_split(random_state=0)` twice, as GLoRIA, MGCA and CXR-CLIP split RSNA.
    """

    splits = ("train", "valid", "test")
    patterns: ClassVar[list[str]]
    id_column: ClassVar[str]
    value_column: ClassVar[str]
    negative: ClassVar[str]

    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def locate(
        cls, args: argparse.Namespace, splits: Collection[str], labelled: Collection[str], found: dict[str, Release]
    ) -> Self:
        root = release_root(args, cls.name)
        flag = f"--{cls.name}"
        accept = has_columns([cls.id_column, cls.value_column])
        table = find_file(root, cls.patterns, f"the table of {cls.name}", flag, accept)
        files = image_files(root)
        if not files:
            raise not_found(f"the images of {cls.name} are", [root], flag)
        return cls({"": table}, [Place(root)], files)

    def records(self, split: str) -> Iterator[tuple[str, tuple[str, bool]]]:
        from sklearn.model_selection import train_test_split  # takes a second to import

        positive: dict[str, bool] = {}
        columns = [self.id_column, self.value_column]
        for _, record in read_records(self.tables[""], columns, f"name the release's folder with --{self.name}"):
            image = record[self.id_column].strip()
            there = record[self.value_column].strip() not in (self.negative, "")
            positive[image] = positive.get(image, False) or there
        names = sorted(positive)
        if len(names) < 10:  # too few to split
            parts = {"train": [], "valid": [], "test": names}
        else:
            train, rest = train_test_split(names, test_size=0.3, random_state=0)
            test, valid = train_test_split(rest, test_size=0.5, random_state=0)
            parts = {"train": train, "valid": valid, "test": test}
        for name in parts[split]:
            yield f"{self.tables['']}, {name}", (name, positive[name])

    def read(self, entry: tuple[str, bool], split: str, where: str) -> Iterable[Row]:
        image, positive = entry
        if not re.fullmatch(r"[\w.-]+", image):
            raise BadRecord(f"{where}: {self.id_column} is {image!r}, not a file name; correct the row")
        name = f"{self.name}/{image}"
        path = self.files.get(image, f"{image}.dcm")
        yield Row(name, self.name, split, name, name, name, "frontal", path, labels="01"[positive])


@dataclass
class Rsna(_Challenge):
    """RSNA pneumonia detection challenge: images of ChestX-ray14 with lung opacities marked (Shih et al. 2019).

    From: Kaggle (`stage_2_train_images`, `stage_2_train_labels.csv`). Licence: Kaggle's rules of the competition,
    non-commercial. Counts: 26,684 images, one per patient, 6,012 positive; DICOM, 1024 x 1024. Labels: `Target`.
    Splits of 18,678, 4,003 and 4,003 images; another list in use has 5,337 test images (`--only FILE`).
    A model trained on ChestX-ray14 has seen these images. Cite: Shih et al. 2019; Wang et al. 2017.
    """

    name = "rsna"
    labels = ("Pneumonia",)
    counts = {"train": 18_678, "valid": 4_003, "test": 4_003}
    patterns = ["stage_2_train_labels.csv"]
    id_column, value_column, negative = "patientId", "Target", "0"


@dataclass
class Siim(_Challenge):
    """SIIM-ACR pneumothorax segmentation challenge: images of ChestX-ray14 with pneumothorax outlined (2019).

    From: Kaggle. Licence: Kaggle's rules of the competition, non-commercial. Counts: 12,047 images, 2,669 positive.
    Labels: positive where there is a mask. The table's header and values may begin with a blank (` EncodedPixels`, ` -1`).
    GLoRIA splits rows, so that an image with two masks can be in train and test; here images are split.
    A model trained on ChestX-ray14 has seen these images.
    Cite: SIIM-ACR Pneumothorax Segmentation Challenge, Kaggle 2019.
    """

    name = "siim"
    labels = ("Pneumothorax",)
    patterns = ["train-rle.csv", "stage_2_train.csv", "*.csv"]
    id_column, value_column, negative = "ImageId", "EncodedPixels", "-1"


def image_files(root: Path) -> dict[str, str]:
    """The image files anywhere under a folder, by their name without ending; hidden ones left out."""
    found = {}
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            stem, suffix = split_ending(name)
            if suffix in SUFFIXES and not name.startswith("."):
                found[stem] = os.path.relpath(os.path.join(folder, name), root)
    return found
