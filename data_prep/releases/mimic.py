"""MIMIC-CXR-JPG with the reports of MIMIC-CXR."""

import argparse
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from chexzero.common.errors import UserError
from chexzero.common.labels import LABELS
from chexzero.data_process import NO_IMPRESSION, extract_impression
from data_prep.releases.locate import find_file, find_places, given, holds, not_found, release_root
from data_prep.releases.release import Release, bits
from data_prep.releases.rows import BadRecord, Row, read_records

REMEDY = "name MIMIC-CXR-JPG's folder with --mimic"
VIEWS = {"AP": "frontal", "PA": "frontal", "AP AXIAL": "frontal", "LATERAL": "lateral", "LL": "lateral"}
HEADING = re.compile(r"^\s*([A-Z][A-Z /]+):", re.MULTILINE)


@dataclass
class Mimic(Release):
    """MIMIC-CXR-JPG: radiographs of Beth Israel Deaconess Medical Center, with reports (Johnson et al. 2019).

    From: PhysioNet, `mimic-cxr-jpg` 2.0.0 or 2.1.0 for the images and labels, `mimic-cxr` for the reports
    (`mimic-cxr-reports.zip`: `files/p10/p10000032/s50414267.txt`). Licence: PhysioNet's credentialed health data licence.
    Counts: 377,110 images, 227,827 studies, 65,379 patients; 368,960 + 2,991 + 5,159 images in train, validate and test.
    Labels, per study: the CheXpert labeler's from the report; for `test` a radiologist's from 687 reports, where
    `mimic-cxr-2.1.0-test-set-labeled.csv` is there. Blank and uncertain (-1) are unknown here.
    Cite: Johnson et al., Scientific Data 2019 and arXiv 1901.07042.
    """

    name = "mimic"
    splits = ("train", "validate", "test")
    labels = tuple(LABELS)
    counts = {"train": 368_960, "validate": 2_991, "test": 5_159}
    has_reports = True

    #: split -> the table of its labels by study, where they are needed
    label_tables: dict[str, Path] = field(default_factory=dict)
    reports: list[Path] = field(default_factory=list)

    @classmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        parser.add_argument("--mimic", metavar="DIR", help="MIMIC-CXR-JPG's folder: its tables and files/")
        parser.add_argument(
            "--mimic_reports", metavar="DIR", help="the folder with MIMIC-CXR's reports: files/p10/.../s50414267.txt"
        )

    @classmethod
    def locate(
        cls, args: argparse.Namespace, splits: Collection[str], labelled: Collection[str], found: dict[str, Release]
    ) -> Self:
        root = release_root(args, cls.name)
        tables = {kind: _table(root, f"mimic-cxr-2.0.0-{kind}.csv") for kind in ("metadata", "split")}
        images = find_places([root], holds("files"), "MIMIC-CXR-JPG's images (a folder with files/ in it)", "--mimic")
        reports = given(args.mimic_reports, "--mimic_reports", folder=True)
        folders = [reports] if reports else [place.root for place in images]
        texts = [folder / "files" for folder in folders if (folder / "files").is_dir()] or folders
        if set(splits) - set(labelled) and not any(_has_reports(folder) for folder in texts):
            raise not_found("MIMIC-CXR's reports (files/p10/p10000032/s50414267.txt) are", folders, "--mimic_reports")
        label_tables = {split: _labels_of(root, split) for split in labelled}
        return cls(tables, images, label_tables, texts)

    def records(self, split: str) -> Iterator[tuple[str, Any]]:
        path = self.tables["metadata"]
        views = {
            record["dicom_id"]: sys.intern(record["ViewPosition"].strip().upper())
            for _, record in read_records(path, ["dicom_id", "ViewPosition"], REMEDY)
        }
        labels = _read_labels(self.label_tables[split]) if split in self.label_tables else {}
        path = self.tables["split"]
        last: tuple[str, tuple[str, str]] = ("", ("", ""))
        for number, record in read_records(path, ["dicom_id", "subject_id", "study_id", "split"], REMEDY):
            if record["split"] == split:
                study = f"p{record['subject_id'][:2]}/p{record['subject_id']}/s{record['study_id']}"
                if study != last[0]:
                    last = (study, self._report(study))
                known = labels.get(record["study_id"], "")
                yield f"{path}, row {number}", (record, study, last[1], views.get(record["dicom_id"]), known)

    def read(self, entry: Any, split: str, where: str) -> Iterable[Row]:
        record, study, (findings, impression), view, labels = entry
        if not all(re.fullmatch(r"[\w.-]+", record[name]) for name in ("dicom_id", "subject_id", "study_id")):
            raise BadRecord(f"{where}: dicom_id, subject_id or study_id is empty or malformed; correct the row")
        if view is None:
            raise BadRecord(f"{where}: {record['dicom_id']} is not in {self.tables['metadata'].name}")
        patient = f"mimic/p{record['subject_id']}"
        yield Row(
            id=f"mimic/{study}/{record['dicom_id']}",
            source=self.name,
            split=split,
            patient_id=patient,
            patient_id_column=patient,
            study_id=f"mimic/{study}",
            view=VIEWS.get(view, "other"),
            path=f"files/{study}/{record['dicom_id']}.jpg",
            ap_pa=view if view in ("AP", "PA") else "",
            findings=findings,
            impression=impression,
            labels=labels,
        )

    def _report(self, study: str) -> tuple[str, str]:
        """Findings and impression of a study; the impression as CheXzero extracts it from the text."""
        for folder in self.reports:
            try:
                text = (folder / f"{study}.txt").read_text(encoding="utf-8", errors="replace")
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise UserError(f"{folder / study}.txt cannot be read ({error.strerror})") from error
            impression = extract_impression(text)
            return _section(text, "FINDINGS"), "" if impression == NO_IMPRESSION else impression
        return "", ""


def _section(text: str, name: str) -> str:
    """The text from a heading to the next one."""
    headings = [*HEADING.finditer(text)]
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        if heading[1].strip() == name:
            return text[heading.end() : following.start() if following else None]
    return ""


def _table(root: Path, name: str) -> Path:
    return find_file(root, [f"{name}.gz", name], f"MIMIC-CXR-JPG's {name}", "--mimic")


def _has_reports(folder: Path) -> bool:
    return next(folder.glob("p1?/p*/s*.txt"), None) is not None


def _labels_of(root: Path, split: str) -> Path:
    if split == "test":
        try:
            return find_file(root, ["mimic-cxr-2.1.0-test-set-labeled.csv*"], "the labels of the test set", "--mimic")
        except UserError:
            pass  # release 2.0.0 has none
    return _table(root, "mimic-cxr-2.0.0-chexpert.csv")


def _read_labels(path: Path) -> dict[str, str]:
    """study_id -> labels. The radiologist's table says `Airspace Opacity` for Lung Opacity."""
    named = [name for name in LABELS if name != "Lung Opacity"]
    opacity = ["Lung Opacity", "Airspace Opacity"]
    return {
        record["study_id"]: bits(
            record.get(name, record.get("Airspace Opacity")) if name == "Lung Opacity" else record[name]
            for name in LABELS
        )
        for _, record in read_records(path, ["study_id", *named], REMEDY, optional=opacity)
    }
