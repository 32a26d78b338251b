"""Read checkpoints of any kind without running code from them, and say what a file is when it does not fit."""

import collections
import logging
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from chexzero.common.errors import UserError
from chexzero.common.files import require_file
from chexzero.model import CLIP, HEAD_WIDTH, OPENAI_EXTRAS, build_model, count_blocks
from chexzero.models.other_libraries import normalisation_of, read_folder
from chexzero.models.weight_files import check_records, explain, not_finite, read_tensors, without_wrappers

log = logging.getLogger(__name__)

REMEDY = (
    "name a checkpoint of CheXzero, CLIP or this project (.pt, .safetensors), or the folder of a transformers "
    "or open_clip model"
)


def read_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Read the weights of a checkpoint as they are stored, on the CPU.

    Accepted are a bare state dict (`.pt`, float16 or float32, with or without the prefixes of DataParallel,
    torch.compile and other wrappers), a dict that has it under `model`, `state_dict` or `model_state_dict` (such as our
    `last.pt`), OpenAI's TorchScript archive, `.safetensors`, and the folders of transformers and open_clip. Records are
    compared with their checksums if the format has them. Raises `UserError` for anything else, for damage, and for
    weights that are not finite.
    """
    if Path(path).is_dir():
        return _finite(path, read_folder(Path(path)))
    path = require_file(path, REMEDY)
    try:
        state: Mapping = read_torchscript(path) if _is_torchscript(path) else _weights_of(read_tensors(path))
    except Exception as error:  # each reader raises its own exceptions for a damaged file
        raise UserError(f"{path} cannot be read as a checkpoint ({explain(error)}); {REMEDY}") from error
    if not state or not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()):
        raise UserError(f"{path} holds no state dict; {REMEDY}")
    return _finite(path, without_wrappers(state))


def _finite(path: str | os.PathLike, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if bad := not_finite(state):
        raise UserError(
            f"{path} has weights that are not finite ({len(bad)} of {len(state)} tensors, the first is {bad[0]}): "
            "its training diverged, or the file is damaged; use another checkpoint"
        )
    return state


def load_model(path: str | os.PathLike, device: str | torch.device = "cpu") -> CLIP:
    """Load any checkpoint strictly: a `chexzero.model.CLIP` in float32 and eval mode on `device`.

    A folder's own normalisation of images is kept (`CLIP.normalisation`). Assumptions about what a weight file does not
    record are logged. Raises `UserError` that says which model the file is and which keys differ.
    """
    state = read_state_dict(path)
    try:
        model = build_model(state).to(device)
        if Path(path).is_dir():
            model.normalisation = normalisation_of(Path(path))
        elif "visual.conv1.weight" in state:
            log.info(
                "%s: a file of weights records neither the number of heads nor the activation; heads of width %d and "
                "QuickGELU, as in CheXzero and OpenAI's CLIP, are assumed",
                path,
                HEAD_WIDTH,
            )
        return model
    except UserError as error:
        raise UserError(f"{path} is {describe(state)} and does not load: {error}; {REMEDY}") from error


def describe(state: Mapping[str, torch.Tensor]) -> str:
    """Say in a few words which model a state dict belongs to."""
    text = "with CLIP's text tower" if "text_projection" in state else "without a text tower"
    if "visual.architecture" in state:
        return f"a model with timm's {bytes(state['visual.architecture'].tolist()).decode(errors='replace')} {text}"
    if any(key.startswith("visual.trunk.") for key in state):
        blocks, width = count_blocks(state, "visual.trunk.blocks."), _length(state, "visual.trunk.cls_token", -1)
        return f"a DINOv3 model ({blocks} blocks, width {width}) {text}"
    if "visual.conv1.weight" in state and "visual.class_embedding" in state:
        patch, blocks = state["visual.conv1.weight"].shape[-1], count_blocks(state, "visual.transformer.resblocks.")
        return (
            f"a CLIP vision transformer (patch {patch}, {blocks} blocks, "
            f"width {_length(state, 'visual.conv1.weight', 0)}) {text}"
        )
    if "visual.layer1.0.conv1.weight" in state:
        return f"a CLIP ResNet {text}"
    if any(key.startswith("text_model.") for key in state):
        return "a CLIP of Hugging Face's transformers, which is read from its folder (with config.json)"
    if any(key.startswith(("vision_tower.", "text.", "visual.")) for key in state):
        return f"another model with an image tower, {text}"
    if "cls_token" in state or "embeddings.cls_token" in state:
        return "a vision tower alone"
    if "conv1.weight" in state and "fc.weight" in state:
        return "an image classifier (ResNet)"
    return f"no model known here (its keys begin {', '.join(list(state)[:3])})"


def _length(state: Mapping[str, torch.Tensor], key: str, axis: int) -> int | str:
    return state[key].shape[axis] if key in state else "unknown"


def _weights_of(content: object) -> Mapping:
    if not isinstance(content, Mapping):
        return {}
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content.get(key), Mapping):
            return content[key]
    return content


# --- OpenAI's TorchScript archives ---
# torch.load(weights_only=True) refuses them, and torch.jit.load would compile the code they carry, whose operators
# can touch files. Only the tensors are needed. The archive's data.pkl describes them and names classes of that code;
# here the classes become empty holders, tensors are rebuilt from raw bytes, and every other name is refused.

_STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Holder:
    """Stands for any module of the archive; unpickling fills `__dict__` and runs nothing."""


class _TensorUnpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(f"{root}/data.pkl"))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] == "__torch__":
            return _Holder
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch.jit._pickle":  # typed lists of numbers: their content is kept, their type is not needed
            return _first_argument
        if module == "torch" and name in _STORAGE_TYPES:
            return _STORAGE_TYPES[name]
        raise pickle.UnpicklingError(f"the archive names {module}.{name}, which does not belong in a weight file")

    def persistent_load(self, pid: tuple) -> torch.Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not str(key).isalnum():
            raise pickle.UnpicklingError(f"unknown record {kind} {key}")
        data = bytearray(self.archive.read(f"{self.root}/data/{key}"))
        return torch.frombuffer(data, dtype=dtype)[:count] if count else torch.empty(0, dtype=dtype)


def _rebuild_tensor(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> torch.Tensor:
    return storage.as_strided(size, stride, offset)


def _first_argument(value: object, *_: object) -> object:
    return value


def _is_torchscript(path: Path) -> bool:
    return _torchscript_root(path) is not None


def _torchscript_root(path: Path) -> str | None:
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    root = names[0].split("/")[0] if names else ""
    is_script = f"{root}/data.pkl" in names and any(name.startswith(f"{root}/code/") for name in names)
    return root if is_script else None


def read_torchscript(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Read every tensor of a TorchScript archive's modules, by its dotted name, without running its code."""
    path = Path(path)
    check_records(path)
    with zipfile.ZipFile(path) as archive:
        content = _TensorUnpickler(archive, _torchscript_root(path) or "").load()
    return {name: tensor for name, tensor in _tensors(content) if name not in OPENAI_EXTRAS}


def _tensors(holder: object, prefix: str = "") -> list[tuple[str, torch.Tensor]]:
    found = []
    for name, value in vars(holder).items():
        if isinstance(value, torch.Tensor):
            found.append((prefix + name, value))
        elif isinstance(value, _Holder):
            found.extend(_tensors(value, f"{prefix}{name}."))
    return found
