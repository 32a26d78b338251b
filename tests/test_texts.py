"""Which part of a report is used in which epoch, and how much of it is cut."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from training_corpus import flags, write_corpus

import run_train
from chexzero.common.errors import UserError
from chexzero.train import CXRDataset, planned_loader, preprocess_text
from chexzero.training.batches import Batches
from chexzero.training.texts import dataset_options, report

IMPRESSION = "No edema. Heart of 3.5 times 2. size is normal!  Lines in place"
FINDINGS = "1. Clear lungs.\n\nNo effusion"


def read(section="impression", sentences="all", row=0, epoch=0, seed=0, texts=(IMPRESSION, FINDINGS)):
    return report(texts, row, epoch, section=section, sentences=sentences, seed=seed)


def test_sections():
    assert read("impression") == "No edema. Heart of 3.5 times 2. size is normal! Lines in place"
    assert read("findings") == "1. Clear lungs. No effusion"
    assert read("both") == read("findings") + " " + read("impression")
    assert [read("alternate", epoch=epoch) for epoch in range(3)] == [
        read("impression"),
        read("findings"),
        read("impression"),
    ]
    assert read("alternate", epoch=1, texts=("Clear.", "")) == read("both", texts=("Clear.", "")) == "Clear."
    assert read("both", texts=("Clear.", "Clear.")) == "Clear."  # a report without sections is in both columns
    assert read("findings", texts=("Clear.", "")) == read(texts=(" ",)) == " "


def test_sentences():
    parts = ["No edema.", "Heart of 3.5 times 2. size is normal!", "Lines in place"]
    seen = {name: {read(sentences=name, row=row) for row in range(200)} for name in ("shuffle", "sample", "one")}
    assert seen["one"] == set(parts)
    assert len(seen["shuffle"]) == 6 and all(len(text) == len(" ".join(parts)) for text in seen["shuffle"])
    assert len(seen["sample"]) == 3 + 6 + 6  # one, two or three, in any order
    assert seen["sample"] == seen["one"] | seen["shuffle"] | {f"{a} {b}" for a in parts for b in parts if a != b}


def test_a_text_depends_on_seed_epoch_and_row_alone():
    def texts(**of):
        return [read(sentences="shuffle", **({"row": row} | of)) for row in range(20)]

    assert texts() == texts()
    assert texts() != texts(epoch=1) and texts() != texts(seed=1)


@pytest.fixture
def corpus(tmp_path):
    root = write_corpus(tmp_path, train=12)
    table = pd.read_csv(root / "data/impressions.csv")
    table["impression"], table["findings"] = "A b. C d. E f.", "G h. I j."
    table.to_csv(root / "data/impressions.csv", index=False)
    return root


def test_workers_read_the_same_texts_as_one_process(corpus):
    files = [corpus / "data/cxr.h5", corpus / "data/impressions.csv"]
    dataset = CXRDataset(*files, **dataset_options("alternate", "shuffle", seed=3))

    def epoch(number, workers):
        batches = Batches(np.arange(12), 5, seed=1)
        batches.set_position(number, 0)
        return [batch["txt"].tolist() for batch in planned_loader(dataset, batches, workers, torch.device("cpu"))]

    assert epoch(0, 0) == epoch(0, 2) and epoch(1, 0) == epoch(1, 2)
    words = preprocess_text([dataset.vary(dataset.sections[0], 0, 1)], dataset)[0].tolist()
    rows = [tokens for batch in epoch(1, 0) for tokens in batch]
    assert any(words[: len(tokens)] == tokens for tokens in rows)
    assert (
        dataset[[0]]["txt"].tolist() == preprocess_text(["A b. C d. E f."], dataset)[:, :11].tolist()
    )  # held-out pairs


def test_what_is_cut_is_said_and_recorded(corpus, caplog):
    caplog.set_level("INFO")
    argv = flags(corpus, "cut", "--max_steps", "1", "--val_interval", "0", "--context_length", "8", "--text_section")
    run_train.model_pipeline(run_train.parse_args([*argv, "both"]))
    assert "12 of 12 reports are longer than --context_length 8 and are cut" in caplog.text
    reports = json.loads((corpus / "runs/cut/config.json").read_text())["reports"]
    assert reports == {
        "context_length": 8,
        "reports_counted": 12,
        "reports_cut": 12,
        "tokens": 12 * 17,
        "tokens_cut": 12 * 9,
    }


def test_a_table_without_findings_is_refused(tmp_path):
    root = write_corpus(tmp_path, train=3)
    with pytest.raises(UserError, match="lacks the column findings"):
        run_train.make(run_train.parse_args(flags(root, "none", "--text_section", "alternate")))
