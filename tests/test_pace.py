"""The speed columns of train_log.csv: operations against a manual count, peaks by name, and shares of time."""

import json
import time

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import run_train
from chexzero.models.towers import create_model
from chexzero.training import pace
from chexzero.training.config import TrainConfig
from chexzero.training.logs import TRAIN_COLUMNS
from dinov3_adapter.unfilled import Unfilled
from tests.training_corpus import TINY, write_corpus

CPU = torch.device("cpu")
COUNT = pace.flops_per_pair


@pytest.fixture
def counted_anew(monkeypatch):
    """Undo `conftest`'s cache of counts."""
    monkeypatch.setattr(pace, "flops_per_pair", COUNT)


def tiny():
    return create_model("dinov3_tiny", text_encoder="tiny", vision_weights="random", image_resolution=32)


def by_hand(tokens: int, width: int, layers: int, hidden: int, matrices: int = 2) -> int:
    """Forward operations of a transformer: four projections, two products of attention, and the MLP, per layer."""
    per_token = 2 * (4 * width * width + matrices * width * hidden)
    return layers * (tokens * per_token + 2 * 2 * tokens * tokens * width)


def test_a_pair_of_vit_b_and_clips_text_tower_costs_what_a_count_by_hand_says(counted_anew):
    with Unfilled():
        clip = create_model("dinov3_vitb", vision_weights="random", text_weights="random")
    patches = 14 * 14
    vision = by_hand(patches + 5, 768, 12, 3072) + 2 * patches * 3 * 16 * 16 * 768 + 2 * 768 * 512
    text = by_hand(77, 512, 12, 2048) + 2 * 512 * 512
    found = pace.flops_per_pair(clip)(77)
    assert found == pytest.approx(3 * (vision + text), rel=0.01)  # the backward pass is twice the forward pass
    assert 120e9 < found < 130e9


def test_the_count_is_that_of_a_real_step_at_lengths_it_was_not_fitted_on(counted_anew):
    clip, texts = tiny(), torch.randint(1, 49407, (4, 23))
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        clip(torch.rand(4, 3, 32, 32), texts)[0].sum().backward()
    assert pace.flops_per_pair(clip)(23) == pytest.approx(counter.get_total_flops() / 4, rel=1e-3)


def test_counting_computes_nothing_and_draws_nothing(counted_anew):
    clip = tiny()
    before, state = {name: value.clone() for name, value in clip.state_dict().items()}, torch.get_rng_state()
    pace.Pace(clip, TrainConfig(grad_checkpointing=True), CPU)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in clip.state_dict().items())
    assert clip.transformer.grad_checkpointing and all(one.grad is None for one in clip.parameters())


def test_a_frozen_tower_and_recomputation(counted_anew):
    clip = tiny()
    whole = pace.flops_per_pair(clip)(20)
    clip.visual.trunk.requires_grad_(False)
    assert pace.flops_per_pair(clip)(20) < 0.8 * whole
    again = tiny()
    again.set_grad_checkpointing(True)
    assert pace.Pace(again, TrainConfig(grad_checkpointing=True), CPU).flops_per_pair(20) == whole


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L4", "fp16", 121),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("NVIDIA A1000", "bf16", None),
        ("CPU", "fp32", None),
    ],
)
def test_the_peak_is_found_by_the_devices_name(name, precision, peak):
    assert pace.peak_tflops(name, precision) == peak


def test_time_is_shared_out_as_it_was_spent():
    one = pace.Pace(tiny(), TrainConfig(), CPU)
    one.peak = 1e-3  # TFLOP/s
    one.begin()
    for name, seconds in (("data", 0.05), ("validating", 0.1), ("saving", 0.05)):
        with one.spent(name):
            time.sleep(seconds)
    one.step(pairs=8, tokens=10)
    row = one.row()
    training = 8 / row["pairs_per_second"]
    assert 0.05 <= training < 0.15 and row["data_wait"] == pytest.approx(0.05 / training, rel=0.5)
    assert row["validating"] / row["saving"] == pytest.approx(2, rel=0.3)
    assert row["tflops"] == pytest.approx(8 * one.flops_per_pair(10) / training / 1e12)
    assert row["share_of_peak"] == pytest.approx(row["tflops"] / 1e-3)
    assert 0.05 < row["memory_gib"] < 64
    assert pace.in_words({**row, "pairs_per_second": 12.34, "tflops": 3.21, "share_of_peak": 0.256}) == (
        "12.3 pairs/s, 3.21 TFLOP/s (26% of peak)"
    )


@pytest.mark.parametrize("in_state", [True, False])
def test_a_run_writes_the_columns_and_goes_on_with_an_older_log(tmp_path, in_state):
    """Earlier versions wrote fewer columns: first to the file only, later to `last.pt` too."""
    write_corpus(tmp_path, train=24, valid=20)
    words = [
        *TINY,
        "--cxr_filepath",
        str(tmp_path / "data" / "cxr.h5"),
        "--save_dir",
        str(tmp_path),
        "--batch_size",
        "8",
    ]
    words += ["--log_interval", "1", "--val_interval", "0", "--save_interval", "1"]
    run_train.model_pipeline(run_train.parse_args([*words, "--max_steps", "2"]))
    folder = tmp_path / "pt-imp"
    log = pd.read_csv(folder / "train_log.csv")
    assert list(log) == TRAIN_COLUMNS and (log["tflops"] > 0).all() and log["share_of_peak"].isna().all()
    assert 0 < log["saving"][1] < 1 and (log["validating"] == 0).all()
    old = log.drop(columns=["tflops", "share_of_peak", "memory_gib", "validating", "saving"])
    old.to_csv(folder / "train_log.csv", index=False)
    state = torch.load(folder / "last.pt", weights_only=True)
    state["progress"]["sizes"] = []  # a field of earlier versions
    state["logs"]["train_log.csv"] = old.to_csv(index=False, lineterminator="\n")
    if not in_state:
        del state["logs"]
    torch.save(state, folder / "last.pt")
    run_train.model_pipeline(run_train.parse_args([*words, "--max_steps", "3", "--resume", "auto"]))
    log = pd.read_csv(folder / "train_log.csv")
    assert log["step"].tolist() == [1, 2, 3] and list(log) == TRAIN_COLUMNS
    assert log["tflops"].isna().tolist() == [True, True, False]
    assert json.loads((folder / "config.json").read_text())["settings"]["batch_size"] == 8
