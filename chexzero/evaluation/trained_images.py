"""Whether a run was trained on images of an evaluation set: by the pixels' SHA-256, and by the images' ids."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chexzero.common.files import read_table
from chexzero.common.formats import open_images, read_build
from chexzero.evaluation.named_sets import NamedSet
from chexzero.runs.evidence import TRAINING, trained_on
from chexzero.runs.run_folder import RunFolder

#: Parts of an id, from its end, that name an image within its dataset: patient, study and image.
ID_PARTS = 3


@dataclass(frozen=True)
class TrainedImages:
    """Pixel hashes and ends of ids of the images that a run was trained on; `why_unknown` if they are unknown."""

    hashes: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    why_unknown: str = ""

    def found_in(self, data: NamedSet) -> int:
        """Count the images of a set that are among them."""
        if self.why_unknown:
            return 0
        ids = data.table["id"].fillna("")
        return sum(
            digest in self.hashes or (end := _end(name)) is not None and end in self.ids
            for digest, name in zip(image_hashes(data.images), ids, strict=True)
        )


def trained_images(run: RunFolder | None, data_dir: Path, splits: Path) -> TrainedImages:
    """Read the manifest of the training images, if these are the images that the run recorded."""
    training = trained_on(run)
    built = read_build(data_dir).get("files", {}).get(TRAINING, {})
    if training is None:
        return TrainedImages(why_unknown="the checkpoint's training images are not recorded")
    if not isinstance(built, dict) or built.get("sha256") != training:
        return TrainedImages(why_unknown=f"the run was trained on images that {data_dir} does not hold, by SHA-256")
    manifest = next((path for path in (splits, data_dir.parent / "splits") if (path / "train.csv").is_file()), None)
    if manifest is None:
        return TrainedImages(why_unknown=f"there is no manifest {splits / 'train.csv'}")
    table = read_table(manifest / "train.csv", ["id", "pixel_sha256"], all_columns=False)
    ends = (_end(name) for name in table["id"].dropna())
    return TrainedImages(frozenset(table["pixel_sha256"].dropna()), frozenset(end for end in ends if end))


def _end(name: str) -> str | None:
    parts = name.split("/")
    return "/".join(parts[-ID_PARTS:]) if len(parts) >= ID_PARTS else None


def image_hashes(path: Path) -> list[str]:
    """SHA-256 of every stored image, in the file's order."""
    with open_images(path) as handle:
        images = handle["cxr"]
        return [
            hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
            for start in range(0, len(images), 64)
            for image in images[start : start + 64]
        ]
