"""Checkpoints of every kind load strictly; others are named; nothing in a file is run."""

import os
import pickle
import warnings
import zipfile

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from small_clip import state_dict

from chexzero.common.errors import UserError
from chexzero.common.files import sha256_of
from chexzero.models.checkpoints import describe, load_model, read_state_dict


def _same(path):
    model = load_model(path)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters()) and not model.training
    expected = state_dict()
    found = model.state_dict()
    return set(found) == set(expected) and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    "content",
    [
        state_dict(torch.float16),
        state_dict(torch.float32),
        {f"module.{key}": value for key, value in state_dict(torch.float16).items()},
        {
            **state_dict(torch.float16),
            "input_resolution": torch.tensor(224),
            "context_length": torch.tensor(77),
            "vocab_size": torch.tensor(49408),
        },
        {"model": state_dict(), "optimizer": {"state": {}}, "step": 3},
        {"epoch": 1, "state_dict": {f"module.{key}": value for key, value in state_dict().items()}},
    ],
    ids=["float16", "float32", "module", "openai numbers", "last.pt", "open_clip training"],
)
def test_state_dicts_load_strictly(tmp_path, content):
    torch.save(content, tmp_path / "file.pt")
    assert _same(tmp_path / "file.pt")


def test_safetensors(tmp_path):
    save_file(state_dict(torch.float16), tmp_path / "file.safetensors")
    assert _same(tmp_path / "file.safetensors")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A TorchScript archive as OpenAI publishes them: half precision weights, code, three numbers."""
    model = open_clip.model.CLIP(
        32,
        open_clip.CLIPVisionCfg(layers=2, width=64, patch_size=32, image_size=224),
        open_clip.CLIPTextCfg(width=64, heads=1, layers=2),
        quick_gelu=True,
    ).eval()
    model.load_state_dict(state_dict())
    model.register_buffer("input_resolution", torch.tensor(224))
    inputs = torch.zeros(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.int64)
    path = tmp_path_factory.mktemp("archive") / "ViT.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.jit.trace(model, inputs, check_trace=False).half().save(str(path))
    return path


def test_torchscript_archive(archive, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", None)  # its code must not be needed
    assert _same(archive)


class _Attack:
    def __reduce__(self):
        return os.system, ("echo harm > harmed",)


def test_code_in_files_is_not_run(tmp_path, archive, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": _Attack()}, "attack.pt")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile("script.pt", "w") as target:
        for name in source.namelist():
            content = pickle.dumps(_Attack(), 2) if name.endswith("/data.pkl") else source.read(name)
            target.writestr(name, content)
    for name, message in (("attack.pt", "cannot be read"), ("script.pt", "no place in a weight file")):
        with pytest.raises(UserError, match=message):
            load_model(name)
    assert not os.path.exists("harmed")


def test_an_archive_that_reaches_outside_its_storage_is_refused(tmp_path, archive):
    path = tmp_path / "short.pt"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name)[:64] if "/data/" in name else source.read(name))
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        load_model(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (
            {key: value for key, value in state_dict().items() if key != "ln_final.bias"},
            r"is a CLIP vision transformer \(patch 32, 2 blocks, width 64\) with CLIP's text tower .* lacks ln_final.bias",
        ),
        (
            {"conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)},
            "an image classifier .* lacks the key ln_final",
        ),
        ({"cls_token": torch.zeros(1), "blocks.0": torch.zeros(1)}, "a vision tower alone"),
        ({"text_model.embeddings": torch.zeros(1)}, "Hugging Face's transformers"),
        ({"odd": torch.zeros(1)}, "no model known here .*odd"),
        ({"step": 3}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        ({}, "holds no state dict"),
        ({0: torch.zeros(1)}, "holds no state dict"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match=message) as caught:
        load_model(tmp_path / "other.pt")
    assert "other.pt" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"some text", b"PK\x03\x04 cut off"])
def test_damaged_files(tmp_path, content):
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(UserError, match="bad.pt cannot be read as a checkpoint"):
        read_state_dict(tmp_path / "bad.pt")
    with pytest.raises(UserError, match="does not exist"):
        read_state_dict(tmp_path / "absent.pt")


def test_a_folder_is_hashed_by_its_files(tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("same" if name != "three" else "other")
    one, two, three = (sha256_of(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two != three


def test_half_written_file(tmp_path):
    torch.save(state_dict(torch.float16), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="half.pt cannot be read"):
        load_model(tmp_path / "half.pt")


def test_describe_a_dinov3_model():
    state = {"visual.trunk.cls_token": torch.zeros(1, 1, 384), "visual.trunk.blocks.0.x": torch.zeros(1)}
    assert describe(state) == "a DINOv3 model (1 blocks, width 384) without a text tower"
