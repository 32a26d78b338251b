"""Equal patients, studies, file bytes and preprocessed images across the roles."""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Match:
    """Something that two roles share.

    `a_id` and `b_id` are image ids; for the kinds `patient` and `study` one image of each side stands for all
    (`key` is what is shared). `score` is the texture correlation of near-equal images, None else.
    """

    kind: str
    a_role: str
    a_id: str
    b_role: str
    b_id: str
    key: str = ""
    score: float | None = None


def patient_keys(rows: pd.DataFrame) -> pd.DataFrame:
    """Every patient that a row claims, from its path and from the release's table: columns `row` and `key`.

    Upper and lower case and leading zeros of a number are levelled; a missing value claims nobody.
    """
    claims = [pd.DataFrame({"row": np.arange(len(rows)), "key": _level(rows["patient_id"])})]
    if "patient_id_column" in rows:
        other = np.flatnonzero(rows["patient_id_column"] != rows["patient_id"])
        claims.append(pd.DataFrame({"row": other, "key": _level(rows["patient_id_column"].iloc[other])}))
    together = pd.concat(claims)
    return together[together["key"] != ""].drop_duplicates(ignore_index=True)


def _level(values: pd.Series) -> np.ndarray:
    """Case, white space and leading zeros levelled; equal values share one string."""
    codes, distinct = pd.factorize(values.fillna("").astype(object))
    levelled = [re.sub(r"^patient0*(?=\d)", "patient", str(value).strip().casefold()) for value in distinct]
    return np.array([*levelled, ""], dtype=object)[codes]


def disagreeing(rows: pd.DataFrame) -> pd.Series:
    """True where the path and the table both name a patient, and not the same."""
    if "patient_id_column" not in rows:
        return pd.Series(False, index=rows.index)
    path, column = _level(rows["patient_id"]), _level(rows["patient_id_column"])
    return pd.Series((path != column) & (path != "") & (column != ""), index=rows.index)


def study_keys(rows: pd.DataFrame) -> pd.DataFrame:
    """The studies that a row claims: `patient/study` in CheXpert's numbering, the accession number in ReXGradient.

    A CheXpert study belongs to a patient, so it is claimed once by the path's patient and once by the table's.
    """
    study = rows["study_id"].fillna("").astype(str).str.casefold().str.rsplit("/", n=1).str[-1]
    claims = patient_keys(rows)
    own = study.to_numpy()[claims["row"]]
    rex = rows["source"].eq("rexgradient").to_numpy()[claims["row"]]
    claims["key"] = np.where(rex, "rexgradient/" + own, claims["key"].to_numpy() + "/" + own)
    return claims[own != ""].drop_duplicates(ignore_index=True)


def hash_keys(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The hashes in `column`; a missing one is no key."""
    if column not in rows:
        return pd.DataFrame({"row": [], "key": []})
    claims = pd.DataFrame({"row": np.arange(len(rows)), "key": rows[column].fillna("").to_numpy(dtype=object)})
    return claims[claims["key"] != ""]


def shared(
    kind: str,
    a_role: str,
    a_rows: pd.DataFrame,
    a_keys: pd.DataFrame,
    b_role: str,
    b_rows: pd.DataFrame,
    b_keys: pd.DataFrame,
) -> list[Match]:
    """One match for each key that both sides have and, for images, for each pair that shares it."""
    both = a_keys.merge(b_keys, on="key", suffixes=("_a", "_b"))
    if kind in ("patient", "study"):
        both = both.drop_duplicates("key")
    both = both.sort_values(["row_b", "row_a"])
    a_ids, b_ids = a_rows["id"].to_numpy(), b_rows["id"].to_numpy()
    return [
        Match(kind, a_role, a_ids[int(a)], b_role, b_ids[int(b)], key)
        for a, b, key in zip(both["row_a"], both["row_b"], both["key"], strict=True)
    ]
