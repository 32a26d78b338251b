"""Build the model that `--vision`, `--text_encoder` and related flags name, from two towers and their weights."""

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.model import resize_pos_embed
from open_clip.transformer import PatchDropout
from torch import nn
from torch.nn import functional

import dinov3_adapter
from chexzero.common.errors import UserError
from chexzero.model import CLIP, compare_keys
from chexzero.models.checkpoints import describe, read_state_dict
from chexzero.models.other_libraries import is_model_folder
from chexzero.models.published import OPEN_CLIP_PREFIX, OPENAI, open_clip_file, weights_file

RANDOM = "random"
VOCABULARY_SIZE = 49408
DINOV3_RESOLUTION = 224

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipVision:
    """One of OpenAI's vision transformers; `published` is OpenAI's name for the whole model."""

    published: str
    patch_size: int
    image_resolution: int = 224
    layers: int = 12
    width: int = 768


@dataclass(frozen=True)
class TextSize:
    """A text transformer; its heads are 64 wide, as in every OpenAI model."""

    width: int
    heads: int
    layers: int
    weights: str  # the initial weights by default


CLIP_VISION = {"vit_b_32": ClipVision("ViT-B/32", patch_size=32), "vit_b_16": ClipVision("ViT-B/16", patch_size=16)}
VISION_CHOICES = [*CLIP_VISION, *dinov3_adapter.SIZES]
TIMM_PREFIX = "timm:"
TOWER_NAMES = ", ".join([*VISION_CHOICES, f"{TIMM_PREFIX}NAME for any model of timm"])
TEXT_SIZES = {
    "chexzero": TextSize(width=512, heads=8, layers=12, weights=OPENAI),
    "tiny": TextSize(width=64, heads=1, layers=2, weights=RANDOM),
}
#: `--random_init` with upstream's default vision trains a different model from the pretrained one.
RANDOM_INIT_VISION = ClipVision("ViT-B/16", patch_size=16, image_resolution=320)
RANDOM_INIT_EMBED_DIM = 768
#: The part of a CLIP state dict that is the text encoder. `logit_scale` belongs to the pair of towers.
_TEXT_KEY = re.compile(r"transformer\.|token_embedding\.|positional_embedding$|ln_final\.|text_projection$")


def vision_name(name: str) -> str:
    """Return `name` if it is a vision tower; else raise `UserError` with the known names."""
    if name in CLIP_VISION or name in dinov3_adapter.SIZES or name.startswith(TIMM_PREFIX):
        return name
    raise UserError(f"there is no vision tower {name!r}; choose one of {TOWER_NAMES}")


