"""What the demo corpus decides before it draws or writes: patients, their studies, findings and labels.

The labels follow CheXpert's hierarchy: Cardiomegaly widens the cardiomediastinum; Edema, Consolidation, Pneumonia,
Atelectasis and Lung Lesion are lung opacities; `No Finding` is set when no other label is, devices aside.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from chexzero.common.labels import LABELS, NO_FINDING

#: Finding -> share of studies that sample it; companions and parents are added.
PREVALENCE = {
    "Atelectasis": 0.10,
    "Cardiomegaly": 0.09,
    "Consolidation": 0.08,
    "Edema": 0.08,
    "Enlarged Cardiomediastinum": 0.07,
    "Fracture": 0.11,
    "Lung Lesion": 0.10,
    "Lung Opacity": 0.06,
    "Pleural Effusion": 0.10,
    "Pleural Other": 0.11,
    "Pneumonia": 0.08,
    "Pneumothorax": 0.10,
    "Support Devices": 0.14,
}

#: Finding -> (companion, how often the companion is added).
COMPANIONS = {
    "Edema": [("Pleural Effusion", 0.30), ("Cardiomegaly", 0.30)],
    "Pleural Effusion": [("Atelectasis", 0.15)],
    "Fracture": [("Pneumothorax", 0.08)],
    "Pneumothorax": [("Support Devices", 0.15)],
}

#: Finding -> the label it implies.
PARENTS = {
    "Cardiomegaly": ["Enlarged Cardiomediastinum"],
    "Edema": ["Lung Opacity"],
    "Consolidation": ["Lung Opacity"],
    "Pneumonia": ["Lung Opacity"],
    "Atelectasis": ["Lung Opacity"],
    "Lung Lesion": ["Lung Opacity"],
}

NORMAL_SHARE = 0.05  # of studies that are set to be normal, besides those for which no finding is sampled
DEVICES = ["endotracheal tube", "central line", "picc line", "enteric tube", "pacemaker", "chest tube", "sternal wires"]
MEN_SHARE = 0.55


@dataclass(frozen=True)
class Finding:
    """One finding of a study. `severity` 0 is barely visible, 1 is gross; `kind` names the device or the pattern."""

    label: str
    side: str = "bilateral"  # "left", "right" (the patient's) or "bilateral"
    zone: str = "lower"  # "upper", "mid" or "lower"
    severity: float = 0.5
    kind: str = ""


@dataclass(frozen=True)
class Patient:
    """A patient to draw. `build` seeds the anatomy, so that it is the same in every study."""

    sex: str  # "Male" or "Female"
    age: int
    race: str
    build: int


@dataclass(frozen=True)
class Study:
    """One examination: findings, the patient, and the projections in order ("PA", "AP" or "LATERAL")."""

    patient: Patient
    findings: tuple[Finding, ...]
    views: tuple[str, ...]
    follow_up: bool = False
    labels: dict[str, int] = field(default_factory=dict)


def labels_of(findings: tuple[Finding, ...]) -> dict[str, int]:
    """The 14 labels, 0 or 1, with what each finding implies."""
    present = {finding.label for finding in findings}
    present |= {parent for label in list(present) for parent in PARENTS.get(label, [])}
    if any(finding.label == "Pneumonia" and finding.severity > 0.35 for finding in findings):
        present.add("Consolidation")
    if not present - {"Support Devices"}:
        present.add(NO_FINDING)
    return {label: int(label in present) for label in LABELS}


def sample_patient(rng: np.random.Generator) -> Patient:
    """Sample a patient with the demographics that the releases record."""
    return Patient(
        sex="Male" if rng.random() < MEN_SHARE else "Female",
        age=int(np.clip(rng.normal(60, 17), 18, 90)),
        race=str(rng.choice(["White", "Asian", "Black", "Other", "Unknown"], p=[0.55, 0.12, 0.1, 0.13, 0.1])),
        build=int(rng.integers(2**31)),
    )


def sample_study(
    rng: np.random.Generator, patient: Patient, earlier: Study | None = None, wanted: str | None = None
) -> Study:
    """Sample a study; about half the findings of an `earlier` study of the same patient persist, with changed severity.

    A `wanted` label is always 1, so that a small evaluation set has both classes of every label.
    """
    findings = {} if rng.random() < NORMAL_SHARE else _sample_findings(rng)
    if wanted == NO_FINDING:
        findings = {}
    elif wanted is not None:
        findings[wanted] = _sample_finding(rng, wanted)
    if earlier is not None and findings:
        for old in earlier.findings:
            if rng.random() < 0.5:
                findings[old.label] = replace(old, severity=float(np.clip(old.severity + rng.normal(0, 0.2), 0, 1)))
    chosen = tuple(findings[label] for label in PREVALENCE if label in findings)
    ill = any(finding.label in ("Edema", "Support Devices") for finding in chosen)
    frontal = "AP" if rng.random() < (0.65 if ill else 0.3) else "PA"
    views = (frontal, "LATERAL") if frontal == "PA" and rng.random() < 0.2 else (frontal,)
    if frontal == "AP" and rng.random() < 0.08:
        views = (frontal, "AP")
    return Study(patient, chosen, views, follow_up=earlier is not None, labels=labels_of(chosen))


def _sample_findings(rng: np.random.Generator) -> dict[str, Finding]:
    chosen = [label for label, share in PREVALENCE.items() if rng.random() < share]
    for label in list(chosen):
        chosen += [other for other, share in COMPANIONS.get(label, []) if rng.random() < share]
    return {label: _sample_finding(rng, label) for label in dict.fromkeys(chosen)}


def _sample_finding(rng: np.random.Generator, label: str) -> Finding:
    severity = float(rng.beta(1.8, 1.1))  # one in eleven below 0.25: the subtle cases
    side = str(rng.choice(["left", "right", "bilateral"], p=[0.4, 0.4, 0.2]))
    zone = str(rng.choice(["upper", "mid", "lower"], p=[0.25, 0.25, 0.5]))
    one_side = side if side != "bilateral" else "right"
    match label:
        case "Cardiomegaly" | "Enlarged Cardiomediastinum" | "Edema":
            return Finding(label, "bilateral", "mid", severity)
        case "Lung Lesion":
            kind = str(rng.choice(["nodule", "mass", "cavity", "nodules"], p=[0.3, 0.35, 0.15, 0.2]))
            return Finding(label, one_side, zone, severity, kind)
        case "Fracture":
            return Finding(label, one_side, zone, severity, str(rng.choice(["ribs", "clavicle"], p=[0.6, 0.4])))
        case "Pleural Other":
            kind = str(rng.choice(["apical", "lateral", "plaques"], p=[0.35, 0.4, 0.25]))
            return Finding(label, side, zone, severity, kind)
        case "Atelectasis":
            return Finding(label, side, "lower", severity, str(rng.choice(["plate", "collapse"], p=[0.5, 0.5])))
        case "Lung Opacity":
            return Finding(label, side, zone, severity, str(rng.choice(["hazy", "reticular"], p=[0.6, 0.4])))
        case "Support Devices":
            kinds = rng.choice(DEVICES, size=int(rng.choice([1, 2, 3], p=[0.2, 0.4, 0.4])), replace=False)
            return Finding(label, one_side, "upper", severity, ",".join(kinds))
        case "Pneumothorax" | "Consolidation":
            return Finding(label, one_side, zone, severity)
    return Finding(label, side, zone, severity)
