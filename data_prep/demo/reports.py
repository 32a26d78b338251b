"""The reports of the demo corpus: wording that varies, negations, doubt, asides, and repeated normal reports."""

from dataclasses import dataclass

import numpy as np

from data_prep.demo.cases import Finding, Study

#: Finding -> phrases that say it is there. {grade}, {side}, {zone} are filled in and may be empty.
PRESENT = {
    "Atelectasis": [
        "{grade} {side} basilar atelectasis",
        "{side} lower lobe atelectasis",
        "{grade} atelectasis at the {side} base",
        "subsegmental atelectasis in the {side} lower lung",
        "volume loss and atelectasis, {side} lower lobe",
        "atelectasis",
    ],
    "Cardiomegaly": [
        "{grade} cardiomegaly",
        "cardiomegaly",
        "enlarged heart, {grade} cardiomegaly",
        "the heart is {gradely} enlarged",
        "{gradely} enlarged cardiac silhouette, cardiomegaly",
    ],
    "Consolidation": [
        "{side} {zone} lung consolidation",
        "dense consolidation in the {side} {zone} lung",
        "{grade} consolidation of the {side} lung with air bronchograms",
        "{side} {zone} zone airspace consolidation",
        "consolidation",
    ],
    "Edema": [
        "{grade} pulmonary edema",
        "{grade} interstitial edema",
        "pulmonary edema with perihilar haze and septal lines",
        "{grade} edema and vascular congestion",
        "edema",
    ],
    "Enlarged Cardiomediastinum": [
        "enlarged cardiomediastinum",
        "{gradely} enlarged cardiomediastinum",
        "widened mediastinum",
        "the cardiomediastinum is enlarged",
        "enlarged cardiomediastinum, prominent aorta",
    ],
    "Fracture": [
        "{side} rib fracture",
        "displaced fracture of the {side} {zone} ribs",
        "{side} rib fractures with callus",
        "fracture of {side} ribs",
        "fracture",
    ],
    "Lung Lesion": [
        "{side} lung lesion",
        "{side} {zone} lung nodule",
        "round lesion in the {side} {zone} lung",
        "{side} {zone} lobe mass, suspicious lung lesion",
        "lung lesion",
    ],
    "Lung Opacity": [
        "{side} {zone} lung opacity",
        "hazy opacity in the {side} {zone} lung",
        "{grade} {side} lung opacity",
        "reticular opacities in the {side} {zone} lung",
        "lung opacity",
    ],
    "Pleural Effusion": [
        "{grade} {side} pleural effusion",
        "{side} pleural effusion",
        "{grade} {side} effusion, pleural fluid at the base",
        "blunting of the {side} costophrenic angle, pleural effusion",
        "pleural effusion",
    ],
    "Pleural Other": [
        "pleural other: {side} pleural thickening",
        "{side} pleural thickening",
        "other pleural abnormality, {side} thickening",
        "{side} pleural scarring and thickening",
        "other pleural finding: {side} {zone} pleural thickening",
        "pleural other",
    ],
    "Pneumonia": [
        "{side} {zone} lobe pneumonia",
        "patchy {side} opacities, pneumonia",
        "{side} pneumonia",
        "multifocal airspace disease of the {side} lung in keeping with pneumonia",
        "pneumonia",
    ],
    "Pneumothorax": [
        "{grade} {side} pneumothorax",
        "{side} apical pneumothorax",
        "{side} pneumothorax with visible pleural line",
        "{grade} pneumothorax on the {side}",
        "pneumothorax",
    ],
    "Support Devices": [
        "support devices in place",
        "support devices: {devices}",
        "{devices} in place, support devices as described",
        "{devices} in standard position",
        "support devices",
    ],
}

#: (finding, kind of it) -> phrases for this kind only.
PRESENT_KIND = {
    ("Fracture", "clavicle"): [
        "{side} clavicle fracture",
        "displaced fracture of the {side} clavicle",
        "fracture, {side} clavicle",
    ],
    ("Pleural Other", "plaques"): [
        "calcified pleural plaques, {side}",
        "pleural other: {side} calcified plaques",
        "other pleural abnormality: {side} plaques",
    ],
    ("Pleural Other", "apical"): [
        "{side} apical pleural thickening",
        "pleural other: {side} apical pleural cap",
        "other pleural abnormality: {side} apical thickening",
    ],
    ("Lung Lesion", "cavity"): ["{side} {zone} cavitary lung lesion", "cavitary lesion in the {side} {zone} lung"],
    ("Lung Lesion", "nodules"): [
        "multiple pulmonary nodules, lung lesions",
        "several lung lesions, nodules in both lungs",
    ],
}

