"""Chest phantoms: thorax, lungs, vessels, ribs, spine, heart and diaphragms, drawn by code.

Everything is drawn as radiographic density, where 0 is air around the patient and about 1 is the dense abdomen, and
converted to pixel values at the end, with varying exposure, scatter and noise.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from data_prep.demo.canvas import Canvas, blob, curve
from data_prep.demo.cases import Patient

SIDES = {"right": (-1,), "left": (1,), "bilateral": (-1, 1)}


@dataclass
class Anatomy:
    """The dimensions of one thorax, in thorax units; findings change them before drawing."""

    half_width: float  # of the lungs, at their widest
    apex: float  # y of the lung apices
    dome: dict[int, float]  # y of each diaphragm's dome: -1 right, 1 left
    fat: float  # of the chest wall
    heart: float  # cardiothoracic ratio
    mediastinum: float  # half width above the heart
    knob: float  # radius of the aortic knob
    shift: float  # of heart and trachea towards the patient's left
    bow: float  # of the spine
    ribs: np.ndarray  # (5,): first rib's height, spacing, slope, width, bend
    rib_steps: dict[int, np.ndarray]  # (9,) how far each rib of a side lies off the regular spacing
    vertebrae: tuple[float, float]  # their height and where they begin
    wobble: dict[str, np.ndarray]  # this patient's offsets of the control points of every outline, (n, 2)
    female: bool
    age: int

    def lung(self, side: int) -> np.ndarray:
        """Outline of the air of one lung, to the midline; the mediastinum is laid over it."""
        w, dome = self.half_width, self.dome[side]
        points = [
            (0.05, self.apex + 0.22),
            (0.2, self.apex + 0.04),
            (0.36, self.apex),
            (0.5, self.apex + 0.1),
            (w * 0.78, self.apex + 0.38),
            (w * 0.93, -0.12),
            (w, 0.25),
            (w * 0.99, dome + 0.13),
            (w * 0.93, dome + 0.19),
            (w * 0.82, dome + 0.06),
            (w * 0.55, dome - 0.02),
            (w * 0.3, dome + 0.015),
            (0.04, dome + 0.08),
        ]
        return curve(points + self.wobble["right lung" if side < 0 else "left lung"], 6, closed=True) * (side, 1)

    def wall(self, side: int, y: float) -> float:
        """x of the inner chest wall of one side at the height y."""
        outline = self.lung(side) * (side, 1)
        near = np.abs(outline[:, 1] - y) < 0.06
        return side * float(outline[near, 0].max()) if near.any() else side * self.half_width * 0.9


#: Outline, number of control points, and how far they differ between patients.
OUTLINES = (
    ("right lung", 13, 0.012),
    ("left lung", 13, 0.012),
    ("heart", 10, 0.013),
    ("mediastinum", 13, 0.007),
    ("right clavicle", 5, 0.020),
    ("left clavicle", 5, 0.020),
    ("right blade", 4, 0.04),
    ("left blade", 4, 0.04),
)


def sample_anatomy(patient: Patient, projection: str, rng: np.random.Generator) -> Anatomy:
    """The patient's thorax in this projection and breath. Supine (AP) lungs are shorter and hearts wider."""
    own = np.random.default_rng(patient.build)
    breath = rng.normal(0, 0.025)
    supine = projection == "AP"
    dome = 0.43 + own.normal(0, 0.035) + breath - 0.05 * supine
    wobble = {part: own.normal(0, size, (n, 2)) for part, n, size in OUTLINES}
    wobble["right lung"][7:12] *= 0.5  # the costophrenic angle stays sharp
    wobble["left lung"][7:12] *= 0.5
    return Anatomy(
        half_width=0.74 + own.normal(0, 0.035),
        apex=-0.78 + own.normal(0, 0.025),
        dome={-1: dome - 0.035 + rng.normal(0, 0.01), 1: dome + 0.015 + rng.normal(0, 0.01)},
        fat=float(own.uniform(0.02, 0.12)),
        heart=0.435 + own.normal(0, 0.022) + 0.02 * supine,
        mediastinum=0.15 + own.normal(0, 0.01) + 0.012 * supine,
        knob=0.085 + 0.0007 * (patient.age - 50) + own.normal(0, 0.008),
        shift=own.normal(0, 0.01),
        bow=own.normal(0, 0.02),
        ribs=own.uniform((-0.03, 0.115, 0.14, 0.042, -0.09), (0.06, 0.142, 0.32, 0.060, -0.03)),
        rib_steps={side: own.normal(0, 0.014, 9) + own.normal(0, 0.016) for side in (-1, 1)},
        vertebrae=(own.uniform(0.112, 0.142), own.uniform(0, 0.12)),
        wobble=wobble,
        female=patient.sex == "Female",
        age=patient.age,
    )


