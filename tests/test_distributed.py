"""Several processes equal one: the same loss and gradient, the same run, and one message when a rank dies."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import training_corpus
from training_corpus import flags, forked, process, ranks, run_to_end, write_corpus

from chexzero.common.errors import UserError
from chexzero.model import CLIP
from chexzero.train import pair_loss
from chexzero.training import distributed
from chexzero.training.config import TrainConfig
from chexzero.training.loss import LOSSES
from chexzero.training.step import bare, begin_logits, for_training

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), train=40)


CASES = list(itertools.product((1, 2), ("negative", "positive"), ("clip", "siglip")))


def gradients_of_rank(environment: dict[str, str], out: Path) -> None:
    """Loss and gradient of this rank's part of one batch, under DistributedDataParallel, for all cases."""
    os.environ |= environment
    device, found = distributed.start(), []
    for chunks, equal_text, loss_name in CASES:
        torch.manual_seed(3)
        clip = CLIP(16, 32, 2, 64, 16, 20, 200, 64, 1, 2)
        images = torch.randint(0, 256, (8, 48, 48), dtype=torch.uint8)
        texts = torch.randint(1, 199, (8, 20))
        texts[:, 12:], texts[:, 11] = 0, 199
        texts[6] = texts[1]  # one text on both ranks
        config = TrainConfig(grad_accum=chunks, loss=loss_name)
        begin_logits(clip, config)
        model = for_training(clip, device, config)
        criterion = LOSSES[loss_name].criterion(equal_text)
        share = 8 // distributed.world_size()
        mine = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
        for _ in range(2):  # twice: DistributedDataParallel rebuilds its buckets after the first step
            model.zero_grad()
            loss = pair_loss(*model(images[mine], texts[mine]), criterion.matches(texts[mine]), criterion)
            loss.backward()
        loss = distributed.mean(loss.detach().clone())
        found.append({"loss": loss, **{name: p.grad for name, p in bare(model).named_parameters()}})
    if distributed.is_main():
        torch.save(found, out)
    distributed.finish()


def test_two_ranks_have_the_loss_and_gradient_of_one(tmp_path):
    paths = {count: tmp_path / f"{count}.pt" for count in (1, 2)}
    for count, path in paths.items():
        assert run_to_end([forked(gradients_of_rank, one, path) for one in ranks(count)]) == [0] * count
    one, two = (torch.load(path, weights_only=True) for path in paths.values())
    for case, wanted, given in zip(CASES, one, two, strict=True):
        assert wanted.keys() == given.keys()
        for name, value in wanted.items():
            assert (given[name] - value).abs().max() <= 1e-5 * max(1, value.abs().max()), (case, name)
    assert abs(float(one[0]["loss"] - one[1]["loss"])) > 1e-3  # equal texts do make a difference here


STEPS = [
    "--max_steps",
    "8",
    "--val_interval",
    "4",
    "--log_interval",
    "1",
    "--lr",
    "1e-2",
    "--batch_size",
    "12",
    "--save_interval",
    "0",
]


@pytest.fixture(scope="module")
def single(corpus) -> Path:
    assert run_to_end([process(flags(corpus, "single", *STEPS))]) == [0]
    return corpus / "runs/single"


VARIED = ["--one_per_study", "--augment", "medium", "--text_sentences", "shuffle", "--label_smoothing", "0.1"]


