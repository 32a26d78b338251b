"""The vision tower: a DINOv3 or another timm trunk, and a linear projection into the text encoder's space."""

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, cast

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

from dinov3_adapter import weights as weight_files
from dinov3_adapter.errors import AdapterError, WeightsError
from dinov3_adapter.registry import build_trunk, draw_weights, find_size
from dinov3_adapter.unfilled import Unfilled


class VisionTower(nn.Module):
    """A timm model as the `visual` of a CLIP: trunk, pooled feature, projection.

    Takes normalised images (B, 3, H, W), float (for DINOv3 the sides may be any multiples of 16); returns features
    (B, embed_dim), not normalised, or the pooled feature itself (B, width) where `embed_dim` is None.

    State dict: `trunk.*` (timm's names), `head.proj.weight` (embed_dim, width), and `image_resolution`, a number
    kept with the weights so that a bare state dict says how to prepare its images. `architecture` is timm's name as
    UTF-8 bytes; a DINOv3 tower has none, because its shapes identify it.
    """

    image_resolution: torch.Tensor
    architecture: torch.Tensor

    def __init__(
        self,
        trunk: nn.Module,
        *,
        image_resolution: int = 224,
        embed_dim: int | None = None,
        architecture: str | None = None,
    ):
        super().__init__()
        self.patch_size = _patch_size(trunk)
        if image_resolution <= 0 or image_resolution % self.patch_size:
            raise AdapterError(
                f"the image resolution {image_resolution} is not a multiple of {self.patch_size}; choose "
                f"for instance {self.patch_size * 14}, {self.patch_size * 20} or {self.patch_size * 28}"
            )
        self.embed_dim = embed_dim
        self.trunk: Any = trunk  # a module of timm: its attributes are known only when it is built
        self.head: Any = nn.Identity()
        if embed_dim is not None:
            width = cast(int, trunk.num_features)
            self.head = nn.Sequential(OrderedDict(proj=nn.Linear(width, embed_dim, bias=False)))
            # as CLIP initialises its own projections
            nn.init.normal_(self.head.proj.weight, std=width**-0.5)
        self.register_buffer("image_resolution", torch.tensor(image_resolution))
        if architecture is not None:
            name = torch.tensor(list(architecture.encode()), dtype=torch.uint8)
            self.register_buffer("architecture", name)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, H, W) to (B, embed_dim), or to (B, width) without a projection."""
        if images.shape[-2] % self.patch_size or images.shape[-1] % self.patch_size:
            raise AdapterError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels do not divide into patches "
                f"of {self.patch_size}; resize them to {int(self.image_resolution)}"
            )
        return self.head(self.trunk(images))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each block's input for the backward pass and compute the rest again: less memory, more time."""
        self.trunk.set_grad_checkpointing(enable)


def _patch_size(trunk: nn.Module) -> int:
    """Side in pixels of one token's patch; 1 for a tower that does not cut the image into patches."""
    embed: Any = getattr(trunk, "patch_embed", None)
    if hasattr(embed, "feat_ratio"):  # a convolutional stem before the patches counts too
        return embed.feat_ratio()
    patch = getattr(embed, "patch_size", 1)
    return patch if isinstance(patch, int) else patch[0]


def build_vision_tower(
    name: str = "dinov3_vitb",
    weights: str | os.PathLike | Mapping[str, torch.Tensor] | None = None,
    *,
    image_resolution: int = 224,
    embed_dim: int | None = None,
    drop_path: float = 0.0,
    patch_dropout: float = 0.0,
    grad_checkpointing: bool = False,
) -> VisionTower:
    """Build a tower with its weights.

    name: a key of `SIZES`.
    weights: a file, folder or state dict in any layout of `dinov3_adapter.convert`, a name on the Hugging Face hub,
        "random", or None for the size's recommended published weights (random where none are published:
        `dinov3_tiny`).
    image_resolution: side of the images in pixels, a multiple of 16.
    embed_dim: length of the projected feature; None leaves the projection out and gives the CLS feature.
    drop_path: probability of dropping the last block's branches while training; blocks before it rise to it from 0.
    patch_dropout: share of an image's patches that is left out while training.
    grad_checkpointing: trade time for memory while training.

    Returns the tower in float32, training mode. Raises `WeightsError` (or `AdapterError` for a wrong argument).
    """
    size = find_size(name)
    if weights is None:
        weights = size.published[0] if size.published else weight_files.RANDOM
    is_random = not isinstance(weights, Mapping) and str(weights) == weight_files.RANDOM
    trunk, projection = ({}, None) if is_random else weight_files.read_weights(weights, name)
    trained_trunk = build_trunk(size, drop_path=drop_path, patch_dropout=patch_dropout)
    tower = VisionTower(trained_trunk, image_resolution=image_resolution, embed_dim=embed_dim)
    tower.set_grad_checkpointing(grad_checkpointing)
    if is_random:
        draw_weights(tower.trunk)
    else:
        tower.trunk.load_state_dict(trunk, strict=True)
        _load_projection(tower, projection, "the state dict" if isinstance(weights, Mapping) else weights)
    return tower


