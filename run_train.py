#!/usr/bin/env python
"""Train a CLIP on radiographs and their reports, validating as it goes.

    python run_train.py --vision dinov3_vitb

Reads data/cxr.h5, data/impressions.csv, data/valid.h5 and data/valid_labels.csv, writes checkpoints/<model_name>/.
Without new flags the training is CheXzero's. docs/CLUSTER.md has several GPUs and SLURM.
"""

import argparse
import logging
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn, optim
from torch.distributed.elastic.multiprocessing.errors import record
from torch.utils.data import DataLoader

from chexzero.common.errors import run_command
from chexzero.common.folders import hold
from chexzero.common.settings import parse_with_config
from chexzero.runs.run_folder import open_folder, run_folder
from chexzero.training import distributed, finetune
from chexzero.training.arguments import add_training_arguments, check, resolve
from chexzero.training.batches import load_pairs
from chexzero.training.loss import ContrastiveLoss, matches
from chexzero.training.resume import leave_when_told, save_file
from chexzero.training.run import Run
from chexzero.training.step import Updates, backward, bare, for_training
from chexzero.training.towers import add_arguments as add_model_arguments
from chexzero.training.towers import model_from_args

log = logging.getLogger(__name__)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    upstream = parser.add_argument_group("CheXzero's flags and defaults")
    upstream.add_argument(
        "--cxr_filepath", default="data/cxr.h5", metavar="FILE", help="training images (default: %(default)s)"
    )
    upstream.add_argument(
        "--txt_filepath",
        metavar="FILE",
        help="training reports (default: impressions.csv beside the images, or upstream's "
        "mimic_impressions.csv where that alone exists)",
    )
    upstream.add_argument(
        "--batch_size",
        type=int,
        default=16,
        metavar="N",
        help="pairs a step, over all processes (default: %(default)s)",
    )
    upstream.add_argument(
        "--epochs", type=int, default=4, metavar="N", help="passes over the training pairs (default: %(default)s)"
    )
    upstream.add_argument("--lr", type=float, default=1e-4, help="learning rate (default: %(default)s)")
    upstream.add_argument(
        "--save_interval",
        type=int,
        default=100,
        metavar="STEPS",
        help="steps between checkpoints; 0: only validated ones (default: %(default)s)",
    )
    upstream.add_argument(
        "--log_interval",
        type=int,
        default=10,
        metavar="STEPS",
        help="steps between rows of train_log.csv (default: %(default)s)",
    )
    upstream.add_argument(
        "--save_dir", default="checkpoints/", metavar="DIR", help="where the runs' folders are (default: %(default)s)"
    )
    upstream.add_argument(
        "--seed", type=int, default=1234, help="of the new weights and of the order of the pairs (default: %(default)s)"
    )
    upstream.add_argument(
        "--optimizer", choices=["sgd", "adam"], default="sgd", help="SGD with momentum, or AdamW (default: %(default)s)"
    )
    upstream.add_argument("--momentum", type=float, default=0.9, help="of SGD (default: %(default)s)")
    upstream.add_argument(
        "--context_length", type=int, default=77, metavar="TOKENS", help="longer reports are cut (default: %(default)s)"
    )
    upstream.add_argument("--random_init", action="store_true", help="train from nothing: ViT-B/16 at 320 pixels")
    upstream.add_argument(
        "--model_name", default="pt-imp", metavar="NAME", help="name of the run's folder (default: %(default)s)"
    )
    add_model_arguments(parser)
    add_training_arguments(parser)
    finetune.add_arguments(parser)
    return resolve(parse_with_config(parser, argv))


def model_pipeline(config: argparse.Namespace, verbose: int = 0) -> nn.Module:
    check(config)
    distributed.start()
    with hold(run_folder(config)) if distributed.is_main() else nullcontext():
        if distributed.is_main():
            open_folder(config)
        distributed.wait_for_main()

        model, data_loader, device, criterion, optimizer = make(config)
        train(model, data_loader, device, criterion, optimizer, config)

        save(model, run_folder(config) / "checkpoint.pt")
    distributed.finish()
    if verbose:
        log.info("%s", bare(model))
    return bare(model)


def make(config: argparse.Namespace) -> tuple[nn.Module, DataLoader, torch.device, nn.Module, Updates]:
    device = distributed.start()
    torch.manual_seed(config.seed)
    loader = load_pairs(config, device)
    clip = finetune.prepare(model_from_args(config), config)
    model = for_training(clip, device, config)
    criterion = ContrastiveLoss(config.equal_text)

    parameters = finetune.parameter_groups(clip, config)
    if config.optimizer == "adam":
        optimizer = optim.AdamW(parameters, lr=config.lr, betas=(0.9, config.adam_beta2), fused=config.fused or None)
    else:
        optimizer = optim.SGD(parameters, lr=config.lr, momentum=config.momentum)
    total_steps = config.max_steps if config.max_steps is not None else config.epochs * len(loader)
    torch.manual_seed(config.seed + distributed.rank())
    return model, loader, device, criterion, Updates(optimizer, model, config, total_steps, device)


def train(
    model: nn.Module,
    loader: DataLoader,
    device: torch.device,
    criterion: nn.Module,
    optimizer: Updates,
    config: argparse.Namespace,
) -> None:
    model.train()
    run = Run(model, loader, device, optimizer, config)  # new, or from where a stopped one left off
    if run.is_new:
        if config.val_interval:
            save(model, run.checkpoint_path())
            run.validate()
        run.save_last()

    for epoch, data in run.batches():
        loss = train_batch(data["img"], data["txt"], model, device, criterion, optimizer)
        run.record(loss)

        if run.due(config.log_interval):
            mean_loss, progress = run.log()
            train_log(mean_loss, run.example_ct, epoch, progress)
        validation_due = run.validation_due()
        if validation_due or run.due(config.save_interval):
            save(model, run.checkpoint_path())
        if validation_due:
            run.validate()
        run.end_step()  # last.pt when due; exit code 75 after SIGTERM or SIGUSR1
    run.close()


def train_batch(
    images: torch.Tensor,
    texts: torch.Tensor,
    model: nn.Module,
    device: torch.device,
    criterion: nn.Module,
    optimizer: optim.Optimizer | Updates,
) -> torch.Tensor:
    """One step. images: (B, H, W) as stored, or (B, 3, R, R) prepared. texts: tokens (B, T). Returns the loss."""
    images, texts = images.to(device, non_blocking=True), texts.to(device, non_blocking=True)

    logits_per_image, logits_per_text = model(images, texts)
    labels = matches(texts, criterion)
    loss = (criterion(logits_per_image, labels) + criterion(logits_per_text, labels)) / 2

    optimizer.zero_grad()
    backward(loss, optimizer)
    optimizer.step()
    return loss.detach()


def train_log(loss: float, example_ct: int, epoch: int, progress: str = "") -> None:
    """A line for a log file; on a terminal the bar says the same."""
    if distributed.is_main() and not sys.stderr.isatty():
        log.info("Loss after %06d examples (epoch %d): %.3f; %s", example_ct, epoch, loss, progress)


def save(model: nn.Module, path: str | Path) -> None:
    """Write the bare state dict, atomically, by rank 0."""
    if distributed.is_main():
        save_file(finetune.merge_lora(bare(model)), Path(path))


@record
def main() -> None:
    leave_when_told()
    model_pipeline(parse_args())


def cli() -> None:
    """The installed command."""
    run_command(main)


if __name__ == "__main__":
    cli()