#: Finding -> phrases that say it is absent, after "no" or "without".
ABSENT = {
    "Atelectasis": ["atelectasis"],
    "Cardiomegaly": ["cardiomegaly"],
    "Consolidation": ["consolidation", "focal consolidation"],
    "Edema": ["edema", "pulmonary edema"],
    "Enlarged Cardiomediastinum": ["enlarged cardiomediastinum"],
    "Fracture": ["fracture", "acute fracture", "rib fracture"],
    "Lung Lesion": ["lung lesion", "suspicious lung lesion"],
    "Lung Opacity": ["lung opacity", "focal lung opacity"],
    "Pleural Effusion": ["pleural effusion", "effusion"],
    "Pleural Other": ["other pleural abnormality", "pleural other", "pleural thickening"],
    "Pneumonia": ["pneumonia", "evidence of pneumonia"],
    "Pneumothorax": ["pneumothorax"],
    "Support Devices": ["support devices"],
}

#: How often reports deny a finding, relative to the others; 1 where it is not listed.
DENIED = {"Pneumothorax": 3, "Pleural Effusion": 3, "Consolidation": 2, "Pneumonia": 2, "Edema": 2}

DOUBT = ["possible {}", "questionable {}", "{} cannot be excluded", "findings may represent {}", "suspected {}"]
NORMAL = [
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary disease.",
    "No acute cardiopulmonary abnormality.",
    "Normal chest radiograph.",
    "Clear lungs. No acute findings.",
    "No radiographic evidence of acute cardiopulmonary disease.",
]
ASIDES = [
    "Degenerative changes of the thoracic spine.",
    "Surgical clips in the right upper quadrant.",
    "Clinical correlation is recommended.",
    "Findings were discussed with the referring team by telephone.",
    "Follow up as clinically indicated.",
    "Aortic calcifications.",
    "The examination is limited by body habitus.",
    "I have personally reviewed the images for this examination.",
    "Mild scoliosis.",
    "Osteopenia.",
]
REASONS = [
    "Shortness of breath.",
    "Cough and fever.",
    "Chest pain.",
    "Fall.",
    "Preoperative evaluation.",
    "Hypoxia.",
    "Follow up.",
    "Line placement.",
    "Weight loss.",
    "Trauma.",
]
CLEAR = [
    "The lungs are clear.",
    "The heart size is normal.",
    "The mediastinal contours are normal.",
    "The bony thorax is intact.",
    "Lungs are well expanded.",
    "Pulmonary vascularity is normal.",
]
CHANGES = ["unchanged", "slightly increased", "improved", "stable compared to prior"]
GRADES = [
    (0.25, ["minimal", "trace", "subtle"]),
    (0.5, ["mild", "small"]),
    (0.8, ["moderate"]),
    (1.1, ["large", "severe"]),
]
ZONE_WORDS = {"upper": ["upper"], "mid": ["mid", "middle"], "lower": ["lower"]}
CHECKLIST_SHARE = 0.1
#: Projections -> the opening that names them in some impressions; without it no text would distinguish the views.
VIEWS = {
    ("PA",): "PA view of the chest.",
    ("AP",): "Portable AP view of the chest.",
    ("AP", "AP"): "Two portable AP views of the chest.",
    ("PA", "LATERAL"): "PA and lateral views of the chest.",
}
VIEWS_SHARE = 0.2


@dataclass(frozen=True)
class Report:
    """The parts of a report; any may be empty."""

    indication: str
    comparison: str
    technique: str
    findings: str
    impression: str


def write_report(rng: np.random.Generator, study: Study) -> Report:
    """Compose a study's report."""
    comparison = "Prior chest radiograph." if study.follow_up else "None."
    technique = {1: "Single view of the chest.", 2: "Two views of the chest."}[len(study.views)]
    findings = _paragraph(rng, study, thorough=True) if rng.random() < 0.8 else ""
    impression = _impression(rng, study)
    if rng.random() < VIEWS_SHARE and study.views in VIEWS:
        impression = f"{VIEWS[study.views]} {impression}"
    if findings and rng.random() < 0.02:  # a few reports have no impression
        impression = ""
    return Report(_pick(rng, REASONS), comparison, technique, findings, impression)


