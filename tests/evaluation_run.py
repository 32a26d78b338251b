"""A small run to evaluate: a CLIP whose image projection is fitted in closed form, without training."""

import functools
import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch

from chexzero.common.files import write_json
from chexzero.common.labels import FINDINGS, LABELS, NO_FINDING
from chexzero.imaging.normalise import prepare
from chexzero.model import CLIP
from chexzero.zero_shot import embed_texts

SIDE = 320


def draw(findings: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw a noisy picture with one bright block per finding (13 places)."""
    image = random.normal(90, 20, (SIDE, SIDE))
    for k in np.flatnonzero(findings):
        row, column = divmod(int(k), 4)
        image[row * 64 + 8 : row * 64 + 56, column * 64 + 8 : column * 64 + 56] += random.uniform(20, 90)
    return np.clip(image, 0, 255).astype(np.uint8)


def write_set(folder: Path, name: str, n: int, seed: int, absent: tuple[str, ...] = ()) -> None:
    """Write `<name>.h5` and `<name>_labels.csv` of n studies; every fifth study also has a lateral view."""
    random = np.random.default_rng(seed)
    images, rows = [], []
    for i in range(n):
        findings = random.random(len(FINDINGS)) < 0.25
        findings[[FINDINGS.index(label) for label in absent]] = False
        values = dict(zip(FINDINGS, findings.astype(int), strict=True)) | {NO_FINDING: int(not findings.any())}
        for k, view in enumerate(("frontal", "lateral") if i % 5 == 0 else ("frontal",)):
            study = f"chexpert/{name}/patient{seed}{i:04d}/study1"
            rows.append(
                {
                    "id": f"{study}/view{k + 1}_{view}",
                    "patient_id": f"patient{seed}{i:04d}",
                    "study_id": study,
                    "view": view,
                }
                | {label: values[label] for label in LABELS}
            )
            images.append(draw(findings, random))
    with h5py.File(folder / f"{name}.h5", "w") as handle:
        handle.create_dataset("cxr", data=np.stack(images), chunks=(1, SIDE, SIDE))
        handle.create_dataset("id", data=[row["id"] for row in rows], dtype=h5py.string_dtype())
    pd.DataFrame(rows).to_csv(folder / f"{name}_labels.csv", index=False)


def small_clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(32, 64, 1, 64, 16, 77, 49408, 64, 1, 1).eval()


@torch.no_grad()
def fit(model: CLIP, seed: int = 9, n: int = 300) -> None:
    """Fit `visual.proj` by least squares: features point at present findings' prompts minus their negations."""
    random = np.random.default_rng(seed)
    truth = random.random((n, len(FINDINGS))) < 0.25
    pixels = prepare(torch.from_numpy(np.stack([draw(row, random) for row in truth])), model.image_resolution)
    model.visual.proj.copy_(torch.eye(64)[:, :32])
    projection, model.visual.proj = model.visual.proj, None
    features = model.encode_image(pixels).float()
    model.visual.proj = projection
    wanted = embed_texts(model, FINDINGS) - embed_texts(model, [f"no {label}" for label in FINDINGS])
    target = torch.from_numpy(truth.astype(np.float32) - 0.25) @ torch.linalg.pinv(torch.from_numpy(wanted)).T
    ridge = features.T @ features + 0.5 * torch.eye(64)
    projection.copy_(torch.linalg.solve(ridge, features.T @ target) + 1e-4)


@functools.cache
def _validated() -> dict[int, dict[str, torch.Tensor]]:
    """Weights by step: not fitted, fitted to few images, fitted to many."""
    model = small_clip()
    states = {0: {key: value.clone() for key, value in model.state_dict().items()}}
    for step, n in ((10, 60), (20, 300)):
        fit(model, n=n)
        states[step] = {key: value.clone() for key, value in model.state_dict().items()}
    return states


def write_run(root: Path) -> tuple[Path, Path]:
    """Write `<root>/data` and `<root>/checkpoints/small` with three validated steps, the last of them fitted."""
    data, run = root / "data", root / "checkpoints" / "small"
    data.mkdir()
    run.mkdir(parents=True)
    write_set(data, "valid", 60, 1, absent=("Fracture",))
    write_set(data, "test", 90, 2)
    write_json(data / "build.json", {"drawn": True, "overlap": {"dropped": 2, "note": "<script>alert(1)</script>"}})
    for step, state in _validated().items():
        torch.save(state, run / f"checkpoint_{step}.pt")
    rows = [{"step": step, "mean_5": value, "mean_13": value} for step, value in ((0, 0.5), (10, 0.7), (20, 0.8))]
    pd.DataFrame(rows).to_csv(run / "metrics.csv", index=False)
    pd.DataFrame({"step": range(1, 21), "loss": np.linspace(3, 1, 20)}).to_csv(run / "train_log.csv", index=False)
    write_json(
        run / "config.json",
        {
            "settings": {"valid": str(data / "valid.h5"), "vision": "vit_b_32"},
            "model": {"vision": "small & <b>odd</b>", "parameters": 1e6},
        },
    )
    write_json(
        run / "selection.json",
        {
            "step": 20,
            "checkpoint": "checkpoint_20.pt",
            "metric": "mean_5",
            "value": 0.8,
            "lower": 0.65,
            "upper": 0.9,
            "n_compared": 3,
            "runner_up": {"step": 10, "value": 0.7},
            "reason": "Step 20 had the highest mean_5 of 3.",
        },
    )
    return data, run


def change_labels(data: Path, name: str, change) -> None:
    """Rewrite a label file with `change(table)`."""
    path = data / f"{name}_labels.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())
