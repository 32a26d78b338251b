"""Open-i, the radiographs of Indiana University, in its three published forms."""

import argparse
import json
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from chexzero.common.errors import UserError
from chexzero.common.files import read_json
from data_prep.releases.locate import Folder, Place, find_places, folders, not_found, release_root
from data_prep.releases.release import SHARES, Release, split_of
from data_prep.releases.rows import BadRecord, Row, checked_path, read_records

#: finding -> the MeSH headings that mean it, lower case, each with the qualifier that it needs, if any
MESH: dict[str, tuple[str, ...]] = {
    "Atelectasis": ("pulmonary atelectasis",),
    "Cardiomegaly": ("cardiomegaly", "cardiac shadow/enlarged"),
    "Consolidation": ("consolidation",),
    "Edema": ("pulmonary edema", "pulmonary congestion"),
    "Enlarged Cardiomediastinum": ("mediastinum/prominent", "mediastinum/enlarged", "cardiac shadow/enlarged"),
    "Fracture": ("fractures, bone",),
    "Lung Lesion": ("nodule", "mass", "granuloma", "calcified granuloma"),
    "Lung Opacity": ("opacity", "infiltrate", "airspace disease", "consolidation", "density/lung"),
    "No Finding": ("normal",),
    "Pleural Effusion": ("pleural effusion", "hemothorax", "hydropneumothorax"),
    "Pleural Other": ("thickening/pleura", "pleura"),
    "Pneumonia": ("pneumonia",),
    "Pneumothorax": ("pneumothorax", "hydropneumothorax", "hemopneumothorax"),
    "Support Devices": ("catheters, indwelling", "implanted medical device", "tube, inserted", "medical device"),
    "Calcified Granuloma": ("calcified granuloma",),
    "Emphysema": ("emphysema", "pulmonary emphysema", "bullous emphysema"),
    "Fibrosis": ("pulmonary fibrosis", "fibrosis"),
    "Hernia": ("hernia, hiatal", "hernia, diaphragmatic"),
    "Infiltration": ("infiltrate",),
    "Mass": ("mass",),
    "Nodule": ("nodule",),
    "Pleural Thickening": ("thickening/pleura",),
}
NOT_INDEXED = ("no indexing", "technical quality of image unsatisfactory")
VIEWS = {"Frontal": "frontal", "Lateral": "lateral"}
FLAG = "--openi"


@dataclass
class Openi(Release):
    """Open-i: chest radiographs of Indiana University with reports and MeSH terms (Demner-Fushman et al. 2016).

    From: the National Library of Medicine (`NLMCXR_png.tgz`, `NLMCXR_reports.tgz`), no agreement needed; also a copy
    on Kaggle (`indiana_reports.csv`, `indiana_projections.csv`) and one of R2Gen (`annotation.json`).
    Licence: CC BY-NC-ND 4.0. Counts: 7,470 images of 3,955 reports, one report per patient.
    Labels: 1 where the report's MeSH terms name the finding (`MESH`), 0 where they do not; none where the report was not
    indexed. R2Gen's copy has no MeSH terms, so no labels. Views are known where `indiana_projections.csv` is there.
    Splits: R2Gen's own; else 70, 10 and 20 percent of the patients, by a hash of the report's number.
    Cite: Demner-Fushman et al., JAMIA 2016.
    """

    name = "openi"
    splits = tuple(SHARES)
    labels = tuple(MESH)
    has_reports = True
    evaluation_splits = tuple(SHARES)
    evaluation_views = "not_lateral"

    @classmethod
    def locate(
        cls, args: argparse.Namespace, splits: Collection[str], labelled: Collection[str], found: dict[str, Release]
    ) -> Self:
        root = release_root(args, cls.name)
        tables: dict[str, Path] = {}
        for folder in folders(root):
            for kind, is_it in TABLES.items():
                if name := next((name for name in folder.files if is_it(name)), None):
                    tables.setdefault(kind, folder.path if kind == "reports" else folder.path / name)
        if not tables.keys() & {"reports", "kaggle", "r2gen"}:
            raise not_found(
                "Open-i's reports (ecgen-radiology/1.xml, indiana_reports.csv or annotation.json) are", [root], FLAG
            )
        if "kaggle" in tables and "projections" not in tables and "reports" not in tables:
            raise UserError(f"indiana_projections.csv is not beside {tables['kaggle']}; it says which images there are")
        if "r2gen" in tables and labelled and not tables.keys() & {"reports", "kaggle"}:
            raise UserError(
                f"{tables['r2gen']} has no MeSH terms, so it cannot be an evaluation set; name NLM's or Kaggle's copy"
            )
        images = find_places([root], _image_places, "Open-i's images (CXR1_1_IM-0001-3001.png)", FLAG)
        return cls(tables, images)

    def records(self, split: str) -> Iterator[tuple[str, Any]]:
        views = _projections(self.tables.get("projections"))
        if "reports" in self.tables:
            return _nlm(self.tables["reports"], split, views)
        if "kaggle" in self.tables:
            return _kaggle(self.tables["kaggle"], split, views)
        return _r2gen(self.tables["r2gen"], split)

    def read(self, entry: Any, split: str, where: str) -> Iterable[Row]:
        report, images = entry
        if isinstance(report, Exception):
            raise BadRecord(f"{where} is not readable XML ({report}); copy it again")
        patient = f"openi/{report['uid']}"
        for image, view in images or [("", "")]:  # 104 reports have no image; the plan lists them
            path = checked_path(image, f"{where}: an image's name").as_posix() if image else ""
            stem = posixpath.splitext(path)[0].removesuffix(".dcm")
            yield Row(
                id=f"{patient}/{stem.replace('/', '_')}" if image else patient,
                source=self.name,
                split=split,
                patient_id=patient,
                patient_id_column=patient,
                study_id=patient,
                view=view,
                path=path,
                findings=report["findings"],
                impression=report["impression"],
                labels=mesh_labels(report["mesh"]),
            )


