"""How long the suites' statistics take at a given size, on drawn scores, without the model.

    python -m benchmarks.suites [--images 79000] [--findings 40] [--subgroup_images 20000]

The defaults are about CXR-LT 2024's test set (its 40 findings, three images per patient, the rarest in one image of a
thousand) and a hundred times CheXpert's validation set. Peak memory is the whole process's.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable

import numpy as np

from benchmarks.memory import peak
from chexzero.common.labels import LABELS
from chexzero.suites import cxr_lt, retrieval, subgroups


def drawn(rng: np.random.Generator, n: int, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth = (rng.random((n, len(shares))) < shares).astype(float)
    return truth, (1 / (1 + np.exp(-0.1 * (truth + rng.normal(size=truth.shape))))).astype(np.float32)


def report(title: str, work: Callable[[], object]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{title:58}{wall:7.1f} s wall {cpu:7.1f} s CPU {peak():6.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=79_000)
    parser.add_argument("--findings", type=int, default=40)
    parser.add_argument("--subgroup_images", type=int, default=20_000)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}")

    truth, probability = drawn(rng, args.images, np.geomspace(0.35, 0.001, args.findings))
    patients = rng.integers(0, max(args.images // 3, 1), args.images)
    report(
        f"cxr-lt: {args.images} images x {args.findings} findings x 1000 resamples",
        lambda: cxr_lt.score(truth, probability, np.full(args.findings, 0.5), patients, 1000),
    )

    n = args.subgroup_images
    truth, probability = drawn(rng, n, np.full(len(LABELS), 0.15))
    groups = {
        name: {str(i): member == i for i in range(size)}
        for name, size in (("sex", 2), ("race", 5), ("age (65)", 2), ("age (bands)", 6))
        for member in [rng.integers(0, size, n)]
    }
    report(
        f"subgroups: {n} images x 14 labels x 15 groups x 2000",
        lambda: subgroups.compare(
            truth, probability, np.full(len(LABELS), 0.5), LABELS, groups, np.arange(n).astype(str), 10, 0
        ),
    )

    features = rng.normal(size=(2, 5000, 512)).astype(np.float32)
    report("retrieval: 5000 pairs, 512 dimensions", lambda: retrieval.recall(*features, np.arange(5000), [1, 5, 10]))


if __name__ == "__main__":
    main()
