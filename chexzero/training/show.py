"""`--show_batch`: a picture of the first training images as the model sees them."""

import textwrap
from pathlib import Path
from typing import cast

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from chexzero.common.errors import UserError
from chexzero.common.files import atomic_path
from chexzero.imaging.normalise import MEAN, STD, prepare
from chexzero.model import CLIP
from chexzero.simple_tokenizer import default_tokenizer
from chexzero.train import CXRDataset
from chexzero.training.augment import Augmentation
from chexzero.training.batches import Batches, Rows
from chexzero.training.config import TrainConfig

IMAGES, EPOCHS = 8, 4


def augmentation(config: TrainConfig, dataset: CXRDataset, model: CLIP) -> Augmentation:
    """The augmentation of a run; falsy if it changes nothing."""
    return Augmentation(
        config.augment, flip=config.augment_flip, rows=len(dataset), seed=config.seed, resolution=model.image_resolution
    )


def show_batch(path: Path, config: TrainConfig, loader: DataLoader, model: CLIP) -> None:
    """Write a contact sheet (PNG) of the run's first images and texts.

    One line per pair: the image as stored and scaled, then, with `--augment`, as augmented in the first epochs; above
    them its text, decoded from the tokens.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--show_batch {path} must end with .png; rename it")
    dataset, plan = cast(CXRDataset, loader.dataset), cast(Batches, loader.sampler)
    batch, change = dataset[Rows(next(iter(plan))[:IMAGES], epoch=0)], augmentation(config, dataset, model)
    rows = batch["row"]
    seen = {"without augmentation" if change else "": batch["img"]}
    if change:
        seen |= {f"epoch {epoch}": change(batch["img"], epoch, rows) for epoch in range(EPOCHS)}
    columns = [prepare(images, model.image_resolution)[:, 0] * STD + MEAN for images in seen.values()]

    canvas = Figure(figsize=(2.4 * max(3, len(columns)), 2.8 * len(rows)), layout="constrained")
    FigureCanvasAgg(canvas)
    lines = canvas.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for place, line in enumerate(lines):
        words = words_of(batch["txt"][place])
        line.suptitle(
            "\n".join(textwrap.wrap(f"row {int(rows[place])}: {words}", 32 * max(3, len(columns)))),
            fontsize=8,
            parse_math=False,
        )
        for axes, title, images in zip(line.subplots(1, len(columns), squeeze=False)[0], seen, columns, strict=True):
            axes.imshow(images[place], cmap="gray", vmin=0, vmax=255)
            axes.set_title(title if place == 0 else "", fontsize=8)
            axes.axis("off")
    with atomic_path(path) as temporary:
        canvas.savefig(temporary, format="png", dpi=100)


def words_of(tokens: torch.Tensor) -> str:
    """Decode tokens (T,) to text, without start, end and padding."""
    tokenizer = default_tokenizer()
    return tokenizer.decode([int(token) for token in tokens[1 : int(tokens.argmax())]]).strip()
