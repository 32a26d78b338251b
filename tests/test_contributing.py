"""The examples of CONTRIBUTING.md run, and the real code uses what they add."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from chexzero.evaluation import results
from chexzero.evaluation.sets import Units
from chexzero.training import loss

EXAMPLES = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL
)


@pytest.fixture
def names(monkeypatch):
    monkeypatch.setattr(results, "LABEL_METRICS", dict(results.LABEL_METRICS))
    monkeypatch.setattr(loss, "LOSSES", dict(loss.LOSSES))
    found: dict = {"__name__": "example"}
    for example in EXAMPLES:
        exec(example, found)
    return found


def test_there_is_an_example_of_each():
    assert len(EXAMPLES) == 4


def test_an_added_metric_is_computed_for_every_label(names):
    rng = np.random.default_rng(0)
    truth, probability = rng.integers(0, 2, (30, 14)), rng.random((30, 14))
    import pandas as pd

    table = pd.DataFrame({name: [f"s{i}" for i in range(30)] for name in ("id", "patient_id", "study_id", "view")})
    units = Units("image", table, truth, np.arange(30), np.arange(30), 0)
    found = results.evaluate_set("test", units, probability, np.full(14, 0.5), 20).metrics()
    expected = np.mean((truth[:, 3] - probability[:, 3]) ** 2)
    assert found["labels"]["Edema"]["brier"] == pytest.approx(expected, abs=1e-15)


def test_an_added_loss_takes_the_rows_of_the_logits(names):
    criterion = loss.LOSSES["smoothed"].criterion("negative")
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    plain = -logits.log_softmax(1)
    expected = (0.9 * plain.diagonal() + 0.1 * plain.mean(1)).mean()
    assert float(criterion(logits, criterion.matches(torch.ones(4, 5)))) == pytest.approx(float(expected), abs=1e-6)
    assert set(names["MyHospital"].chexpert_labels.values()) == {"Cardiomegaly"}
