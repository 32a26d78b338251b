"""The flags of `run_train.py` that upstream has not. Every default leaves the training as upstream has it."""

import argparse
import logging
import os
import shutil
from pathlib import Path

from chexzero.common.errors import UserError
from chexzero.common.files import require_file
from chexzero.common.formats import DATA_FILES, REMEDY
from chexzero.model import PRECISIONS
from chexzero.runs.selection import METRICS
from chexzero.training.logs import import_wandb
from chexzero.training.loss import EQUAL_TEXT

log = logging.getLogger(__name__)

REPORTS, UPSTREAM_REPORTS = DATA_FILES["train"][1], "mimic_impressions.csv"
VALID, VALID_LABELS = DATA_FILES["valid"]

#: Smallest value of each numeric flag.
LEAST = {
    "batch_size": 1,
    "epochs": 0,
    "max_steps": 0,
    "val_interval": 0,
    "save_interval": 0,
    "log_interval": 0,
    "save_last_interval": 0,
    "grad_accum": 1,
    "num_workers": 0,
    "warmup_steps": 0,
    "val_pairs": 0,
    "patience": 0,
    "keep_top_k": 0,
    "context_length": 3,
    "lr": 0.0,
    "momentum": 0.0,
    "min_delta": 0.0,
    "clip_grad_norm": 0.0,
    "clip_logit_scale": 1.0,
    "adam_beta2": 0.0,
}


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags, in groups."""
    group = parser.add_argument_group("length, validation and selection")
    group.add_argument(
        "--max_steps", type=int, help="train so many steps, over as many epochs as that takes (default: by --epochs)"
    )
    group.add_argument(
        "--val_interval", type=int, default=200, help="steps between validations (default: 200; 0: none)"
    )
    group.add_argument(
        "--valid", metavar="FILE", help="validation images (default: valid.h5 beside the training images)"
    )
    group.add_argument("--valid_labels", metavar="FILE", help="their labels (default: valid_labels.csv beside them)")
    group.add_argument(
        "--val_pairs",
        type=int,
        default=0,
        help="hold so many training pairs (whole patients) out and report their loss (default: 0)",
    )
    group.add_argument(
        "--select_by",
        choices=METRICS,
        default="mean_5",
        metavar="COLUMN",
        help="column of metrics.csv that selects the checkpoint (default: mean_5, the competition labels)",
    )
    group.add_argument(
        "--keep_top_k", type=int, help="keep only the selected checkpoint and the K next best (default: keep all)"
    )
    group.add_argument(
        "--patience", type=int, default=0, help="stop after so many validations without improvement (default: 0, never)"
    )
    group.add_argument("--min_delta", type=float, default=0.0, help="smallest improvement that counts for --patience")

    group = parser.add_argument_group("stopping and going on")
    group.add_argument("--resume", choices=["auto"], help="auto: go on with the run of this name if there is one")
    group.add_argument("--overwrite", action="store_true", help="remove the run of this name and begin again")
    group.add_argument(
        "--save_last_interval",
        type=int,
        default=500,
        help="steps between writes of last.pt, beside those at validations (default: 500)",
    )

    group = parser.add_argument_group("speed and memory")
    group.add_argument("--precision", choices=list(PRECISIONS), default="fp32", help="what the towers compute in")
    group.add_argument(
        "--grad_accum",
        type=int,
        default=1,
        help="compute a batch in so many parts, each against all pairs of the batch (default: 1)",
    )
    group.add_argument("--num_workers", type=int, help="processes that read (default: by the cores with a GPU, else 0)")
    group.add_argument("--compile", action="store_true", help="torch.compile the towers")
    group.add_argument("--fused", action="store_true", help="fused kernels for --optimizer adam")

    group = parser.add_argument_group("optimisation")
    group.add_argument(
        "--adam_beta2",
        type=float,
        default=0.999,
        metavar="BETA",
        help="how long AdamW remembers squared gradients (default: 0.999; 0.95 for short trainings)",
    )
    group.add_argument("--warmup_steps", type=int, default=0, help="linear warm-up of the learning rate (default: 0)")
    group.add_argument("--lr_schedule", choices=["constant", "cosine"], default="constant", help="after the warm-up")
    group.add_argument("--clip_grad_norm", type=float, metavar="NORM", help="clip the gradient's norm (default: no)")
    group.add_argument(
        "--clip_logit_scale",
        type=float,
        metavar="SCALE",
        help="largest factor on the cosines (default: none; OpenAI's is 100)",
    )

    group = parser.add_argument_group("false negatives")
    group.add_argument("--one_per_study", action="store_true", help="never two images of a study in one batch")
    group.add_argument(
        "--equal_text",
        choices=EQUAL_TEXT,
        default="negative",
        help="what pairs of a batch with the same text are to each other (default: negative)",
    )

    group = parser.add_argument_group("logs")
    group.add_argument(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write event files for TensorBoard (default: yes)",
    )
    group.add_argument("--wandb", action="store_true", help="log to Weights & Biases too")
    group.add_argument("--wandb_project", default="chexzero", help="name of the project there")


def resolve(config: argparse.Namespace) -> argparse.Namespace:
    """Fill in the files that lie beside the training images; refuse values that no run can have."""
    for name, least in LEAST.items():
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise UserError(f"--{name} {value} must be at least {least}; choose another value")
    if not config.adam_beta2 < 1:
        raise UserError(f"--adam_beta2 {config.adam_beta2} must be below 1; choose for instance 0.95")
    if config.resume and config.overwrite:
        raise UserError("--resume goes on with a run and --overwrite removes it; leave one of them out")
    if config.select_by == "val_loss" and not config.val_pairs:
        raise UserError("--select_by val_loss needs held-out pairs; add for instance --val_pairs 1000")
    folder = Path(config.cxr_filepath).parent
    if config.txt_filepath is None:
        config.txt_filepath = str(folder / (UPSTREAM_REPORTS if _is_upstreams(folder) else REPORTS))
    if not config.valid and not config.valid_labels and _is_upstreams(folder) and not (folder / VALID).exists():
        config.val_interval = 0
    config.valid = config.valid or str(folder / VALID)
    config.valid_labels = config.valid_labels or str(folder / VALID_LABELS)
    return config


def check(config: argparse.Namespace) -> None:
    """Refuse, before anything is loaded, files that are not there and packages that are not installed."""
    for path in (config.cxr_filepath, config.txt_filepath):
        require_file(path, REMEDY)
    for path in (config.valid, config.valid_labels) if config.val_interval else ():
        require_file(path, f"{REMEDY}, or train without validation with --val_interval 0")
    if not config.val_interval:
        log.warning(
            "no validation: no checkpoint will be selected; name a validation set with --valid and --valid_labels"
        )
    if config.compile and not any(map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))):
        raise UserError("--compile needs a C++ compiler, and none is found; install g++, or leave --compile out")
    if config.wandb:
        import_wandb()


def _is_upstreams(folder: Path) -> bool:
    """Whether a data folder holds upstream's reports and none built here. Upstream has no validation set."""
    return (folder / UPSTREAM_REPORTS).exists() and not (folder / REPORTS).exists()
