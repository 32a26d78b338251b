"""`run_zero_shot.py --suite ...` from the drawn releases to the report, with an untrained model."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from chexzero.common.errors import UserError
from chexzero.common.labels import LABELS
from chexzero.imaging.image_files import ImageFiles
from chexzero.models.checkpoints import load_model
from chexzero.models.towers import create_model
from chexzero.suites import EvaluationContext
from chexzero.suites.tables import read_labelled
from chexzero.zero_shot import embed_images
from data_prep.__main__ import main as data_prep
from run_zero_shot import evaluate, parse_args
from tests.release_corpus import QUICK_AUDIT

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def folder(demo_releases, tmp_path_factory):
    """A folder with data/, splits/ and the checkpoint tiny.pt."""
    folder = tmp_path_factory.mktemp("suites_run")
    places = ["--data_root", str(demo_releases), "--out", str(folder / "data")]
    data_prep(["build", *places, "--workers", "1", *QUICK_AUDIT])
    torch.manual_seed(0)
    model = create_model("dinov3_tiny", text_encoder="tiny", image_resolution=32, random_init=True)
    torch.save(model.state_dict(), folder / "tiny.pt")
    return folder


def run(folder, *flags):
    paths = ["--checkpoint", str(folder / "tiny.pt"), "--data", str(folder / "data"), "--out", str(folder / "results")]
    evaluate(parse_args([*paths, "--n_bootstrap", "20", *flags]))
    return json.loads((folder / "results/tiny/metrics.json").read_text())["sections"]


def test_all_suites_reach_the_report_and_the_metrics(folder):
    counts = pd.DataFrame({"finding": ["images", *LABELS], "count": [1000, *range(5, 145, 10)]})
    counts.to_csv(folder / "counts.csv", index=False)
    sections = run(
        folder,
        "--suite",
        "cxr-lt",
        "chexbench",
        "subgroups",
        "retrieval",
        "--cxr_lt_counts",
        str(folder / "counts.csv"),
    )  # the reports are in the table of the build
    assert set(sections["cxr_lt"]["groups"]) == {"head", "medium", "tail", "average"}
    assert {"view", "binary", "single", "sets"} <= set(sections["chexbench"])
    assert set(sections["subgroups"]["attributes"]) == {"sex", "race", "age (65)", "age (bands)"}
    assert sections["retrieval"]["pairs"] >= 20
    page = (folder / "results/tiny/report.html").read_text()
    for title in (
        "Long-tailed and unseen findings",
        "Multiple choice by similarity",
        "Groups of patients",
        "Image to report and back",
        "too small and is not compared",
        "CheXagent (paper)",
        "team A",
    ):
        assert title in page
    assert (folder / "results/tiny/chexbench_questions.json").is_file()


def test_a_suite_that_cannot_run_stops_the_command_with_one_sentence(folder):
    with pytest.raises(UserError, match="nowhere.csv does not exist"):
        run(folder, "--suite", "retrieval", "--report_texts", str(folder / "nowhere.csv"))


def test_labels_of_a_folder_of_images_are_joined_by_the_files_names(folder, demo_releases):
    files = sorted((demo_releases / "chexpert_plus" / "PNG" / "train").rglob("*.png"))[:8]
    images = folder / "mimic" / "p10"
    images.mkdir(parents=True)
    for i, path in enumerate(files):
        (images / f"{i:03d}.png").symlink_to(path)
    table = pd.DataFrame({"dicom_id": ["005", "001", "003", "002"], "Bulla": [1, 0, 1, 0], "Hilum": [0, 0, 1, 1]})
    table.to_csv(folder / "labels.csv", index=False)
    flags = ["--suite", "cxr-lt", "--cxr_lt_images", str(folder / "mimic"), "--cxr_lt_labels"]
    found = run(folder, *flags, str(folder / "labels.csv"))["cxr_lt"]
    assert found["images"] == 4 and found["per_label"]["Bulla"]["positives"] == 2
    context = EvaluationContext(load_model(folder / "tiny.pt"), "cpu", folder, folder, folder)
    data = read_labelled(context, folder / "mimic", folder / "labels.csv")
    one_by_one = [embed_images(context.model, ImageFiles([images / f"{name}.png"])) for name in table["dicom_id"]]
    assert np.allclose(data.features, np.concatenate(one_by_one), atol=1e-5)
    with pytest.raises(UserError, match="the first is '9'"):
        table.replace("005", "9").to_csv(folder / "labels.csv", index=False)
        run(folder, *flags, str(folder / "labels.csv"))
