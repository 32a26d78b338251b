"""Exports give the same logits in their library, loaded in a process without our code."""

import ast
import functools
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from chexzero.clip import tokenize
from chexzero.common.errors import UserError
from chexzero.common.labels import LABELS, MEAN_TITLES
from chexzero.export.__main__ import main
from chexzero.export.model_card import model_card
from chexzero.export.write import _hf_tokenizer, export
from chexzero.imaging.normalise import prepare
from chexzero.library import ChestCLIP
from chexzero.model import CLIP
from chexzero.models.checkpoints import load_model, read_state_dict
from chexzero.models.key_names import from_hf_clip, to_hf_clip
from chexzero.models.towers import TEXT_SIZES, TextSize, create_model
from chexzero.runs.run_folder import RunFolder
from dinov3_adapter import build_timm_tower, build_vision_tower

TEXTS = ["pleural effusion", "No acute cardiopulmonary process.", "a 3.5 cm mass; rib fracture?"]

LOADERS = {
    "hf": """
import transformers
from PIL import Image
kind = json.load(open(folder + "/config.json"))["architectures"][0]
model = getattr(transformers, kind).from_pretrained(folder).eval()
processor = transformers.VisionTextDualEncoderProcessor.from_pretrained(folder)
images = [Image.fromarray(image).convert("RGB") for image in data["images"]]
inputs = processor(text=texts, images=images, return_tensors="pt", padding=True)
with torch.no_grad():
    logits = model(**inputs).logits_per_image.numpy()
""",
    "open_clip": """
import open_clip
model = open_clip.create_model("local-dir:" + folder).eval()
tokens = open_clip.get_tokenizer("local-dir:" + folder)(texts)
with torch.no_grad():
    image = model.encode_image(torch.from_numpy(data["prepared"]), normalize=True)
    logits = model.logit_scale.exp() * image @ model.encode_text(tokens, normalize=True).T
    logits = (logits + (0 if model.logit_bias is None else model.logit_bias)).numpy()
""",
    "onnx": """
import onnxruntime
def tower(name, **inputs):
    return onnxruntime.InferenceSession(f"{folder}/{name}.onnx").run(None, inputs)[0]
about = json.load(open(folder + "/clip.json"))
cosines = tower("vision", images=data["images"].astype(np.float32)) @ tower("text", tokens=data["tokens"]).T
logits = about["logit_scale"] * cosines + about["logit_bias"]
""",
}
HEAD = "import json, sys, numpy as np, torch\nfolder, data, texts = sys.argv[1], np.load(sys.argv[2]), sys.argv[4:]\n"
TAIL = "\nassert 'chexzero' not in sys.modules\nnp.save(sys.argv[3], logits)\n"


def small_model(kind: str, size: str = "dinov3_tiny") -> CLIP:
    torch.manual_seed(0)
    text = dict(context_length=77, vocab_size=49408, transformer_width=128, transformer_heads=2, transformer_layers=2)
    if kind in ("vit", "siglip"):
        return CLIP(64, 224, 2, 128, 32, **text, logit_bias=-9.5 if kind == "siglip" else None).eval()
    if kind == "timm":
        tower = build_timm_tower("vit_tiny_patch16_224", "random", embed_dim=64)
        return CLIP(64, 224, 0, 0, None, **text, visual=tower).eval()
    tower = build_vision_tower(size, "random", image_resolution=96, embed_dim=64)
    for name, parameter in tower.named_parameters():
        if "bias" in name:  # biases start at zero, which would hide a mistake
            torch.nn.init.normal_(parameter, std=0.1)
    return CLIP(64, 96, 0, 0, None, **text, visual=tower).eval()


#: (kind, target) that share a process, for it takes seconds until the libraries are imported.
TOGETHER = (*((kind, "open_clip") for kind in ("vit", "dinov3", "timm", "siglip")), ("vit", "hf"), ("dinov3", "hf"))
RUN_EACH = """
import contextlib, os, runpy, sys
places, texts = sys.argv[1].split(os.pathsep), sys.argv[2:]
for place in places:
    os.chdir(place)
    sys.argv = ["run.py", place + "/out", "data.npz", "logits.npy", *texts]
    with open("stdout.txt", "w") as said, contextlib.redirect_stdout(said):
        runpy.run_path("run.py")
"""


