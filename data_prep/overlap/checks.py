"""The comparisons between roles: what each compared and what it found."""

import hashlib
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from data_prep.overlap import near, near_reports, nominate, verify
from data_prep.overlap.contract import Role
from data_prep.overlap.identity import Match, disagreeing, hash_keys, patient_keys, shared, study_keys
from data_prep.roles import KEPT_OUT
from data_prep.steps.prepare import progress

log = logging.getLogger(__name__)

KINDS = {
    "patient": "Equal patient ids (from path and from table)",
    "study": "Equal study ids",
    "bytes": "Equal image files (SHA-256)",
    "pixels": "Equal preprocessed images (SHA-256)",
    "near": "Near-equal images (local features, texture compared)",
    "report": "Near-equal telling reports (word shingles)",
}
IMAGE_KINDS = ("bytes", "pixels", "near")
NAMES = {"train": "training", "valid": "validation", "test": "test", KEPT_OUT: "kept-out"}
#: The roles that training is compared with.
EVALUATED = tuple(name for name in NAMES if name != "train")


@dataclass
class Check:
    """One comparison: `a` and `b` say how many values of each role were compared; `note` is a remark for the report."""

    kind: str
    a_role: str
    b_role: str
    a: int
    b: int
    matches: list[Match] = field(default_factory=list)
    note: str = ""


KEYS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "patient": patient_keys,
    "study": study_keys,
    "bytes": lambda rows: hash_keys(rows, "file_sha256"),
    "pixels": lambda rows: hash_keys(rows, "pixel_sha256"),
}


def compare_records(roles: dict[str, Role]) -> list[Check]:
    """Compare ids, hashes and reports, which need no pixels, of each role with each later one."""
    checks = []
    for kind, keys_of in KEYS.items():  # one kind at a time holds only one set of keys for half a million rows
        keys = {name: keys_of(role.rows) for name, role in roles.items()}
        for a, b in compared_pairs(roles):
            check = Check(kind, a, b, keys[a]["key"].nunique(), keys[b]["key"].nunique())
            check.matches = shared(kind, a, roles[a].rows, keys[a], b, roles[b].rows, keys[b])
            check.note = _missing(check)
            checks.append(check)
    n_reports = {name: near_reports.n_reports(role.rows) for name, role in roles.items()}
    return checks + [
        _compare_reports(a, roles[a].rows, n_reports[a], b, roles[b].rows, n_reports[b])
        for a, b in compared_pairs(roles)
    ]


