"""Checkpoints of every kind load strictly; unknown ones are refused by name; no code in a file is run."""

import argparse
import contextlib
import json
import os
import pickle
import warnings
import zipfile

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from small_clip import state_dict

from chexzero.common.errors import UserError
from chexzero.common.files import sha256_of
from chexzero.imaging.normalise import Normalisation
from chexzero.models.checkpoints import _TensorUnpickler, describe, load_model, read_state_dict
from chexzero.models.other_libraries import normalisation_of


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
    monkeypatch.setattr(torch.jit, "load", None)  # its code must not be run
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
    for name, message in (("attack.pt", "cannot be read"), ("script.pt", "not belong in a weight file")):
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


# --- what is damaged, or is no weight file ---


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :]


def test_every_flipped_bit_and_zeroed_block_of_a_checkpoint_is_noticed(tmp_path):
    torch.save(state_dict(torch.float16), tmp_path / "sound.pt")
    whole = (tmp_path / "sound.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "sound.pt") as archive:
        places = [one.header_offset + 200 for one in archive.infolist() if one.file_size > 4000]
    assert len(places) > 10
    for at in places:
        for damaged in (_flipped(whole, at), whole[:at] + bytes(64) + whole[at + 64 :]):
            if damaged == whole:
                continue
            (tmp_path / "damaged.pt").write_bytes(damaged)
            with pytest.raises(UserError, match="damaged.pt cannot be read as a checkpoint .*damaged"):
                read_state_dict(tmp_path / "damaged.pt")


def test_a_torchscript_archive_is_checked_too(archive, tmp_path):
    whole = archive.read_bytes()
    with zipfile.ZipFile(archive) as content:
        largest = max(content.infolist(), key=lambda one: one.file_size)
    (tmp_path / "damaged.pt").write_bytes(_flipped(whole, largest.header_offset + largest.file_size // 2))
    with pytest.raises(UserError, match="checksum of its record"):
        read_state_dict(tmp_path / "damaged.pt")


def test_lengths_of_safetensors_are_checked(tmp_path):
    save_file(state_dict(), tmp_path / "sound.safetensors")
    whole = (tmp_path / "sound.safetensors").read_bytes()
    for damaged in (whole[:-10], whole + bytes(10), whole[:4], b""):
        (tmp_path / "damaged.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read as a checkpoint"):
            read_state_dict(tmp_path / "damaged.safetensors")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, bad):
    state = state_dict()
    state["visual.proj"][0, 0] = bad
    torch.save(state, tmp_path / "file.pt")
    with pytest.raises(UserError, match="not finite .*visual.proj"):
        load_model(tmp_path / "file.pt")


@pytest.mark.parametrize(
    "content, what",
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"\n <html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n", "a Git-LFS pointer"),
        (b"", "it is empty"),
        (b'{"a": 1}', "JSON text"),
        (b"\x89PNG\r\n\x1a\n", "a picture"),
        (b"PK\x03\x04" + bytes(100), "cut short or damaged"),
    ],
)
@pytest.mark.parametrize("name", ["file.pt", "file.safetensors"])
def test_files_that_are_no_weights_are_named(tmp_path, content, what, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        load_model(tmp_path / name)
    if name.endswith(".pt"):
        assert what in str(error.value)
    assert "\x1b" not in str(error.value) and "weights_only" not in str(error.value)


def test_other_objects_in_a_checkpoint_are_named(tmp_path):
    for value, name in ((argparse.Namespace(lr=1), "argparse.Namespace"), (np.float64(3), "scalar")):
        torch.save({"model": state_dict(), "args": value}, tmp_path / "file.pt")
        with pytest.raises(UserError, match=rf"it holds a [\w.]*{name} beside the tensors") as error:
            load_model(tmp_path / "file.pt")
        assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "model.", "clip_model.module."])
def test_prefixes_of_wrappers(tmp_path, prefix):
    torch.save({prefix + key: value for key, value in state_dict().items()}, tmp_path / "file.pt")
    assert _same(tmp_path / "file.pt")
    inner = {key.replace("visual.", "visual._orig_mod."): value for key, value in state_dict().items()}
    torch.save(inner, tmp_path / "file.pt")
    assert _same(tmp_path / "file.pt")


