"""How often the subgroup suite reports a gap in drawn scores without one (false alarms), and with a planted one.

    python -m benchmarks.subgroup_alarms [--draws 200]

Scores are the logistic function of 1.5 times the label plus normal noise (AUROC about 0.86). A gap is planted by
shuffling the labels of one group.
"""

import argparse

import numpy as np

from chexzero.suites.subgroups import compare

#: images, share of positives, groups
SETTINGS = [(200, 0.3, 2), (234, 0.15, 2), (600, 0.3, 4)]


def found(seed: int, n: int, share: float, n_groups: int, planted: bool) -> tuple[bool, bool]:
    """Whether a gap is reported for AUROC and for F1 in one draw."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, 1)) < share).astype(float)
    score = 1 / (1 + np.exp(-(1.5 * truth + rng.normal(size=(n, 1)))))
    group = rng.integers(0, n_groups, n)
    if planted:
        rows = np.flatnonzero(group == 0)
        truth[rows] = truth[rng.permutation(rows)]
    groups = {"group": {str(i): group == i for i in range(n_groups)}}
    results = compare(
        truth, score, np.array([np.median(score)]), ["finding"], groups, np.arange(n).astype(str), 10, seed, 1000
    )
    gaps = results["group"]["finding"]["gaps"].values()
    return any(gap["auroc"]["found"] for gap in gaps), any(gap["f1"]["found"] for gap in gaps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    draws = parser.parse_args().draws
    print("images  positive  groups  planted  gap in AUROC  gap in F1")
    for n, share, n_groups in SETTINGS:
        for planted in (False, True):
            auroc, f1 = np.mean([found(seed, n, share, n_groups, planted) for seed in range(draws)], axis=0)
            print(f"{n:6}  {share:7.0%}  {n_groups:6}  {'yes' if planted else 'no':7}  {auroc:11.1%}  {f1:8.1%}")


if __name__ == "__main__":
    main()
