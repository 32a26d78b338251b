"""The lateral phantom: the patient faces left, and the left and right lungs overlap."""

from dataclasses import dataclass

import numpy as np

from data_prep.demo.canvas import Canvas, blob, curve
from data_prep.demo.cases import Finding, Study

HEIGHTS = {"upper": -0.45, "mid": -0.12, "lower": 0.2}


@dataclass
class Profile:
    """A lateral drawing in progress; `own` is the patient's random generator, `air` the lungs' mask 0..1."""

    canvas: Canvas
    own: np.random.Generator
    depth: float  # half the distance from breastbone to spine, thorax units
    dome: float  # y of the diaphragms
    air: np.ndarray


def draw_lateral(canvas: Canvas, study: Study) -> None:
    """Draw a lateral chest with the study's findings as far as this view shows them."""
    present = {finding.label: finding for finding in study.findings}
    profile = _body_and_lungs(canvas, np.random.default_rng(study.patient.build))
    _heart_and_aorta(profile, present)
    _spine_and_ribs(profile)
    _markings(profile, present)
    for label, finding in present.items():
        if label in DRAW:
            DRAW[label](profile, finding)
    np.clip(canvas.density, 0, 1.6, out=canvas.density)


def _body_and_lungs(canvas: Canvas, own: np.random.Generator) -> Profile:
    d, dome = 0.62 + own.normal(0, 0.035), 0.42 + own.normal(0, 0.03) + canvas.rng.normal(0, 0.015)
    outline = [
        (-0.15, -2.0),
        (-0.15, -1.2),
        (-0.25, -0.95),
        (-d - 0.02, -0.6),
        (-d - 0.12, -0.1),
        (-d - 0.12, 0.5),
        (-d - 0.08, 2.0),
        (d + 0.12, 2.0),
        (d + 0.2, 0.3),
        (d + 0.24, -0.4),
        (d + 0.02, -0.85),
        (0.32, -1.0),
        (0.26, -1.2),
        (0.26, -2.0),
    ]
    lung = [
        (-d * 0.5, -0.50),
        (-d * 0.2, -0.70),
        (0.15, -0.80),
        (d * 0.75, -0.62),
        (d * 0.95, -0.2),
        (d, 0.3),
        (d * 0.98, dome + 0.22),
        (d * 0.5, dome + 0.06),
        (0, dome - 0.03),
        (-d * 0.5, dome),
        (-d * 0.92, dome + 0.05),
        (-d * 0.86, -0.1),
    ]
    below = [(-1.2, dome), (0, dome - 0.03), (1.2, dome + 0.2), (1.2, 2), (-1.2, 2)]
    mottle = 1 + 0.025 * canvas.clouds(0.035) + 0.018 * canvas.clouds(0.013)
    body = canvas.area(curve(outline + own.normal(0, 0.02, (14, 2)), 8, closed=True), 0.015)
    air = canvas.area(curve(lung + own.normal(0, 0.014, (12, 2)), 8, closed=True), 0.008)
    canvas.density += 0.82 * body * mottle - 0.44 * air
    canvas.density += 0.15 * canvas.area(np.array(below), 0.03) * (1 - air) * body
    return Profile(canvas, own, d, dome, air)


def _heart_and_aorta(p: Profile, present: dict[str, Finding]) -> None:
    canvas, d = p.canvas, p.depth
    size = 0.27 + p.own.normal(0, 0.012)
    if "Cardiomegaly" in present:
        size = 0.335 + 0.09 * present["Cardiomegaly"].severity
    heart = blob(-d * 0.62 + size * 0.75, p.dome - 0.26, size, 0.29, p.own, 0.04, angle=0.5)
    width = 0.19 if "Enlarged Cardiomediastinum" in present else 0.11
    arch = np.array([(-0.12, -0.1), (-0.10, -0.38), (0.05, -0.47), (0.20, -0.34), (0.26, 0.2)])
    aorta = curve(arch + p.own.normal(0, 0.02, arch.shape))
    canvas.density += 0.30 * canvas.area(heart, 0.015) * p.air
    canvas.density += 0.16 * canvas.strokes([(aorta, width, 0.5)], 0.02) * p.air
    trachea = curve([(0.06, -1.2), (0.08, -0.7), (0.10 + p.own.normal(0, 0.02), -0.26)])
    canvas.density -= 0.08 * canvas.strokes([(trachea, 0.075, 1.0)], 0.01)


