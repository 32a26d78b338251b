"""Models built by `create_model`: shapes, weights from each source, which tensors are loaded and which are not."""

import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from chexzero.common.errors import UserError
from chexzero.model import CLIP, build_model
from chexzero.models import published, towers
from chexzero.models.checkpoints import load_model
from chexzero.models.towers import TEXT_SIZES, VISION_CHOICES, TextSize, create_model
from dinov3_adapter import SIZES

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[49406, 320, 1929, 49407], [49406, 2242, 49407, 0]])


@pytest.fixture(autouse=True)
def small_text(monkeypatch):
    """Use a narrower text encoder for the tests of weights: CheXzero's has 38 million parameters."""
    monkeypatch.setitem(TEXT_SIZES, "small", TextSize(width=64, heads=1, layers=2, weights=towers.OPENAI))


def small_clip(embed_dim=512, seed=5):
    torch.manual_seed(seed)
    model = CLIP(embed_dim, 64, 2, 128, 16, 77, towers.VOCABULARY_SIZE, 64, 1, 2)
    model.logit_scale.data.fill_(3.5)
    return model


def is_text(key):
    return not key.startswith("visual.") and key != "logit_scale"


def test_choices():
    assert VISION_CHOICES[0] == "vit_b_32"
    assert (
        {
            "dinov3_tiny",
            "dinov3_tiny_hybrid",
            "dinov3_vits",
            "dinov3_vitsplus",
            "dinov3_vitb",
            "dinov3_vitl",
            "dinov3_vithplus",
            "dinov3_vit7b",
        }
        == {name for name in VISION_CHOICES if name.startswith("dinov3")}
        == set(SIZES)
    )


@pytest.mark.parametrize(
    "vision, text, resolution",
    [("vit_b_32", "tiny", 224), ("dinov3_tiny", "tiny", 64), ("dinov3_tiny", "chexzero", 96)],
)
def test_one_state_dict_holds_all(vision, text, resolution, tmp_path):
    model = create_model(
        vision, text_encoder=text, vision_weights="random", text_weights="random", image_resolution=resolution
    ).eval()
    images = torch.randn(2, 3, resolution, resolution)
    assert model.encode_image(images).shape == model.encode_text(TOKENS).shape == (2, 512)
    expected = model(images, TOKENS)
    torch.save(model.state_dict(), tmp_path / "checkpoint.pt")
    loaded = load_model(tmp_path / "checkpoint.pt")
    assert loaded.image_resolution == resolution
    assert isinstance(loaded.image_resolution, int)
    for one, two in zip(loaded(images, TOKENS), expected, strict=True):
        assert torch.equal(one, two)


def test_dinov3_model_keys():
    model = create_model("dinov3_tiny", text_encoder="tiny")  # no published weights: random without a warning
    keys = set(model.state_dict())
    assert {
        "visual.trunk.cls_token",
        "visual.head.proj.weight",
        "visual.image_resolution",
        "text_projection",
        "logit_scale",
    } <= keys
    assert {key for key in keys if is_text(key)} == {key for key in small_clip().state_dict() if is_text(key)} | {
        key for key in keys if key.startswith("transformer.resblocks.")
    }


def test_random_init_is_upstreams_model():
    model = create_model(random_init=True)
    assert model.image_resolution == 320
    assert model.visual.conv1.weight.shape == (768, 3, 16, 16)
    assert model.text_projection.shape == (512, 768)
    assert create_model("dinov3_tiny", random_init=True).text_projection.shape == (512, 512)


@pytest.mark.parametrize("name", ["checkpoint.pt", "half.pt", "model.safetensors", "last.pt", "parallel.pt"])
def test_text_side_alone_is_taken(name, tmp_path, caplog):
    source = small_clip()
    state = {key: value.clone() for key, value in source.state_dict().items()}
    path = tmp_path / name
    if name == "half.pt":
        state = {key: value.half() for key, value in state.items()}
    if name == "parallel.pt":
        state = {f"module.{key}": value for key, value in state.items()}
    save_file(state, path) if name.endswith(".safetensors") else torch.save(
        {"model": state} if name == "last.pt" else state, path
    )
    with caplog.at_level(logging.INFO):
        model = create_model("dinov3_tiny", text_encoder="small", text_weights=path)
    assert f"{path}: text encoder" in caplog.text
    assert "only the text side is used" in caplog.text
    tolerance = 1e-2 if name == "half.pt" else 0
    assert torch.allclose(model.encode_text(TOKENS), source.encode_text(TOKENS), atol=tolerance)
    assert model.logit_scale.item() == pytest.approx(2.659, abs=1e-3)  # ln(1 / 0.07): not trained together


