"""VinDr-CXR."""

import argparse
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from data_prep.releases.locate import Folder, Place, find_file, find_places, release_root
from data_prep.releases.release import Release, bits
from data_prep.releases.rows import BadRecord, Row, read_records

REMEDY = "name VinDr-CXR's folder with --vindr"
OTHER = ("Other disease", "Other diseases")  # the test table's spelling, and the training table's


@dataclass
class Vindr(Release):
    """VinDr-CXR: radiographs of two hospitals in Hanoi, read by radiologists (Nguyen et al. 2022).

    From: PhysioNet, `vindr-cxr` 1.0.0. Licence: PhysioNet's credentialed health data licence. Counts: 15,000 training and
    3,000 test images, DICOM, one per patient as far as is known. Labels: 28; for a training image those of any of its
    three readers, for a test image the consensus of five. No reports. Only MONOCHROME1 files are inverted.
    Cite: Nguyen et al., Scientific Data 2022.
    """

    name = "vindr"
    splits = ("train", "test")
    counts = {"train": 15_000, "test": 3_000}
    labels = (
        "Aortic enlargement",
        "Atelectasis",
        "Calcification",
        "Cardiomegaly",
        "Clavicle fracture",
        "Consolidation",
        "Edema",
        "Emphysema",
        "Enlarged PA",
        "ILD",
        "Infiltration",
        "Lung Opacity",
        "Lung cavity",
        "Lung cyst",
        "Mediastinal shift",
        "Nodule/Mass",
        "Pleural effusion",
        "Pleural thickening",
        "Pneumothorax",
        "Pulmonary fibrosis",
        "Rib fracture",
        "Other lesion",
        "COPD",
        "Lung tumor",
        "Pneumonia",
        "Tuberculosis",
        "Other disease",
        "No finding",
    )
    chexpert_labels = {
        "Clavicle fracture": "Fracture",
        "Rib fracture": "Fracture",
        "Nodule/Mass": "Lung Lesion",
        "Pleural effusion": "Pleural Effusion",
        "Pleural thickening": "Pleural Other",
        "No finding": "No Finding",
    }

    @classmethod
    def locate(
        cls, args: argparse.Namespace, splits: Collection[str], labelled: Collection[str], found: dict[str, Release]
    ) -> Self:
        root = release_root(args, cls.name)
        tables = {
            split: find_file(root, [f"image_labels_{split}.csv"], f"VinDr-CXR's {split} labels", "--vindr")
            for split in splits
        }
        images = find_places(
            [root], _image_places, "VinDr-CXR's images (train/ and test/ with .dicom files)", "--vindr"
        )
        return cls(tables, images)

    def records(self, split: str) -> Iterator[tuple[str, tuple[str, str]]]:
        """The images, each with the merged labels of all its readers."""
        path = self.tables[split]
        names = [name for name in self.labels if name not in OTHER]
        merged: dict[str, str] = {}
        for _, record in read_records(path, ["image_id", *names], REMEDY, optional=OTHER):
            record[OTHER[0]] = record.get(OTHER[0], record.get(OTHER[1], ""))
            one = bits(record[name] for name in self.labels)
            others = merged.get(record["image_id"], one)
            merged[record["image_id"]] = "".join(map(max, one, others))  # "-" < "0" < "1"
        for image, labels in merged.items():
            yield f"{path}, {image}", (image, labels)

    def read(self, entry: tuple[str, str], split: str, where: str) -> Iterable[Row]:
        image, labels = entry
        if not re.fullmatch(r"[\w-]+", image):
            raise BadRecord(f"{where}: image_id is {image!r}, not a file name; correct the row")
        name = f"vindr/{image}"
        path = f"{split}/{image}.dicom"
        yield Row(name, self.name, split, name, name, name, "frontal", path, ap_pa="PA", labels=labels)


def _image_places(folder: Folder) -> list[Place]:
    flat = any(re.fullmatch(r"[0-9a-f]{32}\.\w+", name) for name in folder.files)
    return [Place(folder.path)] * bool({"train", "test"} & set(folder.folders)) + [Place(folder.path, flat=True)] * flat
