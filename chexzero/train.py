"""Upstream's training interface: pairs, loader, model and one step. `run_train.py` trains with these functions."""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from chexzero import clip
from chexzero.common.errors import UserError
from chexzero.common.files import atomic_path, read_table
from chexzero.common.formats import PixelRange, check_rows, open_images
from chexzero.imaging.normalise import prepare
from chexzero.model import CLIP, pick_device
from chexzero.models.checkpoints import load_model
from chexzero.models.towers import create_model


class ImageRows:
    """The images of an HDF5 file, opened in each process that reads them: a handle must not cross a fork."""

    def __init__(self, path: str | os.PathLike, pixel_range: str | None = None):
        self.path, self.pixel_range = str(path), pixel_range
        self._pid: int | None = None
        with open_images(path) as file:
            self.length = len(file["cxr"])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> torch.Tensor:
        """One image, float32 (3, H, W), 0..255, three equal channels (an expanded view)."""
        return self.stored([row])[0].float().expand(3, -1, -1)

    def stored(self, rows: Sequence[int]) -> torch.Tensor:
        """Read some images as they are stored, (B, H, W), 0..255; raise `UserError` for a row that is damaged."""
        if self._pid != os.getpid():
            self._images, self._pid = h5py.File(self.path, "r")["cxr"], os.getpid()
        images = np.empty((len(rows), *self._images.shape[1:]), self._images.dtype)
        for place, row in enumerate(rows):
            try:
                self._images.read_direct(images, np.s_[row], np.s_[place])
            except OSError as error:
                raise UserError(
                    f"row {row} of {self.path} cannot be read ({str(error).split(',')[0]}); "
                    f"build the file again with `python -m data_prep build`"
                ) from error
        if self.pixel_range and images.dtype != np.uint8:
            images = PixelRange.parse(self.pixel_range).to_grey(images)
        return torch.from_numpy(images)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "pixel_range": self.pixel_range, "length": self.length, "_pid": None}


class CXRDataset(Dataset):
    """Pairs of a radiograph and its report: `{"img": float32 (3, H, W), 0..255, "txt": str}`.

    img_path: HDF5 with `cxr` (N, H, W). txt_path: CSV with `column`, row i belonging to image i; an empty cell is read
    as one space. `size` keeps only the first rows. `transform` is applied to the image. pixel_range: `BLACK,WHITE`, the
    values that stand for 0 and 255 in a file of floating-point images.

    Indexed with a list of B rows, it returns the batch in the training command's form:
    `{"img": (B, H, W) as stored, "txt": tokens, int64 (B, T), "row": int64 (B,)}`, the tokens cut after the longest
    text. A text is tokenised when it is first read, to at most `context_length` tokens. With `vary`, and if the list of
    rows has an attribute `epoch`, the texts are `vary(sections, row, epoch)`, tokenised each time; `sections` are the
    row's texts in `columns`.

    `studies`, `patients`, `same_text`: int32 (N,), equal for rows of one study, patient or text; the first two are None
    without the columns `study_id` and `patient_id`. Raises `UserError` for a missing column, or if the rows do not
    match the images.
    """

    def __init__(
        self,
        img_path: str | os.PathLike,
        txt_path: str | os.PathLike,
        column: str = "report",
        size: int | None = None,
        transform: Callable | None = None,
        *,
        context_length: int = clip.CONTEXT_LENGTH,
        pixel_range: str | None = None,
        columns: Sequence[str] = (),
        vary: Callable[[Sequence[str], int, int], str] | None = None,
    ):
        table = read_table(
            txt_path,
            list(dict.fromkeys([column, *columns])),
            also=["id", "study_id", "patient_id"],
            remedy="run `python -m data_prep build` first (with --findings for the column findings), or name another "
            "file or text column",
        )
        check_rows(img_path, txt_path, table)
        table = table[:size]
        self.images = ImageRows(img_path, pixel_range)
        self.texts: list[str] = table[column].fillna(" ").tolist()
        self.transform, self.context_length, self.vary = transform, context_length, vary
        self.sections: list[tuple[str, ...]] = list(zip(*(table[name].fillna("") for name in columns), strict=True))
        self.studies, self.patients, self.same_text = (
            pd.factorize(table[name])[0].astype(np.int32) if name in table else None
            for name in ("study_id", "patient_id", column)
        )
        self._tokens = np.zeros((len(table), context_length), np.uint16)  # a row of zeros is not tokenised yet

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, idx: int | Sequence[int]) -> dict[str, Any]:
        if not isinstance(idx, int | np.integer):
            rows, epoch = list(idx), getattr(idx, "epoch", None)
            return {"img": self.images.stored(rows), "txt": self.tokens(rows, epoch), "row": torch.tensor(rows)}
        idx = range(len(self))[idx]
        image = self.images[idx]
        return {"img": self.transform(image) if self.transform else image, "txt": self.texts[idx]}

    def tokens(self, rows: Sequence[int], epoch: int | None = None) -> torch.Tensor:
        """Tokens of some texts, int64 (B, T), padded with 0, T the length of the longest."""
        if self.vary and epoch is not None:
            texts = [self.vary(self.sections[row], row, epoch) for row in rows]
            return clip.trim_padding(preprocess_text(texts, self))
        new = [row for row in rows if not self._tokens[row, 0]]
        if new:
            self._tokens[new] = preprocess_text([self.texts[row] for row in new], self).numpy()
        return clip.trim_padding(torch.from_numpy(self._tokens[rows].astype(np.int64)))