def write_export(place: Path, kind: str, target: str) -> CLIP:
    """Write the export, inputs, and `run.py`, which computes logits in the library and runs the card's example."""
    place.mkdir()
    model = small_model(kind, "dinov3_vits" if (kind, target) == ("dinov3", "open_clip") else "dinov3_tiny")
    if (kind, target) == ("dinov3", "onnx"):  # tracing takes seconds per block
        model.visual.trunk.blocks = model.visual.trunk.blocks[:2]
    images = np.random.default_rng(0).integers(0, 256, (3, 320, 320), dtype=np.uint8)
    prepared, tokens = prepare(torch.from_numpy(images), model.image_resolution), tokenize(TEXTS)
    torch.save(model.state_dict(), place / "checkpoint.pt")
    card = model_card(model, target, place / "out", RunFolder(place), place / "checkpoint.pt", place)
    export(model, target, place / "out", card)
    np.savez(place / "data.npz", images=images, prepared=prepared.numpy(), tokens=tokens.long().numpy())
    Image.fromarray(np.tile(images[0], (2, 1))[:500]).save(place / "chest.png")
    lines = (place / "out" / "README.md").read_text().split("```python")[1].split("```")[0]
    (place / "run.py").write_text(HEAD + LOADERS[target] + TAIL + lines)
    return model


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """(kind, target), ... -> each one's folder, where the library has run, and our model."""

    @functools.cache
    def load(*exports: tuple[str, str]) -> dict[tuple[str, str], tuple[Path, CLIP]]:
        folder = tmp_path_factory.mktemp("exports")
        found = {one: (folder / "_".join(one), write_export(folder / "_".join(one), *one)) for one in exports}
        places = os.pathsep.join(str(place) for place, _ in found.values())
        offline = os.environ | {"HF_HUB_OFFLINE": "1"}  # the folder must be self-contained
        subprocess.run([sys.executable, "-c", RUN_EACH, places, *TEXTS], check=True, cwd=folder, env=offline)
        return found

    return load


@pytest.mark.timeout(900)  # a separate process imports a second library
@pytest.mark.parametrize(
    "kind, target",
    [*TOGETHER, *(pytest.param(kind, "onnx", marks=pytest.mark.long) for kind in ("dinov3", "vit", "siglip"))],
)
def test_another_library_gives_our_logits(loaded, kind, target):
    if target == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    one = kind, target
    place, model = loaded(*(TOGETHER if one in TOGETHER else [one]))[one]
    data = np.load(place / "data.npz")
    with torch.no_grad():
        expected = model(torch.from_numpy(data["prepared"]), torch.from_numpy(data["tokens"]))[0].numpy()
    assert np.abs(np.load(place / "logits.npy") - expected).max() < 1e-4
    assert float((place / "stdout.txt").read_text().split("edema:")[1]) == pytest.approx(
        ChestCLIP(model).probabilities([place / "chest.png"], ["Edema"]).item(), abs=1e-5
    )
    if target != "onnx":
        ours, again = model.state_dict(), read_state_dict(place / "out")
        assert ours.keys() == again.keys() and all(torch.equal(ours[key], again[key]) for key in ours)


@pytest.mark.parametrize("target", ["hf"])
def test_training_goes_on_from_an_export(tmp_path, monkeypatch, target):
    monkeypatch.setitem(TEXT_SIZES, "small", TextSize(width=128, heads=2, layers=2, weights="random"))
    model = small_model("dinov3")
    export(model, target, tmp_path / "out")
    again = create_model(
        "dinov3_tiny",
        text_encoder="small",
        vision_weights=tmp_path / "out",
        text_weights=tmp_path / "out",
        image_resolution=96,
        embed_dim=64,
    ).state_dict()
    assert all(torch.allclose(value, again[key]) for key, value in model.state_dict().items())
    with pytest.raises(UserError, match="those of dinov3_tiny; use --vision dinov3_tiny"):
        create_model("dinov3_vits", text_weights="random", vision_weights=tmp_path / "out")


