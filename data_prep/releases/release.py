"""What all datasets have in common: locating their files, the rows of their splits, and their labels."""

import argparse
import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from chexzero.common.labels import LABELS
from data_prep.releases.locate import Place
from data_prep.releases.rows import UNKNOWN, BadRecord, Row

#: The splits of a dataset that has none of its own, with their shares of the patients in percent.
SHARES = {"train": 70, "valid": 10, "test": 20}


@dataclass
class Release:
    """A dataset on disk. A subclass reads one dataset; its docstring is the data sheet.

    `tables` are its tables of images, reports and labels, `images` the places where its images may be. A subclass sets
    the class attributes, and defines `locate`, `records` and `read`.
    """

    #: the name in roles.yaml and of the flag for its folder, and the prefix of its ids
    name: ClassVar[str]
    #: the names of its splits; no image is in two of them
    splits: ClassVar[tuple[str, ...]]
    #: the labelled findings, in the order of `Row.labels`; empty if it has no labels
    labels: ClassVar[tuple[str, ...]] = ()
    #: finding -> the CheXpert label that means the same; a finding with the label's own name needs no entry
    chexpert_labels: ClassVar[dict[str, str]] = {}
    #: split -> how many images the release has, as published
    counts: ClassVar[dict[str, int]] = {}
    has_reports: ClassVar[bool] = False
    #: the release whose images these are, where two releases share them
    images_of: ClassVar[str] = ""
    #: the splits and views that `evaluation-set` uses by default
    evaluation_splits: ClassVar[tuple[str, ...]] = ("test",)
    evaluation_views: ClassVar[str] = "all"

    tables: dict[str, Path]
    images: list[Place]

    @classmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        """Add the flags for its folder and for files that cannot be found from the folder alone."""
        parser.add_argument(f"--{cls.name}", metavar="DIR", help=(cls.__doc__ or cls.name).split(".")[0].split(":")[0])

    @classmethod
    def locate(
        cls, args: argparse.Namespace, splits: Collection[str], labelled: Collection[str], found: dict[str, "Release"]
    ) -> Self:
        """Find its files. `labelled` are those of `splits` whose labels are needed, `found` the releases located
        before. Raises `UserError` that names the flag for what is not found."""
        raise NotImplementedError

    def records(self, split: str) -> Iterator[tuple[str, Any]]:
        """Yield `(location, entry)` for the entries of a split, in the tables' order."""
        raise NotImplementedError

    def read(self, entry: Any, split: str, where: str) -> Iterable[Row]:
        """The images of one entry; raises `BadRecord` for an entry that cannot be used."""
        raise NotImplementedError

    def rows(self, split: str) -> Iterator[Row]:
        """The images of a split, with their reports and labels, in the tables' order. An entry that cannot be used
        becomes a row without a path, whose `problem` says why."""
        for where, entry in self.records(split):
            try:
                yield from self.read(entry, split, where)
            except BadRecord as error:
                yield self.bad_row(split, where, str(error))

    def bad_row(self, split: str, where: str, problem: str) -> Row:
        """The row that stands for an entry that cannot be used."""
        place = where.rsplit(", ", 1)[-1]
        return Row(f"{self.name}/{place}", self.name, split, "", "", "", "", "", problem=problem)

    def own_splits(self) -> set[str]:
        """The splits that are on this disk."""
        return set(self.splits)

    def inputs(self) -> dict[str, Path]:
        """The tables, as the record of a build names them: `<release>_<table>_<kind of file>`."""
        return {
            "_".join(filter(None, (self.name, key, path.suffix.lstrip(".")))): path for key, path in self.tables.items()
        }

    def as_chexpert(self, labels: str) -> str:
        """Labels in the release's order as the fourteen CheXpert labels; those it lacks are `UNKNOWN`."""
        known: dict[str, str] = {}
        for finding, label in zip(self.labels, labels, strict=True):
            name = self.chexpert_labels.get(finding, finding)
            known[name] = max(known.get(name, ""), label)  # where two findings map to one label, either is enough
        return "".join(known.get(name, UNKNOWN) for name in LABELS)

    def sentence(self, row: Row) -> str:
        """A text for an image whose release has labels and no reports: the positive findings as a sentence."""
        present = [finding for finding, label in zip(self.labels, row.labels, strict=False) if label == "1"]
        return f"{', '.join(present).replace('_', ' ').capitalize()}." if present else ""


def split_of(patient: str) -> str:
    """The split of a patient in a dataset that has no splits of its own: by a hash of the id."""
    number = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8]) % 100
    for split, share in SHARES.items():
        if number < share:
            return split
        number -= share
    raise AssertionError("the shares add up to 100")


def bits(values: Iterable[str | float | None]) -> str:
    """One character per label: `1`, `0`, or `UNKNOWN` for blank, uncertain (-1) or what is no number."""
    return "".join(_BITS.get(str(value).strip(), UNKNOWN) for value in values)


_BITS = {"1": "1", "1.0": "1", "0": "0", "0.0": "0"}