def create_model(
    vision: str = "vit_b_32",
    *,
    text_encoder: str = "chexzero",
    vision_weights: str | os.PathLike | None = None,
    text_weights: str | os.PathLike | None = None,
    image_resolution: int | None = None,
    embed_dim: int = 512,
    context_length: int = 77,
    text_positions: str | None = None,
    random_init: bool = False,
    drop_path: float = 0.0,
    patch_dropout: float = 0.0,
    grad_checkpointing: bool = False,
) -> CLIP:
    """Build a model: float32, on the CPU, in training mode.

    vision: one of `VISION_CHOICES`, or "timm:" and the name of any model of timm. text_encoder: one of `TEXT_SIZES`.
    vision_weights, text_weights: a file or folder, a published name, "random", or None for the tower's published
        weights (OpenAI's CLIP, Meta's DINOv3; the tiny towers have none and start at random). With random
        vision_weights the text encoder is random by default.
    image_resolution: side of the images in pixels, a multiple of the patch size; None for the tower's own.
    text_positions: how to fill positions after the last one of the text weights, one of `POSITIONS`; None refuses a
        `context_length` that is longer than theirs.
    patch_dropout: share of an image's patches left out during training (FLIP, Li et al. 2023).
    random_init: random weights in both towers. With `vit_b_32` this is upstream's `--random_init` model: ViT-B/16 at
        320 pixels, embedding 768.

    If both towers use the same weights, the logit scale comes with them; otherwise it starts at CLIP's initial
    1 / 0.07. Raises `UserError`, with the remedy, for weights that are not available or do not fit.
    """
    if random_init:
        vision_weights = text_weights = RANDOM
    if text_encoder not in TEXT_SIZES:
        raise UserError(f"there is no text encoder {text_encoder!r}; choose one of {', '.join(TEXT_SIZES)}")
    size = TEXT_SIZES[text_encoder]
    text: dict[str, Any] = dict(
        context_length=context_length,
        vocab_size=VOCABULARY_SIZE,
        transformer_width=size.width,
        transformer_heads=size.heads,
        transformer_layers=size.layers,
    )
    vision_name(vision)
    if vision not in CLIP_VISION:
        visual = _tower(
            vision,
            vision_weights,
            image_resolution,
            embed_dim=embed_dim,
            drop_path=drop_path,
            patch_dropout=patch_dropout,
        )
        model = CLIP(embed_dim, int(visual.image_resolution), 0, 0, None, **text, visual=visual)
        openai_name = CLIP_VISION["vit_b_32"].published
    else:
        tower = CLIP_VISION[vision]
        if drop_path:
            raise UserError(f"--drop_path is for the DINOv3 towers; leave it out with --vision {vision}")
        if random_init and vision == "vit_b_32":
            tower, embed_dim = RANDOM_INIT_VISION, RANDOM_INIT_EMBED_DIM
        model = _clip_model(tower, embed_dim, image_resolution or tower.image_resolution, text)
        if patch_dropout:
            model.visual.patch_dropout = PatchDropout(patch_dropout)
        openai_name = tower.published
        vision_weights = vision_weights or OPENAI
    if text_weights is None:
        text_weights = RANDOM if str(vision_weights) == RANDOM else size.weights

    state = None
    if vision in CLIP_VISION and str(vision_weights) != RANDOM:
        state = _read_clip(str(vision_weights), openai_name, "--vision_weights")
        _load_vision(model, state, vision_weights or OPENAI, vision)
    if str(text_weights) != RANDOM:
        together = str(text_weights) == str(vision_weights)
        if state is None or not together:
            state = _read_clip(str(text_weights), openai_name, "--text_weights")
        _load_text(model, state, text_weights, text_encoder, text_positions)
        if together and "logit_scale" in state:
            model.logit_scale.data.copy_(state["logit_scale"])
            if "logit_bias" in state:
                model.logit_bias = nn.Parameter(state["logit_bias"].float())
    else:
        log.info("text encoder: random weights")
    model.set_grad_checkpointing(grad_checkpointing)
    return model


def _tower(
    name: str, weights: str | os.PathLike | None, resolution: int | None, **options: Any
) -> dinov3_adapter.VisionTower:
    """Build one of timm's towers, DINOv3 or another."""
    is_timm, is_file = name.startswith(TIMM_PREFIX), weights is not None and Path(weights).exists()
    is_export = weights is not None and is_model_folder(weights)
    tensors = read_state_dict(weights) if weights is not None and (is_export or (is_timm and is_file)) else weights
    try:
        if is_timm:
            if isinstance(tensors, str | os.PathLike):
                if str(tensors) != RANDOM:
                    raise UserError(f"--vision_weights {weights} is not a file; name one, or {RANDOM}")
                tensors = RANDOM
            return dinov3_adapter.build_timm_tower(
                name.removeprefix(TIMM_PREFIX), tensors, image_resolution=resolution, **options
            )
        return dinov3_adapter.build_vision_tower(
            name, tensors, image_resolution=resolution or DINOV3_RESOLUTION, **options
        )
    except dinov3_adapter.AdapterError as error:
        raise UserError(f"{weights}: {error}" if is_export or (is_timm and is_file) else str(error)) from error


