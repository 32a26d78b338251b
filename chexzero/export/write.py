"""Write a trained model in a form that other libraries load: `python -m chexzero.export --run ... --to hf DIR`.

`hf` gives a folder for transformers (`VisionTextDualEncoderModel` for a DINOv3 tower, `CLIPModel` for a vision
transformer of CLIP), `open_clip` one for `open_clip.create_model("local-dir:DIR")`, `onnx` two graphs and a
tokenizer. Each folder holds a model card with the run's records and the code to read an image.
"""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from chexzero.common.errors import UserError, refusal
from chexzero.common.resample import RESOLUTION
from chexzero.imaging.normalise import CHEXZERO, prepare
from chexzero.model import CLIP, HEAD_WIDTH, count_blocks
from chexzero.models import key_names
from chexzero.simple_tokenizer import default_tokenizer

log = logging.getLogger(__name__)

OPSET = 18
ONNX_ABOUT = "clip.json"
#: Tensors of a tower that only this project's loader reads.
OURS_ALONE = ("image_resolution", "architecture")
LARGEST_ONNX = 2**31 - 2**24  # bytes of weights; protobuf's limit is 2 GiB


def to_hf(model: CLIP, folder: Path, stored: int = RESOLUTION) -> str:
    """Write a transformers folder; return the code that loads it."""
    import transformers

    if model.logit_bias is not None:
        raise UserError(
            "transformers' CLIP classes have no bias on the logits, which --loss siglip trains; export it with "
            "`--to open_clip` or `--to onnx`"
        )
    text = {key: value for key, value in model.state_dict().items() if not key.startswith("visual.")}
    text_config = transformers.CLIPTextConfig(
        vocab_size=model.vocab_size,
        hidden_size=len(model.ln_final.weight),
        hidden_act="quick_gelu",
        intermediate_size=4 * len(model.ln_final.weight),
        projection_dim=model.text_projection.shape[1],
        num_hidden_layers=len(model.transformer.resblocks),
        max_position_embeddings=model.context_length,
        num_attention_heads=max(1, len(model.ln_final.weight) // HEAD_WIDTH),
    )
    if is_dinov3(model):
        if has_stem(model):
            raise UserError("transformers' DINOv3 has no convolutional stem, as this tower has; use `--to onnx`")
        from dinov3_adapter import to_huggingface

        config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
            _hf_dinov3_config(model), text_config, projection_dim=model.text_projection.shape[1]
        )
        theirs: transformers.PreTrainedModel = transformers.VisionTextDualEncoderModel(config)
        state = key_names.to_hf_clip(text)
        for key, value in to_huggingface(model.visual.trunk.state_dict()).items():
            state[f"vision_model.{'model.' if key.startswith('layer.') else ''}{key}"] = value
        state["visual_projection.weight"] = model.visual.head.proj.weight
        processor_class, model_class = transformers.VisionTextDualEncoderProcessor, "VisionTextDualEncoderModel"
    else:
        require_vision_transformer(model, "hf")
        state = model.state_dict()
        width, _, patch, _ = state["visual.conv1.weight"].shape
        theirs = transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config=text_config.to_dict(),
                projection_dim=model.text_projection.shape[1],
                vision_config=dict(
                    hidden_size=width,
                    intermediate_size=4 * width,
                    patch_size=patch,
                    num_hidden_layers=count_blocks(state, "visual.transformer.resblocks."),
                    num_attention_heads=width // HEAD_WIDTH,
                    image_size=model.image_resolution,
                    projection_dim=model.text_projection.shape[1],
                    hidden_act="quick_gelu",
                ),
            )
        )
        state = key_names.to_hf_clip(state)
        processor_class, model_class = transformers.VisionTextDualEncoderProcessor, "CLIPModel"
    theirs.load_state_dict(state, strict=True)
    transformers.utils.logging.disable_progress_bar()
    theirs.save_pretrained(folder)
    processor_class(_hf_image_processor(model), _hf_tokenizer(model)).save_pretrained(folder)
    return (
        f'transformers.{model_class}.from_pretrained("{folder}") with '
        f'transformers.VisionTextDualEncoderProcessor.from_pretrained("{folder}")'
    )


def _hf_dinov3_config(model: CLIP):
    from transformers import DINOv3ViTConfig

    trunk, keys = model.visual.trunk, model.visual.trunk.state_dict()
    gated = "blocks.0.mlp.fc1_g.weight" in keys
    biased = "blocks.0.attn.q_bias" in keys
    return DINOv3ViTConfig(
        patch_size=trunk.patch_embed.patch_size[0],
        hidden_size=trunk.embed_dim,
        image_size=model.image_resolution,
        intermediate_size=len(keys["blocks.0.mlp.fc1_g.weight" if gated else "blocks.0.mlp.fc1.weight"]),
        num_hidden_layers=len(trunk.blocks),
        num_attention_heads=trunk.blocks[0].attn.num_heads,
        num_register_tokens=trunk.num_prefix_tokens - 1,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
        query_bias=biased,
        value_bias=biased,
        key_bias=False,
        mlp_bias=True,
        proj_bias=True,
    )


