"""Sweeps: the grid, the SLURM script, the rule that stops runs early, and two tiny runs trained in turn."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from chexzero import sweep
from chexzero.common.errors import UserError
from chexzero.runs.run_folder import RunFolder
from tests.training_corpus import write_corpus

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "search.yaml"
        path.write_text(text)
        return path

    return write


def test_the_search_of_the_paper_is_six_runs_that_differ_in_batch_and_rate():
    found = sweep.read_sweep(CONFIGS / "sweep_chexzero.yaml")
    assert [(run.batch_size, run.lr) for run in found.runs] == [
        (batch, rate) for batch in (64, 128) for rate in (5e-5, 1e-4, 2e-4)
    ]
    assert found.runs[0].model_name == "sweep_chexzero_batch_size-64_lr-5e-05"
    assert {(run.optimizer, run.epochs, run.val_interval, run.keep_top_k) for run in found.runs} == {
        ("sgd", 4, 1000, 9)
    }


def test_our_own_search_is_read_and_has_a_rule_for_giving_up():
    found = sweep.read_sweep(CONFIGS / "sweep_dinov3.yaml")
    assert len(found.runs) == 9 and found.stop == sweep.StopRule(400000, 0.01, 3)
    assert found.runs[0].vision == "dinov3_vitb"


def test_the_slurm_script_is_bash_with_one_task_per_run(write):
    path = write("grid: {lr: [0.1, 0.2, 0.3]}\nslurm: {time: '2:00:00', account: lungs}\n")
    text = sweep.script(sweep.read_sweep(path))
    assert (
        "#SBATCH --array=0-2\n" in text and "#SBATCH --time=2:00:00\n" in text and "#SBATCH --account=lungs\n" in text
    )
    assert f'-m chexzero.sweep {shlex.quote(str(path))} --task "$SLURM_ARRAY_TASK_ID"' in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {lr: [1]}\nlearning: 3\n", "unknown keys \\(learning\\)"),
        ("name: x\n", "grid must give"),
        ("grid: {lr: 0.1}\n", "grid must give"),
        ("grid: {learning_rate: [0.1]}\n", "search.yaml .* not flags \\(learning_rate\\)"),
        ("grid: {lr: [fast]}\n", "lr"),
        ("grid: {lr: [0.1, 0.1]}\n", "same settings"),
        ("grid: {lr: [0.1]}\nconfig: missing.yaml\n", "missing.yaml does not exist"),
        ("grid: {lr: [0.1]}\nstop: {after: 3}\n", "after_samples"),
        ("grid: {lr: [0.1]}\nslurm: {time: 24:00:00}\n", "quotes"),
        ("grid: {lr: [0.1]}\nslurm: {'time\\nrm': 1}\n", "one value"),
        ("grid: {lr: [0.1]}\nslurm: {Mem: 1}\n", "one value"),
        ("grid: {lr: [0.1]}\nslurm: {mem: [1]}\n", "one value"),
        ("grid: {lr: [0.1]}\nslurm: {mem: {a: 1}}\n", "one value"),
        ('grid: {lr: [0.1]}\nslurm: {mem: "1\\n2"}\n', "one value"),
        ("grid: {lr: [0.1]}\nstop: {after_samples: -1}\n", "numbers of 0 or more"),
        ("grid: {lr: [0.1]}\nstop: {after_samples: 0, margin: -0.1}\n", "numbers of 0 or more"),
        ("grid: {lr: [0.1]}\nstop: {after_samples: 0, runs: 0}\n", "numbers of 0 or more"),
        ("grid: {}\n", "grid must give"),
        ("grid: {lr: []}\n", "grid must give"),
        ("grid: [1]\n", "grid must hold"),
        ("- 1\n", "one `key: value`"),
        ("grid: {lr: [0.1\n", "not valid YAML"),
        ("grid: {lr: [0.1]}\ngrid: {lr: [0.2]}\n", "the key .grid. occurs twice"),
        ("name: ../x\ngrid: {lr: [0.1]}\n", "letters, digits"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(write, text, message):
    with pytest.raises(UserError, match=message) as error:
        sweep.read_sweep(write(text))
    assert "\n" not in str(error.value)


def _run(values, metric="mean_5", step=100):
    """A run validated every `step` pairs with these values."""
    table = pd.DataFrame({"step": range(len(values)), metric: values})
    table["samples"] = table["step"] * step
    return RunFolder(Path("run"), selection={"metric": metric}, metrics=table)


OTHERS = [_run([0.5, 0.6, 0.7, 0.9]), _run([0.5, 0.62, 0.72, 0.8]), _run([0.5, 0.5, 0.55, 0.6])]


@pytest.mark.parametrize(
    ("values", "rule", "hopeless"),
    [
        ([0.5, 0.5, 0.6], sweep.StopRule(200), True),  # 0.6 against the median 0.7 at 200 pairs
        ([0.5, 0.5, 0.6], sweep.StopRule(201), False),  # too early
        ([0.5, 0.5, 0.6], sweep.StopRule(200, margin=0.11), False),
        ([0.5, 0.5, 0.6], sweep.StopRule(200, runs=4), False),  # too few others
        ([0.5, 0.75, 0.6], sweep.StopRule(200), False),  # its best counts, not its last
        ([0.5, 0.5, 0.71], sweep.StopRule(200), False),  # later values of the others do not count
        ([0.5, 0.5, 0.6, 0.7, 0.7], sweep.StopRule(200), False),  # no other run has trained that long
        ([], sweep.StopRule(0), False),
    ],
)
def test_a_run_is_given_up_by_the_median_of_the_others_at_the_same_number_of_pairs(values, rule, hopeless):
    assert (sweep.why_hopeless(_run(values), OTHERS, rule) is not None) == hopeless


def test_of_a_loss_the_lower_is_better():
    others = [_run([3.0, 2.0], "val_loss")] * 3
    assert sweep.why_hopeless(_run([3.0, 2.5], "val_loss"), others, sweep.StopRule(100))
    assert not sweep.why_hopeless(_run([3.0, 1.5], "val_loss"), others, sweep.StopRule(100))


TINY = """
settings:
  vision: dinov3_tiny
  text_encoder: tiny
  image_resolution: 32
  tensorboard: false
  cxr_filepath: {data}/cxr.h5
  save_dir: {folder}/runs
  batch_size: 8
  max_steps: {steps}
  val_interval: 2
  save_interval: 0
