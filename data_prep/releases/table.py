"""A table of your own: images with reports, labels, or both."""

import argparse
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from chexzero.common.errors import UserError
from chexzero.common.labels import LABELS
from data_prep.releases.locate import Place, given
from data_prep.releases.release import SHARES, Release, bits, split_of
from data_prep.releases.rows import BadRecord, Row, checked_path, column_names, read_records

#: what a column contains -> the header names it is found by where `--columns` does not name it
COLUMNS = {
    "image": ("image", "path", "filename", "file"),
    "patient": ("patient", "patient_id", "subject_id"),
    "study": ("study", "study_id", "accession"),
    "report": ("report", "text"),
    "impression": ("impression",),
    "findings": ("findings",),
    "view": ("view", "view_position", "projection"),
    "split": ("split",),
    "sex": ("sex",),
    "age": ("age",),
    "race": ("race",),
}
NEEDED = ("image", "patient")
SPLITS = {"train": "train", "training": "train", "val": "valid", "valid": "valid", "validate": "valid"}
SPLITS |= {"validation": "valid", "dev": "valid", "test": "test"}
FRONTAL = re.compile(r"frontal|ap|pa|ap[ _]axial|postero[ _-]?anterior|antero[ _-]?posterior")
LATERAL = re.compile(r"lateral|lat|ll|rl|l")


@dataclass
class Table(Release):
    """A table of your own: a CSV or Parquet file with one row per image.

    `--table FILE --columns image=path,report=text,patient=mrn,study=accession,view=view` says what its columns are; only
    `image` and `patient` must be there. Images lie under `--table_images` (default: the table's folder).
    Labels: the columns named with `--label_columns`, or those named after a CheXpert label; 1, 0, else unknown.
    Splits: a column `split` (train, valid, test), else 70, 10 and 20 percent of the patients by a hash of the id.
    """

    name = "table"
    splits = tuple(SHARES)
    labels = tuple(LABELS)
    has_reports = True
    evaluation_splits = tuple(SHARES)

    columns: dict[str, str] = field(default_factory=dict)
    label_columns: tuple[str, ...] = ()

    @classmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        parser.add_argument("--table", metavar="FILE", help="a table of your own, CSV or Parquet (with --roles table)")
        parser.add_argument(
            "--columns", metavar="WHAT=NAME,...", help=f"what its columns contain, of: {', '.join(COLUMNS)}"
        )
        parser.add_argument(
            "--label_columns", nargs="+", default=[], metavar="NAME", help="its columns of labels, 0, 1 or empty"
        )
        parser.add_argument("--table_images", metavar="DIR", help="the folder that its image paths are relative to")

    @classmethod
    def locate(
        cls, args: argparse.Namespace, splits: Collection[str], labelled: Collection[str], found: dict[str, Release]
    ) -> Self:
        table = given(args.table, "--table", folder=False)
        if table is None:
            raise UserError("where is the table? Name a CSV or Parquet file with --table")
        header = column_names(table)
        columns = _columns(args.columns, header, table)
        if missing := [name for name in NEEDED if name not in columns]:
            raise UserError(
                f"{table} has no column for the {missing[0]} (it has: {', '.join(header)[:600]}); "
                f"name it with --columns {missing[0]}=NAME"
            )
        if odd := [name for name in args.label_columns if name not in header]:
            raise UserError(f"{table} has no column {odd[0]!r}, which --label_columns names; correct it")
        label_columns = args.label_columns or [name for name in header if name in LABELS]
        if labelled and not label_columns:
            raise UserError(f"{table} has no column named after a CheXpert label; name its labels with --label_columns")
        images = given(args.table_images, "--table_images", folder=True) or table.parent
        release = cls({"": table}, [Place(images)], columns, tuple(label_columns))
        release.labels = release.label_columns or cls.labels  # type: ignore[misc]
        release.has_reports = bool({"report", "impression", "findings"} & set(columns))  # type: ignore[misc]
        return release

    def records(self, split: str) -> Iterator[tuple[str, dict[str, str]]]:
        path, names = self.tables[""], list(dict.fromkeys((*self.columns.values(), *self.label_columns)))
        for number, record in read_records(path, names, "name its columns with --columns"):
            where = f"{path}, row {number}"
            known = {what: record[name] for what, name in self.columns.items()}
            known["labels"] = bits(record[name] for name in self.label_columns)
            known["split"] = self._split(known, where)
            if known["split"] == split:
                yield where, known

    def _split(self, known: dict[str, str], where: str) -> str:
        if "split" not in known:
            return split_of(known["patient"].strip())
        named = known["split"].strip().lower()
        if named not in SPLITS:
            raise UserError(f"{where}: the split is {known['split']!r}, none of {', '.join(SPLITS)}; correct the table")
        return SPLITS[named]

    def read(self, entry: dict[str, str], split: str, where: str) -> Iterable[Row]:
        patient = entry["patient"].strip()
        if patient.lower() in ("", "nan", "none"):
            raise BadRecord(f"{where}: the patient is empty, so it cannot be kept out of the other sets")
        root, text = self.images[0].root, entry["image"].strip()
        if Path(text).is_absolute() and Path(text).is_relative_to(root):
            text = str(Path(text).relative_to(root))
        path = checked_path(text, f"{where}: {self.columns['image']}")
        view = entry.get("view", "").strip().lower()
        whole = entry.get("report", "")
        yield Row(
            id=f"table/{path.with_suffix('')}",
            source=self.name,
            split=split,
            patient_id=f"table/{patient}",
            patient_id_column=f"table/{patient}",
            study_id=f"table/{patient}/{entry['study'].strip()}" if entry.get("study") else f"table/{path.parent}",
            view="frontal" if FRONTAL.fullmatch(view) else "lateral" if LATERAL.fullmatch(view) else "other",
            path=path.as_posix(),
            ap_pa=view.upper() if view in ("ap", "pa") else "",
            sex=entry.get("sex", ""),
            age=entry.get("age", ""),
            race=entry.get("race", ""),
            impression=entry.get("impression", whole),
            findings=entry.get("findings", whole),
            labels=entry["labels"] if set(entry["labels"]) - {"-"} else "",
        )


def _columns(text: str | None, header: list[str], table: Path) -> dict[str, str]:
    """What a column contains -> its name: as `--columns` says, else by the usual names in any case."""
    columns = {}
    for what, usual in COLUMNS.items():
        if found := [name for name in header if name.lower() in usual]:
            columns[what] = found[0]
    for pair in (text or "").split(",") if text else ():
        what, equals, name = (part.strip() for part in pair.partition("="))
        if not equals or what not in COLUMNS:
            raise UserError(f"--columns {pair}: not like image=NAME, with one of {', '.join(COLUMNS)} in front")
        if name not in header:
            raise UserError(
                f"{table} has no column {name!r}, which --columns names as {what} (it has: {', '.join(header)[:600]})"
            )
        columns[what] = name
    return columns
