"""A training step must not wait for the device: count the operations that read a tensor's content on the host.

On a GPU each of them blocks the host until the device has caught up. A dispatch mode detects them on the CPU too.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from chexzero.models.towers import create_model
from chexzero.train import train_batch
from chexzero.training.augment import Augmentation, augment
from chexzero.training.config import TrainConfig
from chexzero.training.loss import LOSSES
from chexzero.training.step import Updates, begin_logits, for_training

CPU = torch.device("cpu")
#: Operations that read values on the host, or whose result's shape depends on values.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::repeat_interleave.Tensor",
}


class HostReads(TorchDispatchMode):
    """Collects the names of the operations in its block that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name + (f".{func._schema.overload_name}" if func._schema.overload_name else "")
        by_mask = func._schema.name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        if name in WAITING or func._schema.name in WAITING or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: bool(x.isnan().any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: torch.unique(x),
        lambda x: torch.masked_select(x, x > 0),
    ],
)
def test_the_counter_sees_what_waits(read):
    with HostReads() as reads:
        read(torch.tensor([1.0, -2.0]))
    assert reads.found


def test_the_counter_lets_pass_what_does_not_wait():
    with HostReads() as reads:
        x = torch.rand(4, 4)
        torch.where(x > 0.5, x, 0).sum(1).softmax(0)[torch.arange(2)]
    assert not reads.found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "adam", "fused": True, "clip_grad_norm": 1.0, "clip_logit_scale": 100.0, "lr_schedule": "cosine"},
        {"equal_text": "positive"},
        {"loss": "siglip"},
        {"precision": "bf16"},
        {"grad_accum": 2},
        {"grad_checkpointing": True, "drop_path": 0.1},
        {"augment": "medium", "augment_flip": True},
        {"ema": 0.99, "label_smoothing": 0.1, "equal_text": "positive", "patch_dropout": 0.5},
    ],
    ids=lambda settings: "_".join(settings) or "defaults",
)
def test_a_step_reads_nothing_back(settings):
    config = TrainConfig(vision="dinov3_tiny", **settings)
    clip = create_model(
        "dinov3_tiny",
        text_encoder="tiny",
        vision_weights="random",
        image_resolution=32,
        drop_path=config.drop_path,
        patch_dropout=config.patch_dropout,
        grad_checkpointing=config.grad_checkpointing,
    )
    begin_logits(clip, config)
    model = for_training(clip, CPU, config)
    if config.optimizer == "adam":
        inner: torch.optim.Optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-3, fused=config.fused or None)
    else:
        inner = torch.optim.SGD(clip.parameters(), lr=1e-3, momentum=0.9)
    updates = Updates(inner, model, config, 10, CPU)
    criterion = LOSSES[config.loss].criterion(config.equal_text, config.label_smoothing)
    change = Augmentation(config.augment, flip=config.augment_flip, rows=9, seed=0, resolution=32)
    images, texts = torch.randint(0, 256, (4, 40, 40), dtype=torch.uint8), torch.randint(1, 49407, (4, 9))
    train_batch(images, texts, model, CPU, criterion, updates)  # set up by the first step only
    numbers = change.numbers(0, torch.arange(4))
    augment(images, numbers, change.by, 32)
    with HostReads() as reads:
        if change:
            images = augment(images, numbers, change.by, 32, flip=True)
        loss = train_batch(images, texts, model, CPU, criterion, updates)
    assert reads.found == []
    assert loss.isfinite()