def test_what_a_file_does_not_record_is_said(tmp_path, caplog):
    torch.save(state_dict(), tmp_path / "file.pt")
    with caplog.at_level("INFO"):
        load_model(tmp_path / "file.pt")
    assert "records neither the number of heads nor the activation" in caplog.text


def test_a_folders_own_normalisation_is_used(tmp_path, caplog):
    from chexzero.export.write import to_open_clip
    from chexzero.imaging.normalise import prepare
    from chexzero.zero_shot import embed_images

    torch.save(state_dict(), tmp_path / "file.pt")
    model = load_model(tmp_path / "file.pt")
    (tmp_path / "folder").mkdir()
    to_open_clip(model, tmp_path / "folder")
    assert load_model(tmp_path / "folder").normalisation is None  # CheXzero's
    config = json.loads((tmp_path / "folder/open_clip_config.json").read_text())
    config["preprocess_cfg"] |= {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.3]}
    (tmp_path / "folder/open_clip_config.json").write_text(json.dumps(config))
    with caplog.at_level("INFO"):
        other = load_model(tmp_path / "folder")
    assert "open_clip_config.json says: mean (0.5, 0.4, 0.3)" in caplog.text
    images = torch.randint(0, 256, (2, model.image_resolution, model.image_resolution), dtype=torch.uint8)
    expected = torch.stack(
        [(images / 255 - mean) / std for mean, std in zip((0.5, 0.4, 0.3), (0.25, 0.2, 0.3), strict=True)], dim=1
    )
    prepared = prepare(images, model.image_resolution, other.normalisation)
    assert torch.allclose(prepared, expected, atol=1e-5)
    with torch.no_grad():
        features = torch.nn.functional.normalize(model.encode_image(expected), dim=-1).numpy()
    assert np.allclose(embed_images(other, images.numpy()), features, atol=1e-4)
    config["preprocess_cfg"]["std"] = [0, 1, 1]
    (tmp_path / "folder/open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="mean and deviation must be three numbers"):
        load_model(tmp_path / "folder")


@pytest.mark.parametrize(
    "content",
    [{}, {"mean": [0.5] * 3}, {"std": [0.5] * 3}, [], None, "mean std", {"mean": [0.5] * 3, "std": [0.5] * 3}],
)
def test_mean_and_deviation_are_taken_where_a_folder_gives_both(tmp_path, content):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": content}))
    found = normalisation_of(tmp_path)
    assert found == (Normalisation((0.5,) * 3, (0.5,) * 3) if isinstance(content, dict) and len(content) == 2 else None)
    processor = {"image_mean": [0.25] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert normalisation_of(tmp_path).mean[0] == (0.5 if found else 0.25)  # open_clip's comes first


@pytest.mark.parametrize("name, values", [("mean", [0.5] * 2), ("std", [0.5] * 4), ("std", [0.5, 0, 0.5]), ("mean", 1)])
def test_another_mean_or_deviation_than_three_numbers_is_refused(tmp_path, name, values):
    content = {"mean": [0.5] * 3, "std": [0.5] * 3} | {name: values}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": content}))
    with pytest.raises(UserError, match="must be three numbers each"):
        normalisation_of(tmp_path)


@pytest.mark.parametrize(
    ("module", "name", "known"),
    [
        ("torch", "FloatStorage", True),
        ("torch._utils", "_rebuild_tensor_v2", True),
        ("collections", "OrderedDict", True),
        ("__torch__.anything", "Module", True),
        ("torch", "load", False),
        ("os", "FloatStorage", False),
        ("os", "system", False),
        ("torch._utils", "_rebuild_parameter", False),
        ("collections", "namedtuple", False),
    ],
)
def test_an_archive_may_name_nothing_but_what_holds_weights(module, name, known):
    unpickler = _TensorUnpickler.__new__(_TensorUnpickler)
    with (
        contextlib.nullcontext()
        if known
        else pytest.raises(pickle.UnpicklingError, match="not belong in a weight file")
    ):
        assert unpickler.find_class(module, name) is not None
