"""The input of a suite: the model, the data's folders, the flags, and features that are computed once per run."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chexzero.common.formats import grey_images, image_ids, images_file, open_images
from chexzero.common.resample import RESOLUTION


@dataclass
class EvaluationContext:
    """One evaluation run. `options` holds the command's flags by name (`vars(args)`)."""

    model: Any
    device: Any
    data_dir: Path
    splits_dir: Path
    out_dir: Path
    batch_size: int = 64
    seed: int = 1234
    options: dict[str, Any] = field(default_factory=dict)
    image_size: int = RESOLUTION  # side in pixels to which a folder's images are scaled
    _images: dict[tuple, np.ndarray] = field(default_factory=dict, repr=False)
    _folders: dict[Path, list[Path]] = field(default_factory=dict, repr=False)
    _texts: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def option(self, name: str, default: Any = None) -> Any:
        """The flag `name`, or `default` if it was not given."""
        value = self.options.get(name)
        return default if value is None else value

    def images_path(self, images: str | Path) -> Path:
        """The image file of a set (`"valid"`, `"test"`), or the file or folder itself."""
        return self.data_dir / images_file(images) if images in ("valid", "test") else Path(images)

    def manifest_path(self, images: str | Path) -> Path:
        """The manifest of a set's images: in the folder of manifests, else in `splits` beside the data folder."""
        name = f"{Path(images).stem}.csv"
        beside = self.data_dir.parent / "splits" / name
        return beside if beside.is_file() and not (self.splits_dir / name).is_file() else self.splits_dir / name

    def image_ids(self, images: str | Path) -> tuple[list[str] | None, int]:
        """The ids of an image file (None for upstream's, which carry none) and how many images there are.

        The ids of a folder of images are the file names without endings, which in MIMIC-CXR-JPG are the `dicom_id`s.
        """
        path = self.images_path(images)
        if path.is_dir():
            names = [file.stem for file in self._files(path)]
            return names, len(names)
        with open_images(path) as handle:
            return image_ids(handle), len(handle["cxr"])

    def image_features(self, images: str | Path, rows: np.ndarray | None = None) -> np.ndarray:
        """Features (N, D) float32, L2-normalised, of a set's images (`"valid"`, `"test"`), of any image file or of
        a folder of images; computed once per run.

        With `rows` (ascending) only these are embedded. Raises `UserError` for a file that cannot be read and for
        images that the model cannot tell apart at all.
        """
        from chexzero.imaging.image_files import ImageFiles
        from chexzero.zero_shot import check_features, embed_images

        path = self.images_path(images)
        key = (path.resolve(), None if rows is None else rows.tobytes())
        if key not in self._images:
            how = {
                "batch_size": self.batch_size,
                "device": self.device,
                "progress": sys.stderr.isatty(),
                "precision": self.option("precision", "fp32"),
            }
            if path.is_dir():
                files = self._files(path)
                chosen: Any = ImageFiles(files if rows is None else [files[row] for row in rows], self.image_size)
                features = embed_images(self.model, chosen, **how)
            else:
                with open_images(path) as handle:
                    images_there = grey_images(handle, self.option("pixel_range"))
                    chosen = images_there if rows is None else _Rows(images_there, rows)
                    features = embed_images(self.model, chosen, **how)
            check_features(features, str(path))
            self._images[key] = features
        return self._images[key]

    def file_features(self, files: Sequence[Path]) -> np.ndarray:
        """Features (N, D) float32, L2-normalised, of image files in their order."""
        from chexzero.imaging.image_files import ImageFiles
        from chexzero.zero_shot import check_features, embed_images

        features = embed_images(
            self.model,
            ImageFiles(files),
            batch_size=self.batch_size,
            device=self.device,
            progress=sys.stderr.isatty(),
            precision=self.option("precision", "fp32"),
        )
        check_features(features, str(files[0].parent))
        return features

    def features_of(self, images: str | Path, rows: np.ndarray) -> np.ndarray:
        """Features of `rows` in their order; a row may occur twice. Only these rows are embedded."""
        wanted, place = np.unique(rows, return_inverse=True)
        _, n = self.image_ids(images)
        return self.image_features(images, wanted if len(wanted) < n else None)[place]

    def _files(self, folder: Path) -> list[Path]:
        from chexzero.imaging.image_files import images_in

        if folder not in self._folders:
            self._folders[folder] = images_in(folder)
        return self._folders[folder]

    def text_features(self, texts: list[str]) -> np.ndarray:
        """Features (T, D) float32 of `texts`, L2-normalised; each distinct text is encoded once per run."""
        from chexzero.zero_shot import embed_texts

        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            self._texts.update(zip(new, embed_texts(self.model, new), strict=True))
        return np.stack([self._texts[text] for text in texts])

    def probabilities(self, features: np.ndarray, pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> np.ndarray:
        """Probabilities (N, len(pairs)) of images with the features (N, D), from each pair of prompts."""
        from chexzero.zero_shot import pair_features, pair_probabilities

        return pair_probabilities(features, *pair_features(self.text_features, pairs))


@dataclass
class _Rows:
    """Some rows of an image dataset, read batch by batch."""

    images: Any
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.images[self.rows[part]]


def file_flag(group: argparse._ArgumentGroup, name: str, text: str) -> None:
    """Add the flag `--name FILE` to a suite's group."""
    group.add_argument(f"--{name}", metavar="FILE", help=text)
