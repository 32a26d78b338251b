"""CheXpert-Plus: the training images with their reports, and the validation images."""

import argparse
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from chexzero.common.labels import LABELS
from data_prep.releases.chexpert import chexpert_row, find_labels, image_key, labelled_rows, view_of
from data_prep.releases.locate import (
    find_file,
    find_places,
    folders_above,
    given,
    has_columns,
    release_root,
    split_places,
)
from data_prep.releases.release import Release
from data_prep.releases.rows import BadRecord, Row, read_records

COLUMNS = (
    "path_to_image",
    "frontal_lateral",
    "ap_pa",
    "deid_patient_id",
    "section_findings",
    "section_impression",
    "age",
    "sex",
    "race",
    "split",
)
REMEDY = "name CheXpert-Plus's table with --chexpert_plus_csv"
TABLES = ["df_chexpert_plus_240401.csv", "df_chexpert_plus_240401.parquet"]  # as released; at any depth they come first
OTHER_TABLES = ["df_chexpert_plus*.csv", "df_chexpert_plus*.parquet", "*.csv", "*.parquet"]


@dataclass
class ChexpertPlus(Release):
    """CheXpert-Plus: CheXpert's images with the reports (Chambon et al. 2024).

    From: Stanford AIMI, by Redivis. Licence: Stanford's research use agreement. Counts: 223,228 training images of
    64,525 patients, the report cut into sections, and the 234 images of CheXpert's validation set (200 patients).
    Labels: for validation CheXpert's radiologists' (`valid.csv`, which is in CheXpert's release), each 0 or 1.
    The table names `.jpg`; on disk the images are `.png`, or DICOM. Patients have CheXpert's numbers.
    Cite: Chambon et al. 2024, and Irvin et al. 2019.
    """

    name = "chexpert_plus"
    splits = ("train", "valid", "test")
    labels = tuple(LABELS)
    counts = {"train": 223_228, "valid": 234}
    has_reports = True
    images_of = "chexpert"
    evaluation_splits = ("valid",)

    #: split -> CheXpert's table of its labels, where the split is labelled
    label_tables: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        parser.add_argument("--chexpert_plus", metavar="DIR", help="CheXpert-Plus's folder: its CSV and PNG/")
        parser.add_argument("--chexpert_plus_csv", metavar="FILE", help="df_chexpert_plus_240401.csv, or as Parquet")
        parser.add_argument("--chexpert_plus_images", metavar="DIR", help="the folder that holds train/ and valid/")

    @classmethod
    def locate(
        cls, args: argparse.Namespace, splits: Collection[str], labelled: Collection[str], found: dict[str, Release]
    ) -> Self:
        table = given(args.chexpert_plus_csv, "--chexpert_plus_csv", folder=False)
        if table is None:
            table = find_file(
                release_root(args, cls.name),
                TABLES + OTHER_TABLES,
                "CheXpert-Plus's table",
                "--chexpert_plus_csv",
                has_columns(("path_to_image", "split")),
            )
        images = given(args.chexpert_plus_images, "--chexpert_plus_images", folder=True)
        places = find_places(
            [images] if images else folders_above(table, args, cls.name),
            split_places(splits),
            "CheXpert-Plus's images (a folder with train/ or valid/ in it)",
            "--chexpert_plus_images",
        )
        return cls({"": table}, places, {split: find_labels(args, split) for split in sorted(labelled)})

    def records(self, split: str) -> Iterator[tuple[str, dict[str, str]]]:
        """The entries of a split by the column `split`; those of no known split come with the training ones."""
        for number, record in read_records(self.tables[""], COLUMNS, REMEDY):
            if record["split"] == split or (split == "train" and record["split"] not in self.splits):
                yield f"{self.tables['']}, row {number}", record

    def rows(self, split: str) -> Iterator[Row]:
        rows = super().rows(split)
        return labelled_rows(rows, self.label_tables[split], split) if split in self.label_tables else rows

    def own_splits(self) -> set[str]:
        """The splits with rows in the table (the first release has no `test`)."""
        return {record["split"] for _, record in read_records(self.tables[""], ("split",), REMEDY)}

    def inputs(self) -> dict[str, Path]:
        return super().inputs() | {f"chexpert_{split}_csv": path for split, path in self.label_tables.items()}

    def read(self, entry: dict[str, Any], split: str, where: str) -> Iterable[Row]:
        if entry["split"] not in self.splits:
            raise BadRecord(
                f"{where}: the split is {entry['split'][:40]!r}, none of {', '.join(self.splits)}; correct the row"
            )
        key = image_key(entry["path_to_image"], f"{where}: path_to_image")
        patient = entry["deid_patient_id"].strip()
        if patient.lower() in ("", "nan", "none"):
            raise BadRecord(
                f"{where}: deid_patient_id is empty, so the patient cannot be kept out of the other "
                f"sets; correct the row"
            )
        row = chexpert_row(
            self.name,
            key,
            patient_id_column=patient,
            view=view_of(key, entry["frontal_lateral"]),
            path=f"{key}.png",
            ap_pa=entry["ap_pa"],
            sex=entry["sex"],
            age=entry["age"],
            race=entry["race"],
            impression=entry["section_impression"],
            findings=entry["section_findings"],
        )
        row.split = split
        yield row