@pytest.mark.parametrize(
    "target, part, key, value, word",
    [
        ("open_clip", None, "quick_gelu", False, "quick_gelu is False"),
        ("open_clip", "vision_cfg", "head_width", 80, "vision head is 80"),
        ("open_clip", "text_cfg", "heads", 4, "text heads is 4"),
        ("hf", "text_config", "hidden_act", "gelu", "activation is 'gelu'"),
        ("hf", "vision_config", "num_attention_heads", 4, "vision heads is 4"),
        ("hf", "vision_config", "num_hidden_layers", 3, "lacks weights"),
        ("hf", None, "model_type", "siglip", "holds no CLIP"),
    ],
)
def test_what_the_shapes_do_not_show_is_compared(tmp_path, target, part, key, value, word):
    """Weights that load but were trained for another function would silently give other features."""
    export(small_model("vit"), target, tmp_path / "out")
    path = tmp_path / "out" / {"hf": "config.json", "open_clip": "open_clip_config.json"}[target]
    config = json.loads(path.read_text())
    inner = config["model_cfg"] if target == "open_clip" else config
    (inner[part] if part else inner)[key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=word):
        load_model(tmp_path / "out")


def test_the_exported_tokenizer_needs_what_the_card_says():
    import ftfy

    tokenizer = _hf_tokenizer(small_model("vit"))
    for text, plain in [
        ("Heart &amp; lungs; nodule &lt; 3 cm.", False),
        ("the patient’s “old” ﬁbrosis", False),
        ("T1-2 naïve café\n\n  STABLE, 3.5cm", True),
    ]:
        wanted = [token for token in tokenize(text)[0].tolist() if token]
        assert tokenizer(html.unescape(ftfy.fix_text(text))).input_ids == wanted
        assert (tokenizer(text).input_ids == wanted) == plain


def test_names_go_there_and_back():
    state = small_model("vit").state_dict()
    again = from_hf_clip(to_hf_clip(state))
    assert again.keys() == state.keys() and all(torch.equal(state[key], again[key]) for key in state)


def test_what_a_target_cannot_carry_is_refused(tmp_path, monkeypatch):
    resnet = CLIP(64, 64, (1, 1, 1, 1), 16, None, 77, 49408, 64, 1, 1)
    for target in ("hf", "open_clip"):
        with pytest.raises(UserError, match="onnx"):
            export(resnet, target, tmp_path / target)
    with pytest.raises(UserError, match="none has this tower's shapes; .*--to hf"):
        export(small_model("dinov3"), "open_clip", tmp_path / "narrow")  # timm has no name for the small tower
    options = dict.fromkeys(("vision_weights", "text_weights"), "random") | {"text_encoder": "tiny"}
    hybrid = create_model("dinov3_tiny_hybrid", image_resolution=64, **options)
    for target, why in (("hf", "no convolutional stem, .* use `--to onnx`"), ("open_clip", "with `--to onnx`$")):
        with pytest.raises(UserError, match=why):
            export(hybrid, target, tmp_path / "hybrid")
    with pytest.raises(UserError, match="another model of timm.*--to onnx"):
        export(small_model("timm"), "hf", tmp_path / "timm")
    with pytest.raises(UserError, match="no bias on the logits"):
        export(small_model("siglip"), "hf", tmp_path / "siglip")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("chexzero.export.write.LARGEST_ONNX", 10_000)
    with pytest.raises(UserError, match="--to hf"):
        export(small_model("vit"), "onnx", tmp_path / "large")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        export(small_model("vit"), "hf", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_card_says_what_is_on_record_and_what_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "checkpoints" / "run"
    run.mkdir(parents=True)
    torch.save(small_model("vit").state_dict(), run / "checkpoint_20.pt")
    selection = {"checkpoint": "checkpoint_20.pt", "step": 20, "reason": "Highest."}
    (run / "selection.json").write_text(json.dumps(selection))
    (run / "config.json").write_text(json.dumps({"settings": {"vision": "vit_b_32", "cxr_filepath": "data/cxr.h5"}}))
    main(["--run", str(run), "--to", "open_clip", "first"])
    card = (tmp_path / "first" / "README.md").read_text()
    assert "Highest." in card and "Not evaluated yet" in card and "was not found in the run's data folder" in card

    label = {"auroc": 0.75, "lower": 0.7, "upper": 0.8, "n_pos": 3, "n": 9}
    values = {"labels": dict.fromkeys(LABELS, label)} | {
        key: value for mean in MEAN_TITLES for key, value in [(mean, 0.75), (f"{mean}_interval", [0.7, 0.8])]
    }
    values |= {"mean_14": None, "mean_14_interval": [None, None]}
    results = tmp_path / "results" / "run"
    results.mkdir(parents=True)
    (results / "metrics.json").write_text(
        json.dumps({"valid": values, "test": values, "selected": {"checkpoint": "checkpoint_20.pt"}})
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "build.json").write_text(
        json.dumps(
            {
                "drawn": True,
                "counts": {"train": {"rexgradient/train": {"images": 7, "studies": 5, "patients": 4}}},
                "overlap": {"sentence": "None found.", "dropped": 2, "recall": 0.99, "recall_lower_95": 0.95},
            }
        )
    )
    main(["--run", str(run), "--to", "open_clip", "second"])
    card = (tmp_path / "second" / "README.md").read_text()
    assert "| Edema | 0.750 (0.700 to 0.800) | 0.750 (0.700 to 0.800) | 3 of 9 |\n| Enlarged" in card
    assert "| **mean of all 14 labels** | n/a | n/a | |" in card
    assert "drawn phantoms" in card and "| train | rexgradient/train | 7 | 5 | 4 |" in card
    assert "is unknown, because the run recorded no hash of its training images" in card
    swapped = json.loads((results / "metrics.json").read_text()) | {
        "provenance": {"checkpoint_sha256": {"checkpoint_20.pt": "another"}}
    }
    (results / "metrics.json").write_text(json.dumps(swapped))
    main(["--run", str(run), "--to", "open_clip", "third"])
    assert "Not evaluated yet" in (tmp_path / "third" / "README.md").read_text()
    assert "None found.\nIt found 99.0 % of the disguised copies that it planted (95 % lower bound 95.0 %)." in card


def test_a_run_without_a_selection_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="run_train.py"):
        main(["--run", str(tmp_path), "--to", "hf", str(tmp_path / "out")])


