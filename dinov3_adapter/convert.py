"""Convert DINOv3 weights between their published layouts and ours (timm's names).

A layout is recognised from its keys. A trunk uses every tensor of a file except these: the mask token (pretraining
only), the norm of the local crops (pretraining only), the RoPE periods (checked to be those the trunk computes) and
biases that are checked to be zero.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from dinov3_adapter.errors import WeightsError

ROPE_BASE = 100.0
State = dict[str, torch.Tensor]

#: (pattern, replacement) in timm's direction; the first that matches a key is applied.
_META_NAMES = (
    (r"storage_tokens$", "reg_token"),
    (r"(blocks\.\d+)\.ls([12])\.gamma$", r"\1.gamma_\2"),
    (r"(blocks\.\d+\.mlp)\.w1\.", r"\1.fc1_g."),
    (r"(blocks\.\d+\.mlp)\.w2\.", r"\1.fc1_x."),
    (r"(blocks\.\d+\.mlp)\.w3\.", r"\1.fc2."),
)
_HUGGINGFACE_NAMES = (
    (r"embeddings\.cls_token$", "cls_token"),
    (r"embeddings\.register_tokens$", "reg_token"),
    (r"embeddings\.mask_token$", "mask_token"),
    (r"embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"(?:model\.)?layer\.(\d+)\.attention\.o_proj\.", r"blocks.\1.attn.proj."),
    (r"(?:model\.)?layer\.(\d+)\.attention\.", r"blocks.\1.attn."),
    (r"(?:model\.)?layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.gamma_\2"),
    (r"(?:model\.)?layer\.(\d+)\.mlp\.gate_proj\.", r"blocks.\1.mlp.fc1_g."),
    (r"(?:model\.)?layer\.(\d+)\.mlp\.up_proj\.", r"blocks.\1.mlp.fc1."),
    (r"(?:model\.)?layer\.(\d+)\.mlp\.down_proj\.", r"blocks.\1.mlp.fc2."),
    (r"(?:model\.)?layer\.(\d+)\.", r"blocks.\1."),
)


@dataclass(frozen=True)
class Layout:
    """One way of naming the weights: `mark` matches keys only this layout has, `to_timm` gives timm's names."""

    title: str
    mark: str
    to_timm: Callable[[Mapping[str, torch.Tensor]], State]


def from_meta(state: Mapping[str, torch.Tensor]) -> State:
    """Meta's layout to timm's names. Meta's model adds `qkv.bias` times `bias_mask`; the key's part must be zero."""
    renamed = _rename(state, _META_NAMES)
    for key in [key for key in renamed if key.endswith(".attn.qkv.bias")]:
        block = key.removesuffix("qkv.bias")
        bias = renamed.pop(key)
        mask = renamed.pop(f"{block}qkv.bias_mask", None)
        if mask is not None:
            _require(
                mask.shape == bias.shape and bool(((mask == 0) | (mask == 1)).all()),
                f"{block}qkv.bias_mask is not a mask of zeros and ones",
            )
            bias = bias * mask.to(bias.dtype)
        _require(bias.numel() % 3 == 0, f"{key} {tuple(bias.shape)} does not divide into query, key and value")
        renamed[f"{block}q_bias"], renamed[f"{block}k_bias"], renamed[f"{block}v_bias"] = bias.chunk(3)
    return renamed


def from_huggingface(state: Mapping[str, torch.Tensor]) -> State:
    """The layout of transformers' DINOv3ViTModel to timm's names: query, key and value become one matrix."""
    renamed = _rename(state, _HUGGINGFACE_NAMES)
    for key in [key for key in renamed if key.endswith(".attn.q_proj.weight")]:
        block = key.removesuffix("q_proj.weight")
        parts = [f"{block}{part}_proj.weight" for part in "qkv"]
        if all(part in renamed for part in parts):  # else the key is reported as unknown, the whole one as missing
            renamed[f"{block}qkv.weight"] = torch.cat([renamed.pop(part) for part in parts])
    for key in [key for key in renamed if re.search(r"\.attn\.[qkv]_proj\.bias$", key)]:
        renamed[key.replace("_proj.bias", "_bias")] = renamed.pop(key)
    for key in [key for key in renamed if ".mlp.fc1_g." in key]:
        plain = key.replace("fc1_g", "fc1")
        if plain in renamed:
            renamed[key.replace("fc1_g", "fc1_x")] = renamed.pop(plain)
    return renamed


def from_ours(state: Mapping[str, torch.Tensor]) -> State:
    """The trunk of one of our checkpoints, in timm's names."""
    return {key.removeprefix("visual.trunk."): value for key, value in state.items() if key.startswith("visual.trunk.")}