def test_both_towers_from_one_file_is_that_model(tmp_path, monkeypatch):
    monkeypatch.setitem(towers.CLIP_VISION, "vit_b_32", towers.ClipVision("ViT-B/32", 16, 64, layers=2, width=128))
    source = small_clip().eval()
    torch.save(source.state_dict(), tmp_path / "clip.pt")
    options = dict(text_encoder="small", vision_weights=tmp_path / "clip.pt", text_weights=str(tmp_path / "clip.pt"))
    model = create_model("vit_b_32", **options).eval()
    assert torch.equal(model(IMAGES, TOKENS)[0], source(IMAGES, TOKENS)[0])

    larger = create_model("vit_b_32", image_resolution=96, **options)
    assert larger.visual.positional_embedding.shape == (37, 128)
    assert torch.equal(larger.visual.positional_embedding[0], source.visual.positional_embedding[0])
    vision_only = create_model("vit_b_32", **{**options, "text_weights": "random"})
    assert torch.equal(vision_only.encode_image(IMAGES), source.encode_image(IMAGES))
    assert not torch.equal(vision_only.text_projection, source.text_projection)


def test_published_weights_are_those_of_openai(monkeypatch, tmp_path):
    """Without flags for weights both towers are OpenAI's, as upstream's."""
    monkeypatch.setitem(towers.CLIP_VISION, "vit_b_32", towers.ClipVision("ViT-B/32", 16, 64, layers=2, width=128))
    source, asked = small_clip().eval(), []
    torch.save(source.state_dict(), tmp_path / "ViT-B-32.pt")
    monkeypatch.setattr(towers, "weights_file", lambda name: (asked.append(name), tmp_path / "ViT-B-32.pt")[1])
    model = create_model(text_encoder="small").eval()
    assert asked == ["ViT-B/32"]
    assert torch.equal(model(IMAGES, TOKENS)[0], source(IMAGES, TOKENS)[0])
    with_dinov3 = create_model("dinov3_tiny", text_encoder="small", text_weights="openai")
    assert torch.equal(with_dinov3.encode_text(TOKENS), source.encode_text(TOKENS))


def test_going_on_from_our_own_checkpoint(tmp_path):
    source = create_model("dinov3_tiny", text_encoder="tiny", image_resolution=64).eval()
    source.logit_scale.data.fill_(3.5)
    torch.save(source.state_dict(), tmp_path / "checkpoint.pt")
    weights = dict(vision_weights=tmp_path / "checkpoint.pt", text_weights=tmp_path / "checkpoint.pt")
    model = create_model("dinov3_tiny", text_encoder="tiny", image_resolution=64, **weights).eval()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in source.state_dict().items())


def test_shorter_and_longer_context(tmp_path):
    source = small_clip()
    torch.save(source.state_dict(), tmp_path / "clip.pt")
    options = dict(text_encoder="small", text_weights=tmp_path / "clip.pt")
    shorter = create_model("dinov3_tiny", context_length=8, **options)
    assert torch.equal(shorter.encode_text(TOKENS), source.encode_text(TOKENS))
    with pytest.raises(UserError, match="choose --context_length 77 or less"):
        create_model("dinov3_tiny", context_length=100, **options)
    longer = create_model("dinov3_tiny", context_length=256, text_positions="new", **options)
    assert torch.equal(longer.encode_text(TOKENS), source.encode_text(TOKENS))
    assert longer.positional_embedding[77:].std() > 0
    longer = create_model("dinov3_tiny", context_length=153, text_positions="interpolate", **options)
    assert torch.allclose(longer.positional_embedding[::2], source.positional_embedding, atol=1e-6)
    middle = (source.positional_embedding[3] + source.positional_embedding[4]) / 2
    assert torch.allclose(longer.positional_embedding[7], middle, atol=1e-6)


def test_open_clip_name(monkeypatch, tmp_path):
    source = small_clip()
    torch.save(source.state_dict(), tmp_path / "open_clip.pt")
    monkeypatch.setattr(published, "download_pretrained", lambda config: str(tmp_path / "open_clip.pt"))
    model = create_model("dinov3_tiny", text_encoder="small", text_weights="open_clip:ViT-B-32/laion400m_e32")
    assert torch.equal(model.encode_text(TOKENS), source.encode_text(TOKENS))