@pytest.mark.parametrize("more", [[], ["--grad_accum", "3", *VARIED, "--ema", "0.9"]])
def test_a_run_of_two_ranks_is_a_run_of_one(corpus, single, more):
    name = f"double{len(more)}"
    if more:
        assert run_to_end([process(flags(corpus, "one_" + name, *STEPS, *VARIED, "--ema", "0.9"))]) == [0]
        single = corpus / f"runs/one_{name}"
    assert run_to_end([process(flags(corpus, name, *STEPS, *more), one) for one in ranks(2)]) == [0, 0]
    folders = single, corpus / "runs" / name
    one, two = (pd.read_csv(folder / "train_log.csv") for folder in folders)
    columns = ["step", "samples", "loss", "logit_scale", "same_study_pairs"]
    pd.testing.assert_frame_equal(one[columns], two[columns], rtol=0, atol=1e-5)
    one, two = (pd.read_csv(folder / "metrics.csv") for folder in folders)
    assert one["step"].tolist() == two["step"].tolist()
    assert np.allclose(one["mean_13"], two["mean_13"], atol=0.01)  # rounding may swap two images with equal scores
    for name in ["checkpoint.pt"] + ["ema/checkpoint_8.pt"] * bool(more):
        one, two = (torch.load(folder / name, weights_only=True) for folder in folders)
        assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-5


def test_a_signal_to_one_rank_stops_both_and_the_run_goes_on(corpus, single):
    argv = flags(corpus, "signalled", *STEPS, "--resume", "auto")
    both = [process(argv, one) for one in ranks(2)]
    for one in both:
        one.start()
    log = corpus / "runs/signalled/train_log.csv"
    while all(one.is_alive() for one in both) and not (log.exists() and len(log.read_text().splitlines()) > 2):
        time.sleep(0.005)
    os.kill(both[1].pid, signal.SIGUSR1)
    for one in both:
        one.join(60)
    assert [one.exitcode for one in both] == [75, 75]
    assert run_to_end([process(argv, one) for one in ranks(2)]) == [0, 0]
    one, two = (pd.read_csv(folder / "train_log.csv")["loss"] for folder in (single, corpus / "runs/signalled"))
    assert np.allclose(one, two, atol=1e-5)


def run_on_node(node: Path, argv: list[str], environment: dict[str, str]) -> None:
    os.chdir(node)
    training_corpus._run_train(argv, environment)


@pytest.mark.long
def test_each_node_may_have_its_own_copy_of_the_data(corpus, single, tmp_path):
    """Two nodes with one rank each and no shared disk; only the first has the run's folder."""
    nodes = [tmp_path / name for name in ("first", "second")]
    for node in nodes:
        shutil.copytree(corpus / "data", node / "data")
    for steps in ("4", "8"):  # started, then resumed
        argv = flags(Path(), "copied", *STEPS, "--max_steps", steps, "--resume", "auto")
        assert run_to_end(
            [
                forked(run_on_node, node, argv, environment | {"LOCAL_RANK": "0"})
                for node, environment in zip(nodes, ranks(2), strict=True)
            ]
        ) == [0, 0]
    one, two = (pd.read_csv(folder / "train_log.csv")["loss"] for folder in (single, nodes[0] / "runs/copied"))
    assert len(one) == 8 and np.allclose(one, two, atol=1e-5)
    assert [path.name for path in nodes[1].iterdir()] == ["data"]


def test_tasks_of_srun_that_do_not_know_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UserError, match="export RANK"):
        distributed.start()


@pytest.mark.long  # torchrun starts three interpreters
@pytest.mark.timeout(600)
def test_a_rank_that_dies_ends_the_job_with_its_message(corpus, tmp_path):
    """Through torchrun, as on a cluster."""
    script = tmp_path / "dies.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import run_train
from chexzero.training import distributed
from chexzero.common.errors import UserError, run_command
real = run_train.train_batch
def dies(*arguments):
    if distributed.rank() == 1:
        raise UserError("row 7 of cxr.h5 cannot be read; build it again")
    return real(*arguments)
run_train.train_batch = dies
run_command(run_train.main)
""")
    argv = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "0",
        "--rdzv_backend",
        "c10d",
        "--rdzv_endpoint",
        "127.0.0.1:0",
        str(script),
        *flags(corpus, "dies", *STEPS, "--val_interval", "0"),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode != 0
    assert "error: row 7 of cxr.h5 cannot be read; build it again" in done.stderr