def _hf_image_processor(model: CLIP):
    """The stock processor that equals CheXzero's loader: normalise first, then resize without antialiasing."""
    from transformers import DepthProImageProcessor
    from transformers.image_utils import PILImageResampling

    return DepthProImageProcessor(
        do_resize=True,
        size={"height": model.image_resolution, "width": model.image_resolution},
        resample=PILImageResampling.BICUBIC,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list((model.normalisation or CHEXZERO).mean),
        image_std=list((model.normalisation or CHEXZERO).std),
    )


def _hf_tokenizer(model: CLIP):
    from transformers import CLIPTokenizer

    ours = default_tokenizer()
    merges = [pair for pair, _ in sorted(ours.bpe_ranks.items(), key=lambda item: item[1])]
    start, end = "<|startoftext|>", "<|endoftext|>"
    return CLIPTokenizer(
        vocab=dict(ours.encoder),
        merges=merges,
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=end,
        model_max_length=model.context_length,
    )


def to_open_clip(model: CLIP, folder: Path, stored: int = RESOLUTION) -> str:
    """Write an open_clip folder; return the code that loads it."""
    from safetensors.torch import save_file

    width = len(model.ln_final.weight)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if hasattr(model.visual, "trunk"):
        vision = _open_clip_trunk(model)
        state = {key: value for key, value in state.items() if key.removeprefix("visual.") not in OURS_ALONE}
    else:
        require_vision_transformer(model, "open_clip")
        weight = state["visual.conv1.weight"]
        vision = dict(
            image_size=model.image_resolution,
            patch_size=weight.shape[-1],
            width=weight.shape[0],
            layers=count_blocks(state, "visual.transformer.resblocks."),
        )
    config = {
        "model_cfg": {
            "embed_dim": model.text_projection.shape[1],
            "quick_gelu": True,
            "vision_cfg": vision,
            "text_cfg": dict(
                context_length=model.context_length,
                vocab_size=model.vocab_size,
                width=width,
                heads=max(1, width // HEAD_WIDTH),
                layers=len(model.transformer.resblocks),
            ),
        },
        "preprocess_cfg": {
            "mean": list((model.normalisation or CHEXZERO).mean),
            "std": list((model.normalisation or CHEXZERO).std),
            "interpolation": "bicubic",
            "resize_mode": "longest",
            "fill_color": 0,
            "size": [model.image_resolution] * 2,
        },
    }
    if model.logit_bias is not None:
        config["model_cfg"]["init_logit_bias"] = model.logit_bias.item()
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    save_file(state, folder / "open_clip_model.safetensors")
    return f'open_clip.create_model("local-dir:{folder}")'


def _open_clip_trunk(model: CLIP) -> dict[str, Any]:
    """Return settings with which open_clip builds the model's timm tower, all tensors having the same shapes."""
    from open_clip.timm_model import TimmModel

    from dinov3_adapter import SIZES

    visual = model.visual
    names, pool = list(dict.fromkeys(size.architecture for size in SIZES.values())), "token"
    if not is_dinov3(model):
        names, pool = [bytes(visual.architecture.tolist()).decode()], ""
    shapes = {key: value.shape for key, value in visual.state_dict().items() if key not in OURS_ALONE}
    for name in names:
        with torch.device("meta"):
            theirs = TimmModel(name, model.text_projection.shape[1], pool=pool)
        if {key: value.shape for key, value in theirs.state_dict().items()} == shapes:
            return dict(
                image_size=model.image_resolution,
                timm_model_name=name,
                timm_model_pretrained=False,
                timm_pool=pool,
                timm_proj="linear",
                timm_proj_bias=False,
            )
    raise UserError(
        "open_clip builds vision towers by timm's registered names, at timm's resolution, and none has this tower's "
        f"shapes; export it with `--to onnx`{' or `--to hf`' if is_dinov3(model) and not has_stem(model) else ''}"
    )


class _VisionForOnnx(nn.Module):
    """Stored images, float32 (B, S, S) in 0..255, to features of length 1: the preparation is in the graph."""

    def __init__(self, model: CLIP):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return normalize(
            self.model.encode_image(prepare(images, self.model.image_resolution, self.model.normalisation)), dim=-1
        )


class _TextForOnnx(nn.Module):
    """Token ids, int64 (B, context_length), to features of length 1."""

    def __init__(self, model: CLIP):
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return normalize(self.model.encode_text(tokens), dim=-1)


def to_onnx(model: CLIP, folder: Path, stored: int = RESOLUTION) -> str:
    """Write `vision.onnx`, `text.onnx`, `tokenizer.json` and `clip.json`; return the code that loads them."""
    try:
        import onnxscript  # noqa: F401  (torch.onnx needs it and says so only deep inside)
    except ImportError as error:
        raise UserError("the ONNX export needs onnxscript; install it with `pip install onnx onnxscript`") from error
    size = (
        max(
            sum(value.numel() for key, value in model.state_dict().items() if key.startswith("visual.") == vision)
            for vision in (True, False)
        )
        * 4
    )
    if size > LARGEST_ONNX:
        raise UserError(
            f"an ONNX file holds at most {LARGEST_ONNX >> 20} MiB and a tower of this model has "
            f"{size >> 20} MiB of weights; export it with `--to hf` or `--to open_clip`"
        )
    for name in ("onnxscript", "onnx_ir"):  # they log a line for every node
        logging.getLogger(name).setLevel(logging.WARNING)
    images, tokens = torch.rand(2, stored, stored) * 255, torch.randint(1, 100, (2, model.context_length))
    towers = {
        "vision.onnx": (_VisionForOnnx(model), images, "images", "image_features"),
        "text.onnx": (_TextForOnnx(model), tokens, "tokens", "text_features"),
    }
    for name, (tower, example, given, result) in towers.items():
        program = torch.onnx.export(
            tower.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=[given],
            output_names=[result],
            external_data=False,
            optimize=False,  # onnxruntime optimises
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        assert program is not None  # as always with dynamo=True
        parts: tuple[Any, ...] = (program.model.graph, *program.model.graph.all_nodes())
        for part in parts:
            part.metadata_props.clear()  # it records the calls that made each node, with local paths
        program.save(folder / name, external_data=False)
    tokenizer = _hf_tokenizer(model).backend_tokenizer
    tokenizer.enable_truncation(model.context_length)
    tokenizer.enable_padding(length=model.context_length, pad_id=0, pad_token="!")
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "logit_scale": model.logit_scale.exp().item(),
        "logit_bias": 0.0 if model.logit_bias is None else model.logit_bias.item(),
        "context_length": model.context_length,
        "image_resolution": model.image_resolution,
        "images": f"float32 (batch, {stored}, {stored}), grey, 0..255, as data_prep stores them",
        "tokens": f"int64 (batch, {model.context_length}), CLIP's byte-pair tokens padded with 0, which "
        "tokenizers.Tokenizer.from_file('tokenizer.json') gives",
        "logits": "logit_scale * image_features @ text_features.T + logit_bias",
    }
    (folder / ONNX_ABOUT).write_text(json.dumps(about, indent=1))
    return f'onnxruntime.InferenceSession("{folder}/vision.onnx") and the same of text.onnx (see {folder}/clip.json)'


#: Name -> function that writes a model into a folder, given the side of the stored training images.
WRITERS: dict[str, Callable[[CLIP, Path, int], str]] = {"hf": to_hf, "open_clip": to_open_clip, "onnx": to_onnx}


def is_dinov3(model: CLIP) -> bool:
    """Whether the vision tower is a DINOv3."""
    return hasattr(model.visual, "trunk") and not hasattr(model.visual, "architecture")


def has_stem(model: CLIP) -> bool:
    """Whether convolutions come before the blocks of the vision tower."""
    return hasattr(getattr(getattr(model.visual, "trunk", None), "patch_embed", None), "backbone")


def require_vision_transformer(model: CLIP, target: str) -> None:
    """Raise `UserError` for a tower that the target's classes lack (such as OpenAI's ResNets)."""
    if not hasattr(model.visual, "conv1") or not hasattr(model.visual, "class_embedding"):
        raise UserError(
            f"`--to {target}` cannot hold this vision tower (a CLIP ResNet or another model of timm); export "
            f"it with `--to onnx`, or train with `--vision vit_b_32` or a DINOv3"
        )


def export(model: CLIP, target: str, folder: Path, card: str = "", stored: int = RESOLUTION) -> str:
    """Write `model` and its card for `target` into a new `folder`, whole or not at all; return the code that loads it.

    stored: the side in pixels at which its training images were stored.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; name another")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        how = WRITERS[target](model, partial, stored).replace(str(partial), str(folder))
        if card:
            (partial / "README.md").write_text(card, encoding="utf-8")
        for file in partial.iterdir():
            file.chmod(partial.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except Exception as error:  # safetensors, tokenizers and torch.onnx raise exceptions of their own for a full disk
        why = None if isinstance(error, UserError) else refusal(error)
        if why is None:
            raise
        raise UserError(f"cannot write {folder}: {why}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return how
