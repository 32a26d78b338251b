"""Reading models from the folders other libraries write (and `chexzero.export` writes for them)."""

from collections.abc import Callable
from pathlib import Path

import torch

from chexzero.convert import REPEATED, State, from_hf_clip, narrow
from chexzero.errors import UserError
from chexzero.files import read_json

REMEDY = "name a folder of transformers (CLIPModel, VisionTextDualEncoderModel) or open_clip, or a checkpoint file"


def read_folder(folder: Path) -> State:
    """The state dict, under our names, of a transformers or open_clip folder. Raises `UserError` for any other."""
    readers: dict[str, Callable[[Path], State]] = {"open_clip_config.json": _read_open_clip, "config.json": _read_hf}
    for name, reader in readers.items():
        if (folder / name).is_file():
            try:
                return reader(folder)
            except (OSError, KeyError, RuntimeError, ValueError) as error:
                if isinstance(error, UserError):
                    raise
                reason = str(error).strip().splitlines()[0][:200]
                raise UserError(f"{folder} does not load ({reason}); {REMEDY}") from error
    raise UserError(f"{folder} is a folder without config.json or open_clip_config.json; {REMEDY}")


def _read_open_clip(folder: Path) -> State:
    from safetensors.torch import load_file

    settings = read_json(folder / "open_clip_config.json")
    config, times = settings["model_cfg"], settings.get(REPEATED, 1)
    state = load_file(folder / "open_clip_model.safetensors")
    if not any(key.startswith("visual.trunk.") for key in state):
        return state
    state = {key: narrow(key, value, times) if times > 1 and key.startswith("visual.") else value
             for key, value in state.items() if not _in_empty_block(key, state)}
    return state | {"visual.image_resolution": torch.tensor(config["vision_cfg"]["image_size"])}


def _in_empty_block(key: str, state: State) -> bool:
    """Whether a key belongs to a block that the export added to fill timm's depth: its layer scales are zero."""
    if not key.startswith("visual.trunk.blocks."):
        return False
    block = ".".join(key.split(".")[:4])
    return not any(state[f"{block}.{scale}"].any() for scale in ("gamma_1", "gamma_2") if f"{block}.{scale}" in state)


def _read_hf(folder: Path) -> State:
    import transformers

    kind = read_json(folder / "config.json").get("model_type")
    if kind == "clip":
        return from_hf_clip(transformers.CLIPModel.from_pretrained(folder, local_files_only=True).state_dict())
    if kind != "vision-text-dual-encoder":
        raise UserError(f"{folder} is a transformers model of the type {kind!r}; {REMEDY}")
    from dinov3_adapter.convert import from_huggingface

    model = transformers.VisionTextDualEncoderModel.from_pretrained(folder, local_files_only=True)
    state = from_hf_clip({key: value for key, value in model.state_dict().items() if not key.startswith("vis")})
    trunk = from_huggingface(model.vision_model.state_dict())
    trunk.pop("mask_token", None)  # pretraining's; no forward pass of ours reads it
    state.update({f"visual.trunk.{key}": value for key, value in trunk.items()})
    state["visual.head.proj.weight"] = model.visual_projection.weight.detach()
    state["visual.image_resolution"] = torch.tensor(model.config.vision_config.image_size)
    return state
