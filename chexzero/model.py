"""CheXzero's CLIP in float32: OpenAI's architecture, state-dict keys and pair of logits, with open_clip's towers."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import QuickGELU, TextTransformer, VisionTransformer
from torch import nn
from torch.nn import functional

from chexzero.common.errors import UserError

if TYPE_CHECKING:
    from chexzero.imaging.normalise import Normalisation

#: Name of a precision -> type under autocast (None: plain float32).
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

HEAD_WIDTH = 64  # every OpenAI tower has heads of this width, so the number of heads follows from the width


def pick_device(wanted: str | torch.device | None = None) -> torch.device:
    """Return the requested device after checking that it works; None means a GPU if there is one, else the CPU."""
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the device {wanted} cannot be used ({reason}); use --device cpu") from error


class CLIP(nn.Module):
    """An image tower and a text tower in one embedding space.

    The ten arguments are upstream's. `vision_layers` is a number for a vision transformer or four numbers for a
    ResNet (then `vision_patch_size` is None). `visual` replaces the image tower that the vision arguments
    would build: any module that maps float (B, 3, R, R) to (B, embed_dim).

    Attributes: `image_resolution` (R), `context_length` (the most tokens per text), `vocab_size`, `visual`,
    `logit_scale` (a parameter: the logarithm of the factor on the cosines), `logit_bias` (a parameter added to the
    logits by models trained with the sigmoid loss, or None), `normalisation` (mean and deviation of the images; a model
    read from another library's folder may have its own; None means CheXzero's).
    """

    normalisation: "Normalisation | None" = None
    attn_mask: torch.Tensor
    logit_bias: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        image_resolution: int,
        vision_layers: tuple[int, int, int, int] | int,
        vision_width: int,
        vision_patch_size: int | None,
        context_length: int,
        vocab_size: int,
        transformer_width: int,
        transformer_heads: int,
        transformer_layers: int,
        *,
        visual: nn.Module | None = None,
        logit_bias: float | None = None,
    ):
        super().__init__()
        self.image_resolution = image_resolution
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.visual: Any = (  # `Any`: towers of several libraries have different methods
            visual
            if visual is not None
            else _openai_vision_tower(embed_dim, image_resolution, vision_layers, vision_width, vision_patch_size)
        )
        text = TextTransformer(
            context_length=context_length,
            vocab_size=vocab_size,
            width=transformer_width,
            heads=transformer_heads,
            layers=transformer_layers,
            output_dim=embed_dim,
            act_layer=QuickGELU,
        )
        # OpenAI's keys have the parts of the text tower at the top level.
        self.transformer = text.transformer
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.register_buffer("attn_mask", text.attn_mask, persistent=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.register_parameter("logit_bias", None if logit_bias is None else nn.Parameter(torch.tensor(logit_bias)))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the image tower's weights."""
        return next(self.visual.parameters()).dtype

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: keep no activations inside the blocks, compute them again in the backward pass."""
        self.visual.set_grad_checkpointing(enable)
        self.transformer.grad_checkpointing = enable

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Prepared images (`chexzero.imaging.normalise.prepare`), float (B, 3, R, R), to features (B, embed_dim)."""
        return self.visual(image.to(self.dtype))

    def encode_text(self, text: torch.Tensor) -> torch.Tensor:
        """Token ids, int (B, T) with T <= context_length, to features (B, embed_dim), not normalised.

        The feature is the last layer's state at the end-of-text token, the highest id in the row. The mask is causal,
        so columns after the longest text of a batch may be cut off with the same result.
        """
        length = text.shape[1]
        if length > self.context_length:
            raise ValueError(f"texts of {length} tokens do not fit the model's context of {self.context_length}")
        states = self.token_embedding(text) + self.positional_embedding[:length]
        states = self.ln_final(self.transformer(states, attn_mask=self.attn_mask[:length, :length]))
        at_end = states[torch.arange(states.shape[0], device=states.device), text.argmax(dim=-1)]
        return at_end @ self.text_projection

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `(logits_per_image (B, T), logits_per_text (T, B))`: exp(logit_scale) x cosines (+ logit_bias)."""
        image_features = functional.normalize(self.encode_image(image), dim=-1)
        text_features = functional.normalize(self.encode_text(text), dim=-1)
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.t()
        if self.logit_bias is not None:
            logits_per_image = logits_per_image + self.logit_bias
        return logits_per_image, logits_per_image.t()


def _openai_vision_tower(
    embed_dim: int, resolution: int, layers: tuple[int, ...] | int, width: int, patch_size: int | None
) -> nn.Module:
    if isinstance(layers, int):
        return VisionTransformer(
            image_size=resolution,
            patch_size=patch_size,
            width=width,
            layers=layers,
            heads=width // HEAD_WIDTH,
            mlp_ratio=4.0,
            output_dim=embed_dim,
            act_layer=QuickGELU,
        )
    return ModifiedResNet(
        layers=list(layers), output_dim=embed_dim, heads=width * 32 // HEAD_WIDTH, image_size=resolution, width=width
    )


def build_model(state_dict: Mapping[str, torch.Tensor]) -> CLIP:
    """Build the model a state dict describes and load it strictly; float32, eval mode, on the CPU.

    The shapes determine OpenAI's vision transformers and ResNets, as in upstream; a dict with `visual.trunk.*` is a
    DINOv3 model, whose tower `dinov3_adapter` builds. Half-precision weights become float32 (upstream converts the
    model to float16 instead). Raises `UserError` naming the keys that are missing, unexpected or of another shape.
    """
    from dinov3_adapter.unfilled import Unfilled  # here, because the adapter takes a second to import

    state_dict = {key: value for key, value in state_dict.items() if key not in OPENAI_EXTRAS}
    try:
        with Unfilled():
            model = _model_for(state_dict)
    except KeyError as error:
        raise UserError(f"the state dict lacks the key {error.args[0]} of a CLIP") from error
    except (IndexError, TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the state dict does not describe a CLIP that can be built ({reason})") from error
    differences = compare_keys(model.state_dict(), state_dict)
    if differences:
        raise UserError(f"the state dict {differences}")
    model.load_state_dict(state_dict, strict=True)
    return model.float().eval()


#: Entries of archives that are not weights: three numbers in OpenAI's, the causal mask in those traced with open_clip.
OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size", "attn_mask")


def _model_for(state: Mapping[str, torch.Tensor]) -> CLIP:
    width = len(state["ln_final.weight"])
    text: dict[str, Any] = dict(
        logit_bias=float(state["logit_bias"]) if "logit_bias" in state else None,
        context_length=len(state["positional_embedding"]),
        vocab_size=len(state["token_embedding.weight"]),
        transformer_width=width,
        transformer_heads=max(1, width // HEAD_WIDTH),
        transformer_layers=count_blocks(state, "transformer.resblocks."),
    )
    embed_dim = state["text_projection"].shape[1]
    if any(key.startswith("visual.trunk.") for key in state):
        import dinov3_adapter  # only a DINOv3 model needs timm

        visual = dinov3_adapter.tower_from_state_dict(
            {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
        )
        return CLIP(embed_dim, int(visual.image_resolution), 0, 0, None, **text, visual=visual)
    if "visual.layer1.0.conv1.weight" in state:
        first, second, third, fourth = (count_blocks(state, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
        layers = (first, second, third, fourth)
        grid = math.isqrt(len(state["visual.attnpool.positional_embedding"]) - 1)
        return CLIP(embed_dim, 32 * grid, layers, len(state["visual.layer1.0.conv1.weight"]), None, **text)
    vision_width, _, patch, _ = state["visual.conv1.weight"].shape
    grid = math.isqrt(len(state["visual.positional_embedding"]) - 1)
    return CLIP(
        embed_dim, patch * grid, count_blocks(state, "visual.transformer.resblocks."), vision_width, patch, **text
    )


def count_blocks(keys: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Number of blocks `<prefix>0.`, `<prefix>1.`, ... among the keys of a state dict."""
    return len({key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)})


def compare_keys(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> str:
    """Describe how a state dict differs from a model's; "" if names and shapes are the same."""
    shapes = [
        f"{key} ({tuple(given[key].shape)} instead of {tuple(wanted[key].shape)})"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    parts = [
        ("lacks", [key for key in wanted if key not in given]),
        ("has unknown", [key for key in given if key not in wanted]),
        ("has of another shape", shapes),
    ]
    return "; ".join(f"{what} {_some(keys)}" for what, keys in parts if keys)


def _some(keys: list[str], most: int = 4) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
