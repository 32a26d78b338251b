"""Train a grid of settings: list the runs, submit them as a SLURM array, or train them one after the other.

    python -m chexzero.sweep configs/sweep_chexzero.yaml            # print the runs' progress and a SLURM script
    python -m chexzero.sweep configs/sweep_chexzero.yaml --submit   # submit that script with sbatch
    python -m chexzero.sweep configs/sweep_chexzero.yaml --run      # train in turn, on this machine

Each call continues where an earlier one stopped. Every call except --task writes `<save_dir>/<name>.csv`, a table of
all runs' validations. `run_zero_shot.py --runs DIR DIR ... --ensemble top 10` evaluates the runs' best checkpoints
together. docs/CLUSTER.md describes the sweep's file.
"""

import chexzero.common.interrupts  # noqa: F401  (first: the other imports take seconds)

import argparse
import itertools
import logging
import math
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from chexzero.common.errors import EXIT_CODES, UserError, run_command
from chexzero.common.files import read_json, read_yaml, safe_name, write_json, write_text
from chexzero.runs.run_folder import RunFolder, read_run
from chexzero.training.config import TrainConfig, parse_config
from chexzero.training.resume import EXIT_REQUEUE

log = logging.getLogger(__name__)

KEYS = {"name", "config", "settings", "grid", "stop", "slurm"}
STOPPED = "stopped.json"  # in the folder of a run that was given up
POLL = 30.0  # seconds between looks at a run's validations

SCRIPT = """\
#!/bin/bash
{directives}
cd "${{SLURM_SUBMIT_DIR:-.}}"
export OMP_NUM_THREADS=1
srun {python} -m chexzero.sweep {file} --task "$SLURM_ARRAY_TASK_ID"
code=$?
if [ "$code" -eq {requeue} ]; then  # stopped before the time limit, after saving
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""
#: Default options of sbatch, which the sweep's file can override. `signal` gives a run five minutes to save.
SLURM = {"gpus-per-node": "1", "cpus-per-task": "8", "mem": "48G", "time": "24:00:00", "signal": "USR1@300"}


@dataclass(frozen=True)
class StopRule:
    """When to give up a run: its best validation is worse than the median of the others' best by more than `margin`.

    after_samples: pairs that every run may see. runs: how many other runs must have seen as many pairs. The median
    rule is that of Golovin et al. 2017.
    """

    after_samples: int
    margin: float = 0.0
    runs: int = 3


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, in order, and the settings in which they differ."""

    path: Path
    name: str
    swept: list[str]
    runs: list[TrainConfig]
    stop: StopRule | None
    slurm: Mapping[str, str]

    @property
    def table_path(self) -> Path:
        return Path(self.runs[0].save_dir) / f"{self.name}.csv"


def read_sweep(path: Path) -> Sweep:
    """Read a sweep's file and check every run's settings. Raises `UserError` naming what is wrong."""
    values = _mapping(path, "correct it, or name another sweep's file")
    if unknown := set(map(str, values)) - KEYS:
        raise UserError(f"{path} has unknown keys ({', '.join(sorted(unknown))}); known are {', '.join(sorted(KEYS))}")
    parts = {key: values.get(key) or {} for key in ("settings", "grid", "stop", "slurm")}
    if wrong := [key for key, value in parts.items() if not isinstance(value, dict)]:
        raise UserError(f"{path}: {wrong[0]} must hold one `key: value` per line; correct it")
    grid = parts["grid"]
    if not grid or not all(isinstance(choices, list) and choices for choices in grid.values()):
        raise UserError(f"{path}: grid must give each swept setting a list of values, such as lr: [1.0e-4, 2.0e-4]")
    name = safe_name(str(values.get("name") or path.stem), f"name in {path}")
    base = (
        _mapping(path.parent / str(values["config"]), f"correct it, or config in {path}")
        if values.get("config")
        else {}
    )
    runs = [
        _run(path, name, {**base, **parts["settings"]}, dict(zip(grid, point, strict=True)))
        for point in itertools.product(*grid.values())
    ]
    if len({run.model_name for run in runs}) < len(runs):
        raise UserError(f"{path}: two runs of the grid have the same settings; give each value once")
    return Sweep(path, name, list(grid), runs, _stop_rule(path, parts["stop"]), _slurm(path, parts["slurm"]))


def _mapping(path: Path, remedy: str) -> dict[str, Any]:
    values = read_yaml(path, remedy)
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold one `key: value` per line; {remedy}")
    return values


