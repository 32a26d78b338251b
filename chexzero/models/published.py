"""Weights of published CLIPs: OpenAI's by name, and those that open_clip lists."""

import os
from pathlib import Path
from typing import Any

from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

from chexzero.common.errors import UserError

#: OpenAI's name of a model -> open_clip's name for it.
MODELS = {
    "RN50": "RN50",
    "RN101": "RN101",
    "RN50x4": "RN50x4",
    "RN50x16": "RN50x16",
    "ViT-B/32": "ViT-B-32",
    "ViT-B/16": "ViT-B-16",
}
OPENAI = "openai"
OPEN_CLIP_PREFIX = "open_clip:"


def weights_file(name: str, folder: str | os.PathLike | None = None) -> Path:
    """Return the path of a published model's weights.

    OpenAI's archive (`ViT-B-32.pt`) or `ViT-B-32.safetensors` in `folder` (default `~/.cache/clip`) is used if it
    exists; otherwise the same weights come from the Hugging Face hub, through its cache.
    """
    stem, folder = MODELS[name], Path(folder or Path.home() / ".cache" / "clip")
    own = next((path for ending in ("pt", "safetensors") if (path := folder / f"{stem}.{ending}").is_file()), None)
    if own:
        return own
    return _download(
        get_pretrained_cfg(stem, OPENAI),
        f"the weights of {name} are not in {folder} and cannot be downloaded",
        f"put it there as {stem}.safetensors",
    )


def open_clip_file(name: str, flag: str) -> Path:
    """Fetch the weights that open_clip publishes as MODEL/TAG, if they were trained with QuickGELU.

    The activation is not in a state dict: weights trained with another one would load and give different features.
    """
    model, _, tag = name.partition("/")
    model = model.removesuffix("-quickgelu")
    fitting = [
        known for known in list_pretrained_tags_by_model(model) if get_pretrained_cfg(model, known).get("quick_gelu")
    ]
    config = get_pretrained_cfg(model, tag) if tag else {}
    if not config.get("quick_gelu"):
        why = "was not trained with QuickGELU" if config else "is not published by open_clip"
        raise UserError(
            f"{OPEN_CLIP_PREFIX}{name} {why}; choose one of "
            + (", ".join(f"{OPEN_CLIP_PREFIX}{model}/{known}" for known in fitting) or OPENAI)
        )
    return _download(config, f"{OPEN_CLIP_PREFIX}{name} cannot be downloaded", f"name it with {flag} FILE")


def _download(config: dict[str, Any], problem: str, remedy: str) -> Path:
    try:
        return Path(download_pretrained(config))
    except OSError as error:
        where = f"https://huggingface.co/{config['hf_hub'].rstrip('/')}"
        raise UserError(
            f"{problem}; fetch open_clip_model.safetensors from {where} on a machine with access and {remedy}"
        ) from error
