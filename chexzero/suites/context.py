"""What a suite is given: the model, where the data lie, its flags, and features that are computed once a run."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chexzero.data import image_ids, open_images
from chexzero.errors import UserError


@dataclass
class ImageFeatures:
    """Rows of an image file as the model sees them: `features` (N, D) float32, L2-normalised, row i being `ids[i]`.

    `ids` is None for upstream's files, which carry none.
    """

    path: Path
    ids: list[str] | None
    features: np.ndarray

    def require_ids(self) -> list[str]:
        """The ids; `UserError` where the file has none and rows can therefore not be joined."""
        if self.ids is None:
            raise UserError(f"{self.path} carries no ids, so its rows cannot be joined with a table; make it with "
                            f"`python -m data_prep build`")
        return self.ids


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
    _images: dict[tuple, ImageFeatures] = field(default_factory=dict, repr=False)
    _texts: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def option(self, name: str, default: Any = None) -> Any:
        """The flag `name`, or `default` where it was not given."""
        value = self.options.get(name)
        return default if value is None else value

    def images_path(self, images: str | Path) -> Path:
        """The image file of a split (`"valid"`, `"test"`), or the file itself."""
        return self.data_dir / f"{images}.h5" if images in ("valid", "test") else Path(images)

    def manifest_path(self, images: str | Path) -> Path:
        """The manifest of a split's images: in the folder of manifests, else in the one beside the data."""
        name = f"{Path(images).stem}.csv"
        beside = self.data_dir.parent / "splits" / name
        return beside if beside.is_file() and not (self.splits_dir / name).is_file() else self.splits_dir / name

    def image_features(self, images: str | Path, rows: np.ndarray | None = None) -> ImageFeatures:
        """Features of a split's images (`"valid"`, `"test"`) or of any image file; computed once a run.

        With `rows` (ascending) only these are embedded. Raises `UserError` for a file that cannot be read and for
        images the model cannot tell apart at all.
        """
        from chexzero.inference import embed_images  # torch is only needed where something is embedded

        path = self.images_path(images)
        key = (path.resolve(), None if rows is None else rows.tobytes())
        if key not in self._images:
            with open_images(path) as handle:
                features = embed_images(self.model, handle["cxr"] if rows is None else _Rows(handle["cxr"], rows),
                                        batch_size=self.batch_size, device=self.device,
                                        precision=self.option("precision", "fp32"))
                ids = image_ids(handle)
            if rows is not None and ids is not None:
                ids = [ids[row] for row in rows]
            if len(features) > 1 and np.ptp(features, axis=0).max() < 1e-7:
                raise UserError(f"{path}: the model gives every image the same features (all black, or all alike?); "
                                f"look at the images, and make them again with `python -m data_prep build`")
            self._images[key] = ImageFeatures(path, ids, features)
        return self._images[key]

    def text_features(self, texts: list[str]) -> np.ndarray:
        """Features (T, D) float32 of `texts`, L2-normalised; each distinct text is encoded once a run."""
        from chexzero.inference import embed_texts

        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            self._texts.update(zip(new, embed_texts(self.model, new), strict=True))
        return np.stack([self._texts[text] for text in texts])


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
