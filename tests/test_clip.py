"""The front door: published names, files, the strict tokenizer."""

import urllib.error
import urllib.request

import pytest
import torch
from PIL import Image
from small_clip import state_dict

from chexzero import clip
from chexzero.common.errors import UserError


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
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(UserError, match="ViT-B/32 are not in .*fetch https://.* put it there as ViT-B-32.pt"):
        clip.weights_file("ViT-B/32", tmp_path)
    assert not list(tmp_path.iterdir())