def test_a_poisoned_run_writes_no_markup_no_code_and_no_folder(tmp_path, monkeypatch):
    """Every text of the records and every folder name is untrusted input."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    evil = "<script>alert(1)</script>[x](javascript:alert(1))\n\n# head `code` | cell"
    data = tmp_path / "private" / "data"
    data.mkdir(parents=True)
    counts = {evil: {evil: {"images": evil, "studies": 1, "patients": 1}}}
    overlap = {"sentence": evil + f" {data}/cxr.h5", "recall": 0.5, "dropped": evil}
    (data / "build.json").write_text(json.dumps({"counts": counts, "overlap": overlap}))
    settings = {"cxr_filepath": str(data / "cxr.h5"), "vision": evil, evil: evil, "valid": str(data / "valid.h5")}
    run = RunFolder(tmp_path / "run", {"settings": settings}, {"checkpoint": "checkpoint.pt", "reason": evil})
    checkpoint = tmp_path / "checkpoint.pt"
    torch.save(small_model("vit").state_dict(), checkpoint)
    name = 'x"; import os; os.system("touch harm") #\n'
    for target in LOADERS:
        card = model_card(small_model("vit"), target, tmp_path / name, run, checkpoint, tmp_path / "results")
        code = card.split("```python")[1].split("```")[0]
        assert [ast.literal_eval(node.value) for node in ast.parse(code).body if "folder =" in ast.unparse(node)] == [
            name
        ]
        assert "<script" not in card and not re.search(r"(?<!\\)\[x(?<!\\)\]", card) and "\n# head" not in card
        assert str(tmp_path) not in card and "private" not in card
        full = model_card(small_model("vit"), target, tmp_path / name, run, checkpoint, tmp_path / "r", full_paths=True)
        assert str(data / "valid.h5") in full


@pytest.mark.long
def test_onnx_files_hold_no_folder_of_this_machine(loaded):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    place, _ = loaded(("dinov3",), "onnx")["dinov3"]
    for name in ("vision.onnx", "text.onnx"):
        assert onnx.load(place / "out" / name).graph.node
        for folder in (Path(sys.prefix), Path(torch.__file__).parent, Path(__file__).parent.parent, place):
            assert str(folder).encode() not in (place / "out" / name).read_bytes()
