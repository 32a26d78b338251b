"""CheXpert-Plus: the training images with their reports, and the validation images."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chexzero.common.errors import UserError
from data_prep.releases.chexpert import chexpert_row, image_key, view_of
from data_prep.releases.locate import find_file, find_folders, given, has_columns, release_root
from data_prep.releases.rows import Row, read_records

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--chexpert_plus", metavar="DIR", help="CheXpert-Plus's folder: its CSV and PNG/")
    parser.add_argument("--chexpert_plus_csv", metavar="FILE", help="df_chexpert_plus_240401.csv")
    parser.add_argument("--chexpert_plus_images", metavar="DIR", help="the folder that holds train/ and valid/")


@dataclass(frozen=True)
class ChexpertPlus:
    """CheXpert-Plus (Chambon et al. 2024): 223,228 training images of 64,525 patients, with the report cut into
    sections, and the 234 images of CheXpert's validation set. The table names `.jpg`; on disk they are `.png`."""

    table: Path
    images: list[Path]

    @classmethod
    def locate(cls, args: argparse.Namespace) -> "ChexpertPlus":
        table = given(args.chexpert_plus_csv, "--chexpert_plus_csv", folder=False)
        if table is None:
            table = find_file(
                release_root(args, "chexpert_plus"),
                ["df_chexpert_plus*.csv", "*.csv"],
                "CheXpert-Plus's table",
                "--chexpert_plus_csv",
                has_columns(("path_to_image", "split")),
            )
        images = given(args.chexpert_plus_images, "--chexpert_plus_images", folder=True)
        root = images or given(args.chexpert_plus, "--chexpert_plus", folder=True) or table.parent
        holders = find_folders([root], ["train", "valid"], "CheXpert-Plus's images", "--chexpert_plus_images")
        return cls(table, holders)

    def rows(self, split: str) -> Iterator[Row]:
        """The images whose column `split` says so, in the table's order."""
        for number, record in read_records(self.table, COLUMNS, REMEDY):
            if record["split"] == split:
                yield self._row(record, f"{self.table}, row {number}")

    def has(self, split: str) -> bool:
        """Whether the table carries rows of this split (the first release has no `test`)."""
        return any(record["split"] == split for _, record in read_records(self.table, ("split",), REMEDY))

    def _row(self, record: dict[str, str], where: str) -> Row:
        key = image_key(record["path_to_image"], f"{where}: path_to_image")
        patient = record["deid_patient_id"].strip()
        if patient.lower() in ("", "nan", "none"):
            raise UserError(
                f"{where}: deid_patient_id is empty, so the patient cannot be kept out of the other "
                f"sets; correct the row"
            )
        view = view_of(key, record["frontal_lateral"])
        row = chexpert_row(
            "chexpert_plus",
            key,
            patient_id_column=patient,
            view=view,
            path=f"{key}.png",
            ap_pa=record["ap_pa"],
            sex=record["sex"],
            age=record["age"],
            race=record["race"],
            impression=record["section_impression"],
            findings=record["section_findings"],
        )
        row.split = record["split"]
        return row
