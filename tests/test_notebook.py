"""The notebook runs from top to bottom on a small run in the layout that `make demo` creates."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from chexzero.common.labels import LABELS
from chexzero.model import CLIP

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "zero_shot.ipynb"


@pytest.mark.long
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    rng = np.random.default_rng(0)
    run, data = tmp_path / "checkpoints" / "demo", tmp_path / "data"
    run.mkdir(parents=True)
    data.mkdir()
    for step in (10, 20, 30, 40):
        torch.manual_seed(step)
        torch.save(CLIP(16, 64, 1, 64, 32, 77, 49408, 64, 1, 1).state_dict(), run / f"checkpoint_{step}.pt")
    pd.DataFrame({"step": [10, 20, 30, 40], "mean_5": [0.5, 0.8, 0.7, 0.6]}).to_csv(run / "metrics.csv", index=False)
    with h5py.File(data / "test.h5", "w") as file:
        file["cxr"] = rng.integers(0, 256, (24, 320, 320), dtype=np.uint8)
    labels = pd.DataFrame({label: rng.permutation([0, 1] * 12) for label in LABELS})
    labels.to_csv(data / "test_labels.csv", index=False)
    monkeypatch.setenv("CHEXZERO_DEMO", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=240).execute()
    chosen = notebook.cells[3]["outputs"][0]["data"]["text/plain"]
    assert [f"checkpoint_{step}.pt" in chosen for step in (20, 30, 40, 10)] == [True, True, True, False]
    assert len(list((tmp_path / "predictions").glob("*.npy"))) == 3
