"""`--vision timm:NAME`: any timm model as the vision tower: training, fine-tuning, resuming, heat maps."""

import pandas as pd
import pytest
import torch
from training_corpus import flags, shrink, write_corpus

import run_train
from chexzero.common.errors import UserError
from chexzero.explore.heatmap import patch_features
from chexzero.model import build_model
from chexzero.models.checkpoints import describe, load_model
from chexzero.models.towers import create_model
from chexzero.training import finetune, step
from chexzero.training.config import parse_config

#: timm's own models for tests: a class token, the mean over patches, an attention pool, a convolutional network.
NAMES = ["test_vit", "test_vit2", "test_vit3", "test_convnext"]


@pytest.fixture(autouse=True)
def small_text(monkeypatch):
    shrink(monkeypatch.setitem)


def model_of(name: str, resolution: int = 64, **options):
    torch.manual_seed(0)
    options = {"vision_weights": "random", "text_encoder": "tiny", "text_weights": "random"} | options
    return create_model(f"timm:{name}", image_resolution=resolution, **options)


def images(resolution: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, resolution, resolution, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_a_bare_state_dict_says_which_model_it_is(name):
    model = model_of(name).eval()
    state = model.state_dict()
    assert describe(state).startswith(f"a model with timm's {name} ")
    again = build_model(state)
    assert again.image_resolution == 64
    assert torch.equal(again.encode_image(images()), model.encode_image(images()))


@pytest.mark.parametrize("name", NAMES)
def test_the_feature_of_a_place_is_pooled_as_the_image_is(name):
    whole, patches = model_of(name).eval(), None
    patches = patch_features(whole, images())
    side = 64 // (32 if name == "test_convnext" else 16)
    assert patches.shape == (2, side, side, 512) and torch.allclose(patches.norm(dim=-1), torch.ones(2, side, side))
    if name in ("test_vit2", "test_convnext"):  # one patch is pooled to itself, unlike test_vit's token
        small = model_of(name, 64 // side).eval()
        one = torch.nn.functional.normalize(small.encode_image(images(64 // side)), dim=-1)
        assert torch.allclose(patch_features(small, images(64 // side))[:, 0, 0], one, atol=1e-5)


def test_weights_from_a_file_at_another_resolution(tmp_path):
    import timm

    torch.manual_seed(3)
    whole = timm.create_model("test_vit")  # with its classifier, at its own 160 pixels
    torch.save(whole.state_dict(), tmp_path / "timm.pth")
    model = model_of("test_vit", 64, vision_weights=tmp_path / "timm.pth")
    assert torch.equal(model.visual.trunk.blocks[0].attn.qkv.weight, whole.blocks[0].attn.qkv.weight)
    assert model.visual.trunk.pos_embed.shape[1] < whole.pos_embed.shape[1]
    same = model_of("test_vit", 160, vision_weights=tmp_path / "timm.pth").eval()
    expected = whole.eval().forward_head(whole.forward_features(images(160)), pre_logits=True)
    assert torch.equal(same.visual.trunk(images(160)), expected)

    torch.save(model.state_dict(), tmp_path / "checkpoint.pt")  # one of ours, with its projection
    again = model_of("test_vit", 64, vision_weights=tmp_path / "checkpoint.pt")
    assert torch.equal(again.visual.head.proj.weight, model.visual.head.proj.weight)
    assert torch.equal(again.encode_image(images()), model.encode_image(images()))
    with pytest.raises(UserError, match="it lacks .*; name weights of timm's test_vit3"):
        model_of("test_vit3", vision_weights=tmp_path / "timm.pth")


def test_what_cannot_be_had_is_one_sentence():
    with pytest.raises(UserError, match="timm has no model 'vit_smal'"):
        model_of("vit_smal")
    with pytest.raises(UserError, match="multiple of 16"):
        model_of("test_vit", 60)
    with pytest.raises(UserError, match="is not a file; name one, or random"):
        model_of("test_vit", vision_weights="nowhere.pth")
    with pytest.raises(SystemExit):
        parse_config("", ["--vision", "resnet"])


@pytest.mark.parametrize("name", ["test_vit3", "test_convnext"])
def test_layers_are_frozen_and_slowed_from_below(name):
    model = model_of(name)
    config = parse_config("", ["--lr", "1", "--layer_decay", "0.5", "--freeze_blocks", "1"])
    finetune.prepare(model, config)
    groups = finetune.parameter_groups(model, config)
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    rates = {key: rate.get(id(parameter), 0) for key, parameter in model.named_parameters()}
    first, last = {
        "test_vit3": ("visual.trunk.patch_embed.proj.weight", "visual.trunk.attn_pool.kv.weight"),
        "test_convnext": ("visual.trunk.stem.0.weight", "visual.trunk.head.norm.weight"),
    }[name]
    assert rates[first] == 0 and rates[last] == rates["visual.head.proj.weight"] == 1
    blocks = [rates[key] for key in rates if ".blocks." in key and key.endswith("fc1.weight")]
    assert blocks == sorted(blocks) and len(set(blocks)) > 2 and blocks[0] < 0.5


@pytest.mark.parametrize("name, last", [("test_convnext", True), ("test_resnet", True), ("test_vit", False)])
def test_convolutions_lie_channels_last(name, last):
    """Convolutional towers are faster that way, with equal results; a vision transformer's bits do not change."""
    model = model_of(name)
    kernels = [value for value in model.visual.trunk.parameters() if value.ndim == 4 and min(value.shape[1:]) > 1]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) == last for kernel in kernels)
    first = model.eval().encode_image(images())
    model.visual.trunk.to(memory_format=torch.contiguous_format)
    assert torch.allclose(model.encode_image(images()), first, atol=1e-4)


@pytest.mark.parametrize(
    "vision, flags, what",
    [
        ("timm:test_resnet", ["--grad_accum", "2"], "which differ in its parts; leave out --grad_accum"),
        ("dinov3_tiny_hybrid", ["--freeze_blocks", "1"], "leave out --freeze_blocks"),
        ("timm:test_resnet", [], "ranks can share only on GPUs; train with one process"),
    ],
)
def test_batch_statistics_of_a_part_are_refused(vision, flags, what, monkeypatch):
    monkeypatch.setattr(step.distributed, "world_size", lambda: 1 if flags else 2)
    options = {"vision_weights": "random", "text_encoder": "tiny", "text_weights": "random", "image_resolution": 64}
    config = parse_config("", ["--vision", vision, *flags])
    with pytest.raises(UserError, match=f"{vision} normalises by the statistics of the batch, .*{what}"):
        step.for_training(create_model(vision, **options), torch.device("cpu"), config)


def test_lora_of_a_vision_transformer():
    pytest.importorskip("peft")
    config, model = parse_config("", ["--lora_rank", "2"]), model_of("test_vit")
    before, keys = model.encode_image(images()), model.state_dict().keys()
    finetune.prepare(model, config)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    after = model.encode_image(images())
    assert not torch.allclose(after, before, atol=1e-2)
    merged = finetune.merge_lora(model)
    assert merged.keys() == keys
    assert torch.allclose(build_model(merged).encode_image(images()), model.eval().encode_image(images()), atol=1e-4)
    with pytest.raises(UserError, match="--lora_rank is for"):
        finetune.prepare(model_of("test_convnext"), config)


def test_a_run_trains_validates_and_goes_on(tmp_path):
    root = write_corpus(tmp_path, train=24, valid=8)

    def train(name: str, steps: int) -> None:
        more = ["--max_steps", str(steps), "--val_interval", "4", "--log_interval", "1", "--resume", "auto"]
        argv = flags(root, name, "--vision", "timm:test_vit3", "--vision_weights", "random", *more)
        run_train.model_pipeline(run_train.parse_args(argv))

    train("whole", 8)
    train("halved", 4)
    train("halved", 8)
    one, other = (torch.load(root / f"runs/{name}/checkpoint.pt", weights_only=True) for name in ("whole", "halved"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    metrics = pd.read_csv(root / "runs/halved/metrics.csv")
    assert metrics["step"].tolist() == [0, 4, 8] and metrics["mean_14"].between(0, 1).all()
    assert load_model(root / "runs/halved/checkpoint_8.pt").image_resolution == 32
