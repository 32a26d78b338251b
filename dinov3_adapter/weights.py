"""Read weights from a file, a folder or the Hugging Face hub, and check that they fit the requested size."""

import functools
import hashlib
import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file

from dinov3_adapter import convert
from dinov3_adapter.errors import WeightsError
from dinov3_adapter.registry import SIZES, build_trunk, find_size, trunk_shapes
from dinov3_adapter.unfilled import Unfilled

RANDOM = "random"
LICENCE = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
SAFETENSORS = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
_HUB_NAME = r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?"
_WRAPPERS = ("model", "state_dict")  # a training state keeps the weights under one of these

log = logging.getLogger(__name__)


def read_weights(weights: str | os.PathLike | Mapping, name: str) -> tuple[convert.State, torch.Tensor | None]:
    """Read a trunk's weights for the size `name`: timm's names -> float32 tensors, and the projection or None.

    weights: a file (.pth, .pt, .safetensors; the content decides, not the ending), a folder of `save_pretrained`,
    a name on the hub (`owner/name`, optionally `@revision`), or a state dict. Only a checkpoint of this project has
    a projection. Raises `WeightsError` for anything that is not exactly the weights of this size.
    """
    source: Path | str
    if isinstance(weights, Mapping):
        source, state = "the state dict", dict(weights)
    else:
        source = _locate(weights, name)
        state = read_tensors(source)
    try:
        return _fit(state, name, source)
    except WeightsError as error:
        raise WeightsError(f"{source} does not fit --vision {name}: {error}") from error


def _fit(state: convert.State, name: str, source: Path | str) -> tuple[convert.State, torch.Tensor | None]:
    layout = convert.recognise(state)
    if layout is None:
        raise WeightsError(
            f"it holds no DINOv3 vision transformer (its {len(state)} tensors are "
            f"{_some(list(state))}); name a DINOv3 ViT as Meta, Hugging Face or timm publish it, or a "
            f"checkpoint trained here"
        )
    trunk = layout.to_timm(state)
    converted = dict(trunk)
    wanted = trunk_shapes(find_size(name))
    dropped, problems = convert.drop_unused(trunk, wanted)
    filled = convert.fill_biases(trunk, wanted)
    problem = differences(trunk, wanted)
    if problem:
        other = next((other for other in SIZES if other != name and _fits(converted, other)), None)
        raise WeightsError(
            f"its weights are those of {other}; use --vision {other}"
            if other
            else f"{problem}; name the weights of this size, or fetch the file again"
        )
    if problems:
        raise WeightsError(f"{_some(problems)}; name a file of the published weights")
    if isinstance(source, Path) and source.is_dir():
        _check_config(source / "config.json", name)
    projection = state.get("visual.head.proj.weight")
    is_ours = layout.to_timm is convert.from_ours
    outside = sum(not key.startswith("visual.") for key in state) if is_ours else 0
    log.info(
        "%s: %d tensors for %s (layout: %s)%s%s%s",
        source,
        len(trunk),
        name,
        layout.title,
        f"; left out, as no forward pass reads them: {_some(dropped)}" if dropped else "",
        f"; {len(filled)} query and value biases the file does not have are zero" if filled else "",
        f"; the {outside} tensors of its text side are not used" if outside else "",
    )
    return {key: value.float() for key, value in trunk.items()}, projection


def name_of(trunk: Mapping[str, torch.Tensor]) -> str:
    """The size whose trunk has exactly these names (timm's) and shapes; `WeightsError` if there is none."""
    for name in SIZES:
        if _fits(trunk, name):
            return name
    raise WeightsError(
        f"the {len(trunk)} tensors of the trunk ({_some(list(trunk))}) match no known size ({', '.join(SIZES)})"
    )


def _fits(trunk: Mapping[str, torch.Tensor], name: str) -> bool:
    token = trunk.get("cls_token")
    if token is None or token.shape[-1] != SIZES[name].width:  # avoids building the large ones
        return False
    wanted = trunk_shapes(SIZES[name])
    trunk = dict(trunk)
    _, problems = convert.drop_unused(trunk, wanted)
    convert.fill_biases(trunk, wanted)
    return not problems and not differences(trunk, wanted)


def differences(trunk: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Size]) -> str:
    """Describe how the tensors of a trunk differ from those wanted; "" if they do not."""
    missing = [f"{key} {tuple(shape)}" for key, shape in wanted.items() if key not in trunk]
    unknown = [f"{key} {tuple(value.shape)}" for key, value in trunk.items() if key not in wanted]
    reshaped = [
        f"{key} {tuple(trunk[key].shape)} instead of {tuple(shape)}"
        for key, shape in wanted.items()
        if key in trunk and trunk[key].shape != shape
    ]
    parts = (
        ("lacks", missing),
        ("has tensors that the model does not have:", unknown),
        ("has another shape in", reshaped),
    )
    return "; ".join(f"it {what} {_some(keys)}" for what, keys in parts if keys)


def _check_config(path: Path, name: str) -> None:
    """Compare settings that the shapes do not show (heads, RoPE base, ...), if the folder has a config.json."""
    if not path.is_file():
        return
    config = _read_json(path)
    with torch.device("meta"), Unfilled():
        trunk: Any = build_trunk(SIZES[name])
    block = trunk.blocks[0]
    wanted = {
        "num_attention_heads": block.attn.num_heads,
        "rope_theta": convert.ROPE_BASE,
        "layer_norm_eps": trunk.norm.eps,
        "hidden_act": "silu" if hasattr(block.mlp, "fc1_g") else "gelu",
    }
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise WeightsError(
                f"its {path.name} has {key} = {config[key]!r} where the model has {value!r}; name the "
                f"weights of this size"
            )


