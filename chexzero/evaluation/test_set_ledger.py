"""A ledger of the evaluations on the test set: a test set that is read often becomes a validation set."""

import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chexzero.common.errors import UserError
from chexzero.common.files import read_json, write_json
from chexzero.evaluation.sets import EvaluationSet
from chexzero.zero_shot import Predictor

log = logging.getLogger(__name__)


NAME = "test_reads.json"


def ledger_path(data_dir: Path, out: Path) -> Path:
    """Return the ledger's path: beside the test set, shared by all results; in `out` if that folder is not writable."""
    if os.access(data_dir, os.W_OK):
        return data_dir / NAME
    log.warning(
        "%s cannot be written: the ledger of test-set reads is kept in %s and may lack other reads", data_dir, out
    )
    return out / NAME


def record_test_read(
    path: Path, predictors: Sequence[Predictor], test: EvaluationSet, level: str, run: str = ""
) -> list[dict[str, Any]]:
    """Add this evaluation to the ledger, unless it is there already; return all entries of this set, oldest first.

    An entry names the checkpoints and the test images by SHA-256; the same checkpoints on the same images at the same
    level are one read, because their predictions come from the cache.
    """
    entry = {"checkpoints": sorted(one.sha256 for one in predictors), "test_images": test.images_sha256, "level": level}
    entries = read_json(path, "delete it to begin a new ledger") if path.is_file() else []
    if not isinstance(entries, list) or not all(isinstance(old, dict) for old in entries):
        raise UserError(f"{path} is not a ledger of test-set reads; delete it to begin a new one")
    if not any(all(old.get(key) == value for key, value in entry.items()) for old in entries):
        names = sorted(one.checkpoint.name for one in predictors)
        entries.append(entry | {"run": run, "names": names, "date": datetime.now(UTC).date().isoformat()})
        write_json(path, entries)
    return [old for old in entries if old.get("test_images") == test.images_sha256]
