"""How each finding looks on a frontal phantom: one function per finding, from barely visible to gross."""

from collections.abc import Callable

import numpy as np

from data_prep.demo.canvas import blob, curve
from data_prep.demo.cases import Finding
from data_prep.demo.phantom import SIDES, Anatomy, Chest, clavicle, rib

ZONES = {"upper": -0.48, "mid": -0.15, "lower": 0.16}


def alter_anatomy(a: Anatomy, findings: tuple[Finding, ...], rng: np.random.Generator) -> None:
    """Apply findings that change the anatomy: a wide heart or mediastinum, lost or gained volume of one side."""
    for finding in findings:
        s = finding.severity
        if finding.label == "Cardiomegaly":
            a.heart = max(a.heart, 0.52) + 0.16 * s
        elif finding.label == "Enlarged Cardiomediastinum":
            a.mediastinum += 0.055 + 0.11 * s
            a.knob += 0.02 + 0.04 * s
        elif finding.label == "Atelectasis" and finding.kind == "collapse":
            for side in SIDES[finding.side]:
                a.dome[side] -= 0.05 + 0.12 * s
            a.shift += sum(SIDES[finding.side]) * (0.01 + 0.05 * s)
        elif finding.label == "Pneumothorax" and s > 0.7:
            side = SIDES[finding.side][0]
            a.shift -= side * 0.16 * (s - 0.6)
            a.dome[side] += 0.05
        elif finding.label == "Pleural Effusion" and s > 0.8 and finding.side != "bilateral":
            a.shift -= SIDES[finding.side][0] * 0.05


def _patch(chest: Chest, side: int, zone: str, size: float, rough: float = 0.18) -> tuple[np.ndarray, np.ndarray]:
    """A soft area 0..1 in one zone of a lung and its centre."""
    rng, a = chest.canvas.rng, chest.anatomy
    y = ZONES[zone] + rng.uniform(-0.1, 0.1)
    x = side * rng.uniform(0.32, 0.58) * a.half_width / 0.74
    outline = blob(x, y, size * rng.uniform(0.8, 1.2), size * rng.uniform(0.8, 1.2), rng, rough)
    return chest.canvas.area(outline, 0.18 * size) * chest.lungs[side], np.array([x, y])


def consolidation(chest: Chest, finding: Finding) -> None:
    """A dense homogeneous area that hides the vessels, with air bronchograms in it."""
    canvas, rng, s = chest.canvas, chest.canvas.rng, finding.severity
    for side in SIDES[finding.side]:
        mask, centre = _patch(chest, side, finding.zone, 0.17 + 0.15 * s)
        if finding.zone == "upper":  # bounded below by the fissure
            fissure = np.array([(0, -1.5), (side * 1.2, -1.5), (side * 1.2, centre[1] + 0.14), (0, centre[1] + 0.10)])
            mask *= canvas.area(fissure, 0.01)
        chest.fill((0.16 + 0.18 * s) * mask * (1 + 0.07 * canvas.clouds(0.10)), 0.85)
        hilum = np.array([side * 0.2, -0.12])
        bronchi = [
            (curve([hilum, (hilum + centre) / 2 + rng.normal(0, 0.03, 2), centre + rng.normal(0, 0.07, 2)]), 0.018, 0.9)
            for _ in range(4)
        ]
        canvas.density -= 0.10 * canvas.strokes(bronchi, 0.004) * mask


def pneumonia(chest: Chest, finding: Finding) -> None:
    """Several fluffy patches that run into each other, in one zone or both lungs."""
    canvas, rng, s = chest.canvas, chest.canvas.rng, finding.severity
    fluff = np.clip(0.65 + 0.40 * canvas.clouds(0.09) + 0.12 * canvas.clouds(0.04), 0.1, 1.2)
    for side in SIDES[finding.side]:
        patches = [
            _patch(chest, side, finding.zone, rng.uniform(0.09, 0.14) + 0.07 * s, 0.3)[0]
            for _ in range(int(rng.integers(2, 4)) + int(2 * s))
        ]
        chest.fill((0.15 + 0.15 * s) * np.clip(sum(patches), 0, 1.3) * fluff, 0.6)


