"""Which pairs are read, in which order, by which worker and rank."""

import h5py
import numpy as np
import pytest
import torch
from training_corpus import write_corpus

from chexzero import train
from chexzero.clip import tokenize
from chexzero.common.errors import UserError
from chexzero.train import CXRDataset, planned_loader
from chexzero.training.batches import Batches, hold_out, one_per_study

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), train=30)


@pytest.fixture(scope="module")
def dataset(corpus):
    data = corpus / "data"
    return CXRDataset(data / "cxr.h5", data / "impressions.csv", "impression")


def read(dataset, batches, workers):
    return [
        (batch["img"].clone(), batch["txt"].clone(), batch["row"].clone())
        for batch in planned_loader(dataset, batches, workers, CPU)
    ]


def test_the_order_does_not_depend_on_the_workers_and_can_be_entered_anywhere(dataset):
    batches = Batches(np.arange(30), 7, seed=1)
    alone, many = read(dataset, batches, 0), read(dataset, batches, 2)
    assert len(alone) == 5 and len(alone[-1][0]) == 2  # the last short batch is kept
    for one, other in zip(alone, many, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    batches.set_position(0, 3)
    assert all(torch.equal(a[2], b[2]) for a, b in zip(alone[3:], read(dataset, batches, 0), strict=True))
    batches.set_position(1, 0)
    later = read(dataset, batches, 0)
    assert sorted(torch.cat([b[2] for b in later]).tolist()) == list(range(30))
    assert torch.cat([b[2] for b in later]).tolist() != torch.cat([b[2] for b in alone]).tolist()
    assert [b.tolist() for b in Batches(np.arange(30), 7, seed=2).batches] != [b[2].tolist() for b in alone]


def test_a_batch_holds_the_images_and_texts_of_its_rows(dataset, corpus):
    batch = dataset[[7, 0, 29]]
    with h5py.File(corpus / "data/cxr.h5") as handle:
        assert np.array_equal(batch["img"].numpy(), handle["cxr"][:][[7, 0, 29]])
    assert batch["img"].dtype == torch.uint8
    table = np.genfromtxt(corpus / "data/impressions.csv", delimiter=",", dtype=str, skip_header=1)
    tokens = tokenize([str(text) for text in table[[7, 0, 29], 1]], 77, truncate=True)
    longest = batch["txt"].shape[1]
    assert torch.equal(batch["txt"], tokens[:, :longest]) and not tokens[:, longest:].any()
    assert batch["txt"][:, -1].any()


def test_ranks_share_a_batch_without_overlap(dataset):
    whole = Batches(np.arange(30), 8, seed=5)
    parts = [
        [torch.tensor(rows) for rows in Batches(np.arange(30), 8, seed=5, rank=rank, world_size=2)] for rank in (0, 1)
    ]
    for batch, first, second in zip(whole.batches, *parts, strict=True):
        assert len(first) == len(second)
        assert torch.cat([first, second]).tolist() == batch.tolist()
    odd = [list(Batches(np.arange(7), 4, seed=5, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [[len(rows) for rows in part] for part in odd] == [[2, 1], [2, 1]]  # one of seven rows is left out
    with pytest.raises(UserError, match="multiple of 3"):
        Batches(np.arange(7), 4, seed=5, world_size=3)


def test_one_per_study():
    rng = np.random.default_rng(0)
    studies = np.repeat(np.arange(40), rng.integers(1, 5, 40))
    order = rng.permutation(len(studies))
    batches = one_per_study(order, studies[order], 8)
    assert sorted(np.concatenate(batches).tolist()) == sorted(order.tolist())
    assert all(len(set(studies[batch])) == len(batch) <= 8 for batch in batches)
    assert sum(len(batch) < 8 for batch in batches) <= 4
    assert [b.tolist() for b in one_per_study(order, np.arange(len(order)), 8)] == [
        order[start : start + 8].tolist() for start in range(0, len(order), 8)
    ]
    assert [b.tolist() for b in one_per_study(np.array([2, 0, 1]), np.zeros(3, int), 8)] == [[2], [0], [1]]


def test_held_out_patients_are_not_trained_on():
    patients = np.repeat(np.arange(10), 3)
    train, held = hold_out(patients, 30, 7, seed=1)
    assert sorted([*train, *held]) == list(range(30)) and 7 <= len(held) <= 9
    assert not set(patients[train]) & set(patients[held])
    assert not np.array_equal(held, hold_out(patients, 30, 7, seed=2)[1])
    assert len(hold_out(patients, 30, 0, seed=1)[1]) == 0
    with pytest.raises(UserError, match="val_pairs"):
        hold_out(patients, 30, 30, seed=1)


def test_a_text_is_tokenised_once(corpus, monkeypatch):
    data, asked = corpus / "data", []
    dataset = CXRDataset(data / "cxr.h5", data / "impressions.csv", "impression", context_length=20)
    real = train.preprocess_text
    monkeypatch.setattr(train, "preprocess_text", lambda texts, model: (asked.extend(texts), real(texts, model))[1])
    first = dataset[[3, 5]]["txt"]
    assert torch.equal(dataset[[5, 3, 4]]["txt"][:2, : first.shape[1]], first.flip(0))
    assert asked == [dataset.texts[row] for row in (3, 5, 4)] and first.shape[1] <= 20


def test_studies_patients_and_equal_texts_are_numbered(dataset):
    assert dataset.studies.tolist() == [i // 3 for i in range(30)] == dataset.patients.tolist()
    same = dataset.same_text[:, None] == dataset.same_text
    texts = np.array(dataset.texts)
    assert np.array_equal(same, texts[:, None] == texts)


def test_rows_that_do_not_match_are_refused(corpus, tmp_path):
    lines = (corpus / "data/impressions.csv").read_text().splitlines()
    path = tmp_path / "impressions.csv"
    path.write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]) + "\n")
    with pytest.raises(UserError, match="row 0 of .*cxr.h5"):
        CXRDataset(corpus / "data/cxr.h5", path, "impression")
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match="30 images but .* 29 rows"):
        CXRDataset(corpus / "data/cxr.h5", path, "impression")
