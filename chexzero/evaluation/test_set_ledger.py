"""A ledger of what was evaluated on the test set: a test set that is looked at often becomes a validation set."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from chexzero.common.files import read_json, write_json
from chexzero.evaluation.sets import EvaluationSet
from chexzero.zero_shot import Predictor


def record_test_read(path: Path, predictors: Sequence[Predictor], test: EvaluationSet, level: str) -> list[dict]:
    """Add this evaluation to the ledger, unless the same one is there, and return all entries, oldest first.

    An entry names the checkpoints and the test images by SHA-256; the same checkpoints on the same images at the same
    level are one read, because their predictions come from the cache.
    """
    entry = {"checkpoints": sorted(one.sha256 for one in predictors), "test_images": test.images_sha256, "level": level}
    entries = read_json(path, "delete it to begin a new ledger") if path.is_file() else []
    if not any(all(old.get(key) == value for key, value in entry.items()) for old in entries):
        names = sorted(one.checkpoint.name for one in predictors)
        entries.append(entry | {"names": names, "date": datetime.now(UTC).date().isoformat()})
        write_json(path, entries)
    return entries
