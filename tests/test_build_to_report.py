"""Build with non-default options, train, evaluate: every step follows the options, and the report states them."""

import json
from pathlib import Path

import h5py
import pandas as pd
import pytest
from release_corpus import Corpus, write_releases
from training_corpus import flags

import run_train
import run_zero_shot
from chexzero.common.errors import UserError
from chexzero.train import CXRDataset
from chexzero.training.texts import dataset_options


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return write_releases(tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="module")
def built(corpus: Corpus, tmp_path_factory) -> Path:
    """A folder with `data`: images of 448 pixels, and the findings beside the impressions."""
    root = tmp_path_factory.mktemp("built")
    corpus.build(root / "data", "--image_size", "448", "--findings")
    return root


def test_the_stored_size_is_followed_from_the_build_to_the_report(built: Path, blank_figures, capsys):
    run_train.model_pipeline(
        run_train.parse_args(flags(built, "large", "--max_steps", "3", "--batch_size", "4", "--text_section", "both"))
    )
    config = json.loads((built / "runs/large/config.json").read_text())
    assert set(config["data"]["image_size"].values()) == {448} and len(config["data"]["image_size"]) == 2
    words = [
        "--run",
        str(built / "runs/large"),
        "--out",
        str(built / "results"),
        "--n_bootstrap",
        "5",
        "--device",
        "cpu",
    ]
    report = run_zero_shot.evaluate(run_zero_shot.parse_args(words))
    text = report.with_name("report.md").read_text()
    data = text[text.index("## Data\n") :]
    assert "trained on images stored at 448 × 448 pixels" in data
    rows = [line for line in data.splitlines() if line.startswith(("| valid |", "| test |"))]
    assert sum("448 × 448" in line for line in rows) == 2
    assert "448 × 448" in report.read_text()


def test_the_findings_stand_in_a_last_column(corpus: Corpus, built: Path, tmp_path):
    """All other bytes of the table equal those of a build without them."""
    corpus.build(tmp_path / "data", "--image_size", "448")
    plain = pd.read_csv(tmp_path / "data/impressions.csv", dtype=str, keep_default_na=False)
    table = pd.read_csv(built / "data/impressions.csv", dtype=str, keep_default_na=False)
    assert list(table) == [*plain, "findings"] and table.drop(columns="findings").equals(plain)
    assert table["findings"].str.startswith("Findings of ").sum() > len(table) / 2
    for name in ("cxr.h5", "valid_labels.csv", "test_labels.csv"):
        if name.endswith(".csv"):
            assert (tmp_path / "data" / name).read_bytes() == (built / "data" / name).read_bytes()
        else:
            with h5py.File(tmp_path / "data" / name) as one, h5py.File(built / "data" / name) as other:
                assert (one["cxr"][:] == other["cxr"][:]).all()
    dataset = CXRDataset(built / "data/cxr.h5", built / "data/impressions.csv", **dataset_options("both", "all", 0))
    row = int(table["findings"].str.startswith("Findings of ").to_numpy().argmax())
    assert dataset.vary(dataset.sections[row], row, 0) == " ".join(
        f"{table['findings'][row]} {table['impression'][row]}".split()
    )
    with pytest.raises(UserError, match="build` first \\(with --findings for the column findings\\)"):
        CXRDataset(tmp_path / "data/cxr.h5", tmp_path / "data/impressions.csv", **dataset_options("both", "all", 0))


def test_findings_beside_a_section_that_holds_them_are_refused(corpus: Corpus, tmp_path):
    with pytest.raises(UserError, match="--findings and --section both"):
        corpus.build(tmp_path / "data", "--section", "both", "--findings")