def _spine_and_ribs(p: Profile) -> None:
    canvas, d, own = p.canvas, p.depth, p.own
    bodies, plates = [], []
    height = own.uniform(0.112, 0.14)
    for level in np.arange(-0.85 + own.uniform(0, 0.12), 1.4, height):
        x = d * 0.83 + 0.06 * np.cos(1.8 * level)
        bodies.append((np.array([(x - 0.07, level), (x + 0.07, level + 0.01)]), 0.68 * height, 0.7))
        plate = np.array([(x - 0.075, level + height * 0.36), (x + 0.075, level + height * 0.44)])
        plates.append((plate, 0.012, 1.0))
    canvas.density += 0.11 * canvas.strokes(bodies + plates, 0.006)
    slope, first, spacing = own.uniform(0.3, 0.5), own.uniform(-0.76, -0.65), own.uniform(0.10, 0.13)
    ribs = [
        (curve([(d * 0.95, y), (d * 0.3, y + slope * 0.4), (-d * 0.5, y + slope)]), 0.04, 0.7)
        for y in first + spacing * np.arange(10) + own.normal(0, 0.012, 10)
    ]
    canvas.density += 0.045 * canvas.strokes(ribs, 0.006)
    sternum = np.array([(-d * 0.62, -0.55), (-d * 0.98, -0.15), (-d * 1.02, 0.2)]) + own.normal(0, 0.02, (3, 2))
    canvas.density += 0.10 * canvas.strokes([(curve(sternum), 0.05, 1.0)], 0.008)


def _markings(p: Profile, present: dict[str, Finding]) -> None:
    canvas, rng, thick, thin = p.canvas, p.canvas.rng, [], []
    hilum = np.array([0.05, -0.12]) + p.own.normal(0, 0.02, 2)
    for angle in np.linspace(0, 6.28, 13, endpoint=False) + rng.normal(0, 0.2, 13):
        end = hilum + rng.uniform(0.14, 0.32) * np.array([np.cos(angle), np.sin(angle)])
        thick.append((curve([hilum, (hilum + end) / 2 + rng.normal(0, 0.03, 2), end], 8), 0.016, 0.6))
        for turn in rng.normal((-0.4, 0.4), 0.2):
            tip = end + rng.uniform(0.12, 0.28) * np.array([np.cos(angle + turn), np.sin(angle + turn)])
            thin.append((curve([end, (end + tip) / 2 + rng.normal(0, 0.02, 2), tip], 6), 0.010, 0.4))
    hila = canvas.area(blob(hilum[0], hilum[1], 0.10, 0.12, rng, 0.15), 0.03)
    strength = 0.17 if "Edema" in present else 0.12
    canvas.density += (strength * canvas.strokes(thin + thick, 0.004) + 0.09 * hila) * p.air
    canvas.density += 0.018 * canvas.clouds(0.022) * p.air


def _effusion(p: Profile, finding: Finding) -> None:
    d, level = p.depth, p.dome + 0.12 - 0.7 * finding.severity**1.5
    surface = curve([(d + 0.1, level - 0.12), (d * 0.8, level), (d * 0.3, level + 0.13), (-1.0, level + 0.17)])
    fluid = p.canvas.area(np.vstack([surface, [(-1, 1.5), (1.2, 1.5)]]), 0.015)
    p.canvas.density += 0.34 * fluid * p.air


def _haze(p: Profile, finding: Finding) -> None:
    wings = p.canvas.area(blob(0.05, -0.05, 0.38, 0.38, p.canvas.rng, 0.1), 0.12)
    p.canvas.density += (0.07 + 0.14 * finding.severity) * wings * p.air * (1 + 0.25 * p.canvas.clouds(0.06))