def edema(chest: Chest, finding: Finding) -> None:
    """Haze about both hila, veiled bases, cuffed bronchi and septal lines; the vessels are widened by the caller."""
    canvas, a, rng, s = chest.canvas, chest.anatomy, chest.canvas.rng, finding.severity
    for side in (-1, 1):
        wing = canvas.area(blob(side * 0.30, -0.08, 0.22 + 0.10 * s, 0.30 + 0.12 * s, rng, 0.08), 0.11)
        base = canvas.area(blob(side * 0.40, a.dome[side] - 0.05, 0.34, 0.22, rng, 0.08), 0.10)
        haze = (0.09 + 0.17 * s) * wing + (0.03 + 0.08 * s) * base + 0.03
        chest.fill(haze * chest.lungs[side] * (1 + 0.22 * canvas.clouds(0.06)), 0.3)
        septa = []
        for _ in range(int(6 + 12 * s)):
            y = rng.uniform(0.02, a.dome[side] + 0.08)
            x = a.wall(side, y) - side * 0.01
            septa.append(
                (np.array([(x, y), (x - side * rng.uniform(0.05, 0.10), y + rng.normal(0, 0.01))]), 0.007, 1.0)
            )
        canvas.density += 0.09 * canvas.strokes(septa) * chest.lungs[side]
        cuffs = [
            (blob(side * rng.uniform(0.2, 0.36), rng.uniform(-0.25, 0.08), 0.022, 0.022), 0.010, 0.9) for _ in range(3)
        ]
        canvas.density += 0.08 * canvas.strokes(cuffs, 0.003) * chest.lungs[side]


def atelectasis(chest: Chest, finding: Finding) -> None:
    """Plate-like bands at the bases, or a collapsed lower lobe: a wedge by the spine and a raised diaphragm."""
    canvas, a, rng, s = chest.canvas, chest.anatomy, chest.canvas.rng, finding.severity
    for side in SIDES[finding.side]:
        dome = a.dome[side]
        if finding.kind == "collapse":
            wedge = np.array([(side * 0.03, -0.12), (side * (0.30 + 0.22 * s), dome + 0.1), (side * 0.03, dome + 0.1)])
            inside = np.maximum(chest.lungs[side], 0.4 * chest.silhouette)
            canvas.density += (0.13 + 0.13 * s) * canvas.area(wedge, 0.022) * inside
        bands = []
        for _ in range(int(rng.integers(2, 4)) + int(2 * s)):
            x, y, tilt = side * rng.uniform(0.18, 0.36), dome - rng.uniform(0.04, 0.26), rng.normal(0, 0.10)
            length = rng.uniform(0.26, 0.42)
            bands.append(
                (
                    curve([(x, y), (x + side * length / 2, y + tilt * 0.4 - 0.01), (x + side * length, y + tilt)]),
                    rng.uniform(0.018, 0.026) + 0.020 * s,
                    rng.uniform(0.7, 1.0),
                )
            )
        canvas.density += (0.18 + 0.16 * s) * canvas.strokes(bands, 0.005) * chest.lungs[side]


