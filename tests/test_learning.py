"""Learning is real: the zero-shot AUROC comes from the reports and vanishes if they are shuffled among the images.

The whole pipeline (draw, build, train, validate) on a small scale, once with the original reports and once with
shuffled ones. `make demo` does the same on a larger scale, without shuffling.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
STEPS = 500


def command(*words: object) -> None:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("learning")
    command("-m", "data_prep", "demo", "--out", root / "releases", "--train", 1200, "--valid", 150, "--test", 2)
    command(
        "-m",
        "data_prep",
        "build",
        "--data_root",
        root / "releases",
        "--out",
        root / "data",
        "--splits",
        root / "splits",
        "--audit_copies",
        9,
        "--audit_unrelated",
        9,
    )
    return root


def curve(root: Path, name: str, reports: Path) -> np.ndarray:
    """Train with these reports; return the validation means over the 13 findings, step 0 first."""
    command(
        "run_train.py",
        "--config",
        "configs/demo.yaml",
        "--cxr_filepath",
        root / "data/cxr.h5",
        "--txt_filepath",
        reports,
        "--save_dir",
        root / "checkpoints",
        "--model_name",
        name,
        "--max_steps",
        STEPS,
        "--val_interval",
        STEPS // 2,
        "--no-tensorboard",
    )
    return pd.read_csv(root / "checkpoints" / name / "metrics.csv")["mean_13"].to_numpy()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_true_reports_teach_and_shuffled_reports_do_not(built):
    reports = built / "data/impressions.csv"
    shuffled = built / "shuffled/impressions.csv"
    shuffled.parent.mkdir()
    table = pd.read_csv(reports, dtype=str, keep_default_na=False)
    table["impression"] = np.random.default_rng(0).permutation(table["impression"].to_numpy())
    table.to_csv(shuffled, index=False)

    taught, untaught = curve(built, "taught", reports), curve(built, "untaught", shuffled)
    assert 0.35 < taught[0] < 0.65 and len(taught) == 3
    assert taught[-1] > 0.60
    assert 0.40 < untaught[-1] < 0.60
    assert taught[-1] - untaught[-1] > 0.10