def read_tensors(path: Path) -> convert.State:
    """Read every tensor of a file or folder, on the CPU, running no code from it; else raise `WeightsError`."""
    if path.is_dir():
        return _read_folder(path)
    _check_digest(path)
    try:
        with open(path, "rb") as handle:
            is_safetensors = handle.read(9)[8:] == b"{"  # eight bytes of length, then a JSON header
        if not is_safetensors:
            _check_records(path)
        content: Any = load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise WeightsError(f"{path} is cut off or damaged ({error}); fetch it again") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is not a weight file: it is damaged, or holds more than tensors (nothing in it was "
            f"run); name a .pth, .pt or .safetensors file of weights"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise WeightsError(
            f"{path} cannot be read as weights ({first_sentence(error)}); it may be cut off: fetch "
            f"it again, or name a .pth, .pt or .safetensors file"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    values = content.values() if isinstance(content, dict) else ()
    if not values or not all(isinstance(value, torch.Tensor) for value in values):
        raise WeightsError(f"{path} holds no state dict (names and tensors); name a file of weights")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _read_folder(folder: Path) -> convert.State:
    if (folder / SAFETENSORS).is_file():
        return read_tensors(folder / SAFETENSORS)
    if not (folder / SHARD_INDEX).is_file():
        raise WeightsError(
            f"the folder {folder} has neither {SAFETENSORS} nor {SHARD_INDEX}; name the folder that "
            f"save_pretrained wrote, or the weight file itself"
        )
    state: convert.State = {}
    for shard in shard_names(folder / SHARD_INDEX):
        if not (folder / shard).is_file():
            raise WeightsError(f"{folder} lacks {shard}, which {SHARD_INDEX} names; fetch it into the folder")
        state.update(read_tensors(folder / shard))
    return state


def shard_names(index: Path) -> list[str]:
    """File names of the shards a `model.safetensors.index.json` lists; `WeightsError` for names outside its folder."""
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise WeightsError(f"{index} has no weight_map; fetch it again")
    names = sorted(set(map(str, weight_map.values())))
    for shard in names:
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", shard):
            raise WeightsError(f"{index} names {shard!r}, which is not a file of its folder; fetch it again")
    return names


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is not valid JSON; fetch it again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is not a JSON object; fetch it again")
    return content


def _check_digest(path: Path) -> None:
    """Compare a file's SHA-256 with its first eight digits, in which Meta's file names end."""
    digits = re.fullmatch(r"dinov3_.*-([0-9a-f]{8})\.pth", path.name)
    if not digits:
        return
    with open(path, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if not digest.startswith(digits[1]):
        raise WeightsError(
            f"{path} is not the file its name says: its SHA-256 begins with {digest[:8]}, not "
            f"{digits[1]}; fetch it again (or rename it, if it is meant to differ)"
        )


def _check_records(path: Path) -> None:
    """Compare every record of a file that is a zip archive, as torch writes since 1.6, with its checksum."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # reading a damaged directory can raise any exception
        raise WeightsError(f"{path} is damaged ({first_sentence(error)}); fetch it again") from error
    if damaged:
        raise WeightsError(f"{path} is damaged: the checksum of its record {damaged[:80]} is wrong; fetch it again")


def _locate(weights: str | os.PathLike, name: str) -> Path:
    path = Path(weights).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(_HUB_NAME, str(weights)) or path.suffix in (".pth", ".pt", ".safetensors", ".bin"):
        published = ", ".join(SIZES[name].published) or "none is published"
        raise WeightsError(
            f"there are no weights at {weights}: no such file or folder; name one, a name on the "
            f"Hugging Face hub (for {name}: {published}), or {RANDOM!r}"
        )
    return download(str(weights), name)


def download(hub_name: str, name: str) -> Path:
    """Fetch a published model through the hub client's cache and token; return the file, or the folder of shards."""
    repository, _, revision = hub_name.partition("@")
    fetch = functools.partial(_fetch, repository, revision or None)
    try:
        try:
            return fetch(SAFETENSORS)
        except LocalEntryNotFoundError:
            raise  # offline; it is an EntryNotFoundError too, but says nothing about shards
        except EntryNotFoundError:
            index = fetch(SHARD_INDEX)
            for shard in shard_names(index):
                fetch(shard)
            return index.parent
    except (HfHubHTTPError, EntryNotFoundError, OSError) as error:
        raise WeightsError(_how_to_get(repository, name, error)) from error


def _fetch(repository: str, revision: str | None, file: str) -> Path:
    try:  # the cache first: without a connection the client would try for half a minute before it looks there
        return Path(hf_hub_download(repository, file, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return Path(hf_hub_download(repository, file, revision=revision))


def _how_to_get(repository: str, name: str, error: Exception) -> str:
    why = "access is not granted yet" if isinstance(error, GatedRepoError) else first_sentence(error)
    meta_file = f" (or {SIZES[name].meta_file} from Meta)" if SIZES[name].meta_file else ""
    return (
        f"{repository}, the weights for --vision {name}, is not a file or folder here and could not be downloaded "
        f"({why}): on a machine with access fetch {SAFETENSORS} from https://huggingface.co/{repository}"
        f"{meta_file}, copy it to this machine and name it with --vision_weights FILE; DINOv3's weights are gated "
        f"under the DINOv3 licence ({LICENCE}): accept it on that page first and log in with `hf auth login`; to "
        f"train without them, use --vision_weights {RANDOM}"
    )


def first_sentence(error: Exception) -> str:
    """The first sentence of a library's error message, at most 160 characters."""
    text = " ".join(str(error).split())
    return re.split(r"(?<=[a-z])\. |: https?://", text)[0][:160] or type(error).__name__


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
