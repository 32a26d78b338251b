"""`run_zero_shot.py --sets` on drawn sets in the releases' own file layouts."""

import pandas as pd
import pytest
from drawn_datasets import draw
from evaluation_run import metrics_of, write_run
from sklearn.metrics import roc_auc_score

import run_zero_shot
from chexzero.evaluation.named_sets import IDENTITY
from data_prep.__main__ import main as data_prep

NAMES = [
    "padchest",
    "openi",
    "chestxray14",
    "vindr",
    "rsna",
    "siim",
    "mimic",
    "chexpert5x200",
    "montgomery",
    "shenzhen",
]


@pytest.mark.long
def test_every_set_from_its_own_files_to_the_report(tmp_path):
    pytest.importorskip("pydicom")
    data, run = write_run(tmp_path)
    for name in NAMES:
        root = draw(name, tmp_path / name)
        data_prep(["evaluation-set", name, "--root", str(root), "--out", str(data), "--workers", "1"])
    flags = ["--run", str(run), "--out", str(tmp_path / "results"), "--n_bootstrap", "20", "--device", "cpu"]
    path = run_zero_shot.evaluate(run_zero_shot.parse_args([*flags, "--sets", *NAMES]))
    found, page = metrics_of(path.parent)["sections"], path.read_text()
    assert set(found["sets"]) == set(found["prompt_choice"]) == set(NAMES)
    for name in NAMES:
        table = pd.read_csv(data / f"{name}_labels.csv", dtype=str)
        scores = pd.read_csv(path.parent / f"predictions_{name}.csv")
        section = found[f"set_{name}"]
        assert section["images"] == len(table) == len(scores) > 0 and list(scores["id"]) == list(table["id"])
        defined = []
        for finding in table.columns.drop([*IDENTITY]):
            known = table[finding].notna().to_numpy()
            truth = table[finding][known].astype(int)
            assert section["findings"][finding]["n"] == known.sum()
            assert section["findings"][finding]["n_pos"] == truth.sum()
            if 0 < truth.sum() < len(truth):
                area = roc_auc_score(truth, scores[finding][known])
                assert section["findings"][finding]["auroc"] == pytest.approx(area, abs=1e-6)
                defined.append(finding)
        assert section["summaries"]["all findings"]["findings"] <= len(defined)
        assert (path.parent / f"figures/set_{name}.png").is_file() or not defined
    assert found["set_chexpert5x200"]["likeliest"]["protocol"]["images"] == 10
    for said in ("CARZero", "Montgomery County tuberculosis", "MIMIC-CXR test set", "The likeliest of 5 findings"):
        assert said in page