@dataclass
class Chest:
    """A drawing in progress: the canvas, the anatomy, and the masks that findings refer to."""

    canvas: Canvas
    anatomy: Anatomy
    lungs: dict[int, np.ndarray]  # aerated part of each side, 0..1
    silhouette: np.ndarray  # heart and mediastinum, 0..1
    markings: np.ndarray  # density of the vessels already drawn

    @property
    def air(self) -> np.ndarray:
        """Both lungs, 0..1."""
        return np.maximum(self.lungs[-1], self.lungs[1])

    def fill(self, amount: np.ndarray, hides: float) -> None:
        """Add density where air was, and let it hide that share of the vessels (0..1) where it is thick."""
        self.canvas.density += amount
        self.canvas.density -= self.markings * np.minimum(amount * (hides / 0.25), hides)


LUNG_DEPTH = 0.46  # density that full aeration takes away
WHITE = 1.35  # density at the window's end: metal over the mediastinum


def draw_frontal(canvas: Canvas, a: Anatomy) -> Chest:
    """Draw a normal frontal chest without vessels and ribs, which findings may alter."""
    body_x = a.half_width + 0.13 + a.fat
    flank = curve(
        [
            (0.22, -2.0),
            (0.22, -1.12),
            (0.30, -0.98),
            (0.62, -0.90),
            (0.95, -0.80),
            (1.25, -0.58),
            (1.36, -0.1),
            (1.40, 2.5),
        ],
        8,
    )
    trunk = curve([(body_x + 0.12, -0.35), (body_x + 0.03, 0.0), (body_x, 0.4), (body_x + 0.02, 2.0)], 8)
    arms = canvas.area(np.vstack([flank, flank[::-1] * (-1, 1)]), 0.012)
    gap = 1.36 - a.fat  # between trunk and arm, for those who have one
    axilla = [np.vstack([trunk, [(1.6, 2.0), (gap, 1.0), (gap - 0.02, 0.0)]]) * (side, 1) for side in (-1, 1)]
    body = arms * (1 - np.maximum(canvas.area(axilla[0], 0.012), canvas.area(axilla[1], 0.012)))
    mottle = 1 + 0.018 * canvas.clouds(0.035) + 0.010 * canvas.clouds(0.013)  # muscle, fat, skin folds
    canvas.density[:] = mottle * body * (0.62 + 0.6 * a.fat) * canvas.thickness(body_x)
    lungs = {side: canvas.area(a.lung(side), 0.007) for side in (-1, 1)}
    silhouette = np.maximum(canvas.area(_heart(a), 0.010), canvas.area(_mediastinum(a), 0.012))
    canvas.density += 0.20 * canvas.area(_abdomen(a), 0.06) * body * (1 - np.maximum(lungs[-1], lungs[1]))
    for side in (-1, 1):
        lungs[side] *= 1 - silhouette
        canvas.density -= LUNG_DEPTH * lungs[side]
    canvas.density += 0.05 * silhouette * np.maximum(lungs[-1], lungs[1])
    _trachea_and_spine(canvas, a)
    if canvas.rng.random() < 0.6:  # gas in the stomach
        gas = blob(0.33 + canvas.rng.normal(0, 0.05), a.dome[1] + 0.18, 0.15, 0.09, canvas.rng, 0.15)
        canvas.density -= 0.14 * canvas.area(gas, 0.02) * (1 - lungs[1])
    if a.female:
        for side in (-1, 1):
            breast = blob(side * a.half_width * 0.62, a.dome[side] - 0.12, 0.30, 0.27 + a.fat, canvas.rng, 0.03)
            canvas.density += (0.045 + 0.5 * a.fat) * canvas.area(breast, 0.025)
    return Chest(canvas, a, lungs, silhouette, np.zeros_like(canvas.density))


def _heart(a: Anatomy) -> np.ndarray:
    total = a.heart * 2 * a.half_width
    left, right, base = total * 0.70, total * 0.30, a.dome[1] + 0.07
    top = -0.12
    mid = (top + base) / 2
    points = [
        (-0.10, top),
        (-right * 0.85, mid - 0.05),
        (-right, mid + 0.08),
        (-right * 0.8, base),
        (left * 0.2, base + 0.05),
        (left * 0.9, base),
        (left, base - 0.10),
        (left * 0.80, mid - 0.02),
        (left * 0.42, top + 0.06),
        (0.13, top),
    ]
    return curve(points + a.wobble["heart"] + (a.shift, 0), 6, closed=True)


def _mediastinum(a: Anatomy) -> np.ndarray:
    m, k = a.mediastinum, a.knob
    left = [
        (m * 0.8, -1.1),
        (m * 0.85, -0.62),
        (m * 0.8 + k * 0.5, -0.46),
        (m * 0.72 + k, -0.37),
        (m * 0.8 + k * 0.4, -0.27),
        (m + 0.05, -0.17),
        (m + 0.06, -0.05),
        (m, 0.6),
    ]
    right = [(-m, 0.6), (-m * 1.02, -0.1), (-m * 0.95, -0.35), (-m * 1.0, -0.6), (-m * 0.85, -1.1)]
    return curve(left + right + a.wobble["mediastinum"] + (a.shift * 0.7, 0), 5, closed=True)


