"""`build.json`: what a build read, left out and wrote; and the table printed at the end of a build."""

from collections import Counter
from pathlib import Path
from typing import Any

from chexzero.common.errors import UserError
from chexzero.common.files import read_json, sha256_of
from chexzero.common.versions import git_revision
from data_prep.context import count_longer
from data_prep.overlap.contract import Audit
from data_prep.releases.rows import Row, read_records
from data_prep.roles import ROLES
from data_prep.steps.failures import LEFT_OUT_COLUMNS
from data_prep.steps.sets import MANIFESTS
from data_prep.steps.work import Plan

REDO = "discard it with --overwrite, or name another --out"


#: What early builds did not record; where a finished build lacks it, it is not compared.
RECORDED_LATER = (("settings", "range16"), ("libraries", "simplejpeg"))


class Counts:
    """Images, patients, studies and views by role and release/split, and what was left out for which reason."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.images: dict[tuple[str, str], Counter[str]] = {}
        self.sixteen_bit: Counter[tuple[str, str]] = Counter()
        self.odd: list[tuple[Row, str]] = []
        self.patients: dict[tuple[str, str], set[str]] = {}
        self.studies: dict[tuple[str, str], set[str]] = {}
        self.left_out: dict[str, Counter[str]] = {}

    def add(self, role: str, row: Row, hashes: dict[str, str]) -> None:
        """Count an image that was written."""
        part = (role, f"{row.source}/{row.split}")
        self.images.setdefault(part, Counter())[row.view] += 1
        self.sixteen_bit[part] += hashes["bits"] == "16"
        if hashes["note"]:
            self.odd.append((row, hashes["note"]))
        self.patients.setdefault(part, set()).add(row.patient_id)
        self.studies.setdefault(part, set()).add(row.study_id)

    def add_left_out(self, path: Path) -> None:
        """Count what `left_out.csv` lists."""
        for _, record in read_records(path, LEFT_OUT_COLUMNS, REDO):
            reason = record["reason"].partition(" (")[0]  # the rest names the image; only kinds of reasons are counted
            self.left_out.setdefault(f"{record['source']}/{record['split']}", Counter())[reason] += 1

    def by_role(self) -> dict[str, dict[str, dict[str, Any]]]:
        """role -> release/split -> counts."""
        counts: dict[str, dict[str, dict[str, Any]]] = {role: {} for role in ROLES}
        for (role, part), views in self.images.items():
            counts[role][part] = {
                "in_tables": self.plan.counts["in_tables"].get(part, 0),
                "images": views.total(),
                "studies": len(self.studies[role, part]),
                "patients": len(self.patients[role, part]),
                "views": dict(sorted(views.items())),
                "sixteen_bit": self.sixteen_bit[role, part],
                "empty_reports": self.plan.counts["empty_reports"].get(part, 0) if role == "train" else None,
                "left_out": dict(self.left_out.get(part, Counter()).most_common()),
            }
        return counts


def build_record(plan: Plan, counts: Counts, out: Path, rows: dict[str, int], audit: Audit) -> dict[str, Any]:
    """The content of `build.json`; `rows` maps the build's files in `out` to their number of rows."""
    identity = plan.identity
    return {
        "command": "python -m data_prep build",
        "code": git_revision(),
        "drawn": plan.drawn,
        "settings": identity["settings"] | {name: plan.finishing[name] for name in ("on_overlap", "max_failures")},
        "roles": identity["roles"],
        "inputs": identity["inputs"],
        "images": identity["images"],
        "libraries": identity["libraries"],
        "counts": counts.by_role(),
        "longer_than_context": count_longer(out / "impressions.csv"),
        "warnings": plan.counts.get("warnings", []),
        "keep_out": plan.counts.get("keep_out", {}),
        "odd_ranges": len(counts.odd),
        "left_out": dict(sum(counts.left_out.values(), Counter()).most_common()),
        "files": {
            name: {"sha256": sha256_of(out / name), "bytes": (out / name).stat().st_size, "rows": n}
            for name, n in rows.items()
        },
        "manifests": {name: sha256_of(Path(plan.finishing["splits"]) / name) for name in MANIFESTS.values()},
        "overlap": audit.summary,
    }