def _patches(p: Profile, finding: Finding) -> None:
    rng, s = p.canvas.rng, finding.severity
    dense = finding.label == "Consolidation"
    texture = 1 if dense else np.clip(0.6 + 0.4 * p.canvas.clouds(0.08), 0, 1.2)
    for _ in range(1 if dense else 3):
        x, y = rng.uniform(-0.3, 0.4) * p.depth / 0.62, HEIGHTS[finding.zone] + rng.uniform(-0.1, 0.1)
        size = 0.16 + 0.12 * s if dense else 0.10 + 0.07 * s
        patch = p.canvas.area(blob(x, y, size, size, rng, 0.2), 0.2 * size)
        p.canvas.density += (0.12 + 0.14 * s) * patch * texture * p.air


def _lesion(p: Profile, finding: Finding) -> None:
    radius = (0.04 if "nodule" in finding.kind else 0.08) * (1 + finding.severity)
    spot = blob(p.canvas.rng.uniform(-0.3, 0.4), HEIGHTS[finding.zone], radius, radius, p.canvas.rng, 0.05)
    p.canvas.density += (0.15 + 0.12 * finding.severity) * p.canvas.area(spot, 0.01) * p.air


def _bands(p: Profile, finding: Finding) -> None:
    rng, lines = p.canvas.rng, []
    for _ in range(2):
        x, y = rng.uniform(-0.2, 0.15), p.dome - rng.uniform(0.05, 0.2)
        lines.append((np.array([(x, y), (x + 0.28, y + rng.normal(0.02, 0.05))]), 0.02, 1.0))
    p.canvas.density += (0.11 + 0.11 * finding.severity) * p.canvas.strokes(lines, 0.005) * p.air


def _rind(p: Profile, finding: Finding) -> None:
    d = p.depth
    back = curve([(d * 0.85, -0.5), (d * 0.99, -0.1), (d * 1.02, 0.35)])
    p.canvas.density += 0.18 * p.canvas.strokes([(back, 0.05 + 0.06 * finding.severity, 1.0)], 0.01) * p.air


def _pneumothorax(p: Profile, finding: Finding) -> None:
    d, drop = p.depth, 0.06 + 0.25 * finding.severity
    line = curve([(-d * 0.5, -0.50 + drop), (0.1, -0.78 + drop), (d * 0.8, -0.58 + drop)])
    above = p.canvas.area(np.vstack([line, [(d, -1.2), (-d, -1.2)]]), 0.01)
    p.canvas.density += (0.09 * p.canvas.strokes([(line, 0.010, 1.0)]) - 0.05 * above) * p.air


def _devices(p: Profile, finding: Finding) -> None:
    d, lines = p.depth, []
    for kind in finding.kind.split(","):
        if kind == "pacemaker":
            p.canvas.density += 0.5 * p.canvas.area(blob(-d - 0.02, -0.42, 0.035, 0.10), 0.006)
            lines.append((curve([(-d, -0.35), (-0.05, -0.45), (-0.02, 0.0), (-0.22, 0.25)]), 0.013, 1.0))
        elif kind == "sternal wires":
            lines += [(blob(-d * 0.96, y, 0.02, 0.03), 0.010, 1.0) for y in np.arange(-0.3, 0.25, 0.12)]
        elif kind == "enteric tube":
            lines.append((curve([(0.08, -1.2), (0.15, -0.3), (0.12, 0.5), (-0.1, 0.8)]), 0.017, 0.85))
        elif kind == "endotracheal tube":
            lines.append((curve([(0.05, -1.2), (0.08, -0.8), (0.085, -0.5)]), 0.035, 0.7))
        elif kind == "chest tube":
            lines.append((curve([(-0.3, 0.3), (0.1, 0.0), (0.3, -0.5)]), 0.03, 0.75))
        else:  # a venous catheter
            lines.append((curve([(-0.2, -0.75), (-0.05, -0.5), (-0.02, -0.1)]), 0.014, 0.95))
    p.canvas.density += 0.42 * p.canvas.strokes(lines, 0.002)


#: Fractures are not drawn: on a lateral view the ribs of both sides overlap and hide them.
DRAW = {
    "Edema": _haze,
    "Lung Opacity": _patches,
    "Pneumonia": _patches,
    "Consolidation": _patches,
    "Atelectasis": _bands,
    "Lung Lesion": _lesion,
    "Pneumothorax": _pneumothorax,
    "Pleural Other": _rind,
    "Pleural Effusion": _effusion,
    "Support Devices": _devices,
}
