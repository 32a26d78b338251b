"""CLIP has upstream's keys and logits, and its errors explain why a state dict does not fit."""

import json

import numpy as np
import pytest
import torch
from small_clip import GOLDEN, recorded, state_dict

from chexzero.clip import tokenize, trim_padding
from chexzero.common.errors import UserError
from chexzero.imaging.normalise import MEAN, STD, prepare
from chexzero.model import CLIP, build_model
from tests.parity.inputs import SMALL_MODEL, radiographs, texts


@pytest.fixture(scope="module")
def model():
    return build_model(state_dict(torch.float16))


@pytest.mark.parametrize(
    "name, vision",
    [
        ("vit_b_32", (512, 224, 12, 768, 32)),
        ("vit_b_16", (768, 320, 12, 768, 16)),
        ("rn50", (1024, 224, (3, 4, 6, 3), 64, None)),
    ],
)
def test_keys_and_shapes_are_upstreams(name, vision):
    with torch.device("meta"):
        state = CLIP(*vision, 77, 49408, 512, 8, 12).state_dict()
    found = sorted(f"{key} {tuple(value.shape)}" for key, value in state.items())
    assert found == recorded()[f"new_model/{name}"].tolist()


def test_logits_are_upstreams_recorded(model):
    images, tokens = prepare(torch.from_numpy(radiographs()), 224), tokenize(texts()[4:12], truncate=True)
    with torch.no_grad():
        per_image, per_text = model(images, tokens)
    np.testing.assert_allclose(per_image, recorded()["logits/per_image"], atol=1e-5)
    np.testing.assert_allclose(per_text, recorded()["logits/per_text"], atol=1e-5)


def test_logits_of_the_golden_model(shared):
    model = build_model(torch.load(shared / "goldens/small_clip.pt", weights_only=True))
    images = torch.from_numpy(np.load(shared / "goldens/cxr320.npz")["cxr"])
    golden = np.load(GOLDEN / "zero_shot.npz")
    with torch.no_grad():
        per_image, per_text = model(prepare(images, 224), torch.from_numpy(golden["tokens"]))
    np.testing.assert_allclose(per_image, golden["logits_per_image"], atol=1e-5)
    np.testing.assert_allclose(per_text, golden["logits_per_text"], atol=1e-5)


def test_prepare_on_one_channel_equals_three_channels():
    images = torch.from_numpy(radiographs())
    three = (images.float()[:, None].repeat(1, 3, 1, 1) - MEAN) / STD
    three = torch.nn.functional.interpolate(three, size=(224, 224), mode="bicubic", antialias=False)
    torch.testing.assert_close(prepare(images, 224), three, rtol=0, atol=1e-6)
    assert torch.equal(prepare(images, 320)[:, 1], (images.float() - MEAN) / STD)
    with pytest.raises(ValueError, match="B, H, W"):
        prepare(images[0], 224)


def test_float32_eval_and_attributes(model):
    assert model.dtype == torch.float32 and not model.training
    assert (model.image_resolution, model.context_length, model.vocab_size) == (224, 77, 49408)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_a_batch_cut_to_its_longest_text_has_the_same_features(model):
    tokens = tokenize(["no acute process", "edema"])
    cut = trim_padding(tokens)
    assert cut.shape == (2, 5)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(cut), model.encode_text(tokens), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="78 tokens"):
        model.encode_text(torch.ones(1, 78, dtype=torch.int64))


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = build_model(state_dict()).train()
        model.set_grad_checkpointing(checkpointing)
        model(prepare(torch.from_numpy(radiographs()[:2]), 224), tokenize(["a", "b"]))[0].sum().backward()
        gradients.append(model.visual.conv1.weight.grad)
    torch.testing.assert_close(*gradients)


def test_another_tower_takes_the_place_of_the_vision_transformer():
    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 32)

        def forward(self, images):
            return self.linear(images.mean((2, 3)))

    model = CLIP(**SMALL_MODEL, visual=Tower())
    assert model(torch.zeros(2, 3, 8, 8), tokenize(["a"]))[0].shape == (2, 1)
    assert not any(key.startswith("visual.conv1") for key in model.state_dict())


def _without(key):
    state = state_dict()
    del state[key]
    return state


@pytest.mark.parametrize(
    "state, message",
    [
        (_without("ln_final.bias"), "lacks ln_final.bias"),
        (_without("text_projection"), "lacks the key text_projection"),
        ({**state_dict(), "extra": torch.zeros(1)}, "has unknown extra"),
        ({**state_dict(), "visual.proj": torch.zeros(64, 33)}, r"visual.proj \(\(64, 33\) instead of \(64, 32\)\)"),
        ({**state_dict(), "text_projection": torch.zeros(3)}, "does not describe a CLIP that can be built"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_named(state, message):
    with pytest.raises(UserError, match=message):
        build_model(state)


def test_golden_settings_are_the_generated_ones():
    assert json.loads((GOLDEN / "zero_shot.json").read_text())["model"] == SMALL_MODEL