def is_finished(plan: Plan, out: Path) -> bool:
    """Whether `out` already holds the build that `plan` describes; another build's result raises `UserError`."""
    path = out / "build.json"
    if not path.is_file():
        return False
    try:
        record = read_json(path, REDO)
        settings = dict(record["settings"])
        old = {name: record[name] for name in ("roles", "inputs", "images", "libraries")} | {"settings": settings}
        settings.pop("max_failures")
        counts = [n for parts in record.get("counts", {}).values() for n in parts.values()]
        sixteen_bit = sum(n.get("sixteen_bit", 0) for n in counts)
        sizes = {out / name: file["bytes"] for name, file in record["files"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is not the record of a build ({error}); {REDO}") from error
    new = plan.identity | {"settings": plan.identity["settings"] | {"on_overlap": plan.finishing["on_overlap"]}}
    if sixteen_bit and "range16" not in old["settings"] and old["settings"].get("depth16") == "stretch":
        old["settings"]["range16"] = "smallest to largest sample"  # the only behaviour before this setting
    for section, name in RECORDED_LATER:
        old[section] = {name: new[section][name]} | old[section]
    if old != new:
        raise UserError(f"{out} holds a finished build with other settings ({difference(old, new)}); {REDO}")
    for file, size in sizes.items():
        if not file.is_file() or file.stat().st_size != size:
            raise UserError(f"{file} does not match {path}; build again with --overwrite")
    return True


def difference(old: dict, new: dict, prefix: str = "") -> str:
    """The first settings in which two identities differ, as `name: old, now new`."""
    found = []
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict) and a != b:
            found.append(difference(a, b, f"{prefix}{key}."))
        elif a != b:
            found.append(f"{prefix}{key}: {a}, now {b}")
    return "; ".join(found[:3])


def summary(record: dict[str, Any], out: Path, splits: str) -> str:
    """The table printed at the end of a build."""
    columns = ("in tables", "left out", "images", "studies", "patients", "16-bit")
    lines = [f"{'role':6}{'release/split':22}" + "".join(f"{name:>11}" for name in columns)]
    for role, parts in record["counts"].items():
        for part, n in parts.items():
            values = (
                n["in_tables"],
                sum(n["left_out"].values()),
                n["images"],
                n["studies"],
                n["patients"],
                n["sixteen_bit"],
            )
            lines.append(f"{role:6}{part:22}" + "".join(f"{value:>11,}" for value in values))
    lines += [f"left out: {n:,} × {reason}" for reason, n in record["left_out"].items()]
    empty = sum(n["empty_reports"] for n in record["counts"]["train"].values())
    if empty and record["settings"]["empty_report"] != "drop":
        lines.append(f"{empty:,} training images have no {record['settings']['section']} text; they train with a space")
    if record["longer_than_context"]:
        lines.append(
            f"{record['longer_than_context']:,} training reports are longer than CLIP's context and are cut off there"
        )
    lines += [
        f"kept out of training by {file}: {n['images']:,} images ({n['found']:,} of its {n['entries']:,} entries)"
        for file, n in record["keep_out"].items()
    ]
    lines += [f"read {file['path']}" for file in record["inputs"].values()]
    lines += [f"WARNING: {warning}" for warning in record["warnings"]]
    if record["drawn"]:
        lines.append("The releases are drawn by `data_prep demo`: no number from them is a clinical result.")
    return "\n".join(
        [
            *lines,
            f"written to {out}: {', '.join(record['files'])}, build.json",
            f"written to {splits}: {', '.join(record['manifests'])}",
        ]
    )
