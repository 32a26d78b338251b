"""The lateral phantom: the patient faces left, and left and right lungs lie over each other."""

import numpy as np

from data_prep.demo_canvas import Canvas, blob, curve
from data_prep.demo_cases import Finding, Study

HEIGHTS = {"upper": -0.45, "mid": -0.12, "lower": 0.2}


def draw_lateral(canvas: Canvas, study: Study) -> None:
    """Draw a lateral chest with the study's findings as far as this view shows them."""
    rng, density = canvas.rng, canvas.density
    present = {finding.label: finding for finding in study.findings}
    own = np.random.default_rng(study.patient.build)
    depth = 0.62 + own.normal(0, 0.03)
    dome = 0.42 + own.normal(0, 0.03) + rng.normal(0, 0.015)
    body = curve(
        [
            (-0.15, -2.0),
            (-0.15, -1.2),
            (-0.25, -0.95),
            (-depth - 0.02, -0.6),
            (-depth - 0.12, -0.1),
            (-depth - 0.12, 0.5),
            (-depth - 0.08, 1.5),
            (depth + 0.12, 1.5),
            (depth + 0.2, 0.3),
            (depth + 0.24, -0.4),
            (depth + 0.02, -0.85),
            (0.32, -1.0),
            (0.26, -1.2),
            (0.26, -2.0),
        ],
        8,
        closed=True,
    )
    density += 0.82 * canvas.area(body, 0.015)
    inside = density > 0
    lung = np.vstack(
        [
            curve(
                [
                    (-depth * 0.5, -0.50),
                    (-depth * 0.2, -0.70),
                    (0.15, -0.80),
                    (depth * 0.75, -0.62),
                    (depth * 0.95, -0.2),
                    (depth, 0.3),
                    (depth * 0.98, dome + 0.22),
                ],
                8,
            ),
            curve(
                [
                    (depth * 0.98, dome + 0.22),
                    (depth * 0.5, dome + 0.06),
                    (0, dome - 0.03),
                    (-depth * 0.5, dome),
                    (-depth * 0.92, dome + 0.05),
                    (-depth * 0.86, -0.1),
                    (-depth * 0.5, -0.50),
                ],
                8,
            ),
        ]
    )
    air = canvas.area(lung, 0.008)
    density += (
        0.15
        * canvas.area(np.array([(-1.2, dome), (0, dome - 0.03), (1.2, dome + 0.2), (1.2, 2), (-1.2, 2)]), 0.03)
        * (1 - air)
        * inside
    )
    density -= 0.44 * air
    _heart_and_aorta(canvas, air, depth, dome, present)
    _spine_and_ribs(canvas, air, depth)
    _markings(canvas, air, present)
    for label, finding in present.items():
        if label in OPACITIES:
            OPACITIES[label](canvas, air, finding, depth, dome)
    np.clip(density, 0, 1.6, out=density)


def _heart_and_aorta(canvas: Canvas, air: np.ndarray, depth: float, dome: float, present: dict[str, Finding]) -> None:
    wide = present["Cardiomegaly"].severity if "Cardiomegaly" in present else None
    size = 0.27 + canvas.rng.normal(0, 0.012) if wide is None else 0.335 + 0.09 * wide
    heart = blob(-depth * 0.62 + size * 0.75, dome - 0.26, size, 0.29, canvas.rng, 0.03, angle=0.5)
    arch = 0.07 if "Enlarged Cardiomediastinum" not in present else 0.12
    aorta = [(curve([(-0.12, -0.1), (-0.10, -0.38), (0.05, -0.47), (0.20, -0.34), (0.26, 0.2)]), arch * 1.6, 0.5)]
    canvas.density += 0.30 * canvas.area(heart, 0.015) * air + 0.16 * canvas.strokes(aorta, 0.02) * air
    trachea = curve([(0.06, -1.2), (0.08, -0.7), (0.10, -0.26)])
    canvas.density -= 0.08 * canvas.strokes([(trachea, 0.075, 1.0)], 0.01)


def _spine_and_ribs(canvas: Canvas, air: np.ndarray, depth: float) -> None:
    lines = []
    for level in np.arange(-0.85, 1.4, 0.125):
        x = depth * 0.83 + 0.06 * np.cos(1.8 * level)
        lines.append((np.array([(x - 0.07, level), (x + 0.07, level + 0.01)]), 0.085, 0.7))
        lines.append((np.array([(x - 0.075, level + 0.045), (x + 0.075, level + 0.055)]), 0.012, 1.0))
    canvas.density += 0.11 * canvas.strokes(lines, 0.006)
    ribs = [
        (curve([(depth * 0.95, y), (depth * 0.3, y + 0.17), (-depth * 0.5, y + 0.42)]), 0.04, 0.7)
        for y in np.arange(-0.72, 0.4, 0.115)
    ]
    canvas.density += 0.045 * canvas.strokes(ribs, 0.006)
    sternum = [(curve([(-depth * 0.62, -0.55), (-depth * 0.98, -0.15), (-depth * 1.02, 0.2)]), 0.05, 1.0)]
    canvas.density += 0.10 * canvas.strokes(sternum, 0.008)


def _markings(canvas: Canvas, air: np.ndarray, present: dict[str, Finding]) -> None:
    rng, lines = canvas.rng, []
    hilum = np.array([0.05, -0.12])
    for angle in np.linspace(0, 6.28, 14, endpoint=False) + rng.normal(0, 0.15, 14):
        end = hilum + rng.uniform(0.25, 0.5) * np.array([np.cos(angle), np.sin(angle)])
        lines.append((curve([hilum, (hilum + end) / 2 + rng.normal(0, 0.03, 2), end], 8), 0.016, 0.6))
    hila = canvas.area(blob(*hilum, 0.10, 0.12, rng, 0.15), 0.03)
    strength = 0.17 if "Edema" in present else 0.12
    canvas.density += strength * canvas.strokes(lines, 0.004) * air + 0.09 * hila * air
    canvas.density += 0.012 * canvas.clouds(0.03) * air


