"""The moving average of the weights: its values, and its folder as a separate run."""

import pandas as pd
import pytest
import torch
from training_corpus import flags, shrink, write_corpus

import run_train
from chexzero.models.checkpoints import load_model
from chexzero.models.towers import create_model
from chexzero.runs.run_folder import read_run
from chexzero.training.config import TrainConfig
from chexzero.training.step import Updates, for_training


def test_the_average_is_that_of_the_weights_after_each_update():
    config = TrainConfig(ema=0.6)
    clip = create_model("dinov3_tiny", text_encoder="tiny", vision_weights="random", image_resolution=32)
    updates = Updates(
        torch.optim.SGD(clip.parameters(), lr=1),
        for_training(clip, torch.device("cpu"), config),
        config,
        9,
        torch.device("cpu"),
    )
    wanted = None
    for step in range(1, 7):
        clip.logit_scale.grad = torch.tensor(1.0)
        updates.step()
        decay = min(0.6, 1 - step ** (-2 / 3))
        value = clip.logit_scale.item()
        wanted = value if wanted is None else decay * wanted + (1 - decay) * value
        assert updates.average.module.logit_scale.item() == pytest.approx(wanted, rel=1e-5)
    assert wanted != pytest.approx(clip.logit_scale.item(), rel=0.1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), train=24)


def test_its_folder_is_a_run_with_checkpoints_validations_and_a_selection(corpus, monkeypatch):
    shrink(lambda table, key, value: monkeypatch.setitem(table, key, value))
    argv = flags(corpus, "averaged", "--max_steps", "6", "--val_interval", "3", "--ema", "0.9", "--lr", "0.01")
    run_train.model_pipeline(run_train.parse_args(argv))
    whole, average = (read_run(corpus / "runs/averaged" / name) for name in ("", "ema"))
    assert whole.metrics["step"].tolist() == average.metrics["step"].tolist() == [0, 3, 6]
    assert average.config["settings"] == whole.config["settings"] and average.selected().parent == average.path
    one, other = (load_model(run.checkpoint_of(6)).state_dict() for run in (whole, average))
    assert one.keys() == other.keys()
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert {path.name for path in average.path.glob("*.pt")} == {
        f"checkpoint{end}.pt" for end in ("", "_0", "_3", "_6")
    }
    logs = [pd.read_csv(run.path / "metrics.csv") for run in (whole, average)]
    assert logs[0]["mean_13"][0] == logs[1]["mean_13"][0] and logs[0]["val_loss"].isna().all()


def test_without_the_switch_there_is_no_such_folder(corpus, monkeypatch):
    shrink(lambda table, key, value: monkeypatch.setitem(table, key, value))
    run_train.model_pipeline(run_train.parse_args(flags(corpus, "plain", "--max_steps", "1", "--val_interval", "1")))
    assert not (corpus / "runs/plain/ema").exists()
