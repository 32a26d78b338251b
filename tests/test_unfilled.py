"""Models read from a file skip random initialisation and equal those built with it."""

import pytest
import torch

import dinov3_adapter
from chexzero.model import build_model
from chexzero.models.towers import create_model
from dinov3_adapter.registry import SIZES, build_trunk, trunk_shapes
from dinov3_adapter.unfilled import Unfilled


@pytest.mark.parametrize(
    "vision", ["vit_b_32", "dinov3_tiny", "dinov3_tiny_hybrid", "timm:test_vit", "timm:test_resnet"]
)
def test_a_model_that_is_read_is_the_one_that_was_written(vision):
    written = create_model(vision, text_encoder="tiny", vision_weights="random", text_weights="random").eval()
    read = build_model(written.state_dict())
    for kind in ("named_parameters", "named_buffers"):  # buffers absent from state dicts are computed as usual
        found, wanted = dict(getattr(read, kind)()), dict(getattr(written, kind)())
        assert list(found) == list(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    images = torch.rand(2, 3, read.image_resolution, read.image_resolution)
    with torch.no_grad():
        assert torch.equal(read.encode_image(images), written.encode_image(images))


def test_a_tower_that_is_read_draws_nothing():
    tower = dinov3_adapter.build_vision_tower("dinov3_tiny", "random", embed_dim=32)
    before = torch.get_rng_state()
    again = dinov3_adapter.tower_from_state_dict(tower.state_dict())
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in tower.state_dict().items())


def test_shapes_are_those_of_a_drawn_trunk():
    size = SIZES["dinov3_tiny_hybrid"]
    assert trunk_shapes(size) == {name: value.shape for name, value in build_trunk(size).state_dict().items()}


def test_only_parameters_are_left_unfilled_and_only_within():
    with Unfilled():
        layer = torch.nn.BatchNorm2d(3)
        assert torch.equal(layer.running_var, torch.ones(3)) and torch.equal(torch.zeros(2).add_(1), torch.ones(2))
        layer.weight.requires_grad_(False)
    assert not layer.weight.requires_grad
    assert torch.equal(torch.nn.BatchNorm2d(3).weight, torch.ones(3))