def lung_lesion(chest: Chest, finding: Finding) -> None:
    """A nodule, several, a mass with spicules, or a cavity."""
    canvas, rng, s = chest.canvas, chest.canvas.rng, finding.severity
    count = int(rng.integers(3, 7)) if finding.kind == "nodules" else 1
    for _ in range(count):
        side = int(rng.choice([-1, 1])) if count > 1 else SIDES[finding.side][0]
        zone = str(rng.choice(list(ZONES))) if count > 1 else finding.zone
        x, y = (
            side * rng.uniform(0.44 if side > 0 and zone == "lower" else 0.30, 0.60),
            ZONES[zone] + rng.uniform(-0.12, 0.12),
        )
        radius = {"nodule": 0.045 + 0.045 * s, "nodules": 0.036 + 0.034 * s}.get(finding.kind, 0.085 + 0.08 * s)
        outline = blob(x, y, radius, radius * rng.uniform(0.85, 1.15), rng, 0.05)
        mask = canvas.area(outline, 0.008 + 0.05 * radius)
        if finding.kind == "mass":
            spikes = [
                (np.array([(x, y), (x + np.cos(t) * radius * 1.5, y + np.sin(t) * radius * 1.5)]), 0.009, 0.45)
                for t in rng.uniform(0, 6.28, 12)
            ]
            mask = np.maximum(mask, canvas.strokes(spikes, 0.004))
        if finding.kind == "cavity":
            mask *= 1 - 0.85 * canvas.area(blob(x, y, radius * 0.62, radius * 0.6, rng, 0.08), 0.008)
        canvas.density += (0.24 + 0.16 * s) * mask * np.maximum(chest.lungs[side], 0.3)


def lung_opacity(chest: Chest, finding: Finding) -> None:
    """An unspecific opacity: faint ground-glass haze or a fine net of lines."""
    canvas, rng, s = chest.canvas, chest.canvas.rng, finding.severity
    for side in SIDES[finding.side]:
        mask, centre = _patch(chest, side, finding.zone, 0.20 + 0.12 * s, 0.15)
        if finding.kind == "hazy":
            canvas.density += (0.09 + 0.12 * s) * mask
            continue
        net = []
        for _ in range(90):
            p = centre + rng.uniform(-0.34, 0.34, 2)
            net.append((np.array([p, p + rng.normal(0, 0.045, 2)]), 0.008, rng.uniform(0.5, 1)))
        canvas.density += (0.11 + 0.11 * s) * canvas.strokes(net, 0.003) * mask + 0.04 * mask


def pleural_effusion(chest: Chest, finding: Finding) -> None:
    """Fluid with a meniscus that climbs the wall: from a blunted angle to a white hemithorax."""
    canvas, a, rng, s = chest.canvas, chest.anatomy, chest.canvas.rng, finding.severity
    for side in SIDES[finding.side]:
        grade = s * rng.uniform(0.6, 1.1) if finding.side == "bilateral" else s
        level = a.dome[side] + 0.02 - 0.75 * grade**1.6
        w = a.half_width + 0.1
        surface = curve(
            [
                (w, level - 0.10),
                (w * 0.84, level - 0.02),
                (w * 0.68, level + 0.09),
                (w * 0.40, level + 0.145),
                (0.0, level + 0.15),
            ],
            8,
        ) * (side, 1)
        fluid = canvas.area(np.vstack([surface, [(0, 1.2), (side * 1.2, 1.2)]]), 0.014)
        chest.fill((0.36 + 0.08 * grade) * fluid * chest.lungs[side], 0.9)
        veil = canvas.area(np.vstack([surface - (0, 0.12), [(0, 1.2), (side * 1.2, 1.2)]]), 0.09)
        canvas.density += 0.05 * veil * chest.lungs[side] * (1 - fluid)


