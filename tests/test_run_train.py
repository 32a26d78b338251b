"""`run_train.py` as a whole: upstream's interface and numbers, the files of a run, and wrong inputs."""

import csv
import inspect
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from training_corpus import flags, shrink, write_corpus, write_validation

import run_train
from chexzero.clip import tokenize
from chexzero.common.errors import UserError
from chexzero.common.files import sha256_of
from chexzero.common.labels import COMPETITION_LABELS, LABELS
from chexzero.imaging.normalise import prepare
from chexzero.models.checkpoints import load_model
from chexzero.runs.run_folder import read_run
from chexzero.training.config import TrainConfig
from chexzero.training.logs import METRIC_COLUMNS, SPEED_COLUMNS, TRAIN_COLUMNS, Boards
from chexzero.training.run import Progress, Run
from chexzero.training.validation import labels_with_both_classes

ROOT = Path(__file__).resolve().parents[1]
CLOCKED = ["seconds", *SPEED_COLUMNS]  # columns of measured times


@pytest.fixture(scope="module", autouse=True)
def small_model():
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch.setitem)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), train=40)


def train(*argv):
    return run_train.model_pipeline(run_train.parse_args(list(map(str, argv))))


# --- upstream's interface ---


def test_functions_have_upstreams_names_and_arguments():
    wanted = {
        "model_pipeline": "config, verbose=0",
        "make": "config",
        "train": "model, loader, device, criterion, optimizer, config",
        "train_batch": "images, texts, model, device, criterion, optimizer",
        "train_log": "loss, example_ct, epoch",
        "save": "model, path",
    }
    for name, arguments in wanted.items():
        given = inspect.signature(getattr(run_train, name)).parameters.values()
        plain = ", ".join(
            p.name if p.default is p.empty else f"{p.name}={p.default}" for p in given if p.name != "progress"
        )
        assert plain == arguments


