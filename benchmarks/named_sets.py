"""What the statistics of a large evaluation set cost: `python -m benchmarks.named_sets` (200 findings, 40,000 images)."""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.audit import machine
from chexzero.evaluation.named_sets import NamedSet, Protocol, Summary, score_findings, summarise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40_000, metavar="N")
    parser.add_argument("--findings", type=int, default=200, metavar="N")
    args = parser.parse_args()
    random = np.random.default_rng(0)
    shares = np.exp(random.uniform(np.log(2e-4), np.log(0.3), args.findings))
    truth = (random.random((args.images, args.findings)) < shares).astype(np.float64)
    truth[random.random(truth.shape) < 0.01] = np.nan
    probability = 0.5 + 0.01 * (np.nan_to_num(truth) + random.standard_normal(truth.shape))
    names = [f"finding {j}" for j in range(args.findings)]
    table = pd.DataFrame({"id": np.arange(args.images).astype(str)})
    protocol = Protocol("drawn", summaries=[Summary("more than 50", more_than=50), Summary("rarest", rarest=20)])
    data = NamedSet("drawn", Path("drawn.h5"), Path("drawn_labels.csv"), table, names, truth, protocol, "")
    begun, used = time.perf_counter(), time.process_time()
    scores = score_findings(truth, probability)
    summaries = summarise(data, scores)
    seconds, used = time.perf_counter() - begun, time.process_time() - used
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{machine()}")
    print(
        f"{args.findings} findings x {args.images} images: {seconds:.1f} s ({used:.1f} s of CPU), {memory:.2f} GiB at most (data included)"
    )
    for one in summaries:
        print(f"{one.summary.title}: {len(one.used)} findings, {one.mean:.3f} ({one.lower:.3f} to {one.upper:.3f})")


if __name__ == "__main__":
    main()