TABLES = {
    "reports": lambda name: re.fullmatch(r"\d+\.xml", name),
    "kaggle": lambda name: name == "indiana_reports.csv",
    "projections": lambda name: name == "indiana_projections.csv",
    "r2gen": lambda name: name == "annotation.json",
}


def mesh_labels(terms: list[str]) -> str:
    """The labels of a report by its MeSH terms (`Opacity/lung/base/left`); "" for a report that was not indexed."""
    words = [[part.strip().lower() for part in term.split("/")] for term in terms if term.strip()]
    if not words or all(term[0] in NOT_INDEXED for term in words):
        return ""
    return "".join(str(int(any(_means(term, wanted) for term in words for wanted in MESH[name]))) for name in MESH)


def _means(term: list[str], wanted: str) -> bool:
    heading, _, qualifier = wanted.partition("/")
    return term[0] == heading and (not qualifier or qualifier in term[1:])


def _nlm(folder: Path, split: str, views: dict[str, str]) -> Iterator[tuple[str, Any]]:
    files = [path for path in folder.iterdir() if re.fullmatch(r"\d+\.xml", path.name)]
    for path in sorted(files, key=lambda path: int(path.stem)):
        if split_of(path.stem) != split:
            continue
        try:
            report, images = _read_xml(defusedxml.ElementTree.parse(path).getroot())
        except (ParseError, DefusedXmlException, OSError) as error:
            yield str(path), (error, [])
            continue
        yield str(path), (report | {"uid": path.stem}, [(f"{name}.png", views.get(name, "other")) for name in images])


def _read_xml(root: Element) -> tuple[dict[str, Any], list[str]]:
    texts = {node.get("Label", ""): node.text or "" for node in root.iter("AbstractText")}
    report = {
        "findings": texts.get("FINDINGS", ""),
        "impression": texts.get("IMPRESSION", ""),
        "mesh": [node.text or "" for node in root.iterfind(".//MeSH/major")],
    }
    return report, [node.get("id", "") for node in root.iter("parentImage")]


def _kaggle(path: Path, split: str, views: dict[str, str]) -> Iterator[tuple[str, Any]]:
    images: dict[str, list[tuple[str, str]]] = {}
    for name, view in views.items():
        if name.endswith(".png"):
            images.setdefault(name.split("_")[0], []).append((name, view))
    for number, record in read_records(path, ["uid", "MeSH", "findings", "impression"], "name Kaggle's own table"):
        uid = record["uid"].strip()
        if split_of(uid) == split:
            report = {"uid": uid, "mesh": record["MeSH"].split(";")} | record
            yield f"{path}, row {number}", (report | {"uid": uid}, images.get(uid, []))


def _r2gen(path: Path, split: str) -> Iterator[tuple[str, Any]]:
    entries = read_json(path, "copy it again").get({"valid": "val"}.get(split, split), [])
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, {split} {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("image_path"), list) or "id" not in entry:
            yield where, (ValueError(f"not an entry: {json.dumps(entry)[:60]}"), [])
            continue
        text = str(entry.get("report") or "")
        uid = re.sub(r"^CXR(\d+)_.*", r"\1", str(entry["id"]))
        report = {"uid": uid, "findings": text, "impression": text, "mesh": []}
        yield where, (report, [(str(image), "other") for image in entry["image_path"]])


def _projections(path: Path | None) -> dict[str, str]:
    """Kaggle's file name, and NLM's image id -> view, in the table's order."""
    views: dict[str, str] = {}
    for _, record in read_records(path, ["filename", "projection"], "name Kaggle's own table") if path else ():
        view = VIEWS.get(record["projection"].strip(), "other")
        views[record["filename"]] = view
        views[f"CXR{record['filename'].split('.')[0]}"] = view
    return views


def _image_places(folder: Folder) -> list[Place]:
    flat = any(re.match(r"(CXR)?\d+_.*IM-\d", name) for name in folder.files)
    nested = any(re.match(r"CXR\d+_IM-", name) for name in folder.folders)
    return [Place(folder.path)] * (flat or nested)
