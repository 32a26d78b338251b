"""The DINOv3 tower against transformers' model, from every layout of weights, and the conversion back."""

import sys

import pytest
import timm
import torch
from dinov3_files import cls_feature, meta_layout, random_model, small_model, small_size
from safetensors.torch import save_file
from transformers import DINOv3ViTModel

from benchmarks import dinov3 as benchmark
from chexzero.common.files import read_json
from dinov3_adapter import SIZES, AdapterError, build_vision_tower, to_huggingface, tower_from_state_dict
from dinov3_adapter.convert import from_huggingface
from dinov3_adapter.registry import _whiten, build_trunk, trunk_shapes
from dinov3_adapter.weights import name_of

TOLERANCE = 1e-5


@pytest.fixture(params=["plain", "gated", "no_bias"])
def kind(request, monkeypatch):
    monkeypatch.setitem(SIZES, "small", small_size(request.param))
    return request.param


@pytest.mark.parametrize("layout", ["huggingface folder", "huggingface file", "meta", "timm", "ours"])
@pytest.mark.parametrize("shape", [(224, 224), (320, 320), (160, 256)], ids=str)
def test_cls_feature_equals_transformers(kind, layout, shape, tmp_path):
    model = small_model(kind)
    tower = build_vision_tower("small", save(model, layout, tmp_path)).eval()
    images = torch.randn(2, 3, *shape)
    expected = cls_feature(model, images)
    with torch.no_grad():
        features = tower(images)
    assert (expected[0] - expected[1]).abs().max() > 0.01  # the two images do differ
    assert (features - expected).abs().max() < TOLERANCE


def save(model, layout, folder):
    """Write the model's weights in a layout, under a name that does not reveal it."""
    if layout.startswith("huggingface"):
        model.save_pretrained(folder / "dinov3_vitl16.pth")
        return folder / "dinov3_vitl16.pth" / ("" if layout.endswith("folder") else "model.safetensors")
    if layout == "meta":
        torch.save(meta_layout(model), folder / "weights.bin")
        return folder / "weights.bin"
    trunk = build_vision_tower("small", save(model, "meta", folder)).trunk.state_dict()
    if layout == "timm":
        save_file(trunk, folder / "weights.bin")
        return folder / "weights.bin"
    ours = {f"visual.trunk.{key}": value for key, value in trunk.items()}
    ours |= {"visual.image_resolution": torch.tensor(224), "logit_scale": torch.tensor(4.6)}
    torch.save({"model": ours, "step": 3}, folder / "last.pt")
    return folder / "last.pt"


@pytest.mark.parametrize("size", [224, 320])
def test_true_base_size_equals_transformers(base_model, base_tower, size):
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        assert (base_tower(images) - cls_feature(base_model, images)).abs().max() < TOLERANCE


@pytest.fixture(scope="module")
def base_model():
    return random_model(1, hidden_size=768, num_attention_heads=12, num_hidden_layers=12, intermediate_size=3072)