def test_defaults_are_upstreams(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = run_train.parse_args([]).as_dict()
    upstream = {
        "cxr_filepath": "data/cxr.h5",
        "txt_filepath": "data/impressions.csv",
        "batch_size": 16,
        "epochs": 4,
        "lr": 1e-4,
        "save_interval": 100,
        "log_interval": 10,
        "save_dir": "checkpoints/",
        "seed": 1234,
        "optimizer": "sgd",
        "momentum": 0.9,
        "context_length": 77,
        "random_init": False,
        "model_name": "pt-imp",
    }
    unchanged = {
        "vision": "vit_b_32",
        "precision": "fp32",
        "grad_accum": 1,
        "warmup_steps": 0,
        "equal_text": "negative",
        "lr_schedule": "constant",
        "clip_grad_norm": None,
        "clip_logit_scale": None,
        "one_per_study": False,
        "max_steps": None,
        "keep_top_k": None,
        "patience": 0,
        "val_pairs": 0,
    }
    assert {name: config[name] for name in upstream} == upstream
    assert {name: config[name] for name in unchanged} == unchanged
    assert (config["valid"], config["valid_labels"]) == ("data/valid.h5", "data/valid_labels.csv")


def test_upstreams_own_files_are_taken_where_they_alone_exist(tmp_path, monkeypatch, caplog):
    data = tmp_path / "data"
    data.mkdir()
    with h5py.File(data / "cxr.h5", "w") as handle:
        handle["cxr"] = np.zeros((3, 320, 320), np.float32)
    (data / "mimic_impressions.csv").write_text("filename,impression\na.txt,one\nb.txt,\nc.txt,three\n")
    monkeypatch.chdir(tmp_path)
    config = run_train.parse_args([])
    assert config.txt_filepath == "data/mimic_impressions.csv" and config.val_interval == 0
    train(*flags(tmp_path, "upstream", "--epochs", 1, "--batch_size", 2))
    assert (tmp_path / "runs/upstream/checkpoint.pt").exists() and "no checkpoint will be selected" in caplog.text
    (data / "impressions.csv").write_text("filename,impression,id\n")
    with pytest.raises(UserError, match="valid.h5 does not exist; .*data_prep build.*--val_interval 0"):
        train()


# --- upstream's numbers ---


@pytest.fixture(scope="module")
def golden(shared, tmp_path_factory):
    """The recorded steps: losses, model, images and texts; the images also in our file format."""
    root = tmp_path_factory.mktemp("golden")
    record = json.loads((shared / "goldens/zero_shot.json").read_text())
    texts = json.loads((shared / "goldens/tokens.json").read_text())["texts"]
    texts = [texts[index] for index in record["text_index"]]
    images = np.load(shared / "goldens/cxr320.npz")["cxr"]
    (root / "data").mkdir()
    ids = [f"a/b/patient{i}/study1/view1_frontal" for i in range(len(images))]
    with h5py.File(root / "data/cxr.h5", "w") as handle:
        handle.create_dataset("cxr", data=images, chunks=(1, 320, 320))
        handle["id"] = ids
    with open(root / "data/impressions.csv", "w", newline="") as handle:
        rows = [[name, text, name] for name, text in zip(ids, texts, strict=True)]
        csv.writer(handle).writerows([["filename", "impression", "id"], *rows])
    return root, record, images, texts, shared / "goldens/small_clip.pt"


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_losses_of_upstreams_loop_step_by_step(golden, name):
    _, record, images, texts, weights = golden
    model = load_model(weights).train()
    optimizer = (
        torch.optim.SGD(model.parameters(), lr=record["lr"]["sgd"], momentum=record["momentum"])
        if name == "sgd"
        else torch.optim.AdamW(model.parameters(), lr=record["lr"]["adam"])
    )
    prepared, tokens = prepare(torch.from_numpy(images), 224), tokenize(texts, 77, truncate=True)
    losses = [
        run_train.train_batch(prepared, tokens, model, torch.device("cpu"), nn.CrossEntropyLoss(), optimizer).item()
        for _ in record["losses"][name]
    ]
    assert losses == pytest.approx(record["losses"][name], abs=2e-5)


@pytest.mark.parametrize("name, more", [("sgd", []), ("adam", []), ("sgd", ["--num_workers", 2, "--grad_accum", 3])])
def test_losses_of_upstreams_loop_through_the_whole_command(golden, name, more, monkeypatch, tmp_path):
    root, record, _, _, weights = golden
    monkeypatch.setattr(run_train, "load_clip", lambda **options: load_model(weights).train())
    train(
        "--cxr_filepath",
        root / "data/cxr.h5",
        "--save_dir",
        tmp_path,
        "--epochs",
        6,
        "--log_interval",
        1,
        "--batch_size",
        8,
        "--lr",
        record["lr"][name],
        "--optimizer",
        name,
        "--val_interval",
        0,
        "--no-tensorboard",
        *more,
    )
    losses = pd.read_csv(tmp_path / "pt-imp/train_log.csv")["loss"].tolist()
    assert losses == pytest.approx(record["losses"][name], abs=2e-5)


# --- what a run writes ---


@pytest.fixture(scope="module")
def finished(corpus):
    train(
        *flags(
            corpus,
            "whole",
            "--max_steps",
            12,
            "--val_interval",
            5,
            "--save_interval",
            4,
            "--log_interval",
            3,
            "--lr",
            0.01,
            "--val_pairs",
            6,
        )
    )
    return corpus / "runs/whole"


def test_files_of_a_run(finished):
    metrics, log = pd.read_csv(finished / "metrics.csv"), pd.read_csv(finished / "train_log.csv")
    assert list(metrics) == METRIC_COLUMNS and list(log) == TRAIN_COLUMNS
    assert metrics["step"].tolist() == [0, 5, 10, 12] and log["step"].tolist() == [3, 6, 9, 12]
    assert {path.name for path in finished.glob("checkpoint*.pt")} == {
        f"checkpoint{end}.pt" for end in ("", "_0", "_4", "_5", "_8", "_10", "_12")
    }
    assert log["samples"].tolist() == [34, 68, 102, 136]  # an epoch is 16, 16 and 2 of 34 pairs: 6 of 40 held out
    assert log["epoch"].tolist() == [0, 1, 2, 3]
    assert metrics["train_loss"].isna().tolist() == [True, False, False, False]
    assert metrics["train_loss"][1:] @ [5, 5, 2] == pytest.approx(log["loss"].sum() * 3, rel=1e-4)  # both are means
    assert metrics["val_loss"].between(0.1, 5).all()
    assert metrics[[f"{label}_auc" for label in LABELS]].notna().all(axis=None)
    five = metrics[[f"{label}_auc" for label in COMPETITION_LABELS]].mean(axis=1)
    assert metrics["mean_5"].tolist() == pytest.approx(five.tolist())
    selection = json.loads((finished / "selection.json").read_text())
    best = metrics["mean_5"].idxmax()
    assert selection["step"] == metrics["step"][best] and selection["value"] == metrics["mean_5"][best]
    assert selection["lower"] < selection["value"] < selection["upper"]
    assert selection["n_compared"] == 4 and selection["metric"] == "mean_5"
    assert selection["runner_up"]["value"] == metrics["mean_5"].nlargest(2).iloc[1]
    assert selection["value_corrected"] is not None and "without the optimism of choosing" in selection["reason"]
    digest = sha256_of(finished / selection["checkpoint"])
    assert selection["checkpoint_sha256"] == digest == read_run(finished).checkpoint_sha256[selection["checkpoint"]]
    kept = sorted(path.name for path in (finished / "validation_predictions").iterdir())
    assert kept == sorted(f"step_{step}.npy" for step in metrics["step"])


def test_checkpoints_are_bare_and_measure_what_the_record_says(finished, corpus):
    from chexzero.common.formats import open_images, read_labels
    from chexzero.common.statistics import auroc
    from chexzero.zero_shot import predict_labels

    state = torch.load(finished / "checkpoint_10.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values()) and "logit_scale" in state
    row = pd.read_csv(finished / "metrics.csv").set_index("step").loc[10]
    with open_images(corpus / "data/valid.h5") as handle:
        predictions = predict_labels(load_model(finished / "checkpoint_10.pt"), handle["cxr"])
    areas = auroc(read_labels(corpus / "data/valid_labels.csv")[1], predictions)
    assert areas.tolist() == pytest.approx([row[f"{label}_auc"] for label in LABELS], abs=1e-9)


def test_the_record_is_enough_to_run_again(finished, corpus):
    config = json.loads((finished / "config.json").read_text())
    assert config["settings"]["lr"] == 0.01 and config["model"]["vision"] == "dinov3_tiny"
    assert config["versions"]["torch"] and len(config["git"].partition("+")[0]) == 40
    files = config["data"]["files"]
    names = {path.rpartition("/")[2] for path in files}
    assert names == {"cxr.h5", "impressions.csv", "valid.h5", "valid_labels.csv"}
    assert all(len(entry["sha256"]) == 64 for entry in files.values())
    train("--config", finished / "config.json", "--model_name", "again")
    again = corpus / "runs/again"
    for name in ("metrics.csv", "train_log.csv"):
        one, other = (pd.read_csv(folder / name).drop(columns=CLOCKED, errors="ignore") for folder in (finished, again))
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    train("--config", finished / "config.json", "--model_name", "other_seed", "--seed", 7, "--max_steps", 3)
    losses = [pd.read_csv(corpus / f"runs/{name}/train_log.csv")["loss"][0] for name in ("again", "other_seed")]
    assert losses[0] != losses[1]


def test_patience_ends_a_run_and_only_the_best_stay(corpus):
    train(
        *flags(
            corpus,
            "patient",
            "--max_steps",
            100,
            "--val_interval",
            2,
            "--save_interval",
            3,
            "--lr",
            0,
            "--patience",
            2,
            "--keep_top_k",
            1,
            "--overwrite",
        )
    )
    folder = corpus / "runs/patient"
    assert pd.read_csv(folder / "metrics.csv")["step"].tolist() == [0, 2, 4]
    assert sorted(path.name for path in folder.glob("checkpoint*.pt")) == [
        "checkpoint.pt",
        "checkpoint_0.pt",
        "checkpoint_2.pt",
    ]


def test_labels_with_one_class_are_left_out_and_named(tmp_path, caplog):
    root = write_corpus(tmp_path, train=8)
    rng = np.random.default_rng(0)
    labels = np.zeros((6, 14), int)
    labels[:3, LABELS.index("Pneumonia")] = 1
    write_validation(root / "data", labels, rng)
    train(*flags(root, "few", "--max_steps", 1, "--val_interval", 1))
    metrics = pd.read_csv(root / "runs/few/metrics.csv")
    assert metrics["mean_5"].isna().all() and metrics["Edema_auc"].isna().all()
    assert (metrics["mean_13"] == metrics["Pneumonia_auc"]).all()
    assert "only one class of Atelectasis" in caplog.text and "mean_13 is used instead" in caplog.text
    selection = json.loads((root / "runs/few/selection.json").read_text())
    assert selection["metric"] == "mean_13" and "mean_5 is not defined" in selection["reason"]
    write_validation(root / "data", labels * 0, rng)
    train(*flags(root, "none", "--max_steps", 2, "--val_interval", 1))
    selection = json.loads((root / "runs/none/selection.json").read_text())
    assert (selection["step"], selection["metric"], selection["value"]) == (2, None, None)


def test_the_sigmoid_loss_trains_its_bias_and_goes_on(corpus):
    def run(name, steps):
        more = ["--loss", "siglip", "--val_interval", 3, "--val_pairs", 6, "--log_interval", 1, "--resume", "auto"]
        train(*flags(corpus, name, "--max_steps", steps, "--lr", 0.01, *more))
        return corpus / "runs" / name

    whole = run("siglip", 6)
    run("siglip_halved", 3)
    halved = run("siglip_halved", 6)
    one, other = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, halved))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert torch.load(whole / "checkpoint_0.pt", weights_only=True)["logit_bias"] == -10
    assert float(one["logit_bias"]) > -10  # it rises from -10, at which every pair counts as negative
    assert float(load_model(whole / "checkpoint.pt").logit_bias) == float(one["logit_bias"])
    losses = pd.read_csv(whole / "metrics.csv")["val_loss"]
    assert losses[0] > 8 and losses.iloc[-1] < losses[0]  # initially each matching pair is classified as negative


