"""`--cache_features`: a locked tower's features of the training images, computed once and kept in a file.

Locked-image tuning (LiT, Zhai et al. 2022) then runs at the speed of the text tower. The file's name is a hash of all
that the features depend on (weights, images, resolution, precision, pixel range), so only runs with the same share it.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from chexzero.common.errors import UserError
from chexzero.common.files import atomic_path, sha256_of
from chexzero.imaging.normalise import prepare
from chexzero.model import CLIP, PRECISIONS
from chexzero.train import CXRDataset
from chexzero.training import distributed
from chexzero.training.config import ALL, TrainConfig
from chexzero.training.logs import describe_data

log = logging.getLogger(__name__)
BATCH = 64


class FeatureRows:
    """The tower's features in place of a dataset's images: `stored(rows)` is float32 (B, width)."""

    def __init__(self, path: Path):
        self.path, self.features = path, np.load(path, mmap_mode="r")

    def __reduce__(self) -> tuple:  # to a worker process: a pickled memory map would be the whole array
        return FeatureRows, (self.path,)

    def __len__(self) -> int:
        return len(self.features)

    def stored(self, rows: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(self.features[list(rows)])


def use_cached_features(config: TrainConfig, dataset: CXRDataset, model: CLIP, device: torch.device) -> None:
    """Let `dataset` give the locked tower's features instead of images; compute them if no file has them yet.

    Raises `UserError` where the features of an image would change during the run.
    """
    changing = {
        "--augment": config.augment,
        "--augment_flip": config.augment_flip,
        "--drop_path": config.drop_path,
        "--patch_dropout": config.patch_dropout,
        "--lora_rank": config.lora_rank,
        "--freeze_steps": config.freeze_steps is not None,
    }
    wrong = [flag for flag, value in changing.items() if value]
    if config.freeze_blocks != ALL or wrong:
        needs = f"cannot be used with {' and '.join(wrong)}" if wrong else f"needs --freeze_blocks {ALL}"
        raise UserError(f"--cache_features {needs}: features of a tower that changes cannot be kept; leave it out")
    if not hasattr(model.visual, "trunk"):
        raise UserError(
            f"--cache_features is for DINOv3's and timm's towers; leave it out with --vision {config.vision}"
        )
    path = Path(config.save_dir) / "tower_features" / f"{_key(config, model)}.npy"
    if distributed.is_main() and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, config, dataset, model, device)
    distributed.wait_for_main()
    if not path.is_file():
        raise UserError(
            f"{path}, which rank 0 has written, is not visible here; --save_dir must be on a disk that all ranks share"
        )
    dataset.images = FeatureRows(path)  # type: ignore[assignment]  # the same two methods
    log.info("the tower's features of %d images are read from %s", len(dataset), path)


def _key(config: TrainConfig, model: CLIP) -> str:
    """Return the SHA-256 of everything that the features depend on."""
    images = next(iter(describe_data([config.cxr_filepath])["files"].values()))
    content = hashlib.sha256()
    for part in (
        images["sha256"] or sha256_of(config.cxr_filepath),
        model.image_resolution,
        config.precision,
        config.pixel_range,
    ):
        content.update(f"{part} ".encode())
    for name, tensor in model.visual.trunk.state_dict().items():
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else b"")
    return content.hexdigest()


@torch.no_grad()
def _write(path: Path, config: TrainConfig, dataset: CXRDataset, model: CLIP, device: torch.device) -> None:
    trunk: nn.Module = model.visual.trunk
    dtype: Any = PRECISIONS[config.precision]
    was_training = trunk.training
    trunk.eval()
    with atomic_path(path) as temporary:
        found = None
        for start in tqdm(
            range(0, len(dataset), BATCH), desc="features of the locked tower", unit="batch", disable=None
        ):
            images = dataset.images.stored(range(start, min(start + BATCH, len(dataset)))).to(device)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                features = trunk(prepare(images, model.image_resolution, model.normalisation))
            if found is None:
                shape = (len(dataset), features.shape[1])
                found = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
            found[start : start + len(images)] = features.float().cpu().numpy()
        if found is not None:
            found.flush()
    trunk.train(was_training)
