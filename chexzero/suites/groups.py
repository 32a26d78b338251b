"""Groups of patients: sex, race and age from the manifests, assigned to the groups of `subgroups.yaml`."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chexzero.common.errors import UserError
from chexzero.common.files import read_table
from chexzero.suites.tables import join, read_description

KEYS = ("attributes", "unknown", "ages", "min_cases")


def read_groups(path: str | Path) -> dict[str, Any]:
    """Read the description of the groups; a mistake raises `UserError`."""
    groups = read_description(path, KEYS)
    for attribute, members in groups["attributes"].items():
        if not isinstance(members, dict) or not all(isinstance(words, list) and words for words in members.values()):
            raise UserError(f"{path}: {attribute} must map each group to a list of words; correct it")
    for name, bounds in groups["ages"].items():
        if not isinstance(bounds, list) or sorted(set(bounds)) != bounds or len(bounds) < 2:
            raise UserError(f"{path}: {name} must list two or more ascending ages; correct it")
    if not isinstance(groups["min_cases"], int) or groups["min_cases"] < 2:
        raise UserError(f"{path}: min_cases must be a whole number of 2 or more; correct it")
    return groups


def read_demographics(manifest: Path, ids: list[str], ids_in: Path) -> pd.DataFrame:
    """Read the columns sex, age and race of a manifest, one row per id (strings, NaN where empty)."""
    table = read_table(
        manifest,
        ["id", "sex", "age", "race"],
        all_columns=False,
        remedy="name a manifest of `python -m data_prep build` with --subgroups_manifest",
    )
    return table.iloc[join(ids, ids_in, table["id"], manifest)].reset_index(drop=True)


def assign(people: pd.DataFrame, description: dict[str, Any]) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """Return attribute -> group -> (N,) of bool, and notes on groups without images.

    Attributes without any value are left out, with a note.
    """
    groups = {}
    for attribute, members in description["attributes"].items():
        values = people[attribute].fillna("").str.strip().str.lower()
        names = values.map(lambda value, members=members: _group_of(value, members, description["unknown"]))
        groups[attribute] = {name: (names == name).to_numpy() for name in members}
    years = people["age"].map(_years).to_numpy(dtype=np.float64)
    for attribute, bounds in description["ages"].items():
        groups[attribute] = {
            _band(low, high): (years >= low) & (years < high)
            for low, high in zip(bounds, [*bounds[1:], math.inf], strict=True)
        }
    notes = []
    for attribute, members in groups.items():
        empty = [name for name, rows in members.items() if not rows.any()]
        if len(empty) == len(members):
            notes.append(f"No image has a value of {attribute}; it is left out.")
        elif empty:
            notes.append(f"No image belongs to {', '.join(empty)} ({attribute}).")
    return {
        attribute: held
        for attribute, members in groups.items()
        if (held := {name: rows for name, rows in members.items() if rows.any()})
    }, notes


def _group_of(value: str, members: dict[str, list[str]], unknown: list[str]) -> str | None:
    if not value or any(value.startswith(word.lower()) for word in unknown):
        return None
    exact = [name for name, words in members.items() if value in words]
    starts = [name for name, words in members.items() for word in words if len(word) > 1 and value.startswith(word)]
    return next(iter(exact + starts), "Other" if "Other" in members else None)


def _years(age: Any) -> float:
    """`64`, `64.0` and `064Y` are 64; `006M` (months, weeks, days) is 0; anything else is unknown."""
    text = str(age).strip().upper()
    if text[-1:] in "MWD" and text[:-1].isdigit():
        return 0.0
    try:
        return float(text.removesuffix("Y"))
    except ValueError:
        return math.nan


def _band(low: int, high: float) -> str:
    return f"under {high}" if low == 0 else f"{low} and over" if math.isinf(high) else f"{low} to {high - 1}"
