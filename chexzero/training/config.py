"""The settings of a training run. A field is a flag of `run_train.py`; every default is upstream's training."""

import argparse
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from chexzero.common.errors import UserError
from chexzero.common.files import require_file
from chexzero.common.formats import DATA_FILES, REMEDY, PixelRange, check_images
from chexzero.common.settings import add_settings, from_namespace, parse_with_config, setting
from chexzero.model import PRECISIONS
from chexzero.models.towers import POSITIONS, TEXT_SIZES, TOWER_NAMES, vision_name
from chexzero.runs.run_folder import run_folder
from chexzero.runs.selection import METRICS
from chexzero.training import augment, texts
from chexzero.training.loss import EQUAL_TEXT, LOSSES

log = logging.getLogger(__name__)

REPORTS, UPSTREAM_REPORTS = DATA_FILES["train"][1], "mimic_impressions.csv"
VALID, VALID_LABELS = DATA_FILES["valid"]
ALL = "all"  # of --freeze_blocks


def _vision(text: str) -> str:
    try:
        return vision_name(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _blocks(text: str) -> int | str:
    if text != ALL and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of blocks, 0 or more, nor {ALL}")
    return text if text == ALL else int(text)


def _pixel_range(text: str) -> str:
    return str(PixelRange.parse(text))


_upstream = partial(setting, group="CheXzero's flags and defaults")
_data = partial(setting, group="data")
_model = partial(setting, group="model")
_length = partial(setting, group="length, validation and selection")
_stop = partial(setting, group="stopping and resuming", free=True)
_speed = partial(setting, group="speed and memory")
_optimisation = partial(setting, group="optimisation")
_loss = partial(setting, group="loss")
_tuning = partial(setting, group="fine-tuning")
_images = partial(setting, group="augmentation of the images")
_texts = partial(setting, group="text of the reports")
_logs = partial(setting, group="logs", free=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Settings of a run. `free` ones may change when a run is resumed: training does not depend on them."""

    cxr_filepath: str = _upstream("data/cxr.h5", "training images", metavar="FILE", free=True)
    txt_filepath: str | None = _upstream(
        None,
        "training reports (default: impressions.csv beside the images, or upstream's mimic_impressions.csv if only "
        "that exists)",
        metavar="FILE",
        free=True,
    )
    batch_size: int = _upstream(16, "pairs per step, over all processes", metavar="N", least=1)
    epochs: int = _upstream(4, "passes over the training pairs", metavar="N", least=0)
    lr: float = _upstream(1e-4, "learning rate", least=0)
    save_interval: int = _upstream(
        100, "steps between checkpoints; 0: only validated ones", metavar="STEPS", least=0, free=True
    )
    log_interval: int = _upstream(10, "steps between rows of train_log.csv", metavar="STEPS", least=0, free=True)
    save_dir: str = _upstream("checkpoints/", "folder of the runs' folders", metavar="DIR", free=True)
    seed: int = _upstream(1234, "random seed for weights and batch order", least=0, most=2**32 - 1)
    optimizer: str = _upstream("sgd", "SGD with momentum, or AdamW", choices=("sgd", "adam"))
    momentum: float = _upstream(0.9, "momentum of SGD", least=0)
    context_length: int = _upstream(77, "maximum tokens per report; longer reports are cut", metavar="TOKENS", least=3)
    random_init: bool = _upstream(False, "train from random weights: ViT-B/16 at 320 pixels")
    model_name: str = _upstream("pt-imp", "name of the run's folder", metavar="NAME", free=True)

    pixel_range: str | None = _data(
        None,
        "the values of black and white in image files of floating-point numbers, as --pixel_range=-1,1 (default: 0 and "
        "255; files of bytes are read as they are)",
        metavar="BLACK,WHITE",
        parse=_pixel_range,
    )

    vision: str = _model("vit_b_32", f"vision tower: {TOWER_NAMES}", metavar="NAME", parse=_vision)
    text_encoder: str = _model("chexzero", "text encoder", choices=TEXT_SIZES)
    vision_weights: str | None = _model(
        None,
        "a file or folder, a name on the Hugging Face hub, or random (default: OpenAI's weights for vit_b_*, Meta's "
        "for dinov3_*)",
        metavar="FILE|NAME|random",
    )
    text_weights: str | None = _model(
        None,
        "a CheXzero or CLIP checkpoint, the folder of an exported model, openai, open_clip:MODEL/TAG, or random "
        "(default: openai; random if the vision tower is random)",
        metavar="FILE|NAME|random",
    )
    image_resolution: int | None = _model(
        None,
        "side of the images the tower sees (default: the tower's own, 224 for most)",
        metavar="PIXELS",
        least=1,
        most=4096,
    )
    drop_path: float = _model(
        0.0, "stochastic depth in a DINOv3 tower while training (default: 0, off)", metavar="P", least=0, most=0.99
    )
    patch_dropout: float = _model(
        0.0,
        "leave out this share of the patches of each image while training (default: 0)",
        metavar="P",
        least=0,
        most=0.95,
    )
    grad_checkpointing: bool = _model(
        False, "recompute the blocks' activations in the backward pass: less memory, more time"
    )

    max_steps: int | None = _length(
        None, "train this many steps, in as many epochs as needed (default: set by --epochs)", least=0
    )
    val_interval: int = _length(200, "steps between validations (default: 200; 0: none)", least=0)
    valid: str | None = _length(
        None, "validation images (default: valid.h5 beside the training images)", metavar="FILE", free=True
    )
    valid_labels: str | None = _length(
        None, "their labels (default: valid_labels.csv beside them)", metavar="FILE", free=True
    )
    val_pairs: int = _length(0, "hold out this many training pairs (whole patients) and report their loss", least=0)
    select_by: str = _length(
        "mean_5",
        "column of metrics.csv that selects the checkpoint (default: mean_5, the competition labels)",
        choices=METRICS,
        metavar="COLUMN",
    )
    keep_top_k: int | None = _length(
        None, "keep only the selected checkpoint and the K next best (default: keep all)", least=0, free=True
    )
    patience: int = _length(
        0, "stop after this many validations without improvement (default: 0, never)", least=0, free=True
    )
    min_delta: float = _length(0.0, "smallest improvement that counts for --patience", least=0, free=True)

    resume: str | None = _stop(None, "auto: resume the run of this name if there is one", choices=("auto",))
    overwrite: bool = _stop(False, "delete the run of this name and start again")
    save_last_interval: int = _stop(
        500, "steps between writes of last.pt, in addition to those at validations (default: 500)", least=0
    )

    precision: str = _speed("fp32", "number format that the towers compute in", choices=PRECISIONS)
    grad_accum: int = _speed(1, "compute a batch in this many parts, each against all pairs of the batch", least=1)
    num_workers: int | None = _speed(
        None,
        "worker processes that read data (default: with a GPU by the number of cores, else 0)",
        least=0,
        most=256,
        free=True,
    )
    cache_features: bool = _speed(
        False, "with --freeze_blocks all: compute the tower's features of each image once, and train from a file"
    )
    compile: bool = _speed(False, "torch.compile the towers")
    fused: bool = _speed(False, "fused kernels for --optimizer adam")

    adam_beta2: float = _optimisation(
        0.999,
        "AdamW's decay of the average of squared gradients (default: 0.999; 0.95 for short trainings)",
        metavar="BETA",
        least=0,
    )
    ema: float = _optimisation(
        0.0,
        "also keep, validate and save an exponential moving average of the weights, in the run's folder ema/ (default: "
        "0, off; for instance 0.999)",
        metavar="DECAY",
        least=0,
        most=0.999999,
    )
    warmup_steps: int = _optimisation(0, "steps of linear learning-rate warm-up", least=0)
    lr_schedule: str = _optimisation("constant", "learning rate after the warm-up", choices=("constant", "cosine"))
    clip_grad_norm: float | None = _optimisation(
        None, "largest norm of the gradient (default: no limit)", metavar="NORM", least=0
    )
    clip_logit_scale: float | None = _optimisation(
        None, "largest factor on the cosines (default: no limit; OpenAI's is 100)", metavar="SCALE", least=1
    )

    loss: str = _loss("clip", "softmax over the batch (CLIP) or a sigmoid per pair (SigLIP)", choices=LOSSES)
    label_smoothing: float = _loss(
        0.0, "share of each row's target that is spread over all pairs (default: 0)", metavar="SHARE", least=0, most=0.9
    )
    one_per_study: bool = _loss(False, "never two images of a study in one batch")
    equal_text: str = _loss(
        "negative", "how pairs of a batch with the same text count for each other", choices=EQUAL_TEXT
    )

    augment: str | None = _images(
        None,
        f"change the images at random: {', '.join(augment.PRESETS)}, or strengths NAME=VALUE,... of "
        f"{', '.join(augment.STRENGTHS)} (default: none; see docs/TRAINING.md)",
        metavar="STRENGTHS",
        parse=augment.canonical,
    )
    augment_flip: bool = _images(
        False, "mirror half of the images at random: left and right in the reports become wrong"
    )
    show_batch: str | None = _images(
        None, "write a picture of the first images as the model sees them, and exit", metavar="FILE", free=True
    )

    text_positions: str | None = _texts(
        None,
        "for a --context_length beyond that of the text weights (77): interpolate their position embeddings, or draw "
        "the later ones at random",
        choices=POSITIONS,
    )
    text_section: str = _texts(
        "impression",
        "sections to train on (alternate: changes every epoch); all but impression need a column findings in the "
        "reports",
        choices=texts.SECTIONS,
    )
    text_sentences: str = _texts(
        "all", "sentences of a report to train on: all, all shuffled, a random part, or one", choices=texts.SENTENCES
    )

    tensorboard: bool = _logs(True, "write event files for TensorBoard (default: yes)")
    wandb: bool = _logs(False, "log to Weights & Biases too")
    wandb_project: str = _logs("chexzero", "project in Weights & Biases")

    vision_lr: float | None = _tuning(None, "learning rate of the vision tower (default: --lr)", metavar="LR", least=0)
    projection_lr: float | None = _tuning(
        None, "learning rate of the projection after the vision tower (default: --lr)", metavar="LR", least=0
    )
    text_lr: float | None = _tuning(None, "learning rate of the text encoder (default: --lr)", metavar="LR", least=0)
    layer_decay: float = _tuning(
        1.0,
        "ratio of each vision block's learning rate to that of the next block (default: 1)",
        metavar="FACTOR",
        most=1,
    )
    freeze_blocks: int | str = _tuning(
        0, "freeze the vision tower's embeddings and first N blocks, or all of it", metavar="N|all", parse=_blocks
    )
    freeze_steps: int | None = _tuning(
        None, "steps for which --freeze_blocks holds (default: the whole run)", metavar="STEPS", least=0
    )
    lora_rank: int = _tuning(
        0,
        "train low-rank updates of a vision transformer instead of its weights (default: 0, off)",
        metavar="R",
        least=0,
    )
    lora_alpha: float = _tuning(16.0, "the updates are scaled by A / R (default: 16)", metavar="A")

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return run_folder(self.save_dir, self.model_name)

    def as_dict(self) -> dict[str, Any]:
        """The settings as config.json and last.pt keep them."""
        return asdict(self)


def parse_config(description: str, argv: Sequence[str] | None = None) -> TrainConfig:
    """The settings from flags and `--config FILE`, resolved."""
    parser = argparse.ArgumentParser(description=description)
    add_settings(parser, TrainConfig)
    return resolve(from_namespace(TrainConfig, parse_with_config(parser, argv)))


def resolve(config: TrainConfig) -> TrainConfig:
    """Fill in the files beside the training images. Raises `UserError` for settings that exclude each other."""
    if not config.adam_beta2 < 1:
        raise UserError(f"--adam_beta2 {config.adam_beta2} must be below 1; choose for instance 0.95")
    if config.label_smoothing and config.loss != "clip":
        raise UserError(f"--label_smoothing is for --loss clip; leave it out with --loss {config.loss}")
    if config.resume and config.overwrite:
        raise UserError("--resume continues a run and --overwrite deletes it; leave one of them out")
    if config.select_by == "val_loss" and not config.val_pairs:
        raise UserError("--select_by val_loss needs held-out pairs; add for instance --val_pairs 1000")
    folder = Path(config.cxr_filepath).parent
    no_validation = not config.valid and not config.valid_labels and not (folder / VALID).exists()
    return replace(
        config,
        txt_filepath=config.txt_filepath or str(folder / (UPSTREAM_REPORTS if _is_upstreams(folder) else REPORTS)),
        val_interval=0 if no_validation and _is_upstreams(folder) else config.val_interval,
        valid=config.valid or str(folder / VALID),
        valid_labels=config.valid_labels or str(folder / VALID_LABELS),
    )


def check(config: TrainConfig) -> None:
    """Raise `UserError`, before anything is loaded, for files and packages that are missing."""
    for path in (config.cxr_filepath, config.txt_filepath):
        require_file(path or "", REMEDY)
    for path in (config.valid, config.valid_labels) if config.val_interval else ():
        require_file(path or "", f"{REMEDY}, or train without validation with --val_interval 0")
    if config.val_interval:
        check_images(config.valid or "", pixel_range=config.pixel_range)  # as every evaluation does
    else:
        log.warning(
            "no validation: no checkpoint will be selected; name a validation set with --valid and --valid_labels"
        )
    if config.compile and not any(map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))):
        raise UserError("--compile needs a C++ compiler, and none is found; install g++, or leave --compile out")
    if config.wandb:
        import_wandb()


def import_wandb() -> Any:
    """Import the wandb package. Raises a `UserError` that says how to install it."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "--wandb needs the package wandb, which is not installed; type `pip install wandb`, or leave --wandb out"
        ) from error
    return wandb


#: Settings that may change when a run is resumed. Its length may change too if the learning rate does not depend on it.
FREE_SETTINGS = {one.name for one in fields(TrainConfig) if one.metadata["free"]}
LENGTH_SETTINGS = {"epochs", "max_steps"}
DEFAULTS = TrainConfig().as_dict()


def _is_upstreams(folder: Path) -> bool:
    """Whether a data folder holds upstream's reports and none built here. Upstream has no validation set."""
    return (folder / UPSTREAM_REPORTS).exists() and not (folder / REPORTS).exists()
