"""Other readers of the same test studies, from their files: radiologists' calls, supervised models' predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from chexzero.common.errors import UserError
from chexzero.common.files import read_table
from chexzero.common.labels import COMPETITION_LABELS, LABELS
from chexzero.metrics import Rates, rates


@dataclass(frozen=True)
class Reader:
    """One file of another reader or model, joined to our test studies: values (N, L) for `labels`."""

    name: str
    labels: list[str]
    values: np.ndarray


def study_key(text: str) -> str:
    """Return `patient64741/study1` for any spelling of a CheXpert study or image; other ids are only stripped."""
    parts = text.strip().strip("/").split("/")
    for i, part in enumerate(parts[:-1]):
        if part.startswith("patient") and parts[i + 1].startswith("study"):
            return f"{part}/{parts[i + 1]}"
    return text.strip()


def read_reader(path: str | Path, studies: Sequence[str], *, binary: bool) -> Reader:
    """Read a CSV with a column `Study` and one per label (by name, in any order), one row for each of `studies`.

    `binary`: calls, each 0 or 1; else scores, any finite number. Raises `UserError` for missing, repeated or blank
    rows and for values that are not allowed. Other studies of the file are ignored.
    """
    path = Path(path)
    table = read_table(path, ["Study"], remedy="name a CSV with `Study` and one column per label")
    labels = [label for label in LABELS if label in table]
    if not labels:
        raise UserError(f"{path} has none of the labels as a column; name a CSV with `Study` and one column per label")
    keys = [study_key(str(value)) for value in table["Study"]]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{path} has more than one row for the study {twice!r}; keep one")
    table.index = pd.Index(keys)
    wanted = [study_key(study) for study in studies]
    missing = [study for study in wanted if study not in table.index]
    if missing:
        raise UserError(
            f"{path} has no row for {len(missing)} of our {len(wanted)} test studies (the first is "
            f"{missing[0]!r}); name the file that belongs to this test set"
        )
    values = np.column_stack([pd.to_numeric(table.loc[wanted, label], errors="coerce") for label in labels])
    bad = np.argwhere(~(np.isin(values, (0, 1)) if binary else np.isfinite(values)))
    if len(bad):
        i, j = bad[0]
        raise UserError(
            f"{path}, study {wanted[i]!r}, column {labels[j]}: {table[labels[j]][wanted[i]]!r} is not "
            f"{'0 or 1' if binary else 'a number'} ({len(bad)} such cells); correct the file"
        )
    return Reader(path.stem, labels, values.astype(np.float64))


def mean_rates(
    truth: np.ndarray,
    readers: Sequence[Reader],
    labels: Sequence[str] = COMPETITION_LABELS,
    counts: np.ndarray | None = None,
) -> Rates:
    """Rates of several readers, averaged over them: each (len(labels),), or (S, len(labels)) with resample counts.

    truth: (N, 14). Readers that lack one of `labels` raise `UserError`.
    """
    columns = [LABELS.index(label) for label in labels]
    each = []
    for reader in readers:
        lacking = [label for label in labels if label not in reader.labels]
        if lacking:
            raise UserError(f"the radiologists' file {reader.name} lacks the column {lacking[0]}; name a complete file")
        called = reader.values[:, [reader.labels.index(label) for label in labels]]
        each.append(rates(truth[:, columns], called, counts))
    return Rates(
        *(np.mean([getattr(one, name) for one in each], axis=0) for name in ("f1", "mcc", "sensitivity", "specificity"))
    )