grid:
  lr: [0.001, 0.002]
"""


@pytest.mark.long
def test_runs_are_trained_in_turn_and_one_table_holds_their_validations(tmp_path, write, capfd):
    write_corpus(tmp_path, train=24, valid=20)
    path = write(TINY.format(data=tmp_path / "data", folder=tmp_path, steps=2))
    assert sweep.main([str(path), "--run"]) == 0
    table = pd.read_csv(tmp_path / "runs" / "search.csv")
    assert table["lr"].tolist() == [0.001, 0.001, 0.002, 0.002] and table["step"].tolist() == [0, 2, 0, 2]
    for name, rows in table.groupby("run"):
        recorded = pd.read_csv(tmp_path / "runs" / name / "metrics.csv")
        assert rows["mean_5"].tolist() == recorded["mean_5"].tolist()
        assert (
            json.loads((tmp_path / "runs" / name / "config.json").read_text())["settings"]["lr"] == rows["lr"].iloc[0]
        )
    out = capfd.readouterr().out
    assert out.count("finished") == 2 and "--ensemble top 10" in out
    assert sweep.main([str(path), "--run"]) == 0 and "training" not in capfd.readouterr().out


def test_a_hopeless_run_is_told_to_save_and_never_begun_again(tmp_path, write, monkeypatch):
    """The child is a stand-in that waits for the signal; the decision is based on the folders as usual."""
    monkeypatch.setattr(sweep, "POLL", 0.05)
    path = write(
        "settings: {save_dir: %s}\ngrid: {lr: [0.1, 0.2, 0.3, 0.4]}\nstop: {after_samples: 10}\n" % (tmp_path / "runs")
    )
    found = sweep.read_sweep(path)
    for run, value in zip(found.runs, (0.6, 0.9, 0.9, 0.9), strict=True):
        run.folder.mkdir(parents=True)
        (run.folder / "config.json").write_text(json.dumps({"run_id": "made up"}))
        (run.folder / "metrics.csv").write_text(f"step,samples,mean_5\n0,0,0.5\n5,20,{value}\n")
    waits = "import signal, sys; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75)); print('up', flush=True); signal.pause()"
    original = subprocess.Popen

    def popen(_words):
        child = original([sys.executable, "-c", waits], stdout=subprocess.PIPE)
        child.stdout.readline()
        return child

    monkeypatch.setattr(sweep.subprocess, "Popen", popen)
    assert sweep.train(found, 0) == 0
    assert sweep.state_of(found.runs[0]) == "given up"
    assert (
        "0.6000; the median of 3 other runs was 0.9000"
        in json.loads((found.runs[0].folder / sweep.STOPPED).read_text())["reason"]
    )
    monkeypatch.setattr(sweep.subprocess, "Popen", None)
    assert sweep.train(found, 0) == 0


def test_a_task_that_is_no_run_is_refused(write):
    with pytest.raises(UserError, match="runs 0 to 1"):
        sweep.main([str(write("grid: {lr: [0.1, 0.2]}\n")), "--task", "2"])


@pytest.mark.parametrize(
    ("metric", "values", "best"), [("mean_5", [0.5, 0.7, 0.7, 0.6], 0.7), ("val_loss", [3.0, 2.0, 2.0, 2.5], 2.0)]
)
def test_the_table_of_a_search_has_the_first_best_validation_of_each_run(tmp_path, write, metric, values, best, capsys):
    path = write("settings: {save_dir: %s}\ngrid: {lr: [0.1, 0.2, 0.3, 0.4]}\n" % (tmp_path / "runs"))
    found = sweep.read_sweep(path)
    for run, seen in zip(found.runs, (values, [None, None], []), strict=False):
        run.folder.mkdir(parents=True)
        (run.folder / "config.json").write_text("{}")
        (run.folder / "selection.json").write_text(json.dumps({"metric": metric}))
        pd.DataFrame({"step": range(len(seen)), metric: seen}).to_csv(run.folder / "metrics.csv", index=False)
    (found.runs[0].folder / "checkpoint.pt").touch()
    (found.runs[2].folder / sweep.STOPPED).touch()
    table = sweep.summary(found)
    assert list(table["state"]) == ["finished", "begun", "given up", "not begun"]
    first = table.iloc[0]
    assert (first["validated"], first["last step"], first["best"], first["at step"]) == (4, 3, best, 1)
    assert table["best"].isna().tolist() == table["at step"].isna().tolist() == [False, True, True, True]
    (found.runs[2].folder / sweep.STOPPED).write_text('{"reason": "too far behind"}')
    sweep.show(found)
    out = capsys.readouterr().out
    assert out.count("was given up") == 1 and f"{found.runs[2].model_name} was given up: too far behind" in out
    assert f"--runs {' '.join(str(run.folder) for run in found.runs[:3])} --ensemble" in out
    assert len(pd.read_csv(tmp_path / "runs" / f"{found.name}.csv")) == 6
    every = sweep.validations(found)
    assert list(every["run"]) == [found.runs[0].model_name] * 4 + [found.runs[1].model_name] * 2
    assert list(every["lr"]) == [0.1] * 4 + [0.2] * 2


def test_the_least_that_a_rule_for_giving_up_may_say(write):
    text = "grid: {lr: [0.1]}\nstop: {after_samples: 0, margin: 0, runs: 1}\n"
    assert sweep.read_sweep(write(text)).stop == sweep.StopRule(0, 0, 1)
    assert sweep.read_sweep(write("grid: {lr: [0.1]}\n")).stop is None


def test_a_run_just_as_far_behind_as_the_margin_goes_on():
    others = [_run([0.5, 0.75])] * 2
    rule = sweep.StopRule(100, margin=0.25, runs=2)
    assert sweep.why_hopeless(_run([0.5, 0.5]), others, rule) is None
    assert sweep.why_hopeless(_run([0.4, 0.4]), others, rule) is not None