def compared_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of roles to compare: each role with each later one, but kept-out images only with training."""
    return [(a, b) for a, b in combinations(names, 2) if b != KEPT_OUT or a == "train"]


def _compare_reports(a: str, a_rows: pd.DataFrame, n_a: int, b: str, b_rows: pd.DataFrame, n_b: int) -> Check:
    check = Check("report", a, b, n_a, n_b)
    check.note = _missing(check)
    if not check.note:
        check.matches, common = near_reports.near_reports(a, a_rows, b, b_rows)
        check.note = f"{common:,} more pairs of studies share only a generic report"
    return check


def _missing(check: Check) -> str:
    without = [NAMES[role] for role, count in ((check.a_role, check.a), (check.b_role, check.b)) if not count]
    return f"not compared: there are none in the {' and the '.join(without)} set" if without else ""


@dataclass
class ImageResults:
    """Results of the two stages: checks, second-stage pairs by ids, number of pairs covered, and measurements."""

    checks: list[Check] = field(default_factory=list)
    pairs: dict[tuple[str, str], near.Pair] = field(default_factory=dict)
    compared: int = 0
    copies: list[near.Copy] = field(default_factory=list)
    unrelated: list[near.Pair] = field(default_factory=list)
    unrelated_ids: list[tuple[str, str]] = field(default_factory=list)


def compare_images(
    roles: dict[str, Role], work_dir: Path, *, copies: int, unrelated: int, seed: int, workers: int
) -> ImageResults:
    """Compare all training images with all evaluation images and validation with test; measure recall and false alarms.

    In memory: the evaluation images, and blocks of the training images, whose signatures are in a file in `work_dir`.
    """
    results = ImageResults()
    sides: list[str] = [name for name in EVALUATED if name in roles]
    if not sides:
        return results
    cv2.setNumThreads(1)  # images are processed in parallel instead
    images = np.stack([verify.at_size(image) for name in sides for image in np.asarray(roles[name].images[:])])
    ids = np.concatenate([roles[name].rows["id"].to_numpy() for name in sides])
    role_of = np.repeat(sides, [len(roles[name].rows) for name in sides])
    sizes = {name: len(role.rows) for name, role in roles.items()}
    search = near.Search.prepare(images, workers)
    if "train" in roles:
        pairs = _against_training(roles["train"], search, work_dir, workers)
        results.compared += sizes["train"] * len(images)
        _collect(results, pairs, "train", roles["train"].rows["id"].to_numpy(), role_of, ids, sizes)
    if {"valid", "test"} <= roles.keys():
        results.compared += sizes["valid"] * sizes["test"]
        _collect(results, _between(search, role_of, workers), "valid", ids, role_of, ids, sizes)

    log.info("audit: planting %d disguised copies, comparing %d unrelated pairs", copies, unrelated)
    results.copies = near.planted_copies(search, copies, seed, workers)
    results.unrelated = near.unrelated_pairs(search, _related(roles, sides, role_of), unrelated, workers)
    results.unrelated_ids = [(ids[pair.query], ids[pair.row]) for pair in results.unrelated]
    return results


def _against_training(train: Role, search: near.Search, work_dir: Path, workers: int) -> list[near.Pair]:
    """Compare training images with all evaluation images; stores word weights and nominations in `search`."""
    with (
        tempfile.TemporaryFile(dir=work_dir) as file,
        progress(len(train.rows), "audit: signatures") as bar,
    ):  # a file without a name: a killed run leaves nothing behind
        signatures = nominate.write_signatures(train.images, search.vocabulary, file, workers, bar.update)
        bar.close()
        started = time.monotonic()
        search.weights = nominate.rarity(signatures, search.vocabulary.size)
        search.nominations = nominate.nominate(search.views, search.weights, signatures, workers)
    total = sum(len(found.rows) for found in search.nominations)
    log.info(
        "audit: %d of %d pairs nominated (%.0f s)",
        total,
        len(train.rows) * len(search.images),
        time.monotonic() - started,
    )
    report = _progress(len(search.images))
    return near.second_stage(search, dict(enumerate(search.nominations)), near.reader(train.images), workers, report)


def _progress(total: int) -> Callable[[int], None]:
    def report(done: int) -> None:
        if done % 100 == 0 or done == total:
            log.info("audit: second stage, %d of %d evaluation images", done, total)

    return report


def _between(search: near.Search, role_of: np.ndarray, workers: int) -> list[near.Pair]:
    """Compare test images with validation images; rows and queries index all evaluation images."""
    valid, test = np.flatnonzero(role_of == "valid"), np.flatnonzero(role_of == "test")
    signatures = search.signatures[valid]
    weights = nominate.rarity(signatures, search.vocabulary.size)
    found = nominate.nominate([search.views[query] for query in test], weights, signatures, workers)
    for one in found:
        one.rows = valid[one.rows]
    return near.second_stage(search, dict(zip(test.tolist(), found, strict=True)), search.prepared, workers)


def _collect(
    results: ImageResults,
    pairs: list[near.Pair],
    a: str,
    a_ids: np.ndarray,
    role_of: np.ndarray,
    ids: np.ndarray,
    sizes: dict[str, int],
) -> None:
    others = [other for name, other in compared_pairs(sizes) if name == a]
    checks = {b: Check("near", a, b, sizes[a], sizes[b]) for b in others}
    looked_at = dict.fromkeys(others, 0)
    for pair in pairs:
        a_id, b_id, b = a_ids[pair.row], ids[pair.query], str(role_of[pair.query])
        results.pairs[a_id, b_id] = pair
        looked_at[b] += 1
        if pair.same:
            checks[b].matches.append(Match("near", a, a_id, b, b_id, score=round(pair.score, 4)))
    for b, check in checks.items():
        check.note = f"{looked_at[b]:,} nominated and compared pixel by pixel"
    results.checks += checks.values()


def _related(roles: dict[str, Role], sides: list[str], role_of: np.ndarray) -> Callable[[int, int], bool]:
    """Return a test of whether two evaluation images may show one patient: shared id, missing id or different sets."""
    rows = pd.concat([roles[name].rows for name in sides], ignore_index=True)
    claims = patient_keys(rows).groupby("row")["key"].agg(set).to_dict()
    nobody: set[str] = set()

    def related(i: int, j: int) -> bool:
        own, other = claims.get(i, nobody), claims.get(j, nobody)
        return role_of[i] != role_of[j] or not own or not other or bool(own & other)

    return related


def reasons_to_leave_out(train: pd.DataFrame, checks: list[Check]) -> dict[str, str]:
    """Training image id -> why to leave it out: it matches an evaluation image, or another image of its patient does.

    A match means that the evaluation patient is this training patient, so all images of the patient are left out.
    """
    direct: dict[str, str] = {}
    claims = patient_keys(train)
    for check in checks:
        for match in check.matches if check.a_role == "train" else ():
            direct.setdefault(
                match.a_id, f"overlap with {match.b_role}: {KINDS[match.kind].split(' (')[0].lower()} ({match.b_id})"
            )
    own = claims[train["id"].isin(list(direct)).to_numpy()[claims["row"]]]
    image_of = train["id"].to_numpy()
    causes: dict[str, str] = {}
    for row, key in zip(own["row"], own["key"], strict=True):
        causes.setdefault(key, image_of[row])
    theirs = claims[claims["key"].isin(causes)]
    for row, key in zip(theirs["row"], theirs["key"], strict=True):
        cause = causes[key]
        direct.setdefault(image_of[row], f"{direct[cause].split(' (')[0]}, of the same patient ({cause})")
    return direct


def known(ids: pd.Series) -> int:
    """The number of distinct ids; an audit of images alone has none."""
    return int(ids[ids != ""].nunique())


NOBODY = {"images": 0, "patients": 0, "matching": 0, "by_source": {}}


def concerned(train: pd.DataFrame, reasons: dict[str, str]) -> dict[str, Any]:
    """Count the training images of matching patients: all, those that match themselves, patients, by source."""
    rows = train[train["id"].isin(list(reasons))]
    return {
        "images": len(reasons),
        "patients": known(rows["patient_id"]),
        "matching": sum("of the same patient" not in reason for reason in reasons.values()),
        "by_source": {str(name): int(n) for name, n in rows["source"].value_counts(sort=False).items()},
    }


def in_both_splits(rows: pd.DataFrame) -> dict[str, int]:
    """Source -> number of patients in more than one of its splits within this role, which is harmless."""
    splits = rows.groupby(["source", "patient_id"])["split"].nunique()
    return {str(source): int((group > 1).sum()) for source, group in splits.groupby(level="source")}


def hashes_of(rows: pd.DataFrame) -> pd.Series:
    """The hashes of the preprocessed images, "" where there is none."""
    return rows["pixel_sha256"].fillna("") if "pixel_sha256" in rows else pd.Series("", index=rows.index)


def facts(role: Role) -> dict[str, Any]:
    """Count what the audit was given of a role."""
    rows = role.rows
    hashes = hashes_of(rows)
    return {
        "images": len(rows),
        "studies": known(rows["study_id"]),
        "patients": known(rows["patient_id"]),
        "reports": near_reports.n_reports(rows),
        "by_source": {name: int(n) for name, n in Counter((rows["source"] + " " + rows["split"]).str.strip()).items()},
        "ids_disagree": int(disagreeing(rows).sum()),
        "ids_that_disagree": rows["id"][disagreeing(rows)].tolist(),
        "content_sha256": hashlib.sha256(
            "\n".join(f"{i} {h}" for i, h in zip(rows["id"], hashes, strict=True)).encode()
        ).hexdigest(),
        "patients_in_several_splits": in_both_splits(rows),
        "equal_images_within": int(hashes[hashes != ""].duplicated().sum()),
    }
