"""Wrong weight files and weights to be downloaded: one clear sentence each."""

import functools
import json
import logging
import pickle
from pathlib import Path

import huggingface_hub
import pytest
import torch
from dinov3_files import meta_layout, small_model, small_size
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from dinov3_adapter import SIZES, WeightsError, build_vision_tower, weights


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    monkeypatch.setitem(SIZES, "small", small_size("plain"))
    monkeypatch.setitem(SIZES, "deeper", small_size("plain", depth=4))
    monkeypatch.setitem(SIZES, "no_bias", small_size("no_bias"))


@pytest.fixture
def state():
    """Weights of the size `small` in Meta's layout."""
    return meta_layout(small_model("plain"))


def refused(path, size="small"):
    """Return the message with which `path` is refused."""
    with pytest.raises(WeightsError) as caught:
        build_vision_tower(size, path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 1000
    return message


def saved(state, folder, name="weights.pth"):
    torch.save(state, folder / name)
    return folder / name


class Payload:
    """An object whose unpickling creates a file, as proof that code was run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickle_with_code_is_not_run(state, tmp_path):
    trace = tmp_path / "trace"
    with open(tmp_path / "old.pth", "wb") as handle:
        pickle.dump({"storage_tokens": Payload(trace)}, handle)
    for path in (saved({**state, "extra": Payload(trace)}, tmp_path), tmp_path / "old.pth"):
        assert "nothing in it was run" in refused(path)
    assert not trace.exists()


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.3, 0.999])
def test_file_that_is_cut_off(state, tmp_path, share):
    for path in (saved(state, tmp_path), tmp_path / "weights.safetensors"):
        if path.suffix == ".safetensors":
            save_file(state, path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        assert "fetch it again" in refused(path) or "no weight file" in refused(path)


@pytest.mark.parametrize(
    "content",
    [
        b"These are not weights.\n" * 40,
        b"<!DOCTYPE html><html>Not found</html>",
        b"\x00" * 500,
        b'{"weight": 1}',
        b"\x10" + b"\x00" * 7 + b"{not json at all",
    ],
)
def test_file_of_another_kind(tmp_path, content):
    (tmp_path / "weights.pth").write_bytes(content)
    refused(tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, torch.zeros(3), {"model": {}}], ids=repr)
def test_file_without_a_state_dict(tmp_path, content):
    assert "no state dict" in refused(saved(content, tmp_path))


def test_another_architecture(tmp_path, shared):
    clip = shared / "goldens" / "small_clip.pt"
    assert "no DINOv3 vision transformer" in refused(clip)


def test_keys_that_differ_are_listed(state, tmp_path):
    wrong = {**state, "blocks.1.mlp.fc1.weight": torch.zeros(256, 32), "head.weight": torch.zeros(5, 64)}
    del wrong["norm.bias"]
    message = refused(saved(wrong, tmp_path))
    assert "lacks norm.bias (64,)" in message
    assert "does not have: head.weight (5, 64)" in message
    assert "blocks.1.mlp.fc1.weight (256, 32) instead of (256, 64)" in message


def test_one_wrong_shape(state, tmp_path):
    state["blocks.2.attn.qkv.weight"] = state["blocks.2.attn.qkv.weight"][:-3]
    assert "blocks.2.attn.qkv.weight (189, 64) instead of (192, 64)" in refused(saved(state, tmp_path))


@pytest.mark.parametrize("remainder", [0, 1])
@pytest.mark.parametrize("layout", ["meta", "huggingface"])
def test_half_the_keys_missing(state, tmp_path, layout, remainder):
    if layout == "huggingface":
        small_model("plain").save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
    half = {key: value for i, (key, value) in enumerate(state.items()) if i % 2 == remainder}
    assert "lacks" in refused(saved(half, tmp_path))


def test_some_biases_missing(state, tmp_path):
    del state["blocks.1.attn.qkv.bias"]
    assert "blocks.1.attn.q_bias" in refused(saved(state, tmp_path))


def test_another_size_is_named(state, tmp_path):
    path = saved(state, tmp_path)
    assert refused(path, "deeper").endswith("use --vision small")
    assert refused(path, "dinov3_vits").endswith("use --vision small")
    small_model("no_bias").save_pretrained(tmp_path / "folder")
    assert refused(tmp_path / "folder").endswith("use --vision no_bias")


def test_what_may_be_left_out_is_checked(state, tmp_path):
    other_rope = {**state, "rope_embed.periods": state["rope_embed.periods"] * 2}
    assert "rope_embed.periods" in refused(saved(other_rope, tmp_path))

    width = len(state["norm.bias"])
    key_bias = {**state, "blocks.0.attn.qkv.bias_mask": torch.ones(3 * width)}
    assert "blocks.0.attn.k_bias is not zero" in refused(saved(key_bias, tmp_path))

    unset_mask = {**state, "blocks.0.attn.qkv.bias_mask": torch.full((3 * width,), torch.nan)}
    assert "bias_mask" in refused(saved(unset_mask, tmp_path))

    unused = meta_layout(small_model("no_bias")) | {"local_cls_norm.weight": torch.ones(64)}
    build_vision_tower("no_bias", saved(unused, tmp_path))
    biased = unused | {f"blocks.{i}.attn.qkv.bias": torch.cat([torch.ones(64), torch.zeros(128)]) for i in range(3)}
    assert "q_bias is not zero" in refused(saved(biased, tmp_path), "no_bias")


def test_what_is_left_out_is_logged(state, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        build_vision_tower("small", saved(state, tmp_path))
    assert "mask_token, rope_embed.periods, blocks.0.attn.k_bias" in caplog.text
    trunk = build_vision_tower("small", "random").trunk.state_dict()
    ours = {f"visual.trunk.{key}": value for key, value in trunk.items()}
    with caplog.at_level(logging.INFO):
        build_vision_tower("small", saved({**ours, "ln_final.bias": torch.zeros(3)}, tmp_path))
    assert "the 1 tensors of its text side are not used" in caplog.text


def test_config_of_the_folder_is_checked(tmp_path):
    model = small_model("plain")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in (("num_attention_heads", 4), ("rope_theta", 10000.0), ("hidden_act", "silu")):
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        assert f"{key} = {value!r}" in refused(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    build_vision_tower("small", tmp_path)


def test_sharded_folder(tmp_path):
    small_model("plain").save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    build_vision_tower("small", tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    content = index.read_text()
    index.write_text(content.replace(shards[0].name, "../" + shards[0].name))
    with pytest.raises(WeightsError, match="not a file of its folder"):
        build_vision_tower("small", tmp_path)
    index.write_text(content)
    shards[0].unlink()
    assert "lacks " + shards[0].name in refused(tmp_path)


def test_folder_without_weights(tmp_path):
    assert "neither model.safetensors nor" in refused(tmp_path)


def test_digest_in_metas_file_names(state, tmp_path):
    path = saved(state, tmp_path, "dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth")
    assert "not the file its name says" in refused(path)
    digest = weights.hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    build_vision_tower("small", path.rename(tmp_path / f"dinov3_small_pretrain_x-{digest}.pth"))


def test_file_that_is_not_there(tmp_path):
    assert "no such file or folder" in refused(tmp_path / "nowhere.pth")


# --- names on the hub ---

NAME = "facebook/dinov3-vitb16-pretrain-lvd1689m"


@pytest.fixture
def hub(monkeypatch):
    """Files of a fake hub: name -> path, or an exception to raise. The cache is empty."""
    files = {}

    def hf_hub_download(repository, file, revision=None, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        files.setdefault("asked", []).append((repository, file, revision))
        answer = files.get(file, EntryNotFoundError(f"{file} is not there"))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(weights, "hf_hub_download", hf_hub_download)
    return files


def test_name_is_downloaded(hub, tmp_path):
    small_model("plain").save_pretrained(tmp_path)
    hub["model.safetensors"] = tmp_path / "model.safetensors"
    build_vision_tower("small", NAME + "@abc")
    assert hub["asked"] == [(NAME, "model.safetensors", "abc")]


def test_sharded_name_is_downloaded(hub, tmp_path):
    small_model("plain").save_pretrained(tmp_path, max_shard_size="100KB")
    hub.update({path.name: path for path in tmp_path.iterdir()})
    build_vision_tower("small", NAME)
    assert len(hub["asked"]) == 2 + len(list(tmp_path.glob("*.safetensors")))


def test_recommended_weights_are_the_default(hub):
    for name, size in SIZES.items():
        if size.published:
            with pytest.raises(WeightsError, match=size.published[0]):
                build_vision_tower(name)


def gated():
    response = type("Response", (), {"headers": {}, "status_code": 403, "request": None})()
    return GatedRepoError("403 Client Error. Access to model is restricted.", response=response)


@pytest.mark.parametrize(
    "problem",
    [
        LocalEntryNotFoundError("cannot find the file in the cache"),
        gated(),
        EntryNotFoundError("404"),
        OSError("no space left"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_name_that_cannot_be_downloaded(hub, problem):
    hub["model.safetensors"] = hub["model.safetensors.index.json"] = problem
    with pytest.raises(WeightsError) as caught:
        build_vision_tower("dinov3_vitb")
    for part in (
        f"model.safetensors from https://huggingface.co/{NAME}",
        SIZES["dinov3_vitb"].meta_file,
        "--vision_weights FILE",
        "gated under the DINOv3 licence",
        "hf auth login",
    ):
        assert part in str(caught.value)


def test_without_a_connection(monkeypatch, tmp_path):
    """The hub client itself, told that it is offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="gated under the DINOv3 licence"):
        build_vision_tower("dinov3_vitb", NAME)


def test_cache_is_used_without_a_connection(monkeypatch, tmp_path):
    """A file in the hub client's cache is found by its name, offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / f"models--{NAME.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    small_model("plain").save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(
        weights, "hf_hub_download", functools.partial(huggingface_hub.hf_hub_download, cache_dir=tmp_path)
    )
    assert isinstance(weights.download(NAME, "small"), Path)
    build_vision_tower("small", NAME)