def pleural_other(chest: Chest, finding: Finding) -> None:
    """Thickened pleura over an apex or along the wall, or calcified plaques."""
    canvas, a, rng, s = chest.canvas, chest.anatomy, chest.canvas.rng, finding.severity
    for side in SIDES[finding.side]:
        lung = canvas.area(a.lung(side), 0.004) * (1 - chest.silhouette)
        if finding.kind == "plaques":
            for _ in range(int(4 + 4 * s)):
                y = rng.uniform(-0.25, a.dome[side])
                on_dome = rng.random() < 0.4
                x = side * rng.uniform(0.3, 0.6) if on_dome else a.wall(side, y) - side * rng.uniform(0.02, 0.14)
                y = a.dome[side] - 0.005 if on_dome else y
                rx, ry = (0.11, 0.026) if on_dome else (0.045, 0.10)
                plaque = canvas.area(blob(x, y, rx * (0.7 + 0.6 * s), ry * (0.7 + 0.6 * s), rng, 0.3), 0.004)
                canvas.density += (
                    (0.26 + 0.16 * s) * plaque * np.clip(0.8 + 0.3 * canvas.clouds(0.015), 0.2, 1.4) * lung
                )
            continue
        thickness = 0.048 + 0.11 * s
        inner = a.lung(side) - (side * thickness, -thickness * (1.5 if finding.kind == "apical" else -0.2))
        inner += canvas.rng.normal(0, 0.006, inner.shape)
        rind = lung * (1 - canvas.area(inner, 0.006))
        top, bottom = (-1.2, a.apex + 0.26) if finding.kind == "apical" else (-0.45, a.dome[side] + 0.2)
        inner_x = 0.0 if finding.kind == "apical" else 0.45
        band = np.array([(side * inner_x, top), (side * 1.2, top), (side * 1.2, bottom), (side * inner_x, bottom)])
        canvas.density += (0.30 + 0.14 * s) * rind * canvas.area(band, 0.04)


def pneumothorax_mask(chest: Chest, finding: Finding) -> tuple[np.ndarray, np.ndarray]:
    """The air beyond the visceral pleura, 0..1, and the pleural line's layer, 0..1."""
    canvas, a, s = chest.canvas, chest.anatomy, finding.severity
    side = SIDES[finding.side][0]
    outline = a.lung(side)
    hilum = np.array([side * 0.12, 0.05])
    upward = np.clip((0.35 - outline[:, 1:]) / 1.1, 0.15, 1)  # upright, the air rises to the apex
    kept = 1 - (0.07 + 0.56 * s**1.1) * upward
    inner = hilum + (outline - hilum) * kept
    lung = canvas.area(inner, 0.006)
    beyond = canvas.area(outline, 0.006) * (1 - lung) * (chest.lungs[side] > 0.2)
    line = canvas.strokes([(np.vstack([inner, inner[:1]]), 0.011, 1.0)], 0.002)
    return beyond, line * canvas.area(outline, 0.004) * (chest.lungs[side] > 0.2)


def pneumothorax(chest: Chest, finding: Finding) -> None:
    """A pleural line, darker air without markings beyond it (the caller ends the vessels there), a denser lung."""
    beyond, line = pneumothorax_mask(chest, finding)
    side = SIDES[finding.side][0]
    chest.canvas.density += 0.15 * line - 0.16 * beyond
    chest.canvas.density += (0.02 + 0.14 * finding.severity**2) * chest.lungs[side] * (1 - beyond)


def broken_bones(a: Anatomy, findings: tuple[Finding, ...], rng: np.random.Generator) -> tuple[dict, dict, list]:
    """Pieces of every posterior rib and clavicle, for `phantom.bones`, and the centres of callus."""
    ribs = {(side, n): [rib(a, side, n)] for side in (-1, 1) for n in range(9)}
    collars = {side: [clavicle(a, side)] for side in (-1, 1)}
    callus = []
    for finding in findings:
        if finding.label != "Fracture":
            continue
        side, s = SIDES[finding.side][0], finding.severity
        if finding.kind == "clavicle":
            collars[side] = _snap(collars[side][0], rng.uniform(0.45, 0.65), (0, 0.060 + 0.100 * s))
            continue
        first = {"upper": 2, "mid": 4, "lower": 5}[finding.zone] + int(rng.integers(0, 2))
        for number in range(first, min(first + 3 + int(2 * s), 9)):
            at = rng.uniform(0.50, 0.78)
            step = rng.choice([-1, 1]) * (0.040 + 0.050 * s)
            ribs[side, number] = _snap(ribs[side, number][0], at, (rng.uniform(-0.01, 0.01), step))
            if rng.random() < 0.7:
                callus.append(ribs[side, number][1][0])
    return ribs, collars, callus