@pytest.mark.parametrize(
    "name, reason",
    [
        ("ViT-B-32/laion2b_s34b_b79k", "not trained with QuickGELU"),
        ("ViT-B-32/nonsense", "not published"),
        ("nonsense", "not published"),
    ],
)
def test_open_clip_name_that_does_not_fit(name, reason):
    with pytest.raises(UserError, match=reason) as caught:
        create_model("dinov3_tiny", text_encoder="small", text_weights=f"open_clip:{name}")
    assert "choose one of open" in str(caught.value)


def test_without_a_connection(monkeypatch):
    def offline(*_, **__):
        raise FileNotFoundError("no route")

    monkeypatch.setitem(towers.CLIP_VISION, "vit_b_32", towers.ClipVision("ViT-B/32", 16, 64, layers=2, width=128))
    monkeypatch.setitem(TEXT_SIZES, "chexzero", TEXT_SIZES["small"])
    monkeypatch.setattr(published, "download_pretrained", offline)
    with pytest.raises(UserError, match="name it with --text_weights FILE"):
        create_model("dinov3_tiny", text_weights="open_clip:ViT-B-32/laion400m_e32")

    def not_there(name):
        raise UserError("the weights of ViT-B/32 are not in ~/.cache/clip; fetch ViT-B-32.pt and put it there")

    monkeypatch.setattr(towers, "weights_file", not_there)
    with pytest.raises(UserError, match="ViT-B-32.pt .* --vision_weights FILE"):
        create_model()
    with pytest.raises(UserError, match="ViT-B-32.pt .* --text_weights FILE"):
        create_model("dinov3_tiny")
    create_model("dinov3_tiny", vision_weights="random")  # needs no published weights


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(vision="resnet"), "choose one of vit_b_32"),
        (dict(text_encoder="huge"), "choose one of chexzero, tiny"),
        (dict(image_resolution=230), "multiple of 16"),
        (dict(vision="vit_b_32", vision_weights="random", image_resolution=230), "multiple of the patch size 32"),
        (dict(vision="vit_b_32", drop_path=0.1), "for the DINOv3 towers"),
        (dict(vision_weights="nowhere.pth"), "no such file"),
        (dict(text_weights="nowhere.pt"), "is not a file or folder; name a checkpoint"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(UserError, match=message):
        create_model(**{"vision": "dinov3_tiny", "text_encoder": "tiny", **options})


def test_weights_of_another_model(tmp_path):
    torch.save(small_clip().state_dict(), tmp_path / "clip.pt")
    with pytest.raises(UserError, match="does not fit --text_encoder chexzero: it lacks"):
        create_model("dinov3_tiny", text_weights=tmp_path / "clip.pt")
    with pytest.raises(UserError, match="does not fit --vision vit_b_32"):
        create_model("vit_b_32", text_encoder="small", vision_weights=tmp_path / "clip.pt")
    with pytest.raises(UserError, match="no DINOv3 vision transformer"):
        create_model("dinov3_tiny", vision_weights=tmp_path / "clip.pt")
    tower = create_model("dinov3_tiny", text_encoder="tiny").visual.trunk.state_dict()
    torch.save(tower, tmp_path / "tower.pt")
    with pytest.raises(UserError, match="a vision tower alone.*does not fit --text_encoder tiny: it lacks"):
        create_model("dinov3_tiny", text_encoder="tiny", text_weights=tmp_path / "tower.pt")


@pytest.mark.parametrize("blocks", [2, pytest.param(12, marks=pytest.mark.long)])
def test_base_model_trains_on_the_cpu(blocks, monkeypatch):
    """Full width, forward and backward: every parameter gets a gradient and changes."""
    monkeypatch.setitem(SIZES, "dinov3_vitb", replace(base := SIZES["dinov3_vitb"], overrides={"depth": blocks}))
    monkeypatch.setitem(TEXT_SIZES, "chexzero", replace(TEXT_SIZES["chexzero"], layers=blocks))
    assert not base.overrides
    torch.manual_seed(0)
    model = create_model("dinov3_vitb", vision_weights="random", text_weights="random")
    assert len(model.visual.trunk.blocks) == len(model.transformer.resblocks) == blocks
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    logits, _ = model(torch.randn(2, 3, 224, 224), TOKENS)
    torch.nn.functional.cross_entropy(logits, torch.arange(2)).backward()
    optimizer.step()
    unchanged = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert unchanged == []
    assert build_model(model.state_dict()).image_resolution == 224
