"""Equal patients, studies, file bytes and preprocessed images across the roles."""

import re
import unicodedata
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Match:
    """Something that two roles share.

    `a_id` and `b_id` are image ids; for the kinds `patient` and `study` one image of each side represents all
    (`key` is what is shared). `score` is the texture correlation of near-equal images or the Jaccard index of near-equal
    reports, else None.
    """

    kind: str
    a_role: str
    a_id: str
    b_role: str
    b_id: str
    key: str = ""
    score: float | None = None


#: sources that use CheXpert's patient numbers
CHEXPERT_NUMBERED = ("chexpert", "chexpert_plus")
NUMBER = re.compile(r"(?:(patient|pat|pt|p|subject|id)[\s_:#.-]*)?0*(\d+)(?:\.0*)?")


def patient_keys(rows: pd.DataFrame) -> pd.DataFrame:
    """The patients of each row, from its path and from the release's table: columns `row` and `key`.

    Spellings of one number are unified (`level`); a missing value matches no one.
    """
    claims = [pd.DataFrame({"row": np.arange(len(rows)), "key": _levelled(rows, "patient_id")})]
    if "patient_id_column" in rows:
        other = np.flatnonzero(rows["patient_id_column"] != rows["patient_id"])
        claims.append(pd.DataFrame({"row": other, "key": _levelled(rows.iloc[other], "patient_id_column")}))
    together = pd.concat(claims)
    return together[together["key"] != ""].drop_duplicates(ignore_index=True)


def level(value: str, source: str) -> str:
    """Normalise a patient's id: case, width of letters, white space, leading zeros and decimals.

    In CheXpert's numbering `64742`, `p64742`, `Patient 064742` and `patient64742.0` become `patient64742`; in other
    sources only a number with the word `patient` counts as CheXpert's. ReXGradient's ids get their source as prefix.
    """
    text = unicodedata.normalize("NFKC", value).strip().casefold()
    number = NUMBER.fullmatch(text)
    if number and (source in CHEXPERT_NUMBERED or number[1] == "patient"):
        return f"patient{number[2]}"
    return f"rexgradient/{text}" if source == "rexgradient" and text and "/" not in text else text


def _levelled(rows: pd.DataFrame, column: str) -> np.ndarray:
    """Normalise a column of ids; equal values share one string."""
    codes, distinct = pd.MultiIndex.from_frame(rows[[column, "source"]].fillna("").astype(str)).factorize()
    return np.array([*(level(value, source) for value, source in distinct), ""], dtype=object)[codes]


def disagreeing(rows: pd.DataFrame) -> pd.Series:
    """True where the path and the table name different patients."""
    if "patient_id_column" not in rows:
        return pd.Series(False, index=rows.index)
    path, column = (_levelled(rows, name) for name in ("patient_id", "patient_id_column"))
    return pd.Series((path != column) & (path != "") & (column != ""), index=rows.index)


def study_keys(rows: pd.DataFrame) -> pd.DataFrame:
    """The studies of each row: `patient/study` in CheXpert's numbering, the accession number in ReXGradient.

    CheXpert numbers studies per patient, so a row has one key for the path's patient and one for the table's.
    """
    study = rows["study_id"].fillna("").astype(str).str.casefold().str.rsplit("/", n=1).str[-1]
    claims = patient_keys(rows)
    own = study.to_numpy()[claims["row"]]
    rex = rows["source"].eq("rexgradient").to_numpy()[claims["row"]]
    claims["key"] = np.where(rex, "rexgradient/" + own, claims["key"].to_numpy() + "/" + own)
    return claims[own != ""].drop_duplicates(ignore_index=True)


def hash_keys(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The hashes in `column`; missing ones are left out."""
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
    """One match for each shared key or, for images, for each pair that shares it."""
    both = a_keys.merge(b_keys, on="key", suffixes=("_a", "_b"))
    if kind in ("patient", "study"):
        both = both.drop_duplicates("key")
    both = both.sort_values(["row_b", "row_a"])
    a_ids, b_ids = a_rows["id"].to_numpy(), b_rows["id"].to_numpy()
    return [
        Match(kind, a_role, a_ids[int(a)], b_role, b_ids[int(b)], key)
        for a, b, key in zip(both["row_a"], both["row_b"], both["key"], strict=True)
    ]