def _impression(rng: np.random.Generator, study: Study) -> str:
    ill = [finding for finding in study.findings if finding.label != "Support Devices"]
    if not ill and rng.random() < 0.4:
        devices = _sentence(_present(rng, study.findings[0])) + " " if study.findings and rng.random() < 0.8 else ""
        return devices + _pick(rng, NORMAL)
    if rng.random() < CHECKLIST_SHARE:
        return _checklist(rng, study)
    return _paragraph(rng, study, thorough=False)


def _paragraph(rng: np.random.Generator, study: Study, thorough: bool) -> str:
    """Findings in any order, some left unsaid, then denials, doubts about what is not there, and asides."""
    said = [_present(rng, finding) for finding in study.findings if rng.random() < (0.9 if thorough else 0.95)]
    if study.follow_up and said and rng.random() < 0.4:
        said[0] += f", {_pick(rng, CHANGES)}"
    sentences = [_sentence(words) for words in said]
    rng.shuffle(sentences)
    absent = [label for label in ABSENT if not study.labels[label]]
    if thorough:
        sentences += _some(rng, CLEAR, int(rng.integers(0, 2))) if not said else []
    least, most = (3, 5) if thorough else (0, 1) if said else (1, 4)  # a report with findings denies little else
    sentences += _denials(rng, absent, int(rng.integers(least, most + 1)))
    if absent and rng.random() < 0.03:
        sentences.append(_sentence(_doubt(rng, _pick(rng, ABSENT[_pick(rng, absent)]))))
    if rng.random() < 0.1:
        sentences.append(_pick(rng, ASIDES))
    return " ".join(sentences) or _pick(rng, NORMAL)


def _checklist(rng: np.random.Generator, study: Study) -> str:
    """A checklist, as some sites report: a few of the findings by name, each present or absent."""
    labels = [label for label in ABSENT if study.labels[label]]
    absent = [label for label in ABSENT if not study.labels[label]]
    labels += _some(rng, absent, min(len(absent), int(rng.integers(2, 5))))
    rng.shuffle(labels)
    return " ".join(_sentence(label.lower() if study.labels[label] else f"no {label.lower()}") for label in labels)


def _denials(rng: np.random.Generator, absent: list[str], count: int) -> list[str]:
    if not absent or not count:
        return []
    weights = np.array([DENIED.get(label, 1) for label in absent], float)
    chosen = rng.choice(absent, size=min(count, len(absent)), replace=False, p=weights / weights.sum())
    words = [_pick(rng, ABSENT[label]) for label in chosen]
    match int(rng.integers(0, 4)) if len(words) > 1 else 0:
        case 0:
            return [f"No {word}." for word in words]
        case 1:
            return [f"No {', '.join(words[:-1])} or {words[-1]}."]
        case 2:
            return [f"Without {words[0]}.", *(f"No {word}." for word in words[1:])]
    return [f"There is no {' and no '.join(words)}."]


def _present(rng: np.random.Generator, finding: Finding) -> str:
    sayings = PRESENT[finding.label]
    if rng.random() < 0.6:
        sayings = PRESENT_KIND.get((finding.label, finding.kind), sayings)
    elif finding.kind == "clavicle":
        sayings = ["fracture", "acute fracture"]
    grade = next(_pick(rng, words) for limit, words in GRADES if finding.severity < limit)
    gradely = {
        "minimal": "minimally",
        "trace": "slightly",
        "subtle": "slightly",
        "small": "mildly",
        "large": "markedly",
    }.get(grade, grade + "ly")
    text = _pick(rng, sayings).format(
        grade=grade if rng.random() < 0.75 else "",
        gradely=gradely,
        side=finding.side,
        zone=_pick(rng, ZONE_WORDS[finding.zone]),
        devices=" and ".join(finding.kind.split(",")),
    )
    text = " ".join(text.split())
    doubtful = rng.random() < (0.4 if finding.severity < 0.2 else 0.05)
    return _doubt(rng, text) if doubtful and finding.label != "Support Devices" else text


def _doubt(rng: np.random.Generator, words: str) -> str:
    return _pick(rng, DOUBT).format(words)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "."


def _pick(rng: np.random.Generator, options: list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _some(rng: np.random.Generator, options: list[str], count: int) -> list[str]:
    return [options[int(i)] for i in rng.permutation(len(options))[:count]]
