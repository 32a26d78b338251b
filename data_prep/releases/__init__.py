"""The datasets that can be read: one class each, whose docstring is the data sheet, and one row in `DATASETS`."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from data_prep.releases.chestxray14 import Chestxray14
from data_prep.releases.chexpert import Chexpert, Chexpert5x200
from data_prep.releases.chexpert_plus import ChexpertPlus
from data_prep.releases.kaggle import Rsna, Siim
from data_prep.releases.mimic import Mimic
from data_prep.releases.openi import Openi
from data_prep.releases.padchest import Padchest
from data_prep.releases.release import Release
from data_prep.releases.rexgradient import Rexgradient
from data_prep.releases.rows import Row
from data_prep.releases.table import Table
from data_prep.releases.tuberculosis import Montgomery, Shenzhen
from data_prep.releases.vindr import Vindr

#: The readers. One that is located with the help of another's files comes after it.
DATASETS: dict[str, type[Release]] = {
    dataset.name: dataset
    for dataset in (
        ChexpertPlus,
        Chexpert,
        Rexgradient,
        Mimic,
        Openi,
        Padchest,
        Chestxray14,
        Vindr,
        Rsna,
        Siim,
        Montgomery,
        Shenzhen,
        Chexpert5x200,
        Table,
    )
}

LABELLED_ROLES = ("valid", "test")


class Releases:
    """The releases that the roles need, found on disk."""

    def __init__(self, args: argparse.Namespace, roles: dict[str, dict[str, list[str]]]):
        self.by_name: dict[str, Release] = {}
        for name, dataset in DATASETS.items():
            played = {role: names[name] for role, names in roles.items() if name in names}
            splits = list(dict.fromkeys(split for splits in played.values() for split in splits))
            labelled = [
                split
                for role, names in played.items()
                for split in names
                if role in LABELLED_ROLES or not dataset.has_reports
            ]
            if splits:
                self.by_name[name] = dataset.locate(args, splits, labelled, self.by_name)

    def __getitem__(self, release: str) -> Release:
        return self.by_name[release]

    def rows(self, release: str, split: str) -> Iterator[Row]:
        """The rows of a release's split."""
        return self.by_name[release].rows(split)

    def inputs(self) -> dict[str, Path]:
        """The tables of all releases, by name."""
        return {name: path for release in self.by_name.values() for name, path in release.inputs().items()}

    def tables_named(self, release: str = "") -> str:
        """The tables, of one release or of all, for a message."""
        tables = self.by_name[release].tables if release else self.inputs()
        return ", ".join(map(str, tables.values()))

    def drawn(self) -> bool:
        """Whether a release is the demo's, which has DRAWN.txt in its folder."""
        return any((folder / "DRAWN.txt").is_file() for path in self.inputs().values() for folder in path.parents[:2])
