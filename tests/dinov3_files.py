"""DINOv3 models of transformers with random weights, and their weights in every layout in use."""

import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from dinov3_adapter.registry import Size

#: Small models of the three kinds of architecture: timm's name and transformers' settings for it.
KINDS = {
    "plain": ("vit_base_patch16_dinov3_qkvb", {"intermediate_size": 256}),
    "gated": ("vit_huge_plus_patch16_dinov3_qkvb", {"intermediate_size": 256, "use_gated_mlp": True}),
    "no_bias": (
        "vit_7b_patch16_dinov3",
        {"intermediate_size": 128, "use_gated_mlp": True, "query_bias": False, "value_bias": False},
    ),
}


def small_size(kind: str, depth: int = 3) -> Size:
    return Size(KINDS[kind][0], 64, overrides={"embed_dim": 64, "num_heads": 2, "depth": depth})


def small_model(kind: str, seed: int = 0) -> DINOv3ViTModel:
    options = KINDS[kind][1]
    return random_model(
        seed,
        hidden_size=64,
        num_attention_heads=2,
        num_hidden_layers=3,
        hidden_act="silu" if options.get("use_gated_mlp") else "gelu",
        **options,
    )


def random_model(seed: int, **options) -> DINOv3ViTModel:
    """A model whose every parameter is random, biases and norms included: a lost or swapped one is noticed."""
    torch.manual_seed(seed)
    model = DINOv3ViTModel(DINOv3ViTConfig(num_register_tokens=4, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def cls_feature(model: DINOv3ViTModel, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images).last_hidden_state[:, 0]


def meta_layout(model: DINOv3ViTModel) -> dict[str, torch.Tensor]:
    """The weights as Meta's model saves them, with mask token, RoPE periods (bfloat16) and masks of the biases."""
    of = {key.removeprefix("model."): value for key, value in model.state_dict().items()}
    width, heads = model.config.hidden_size, model.config.num_attention_heads
    count = width // heads // 4
    state = {
        "cls_token": of["embeddings.cls_token"],
        "storage_tokens": of["embeddings.register_tokens"],
        "mask_token": of["embeddings.mask_token"][0],
        "norm.weight": of["norm.weight"],
        "norm.bias": of["norm.bias"],
        "patch_embed.proj.weight": of["embeddings.patch_embeddings.weight"],
        "patch_embed.proj.bias": of["embeddings.patch_embeddings.bias"],
        "rope_embed.periods": (100 ** (torch.arange(count) / count)).bfloat16(),
    }
    gated = {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"}
    mlp = gated if model.config.use_gated_mlp else {"up_proj": "fc1", "down_proj": "fc2"}
    for i in range(model.config.num_hidden_layers):
        ours, theirs = f"blocks.{i}.", f"layer.{i}."
        attention = theirs + "attention."
        state[ours + "attn.qkv.weight"] = torch.cat([of[f"{attention}{part}_proj.weight"] for part in "qkv"])
        if model.config.query_bias:
            # The key part of the bias is not zero, as in real files: the mask removes it.
            state[ours + "attn.qkv.bias"] = torch.cat(
                [of[attention + "q_proj.bias"], torch.full((width,), 0.3), of[attention + "v_proj.bias"]]
            )
            state[ours + "attn.qkv.bias_mask"] = torch.cat([torch.ones(width), torch.zeros(width), torch.ones(width)])
        for part in ("weight", "bias"):
            state[f"{ours}attn.proj.{part}"] = of[f"{attention}o_proj.{part}"]
            state[f"{ours}norm1.{part}"] = of[f"{theirs}norm1.{part}"]
            state[f"{ours}norm2.{part}"] = of[f"{theirs}norm2.{part}"]
            state |= {f"{ours}mlp.{new}.{part}": of[f"{theirs}mlp.{old}.{part}"] for old, new in mlp.items()}
        state[ours + "ls1.gamma"] = of[theirs + "layer_scale1.lambda1"]
        state[ours + "ls2.gamma"] = of[theirs + "layer_scale2.lambda1"]
    return state
