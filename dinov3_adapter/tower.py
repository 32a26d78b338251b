"""The vision tower: a DINOv3 trunk, its CLS token, and a linear projection into the text encoder's space."""

import os
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

from dinov3_adapter import weights as weight_files
from dinov3_adapter.errors import AdapterError, WeightsError
from dinov3_adapter.registry import PATCH_SIZE, Size, build_trunk, draw_weights, find_size


class VisionTower(nn.Module):
    """DINOv3 as the `visual` of a CLIP.

    Takes normalised images (B, 3, H, W), float, sides multiples of 16 (`imaging.normalise.prepare` makes them with the
    `image_resolution` that the tower was trained at); returns features (B, embed_dim), not normalised, or the CLS
    feature itself (B, width) where `embed_dim` is None.

    State dict: `trunk.*` (timm's names), `head.proj.weight` (embed_dim, width), and `image_resolution`, a number
    kept with the weights so that a bare state dict says how its images are to be prepared.
    """

    def __init__(
        self, size: Size, *, image_resolution: int = 224, embed_dim: int | None = None, drop_path: float = 0.0
    ):
        super().__init__()
        if image_resolution <= 0 or image_resolution % PATCH_SIZE:
            raise AdapterError(
                f"the image resolution {image_resolution} is not a multiple of {PATCH_SIZE}; choose "
                f"for instance 224, 320 or 448"
            )
        self.embed_dim = embed_dim
        self.trunk = build_trunk(size, drop_path=drop_path)
        self.head = nn.Identity()
        if embed_dim is not None:
            self.head = nn.Sequential(OrderedDict(proj=nn.Linear(size.width, embed_dim, bias=False)))
            nn.init.normal_(self.head.proj.weight, std=size.width**-0.5)  # as CLIP draws its own projections
        self.register_buffer("image_resolution", torch.tensor(image_resolution))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B, embed_dim), or (B, width) without a projection."""
        if images.shape[-2] % PATCH_SIZE or images.shape[-1] % PATCH_SIZE:
            raise AdapterError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels do not divide into patches "
                f"of {PATCH_SIZE}; resize them to {int(self.image_resolution)}"
            )
        return self.head(self.trunk(images))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each block's input for the backward pass and compute the rest again: less memory, more time."""
        self.trunk.set_grad_checkpointing(enable)


def build_vision_tower(
    name: str = "dinov3_vitb",
    weights: str | os.PathLike | Mapping[str, torch.Tensor] | None = None,
    *,
    image_resolution: int = 224,
    embed_dim: int | None = None,
    drop_path: float = 0.0,
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
    grad_checkpointing: trade time for memory while training.

    Returns the tower in float32, training mode. Raises `WeightsError` (or `AdapterError` for a wrong argument).
    """
    size = find_size(name)
    if weights is None:
        weights = size.published[0] if size.published else weight_files.RANDOM
    is_random = not isinstance(weights, Mapping) and str(weights) == weight_files.RANDOM
    trunk, projection = ({}, None) if is_random else weight_files.read_weights(weights, name)
    tower = VisionTower(size, image_resolution=image_resolution, embed_dim=embed_dim, drop_path=drop_path)
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


def tower_from_state_dict(state_dict: Mapping[str, torch.Tensor]) -> VisionTower:
    """Build the tower a state dict (`trunk.*`, `head.proj.weight`, `image_resolution`) describes; load it strictly.

    The size is found from the shapes. Raises `WeightsError` where no size fits.
    """
    trunk = {key.removeprefix("trunk."): value for key, value in state_dict.items() if key.startswith("trunk.")}
    name = weight_files.name_of(trunk)
    if "image_resolution" not in state_dict:
        raise WeightsError("the state dict lacks image_resolution; it was not written by this tower")
    projection = state_dict.get("head.proj.weight")
    tower = VisionTower(
        find_size(name),
        image_resolution=int(state_dict["image_resolution"]),
        embed_dim=None if projection is None else len(projection),
    )
    tower.load_state_dict(state_dict, strict=True)
    return tower