def _run(path: Path, name: str, base: Mapping[str, Any], point: Mapping[str, Any]) -> TrainConfig:
    """The configuration of one point of the grid, parsed as run_train.py parses it."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as handle:
        yaml.safe_dump({**base, **point}, handle)
        handle.flush()
        try:
            config = parse_config("", ["--config", handle.name])
        except UserError as error:
            raise UserError(str(error).replace(handle.name, f"{path} (with its config)")) from error
    words = (f"{key}-{getattr(config, key)}" for key in point)
    return replace(
        config, model_name=safe_name("_".join([name, *(re.sub("[^A-Za-z0-9._-]+", "-", one) for one in words)]))
    )


def _stop_rule(path: Path, values: Mapping[str, Any]) -> StopRule | None:
    if not values:
        return None
    try:
        rule = StopRule(**values)
        fits = rule.after_samples >= 0 and rule.margin >= 0 and rule.runs >= 1
    except TypeError:
        fits = False
    if not fits:
        raise UserError(
            f"{path}: stop takes after_samples, margin and runs, numbers of 0 or more (runs: 1); correct it"
        )
    return rule


def _slurm(path: Path, values: Mapping[str, Any]) -> dict[str, str]:
    for key, value in values.items():
        if not re.fullmatch("[a-z-]+", str(key)) or isinstance(value, dict | list) or "\n" in str(value):
            raise UserError(f"{path}: slurm must give each sbatch option one value ({key} does not); correct it")
        if key == "time" and not isinstance(value, str):  # YAML reads 24:00:00 as a number
            raise UserError(f'{path}: slurm time must be in quotes, such as time: "24:00:00"')
    return {**SLURM, **{str(key): str(value) for key, value in values.items()}}


# --- the runs' progress ---


def state_of(run: TrainConfig) -> str:
    """`not begun`, `begun`, `finished`, or `given up`."""
    if (run.folder / STOPPED).exists():
        return "given up"
    if (run.folder / "checkpoint.pt").exists():
        return "finished"
    return "begun" if (run.folder / "config.json").exists() else "not begun"


def validations(sweep: Sweep) -> pd.DataFrame:
    """The validations of all runs so far, one row each: `run`, the swept settings, and the columns of metrics.csv."""
    tables = []
    for run in sweep.runs:
        if state_of(run) != "not begun":
            table = read_run(run.folder).metrics
            for place, key in enumerate(["run", *sweep.swept]):
                table.insert(place, key, run.model_name if key == "run" else getattr(run, key))
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["run", *sweep.swept, "step"])


def summary(sweep: Sweep) -> pd.DataFrame:
    """One row per run: its state, how far it has come, and its best validation."""
    rows = []
    for run in sweep.runs:
        row: dict[str, Any] = {"run": run.model_name, "state": state_of(run)}
        found = read_run(run.folder) if row["state"] != "not begun" else None
        metric = found.ranking_metric if found else run.select_by
        if found and metric in found.metrics and len(found.metrics):
            table = found.metrics.dropna(subset=[metric])
            best = table.sort_values([metric, "step"], ascending=[metric == "val_loss", True]).head(1)
            row |= {"validated": len(found.metrics), "last step": found.metrics["step"].max()}
            row |= {"best": best[metric].item(), "at step": best["step"].item()} if len(best) else {}
        rows.append(row)
    columns = ["run", "state", "validated", "last step", "best", "at step"]
    return pd.DataFrame(rows, columns=columns)


def why_hopeless(own: RunFolder, others: Sequence[RunFolder], rule: StopRule) -> str | None:
    """Return why a run must be given up, from validations alone, or None if it may go on."""
    metric = own.ranking_metric
    if own.metrics.empty or metric not in own.metrics:
        return None
    seen = own.metrics["samples"].max()
    mine = _best_by(own, metric, seen)
    theirs = [_best_by(one, metric, seen) for one in others if _has_come_to(one, metric, seen)]
    theirs = [value for value in theirs if math.isfinite(value)]
    if seen < rule.after_samples or len(theirs) < rule.runs or not math.isfinite(mine):
        return None
    median = statistics.median(theirs)
    sign = -1 if metric == "val_loss" else 1
    if sign * (median - mine) <= rule.margin:
        return None
    return (
        f"after {seen} pairs its best {metric} was {mine:.4f}; the median of {len(theirs)} other runs was {median:.4f} "
        f"by then, and a run more than {rule.margin:g} behind is given up"
    )


def _has_come_to(run: RunFolder, metric: str, samples: int) -> bool:
    return metric in run.metrics and not run.metrics.empty and run.metrics["samples"].max() >= samples


def _best_by(run: RunFolder, metric: str, samples: int) -> float:
    values = run.metrics.loc[run.metrics["samples"] <= samples, metric]
    return float(values.min() if metric == "val_loss" else values.max())


# --- training ---


def train(sweep: Sweep, number: int) -> int:
    """Train one run to its end, or until it is given up or told to stop; return its exit code."""
    run = sweep.runs[number]
    if state_of(run) in ("finished", "given up"):
        log.info("%s: %s", run.model_name, state_of(run))
        return 0
    settings = Path(run.save_dir) / f"{sweep.name}.runs" / f"{run.model_name}.yaml"
    write_text(settings, yaml.safe_dump({"settings": run.as_dict()}, sort_keys=False))
    log.info("%s: training", run.model_name)
    process = subprocess.Popen([sys.executable, "-m", "run_train", "--config", str(settings), "--resume", "auto"])
    before = {number: signal.signal(number, lambda got, _: process.send_signal(got)) for number in _FORWARDED}
    reason = None
    try:
        while (code := _wait(process)) is None:
            if reason is None and (reason := _given_up(sweep, run)):
                log.info("%s is given up: %s", run.model_name, reason)
                process.send_signal(signal.SIGUSR1)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if reason and code == EXIT_REQUEUE:
        write_json(run.folder / STOPPED, {"reason": reason})
        return 0
    return EXIT_REQUEUE if -code in _FORWARDED else code  # a signal before Python has set its handler: nothing is lost


_FORWARDED = (signal.SIGTERM, signal.SIGUSR1)


def _wait(process: subprocess.Popen) -> int | None:
    try:
        return process.wait(POLL)
    except subprocess.TimeoutExpired:
        return None


def _given_up(sweep: Sweep, run: TrainConfig) -> str | None:
    if sweep.stop is None or not (run.folder / "metrics.csv").exists():
        return None
    others = [read_run(one.folder) for one in sweep.runs if one is not run and state_of(one) != "not begun"]
    return why_hopeless(read_run(run.folder), others, sweep.stop)


# --- the command ---


def script(sweep: Sweep) -> str:
    """The batch script of a SLURM array with one task per run."""
    options = {
        "job-name": sweep.name,
        "array": f"0-{len(sweep.runs) - 1}",
        "ntasks": "1",
        "output": f"{sweep.name}-%A_%a.log",
        "open-mode": "append",
        **sweep.slurm,
    }
    directives = [f"#SBATCH --{key}={value}" for key, value in options.items()] + ["#SBATCH --requeue"]
    return SCRIPT.format(
        directives="\n".join(directives),
        python=shlex.quote(sys.executable),
        file=shlex.quote(str(sweep.path)),
        requeue=EXIT_REQUEUE,
    )


def show(sweep: Sweep) -> None:
    """Print the runs' progress, and write the table of all validations."""
    table = validations(sweep)
    write_text(sweep.table_path, table.to_csv(index=False, lineterminator="\n"))
    print(summary(sweep).to_string(index=False, na_rep="", float_format="{:.4f}".format))
    print(f"\n{len(table)} validations of {len(sweep.runs)} runs: {sweep.table_path}")
    for run in sweep.runs:
        if state_of(run) == "given up":
            print(f"{run.model_name} was given up: {read_json(run.folder / STOPPED).get('reason')}")
    folders = " ".join(shlex.quote(str(run.folder)) for run in sweep.runs if state_of(run) != "not begun")
    if folders:
        print(f"evaluate the best of all: python run_zero_shot.py --runs {folders} --ensemble top 10")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chexzero.sweep",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", type=Path, metavar="FILE", help="YAML file of the sweep, such as configs/sweep_*.yaml")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--run", action="store_true", help="train the runs one after the other")
    how.add_argument("--submit", action="store_true", help="submit the runs as a SLURM array")
    how.add_argument("--task", type=int, metavar="N", help="train run N (from 0), as a task of the array does")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    sweep = read_sweep(args.sweep)
    if args.task is not None:
        if not 0 <= args.task < len(sweep.runs):
            last = len(sweep.runs) - 1
            raise UserError(f"--task {args.task} is not a run of {args.sweep}; it has the runs 0 to {last}")
        return train(sweep, args.task)
    code = 0
    if args.run:
        for number in range(len(sweep.runs)):
            code = train(sweep, number)
            if code:
                break
    elif args.submit:
        code = submit(sweep)
    show(sweep)
    if not args.run and not args.submit:
        print(f"\nthe script that --submit submits, which you can also save and edit:\n\n{script(sweep)}")
    return code


def submit(sweep: Sweep) -> int:
    """Give the script to sbatch; return its exit code."""
    try:
        return subprocess.run(["sbatch"], input=script(sweep), text=True, check=False).returncode
    except FileNotFoundError as error:
        raise UserError("sbatch is not installed here; run this command on a login node, or use --run") from error


if __name__ == "__main__":
    run_command(main)