def _effusion(canvas: Canvas, air: np.ndarray, finding: Finding, depth: float, dome: float) -> None:
    level = dome + 0.12 - 0.7 * finding.severity**1.5
    surface = curve(
        [(depth + 0.1, level - 0.12), (depth * 0.8, level), (depth * 0.3, level + 0.13), (-1.0, level + 0.17)]
    )
    fluid = canvas.area(np.vstack([surface, [(-1, 1.5), (1.2, 1.5)]]), 0.015)
    canvas.density += 0.34 * fluid * air


def _haze(canvas: Canvas, air: np.ndarray, finding: Finding, depth: float, dome: float) -> None:
    wings = canvas.area(blob(0.05, -0.05, 0.38, 0.38, canvas.rng, 0.1), 0.12)
    canvas.density += (0.07 + 0.14 * finding.severity) * wings * air * (1 + 0.25 * canvas.clouds(0.06))


def _patches(canvas: Canvas, air: np.ndarray, finding: Finding, depth: float, dome: float) -> None:
    dense = finding.label == "Consolidation"
    texture = 1 if dense else np.clip(0.6 + 0.5 * canvas.clouds(0.07), 0, 1.4)
    for _ in range(1 if dense else 3):
        x, y = canvas.rng.uniform(-0.3, 0.4) * depth / 0.62, HEIGHTS[finding.zone] + canvas.rng.uniform(-0.1, 0.1)
        size = 0.16 + 0.12 * finding.severity if dense else 0.10 + 0.07 * finding.severity
        patch = canvas.area(blob(x, y, size, size, canvas.rng, 0.2), 0.2 * size)
        canvas.density += (0.12 + 0.14 * finding.severity) * patch * texture * air


def _lesion(canvas: Canvas, air: np.ndarray, finding: Finding, depth: float, dome: float) -> None:
    radius = (0.04 if "nodule" in finding.kind else 0.08) * (1 + finding.severity)
    spot = blob(canvas.rng.uniform(-0.3, 0.4), HEIGHTS[finding.zone], radius, radius, canvas.rng, 0.05)
    canvas.density += (0.15 + 0.12 * finding.severity) * canvas.area(spot, 0.01) * air


def _bands(canvas: Canvas, air: np.ndarray, finding: Finding, depth: float, dome: float) -> None:
    lines = []
    for _ in range(2):
        x, y = canvas.rng.uniform(-0.2, 0.15), dome - canvas.rng.uniform(0.05, 0.2)
        lines.append((np.array([(x, y), (x + 0.28, y + canvas.rng.normal(0.02, 0.05))]), 0.02, 1.0))
    canvas.density += (0.11 + 0.11 * finding.severity) * canvas.strokes(lines, 0.005) * air


def _rind(canvas: Canvas, air: np.ndarray, finding: Finding, depth: float, dome: float) -> None:
    back = curve([(depth * 0.85, -0.5), (depth * 0.99, -0.1), (depth * 1.02, 0.35)])
    canvas.density += 0.18 * canvas.strokes([(back, 0.05 + 0.06 * finding.severity, 1.0)], 0.01) * air


def _pneumothorax(canvas: Canvas, air: np.ndarray, finding: Finding, depth: float, dome: float) -> None:
    drop = 0.06 + 0.25 * finding.severity
    line = curve([(-depth * 0.5, -0.50 + drop), (0.1, -0.78 + drop), (depth * 0.8, -0.58 + drop)])
    above = np.vstack([line, [(depth, -1.2), (-depth, -1.2)]])
    canvas.density += (0.09 * canvas.strokes([(line, 0.010, 1.0)]) - 0.05 * canvas.area(above, 0.01)) * air


def _devices(canvas: Canvas, air: np.ndarray, finding: Finding, depth: float, dome: float) -> None:
    lines = []
    for kind in finding.kind.split(","):
        if kind == "pacemaker":
            canvas.density += 0.5 * canvas.area(blob(-depth - 0.02, -0.42, 0.035, 0.10), 0.006)
            lines.append((curve([(-depth, -0.35), (-0.05, -0.45), (-0.02, 0.0), (-0.22, 0.25)]), 0.013, 1.0))
        elif kind == "sternal wires":
            lines += [(blob(-depth * 0.96, y, 0.02, 0.03), 0.010, 1.0) for y in np.arange(-0.3, 0.25, 0.12)]
        elif kind == "enteric tube":
            lines.append((curve([(0.08, -1.2), (0.15, -0.3), (0.12, 0.5), (-0.1, 0.8)]), 0.017, 0.85))
        elif kind == "endotracheal tube":
            lines.append((curve([(0.05, -1.2), (0.08, -0.8), (0.085, -0.5)]), 0.035, 0.7))
        elif kind == "chest tube":
            lines.append((curve([(-0.3, 0.3), (0.1, 0.0), (0.3, -0.5)]), 0.03, 0.75))
        else:
            lines.append((curve([(-0.2, -0.75), (-0.05, -0.5), (-0.02, -0.1)]), 0.014, 0.95))
    canvas.density += 0.42 * canvas.strokes(lines, 0.002)


#: A fracture is not drawn: on a lateral view the ribs of both sides lie over each other, and it is missed there.
OPACITIES = {
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
