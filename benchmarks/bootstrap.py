"""Bootstrap of the AUROC: all labels and resamples at once, compared with a plain loop over both.

    python -m benchmarks.bootstrap

The plain loop is what CheXzero does: for each resample and label, `sklearn.utils.resample` and one ROC curve. Both
run in this process on the same labels and predictions, and must agree.
"""

import argparse
import os
import platform
import time

import numpy as np
from sklearn.metrics import auc, roc_curve
from sklearn.utils import resample

from chexzero.common.statistics import bootstrap_auroc, percentile_interval


def plain_loop(truth: np.ndarray, scores: np.ndarray, n_samples: int) -> np.ndarray:
    """(n_samples, L): one `roc_curve` per resample and label."""
    index = np.arange(len(truth))
    areas = np.empty((n_samples, truth.shape[1]))
    for i in range(n_samples):
        rows = resample(index, replace=True, random_state=i)
        for label in range(truth.shape[1]):
            fpr, tpr, _ = roc_curve(truth[rows, label], scores[rows, label])
            areas[i, label] = auc(fpr, tpr)
    return areas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--labels", type=int, default=14)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5, help="of ours; the median is given (default: %(default)s)")
    args = parser.parse_args()

    random = np.random.default_rng(0)
    truth = random.random((args.rows, args.labels)) < 0.2
    scores = np.round(truth + random.normal(0, 1, truth.shape), 2)  # rounded, so that there are ties
    walls, cpus = [], []
    for _ in range(args.repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        ours = bootstrap_auroc(truth, scores, args.samples)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    wall, cpu = time.perf_counter(), time.process_time()
    loop = plain_loop(truth, scores, args.samples)
    loop_wall, loop_cpu = time.perf_counter() - wall, time.process_time() - cpu

    same = np.round(percentile_interval(ours), 4) == np.round(percentile_interval(loop), 4)
    print(
        f"{args.samples} resamples x {args.rows} rows x {args.labels} labels; {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, NumPy {np.__version__}"
    )
    print(f"at once     {np.median(walls):8.3f} s wall {np.median(cpus):8.3f} s CPU (median of {args.repeats})")
    print(f"plain loop  {loop_wall:8.3f} s wall {loop_cpu:8.3f} s CPU")
    print(f"ratio       {loop_wall / np.median(walls):8.0f}   wall {loop_cpu / np.median(cpus):8.0f}   CPU")
    print(f"largest difference {np.nanmax(np.abs(ours - loop)):.1e}; intervals equal to 4 places: {bool(same.all())}")


if __name__ == "__main__":
    main()
