"""A dataset unknown to the project: it needs only this file and one row in the table of datasets."""

import argparse
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from data_prep.releases.locate import Place, find_file, release_root
from data_prep.releases.release import Release
from data_prep.releases.rows import Row, read_records


@dataclass
class OwnDataset(Release):
    """A hospital's dataset: for the tests. From: drawn. Labels: two. Counts: as drawn. Cite: nobody."""

    name = "own_dataset"
    splits = ("train", "valid", "test")
    labels = ("Cardiomegaly", "Effusion")
    chexpert_labels = {"Effusion": "Pleural Effusion"}
    has_reports = True

    @classmethod
    def locate(
        cls, args: argparse.Namespace, splits: Collection[str], labelled: Collection[str], found: dict[str, Release]
    ) -> Self:
        root = release_root(args, cls.name)
        return cls({"": find_file(root, ["own.csv"], "the table", "--own_dataset")}, [Place(root)])

    def records(self, split: str) -> Iterator[tuple[str, Any]]:
        for number, record in read_records(self.tables[""], ["name", "split", "heart", "fluid", "text"], "copy it"):
            if record["split"] == split:
                yield f"row {number}", record

    def read(self, entry: Any, split: str, where: str) -> Iterable[Row]:
        name = f"own_dataset/{Path(entry['name']).stem}"
        labels = entry["heart"] + entry["fluid"]
        yield Row(
            name, self.name, split, name, name, name, "frontal", entry["name"], impression=entry["text"], labels=labels
        )
