"""Generated inputs on which upstream's implementation and this one are compared: fixed seeds, no real data."""

import json
from pathlib import Path

import cv2
import h5py
import numpy as np
import pandas as pd

from chexzero.common.labels import LABELS

#: A CLIP small enough to compare in seconds, with upstream's constructor arguments.
SMALL_MODEL = {
    "embed_dim": 32,
    "image_resolution": 224,
    "vision_layers": 2,
    "vision_width": 64,
    "vision_patch_size": 32,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 64,
    "transformer_heads": 1,
    "transformer_layers": 2,
}
N_IMAGES = 8
STEPS = 6
RATES = {"sgd": 0.01, "adam": 0.001}
TEMPLATES = ("{}", "findings of {}", "{} is seen")
ALTERNATIVES = {"Edema": ["pulmonary edema", "fluid overload"], "Fracture": ["broken rib"]}

_WORDS = """no acute cardiopulmonary process small left right pleural effusion edema mild moderate stable cardiomegaly
1. 2. ETT b/l R>L 4.2cm opacities? ___ don't SVC catheter unchanged &amp; <b> caf\u00e9 \u2265 \t"""
_HEADINGS = """IMPRESSION: FINDINGS: RECOMMENDATION(S): RECOMMENDATION: RECOMMENDATIONS: NOTIFICATION: NOTIFICATIONS:
impression: IMPRESSION no acute process. small effusion"""


def texts() -> list[str]:
    """120 texts, from empty to longer than the context, with digits, accents, entities and odd white space."""
    random = np.random.RandomState(1)
    drawn = [_draw_words(random, _WORDS, random.randint(1, 90)) for _ in range(116)]
    return ["", " ", "\u80ba\u708e pneumonia \U0001f600", "A" * 500, *drawn]


def reports() -> list[str]:
    """300 reports with the headings of MIMIC in any order."""
    random = np.random.RandomState(2)
    return [_draw_words(random, _HEADINGS, random.randint(0, 14)) for _ in range(300)]


def _draw_words(random: np.random.RandomState, words: str, count: int) -> str:
    spaces = random.choice([" ", "  ", "\n", " \t"], count, p=[0.85, 0.05, 0.05, 0.05])
    return "".join(word + space for word, space in zip(random.choice(words.split(), count), spaces, strict=True))