def _clip_model(tower: ClipVision, embed_dim: int, resolution: int, text: dict[str, Any]) -> CLIP:
    if resolution <= 0 or resolution % tower.patch_size:
        raise UserError(
            f"--image_resolution {resolution} is not a multiple of the patch size {tower.patch_size}; "
            f"choose for instance {tower.image_resolution}"
        )
    return CLIP(embed_dim, resolution, tower.layers, tower.width, tower.patch_size, **text)


def _read_clip(source: str, openai_name: str, flag: str) -> dict[str, torch.Tensor]:
    """Read a CLIP state dict from a file, from OpenAI (the model `openai_name`) or from open_clip's table."""
    if source == OPENAI:
        try:
            return read_state_dict(weights_file(openai_name))
        except UserError as error:
            raise UserError(f"{error}, or name a file with {flag} FILE (or {flag} {RANDOM})") from error
    if source.startswith(OPEN_CLIP_PREFIX):
        return read_state_dict(open_clip_file(source.removeprefix(OPEN_CLIP_PREFIX), flag))
    if not Path(source).exists():
        raise UserError(
            f"{flag} {source} is not a file or folder; name a checkpoint, an exported model, {OPENAI}, "
            f"{OPEN_CLIP_PREFIX}MODEL/TAG or {RANDOM}"
        )
    return read_state_dict(source)


def _load_vision(model: CLIP, state: Mapping[str, torch.Tensor], source: str | os.PathLike, vision: str) -> None:
    part = {key: value.float() for key, value in state.items() if key.startswith("visual.")}
    resize_pos_embed(part, model)  # changes them only if the resolution is not that of the weights
    wanted = {key: value for key, value in model.state_dict().items() if key.startswith("visual.")}
    _load_part(model, part, wanted, f"{source} ({describe(state)}) does not fit --vision {vision}")
    log.info("%s: image tower (%d tensors)", source, len(part))


def _load_text(
    model: CLIP,
    state: Mapping[str, torch.Tensor],
    source: str | os.PathLike,
    text_encoder: str,
    text_positions: str | None,
) -> None:
    part = {key: value.float() for key, value in state.items() if _TEXT_KEY.match(key)}
    positions = part.get("positional_embedding")
    if positions is not None:
        if len(positions) < model.context_length:
            if text_positions is None:
                raise UserError(
                    f"{source} was trained for texts of {len(positions)} tokens; choose --context_length "
                    f"{len(positions)} or less, or say what the later positions are with --text_positions "
                    f"{' or '.join(POSITIONS)}"
                )
            positions = POSITIONS[text_positions](positions, model.positional_embedding.data)
        part["positional_embedding"] = positions[
            : model.context_length
        ]  # the mask is causal: later ones have no effect
    wanted = {key: value for key, value in model.state_dict().items() if _TEXT_KEY.match(key)}
    _load_part(model, part, wanted, f"{source} ({describe(state)}) does not fit --text_encoder {text_encoder}")
    log.info(
        "%s: text encoder (%d tensors); only the text side is used, its other %d tensors are not",
        source,
        len(part),
        len(state) - len(part),
    )


def _interpolated(positions: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(positions.T[None], size=len(drawn), mode="linear", align_corners=True)[0].T


#: `--text_positions` -> function from the weights' and random embeddings to those of a longer context, (T, D).
POSITIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "interpolate": _interpolated,  # all are stretched, so that short texts change a little too
    "new": lambda positions, drawn: torch.cat([positions, drawn[len(positions) :]]),  # the first stay as they are
}


def _load_part(model: CLIP, part: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], problem: str) -> None:
    differences = compare_keys(wanted, part)
    if differences:
        raise UserError(f"{problem}: it {differences}; name weights of this kind and size")
    model.load_state_dict(part, strict=False)  # `compare_keys` has just checked the part strictly
