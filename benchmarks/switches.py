"""The effect of each training switch on the drawn corpus: paired differences over several seeds.

    python -m benchmarks.switches --data demo/data                    # 1,000 images, 300 steps, three seeds
    python -m benchmarks.switches --data demo/data --only augment "augment and ema" --curve

Every run trains the demo's model on the same first images of the corpus and is validated on the whole validation set.
The runs are compared by the mean AUROC of the 13 findings after the last step, seed by seed, with Student's interval.
`--curve` prints the validations of the runs with and without switches, which show over-fitting. The
figures show that the switches work, not their effect on real radiographs. Finished runs are not repeated.
"""

import argparse
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy import stats

import run_train
from chexzero.common.errors import run_command
from chexzero.runs.run_folder import read_run

ROOT = Path(__file__).resolve().parents[1]
#: Name -> flags. Each is compared with the run without any; `ema` is read from the folder of the average.
SWITCHES: dict[str, list[str]] = {
    "augment": ["--augment", "light"],
    "shuffled sentences": ["--text_sentences", "shuffle"],
    "sampled sentences": ["--text_sentences", "sample"],
    "one per study": ["--one_per_study"],
    "label smoothing": ["--label_smoothing", "0.1"],
    "patch dropout": ["--patch_dropout", "0.5"],
    "siglip": ["--loss", "siglip"],
    "ema": ["--ema", "0.99"],
    "augment and ema": ["--augment", "light", "--ema", "0.99"],
}


def subset(data: Path, out: Path, rows: int) -> Path:
    """Write the first rows of a training set, and its validation set, into a separate data folder."""
    if not (out / "valid_labels.csv").exists():
        out.mkdir(parents=True, exist_ok=True)
        with h5py.File(data / "cxr.h5") as given, h5py.File(out / "cxr.h5", "w") as made:
            made["cxr"], made["id"] = given["cxr"][:rows], given["id"][:rows]
        pd.read_csv(data / "impressions.csv", dtype=str, nrows=rows).to_csv(out / "impressions.csv", index=False)
        for name in ("valid.h5", "valid_labels.csv"):
            shutil.copy(data / name, out / name)
    return out


def curve(args: argparse.Namespace, data: Path, name: str, seed: int) -> pd.Series:
    """Train one run, unless it exists; return the mean AUROC of the 13 findings by step."""
    run_name = f"{name.replace(' ', '_')}-{seed}"
    folder = args.out / "runs" / run_name
    if not (folder / "checkpoint.pt").exists():
        flags = [
            "--config",
            str(ROOT / "configs/demo.yaml"),
            "--cxr_filepath",
            str(data / "cxr.h5"),
            "--no-tensorboard",
        ]
        flags += [
            "--save_dir",
            str(args.out / "runs"),
            "--model_name",
            run_name,
            "--resume",
            "auto",
            "--keep_top_k",
            "0",
        ]
        flags += ["--max_steps", str(args.steps), "--val_interval", str(args.val_interval), "--seed", str(seed)]
        flags += ["--text_sentences", "all", "--ema", "0", "--warmup_steps", "30", "--lr_schedule", args.lr_schedule]
        run_train.model_pipeline(run_train.parse_args([*flags, *SWITCHES.get(name, [])]))
    has_average = "--ema" in SWITCHES.get(name, [])
    return read_run(folder / "ema" if has_average else folder).metrics.set_index("step")["mean_13"]


def table(curves: dict[str, list[pd.Series]]) -> str:
    """One line per switch: mean over the seeds, and the paired difference to the runs without any."""
    last = {name: np.array([one.iloc[-1] for one in runs]) for name, runs in curves.items()}
    lines = ["| switch | mean of 13 | difference | 95 % interval |", "|---|--:|--:|---|"]
    for name, values in last.items():
        line = f"| {name} | {values.mean():.3f} |"
        if name == "none" or len(values) < 2:
            lines.append(f"{line} | |")
            continue
        difference = values - last["none"]
        reach = stats.t.ppf(0.975, len(values) - 1) * difference.std(ddof=1) / len(values) ** 0.5
        middle = difference.mean()
        lines.append(f"{line} {middle:+.3f} | {middle - reach:+.3f} to {middle + reach:+.3f} |")
    return "\n".join(lines)


def curve_table(curves: dict[str, list[pd.Series]]) -> str:
    """One line per validation: the mean over the seeds of each kind of run."""
    means = pd.concat({name: pd.concat(runs, axis=1).mean(axis=1) for name, runs in curves.items()}, axis=1)
    lines = [f"| step | {' | '.join(means.columns)} |", f"|--:|{'--:|' * means.shape[1]}"]
    return "\n".join(
        [*lines, *(f"| {step} | {' | '.join(f'{value:.3f}' for value in row)} |" for step, row in means.iterrows())]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a drawn corpus that is built")
    parser.add_argument("--out", type=Path, default=Path("build/switches"), metavar="DIR", help="where the runs go")
    parser.add_argument("--rows", type=int, default=1000, help="training images (default: 1000)")
    parser.add_argument("--steps", type=int, default=300, help="steps of each run (default: 300)")
    parser.add_argument("--val_interval", type=int, default=100, help="steps between validations (default: 100)")
    parser.add_argument("--lr_schedule", choices=("constant", "cosine"), default="cosine", help="(default: cosine)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: 1)")
    parser.add_argument("--only", nargs="+", choices=SWITCHES, metavar="SWITCH", help=f"of: {', '.join(SWITCHES)}")
    parser.add_argument("--curve", action="store_true", help="print the validations by step too")
    args = parser.parse_args()
    data = subset(args.data, args.out / "data", args.rows)
    names = ["none", *(args.only or SWITCHES)]
    runs = [(name, seed) for name in names for seed in range(args.seeds)]
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        found = pool.map(curve, *zip(*((args, data, name, seed) for name, seed in runs), strict=True))
    curves: dict[str, list[pd.Series]] = {name: [] for name in names}
    for (name, _), one in zip(runs, found, strict=True):
        curves[name].append(one)
    print(f"{args.rows} drawn images, {args.steps} steps of the demo's model, {args.seeds} seeds; no clinical result")
    print(table(curves))
    if args.curve:
        print(curve_table(curves))


if __name__ == "__main__":
    run_command(main)
