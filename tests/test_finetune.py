"""Learning rates, freezing and LoRA: trained parameters change, frozen ones keep their bits."""

import pytest
import torch
from torch.nn import functional

from chexzero.common.errors import UserError
from chexzero.model import build_model
from chexzero.models import towers
from chexzero.models.towers import TextSize, create_model
from chexzero.training import finetune
from chexzero.training.config import parse_config
from dinov3_adapter import SIZES
from dinov3_adapter.registry import Size

DEPTH = 3


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
    options = {"embed_dim": 64, "num_heads": 2, "depth": DEPTH}
    monkeypatch.setitem(SIZES, "plain", Size("vit_base_patch16_dinov3_qkvb", 64, overrides=options))
    monkeypatch.setitem(SIZES, "gated", Size("vit_7b_patch16_dinov3", 64, overrides=options))
    monkeypatch.setitem(towers.TEXT_SIZES, "tiny", TextSize(width=64, heads=1, layers=2, weights="random"))
    monkeypatch.setitem(towers.CLIP_VISION, "vit_b_32", towers.ClipVision("ViT-B/32", 16, 64, layers=DEPTH, width=64))


def arguments(*flags):
    return parse_config("", ["--lr", "0.05", *flags])


def model_of(vision, **options):
    torch.manual_seed(0)
    return create_model(vision, text_encoder="tiny", vision_weights="random", image_resolution=64, **options)


def train(model, args, steps=1, optimizer=None):
    """Take steps as in the training loop; return the names of the changed parameters."""
    optimizer = optimizer or torch.optim.AdamW(finetune.parameter_groups(model, args))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(1)
    for step in range(steps):
        optimizer.zero_grad()
        logits, _ = model(torch.randn(4, 3, 64, 64), torch.randint(1, 49407, (4, 12)))
        functional.cross_entropy(logits, torch.arange(4)).backward()
        finetune.set_frozen(model, step, args)
        optimizer.step()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def names(model):
    return {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("vision", ["plain", "gated", "vit_b_32"])
def test_defaults_are_upstreams(vision):
    args, model = arguments(), model_of(vision)
    assert finetune.prepare(model, args) is model
    groups = finetune.parameter_groups(model, args)
    assert [group["lr"] for group in groups] == [0.05]
    assert all(one is two for one, two in zip(groups[0]["params"], model.parameters(), strict=True))
    assert train(model, args) == names(model)
    assert finetune.merge_lora(model).keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    "vision, block, embedding, norm, projection",
    [
        (
            "plain",
            "visual.trunk.blocks.{}.attn.q_bias",
            "visual.trunk.cls_token",
            "visual.trunk.norm.bias",
            "visual.head.proj.weight",
        ),
        (
            "vit_b_32",
            "visual.transformer.resblocks.{}.mlp.c_fc.weight",
            "visual.conv1.weight",
            "visual.ln_post.weight",
            "visual.proj",
        ),
    ],
)
def test_learning_rates(vision, block, embedding, norm, projection):
    args = arguments("--vision_lr", "0.01", "--projection_lr", "0.2", "--text_lr", "0", "--layer_decay", "0.5")
    model = model_of(vision)
    finetune.prepare(model, args)
    groups = finetune.parameter_groups(model, args)
    rate_of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    rates = {name: rate_of[id(parameter)] for name, parameter in model.named_parameters()}
    assert sum(len(group["params"]) for group in groups) == len(rates)
    assert groups[0]["lr"] == args.lr == rates["logit_scale"]
    assert rates[projection] == 0.2
    assert rates["text_projection"] == rates["transformer.resblocks.0.ln_1.bias"] == 0
    assert rates[norm] == 0.01
    assert [rates[block.format(i)] for i in range(DEPTH)] == [0.00125, 0.0025, 0.005]
    assert rates[embedding] == 0.000625
    changed = train(model, args)
    assert changed == {name for name in names(model) if rates[name]}


