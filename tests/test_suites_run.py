"""`run_zero_shot.py --suite ...` from the drawn releases to the report, with a model that has learnt nothing."""

import json

import pandas as pd
import pytest
import torch

from chexzero.errors import UserError
from chexzero.labels import LABELS
from chexzero.towers import create_model
from data_prep.__main__ import main as data_prep
from run_zero_shot import evaluate, parse_args


@pytest.fixture(scope="module")
def folder(demo_releases, tmp_path_factory):
    """A folder with data/, splits/ and the checkpoint tiny.pt."""
    folder = tmp_path_factory.mktemp("suites_run")
    data_prep(["build", "--data_root", str(demo_releases), "--out", str(folder / "data"), "--workers", "1"])
    torch.manual_seed(0)
    model = create_model("dinov3_tiny", text_encoder="tiny", image_resolution=32, random_init=True)
    torch.save(model.state_dict(), folder / "tiny.pt")
    return folder


def run(folder, *flags):
    paths = ["--checkpoint", str(folder / "tiny.pt"), "--data", str(folder / "data"),
             "--out", str(folder / "results")]
    evaluate(parse_args([*paths, "--n_bootstrap", "20", *flags]))
    return json.loads((folder / "results/tiny/metrics.json").read_text())["sections"]


def test_all_suites_reach_the_report_and_the_metrics(folder, demo_releases):
    reports = next((demo_releases / "chexpert_plus").glob("df_chexpert_plus*.csv"))
    counts = pd.DataFrame({"finding": ["images", *LABELS], "count": [1000, *range(5, 145, 10)]})
    counts.to_csv(folder / "counts.csv", index=False)
    sections = run(folder, "--suite", "cxr-lt", "chexbench", "subgroups", "retrieval", "--report_texts", str(reports),
                   "--cxr_lt_counts", str(folder / "counts.csv"))
    assert set(sections["cxr_lt"]["groups"]) == {"head", "medium", "tail", "average"}
    assert {"view", "binary", "single", "sets"} <= set(sections["chexbench"])
    assert set(sections["subgroups"]["attributes"]) == {"sex", "race", "age (65)", "age (bands)"}
    assert sections["retrieval"]["pairs"] >= 20
    page = (folder / "results/tiny/report.html").read_text()
    for title in ("Long-tailed and unseen findings", "Multiple choice by similarity", "Groups of patients",
                  "Image to report and back", "says nothing", "CheXagent (paper)", "team A"):
        assert title in page
    assert (folder / "results/tiny/chexbench_questions.json").is_file()


def test_a_suite_that_cannot_run_stops_the_command_with_one_sentence(folder):
    with pytest.raises(UserError, match="--report_texts"):
        run(folder, "--suite", "retrieval")
