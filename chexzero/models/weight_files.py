"""Read weight files without running code from them, or say why not: damaged, or another kind of file."""

import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

#: Prefixes that wrappers put before every key: DataParallel, torch.compile, Lightning and others.
WRAPPERS = ("module.", "_orig_mod.", "model.", "clip_model.", "clip.", "net.")

#: First bytes of files that are often named as weights but are not.
_NO_WEIGHTS = {
    b"version https://git-lfs": "a Git-LFS pointer, not the weights themselves: fetch them with `git lfs pull`",
    b"<": "a web page, not weights: the download asked for a login or has moved; fetch it again in a browser",
    b"{": "JSON text, not weights",
    b"\x1f\x8b": "packed with gzip; unpack it",
    b"\x89HDF": "an HDF5 file, not weights of PyTorch",
    b"\x89PNG": "a picture",
    b"\xff\xd8": "a picture",
}
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class NoWeights(ValueError):
    """The file cannot be read as weights; the message says what it is or what is wrong with it."""


def read_tensors(path: Path) -> Any:
    """Read a `.pt` or `.safetensors` file to the CPU and check every record of it.

    A `.pt` file's records have checksums (those before torch 1.6 do not); a `.safetensors` file has none, but its
    lengths are checked. Raises `NoWeights`.
    """
    with open(path, "rb") as handle:
        head = handle.read(64)
    if not head:
        raise NoWeights("it is empty")
    what = next((what for mark, what in _NO_WEIGHTS.items() if head.lstrip().startswith(mark)), None)
    if what and path.suffix != ".safetensors":
        raise NoWeights(f"it is {what}")
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        if what and head[8:9] != b"{":
            raise NoWeights(f"it is {what}")
        from safetensors.torch import load_file

        return load_file(path)
    check_records(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, tarfile, zipfile and torch raise exceptions of their own
        raise NoWeights(explain(error)) from error


def check_records(path: Path) -> None:
    """Compare every record of a zip archive with its checksum; other files pass. Raises `NoWeights`."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as handle:
            if handle.read(4) == b"PK\3\4":
                raise NoWeights("it is cut short or damaged: its archive has no end")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # reading a damaged directory can raise any exception
        raise NoWeights(f"it is damaged: {explain(error)}") from error
    if damaged:
        raise NoWeights(f"it is damaged: the checksum of its record {damaged[:80]} is wrong; fetch or copy it again")


def explain(error: BaseException) -> str:
    """Summarise a reader's exception, without escape codes and pickle's advice to trust the file."""
    text = _ESCAPES.sub("", str(error).strip() or type(error).__name__)
    foreign = re.search(r"(?:GLOBAL|global:?|class) ([\w.]+\.\w+)", text)
    if "weights_only" in text.lower() and foreign:
        return (
            f"it holds a {foreign[1]} beside the tensors, which is not loaded because it could run code; save only the "
            "state dict, where the file comes from"
        )
    return text.splitlines()[0][:200]


def without_wrappers(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict without the prefixes that all of its keys share, and without torch.compile's within them."""
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    while prefix := next((one for one in WRAPPERS if state and all(key.startswith(one) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def not_finite(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity, except causal masks."""
    return [
        key
        for key, value in state.items()
        if value.is_floating_point() and not key.endswith("attn_mask") and not _is_finite(value)
    ]


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite: the extremes are NaN if any value is, and ten times faster than testing each."""
    if tensor.itemsize == 1:  # float8, whose extremes torch does not have
        tensor = tensor.float()
    return not tensor.numel() or all(map(math.isfinite, tensor.aminmax()))
