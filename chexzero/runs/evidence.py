"""Check a run's record of its training images against the files that the overlap audit covered."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexzero.common.files import read_json
from chexzero.common.formats import read_build
from chexzero.runs.run_folder import RunFolder

#: Name of the training images in a build.
TRAINING = "cxr.h5"


@dataclass(frozen=True)
class Claim:
    """Whether the audit's sentence holds for a model. `reason`: why not; `leak`: it trained on an evaluation set."""

    sentence: str
    known: bool
    reason: str = ""
    leak: bool = False

    @property
    def text(self) -> str:
        """The sentence that a report or card may print."""
        if self.leak:
            return f"The model was trained on an evaluation set: {self.reason}."
        if self.known:
            return self.sentence
        return f"Whether the model was trained on an evaluation image or patient is unknown, because {self.reason}."


def read_audit(data_dir: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The overlap audit's summary and the SHA-256 of the files that it covered, by name; both empty if there is none.

    A build audits what it writes, so the hashes in `build.json` are those audited; an audit of finished files may
    record its own in `overlap_report.json`.
    """
    build = read_build(data_dir)
    report = data_dir / "overlap_report.json"
    found = read_json(report) if report.is_file() else {}
    found = found if isinstance(found, dict) else {}
    summary = found.get("summary") or build.get("overlap")
    hashes = _hashes(found.get("files")) or _hashes(build.get("files"))
    return (dict(summary), hashes) if isinstance(summary, Mapping) else ({}, {})


def _hashes(files: Any) -> dict[str, str]:
    """`{name: digest}` of `{name: {"sha256": digest}}` or `{name: digest}`; names without a folder."""
    if not isinstance(files, Mapping):
        return {}
    pairs = (
        (Path(str(name)).name, one.get("sha256") if isinstance(one, Mapping) else one) for name, one in files.items()
    )
    return {name: digest for name, digest in pairs if isinstance(digest, str)}


def trained_on(run: RunFolder | None) -> str | None:
    """SHA-256 of the training images as the run recorded it."""
    if run is None or not isinstance(run.settings.get("cxr_filepath"), str):
        return None
    data = run.config.get("data")
    files = data.get("files") if isinstance(data, Mapping) else None
    one = files.get(run.settings["cxr_filepath"]) if isinstance(files, Mapping) else None
    digest = one.get("sha256") if isinstance(one, Mapping) else None
    return digest if isinstance(digest, str) else None


def _other_size(run: RunFolder, data_dir: Path) -> bool:
    """Whether the run's training file differs in size from the build's; the run copied its hash from the build."""
    one = run.config.get("data", {}).get("files", {}).get(run.settings.get("cxr_filepath"), {})
    built = read_build(data_dir).get("files", {}).get(TRAINING)
    sizes = one.get("bytes"), built.get("bytes") if isinstance(built, Mapping) else None
    return None not in sizes and sizes[0] != sizes[1]


def training_claim(
    run: RunFolder | None, checkpoints: Mapping[Path, str], data_dir: Path, evaluated: Mapping[str, str]
) -> Claim:
    """Whether the audit in `data_dir` applies to these checkpoints (path -> SHA-256) and these sets.

    evaluated: name of each evaluation set's image file -> SHA-256 of the bytes that were evaluated.
    """
    summary, audited = read_audit(data_dir)
    sentence = str(summary.get("sentence") or "")
    training = trained_on(run)
    on_test = sorted(name for name, digest in evaluated.items() if training is not None and digest == training)
    if on_test:
        return Claim(sentence, False, f"the run's training images are {on_test[0]} itself, by SHA-256", leak=True)
    reason = _why_unknown(run, training, checkpoints, sentence, audited, evaluated, data_dir)
    return Claim(sentence, not reason, reason)


def _why_unknown(
    run: RunFolder | None,
    training: str | None,
    checkpoints: Mapping[Path, str],
    sentence: str,
    audited: Mapping[str, str],
    evaluated: Mapping[str, str],
    data_dir: Path,
) -> str:
    """The first missing link between audit, run, checkpoint and evaluated files, or nothing."""
    if not sentence:
        return f"there is no overlap audit of {data_dir} (run `python -m data_prep audit`)"
    if run is None:
        return "no training run belongs to the checkpoint: its training data are not recorded"
    if training is None:
        return "the run recorded no hash of its training images"
    if TRAINING not in audited:
        return f"the audit does not name the hash of the training images that it covered ({TRAINING})"
    if audited[TRAINING] != training or _other_size(run, data_dir):
        return "the run was trained on images other than those that the audit covered, by SHA-256"
    for name, digest in evaluated.items():
        if audited.get(name) != digest:
            return f"{name} is not the file that the audit covered, by SHA-256"
    return foreign_checkpoint(run, checkpoints)


def foreign_checkpoint(run: RunFolder, checkpoints: Mapping[Path, str]) -> str:
    """Why a checkpoint is not known to be the run's own, or nothing."""
    for path, digest in checkpoints.items():
        if path.resolve().parent != run.path.resolve():
            return f"the checkpoint {path} is not in the run's folder"
        recorded = run.checkpoint_sha256.get(path.name)
        if recorded is not None and recorded != digest:
            return f"{path.name} is not the file that the run wrote, by SHA-256"
    return ""
