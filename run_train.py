#!/usr/bin/env python
"""Train a CLIP on radiographs and their reports, validating as it goes.

    python run_train.py --vision dinov3_vitb

Reads data/cxr.h5, data/impressions.csv, data/valid.h5 and data/valid_labels.csv, writes checkpoints/<model_name>/.
Without new flags the training is CheXzero's. docs/CLUSTER.md covers several GPUs and SLURM.
"""

import chexzero.common.interrupts  # noqa: F401  (first: the other imports take seconds)

import logging
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn, optim
from torch.distributed.elastic.multiprocessing.errors import record
from torch.utils.data import DataLoader

from chexzero.common.errors import run_command
from chexzero.common.folders import hold
from chexzero.common.processes import processes_can_share
from chexzero.runs.run_folder import AVERAGE, open_folder
from chexzero.train import CXRDataset, load_clip, load_data, train_batch
from chexzero.training import distributed, finetune
from chexzero.training.batches import default_workers, plan_batches
from chexzero.training.config import TrainConfig, check, parse_config
from chexzero.training.features import use_cached_features
from chexzero.training.loss import LOSSES
from chexzero.training.resume import leave_when_told, save_file
from chexzero.training.run import Run
from chexzero.training.show import show_batch
from chexzero.training.step import Updates, bare, begin_logits, for_training
from chexzero.training.texts import dataset_options

log = logging.getLogger(__name__)


def parse_args(argv: list[str] | None = None) -> TrainConfig:
    return parse_config((__doc__ or "").partition("\n")[0], argv)


def model_pipeline(config: TrainConfig, verbose: int = 0) -> nn.Module:
    check(config)
    distributed.start()
    if config.show_batch:
        model, data_loader, *_ = make(config)
        if distributed.is_main():
            show_batch(Path(config.show_batch), config, data_loader, bare(model))
        distributed.finish()
        return bare(model)
    with hold(config.folder) if distributed.is_main() else nullcontext():
        if distributed.is_main():
            open_folder(config.folder, resume=bool(config.resume), overwrite=config.overwrite)
        distributed.wait_for_main()

        model, data_loader, device, criterion, optimizer = make(config)
        train(model, data_loader, device, criterion, optimizer, config)

        save(model, config.folder / "checkpoint.pt")
        if optimizer.average:
            save(optimizer.average.module, config.folder / AVERAGE / "checkpoint.pt")
    distributed.finish()
    if verbose:
        log.info("%s", bare(model))
    return bare(model)


def make(config: TrainConfig) -> tuple[nn.Module, DataLoader, torch.device, nn.Module, Updates]:
    device = distributed.start()
    torch.manual_seed(config.seed)
    workers = default_workers() if config.num_workers is None else config.num_workers
    assert config.txt_filepath is not None  # `config.resolve` sets it
    loader, _ = load_data(
        config.cxr_filepath,
        config.txt_filepath,
        config.batch_size,
        context_length=config.context_length,
        plan=partial(plan_batches, config),
        num_workers=workers if workers and processes_can_share() else 0,
        pixel_range=config.pixel_range,
        **dataset_options(config.text_section, config.text_sentences, config.seed),
    )
    clip = load_clip(
        pretrained=not config.random_init,
        context_length=config.context_length,
        text_positions=config.text_positions,
        vision=config.vision,
        text_encoder=config.text_encoder,
        vision_weights=config.vision_weights,
        text_weights=config.text_weights,
        image_resolution=config.image_resolution,
        drop_path=config.drop_path,
        patch_dropout=config.patch_dropout,
        grad_checkpointing=config.grad_checkpointing,
    )
    begin_logits(clip, config)
    model = for_training(finetune.prepare(clip, config), device, config)
    if config.cache_features and not config.show_batch:
        use_cached_features(config, cast(CXRDataset, loader.dataset), clip, device)
    criterion = LOSSES[config.loss].criterion(config.equal_text, config.label_smoothing)

    parameters = finetune.parameter_groups(clip, config)
    optimizer: optim.Optimizer
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
    config: TrainConfig,
) -> None:
    model.train()
    run = Run(model, loader, device, optimizer, config)  # new, or resumed
    if run.is_new:
        if config.val_interval:
            save_checkpoints(run)
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
            save_checkpoints(run)
        if validation_due:
            run.validate()
        run.end_step()  # last.pt when due; exit code 75 after SIGTERM or SIGUSR1
    run.close()


def train_log(loss: float, example_ct: int, epoch: int, progress: str = "") -> None:
    """Log one line; on a terminal the progress bar shows the same."""
    if distributed.is_main() and not sys.stderr.isatty():
        log.info("Loss after %06d examples (epoch %d): %.3f; %s", example_ct, epoch, loss, progress)


def save(model: nn.Module, path: str | Path) -> None:
    """Write the bare state dict, atomically, by rank 0."""
    if distributed.is_main():
        save_file(finetune.merge_lora(bare(model)), Path(path))


def save_checkpoints(run: Run) -> None:
    with run.pace.spent("saving"):
        for path, model in run.checkpoints().items():
            save(model, path)


@record
def main() -> None:
    leave_when_told()
    model_pipeline(parse_args())


def cli() -> None:
    """The installed command."""
    run_command(main)


if __name__ == "__main__":
    cli()
