"""Fine-tuning of a pretrained tower: learning rates, freezing, LoRA. Default flags change nothing.

In a training script: `add_arguments(parser)`; `prepare(model, config)` once, before the optimiser and before the model
is wrapped; `parameter_groups(model, config)` for the optimiser; `set_frozen(model, step, config)` between each backward
pass and the optimiser's step; `merge_lora(model)` where a checkpoint is written.
"""

import logging
import re
from collections.abc import Iterator
from typing import Any, cast

import torch
from timm.models import group_parameters
from torch import nn

from chexzero.common.errors import UserError
from chexzero.model import CLIP
from chexzero.training.config import ALL, TrainConfig

#: Every matrix of a DINOv3 block: attention in and out, both of the MLP (three where it is gated).
LORA_TARGETS = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc\w+)"

_BLOCK = re.compile(r"visual\.(?:trunk\.blocks|transformer\.resblocks)\.(\d+)\.")
_EMBEDDING = re.compile(
    r"visual\.(?:trunk\.(?:cls_token|reg_token|pos_embed|patch_embed|norm_pre)"
    r"|class_embedding|positional_embedding|conv1|ln_pre)\b"
)
_PROJECTION = re.compile(r"visual\.(?:head\.proj\.weight|proj)$")

log = logging.getLogger(__name__)


def prepare(model: CLIP, config: TrainConfig) -> CLIP:
    """Add LoRA and freeze the parameters frozen for the whole run; changes and returns `model`.

    Raises `UserError` for settings that do not fit together or do not fit the tower.
    """
    _check(model, config)
    if config.lora_rank:
        _add_lora(model.visual.trunk, config.lora_rank, config.lora_alpha)
    if config.freeze_blocks and config.freeze_steps is None:
        for _, parameter in _frozen(model, config.freeze_blocks):
            parameter.requires_grad = False
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    if learning < total:
        log.info("%.1f of %.1f million parameters are trained", learning / 1e6, total / 1e6)
    return model


def _check(model: CLIP, config: TrainConfig) -> None:
    if not config.layer_decay > 0:
        raise UserError(f"--layer_decay {config.layer_decay:g} must be above 0; give for instance 0.75, or 1 for none")
    depth = max(_layers(model).values()) - 1
    if config.freeze_blocks != ALL and not 0 <= int(config.freeze_blocks) <= depth:
        raise UserError(
            f"--freeze_blocks {config.freeze_blocks} does not fit a tower of {depth} blocks; give 0 to {depth}, or {ALL}"
        )
    if config.freeze_steps is not None and not config.freeze_blocks:
        raise UserError(f"--freeze_steps needs --freeze_blocks to say what is frozen; add --freeze_blocks N or {ALL}")
    if config.lora_rank and not hasattr(getattr(model.visual, "trunk", None), "blocks"):
        raise UserError(
            "--lora_rank is for the DINOv3 towers and timm's vision transformers; choose one with --vision, or leave "
            "it out"
        )


def _add_lora(trunk: Any, rank: int, alpha: float) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("--lora_rank needs the package peft; install it with `pip install peft`") from error
    scale = cast(int, alpha)  # peft takes any number and declares an int
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=scale, target_modules=LORA_TARGETS), trunk)
    for block in trunk.blocks:  # else timm's DINOv3 reads qkv.weight directly and skips the update
        if hasattr(block.attn, "qkv_bias_separate"):
            block.attn.qkv_bias_separate = True


def merge_lora(model: CLIP) -> dict[str, torch.Tensor]:
    """Return the state dict with LoRA's updates added to the weights, under the keys of a model without LoRA.

    Without LoRA, this is the model's state dict. The model itself is not changed.
    """
    state = model.state_dict()
    with torch.no_grad():
        for name, module in model.named_modules():
            if hasattr(module, "get_delta_weight"):
                weight = f"{name}.base_layer.weight"
                state[weight] = state[weight] + sum(map(module.get_delta_weight, module.active_adapters))
    return {key.replace(".base_layer.", "."): value for key, value in state.items() if ".lora_" not in key}


def parameter_groups(model: CLIP, config: TrainConfig) -> list[dict]:
    """Return groups for a torch optimiser, `{"params": [...], "lr": rate}`: one per learning rate, `--lr`'s first.

    At the defaults there is one group with every parameter in the model's order, which is what upstream trains.
    With `--layer_decay` d, block i of n (from 0) learns at d ** (n - i) of the tower's rate, the embeddings at
    d ** (n + 1), the final norm at the rate itself. Parameters that never learn are left out.
    """
    layers = _layers(model)
    groups: dict[float, list[nn.Parameter]] = {config.lr: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(_rate(name, layers, config), []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items() if parameters]


def _rate(name: str, layers: dict[str, int], config: TrainConfig) -> float:
    if name == "logit_scale":
        return config.lr
    if _PROJECTION.match(name):
        return _first(config.projection_lr, config.lr)
    if not name.startswith("visual."):
        return _first(config.text_lr, config.lr)
    return _first(config.vision_lr, config.lr) * config.layer_decay ** (max(layers.values()) - layers[name])


def _first(rate: float | None, default: float) -> float:
    return default if rate is None else rate


def set_frozen(model: CLIP, step: int, config: TrainConfig) -> None:
    """Remove the gradients of parameters frozen at this step (from 0), so that the optimiser skips them.

    Call it between the backward pass and the optimiser's step. Only gradients are removed: DistributedDataParallel
    would not keep parameters equal over the ranks if their `requires_grad` changed during a run.
    """
    if config.freeze_steps is None or step >= config.freeze_steps:
        return
    for _, parameter in _frozen(model, config.freeze_blocks):
        parameter.grad = None


def _frozen(model: CLIP, blocks: int | str) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of the vision tower's embeddings and first `blocks` blocks, or of the whole tower."""
    layers = _layers(model)
    last = max(layers.values()) if blocks == ALL else int(blocks)
    for name, parameter in model.named_parameters():
        if blocks and name in layers and layers[name] <= last:
            yield name, parameter


def _layers(model: CLIP) -> dict[str, int]:
    """Return the layer of each parameter of the vision tower, except the projection.

    0 for the embeddings, i + 1 for block i, and the next number for what follows the last block. A timm tower without
    a single list of blocks (a convolutional network) is divided as timm divides it.
    """
    names = [name for name, _ in model.named_parameters() if name.startswith("visual.") and not _PROJECTION.match(name)]
    trunk = getattr(model.visual, "trunk", None)
    if trunk is not None and not hasattr(trunk, "blocks"):
        numbers = group_parameters(trunk, trunk.group_matcher(coarse=False), reverse=True)
        return {name: numbers[name.removeprefix("visual.trunk.")] for name in names}
    blocks = {name: int(match[1]) + 1 for name in names if (match := _BLOCK.match(name))}
    after = max(blocks.values(), default=0) + 1
    return {name: 0 if _EMBEDDING.match(name) else blocks.get(name, after) for name in names}
