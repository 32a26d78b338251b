"""Upstream's training interface for use from Python; the training command itself is `run_train.py`."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from chexzero import clip
from chexzero.common.errors import UserError
from chexzero.common.files import atomic_path, read_table
from chexzero.common.formats import check_rows, open_images
from chexzero.imaging.normalise import prepare
from chexzero.model import CLIP, pick_device
from chexzero.models.checkpoints import load_model


class ImageRows:
    """The images of an HDF5 file, opened in each process that reads them: a handle must not cross a fork."""

    def __init__(self, path: str | os.PathLike):
        self.path, self._pid = str(path), None
        with open_images(path) as file:
            self.length = len(file["cxr"])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> torch.Tensor:
        """One image, float32 (3, H, W), 0..255, three equal channels (an expanded view)."""
        if self._pid != os.getpid():
            self._images, self._pid = h5py.File(self.path, "r")["cxr"], os.getpid()
        image = torch.from_numpy(self._images[row].astype(np.float32))
        return image.expand(3, -1, -1)

    def __getstate__(self) -> dict:
        return {"path": self.path, "length": self.length, "_pid": None}


class CXRDataset(Dataset):
    """Pairs of a radiograph and its report: `{"img": float32 (3, H, W), 0..255, "txt": str}`.

    img_path: HDF5 with `cxr` (N, H, W). txt_path: CSV with `column`, row i belonging to image i; an empty cell is one
    space. `size` takes only the first rows. `transform` is applied to the image. Raises `UserError` for a missing
    column or a number of rows that is not the number of images.
    """

    def __init__(
        self,
        img_path: str | os.PathLike,
        txt_path: str | os.PathLike,
        column: str = "report",
        size: int | None = None,
        transform: Callable | None = None,
    ):
        table = read_table(txt_path, [column], remedy="name its text column")
        check_rows(img_path, txt_path, table)
        self.images = ImageRows(img_path)
        self.texts = table[column].fillna(" ").tolist()[:size]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor | str]:
        idx = range(len(self))[idx]
        image = self.images[idx]
        return {"img": self.transform(image) if self.transform else image, "txt": self.texts[idx]}


def image_transform(resolution: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Normalise and resize one image (3, H, W), 0..255, to (3, R, R), by `imaging.normalise.prepare` on one channel."""
    return lambda image: prepare(image[:1], resolution)[0]


def load_data(
    cxr_filepath: str | os.PathLike,
    txt_filepath: str | os.PathLike,
    batch_size: int = 4,
    column: str = "report",
    pretrained: bool = False,
    verbose: bool = False,
) -> tuple[DataLoader, torch.device]:
    """A shuffled loader of prepared pairs and the device to train on.

    Batches are `{"img": float32 (B, 3, R, R), "txt": list of B strings}` with R = 224 for the pretrained ViT-B/32 and
    320 otherwise; the last short batch is kept.
    """
    dataset = CXRDataset(
        cxr_filepath, txt_filepath, column=column, transform=image_transform(224 if pretrained else 320)
    )
    if verbose:
        tqdm.write(f"{len(dataset)} pairs in {cxr_filepath} and {txt_filepath}")
    return DataLoader(dataset, batch_size=batch_size, shuffle=True), pick_device()


def load_clip(
    model_path: str | os.PathLike | None = None, pretrained: bool = False, context_length: int = clip.CONTEXT_LENGTH
) -> CLIP:
    """A model to train: a checkpoint, else OpenAI's ViT-B/32 (`pretrained`), else a new ViT-B/16 at 320 px.

    A checkpoint says by its shapes which model it is, so `pretrained` does not matter for it.
    """
    if model_path is None and not pretrained:
        return CLIP(
            embed_dim=768,
            image_resolution=320,
            vision_layers=12,
            vision_width=768,
            vision_patch_size=16,
            context_length=context_length,
            vocab_size=49408,
            transformer_width=512,
            transformer_heads=8,
            transformer_layers=12,
        )
    model = load_model(model_path) if model_path is not None else clip.load("ViT-B/32", device="cpu")[0]
    check_context(model, context_length)
    return model.train()