@pytest.fixture(scope="module")
def base_tower(base_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    base_model.save_pretrained(folder)
    tower = build_vision_tower("dinov3_vitb", folder).eval()
    torch.save(meta_layout(base_model), folder / "meta.pth")
    from_meta = build_vision_tower("dinov3_vitb", folder / "meta.pth").state_dict()
    assert all(torch.equal(value, from_meta[key]) for key, value in tower.state_dict().items())
    return tower


def test_base_tower_has_857_hundred_thousand_parameters(base_tower):
    assert round(sum(parameter.numel() for parameter in base_tower.parameters()) / 1e6, 1) == 85.7


@pytest.mark.parametrize(
    "name, millions",
    [
        ("dinov3_vits", 21.6),
        ("dinov3_vitsplus", 28.7),
        ("dinov3_vitb", 85.7),
        ("dinov3_vitl", 303.1),
        ("dinov3_vithplus", 840.6),
        ("dinov3_vit7b", 6716.0),
    ],
)
def test_sizes_are_those_of_the_paper(name, millions):
    shapes = trunk_shapes(SIZES[name])
    assert sum(shape.numel() for shape in shapes.values()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert shapes["norm.weight"] == (SIZES[name].width,)


def test_huggingface_round_trip_is_bit_equal(kind, tmp_path):
    model = small_model(kind)
    model.save_pretrained(tmp_path)
    trunk = build_vision_tower("small", tmp_path).trunk.state_dict()
    there = to_huggingface(trunk)
    again = from_huggingface(there)
    again.pop("mask_token")
    assert again.keys() == trunk.keys()
    assert all(torch.equal(value, again[key]) for key, value in trunk.items())

    saved = {key.removeprefix("model."): value for key, value in model.state_dict().items()}
    assert there.keys() == saved.keys()
    assert all(torch.equal(value, there[key]) for key, value in saved.items() if "mask_token" not in key)

    fresh = DINOv3ViTModel(model.config)
    save_file(there, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = DINOv3ViTModel.from_pretrained(tmp_path).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(cls_feature(loaded, images), cls_feature(model, images))
    assert not torch.equal(cls_feature(fresh.eval(), images), cls_feature(model, images))


def test_file_without_biases_equals_the_same_with_zeros(monkeypatch, tmp_path):
    monkeypatch.setitem(SIZES, "small", small_size("plain"))
    state = meta_layout(small_model("plain"))
    bare = {key: value for key, value in state.items() if ".qkv.bias" not in key}
    zero = {key: value * 0 if key.endswith("qkv.bias") else value for key, value in state.items()}
    torch.save(bare, tmp_path / "bare.pth")
    torch.save(zero, tmp_path / "zero.pth")
    images = torch.randn(1, 3, 64, 64)
    one, two = (build_vision_tower("small", tmp_path / name).eval()(images) for name in ("bare.pth", "zero.pth"))
    assert torch.equal(one, two)


def test_half_precision_weights_are_read_as_float32(monkeypatch, tmp_path):
    monkeypatch.setitem(SIZES, "small", small_size("plain"))
    model = small_model("plain")
    torch.save({key: value.bfloat16() for key, value in meta_layout(model).items()}, tmp_path / "half.pth")
    tower = build_vision_tower("small", tmp_path / "half.pth")
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}


def test_state_dict_describes_itself():
    tower = build_vision_tower("dinov3_tiny", "random", image_resolution=320, embed_dim=48).eval()
    state = tower.state_dict()
    again = tower_from_state_dict(state).eval()
    assert int(again.image_resolution) == 320
    assert again.head.proj.weight.shape == (48, SIZES["dinov3_tiny"].width)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(images), tower(images))


def test_projection_comes_with_our_checkpoint(tmp_path):
    tower = build_vision_tower("dinov3_tiny", "random", embed_dim=48)
    torch.save({f"visual.{key}": value for key, value in tower.state_dict().items()}, tmp_path / "ours.pt")
    again = build_vision_tower("dinov3_tiny", tmp_path / "ours.pt", embed_dim=48)
    assert torch.equal(again.head.proj.weight, tower.head.proj.weight)
    without = build_vision_tower("dinov3_tiny", tmp_path / "ours.pt")
    assert without(torch.randn(1, 3, 32, 32)).shape == (1, tower.head.proj.in_features)
    with pytest.raises(AdapterError, match="projection of shape"):
        build_vision_tower("dinov3_tiny", tmp_path / "ours.pt", embed_dim=64)


def test_image_sizes_that_do_not_fit():
    with pytest.raises(AdapterError, match="not a multiple of 16"):
        build_vision_tower("dinov3_tiny", "random", image_resolution=250)
    with pytest.raises(AdapterError, match="100 x 96 pixels"):
        build_vision_tower("dinov3_tiny", "random")(torch.zeros(1, 3, 100, 96))


def test_grad_checkpointing_changes_memory_not_gradients():
    plain = build_vision_tower("dinov3_tiny", "random", embed_dim=8)
    saving = tower_from_state_dict(plain.state_dict())
    saving.set_grad_checkpointing(True)
    images = torch.randn(2, 3, 64, 64)
    kept = []
    for tower in (plain, saving):
        tower.train()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            tower(images).square().sum().backward()
        kept.append(sum(sizes))
    for one, two in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    assert kept[1] < kept[0]


def test_drop_path_acts_only_while_training():
    tower = build_vision_tower("dinov3_tiny", "random", drop_path=0.5)
    images = torch.randn(1, 3, 32, 32).expand(8, -1, -1, -1)
    assert tower.train()(images).std(dim=0).max() > 1e-3
    assert tower.eval()(images).std(dim=0).max() < 1e-5


def test_benchmark_runs_anywhere(monkeypatch, tmp_path):
    """`python -m benchmarks.dinov3` at a size for a quick look; bf16 features are within 1 in 100 of fp32."""
    flags = [
        "--vision",
        "dinov3_tiny",
        "--image_resolution",
        "32",
        "--batch_size",
        "2",
        "--repeats",
        "1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "rates.json"),
    ]
    monkeypatch.setattr(sys, "argv", ["dinov3", *flags])
    benchmark.main()
    report = read_json(tmp_path / "rates.json")
    assert 0 < report["bf16_relative_error"] < 1e-2
    assert [(rate["precision"], rate["kind"]) for rate in report["rates"]] == [
        ("fp32", "forward"),
        ("fp32", "training"),
        ("bf16", "forward"),
        ("bf16", "training"),
    ]
    forward, training = report["rates"][:2]
    assert (
        2 < training["tflops"] * forward["images_per_second"] / (forward["tflops"] * training["images_per_second"]) <= 3
    )  # operations of a training step over those forward


@pytest.mark.gpu
def test_bf16_features_on_a_gpu():
    """Noise images and random weights are the worst case; timm's own ViT gives the usual error for comparison."""
    torch.manual_seed(0)
    images = torch.randn(16, 3, 224, 224, device="cuda")
    plain = timm.create_model("vit_base_patch16_224", num_classes=512).cuda()
    tower = build_vision_tower("dinov3_vitb", "random", embed_dim=512).cuda()
    ours, usual = benchmark.relative_error(tower, images), benchmark.relative_error(plain, images)
    print(f"bf16 against fp32: {ours:.4f}, timm's ViT-B {usual:.4f}")
    assert ours < 2 * usual < 0.04


def test_blocks_behind_convolutions():
    """Tokens of 16 x 16 pixels at any size; a bare state dict is recognised and not mistaken for another size."""
    torch.manual_seed(0)
    tower = build_vision_tower("dinov3_tiny_hybrid", "random", image_resolution=96, embed_dim=48)
    images = torch.randn(2, 3, 96, 96)
    assert tower.patch_size == 16 and tower.trunk.patch_embed(images).shape == (2, 6, 6, 64)
    assert tower(torch.randn(2, 3, 128, 96)).shape == (2, 48)
    with pytest.raises(AdapterError, match="not a multiple of 16"):
        build_vision_tower("dinov3_tiny_hybrid", "random", image_resolution=100)
    state = tower.eval().state_dict()
    assert name_of({key[6:]: value for key, value in state.items() if key.startswith("trunk.")}) == "dinov3_tiny_hybrid"
    again = tower_from_state_dict(state).eval()
    assert torch.equal(again(images), tower(images))
    tower.trunk.patch_embed.to(memory_format=torch.contiguous_format)
    assert torch.allclose(again(images), tower(images), atol=1e-4)


def test_patch_dropout_takes_the_places_of_the_patches_along(monkeypatch):
    """Permute the patches and drop none: the result changes unless rotary positions are permuted with them."""
    torch.manual_seed(0)
    tower = build_vision_tower("dinov3_tiny", "random", image_resolution=64, patch_dropout=0.5)
    images = torch.randn(2, 3, 64, 64)
    plain = tower.eval()(images)
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    prefix = tower.trunk.num_prefix_tokens

    def shuffled(tokens):
        kept = tokens[:, prefix:].gather(1, order[:, :, None].expand(-1, -1, tokens.shape[-1]))
        return torch.cat([tokens[:, :prefix], kept], 1), order

    monkeypatch.setattr(tower.trunk.patch_drop, "forward", shuffled)
    assert torch.allclose(tower(images), plain, atol=1e-5)
    monkeypatch.undo()
    lengths = []
    tower.train().trunk.blocks[0].register_forward_pre_hook(lambda _block, inputs: lengths.append(inputs[0].shape[1]))
    tower(images), tower.eval()(images)
    assert lengths == [prefix + 8, prefix + 16]


def test_a_random_tower_answers_to_fine_detail_as_to_the_mean_of_a_patch():
    """On pictures whose amplitude falls with frequency as in radiographs; randomly drawn filters would fail."""
    torch.manual_seed(0)
    frequency = torch.fft.fftfreq(128)[:, None].hypot(torch.fft.rfftfreq(128)) * 128
    pictures = torch.fft.irfft2(torch.fft.rfft2(torch.randn(24, 128, 128)) / (1 + frequency) ** 1.8)
    pictures = (pictures / pictures.std())[:, None].expand(-1, 3, -1, -1)
    tower = build_vision_tower("dinov3_tiny", "random")
    drawn = build_trunk(SIZES["dinov3_tiny"])
    spread = []
    for trunk in (tower.trunk, drawn):
        answers = trunk.patch_embed(pictures).flatten(0, -2)
        values = torch.linalg.svdvals(answers - answers.mean(0))
        spread.append(float(values[0] / values[len(values) // 2]))
    assert spread[0] < 5 < 20 < spread[1]


def test_a_random_towers_first_filters_are_orthogonal_cosines_of_falling_strength():
    weight = torch.full((70, 3, 8, 8), 7.0)
    _whiten(weight)
    assert (weight[64:] == 7).all() and torch.equal(weight[:64, 0], weight[:64, 2])  # 8 x 8 patches have 64 cosines
    filters = weight[:64].sum(1).flatten(1).double()
    products = filters @ filters.T
    assert torch.allclose(products, products.diag().diag(), atol=1e-3)  # of up to 52
    assert products[0, 0].item() == pytest.approx(1 / 11**2)  # the mean of the patch, whose amplitude is 11
    frequency = torch.tensor([(n // 8) ** 2 + (n % 8) ** 2 for n in range(64)]).sqrt().sort().values.double()
    assert torch.allclose(products.diag().sqrt(), (1 + 2 * frequency**1.6) / 11, rtol=1e-4)


@pytest.mark.parametrize("side", [0, -16, -1, 15, 17])
def test_a_resolution_is_a_positive_multiple_of_the_patch(side):
    with pytest.raises(AdapterError, match=f"the image resolution {side} is not a multiple of 16"):
        build_vision_tower("dinov3_tiny", image_resolution=side)
    assert int(build_vision_tower("dinov3_tiny", image_resolution=16).image_resolution) == 16


@pytest.mark.parametrize("shape", [(32, 24), (24, 32), (24, 24)])
def test_images_that_do_not_divide_into_patches_are_refused(shape):
    with pytest.raises(AdapterError, match=f"images of {shape[0]} x {shape[1]} pixels do not divide"):
        build_vision_tower("dinov3_tiny", image_resolution=32)(torch.zeros(1, 3, *shape))
