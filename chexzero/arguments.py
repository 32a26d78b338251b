"""The flags of `run_train.py` that upstream has not. Every default leaves the training as upstream has it."""

import argparse
from pathlib import Path

from chexzero.data import REMEDY
from chexzero.errors import UserError
from chexzero.files import require_file
from chexzero.loss import EQUAL_TEXT
from chexzero.runlog import import_wandb
from chexzero.selection import METRICS

IMPRESSIONS, UPSTREAM_IMPRESSIONS = "data/impressions.csv", "data/mimic_impressions.csv"
VALID, VALID_LABELS = "data/valid.h5", "data/valid_labels.csv"


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("length, validation and selection")
    group.add_argument("--max_steps", type=int, help="train so many steps, whatever --epochs says")
    group.add_argument("--val_interval", type=int, default=200, help="steps between validations (0: none)")
    group.add_argument("--valid", help=f"validation images (default: {VALID})")
    group.add_argument("--valid_labels", help=f"their labels (default: {VALID_LABELS})")
    group.add_argument("--val_pairs", type=int, default=0, help="hold out so many training pairs (whole patients) and "
                                                                "report their loss")
    group.add_argument("--select_by", choices=METRICS, default="mean_5", metavar="METRIC",
                       help="column of metrics.csv that selects the checkpoint (default: mean_5, the five competition labels)")
    group.add_argument("--keep_top_k", type=int, help="keep the selected checkpoint and the K after it (default: keep all)")
    group.add_argument("--patience", type=int, default=0, help="stop after so many validations without improvement (0: never)")
    group.add_argument("--min_delta", type=float, default=0.0, help="what counts as improvement for --patience")

    group = parser.add_argument_group("stopping and resuming")
    group.add_argument("--resume", choices=["auto"], help="auto: go on with the run of this name, if there is one")
    group.add_argument("--overwrite", action="store_true", help="remove the run of this name and begin again")
    group.add_argument("--save_last_interval", type=int, default=500, help="steps between saves of last.pt, beside those at "
                                                                           "validations")

    group = parser.add_argument_group("speed and memory")
    group.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    group.add_argument("--grad_accum", type=int, default=1, help="compute a batch in so many parts, against all its pairs")
    group.add_argument("--num_workers", type=int, help="processes that read (default: by the cores with a GPU, else 0)")
    group.add_argument("--compile", action="store_true", help="torch.compile the towers")
    group.add_argument("--fused", action="store_true", help="fused AdamW")

    group = parser.add_argument_group("optimisation")
    group.add_argument("--warmup_steps", type=int, default=0, help="linear warm-up of the learning rate")
    group.add_argument("--lr_schedule", choices=["constant", "cosine"], default="constant")
    group.add_argument("--clip_grad_norm", type=float, metavar="NORM", help="clip the norm of the gradient")
    group.add_argument("--clip_logit_scale", type=float, metavar="SCALE", help="largest factor on the cosines (OpenAI: 100)")

    group = parser.add_argument_group("false negatives")
    group.add_argument("--one_per_study", action="store_true", help="never two images of a study in one batch")
    group.add_argument("--equal_text", choices=EQUAL_TEXT, default="negative", help="what pairs with the same text are")

    group = parser.add_argument_group("logs")
    group.add_argument("--tensorboard", action=argparse.BooleanOptionalAction, default=True, help="write TensorBoard files")
    group.add_argument("--wandb", action="store_true", help="log to Weights & Biases")
    group.add_argument("--wandb_project", default="chexzero")


def resolve(config: argparse.Namespace) -> argparse.Namespace:
    """Fill in the defaults that depend on which files exist, and refuse what cannot work before anything is loaded."""
    _require_ranges(config)
    upstream_alone = not Path(IMPRESSIONS).exists() and Path(UPSTREAM_IMPRESSIONS).exists()
    if config.txt_filepath is None:
        config.txt_filepath = UPSTREAM_IMPRESSIONS if upstream_alone else IMPRESSIONS
    _resolve_validation(config)
    for path in (config.cxr_filepath, config.txt_filepath, *([config.valid, config.valid_labels] * bool(config.val_interval))):
        require_file(path, REMEDY)
    if config.select_by == "val_loss" and not config.val_pairs:
        raise UserError("--select_by val_loss needs held-out pairs; add --val_pairs, for instance --val_pairs 1000")
    if config.wandb:
        import_wandb()
    return config


def _resolve_validation(config: argparse.Namespace) -> None:
    """Without --valid the file beside the training images' default is meant; upstream's users have none."""
    asked = config.valid or config.valid_labels
    config.valid, config.valid_labels = config.valid or VALID, config.valid_labels or VALID_LABELS
    if config.val_interval and not asked and config.txt_filepath != IMPRESSIONS and not Path(config.valid).exists():
        import logging

        logging.getLogger(__name__).warning(
            "no validation: %s does not exist (name images and labels with --valid and --valid_labels); no checkpoint will be "
            "selected", config.valid)
        config.val_interval = 0


def _require_ranges(config: argparse.Namespace) -> None:
    least = {"batch_size": 1, "epochs": 0, "max_steps": 0, "val_interval": 0, "save_interval": 0, "log_interval": 0,
             "save_last_interval": 0, "grad_accum": 1, "num_workers": 0, "warmup_steps": 0, "val_pairs": 0, "patience": 0,
             "keep_top_k": 0, "context_length": 3, "lr": 0.0, "momentum": 0.0, "min_delta": 0.0}
    for name, smallest in least.items():
        value = getattr(config, name)
        if value is not None and not value >= smallest:
            raise UserError(f"--{name} {value} must be at least {smallest}; choose another value")