#: In the order they are tried; `mark` is searched for in the keys.
LAYOUTS = (
    Layout("a checkpoint of this project", r"^visual\.trunk\.", from_ours),
    Layout("Hugging Face", r"^embeddings\.|^(model\.)?layer\.\d+\.attention\.", from_huggingface),
    Layout(
        "Meta", r"^storage_tokens$|^rope_embed\.periods$|^blocks\.\d+\.(ls[12]\.gamma|attn\.qkv\.bias_mask)$", from_meta
    ),
    Layout("timm", r"^reg_token$|^blocks\.\d+\.(gamma_[12]|attn\.[qv]_bias)$", dict),
)


def recognise(state: Mapping[str, torch.Tensor]) -> Layout | None:
    """The layout the keys are in, or None."""
    return next((layout for layout in LAYOUTS if any(re.search(layout.mark, key) for key in state)), None)


def drop_unused(state: State, wanted: Mapping[str, torch.Size]) -> tuple[list[str], list[str]]:
    """Remove from `state` (timm's names) the few tensors that this trunk does not use.

    Returns their names, and what is wrong with them: RoPE periods that are not the trunk's, biases that are not zero.
    """
    dropped, problems = [], []
    for key in list(state):
        is_bias = key.endswith(".k_bias") or (_is_bias(key) and key not in wanted)
        is_rope = key in ("rope_embed.periods", "rope.periods")
        if not (is_bias or is_rope or key == "mask_token" or key.startswith("local_cls_norm.")):
            continue
        value = state.pop(key)
        dropped.append(key)
        if is_rope and not _is_rope(value):
            problems.append(f"its {key} are not those of base {ROPE_BASE:g}, which the model has")
        if is_bias and value.any():
            problems.append(f"its {key} is not zero, and the model has no such bias")
    return dropped, problems


def fill_biases(state: State, wanted: Mapping[str, torch.Size]) -> list[str]:
    """Add zeros for the query and value biases if the file has none of them; return the names.

    The same weights are published with zero biases and without any. A file that has only some of them is damaged:
    nothing is added to it.
    """
    if "cls_token" not in state or any(map(_is_bias, state)):
        return []
    filled = [key for key in wanted if _is_bias(key)]
    state.update({key: state["cls_token"].new_zeros(wanted[key]) for key in filled})
    return filled


def _is_bias(key: str) -> bool:
    return key.endswith((".attn.q_bias", ".attn.v_bias"))


def to_huggingface(state: Mapping[str, torch.Tensor]) -> State:
    """Convert a trunk's state dict (timm's names) to the layout that transformers' DINOv3ViTModel saves.

    The mask token, which our towers do not have and a forward pass without masks does not read, is zero. Reading the
    result with `from_huggingface` gives the same bits.
    """
    width = state["cls_token"].shape[-1]
    result = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.register_tokens": state["reg_token"],
        "embeddings.mask_token": state["cls_token"].new_zeros(1, 1, width),
    }
    for key, value in state.items():
        if key in ("cls_token", "reg_token"):
            continue
        name = key.replace("patch_embed.proj.", "embeddings.patch_embeddings.")
        name = re.sub(r"^blocks\.", "layer.", name)
        name = re.sub(r"\.gamma_([12])$", r".layer_scale\1.lambda1", name)
        name = name.replace(".mlp.fc1_g.", ".mlp.gate_proj.").replace(".mlp.fc2.", ".mlp.down_proj.")
        name = re.sub(r"\.mlp\.fc1(_x)?\.", ".mlp.up_proj.", name)
        name = name.replace(".attn.proj.", ".attention.o_proj.")
        name = re.sub(r"\.attn\.([qv])_bias$", r".attention.\1_proj.bias", name)
        if name.endswith(".attn.qkv.weight"):
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                result[name.replace(".attn.qkv.", f".attention.{part}_proj.")] = rows.clone()
        else:
            result[name] = value
    return result


def _rename(state: Mapping[str, torch.Tensor], names: tuple[tuple[str, str], ...]) -> State:
    renamed: State = {}
    for key, value in state.items():
        new = next(
            (re.sub(f"^{pattern}", replacement, key) for pattern, replacement in names if re.match(pattern, key)), key
        )
        _require(new not in renamed, f"{key} occurs twice, under two names")
        renamed[new] = value
    return renamed


def _is_rope(periods: torch.Tensor) -> bool:
    """Whether RoPE periods are 100 ** (i / n), to the precision of the bfloat16 in which Meta stores them."""
    count = periods.numel()
    wanted = ROPE_BASE ** (torch.arange(count, dtype=torch.float64) / count)
    return torch.allclose(periods.double().flatten(), wanted, rtol=2**-8)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise WeightsError(problem)
