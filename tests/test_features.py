"""Training from a locked tower's cached features equals training from the images."""

import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from training_corpus import flags, shrink, write_corpus

import run_train
from chexzero.common.errors import UserError
from chexzero.training import features
from chexzero.training.features import FeatureRows
from dinov3_adapter.tower import VisionTower

LOCKED = ["--vision_weights", "random", "--freeze_blocks", "all", "--max_steps", "9", "--val_interval", "0"]
LOCKED += ["--log_interval", "1", "--batch_size", "6", "--lr", "0.05"]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    shrink(lambda table, key, value: monkeypatch.setitem(table, key, value))
    return write_corpus(tmp_path, train=24)


def train(corpus, name, *more):
    run_train.model_pipeline(run_train.parse_args(flags(corpus, name, *LOCKED, *more)))
    return pd.read_csv(corpus / "runs" / name / "train_log.csv")["loss"]


def test_losses_are_those_of_the_images_and_the_tower_is_run_once_per_image(corpus, monkeypatch):
    wanted = train(corpus, "images")
    seen = []
    monkeypatch.setattr(features, "BATCH", 5)  # the last of five batches has four images
    forward = VisionTower.forward
    monkeypatch.setattr(VisionTower, "forward", lambda self, images: seen.append(images) or forward(self, images))
    found = train(corpus, "features", "--cache_features", "--grad_accum", "2")
    assert wanted.std() > 1e-3 and (wanted - found).abs().max() < 1e-5 and not seen
    kept = list((corpus / "runs/tower_features").iterdir())
    written = [path.stat().st_mtime_ns for path in kept]
    assert (train(corpus, "again", "--cache_features") - found).abs().max() < 1e-5
    assert [path.stat().st_mtime_ns for path in (corpus / "runs/tower_features").iterdir()] == written
    train(corpus, "other", "--cache_features", "--seed", "5")  # another random tower
    assert len(list((corpus / "runs/tower_features").iterdir())) == len(kept) + 1 == 2


@pytest.mark.parametrize(
    "more, words",
    [
        (["--freeze_blocks", "1"], "needs --freeze_blocks all"),
        (["--augment", "light"], "cannot be used with --augment"),
        (["--drop_path", "0.1", "--freeze_steps", "3"], "with --drop_path and --freeze_steps"),
    ],
)
def test_what_changes_the_features_is_refused(corpus, more, words):
    with pytest.raises(UserError, match=words):
        train(corpus, "refused", "--cache_features", *more)


def test_a_worker_gets_the_path_and_not_the_features(tmp_path):
    np.save(tmp_path / "features.npy", np.arange(20_000, dtype=np.float32).reshape(100, 200))
    sent = pickle.dumps(FeatureRows(tmp_path / "features.npy"))
    assert len(sent) < 1000 and pickle.loads(sent).stored([3])[0, 0] == 600


@pytest.mark.parametrize("hashed_up_to", [0, 1000])
def test_features_are_named_by_all_that_they_depend_on(tmp_path, monkeypatch, hashed_up_to):
    """Also if there are too many images to hash at the start of every run."""
    monkeypatch.setattr("chexzero.training.logs.HASHED_UP_TO", hashed_up_to)
    for name, content in (("a", b"one"), ("same", b"one"), ("other", b"two")):
        (tmp_path / name).write_bytes(content)
    torch.manual_seed(0)
    towers = [torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)]

    def key(name="a", resolution=64, precision="fp32", pixel_range=None, tower=0):
        config = SimpleNamespace(cxr_filepath=str(tmp_path / name), precision=precision, pixel_range=pixel_range)
        visual = SimpleNamespace(trunk=towers[tower])
        return features._key(config, SimpleNamespace(image_resolution=resolution, visual=visual))

    assert key() == key() == key(name="same")
    others = [key("other"), key(resolution=32), key(precision="bf16"), key(pixel_range="0 1"), key(tower=1)]
    assert len({key(), *others}) == 6
