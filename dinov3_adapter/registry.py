"""The available DINOv3 vision transformers, as data. To add a size, add an entry."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import timm
import torch
from timm.layers import HybridEmbed
from torch import nn

from dinov3_adapter.errors import AdapterError
from dinov3_adapter.unfilled import Unfilled


@dataclass(frozen=True)
class Size:
    """One vision transformer.

    architecture: timm's name. `_qkvb` is the variant with query and value biases, which every released file fits
        (they are zero where a file has none); the 7B model was trained without them.
    width: length of the CLS feature.
    published: names on the Hugging Face hub whose weights fit, the recommended default first.
    meta_file: the file Meta publishes; the eight digits before `.pth` begin its SHA-256.
    overrides: arguments that differ from timm's for the architecture.
    stem: timm's convolutional model whose stages down to a sixteenth of the image replace the patch embedding.
    """

    architecture: str
    width: int
    published: tuple[str, ...] = ()
    meta_file: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    stem: str | None = None


#: Names as on the command line (`--vision dinov3_vitb`). Meta's sizes and hashes: facebookresearch/dinov3, hubconf.
SIZES: dict[str, Size] = {
    "dinov3_tiny": Size(
        "vit_tiny_patch16_dinov3_qkvb",
        64,  # ours, for demos and tests; heads of 64 as in all sizes
        overrides={"embed_dim": 64, "depth": 6, "num_heads": 1},
    ),
    "dinov3_tiny_hybrid": Size(
        "vit_tiny_patch16_dinov3_qkvb",
        64,  # ours, for demos: from random weights it learns small findings, which the one above hardly does
        overrides={"embed_dim": 64, "depth": 2, "num_heads": 4},
        stem="test_resnet",
    ),
    "dinov3_vits": Size(
        "vit_small_patch16_dinov3_qkvb",
        384,
        ("facebook/dinov3-vits16-pretrain-lvd1689m", "timm/vit_small_patch16_dinov3.lvd1689m"),
        "dinov3_vits16_pretrain_lvd1689m-08c60483.pth",
    ),
    "dinov3_vitsplus": Size(
        "vit_small_plus_patch16_dinov3_qkvb",
        384,
        ("facebook/dinov3-vits16plus-pretrain-lvd1689m", "timm/vit_small_plus_patch16_dinov3.lvd1689m"),
        "dinov3_vits16plus_pretrain_lvd1689m-4057cbaa.pth",
    ),
    "dinov3_vitb": Size(
        "vit_base_patch16_dinov3_qkvb",
        768,
        ("facebook/dinov3-vitb16-pretrain-lvd1689m", "timm/vit_base_patch16_dinov3.lvd1689m"),
        "dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth",
    ),
    "dinov3_vitl": Size(
        "vit_large_patch16_dinov3_qkvb",
        1024,
        (
            "facebook/dinov3-vitl16-pretrain-lvd1689m",
            "timm/vit_large_patch16_dinov3.lvd1689m",
            "facebook/dinov3-vitl16-pretrain-sat493m",
            "timm/vit_large_patch16_dinov3.sat493m",
        ),
        "dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth",
    ),
    "dinov3_vithplus": Size(
        "vit_huge_plus_patch16_dinov3_qkvb",
        1280,
        ("facebook/dinov3-vith16plus-pretrain-lvd1689m", "timm/vit_huge_plus_patch16_dinov3.lvd1689m"),
        "dinov3_vith16plus_pretrain_lvd1689m-7c1da9a5.pth",
    ),
    "dinov3_vit7b": Size(
        "vit_7b_patch16_dinov3",
        4096,
        (
            "facebook/dinov3-vit7b16-pretrain-lvd1689m",
            "timm/vit_7b_patch16_dinov3.lvd1689m",
            "facebook/dinov3-vit7b16-pretrain-sat493m",
            "timm/vit_7b_patch16_dinov3.sat493m",
        ),
        "dinov3_vit7b16_pretrain_lvd1689m-a955f4ea.pth",
    ),
}


def find_size(name: str) -> Size:
    """Return the entry of `SIZES`; an unknown name raises `AdapterError` with the known ones."""
    if name not in SIZES:
        raise AdapterError(f"there is no vision tower {name!r}; choose one of {', '.join(SIZES)}")
    return SIZES[name]


def build_trunk(size: Size, *, drop_path: float = 0.0, patch_dropout: float = 0.0) -> nn.Module:
    """Build timm's vision transformer: (B, 3, H, W) to the CLS token after the final norm, (B, width).

    timm's default for this family is the mean over patches; `global_pool="token"` is DINOv3's own choice. The RoPE
    angles follow from the input's shape, so one set of weights serves every image size that is a multiple of 16.
    Random weights start with a layer scale of 1: at DINOv3's 1e-5, meant for its long pretraining, the blocks would
    add next to nothing and the CLS token would hardly depend on the image.
    """
    arguments = {"init_values": 1.0, **size.overrides}
    trunk: nn.Module = timm.create_model(
        size.architecture,
        pretrained=False,
        num_classes=0,
        global_pool="token",
        drop_path_rate=drop_path,
        patch_drop_rate=patch_dropout,
        **arguments,
    )
    if size.stem:
        trunk.patch_embed = _convolutions(size.stem, size.width)
    return trunk


def _convolutions(model: str, width: int) -> nn.Module:
    """The stages of timm's `model` down to a sixteenth of the side, and a projection to the width.

    Maps (B, 3, H, W) to (B, H / 16, W / 16, width), the trunk's form of patches. The weights are channels last, with
    which a CPU computes convolutions faster.
    """
    stages = timm.create_model(model, pretrained=False, features_only=True, out_indices=(3,))
    embed: Any = HybridEmbed(stages, feature_size=1, embed_dim=width, strict_img_size=False, output_fmt="NHWC")
    return embed.to(memory_format=torch.channels_last)


def draw_weights(trunk: nn.Module) -> None:
    """Initialise a tower that starts at random, in place.

    Every matrix of the blocks is drawn with a deviation of 1 / sqrt(inputs), and the patch embedding starts as a
    whitening; a convolutional stem keeps timm's draw. timm draws all matrices with 0.02, which suits a width of 2,500.
    In a narrow tower the blocks then add next to nothing, and it learns late what single patches show.
    """
    blocks: Any = trunk.blocks
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    embed: Any = trunk.patch_embed
    if not isinstance(embed, HybridEmbed):
        _whiten(embed.proj.weight.data)


def _whiten(weight: torch.Tensor) -> None:
    """Fill a patch embedding (width, channels, P, P) with cosines, lowest frequencies first.

    Each is scaled to about the same deviation on radiographs; filters beyond P x P keep their draw. The amplitude of a
    radiograph falls steeply with frequency. Random filters all respond to the mean of a patch, and ten times more
    weakly to fine structures such as a line or a margin.
    """
    channels, side = weight.shape[1:3]
    places, orders = torch.arange(side) + 0.5, torch.arange(side)
    cosines = torch.cos(math.pi / side * orders[:, None] * places) * (2 / side) ** 0.5
    cosines[0] /= 2**0.5  # now orthonormal
    frequencies = (orders[:, None] ** 2 + orders**2).double().sqrt().flatten()
    first = frequencies.argsort(stable=True)[: len(weight)]
    amplitude = 11 / (1 + 2 * frequencies[first] ** 1.6)  # of normalised images of 128 pixels; a rough fit is enough
    filters = cosines[first // side, :, None] * cosines[first % side, None, :] / amplitude[:, None, None]
    weight[: len(first)] = (filters / channels)[:, None].to(weight)


def trunk_shapes(size: Size) -> dict[str, torch.Size]:
    """Names and shapes of a trunk's weights, without allocating them (the 7B model has 27 GB)."""
    with torch.device("meta"), Unfilled():
        return {key: value.shape for key, value in build_trunk(size).state_dict().items()}