def check_context(model: CLIP, context_length: int) -> None:
    """Raise `UserError` when a context length other than the default is asked of a model that has another."""
    if context_length not in (clip.CONTEXT_LENGTH, model.context_length):
        raise UserError(
            f"the context length {context_length} was asked for, but this model has "
            f"{model.context_length}; leave it at the default"
        )


def preprocess_text(texts: str | list[str], model: CLIP) -> torch.Tensor:
    """Tokens, int64 (len(texts), model.context_length); a longer text is cut, the end token in the last place."""
    return clip.tokenize(texts, model.context_length, truncate=True)


def make(
    config: Any,
    cxr_filepath: str | os.PathLike,
    txt_filepath: str | os.PathLike,
    model_path: str | os.PathLike | None = None,
) -> tuple[CLIP, DataLoader, torch.device, nn.Module, optim.Optimizer]:
    """Model, loader, device, criterion, AdamW; `config` has `batch_size, pretrained, column, context_length, lr`."""
    loader, device = load_data(
        cxr_filepath, txt_filepath, batch_size=config.batch_size, pretrained=config.pretrained, column=config.column
    )
    model = load_clip(model_path=model_path, pretrained=config.pretrained, context_length=config.context_length).to(
        device
    )
    return model, loader, device, nn.CrossEntropyLoss(), optim.AdamW(model.parameters(), lr=config.lr)


def train_batch(
    images: torch.Tensor,
    texts: list[str],
    model: CLIP,
    device: torch.device,
    criterion: nn.Module,
    optimizer: optim.Optimizer,
) -> torch.Tensor:
    """One step on prepared images (B, 3, R, R) and B texts; returns the loss before it, a scalar tensor.

    The loss is the mean of the two cross-entropies (images over texts, texts over images) against the diagonal.
    """
    tokens = clip.trim_padding(preprocess_text(texts, model)).to(device)
    logits_per_image, logits_per_text = model(images.to(device), tokens)
    labels = torch.arange(len(images), device=device)
    loss = (criterion(logits_per_image, labels) + criterion(logits_per_text, labels)) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


#: What `train_main` takes from `hyperparams`, and what it uses where a key is absent.
HYPERPARAMS = {
    "batch_size": 16,
    "learning_rate": 1e-4,
    "momentum": 0.9,
    "epochs": 4,
    "criterion": None,
    "column": "impression",
}


def train_main(
    cxr_filepath: str | os.PathLike,
    txt_filepath: str | os.PathLike,
    hyperparams: Mapping[str, Any],
    output_path: str | os.PathLike,
    model_path: str | os.PathLike | None = None,
    pretrained: bool = False,
) -> CLIP:
    """Train with SGD and write the state dict to `output_path`; returns the model.

    hyperparams: see `HYPERPARAMS`. (Upstream's function of this name stops with a NameError before its first step.)
    """
    unknown = set(hyperparams) - set(HYPERPARAMS)
    if unknown:
        raise UserError(
            f"the hyperparameters {', '.join(sorted(unknown))} are not known; there are {', '.join(HYPERPARAMS)}"
        )
    settings = {**HYPERPARAMS, **hyperparams}
    loader, device = load_data(
        cxr_filepath, txt_filepath, batch_size=settings["batch_size"], column=settings["column"], pretrained=pretrained
    )
    model = load_clip(model_path=model_path, pretrained=pretrained).to(device)
    criterion = settings["criterion"] or nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=settings["learning_rate"], momentum=settings["momentum"])
    for epoch in range(settings["epochs"]):
        progress = tqdm(loader, desc=f"epoch {epoch + 1}", unit="batch", disable=None)
        for batch in progress:
            loss = train_batch(batch["img"], batch["txt"], model, device, criterion, optimizer)
            progress.set_postfix(loss=f"{loss.item():.3f}")
    with atomic_path(output_path) as temporary:
        torch.save(model.state_dict(), temporary)
    return model
