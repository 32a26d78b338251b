"""Read models from the folders that other libraries write (and that `chexzero.export` writes for them)."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from chexzero.common.errors import UserError
from chexzero.common.files import read_json
from chexzero.imaging.normalise import CHEXZERO, Normalisation
from chexzero.model import HEAD_WIDTH
from chexzero.models.key_names import State, from_hf_clip
from chexzero.models.weight_files import check_records, explain, read_tensors

log = logging.getLogger(__name__)

REMEDY = (
    "name a folder of transformers (CLIPModel, VisionTextDualEncoderModel) or of open_clip, or a checkpoint file; name "
    "a run's folder with --run"
)

OPEN_CLIP_CONFIG, HF_CONFIG = "open_clip_config.json", "config.json"
HF_PROCESSOR = "preprocessor_config.json"
HF_KINDS = ("clip", "vision-text-dual-encoder")


def is_model_folder(path: str | os.PathLike) -> bool:
    """Whether a path is a folder that holds a whole CLIP of transformers or open_clip."""
    return _reader(Path(path)) is not None


def read_folder(folder: Path) -> State:
    """Read such a folder's state dict, under our names. Raises `UserError` for any other folder."""
    reader = _reader(folder)
    if reader is None:
        raise UserError(f"{folder} holds no CLIP of transformers or open_clip; {REMEDY}")
    try:
        return reader(folder)
    except UserError:
        raise
    except Exception as error:  # each reader raises its own exceptions for a damaged file
        raise UserError(f"{folder} does not load ({explain(error)}); {REMEDY}") from error


def normalisation_of(folder: Path) -> Normalisation | None:
    """The mean and deviation that a folder records for its images; None for CheXzero's or if it records none.

    A log line says which are used, unless the folder records CheXzero's.
    open_clip writes them as `preprocess_cfg` in its config, transformers in `preprocessor_config.json`.
    """
    found: tuple[Any, Any] | None = None
    source = ""
    for name, key, mean, std in (
        (OPEN_CLIP_CONFIG, "preprocess_cfg", "mean", "std"),
        (HF_PROCESSOR, None, "image_mean", "image_std"),
    ):
        if (folder / name).is_file() and found is None:
            content = read_json(folder / name)
            content = content.get(key, {}) if key and isinstance(content, dict) else content
            if isinstance(content, dict) and mean in content and std in content:
                found, source = (content[mean], content[std]), name
    if found is None:
        log.info("%s does not say how images are normalised; CheXzero's mean and deviation are used", folder)
        return None
    try:
        own = Normalisation(*(tuple(float(value) for value in values) for values in found))
        if len(own.mean) != 3 or len(own.std) != 3 or not all(value > 0 for value in own.std):
            raise ValueError(f"{own.mean} and {own.std}")
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{folder / source}: mean and deviation must be three numbers each, in 0..1 ({error}); correct it"
        ) from error
    if own.is_near(CHEXZERO):
        return None
    log.info("images are normalised as %s says: mean %s, deviation %s", folder / source, own.mean, own.std)
    return own


def _reader(folder: Path) -> Callable[[Path], State] | None:
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return _read_open_clip
    return _read_hf if _hf_kind(folder) in HF_KINDS else None


def _hf_kind(folder: Path) -> str | None:
    path = folder / HF_CONFIG
    config = read_json(path) if path.is_file() else None
    return config.get("model_type") if isinstance(config, dict) else None


def _require(folder: Path, facts: dict[str, tuple[object, object]]) -> None:
    """Check settings that the weights' shapes do not show: name -> (in the folder, in every model read here)."""
    for name, (found, wanted) in facts.items():
        if found != wanted:
            raise UserError(
                f"{folder}: {name} is {found!r}, but {wanted!r} in the models read here, so its weights "
                f"would give other features; {REMEDY}"
            )


def _heads(width: int) -> int:
    return max(1, width // HEAD_WIDTH)


def _read_open_clip(folder: Path) -> State:
    settings = read_json(folder / OPEN_CLIP_CONFIG)
    config = settings["model_cfg"]
    vision, text = config["vision_cfg"], config["text_cfg"]
    own_pool = "timm_pool" in vision and vision["timm_pool"] == "" and not _is_dinov3(vision)
    _require(
        folder,
        {
            "quick_gelu": (config.get("quick_gelu", False), True),
            "the number of text heads": (text.get("heads", 8), _heads(text.get("width", 512))),
            "the width of a vision head": (vision.get("head_width", 64), HEAD_WIDTH),
            "no_causal_mask": (text.get("no_causal_mask", False), False),
            "pool_type": (vision.get("pool_type", "tok"), "tok"),
            "timm_pool": (vision.get("timm_pool", "token"), "" if own_pool else "token"),
            "the repetition of channels (a tower for demos)": (settings.get("channels_repeated", 1), 1),
        },
    )
    state = _open_clip_weights(folder)
    if any(key.startswith("visual.trunk.") for key in state):
        state["visual.image_resolution"] = torch.tensor(vision["image_size"])
        if own_pool:
            state["visual.architecture"] = torch.tensor(list(vision["timm_model_name"].encode()), dtype=torch.uint8)
    return state


def _is_dinov3(vision: dict[str, Any]) -> bool:
    return "dinov3" in vision.get("timm_model_name", "")


def _open_clip_weights(folder: Path) -> State:
    safe, pickled = folder / "open_clip_model.safetensors", folder / "open_clip_pytorch_model.bin"
    return read_tensors(safe if safe.is_file() or not pickled.is_file() else pickled)


def _read_hf(folder: Path) -> State:
    import transformers

    for pickled in folder.glob("*.bin"):
        check_records(pickled)
    kind = _hf_kind(folder)
    name = "CLIPModel" if kind == "clip" else "VisionTextDualEncoderModel"
    model, info = getattr(transformers, name).from_pretrained(folder, local_files_only=True, output_loading_info=True)
    if info["missing_keys"]:  # transformers would continue with random weights
        raise UserError(f"{folder} lacks weights ({', '.join(sorted(info['missing_keys'])[:4])}); fetch it again")
    text, vision = model.config.text_config, model.config.vision_config
    facts = {
        "the text tower's activation": (text.hidden_act, "quick_gelu"),
        "the number of text heads": (text.num_attention_heads, _heads(text.hidden_size)),
    }
    if kind == "clip":
        _require(
            folder,
            facts
            | {
                "the vision tower's activation": (vision.hidden_act, "quick_gelu"),
                "the number of vision heads": (vision.num_attention_heads, _heads(vision.hidden_size)),
            },
        )
        return from_hf_clip(model.state_dict())
    _require(
        folder,
        {"the vision tower": (vision.model_type, "dinov3_vit"), "the text tower": (text.model_type, "clip_text_model")}
        | facts,
    )
    from dinov3_adapter.convert import from_huggingface

    state = from_hf_clip({key: value for key, value in model.state_dict().items() if not key.startswith("vis")})
    trunk = from_huggingface(model.vision_model.state_dict())
    trunk.pop("mask_token", None)  # for pretraining only; our forward passes do not read it
    state.update({f"visual.trunk.{key}": value for key, value in trunk.items()})
    state["visual.head.proj.weight"] = model.visual_projection.weight.detach()
    state["visual.image_resolution"] = torch.tensor(vision.image_size)
    return state