def _abdomen(a: Anatomy) -> np.ndarray:
    right, left = a.dome[-1] - 0.06, a.dome[1] - 0.05
    return np.array(
        [
            (-1.3, right + 0.25),
            (-0.8, right),
            (-0.3, right),
            (0.3, left),
            (0.8, left),
            (1.3, left + 0.25),
            (1.3, 1.8),
            (-1.3, 1.8),
        ]
    )


def _trachea_and_spine(canvas: Canvas, a: Anatomy) -> None:
    y = np.linspace(-1.2, 1.5, 40)
    middle = np.stack([a.bow * np.sin(2.2 * y), y], 1)
    canvas.density += 0.09 * canvas.strokes([(middle, 0.17, 1.0)], 0.02)
    height, start = a.vertebrae
    plates, spinous, pedicles = [], [], []
    for level in np.arange(-1.25 + start, 1.4, height):
        x = a.bow * np.sin(2.2 * level)
        plates.append((np.array([(x - 0.085, level), (x + 0.085, level)]), 0.014, 0.8))
        spinous.append((np.array([(x, level + 0.035), (x, level + 0.085)]), 0.025, 0.9))
        pedicles += [
            (np.array([(x + s * 0.055, level + 0.035), (x + s * 0.055, level + 0.06)]), 0.022, 0.8) for s in (-1, 1)
        ]
    canvas.density += 0.05 * canvas.strokes(plates + spinous + pedicles, 0.006)
    shift = a.shift * 2.5
    trachea = curve([(shift * 0.3, -1.2), (shift, -0.75), (shift - 0.015, -0.36)])
    bronchi = [
        (curve([(shift - 0.015, -0.37), (-0.10, -0.25), (-0.17, -0.17)]), 0.05, 0.8),
        (curve([(shift - 0.015, -0.37), (0.10, -0.25), (0.19, -0.18)]), 0.045, 0.8),
    ]
    canvas.density -= 0.11 * canvas.strokes([(trachea, 0.075, 1.0), *bronchi], 0.009)


def vessels(chest: Chest, calibre: float = 1.0) -> np.ndarray:
    """The pulmonary vessels as a layer 0..1: trees from each hilum, thinner and fainter at every branching."""
    canvas, a, rng = chest.canvas, chest.anatomy, chest.canvas.rng
    lines = []
    for side in (-1, 1):
        hilum = np.array([side * (0.19 + 0.01 * (side < 0)) + a.shift, -0.16 + 0.04 * (side < 0)])
        lines.append(
            (
                curve([hilum + (-side * 0.02, -0.09), hilum + (side * 0.02, 0.0), hilum + (side * 0.03, 0.14)]),
                0.055 * calibre,
                0.8,
            )
        )
        angles = np.linspace(-1.2, 1.35, 8) + rng.normal(0, 0.09, 8)
        starts, lengths = np.repeat(hilum[None], 8, 0), rng.uniform(0.22, 0.36, 8)
        for depth in range(4):
            n = len(angles)
            bend = angles + rng.normal(0, 0.25, n)
            middles = starts + 0.5 * lengths[:, None] * np.stack([side * np.cos(bend), np.sin(bend)], 1)
            ends = starts + lengths[:, None] * np.stack([side * np.cos(angles), np.sin(angles)], 1)
            paths = np.stack([starts, (starts + 3 * middles) / 4, (3 * middles + ends) / 4, ends], 1)
            width, strength = 0.024 * calibre * 0.64**depth, 0.8 * 0.80**depth
            lines += [(path, width, strength) for path in paths]
            turns = rng.normal(0, 0.14, 2 * n) + np.tile([-0.30, 0.34], n)
            angles, starts = np.repeat(angles, 2) + turns, np.repeat(ends, 2, 0)
            lengths = np.repeat(lengths, 2) * rng.uniform(0.5, 0.8, 2 * n)
    lines.sort(key=lambda line: line[2])
    return canvas.strokes(lines, 0.004)


def rib(a: Anatomy, side: int, number: int) -> np.ndarray:
    """The posterior arc (N, 2) of a rib, 0 the first, from the spine to the lateral wall."""
    first, spacing, slope, _, bend = a.ribs
    y = a.apex + first + spacing * number + a.rib_steps[side][number]
    drop = slope * (0.6 + 0.08 * number)
    x = min(0.32 + 0.13 * number, a.half_width * (0.80 + 0.03 * number), a.half_width + 0.02)
    points = [
        (0.07, y),
        (x * 0.45, y + bend),
        (x * 0.8, y + drop * 0.25),
        (x, y + drop * 0.75),
        (x * 0.99, y + drop * 0.9),
    ]
    return curve(points, 6) * (side, 1)