# --- what goes wrong ---


def test_a_loss_that_is_not_finite_ends_the_run(corpus, monkeypatch):
    steps = []

    def spoil(images, texts, model, *rest, real=run_train.train_batch):
        steps.append(len(images))
        loss = real(images, texts, model, *rest)
        return loss * math.nan if len(steps) == 6 else loss

    monkeypatch.setattr(run_train, "train_batch", spoil)
    argv = flags(
        corpus, "spoilt", "--max_steps", 9, "--save_interval", 2, "--val_interval", 0, "--save_last_interval", 2
    )
    with pytest.raises(UserError, match=r"loss of step 6 is nan.*checkpoint_4\.pt") as error:
        train(*argv)
    folder = corpus / "runs/spoilt"
    failed = pd.read_csv(folder / "failed_batch.csv")
    assert len(failed) == 8  # the last batch of the second epoch: 40 = 16 + 16 + 8
    assert all(name in str(error.value) for name in failed["id"])
    assert not (folder / "checkpoint_6.pt").exists()
    assert torch.load(folder / "last.pt", weights_only=True)["step"] == 4


def test_weights_that_are_not_finite_are_not_saved(corpus, monkeypatch):
    def spoil(images, texts, model, *rest, real=run_train.train_batch):
        loss = real(images, texts, model, *rest)
        next(model.parameters()).data[0] = math.inf
        return loss

    monkeypatch.setattr(run_train, "train_batch", spoil)
    with pytest.raises(UserError, match=r"step 1 left weights that are not finite.*checkpoint_0\.pt"):
        train(*flags(corpus, "infinite", "--max_steps", 9, "--save_interval", 1))
    assert {path.name for path in (corpus / "runs/infinite").glob("checkpoint*")} == {"checkpoint_0.pt"}