@pytest.mark.parametrize("vision", ["plain", "vit_b_32"])
@pytest.mark.parametrize("blocks", ["2", "all"])
@pytest.mark.parametrize("for_some_steps", [True, False])
def test_freezing(vision, blocks, for_some_steps):
    args = arguments("--freeze_blocks", blocks, *(["--freeze_steps", "2"] if for_some_steps else []))
    model = model_of(vision)
    finetune.prepare(model, args)
    optimizer = torch.optim.AdamW(finetune.parameter_groups(model, args))
    changed = train(model, args, steps=2, optimizer=optimizer)
    projection = {"visual.head.proj.weight", "visual.proj"}
    last = {
        name
        for name in names(model)
        if any(f"{part}.2." in name for part in ("visual.trunk.blocks", "visual.transformer.resblocks"))
        or ".norm." in name.removeprefix("visual.trunk")
        or "ln_post" in name
    }
    expected = {
        name
        for name in names(model)
        if not name.startswith("visual.") or name in projection or (blocks == "2" and name in last)
    }
    assert changed == expected
    later = train(model, args, steps=3, optimizer=optimizer)
    assert later == (names(model) if for_some_steps else expected)


@pytest.mark.parametrize("vision", ["plain", "gated"])
@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_lora(vision, grad_checkpointing):
    pytest.importorskip("peft")
    args = arguments("--lora_rank", "4", "--lora_alpha", "8")
    model = model_of(vision, grad_checkpointing=grad_checkpointing)
    plain = model.state_dict()
    images, texts = torch.randn(2, 3, 64, 64), torch.tensor([[49406, 320, 49407]] * 2)
    untouched = model(images, texts)[0]
    finetune.prepare(model, args)
    assert torch.allclose(model(images, texts)[0], untouched, atol=1e-5)  # a new update is zero

    changed = train(model, args, steps=2)
    trunk = {name for name in changed if name.startswith("visual.trunk.")}
    matrices = 5 if vision == "gated" else 4
    assert len(trunk) == DEPTH * matrices * 2
    assert all(".lora_" in name for name in trunk)
    assert {name for name in names(model) if not name.startswith("visual.trunk.")} == changed - trunk

    merged = finetune.merge_lora(model)
    assert merged.keys() == plain.keys()
    assert {key for key in plain if key.startswith("visual.trunk.") and not torch.equal(merged[key], plain[key])} == {
        name.split(".lora_")[0] + ".weight" for name in trunk
    }
    model.eval()
    again = build_model(merged)
    assert torch.allclose(again(images, texts)[0], model(images, texts)[0], atol=1e-4)
    assert not torch.allclose(again(images, texts)[0], untouched, atol=1e-2)
    assert model.state_dict().keys() != plain.keys()  # merging does not change the model


def test_lora_state_can_be_resumed():
    pytest.importorskip("peft")
    args = arguments("--lora_rank", "2")
    model = finetune.prepare(model_of("plain"), args)
    train(model, args)
    other = finetune.prepare(model_of("plain"), args)
    other.load_state_dict(model.state_dict(), strict=True)
    assert train(other, args) == train(model, args)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--layer_decay", "1.5"], "at most 1"),
        (["--layer_decay", "0"], "above 0"),
        (["--vision_lr", "-1"], "at least 0"),
        (["--text_lr", "nan"], "text_lr nan"),
        (["--freeze_blocks", "4"], "a tower of 3 blocks"),
        (["--freeze_steps", "5"], "needs --freeze_blocks"),
        (["--lora_rank", "-2"], "at least 0"),
        (["--freeze_blocks", "1", "--freeze_steps", "-1"], "at least 0"),
    ],
)
def test_wrong_settings(flags, message):
    with pytest.raises(UserError, match=message):
        finetune.prepare(model_of("plain"), arguments(*flags))


@pytest.mark.parametrize("blocks", ["-5", "half", "1.5"])
def test_a_number_of_blocks_that_is_none(blocks, capsys):
    with pytest.raises(SystemExit) as left:
        arguments("--freeze_blocks", blocks)
    assert left.value.code == 2 and f"'{blocks}' is neither a number of blocks" in capsys.readouterr().err


def test_lora_is_for_dinov3_towers():
    with pytest.raises(UserError, match="for the DINOv3 towers"):
        finetune.prepare(model_of("vit_b_32"), arguments("--lora_rank", "4"))


def test_it_is_said_how_much_learns(caplog):
    model = model_of("plain")
    caplog.set_level("INFO")
    finetune.prepare(model, arguments("--freeze_blocks", "all"))
    total = sum(parameter.numel() for parameter in model.parameters())
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert (
        learning < total and f"{learning / 1e6:.1f} of {total / 1e6:.1f} million parameters are trained" in caplog.text
    )