def anterior_rib(a: Anatomy, side: int, number: int) -> np.ndarray:
    """The fainter front part of a rib, from the lateral wall down to where its cartilage begins."""
    x, y = rib(a, side, number)[-1] * (side, 1)
    return curve([(x, y), (x * 0.88, y + 0.10), (x * 0.62, y + 0.16), (x * 0.42, y + 0.13)], 6) * (side, 1)


def clavicle(a: Anatomy, side: int) -> np.ndarray:
    """The clavicle's axis (N, 2), from the sternum outwards."""
    y = a.apex + 0.14
    points = [(0.10, y + 0.07), (0.30, y + 0.035), (0.52, y - 0.045), (0.80, y - 0.085), (1.0, y - 0.06)]
    return curve(points + a.wobble["right clavicle" if side < 0 else "left clavicle"], 6) * (side, 1)


def _blade(a: Anatomy, side: int) -> np.ndarray:
    w = a.half_width
    points = [(0.92, -0.75), (w + 0.02, -0.45), (w + 0.05, 0.0), (w + 0.18, -0.1)]
    return curve(points + a.wobble["right blade" if side < 0 else "left blade"], 8) * (side, 1)


def bones(
    chest: Chest, ribs: dict[tuple[int, int], list[np.ndarray]], clavicles: dict[int, list[np.ndarray]]
) -> np.ndarray:
    """Ribs, clavicles and scapulae as a density layer; a broken bone comes as several pieces."""
    canvas, a = chest.canvas, chest.anatomy
    width = float(a.ribs[3])
    posterior = [piece for pieces in ribs.values() for piece in pieces]
    collars = [piece for pieces in clavicles.values() for piece in pieces]
    front = [(anterior_rib(a, side, number), width, 0.5) for side in (-1, 1) for number in range(1, 6)]
    blades = [(_blade(a, side), 0.02, 0.6) for side in (-1, 1)]
    return (
        0.14 * _hollow(canvas, posterior, width, 0.75, 0.27)
        + 0.05 * canvas.strokes(front, 0.012)
        + 0.15 * _hollow(canvas, collars, 0.075, 0.85, 0.30)
        + 0.05 * canvas.strokes(blades, 0.008)
    )


def _hollow(canvas: Canvas, axes: list[np.ndarray], width: float, strength: float, marrow: float) -> np.ndarray:
    """Long bones: a dense cortex, and marrow that attenuates the beam less."""
    whole = canvas.strokes([(axis, width, strength) for axis in axes], 0.004)
    inside = canvas.strokes([(axis, 0.57 * width, 1 - strength + marrow) for axis in axes], 0.004)
    return np.minimum(whole, 1 - inside)


def expose(canvas: Canvas, projection: str) -> np.ndarray:
    """Turn density into the picture: scatter, window, noise, collimation. Returns float32 0..1."""
    rng, density = canvas.rng, canvas.density
    height, width = density.shape
    small = cv2.resize(density, (width // 8, height // 8), interpolation=cv2.INTER_AREA)
    veil = cv2.resize(
        cv2.GaussianBlur(small, (0, 0), 0.3 * canvas.unit / 8), (width, height), interpolation=cv2.INTER_LINEAR
    )
    scatter = rng.uniform(0.10, 0.3) if projection == "AP" else rng.uniform(0.05, 0.2)
    density = density * (1 - scatter) + veil * scatter
    centre, contrast = 0.50 + rng.normal(0, 0.02), rng.uniform(3.8, 4.8)  # as narrow as after equalisation
    floor, ceiling = (1 / (1 + np.exp(-contrast * (end - centre))) for end in (0.0, WHITE))
    picture = (1 / (1 + np.exp(-contrast * (density - centre))) - floor) / (ceiling - floor)
    dose = rng.uniform(0.003, 0.008) * (1.3 if projection == "AP" else 1.0)
    noise = rng.standard_normal(picture.shape, np.float32)
    noise = 0.5 * noise + cv2.GaussianBlur(noise, (3, 3), 0.8)
    picture += dose * (0.5 + picture) * noise
    low, high = rng.uniform(0.0, 0.06), rng.uniform(0.88, 1.0)
    picture = low + (high - low) * picture
    if rng.random() < 0.25:  # the collimator's blades
        left, right, top, bottom = (rng.uniform(0, 0.06, 4) * (width, width, height, height)).astype(int)
        frame = np.zeros_like(picture)
        frame[top : height - bottom, left : width - right] = 1
        picture = picture * frame + 0.02 * (1 - frame)
    return np.clip(picture, 0, 1).astype(np.float32)
