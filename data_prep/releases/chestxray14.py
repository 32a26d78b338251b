"""NIH ChestX-ray14."""

import argparse
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from data_prep.releases.locate import Folder, Place, find_file, find_places, release_root
from data_prep.releases.release import Release
from data_prep.releases.rows import BadRecord, Row, checked_path, read_records

REMEDY = "name NIH's own table's folder with --chestxray14"
COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")
LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
NO_FINDING = "No Finding"
SEXES = {"M": "Male", "F": "Female"}


@dataclass
class Chestxray14(Release):
    """NIH ChestX-ray14: frontal radiographs of the NIH Clinical Center with 14 labels (Wang et al. 2017).

    From: NIH (Box), Kaggle, Hugging Face; no agreement, NIH asks for citation. Counts: 112,120 images of 30,805 patients,
    1024 x 1024; 86,524 in `train_val_list.txt`, 25,596 in `test_list.txt`. Another list, of 22,433 test images, is also
    in use: state which was scored (`--only FILE` takes a list of images).
    Labels: a program's from the reports, 1 or 0. No reports. RSNA's and SIIM's images come from here.
    Cite: Wang et al., CVPR 2017.
    """

    name = "chestxray14"
    splits = ("train_val", "test")
    labels = (
        "Atelectasis",
        "Cardiomegaly",
        "Consolidation",
        "Edema",
        "Effusion",
        "Emphysema",
        "Fibrosis",
        "Hernia",
        "Infiltration",
        "Mass",
        "Nodule",
        "Pleural_Thickening",
        "Pneumonia",
        "Pneumothorax",
        NO_FINDING,
    )
    chexpert_labels = {
        "Effusion": "Pleural Effusion",
        "Mass": "Lung Lesion",
        "Nodule": "Lung Lesion",
        "Pleural_Thickening": "Pleural Other",
    }
    counts = {"train_val": 86_524, "test": 25_596}

    @classmethod
    def locate(
        cls, args: argparse.Namespace, splits: Collection[str], labelled: Collection[str], found: dict[str, Release]
    ) -> Self:
        root = release_root(args, cls.name)
        names = ["Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"]
        tables = {"": find_file(root, names, "ChestX-ray14's table", "--chestxray14")}
        for split in splits:
            what = f"ChestX-ray14's {split} split"
            tables[split] = find_file(root, [LISTS[split]], what, "--chestxray14")
        images = find_places([root], _image_places, "ChestX-ray14's images (images_001/images/*.png)", "--chestxray14")
        return cls(tables, images)

    def records(self, split: str) -> Iterator[tuple[str, dict[str, str]]]:
        listed = set(self.tables[split].read_text(encoding="utf-8-sig").split())  # the last line may have no line end
        for number, record in read_records(self.tables[""], COLUMNS, REMEDY):
            if record["Image Index"] in listed:
                yield f"{self.tables['']}, row {number}", record

    def read(self, entry: dict[str, str], split: str, where: str) -> Iterable[Row]:
        image = checked_path(entry["Image Index"], f"{where}: Image Index")
        present = set(entry["Finding Labels"].split("|"))
        if odd := present - set(self.labels):
            raise BadRecord(f"{where}: Finding Labels has {sorted(odd)[0]!r}, which is not one of the labels")
        patient = f"chestxray14/{entry['Patient ID'].strip()}"
        yield Row(
            id=f"chestxray14/{image.stem}",
            source=self.name,
            split=split,
            patient_id=f"chestxray14/{int(image.stem[:8])}" if image.stem[:8].isdigit() else patient,
            patient_id_column=patient,
            study_id=f"chestxray14/{image.stem}",
            view="frontal",
            path=f"{image.stem[:5]}/{image}",
            ap_pa=entry["View Position"],
            sex=SEXES.get(entry["Patient Gender"], ""),
            age=re.sub(r"^0*(\d+)Y?$", r"\1", entry["Patient Age"]),
            labels="".join("01"[name in present] for name in self.labels),
        )


def _image_places(folder: Folder) -> list[Place]:
    """Folders that hold images directly, and the folder that holds folders named by an image's first five digits."""
    flat = any(re.fullmatch(r"\d{8}_\d{3}\.\w+", name) for name in folder.files)
    prefixed = any(re.fullmatch(r"\d{5}", name) for name in folder.folders)
    return [Place(folder.path)] * prefixed + [Place(folder.path, flat=True)] * flat