def _load_projection(tower: VisionTower, projection: torch.Tensor | None, weights: str | os.PathLike) -> None:
    if projection is None or tower.embed_dim is None:
        return
    own = tower.head.proj.weight
    if projection.shape != own.shape:
        raise WeightsError(
            f"{weights} has a projection of shape {tuple(projection.shape)}, this model one of "
            f"{tuple(own.shape)}; choose the embedding size it was trained with"
        )
    own.data.copy_(projection)


def build_timm_tower(
    architecture: str,
    weights: Mapping[str, torch.Tensor] | str | None = None,
    *,
    image_resolution: int | None = None,
    embed_dim: int | None = None,
    drop_path: float = 0.0,
    patch_dropout: float = 0.0,
) -> VisionTower:
    """Build a tower from any model of timm, with timm's pooling.

    weights: a state dict with timm's names, or that of a checkpoint with such a tower (`visual.*`); "random"; or None
    for timm's published weights. image_resolution: side of the images in pixels; None for timm's own. Position
    embeddings are resampled to it. Returns the tower in float32, training mode; raises `AdapterError` (or
    `WeightsError`).
    """
    trunk: Any = _timm_trunk(
        architecture, pretrained=weights is None, drop_path_rate=drop_path, patch_drop_rate=patch_dropout
    )
    own = trunk.pretrained_cfg["input_size"][-1]
    state = dict(weights) if isinstance(weights, Mapping) else {}
    ours = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    if ours:
        stored = int(ours.get("image_resolution", own))
        _set_resolution(trunk, stored)
        state = {key.removeprefix("trunk."): value for key, value in ours.items() if key.startswith("trunk.")}
    if state:
        wanted = {key: value.shape for key, value in trunk.state_dict().items()}
        found = {key: value.float() for key, value in state.items() if key in wanted or not _is_classifier(trunk, key)}
        differences = weight_files.differences(found, wanted)
        if differences:
            raise WeightsError(f"{differences}; name weights of timm's {architecture}")
        trunk.load_state_dict(found, strict=True)
    resolution = image_resolution or own
    _set_resolution(trunk, resolution)
    if _patch_size(trunk) == 1:  # convolutions are faster this way, on CPUs and on GPUs
        trunk = trunk.to(memory_format=torch.channels_last)
    tower = VisionTower(trunk, image_resolution=resolution, embed_dim=embed_dim, architecture=architecture)
    _load_projection(tower, ours.get("head.proj.weight"), "the checkpoint")
    return tower


def _timm_trunk(architecture: str, *, pretrained: bool, **rates: float) -> nn.Module:
    if not timm.is_model(architecture.split(".")[0]):
        near = ", ".join(timm.list_models(f"*{architecture[:12]}*")[:8])
        raise AdapterError(f"timm has no model {architecture!r}{f' (it has {near}, ...)' if near else ''}; choose one")
    options: dict[str, Any] = {name: rate for name, rate in rates.items() if rate}
    try:
        return timm.create_model(architecture, pretrained=pretrained, num_classes=0, **options)
    except (OSError, RuntimeError, HfHubHTTPError) as error:
        raise WeightsError(
            f"timm's {architecture} is not available ({weight_files.first_sentence(error)}); fetch its "
            f"model.safetensors elsewhere and name it with --vision_weights FILE, or use --vision_weights random"
        ) from error
    except TypeError as error:
        flags = " and ".join(
            {"drop_path_rate": "--drop_path", "patch_drop_rate": "--patch_dropout"}[one] for one in options
        )
        raise AdapterError(f"timm's {architecture} does not take {flags}; leave that out") from error


def _is_classifier(trunk: Any, key: str) -> bool:
    """Whether a tensor belongs to the published model's classifier, which a tower does not have."""
    return key.startswith(tuple(f"{name}." for name in _names(trunk.pretrained_cfg.get("classifier"))))


def _names(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _set_resolution(trunk: Any, resolution: int) -> None:
    patch = _patch_size(trunk)
    if hasattr(trunk, "set_input_size") and resolution > 0 and resolution % patch == 0:
        trunk.set_input_size(img_size=resolution)


def tower_from_state_dict(state_dict: Mapping[str, torch.Tensor]) -> VisionTower:
    """Build the tower a state dict (`trunk.*`, `head.proj.weight`, `image_resolution`) describes; load it strictly.

    Its `architecture` names the timm model; without one it is a DINOv3, whose size is found from the shapes. Raises
    `AdapterError` (or `WeightsError`) if there is no such model.
    """
    if "image_resolution" not in state_dict:
        raise WeightsError("the state dict lacks image_resolution; it was not written by this tower")
    resolution, projection = int(state_dict["image_resolution"]), state_dict.get("head.proj.weight")
    embed_dim = None if projection is None else len(projection)
    with Unfilled():
        tower = _tower_for(state_dict, image_resolution=resolution, embed_dim=embed_dim)
    tower.load_state_dict(state_dict, strict=True)
    return tower


def _tower_for(state_dict: Mapping[str, torch.Tensor], **options: Any) -> VisionTower:
    if "architecture" in state_dict:
        return build_timm_tower(bytes(state_dict["architecture"].tolist()).decode(), "random", **options)
    trunk = {key.removeprefix("trunk."): value for key, value in state_dict.items() if key.startswith("trunk.")}
    return VisionTower(build_trunk(find_size(weight_files.name_of(trunk))), **options)
