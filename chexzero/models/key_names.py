"""Rename tensors between this project (OpenAI's CLIP names) and Hugging Face's models, in both directions.

The text tower has the same names in `CLIPModel` and in `VisionTextDualEncoderModel`; `dinov3_adapter` renames the
DINOv3 tower's tensors.
"""

import re

import torch

State = dict[str, torch.Tensor]

#: Part of a transformer block here -> there; the fused `in_proj` is handled separately.
BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

#: Whole names here -> there.
TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
VISION = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}

#: Projections are stored as (width, dim) here and as a linear layer's (dim, width) there.
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}

#: Prefix of the blocks here -> there.
STACKS = {
    "transformer.resblocks": "text_model.encoder.layers",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
}


def to_hf_clip(state: State) -> State:
    """OpenAI's names -> Hugging Face's `CLIPModel`; works on the text side alone too."""
    renamed = TEXT | VISION
    result = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"(.*resblocks)\.(\d+)\.(.+)\.(weight|bias)", name)
        fused = re.fullmatch(r"(.*resblocks)\.(\d+)\.attn\.in_proj_(weight|bias)", name)
        if name in renamed:
            result[renamed[name]] = tensor
        elif name in TRANSPOSED:
            result[TRANSPOSED[name]] = tensor.T.contiguous()
        elif fused:
            prefix = f"{STACKS[fused[1]]}.{fused[2]}.self_attn"
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                result[f"{prefix}.{part}_proj.{fused[3]}"] = piece.clone()
        elif block:
            result[f"{STACKS[block[1]]}.{block[2]}.{BLOCK[block[3]]}.{block[4]}"] = tensor
        else:
            raise KeyError(f"{name} is not a tensor of a CLIP model")
    return result


def from_hf_clip(state: State) -> State:
    """The inverse of `to_hf_clip`; `position_ids` buffers of older files are not weights and are left out."""
    whole = {there: here for here, there in (TEXT | VISION).items()}
    turned = {there: here for here, there in TRANSPOSED.items()}
    parts = {there: here for here, there in BLOCK.items()}
    stacks = {there: here for here, there in STACKS.items()}
    result = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"(.*encoder\.layers)\.(\d+)\.(.+)\.(weight|bias)", name)
        if name in whole:
            result[whole[name]] = tensor
        elif name in turned:
            result[turned[name]] = tensor.T.contiguous()
        elif block and block[3] == "self_attn.q_proj":
            siblings = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            result[f"{stacks[block[1]]}.{block[2]}.attn.in_proj_{block[4]}"] = torch.cat(siblings)
        elif block and block[3] in parts:
            result[f"{stacks[block[1]]}.{block[2]}.{parts[block[3]]}.{block[4]}"] = tensor
        elif not (block or name.endswith("position_ids")):
            raise KeyError(f"{name} is not a tensor of a CLIPModel")
    return result