def test_another_run_is_not_overwritten_unless_asked(corpus, finished):
    before = (finished / "checkpoint.pt").stat().st_mtime_ns
    with pytest.raises(UserError, match="--resume auto.*--model_name.*--overwrite"):
        train(*flags(corpus, "whole", "--max_steps", 1))
    assert (finished / "checkpoint.pt").stat().st_mtime_ns == before
    other = corpus / "runs/upstreams"
    other.mkdir()
    (other / "checkpoint_100.pt").write_bytes(b"upstream's")
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds a run"):
        train(*flags(corpus, "upstreams", "--resume", "auto"))
    assert (other / "checkpoint_100.pt").exists()
    train(*flags(corpus, "upstreams", "--max_steps", 1, "--val_interval", 0, "--overwrite"))
    assert (other / "notes.txt").read_text() == "mine" and not (other / "checkpoint_100.pt").exists()


def test_a_finished_run_resumed_does_nothing(corpus, finished):
    before = {name: (finished / name).read_bytes() for name in ("metrics.csv", "train_log.csv", "selection.json")}
    train(
        *flags(
            corpus,
            "whole",
            "--max_steps",
            12,
            "--val_interval",
            5,
            "--save_interval",
            4,
            "--log_interval",
            3,
            "--lr",
            0.01,
            "--val_pairs",
            6,
            "--resume",
            "auto",
        )
    )
    assert before == {name: (finished / name).read_bytes() for name in before}


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--batch_size", "0"], "--batch_size 0 must be at least 1"),
        (["--lr", "nan"], "--lr nan"),
        (["--txt_filepath", "nowhere.csv"], "nowhere.csv does not exist; run `python -m data_prep build`"),
        (["--valid", "nowhere.h5"], "nowhere.h5 does not exist"),
        (["--select_by", "val_loss"], "--val_pairs"),
        (["--wandb"], "pip install wandb"),
        (["--resume", "auto", "--overwrite"], "leave one of them out"),
        (["--model_name", "../elsewhere"], "--model_name"),
        (["--save_dir", "/proc/nowhere"], "cannot write to /proc/nowhere"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(corpus, argv, message):
    with pytest.raises(UserError, match=message):
        train(*flags(corpus, "refused", *argv))


def test_without_a_compiler_nothing_is_compiled(corpus, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="C.. compiler.*install"):
        train(*flags(corpus, "refused", "--compile"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_that_cannot_be_read_ends_the_run_in_one_sentence(corpus, workers, monkeypatch):
    def unreadable(self, rows):
        raise UserError(f"row {rows[0]} of cxr.h5 cannot be read; build it again")

    monkeypatch.setattr("chexzero.train.ImageRows.stored", unreadable)
    with pytest.raises(UserError, match=r"^row \d+ of cxr.h5 cannot be read; build it again$"):
        train(*flags(corpus, "unreadable", "--num_workers", workers, "--val_interval", 0, "--overwrite"))


def test_weights_and_biases_gets_what_the_files_get(corpus, monkeypatch):
    class Stub:
        logged, config, finished = [], None, False

        def init(self, **options):
            Stub.config = options
            return self

        def log(self, values, step):
            Stub.logged.append((step, values))

        def finish(self):
            Stub.finished = True

    monkeypatch.setitem(sys.modules, "wandb", Stub())
    train(*flags(corpus, "wandb", "--wandb", "--max_steps", 2, "--log_interval", 1, "--val_interval", 2))
    losses = pd.read_csv(corpus / "runs/wandb/train_log.csv")["loss"].tolist()
    assert [values["train/loss"] for _, values in Stub.logged if "train/loss" in values] == losses
    assert [step for step, values in Stub.logged if "valid/mean_5" in values] == [0, 2]
    assert Stub.config["id"] == json.loads((corpus / "runs/wandb/config.json").read_text())["run_id"]
    assert Stub.config["name"] == "wandb" and Stub.config["config"]["max_steps"] == 2 and Stub.finished


def test_a_tensorboard_file_is_written(corpus):
    pytest.importorskip("tensorboard")
    argv = flags(corpus, "board", "--max_steps", 1, "--log_interval", 1)
    train(*[flag for flag in argv if flag != "--no-tensorboard"])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(corpus / "runs/board/tensorboard"))
    events.Reload()
    assert {"train/loss", "valid/mean_5"} <= set(events.Tags()["scalars"])


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.parametrize(
    "more", [[], ["--precision", "bf16", "--optimizer", "adam", "--fused", "--num_workers", 2, "--grad_accum", 2]]
)
def test_a_gpu_trains_as_the_cpu_does_and_goes_on(corpus, more):
    for name, steps, environment in (("cpu", 12, {"CUDA_VISIBLE_DEVICES": ""}), ("gpu", 6, {}), ("gpu", 12, {})):
        argv = flags(
            corpus,
            f"on_{name}_{len(more)}",
            "--max_steps",
            steps,
            "--log_interval",
            1,
            "--val_interval",
            6,
            "--resume",
            "auto",
            *more,
        )
        subprocess.run(
            [sys.executable, "run_train.py", *map(str, argv)], cwd=ROOT, env=os.environ | environment, check=True
        )
    folders = [corpus / f"runs/on_{name}_{len(more)}" for name in ("cpu", "gpu")]
    cpu, gpu = (pd.read_csv(folder / "train_log.csv")["loss"] for folder in folders)
    np.testing.assert_allclose(gpu, cpu, rtol=0.02)
    devices = [json.loads((folder / "config.json").read_text())["device"] for folder in folders]
    assert devices[0] == "cpu" != devices[1]


@pytest.mark.parametrize(("batch", "named"), [(0, 0), (1, 0), (2, 1)])
def test_the_batch_that_is_named_is_the_last_that_was_trained_on(batch, named):
    def fail(what, rows):
        raise UserError(f"{what}: {rows}")

    model = nn.Linear(1, 1)
    model.weight.data[0] = math.nan
    run = SimpleNamespace(
        model=model,
        plan=SimpleNamespace(batches=[10, 11, 12]),
        progress=SimpleNamespace(batch=batch),
        step=7,
        _fail=fail,
    )
    with pytest.raises(UserError, match=f"step 7 left weights that are not finite: {10 + named}"):
        Run._require_finite_weights(run)


@pytest.mark.parametrize(("count", "more"), [(64, "ROW 64; "), (65, " and 1 more; "), (70, " and 6 more; ")])
def test_a_failed_batch_is_written_whole_and_named_in_part(tmp_path, count, more):
    with h5py.File(tmp_path / "cxr.h5", "w") as handle:
        handle["id"] = [f"ROW {row + 1}" for row in range(count)]
    for step in (0, 3, 7):
        (tmp_path / f"checkpoint_{step}.pt").touch()
    run = SimpleNamespace(
        is_main=True, folder=tmp_path, step=7, config=SimpleNamespace(cxr_filepath=str(tmp_path / "cxr.h5"))
    )
    run._bar = SimpleNamespace(close=lambda: None)
    with pytest.raises(UserError, match=r"the last good checkpoint is .*checkpoint_3\.pt") as error:
        Run._fail(run, "something", np.arange(count))
    said = str(error.value)
    assert more in said and "ROW 64" in said and "ROW 65" not in said
    table = pd.read_csv(tmp_path / "failed_batch.csv")
    assert table["row"].tolist() == list(range(count)) and table["id"].iloc[-1] == f"ROW {count}"


@pytest.mark.parametrize(
    ("at", "config", "finished"),
    [
        ({"step": 4}, {"max_steps": 5}, False),
        ({"step": 5}, {"max_steps": 5}, True),
        ({"step": 6, "epoch": 1}, {"max_steps": 7}, False),
        ({"exhausted": True}, {}, True),
        ({"epoch": 1, "batch": 2}, {}, False),
        ({"epoch": 1, "batch": 3}, {}, True),
        ({"epoch": 0, "batch": 3}, {}, False),
        ({"epoch": 2, "batch": 0}, {}, True),
    ],
)
def test_a_run_ends_with_its_steps_its_last_epoch_or_its_patience(at, config, finished):
    """Two epochs of three batches each."""
    run = SimpleNamespace(progress=Progress(**at), config=TrainConfig(epochs=2, **config), plan=range(3))
    assert Run.finished.fget(run) is finished


@pytest.mark.parametrize(("step", "purged"), [(0, None), (1, 2), (7, 8)])
def test_what_tensorboard_has_after_the_step_gone_on_from_is_purged(tmp_path, monkeypatch, step, purged):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append(purge_step)

        def add_scalar(self, *values):
            written.append(values)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    boards = Boards(tmp_path, TrainConfig(tensorboard=True), step)
    row = {"step": 9, "epoch": 1, "loss": 0.5, "lr": math.inf, "auc": math.nan, "none": None, "text": "x", "count": 3}
    boards.write("train", row)
    assert written == [purged, ("train/loss", 0.5, 9), ("train/count", 3, 9)]


def test_only_labels_with_both_classes_can_be_measured():
    labels = (np.arange(5)[:, None] < np.array([0, 1, 4, 5] + [0] * 10)).astype(float)
    assert labels_with_both_classes(labels) == LABELS[1:3]
