"""Lists of patients, studies or images, in the formats that research groups publish."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from chexzero.common.errors import UserError
from data_prep.releases.locate import SUFFIXES, split_ending
from data_prep.releases.rows import Row, column_names, read_records

#: Columns that name an image, a study or a patient; the first that a list has is used.
COLUMNS = (
    "id",
    "Path",
    "path_to_image",
    "imgpath",
    "path",
    "filename",
    "image",
    "ImageID",
    "Image Index",
    "dicom_id",
    "image_id",
    "Study",
    "study_id",
    "StudyID",
    "patient_id",
    "deid_patient_id",
    "subject_id",
    "PatientID",
    "Patient ID",
)
REMEDY = "name a list with one id or path per line, or a CSV with a column of them"


class Lists:
    """The entries of the files. A row matches if a list has its patient, its study or its image: as the id or path that
    the build writes, or as the release spells it, with any prefix and any ending."""

    def __init__(self, files: Sequence[str | os.PathLike]):
        self.entries: dict[str, tuple[str, str]] = {}  # what an entry may be called -> (file, entry)
        self.sizes: Counter[str] = Counter()
        self.matched: dict[str, set[str]] = {}
        for file in map(Path, files):
            entries = list(dict.fromkeys(_read(file)))
            if not entries:
                raise UserError(f"{file} lists nothing; {REMEDY}")
            self.sizes[str(file)] = len(entries)
            self.matched[str(file)] = set()
            for entry in entries:
                parts = _without_ending(entry).split("/")
                for start in range(len(parts)):
                    self.entries.setdefault("/".join(parts[start:]), (str(file), entry))

    def match(self, row: Row) -> str | None:
        """Return the file that lists the row, or None; counts the entry as found."""
        for name in _names(row):
            if name in self.entries:
                file, entry = self.entries[name]
                self.matched[file].add(entry)
                return file
        return None

    def counts(self) -> dict[str, dict[str, int]]:
        """file -> how many entries it has, and how many of them were found."""
        return {file: {"entries": n, "found": len(self.matched[file])} for file, n in self.sizes.items()}


def _read(file: Path) -> list[str]:
    header = column_names(file)
    column = next((name for name in COLUMNS if name in header), None)
    if column:
        return [record[column].strip() for _, record in read_records(file, [column], REMEDY) if record[column].strip()]
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}); {REMEDY}") from error
    entries = [line.strip() for line in lines if line.strip()]
    if any("," in entry for entry in entries):
        raise UserError(f"{file} has none of the columns {', '.join(COLUMNS)}; {REMEDY}")
    return entries


def _without_ending(entry: str) -> str:
    path = entry.replace("\\", "/").strip("/")
    stem, suffix = split_ending(path)
    return stem if suffix.lower() in SUFFIXES else path


def _names(row: Row) -> list[str]:
    """Every name by which a list may call the row's image, study or patient."""
    image = row.id.removeprefix(f"{row.source}/")
    study = row.study_id.removeprefix(f"{row.source}/")
    patients = [patient.removeprefix(f"{row.source}/") for patient in (row.patient_id, row.patient_id_column)]
    names = [row.id, image, _without_ending(row.path), study, row.study_id, *patients]
    last = image.rsplit("/", 1)[-1]
    if row.source not in ("chexpert", "chexpert_plus") and len(last) >= 8:  # `view1_frontal` does not identify an image
        names.append(last)
    return [name for name in names if name]