def image_transform(resolution: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Normalise and resize one image (3, H, W), 0..255, to (3, R, R), by `imaging.normalise.prepare` on one channel."""
    return partial(_prepare_one, resolution=resolution)


def _prepare_one(image: torch.Tensor, resolution: int) -> torch.Tensor:
    return prepare(image[:1], resolution)[0]


def load_data(
    cxr_filepath: str | os.PathLike,
    txt_filepath: str | os.PathLike,
    batch_size: int = 4,
    column: str = "report",
    pretrained: bool = False,
    verbose: bool = False,
    *,
    context_length: int = clip.CONTEXT_LENGTH,
    plan: Callable[[CXRDataset], Sampler[list[int]]] | None = None,
    num_workers: int = 0,
    pixel_range: str | None = None,
    columns: Sequence[str] = (),
    vary: Callable[[Sequence[str], int, int], str] | None = None,
) -> tuple[DataLoader, torch.device]:
    """Return a DataLoader of pairs and the device to train on.

    Without `plan` the pairs are shuffled and prepared: `{"img": float32 (B, 3, R, R), "txt": list of B strings}` with
    R = 224 for the pretrained ViT-B/32 and 320 otherwise; the last short batch is kept. `plan` maps the dataset to
    a sampler of each batch's rows; batches then hold stored bytes and tokens (see `CXRDataset`), to be prepared on the
    device.
    """
    device = pick_device()
    dataset = CXRDataset(
        cxr_filepath,
        txt_filepath,
        column=column,
        transform=image_transform(224 if pretrained else 320),
        context_length=context_length,
        pixel_range=pixel_range,
        columns=columns,
        vary=vary,
    )
    if verbose:
        tqdm.write(f"{len(dataset)} pairs in {cxr_filepath} and {txt_filepath}")
    if plan is None:
        return DataLoader(dataset, batch_size=batch_size, shuffle=True), device
    return planned_loader(dataset, plan(dataset), num_workers, device), device


def planned_loader(
    dataset: CXRDataset, batches: Sampler[list[int]], num_workers: int, device: torch.device
) -> DataLoader:
    """A DataLoader of these batches: workers read ahead, and for a GPU batches go to pinned memory.

    It has its own generator, because creating an iterator draws a random number: the training's random state must not
    depend on how often a run was resumed.
    """
    return DataLoader(
        dataset,
        sampler=batches,
        batch_size=None,  # a batch is read at once
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers else None,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_leave_signals_to_the_run,
    )


def _leave_signals_to_the_run(_worker: int) -> None:
    """Ignore the signals that torchrun, SLURM and Ctrl-C send to a process group: the run must save first."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def load_clip(
    model_path: str | os.PathLike | None = None,
    pretrained: bool = False,
    context_length: int = clip.CONTEXT_LENGTH,
    *,
    vision: str = "vit_b_32",
    **options: Any,
) -> CLIP:
    """Return a model to train: a checkpoint, or else the requested towers (default: upstream's).

    Upstream's are OpenAI's ViT-B/32 (`pretrained`) or a new ViT-B/16 at 320 pixels. `vision` and `options` are those
    of `chexzero.models.towers.create_model`; they are ignored for a checkpoint, which determines its own towers.
    """
    if model_path is None:
        return create_model(vision, random_init=not pretrained, context_length=context_length, **options)
    model = load_model(model_path)
    check_context(model, context_length)
    return model.train()


def check_context(model: CLIP, context_length: int) -> None:
    """Raise `UserError` if a context length other than the default is requested and the model has another."""
    if context_length not in (clip.CONTEXT_LENGTH, model.context_length):
        raise UserError(
            f"the context length {context_length} was asked for, but this model has "
            f"{model.context_length}; leave it at the default"
        )


def preprocess_text(texts: str | list[str], model: Any) -> torch.Tensor:
    """Tokens, int64 (len(texts), model.context_length); a longer text is cut, with the end token last."""
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
    texts: torch.Tensor,
    model: nn.Module,
    device: torch.device,
    criterion: nn.Module,
    optimizer: Any,
) -> torch.Tensor:
    """Take one step on a batch; return the loss before it, a scalar tensor.

    images: (B, 3, R, R) prepared, or another input of `model`. texts: tokens, int64 (B, T). criterion: takes the logits
    of B rows and the label of each; by default the label is the row's index. A criterion for several processes or equal
    texts provides the labels by its method `matches(texts)`. optimizer: a torch optimiser, or one with a method
    `backward(loss)` that scales the loss.
    """
    images, texts = images.to(device, non_blocking=True), texts.to(device, non_blocking=True)
    logits_per_image, logits_per_text = model(images, texts)
    matches = getattr(criterion, "matches", None)
    labels = torch.arange(len(texts), device=device) if matches is None else matches(texts)
    loss = pair_loss(logits_per_image, logits_per_text, labels, criterion)
    optimizer.zero_grad()
    getattr(optimizer, "backward", torch.Tensor.backward)(loss)
    optimizer.step()
    return loss.detach()


def pair_loss(
    logits_per_image: torch.Tensor, logits_per_text: torch.Tensor, labels: torch.Tensor, criterion: nn.Module
) -> torch.Tensor:
    """The mean of `criterion` over the images' rows (B, T) and the texts' rows (B, I) of logits, a scalar."""
    return (criterion(logits_per_image, labels) + criterion(logits_per_text, labels)) / 2


#: The keys of `train_main`'s `hyperparams`, and their defaults.
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
            f"the hyperparameters {', '.join(sorted(unknown))} are not known; known are {', '.join(HYPERPARAMS)}"
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
            tokens = clip.trim_padding(preprocess_text(batch["txt"], model))
            loss = train_batch(batch["img"], tokens, model, device, criterion, optimizer)
            progress.set_postfix(loss=f"{loss.item():.3f}")
    with atomic_path(output_path) as temporary:
        torch.save(model.state_dict(), temporary)
    return model