def images() -> dict[str, np.ndarray]:
    """File name -> pixels as OpenCV writes them: grey, colour, alpha, 16 bits, small, large, narrow, odd sides."""
    random = np.random.RandomState(3)

    def draw(height: int, width: int, channels: int = 1, top: int = 256, dtype: type = np.uint8) -> np.ndarray:
        coarse = random.randint(0, top, (height // 16 + 2, width // 16 + 2, channels)).astype(np.float32)
        smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
        noisy = smooth + random.normal(0, top / 50, smooth.shape)
        return np.clip(noisy, 0, top - 1).astype(dtype).squeeze()

    return {
        "grey.png": draw(512, 640),
        "grey.jpg": draw(700, 560),
        "odd.png": draw(333, 501),
        "small.png": draw(97, 130),
        "exact.png": draw(320, 320),
        "narrow.jpg": draw(901, 77),
        "wide.png": draw(90, 1200),
        "sixteen_bits.png": draw(350, 300, top=65536, dtype=np.uint16),
        "colour.png": draw(300, 420, 3),
        "colour.jpg": draw(420, 300, 3),
        "alpha.png": draw(200, 260, 4),
    }


def radiographs() -> np.ndarray:
    """uint8 (8, 320, 320): smooth random blobs."""
    random = np.random.RandomState(4)
    coarse = random.randint(0, 256, (N_IMAGES, 20, 20)).astype(np.float32)
    smooth = [cv2.resize(one, (320, 320), interpolation=cv2.INTER_CUBIC) for one in coarse]
    return np.clip(smooth, 0, 255).astype(np.uint8)


def weights() -> dict[str, np.ndarray]:
    """Weights of `SMALL_MODEL` under upstream's keys, float32 numbers that float16 represents exactly."""
    random = np.random.RandomState(5)
    vision, text, embed = SMALL_MODEL["vision_width"], SMALL_MODEL["transformer_width"], SMALL_MODEL["embed_dim"]
    patch = SMALL_MODEL["vision_patch_size"]
    tokens = (SMALL_MODEL["image_resolution"] // patch) ** 2 + 1
    shapes = {
        "positional_embedding": (SMALL_MODEL["context_length"], text),
        "text_projection": (text, embed),
        "visual.class_embedding": (vision,),
        "visual.positional_embedding": (tokens, vision),
        "visual.proj": (vision, embed),
        "visual.conv1.weight": (vision, 3, patch, patch),
        "token_embedding.weight": (SMALL_MODEL["vocab_size"], text),
    }
    for tower, width, layers in (
        ("visual.transformer", vision, SMALL_MODEL["vision_layers"]),
        ("transformer", text, SMALL_MODEL["transformer_layers"]),
    ):
        for i in range(layers):
            block = f"{tower}.resblocks.{i}."
            shapes |= {
                block + "attn.in_proj_weight": (3 * width, width),
                block + "attn.in_proj_bias": (3 * width,),
                block + "attn.out_proj.weight": (width, width),
                block + "attn.out_proj.bias": (width,),
                block + "mlp.c_fc.weight": (4 * width, width),
                block + "mlp.c_fc.bias": (4 * width,),
                block + "mlp.c_proj.weight": (width, 4 * width),
                block + "mlp.c_proj.bias": (width,),
            }
            shapes |= _norm(block + "ln_1", width) | _norm(block + "ln_2", width)
    shapes |= _norm("visual.ln_pre", vision) | _norm("visual.ln_post", vision) | _norm("ln_final", text)
    state = {key: random.normal(0, 0.05, shape) for key, shape in shapes.items()}
    for key in state:
        if ".ln_" in f".{key}" and key.endswith("weight"):
            state[key] += 1
    state["logit_scale"] = np.array(np.log(1 / 0.07))
    return {key: value.astype(np.float16).astype(np.float32) for key, value in state.items()}


def _norm(name: str, width: int) -> dict[str, tuple[int]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def evaluation() -> tuple[np.ndarray, np.ndarray]:
    """Labels, int (150, 14), and predictions with ties, float64 (150, 14); both classes in every resample."""
    random = np.random.RandomState(6)
    y_true = (random.rand(150, len(LABELS)) < np.linspace(0.1, 0.6, len(LABELS))).astype(np.int64)
    y_pred = np.round(0.5 + 0.1 * y_true + random.normal(0, 0.1, y_true.shape), 2)
    return y_true, y_pred


def write(folder: Path) -> None:
    """Write all inputs into `folder`; both implementations read them from there."""
    pictures = folder / "images"
    pictures.mkdir(parents=True)
    for name, pixels in images().items():
        cv2.imwrite(str(pictures / name), pixels)
    patient = folder / "reports" / "p10" / "p10000001"
    patient.mkdir(parents=True)
    for i, report in enumerate(reports()):
        (patient / f"s{i}.txt").write_text(report, encoding="utf-8")
    (folder / "texts.json").write_text(json.dumps(texts()), encoding="utf-8")
    with h5py.File(folder / "cxr.h5", "w") as file:
        file["cxr"] = radiographs().astype(np.float32)
    pd.DataFrame({"filename": [f"s{i}.txt" for i in range(N_IMAGES)], "impression": texts()[4 : 4 + N_IMAGES]}).to_csv(
        folder / "impressions.csv", index=False
    )
    y_true, y_pred = evaluation()
    np.savez(folder / "evaluation.npz", y_true=y_true, y_pred=y_pred)
    np.savez(folder / "weights.npz", **weights())
