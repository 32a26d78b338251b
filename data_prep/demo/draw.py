"""Draw one view of a study: the frame, the phantom, its findings and the exposure."""

import cv2
import numpy as np

from data_prep.demo.canvas import Canvas, blob
from data_prep.demo.cases import Study
from data_prep.demo.findings import DRAW, alter_anatomy, broken_bones, pneumothorax_mask
from data_prep.demo.lateral import draw_lateral
from data_prep.demo.phantom import bones, draw_frontal, expose, sample_anatomy, vessels

SIDES_PX = (320, 336, 352, 384, 416)  # the longer side of a picture


def draw_view(study: Study, projection: str, rng: np.random.Generator) -> np.ndarray:
    """Draw one view ("PA", "AP" or "LATERAL") of a study. Returns float32 (height, width) in 0..1."""
    canvas = _canvas(projection, rng)
    if projection == "LATERAL":
        draw_lateral(canvas, study)
    else:
        _draw_frontal_study(canvas, study, projection)
    return expose(canvas, projection)


def _canvas(projection: str, rng: np.random.Generator) -> Canvas:
    longer = int(rng.choice(SIDES_PX))
    aspect = rng.uniform(0.80, 1.0)
    portrait = rng.random() < (0.9 if projection == "LATERAL" else 0.55)
    shape = (longer, round(longer * aspect)) if portrait else (round(longer * aspect), longer)
    height, width = shape
    scale = min(width / 1.92, height / 1.74) * rng.uniform(0.96, 1.06)
    angle = rng.normal(0, 0.02)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    pose = np.array(
        [
            [cos, -sin, width / 2 + rng.normal(0, 0.02) * width],
            [sin, cos, height * 0.555 + rng.normal(0, 0.02) * height],
        ]
    )
    return Canvas(np.zeros(shape, np.float32), pose, rng, scale)


def _draw_frontal_study(canvas: Canvas, study: Study, projection: str) -> None:
    rng = canvas.rng
    anatomy = sample_anatomy(study.patient, projection, rng)
    alter_anatomy(anatomy, study.findings, rng)
    chest = draw_frontal(canvas, anatomy)
    present = {finding.label: finding for finding in study.findings}

    edema = present.get("Edema")
    calibre = 1.2 + 0.4 * edema.severity if edema else rng.uniform(0.9, 1.08)
    markings = vessels(chest, calibre) * chest.air
    if "Pneumothorax" in present:
        markings *= 1 - pneumothorax_mask(chest, present["Pneumothorax"])[0]
    chest.markings = 0.10 * markings
    canvas.density += chest.markings + 0.012 * canvas.clouds(0.022) * chest.air

    ribs, collars, callus = broken_bones(anatomy, study.findings, rng)
    canvas.density += bones(chest, ribs, collars)
    for x, y in callus:
        canvas.density += 0.19 * canvas.area(blob(x, y, 0.066, 0.054, rng, 0.15), 0.008)
    for label, draw in DRAW.items():
        if label in present:
            draw(chest, present[label])
    np.clip(canvas.density, 0, 1.6, out=canvas.density)


def to_uint8(picture: np.ndarray) -> np.ndarray:
    """Convert 0..1 to 8 bits."""
    return cv2.convertScaleAbs(picture, alpha=255)


def to_uint16(picture: np.ndarray, bits: int) -> np.ndarray:
    """Convert 0..1 to 12 bits, in the low bits of the 16 (`bits` 12) or the high ones (`bits` 16)."""
    return np.round(picture * 4095).astype(np.uint16) << (bits - 12)