def _snap(axis: np.ndarray, at: float, displacement: tuple[float, float]) -> list[np.ndarray]:
    cut = int(at * len(axis))
    return [axis[: cut - 1], axis[cut + 1 :] + displacement]


def _tube(points: list[tuple[float, float]], width: float, strength: float) -> list[tuple[np.ndarray, float, float]]:
    return [(curve(points), width, strength), (curve(points), width * 0.45, strength * 0.45)]


def support_devices(chest: Chest, finding: Finding) -> None:
    """Tubes, lines, a pacemaker or sternal wires, at realistic places and widths: 0.005 is 1 mm."""
    canvas, a, rng = chest.canvas, chest.anatomy, chest.canvas.rng
    side = SIDES[finding.side][0]
    shift, lines = a.shift, []
    jitter = rng.normal(0, 0.02)
    svc = [(-0.13 + shift, -0.42), (-0.12 + shift, -0.22), (-0.11 + shift + jitter, -0.06 + jitter)]
    for kind in finding.kind.split(","):
        if kind == "endotracheal tube":
            lines += _tube([(0.02, -1.2), (shift * 2, -0.8), (shift * 2 + jitter / 3, -0.50 + jitter)], 0.056, 0.8)
        elif kind == "central line":
            lines += [(curve([(-0.16 - jitter, -1.2), (-0.17, -0.85), *svc]), 0.015, 0.95)]
        elif kind == "picc line":
            lines += [
                (
                    curve([(side * 1.02, -0.25), (side * 0.85, -0.52), (side * 0.5, -0.60), (side * 0.2, -0.55), *svc]),
                    0.012,
                    0.85,
                )
            ]
        elif kind == "enteric tube":
            lines += [
                (
                    curve(
                        [
                            (0.0, -1.2),
                            (0.03, -0.5),
                            (0.04, 0.2),
                            (0.10, a.dome[1] + 0.12),
                            (0.30 + jitter, a.dome[1] + 0.28),
                        ]
                    ),
                    0.029,
                    0.85,
                )
            ]
        elif kind == "chest tube":
            lines += _tube(
                [(side * 1.0, 0.30 + jitter), (side * 0.72, 0.12), (side * 0.60, -0.2), (side * 0.42, -0.58 + jitter)],
                0.050,
                0.8,
            )
        elif kind == "pacemaker":
            x, y = side * 0.62 + jitter, -0.52
            canvas.density += 0.55 * canvas.area(blob(x, y, 0.125, 0.11, rng, 0.02), 0.006)
            for tip in [(0.24 + jitter, 0.30), (-0.10, 0.06)][: int(rng.integers(1, 3))]:
                lines += [
                    (
                        curve(
                            [
                                (x, y + 0.05),
                                (side * 0.40, -0.62),
                                (side * 0.16, -0.55),
                                *svc[:2],
                                ((tip[0] - 0.12) / 2, 0.16),
                                tip,
                            ]
                        ),
                        0.012,
                        0.95,
                    )
                ]
        elif kind == "sternal wires":
            lines += [
                (blob(rng.normal(0, 0.006), y, 0.036, 0.020, rng, 0.1), 0.010, 0.95)
                for y in np.arange(-0.42, 0.32, 0.13)
            ]
    canvas.density += 0.48 * canvas.strokes(lines, 0.002)


#: Drawn in this order; what is drawn with the anatomy (heart, bones) is not here.
DRAW: dict[str, Callable[[Chest, Finding], None]] = {
    "Edema": edema,
    "Lung Opacity": lung_opacity,
    "Pneumonia": pneumonia,
    "Consolidation": consolidation,
    "Atelectasis": atelectasis,
    "Lung Lesion": lung_lesion,
    "Pneumothorax": pneumothorax,
    "Pleural Other": pleural_other,
    "Pleural Effusion": pleural_effusion,
    "Support Devices": support_devices,
}
