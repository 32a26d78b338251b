"""`chexzero.clip`: published model names, files, the strict tokenizer."""

import pytest
import torch
from PIL import Image
from small_clip import state_dict

from chexzero import clip
from chexzero.common.errors import UserError
from chexzero.models import published


def test_available_models():
    assert {"RN50", "RN101", "RN50x4", "ViT-B/32"} <= set(clip.available_models())


def test_tokenize_shapes_and_a_text_that_is_too_long():
    assert clip.tokenize("abc").shape == (1, 77) and clip.tokenize("abc").dtype == torch.int64
    assert clip.tokenize(["a", "b"], 20).shape == (2, 20)
    with pytest.raises(RuntimeError, match="text 1 has 102 tokens but the context length is 77"):
        clip.tokenize(["short", "a " * 100])
    assert issubclass(clip.ClipError, UserError)
    cut = clip.tokenize("a " * 100, truncate=True)[0]
    assert cut[-1] == 49407 and cut[-2] == 320
    assert clip.tokenize([]).shape == (0, 77)


def test_load_a_file_and_its_transform(tmp_path):
    torch.save(state_dict(torch.float16), tmp_path / "small.pt")
    model, transform = clip.load(str(tmp_path / "small.pt"), device="cpu", jit=False)
    assert model.image_resolution == 224 and not model.training
    assert transform(Image.new("RGB", (300, 400))).shape == (3, 224, 224)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(RuntimeError, match="'ViT-Z/99' is not known; choose one of RN50, .*ViT-B/32"):
        clip.load("ViT-Z/99", device="cpu")


def test_weights_that_cannot_be_fetched_name_the_file_and_the_place(tmp_path, monkeypatch):
    def offline(config):
        raise FileNotFoundError("no network")

    monkeypatch.setattr(published, "download_pretrained", offline)
    with pytest.raises(UserError, match="ViT-B/32 are not in .*huggingface.co/timm/.* put it there as ViT-B-32.safe"):
        published.weights_file("ViT-B/32", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(clip.ClipError, match="cannot be downloaded"):  # a RuntimeError, as upstream's callers expect
        clip.load("ViT-B/32", device="cpu")
    for ending in ("safetensors", "pt"):
        (tmp_path / f"ViT-B-32.{ending}").write_bytes(b"")
        assert published.weights_file("ViT-B/32", tmp_path).name == f"ViT-B-32.{ending}"


def test_weights_come_from_the_hub_where_the_folder_has_none(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", lambda **what: asked.append(what) or str(tmp_path))
    assert published.weights_file("ViT-B/32", tmp_path / "none") == tmp_path
    assert asked[0]["repo_id"] == "timm/vit_base_patch32_clip_224.openai"
    assert asked[0]["filename"] == "open_clip_model.safetensors"
