"""PadChest, the radiographs of the Hospital San Juan."""

import argparse
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

from chexzero.preprocess_padchest import read_list
from data_prep.releases.locate import Folder, Place, find_file, find_places, has_columns, release_root
from data_prep.releases.release import Release
from data_prep.releases.rows import BadRecord, Row, checked_path, read_records

REMEDY = "name PadChest's folder with --padchest"
COLUMNS = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "MethodLabel", "Labels")
OPTIONAL = ("Report", "PatientBirth", "PatientSex_DICOM", "StudyDate_DICOM")
METHODS = {"physician": "Physician", "rnn": "RNN_model"}
VIEWS = {"PA": "frontal", "AP": "frontal", "AP_horizontal": "frontal", "L": "lateral"}
SEXES = {"M": "Male", "F": "Female"}


@dataclass
class Padchest(Release):
    """PadChest: radiographs of the Hospital San Juan, Spain, with Spanish reports (Bustos et al. 2020).

    From: BIMCV, by a form. Licence: research only, no redistribution. Counts: 160,868 images, 109,931 studies, 67,000
    patients; the labels of 39,053 images are physicians' (split `physician`), the others a network's (split `rnn`).
    Labels: the radiographic findings and diagnoses of a report, by whole names: 1 if in its list, else 0. An image
    whose list cannot be read has no labels. Ids have up to 39 digits and are text. 16-bit PNG, each scaled by its own
    range; `PhotometricInterpretation_DICOM` is often wrong and is ignored here.
    Cite: Bustos et al., Medical Image Analysis 2020.
    """

    name = "padchest"
    splits = tuple(METHODS)
    counts = {"physician": 39_053}
    has_reports = True
    evaluation_splits = ("physician",)
    chexpert_labels = {
        "atelectasis": "Atelectasis",
        "cardiomegaly": "Cardiomegaly",
        "consolidation": "Consolidation",
        "pulmonary edema": "Edema",
        "fracture": "Fracture",
        "nodule": "Lung Lesion",
        "pulmonary mass": "Lung Lesion",
        "normal": "No Finding",
        "pleural effusion": "Pleural Effusion",
        "pleural thickening": "Pleural Other",
        "pneumonia": "Pneumonia",
        "pneumothorax": "Pneumothorax",
    }
    labels = tuple(chexpert_labels)  # until the table is read; then every name that it has

    vocabulary: tuple[str, ...] = field(default=())

    @classmethod
    def locate(
        cls, args: argparse.Namespace, splits: Collection[str], labelled: Collection[str], found: dict[str, Release]
    ) -> Self:
        root = release_root(args, cls.name)
        table = find_file(
            root,
            [
                "PADCHEST_chest_x_ray_images_labels_160K*.csv",
                "PADCHEST_chest_x_ray_images_labels_160K*.csv.gz",
                "*.csv",
            ],
            "PadChest's table",
            "--padchest",
            has_columns(COLUMNS),
        )
        images = find_places(
            [root], _image_places, "PadChest's images (0/ to 54/, or one folder of .png)", "--padchest"
        )
        release = cls({"": table}, images)
        if labelled:
            cells = (record["Labels"] for _, record in read_records(table, ["Labels"], REMEDY))
            names = {name for cell in cells for name in read_list(cell) or ()}
            release.labels = tuple(sorted(names | set(cls.chexpert_labels)))  # type: ignore[misc]
        return release

    def records(self, split: str) -> Iterator[tuple[str, dict[str, str]]]:
        for number, record in read_records(self.tables[""], COLUMNS, REMEDY, OPTIONAL):
            if record["MethodLabel"].strip() == METHODS[split]:
                yield f"{self.tables['']}, row {number}", record

    def read(self, entry: dict[str, str], split: str, where: str) -> Iterable[Row]:
        if not entry["PatientID"].strip():
            raise BadRecord(f"{where}: PatientID is empty; correct the row")
        image = checked_path(entry["ImageID"], f"{where}: ImageID")
        folder = re.sub(r"\.0$", "", entry["ImageDir"].strip())
        present = read_list(entry["Labels"])
        patient = f"padchest/{entry['PatientID'].strip()}"
        projection = entry["Projection"].strip()
        born, seen = (re.match(r"\d{4}", entry.get(name, "")) for name in ("PatientBirth", "StudyDate_DICOM"))
        report = entry.get("Report", "")
        yield Row(
            id=f"padchest/{image.stem}",
            source=self.name,
            split=split,
            patient_id=patient,
            patient_id_column=patient,
            study_id=f"padchest/{entry['StudyID'].strip()}",
            view=VIEWS.get(projection, "other"),
            path=checked_path(f"{folder}/{image}", f"{where}: ImageDir").as_posix(),
            ap_pa=projection[:2] if projection[:2] in ("AP", "PA") else "",
            sex=SEXES.get(entry.get("PatientSex_DICOM", "").strip(), ""),
            age=str(int(seen[0]) - int(born[0])) if born and seen else "",
            findings=report,
            impression=report,
            labels="" if present is None else "".join("01"[name in present] for name in self.labels),
        )


def _image_places(folder: Folder) -> list[Place]:
    """The folder that holds the numbered folders, and folders that hold all images directly."""
    numbered = any(re.fullmatch(r"\d{1,2}", name) for name in folder.folders)
    flat = any(re.fullmatch(r"\d+_.*\.(png|jpe?g)", name) for name in folder.files)
    return [Place(folder.path)] * numbered + [Place(folder.path, flat=True)] * (
        flat and not re.fullmatch(r"\d{1,2}", folder.path.name)
    )
