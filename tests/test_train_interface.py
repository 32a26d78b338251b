"""Upstream's training interface: the same batches, the same losses, files that upstream can read."""

import json
import types

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from small_clip import GOLDEN, recorded, state_dict
from torch.utils.data import DataLoader

from chexzero import train
from chexzero.common.errors import UserError
from chexzero.imaging.normalise import prepare
from chexzero.model import build_model
from tests.parity.inputs import RATES, STEPS, radiographs, texts


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    with h5py.File(folder / "cxr.h5", "w") as file:
        file["cxr"] = radiographs()
    pd.DataFrame({"filename": range(8), "impression": texts()[4:12]}).to_csv(folder / "texts.csv", index=False)
    torch.save(state_dict(), folder / "small.pt")
    return folder


def _losses(model, images, words, name, rate, momentum=0.9):
    model.train()
    optimizer = (
        torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
        if name == "sgd"
        else torch.optim.AdamW(model.parameters(), lr=rate)
    )
    criterion = torch.nn.CrossEntropyLoss()
    return [
        train.train_batch(
            images, train.preprocess_text(words, model), model, torch.device("cpu"), criterion, optimizer
        ).item()
        for _ in range(STEPS)
    ]


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_recorded_losses(name):
    found = _losses(
        build_model(state_dict()), prepare(torch.from_numpy(radiographs()), 224), texts()[4:12], name, RATES[name]
    )
    np.testing.assert_allclose(found, recorded()[f"training/{name}"], rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_golden_losses(shared, name):
    golden = json.loads((GOLDEN / "zero_shot.json").read_text())
    words = json.loads((GOLDEN / "tokens.json").read_text(encoding="utf-8"))["texts"]
    model = build_model(torch.load(shared / "goldens/small_clip.pt", weights_only=True))
    images = prepare(torch.from_numpy(np.load(shared / "goldens/cxr320.npz")["cxr"]), 224)
    found = _losses(
        model, images, [words[i] for i in golden["text_index"]], name, golden["lr"][name], golden["momentum"]
    )
    np.testing.assert_allclose(found, golden["losses"][name], rtol=1e-5)


def test_dataset(files):
    dataset = train.CXRDataset(files / "cxr.h5", files / "texts.csv", column="impression", size=3)
    pair = dataset[2]
    assert len(dataset) == 3 and pair["img"].shape == (3, 320, 320) and pair["img"].dtype == torch.float32
    assert torch.equal(pair["img"][1], torch.from_numpy(radiographs()[2]).float())
    assert dataset[-1]["txt"] == pair["txt"] == texts()[6]
    with pytest.raises(IndexError):
        dataset[3]


def test_an_empty_cell_is_one_space(files, tmp_path):
    words = ["a", None, "None", "NA", " ", "f", "g", "h"]
    pd.DataFrame({"filename": range(8), "impression": words}).to_csv(tmp_path / "texts.csv", index=False)
    dataset = train.CXRDataset(files / "cxr.h5", tmp_path / "texts.csv", "impression")
    assert [dataset[i]["txt"] for i in range(5)] == ["a", " ", "None", "NA", " "]


@pytest.mark.parametrize("pretrained, resolution", [(True, 224), (False, 320)])
def test_load_data(files, pretrained, resolution):
    loader, device = train.load_data(
        files / "cxr.h5", files / "texts.csv", batch_size=5, column="impression", pretrained=pretrained
    )
    batches = list(loader)
    assert [len(batch["txt"]) for batch in batches] == [5, 3] and isinstance(device, torch.device)
    found = {word: image for batch in batches for word, image in zip(batch["txt"], batch["img"], strict=True)}
    expected = prepare(torch.from_numpy(radiographs()), resolution)
    for word, image in zip(texts()[4:12], expected, strict=True):
        torch.testing.assert_close(found[word], image, rtol=0, atol=1e-6)


def test_worker_processes_open_the_file_for_themselves(files):
    dataset = train.CXRDataset(
        files / "cxr.h5", files / "texts.csv", "impression", transform=train.image_transform(224)
    )
    first = dataset[0]["img"]  # the file is open here when the workers are forked
    batch = next(iter(DataLoader(dataset, batch_size=8, num_workers=1)))
    assert torch.equal(batch["img"][0], first)


def test_load_clip(files):
    model = train.load_clip(files / "small.pt")
    assert model.training and model.image_resolution == 224
    with torch.device("meta"):
        fresh = train.load_clip(context_length=50)
    assert (fresh.image_resolution, fresh.context_length) == (320, 50) and fresh.text_projection.shape == (512, 768)
    openai = train.load_clip(pretrained=True, vision_weights="random", text_encoder="tiny")
    assert openai.training and (openai.image_resolution, openai.visual.conv1.kernel_size) == (224, (32, 32))
    with pytest.raises(UserError, match="context length 50 was asked for"):
        train.load_clip(files / "small.pt", context_length=50)


def test_preprocess_text():
    tokens = train.preprocess_text(["x", "a " * 200], types.SimpleNamespace(context_length=20))
    assert tokens.shape == (2, 20) and tokens[1, -1] == 49407


def test_make(files):
    config = types.SimpleNamespace(batch_size=4, pretrained=True, column="impression", context_length=77, lr=1e-3)
    model, loader, device, criterion, optimizer = train.make(
        config, files / "cxr.h5", files / "texts.csv", model_path=files / "small.pt"
    )
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.param_groups[0]["lr"] == 1e-3
    assert len(loader) == 2 and isinstance(criterion, torch.nn.CrossEntropyLoss)
    assert next(model.parameters()).device.type == device.type


def test_train_main_writes_a_state_dict_with_upstreams_keys(files, tmp_path):
    torch.manual_seed(0)
    settings = {"batch_size": 4, "learning_rate": 1e-2, "momentum": 0.9, "epochs": 2}
    model = train.train_main(
        files / "cxr.h5",
        files / "texts.csv",
        settings,
        tmp_path / "out" / "model.pt",
        model_path=files / "small.pt",
        pretrained=True,
    )
    saved = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert set(saved) == set(state_dict())
    assert torch.equal(saved["visual.proj"], model.state_dict()["visual.proj"])
    assert not torch.equal(saved["visual.proj"], state_dict()["visual.proj"])
    with pytest.raises(UserError, match="hyperparameters lr are not known"):
        train.train_main(files / "cxr.h5", files / "texts.csv", {"lr": 1}, tmp_path / "x.pt")


def test_wrong_files(files, tmp_path):
    with pytest.raises(UserError, match="lacks the column report"):
        train.CXRDataset(files / "cxr.h5", files / "texts.csv")
    pd.DataFrame({"impression": ["a"] * 7}).to_csv(tmp_path / "seven.csv", index=False)
    with pytest.raises(UserError, match="has 8 images but .*seven.csv has 7 rows"):
        train.CXRDataset(files / "cxr.h5", tmp_path / "seven.csv", "impression")
    with pytest.raises(UserError, match="does not exist"):
        train.CXRDataset(tmp_path / "absent.h5", files / "texts.csv", "impression")
