"""How optimistic the selected checkpoint's validation AUROC is, and what is left after the correction.

    python -m benchmarks.selection_bias [--draws 100] [--validations 100]

Checkpoints of one training are drawn: their true areas rise and level off, their scores on an image share most of the
noise. The best on the validation set is selected; its true area is known.
"""

import argparse

import numpy as np
from scipy.stats import norm

from chexzero.common.labels import COMPETITION_LABELS, LABELS
from chexzero.common.statistics import auroc
from chexzero.runs.selection_bias import SelectionBias

#: Setting -> images, positive cases per label, labels averaged.
SETTINGS = {
    "mean_5, 200 images": (200, dict(zip(COMPETITION_LABELS, (75, 66, 32, 42, 64), strict=True))),
    "one label with 8 positives": (200, {"Pneumothorax": 8}),
}
#: Share of a score's noise that belongs to the image, the same for every checkpoint.
SHARED = 0.5


def one_run(
    rng: np.random.Generator, cases: int, counts: dict[str, int], validations: int
) -> tuple[float, float, float]:
    """Validation value of the selected checkpoint, its corrected value, and its true value."""
    columns = [LABELS.index(name) for name in counts]
    truth = np.zeros((cases, len(LABELS)))
    for column, count in zip(columns, counts.values(), strict=True):
        truth[rng.choice(cases, count, replace=False), column] = 1
    image_noise = rng.normal(size=truth.shape)
    levelled = 1 - np.exp(-np.arange(1, validations + 1) / (validations / 8))
    areas = 0.7 + 0.15 * levelled[:, None] + rng.normal(0, 0.01, (validations, len(counts)))
    bias = SelectionBias(truth, list(counts))
    values = []
    for step, true in enumerate(areas):
        scores = SHARED**0.5 * image_noise + (1 - SHARED) ** 0.5 * rng.normal(size=truth.shape)
        scores[:, columns] += truth[:, columns] * norm.ppf(true) * 2**0.5
        values.append(auroc(truth[:, columns], scores[:, columns]).mean())
        bias.add(step, scores)
    best = int(np.argmax(values))
    return float(values[best]), float(bias.corrected(range(validations)) or np.nan), float(areas[best].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100, help="runs per setting (default: %(default)s)")
    parser.add_argument("--validations", type=int, default=100, help="per run (default: %(default)s)")
    args = parser.parse_args()
    print(f"{args.validations} validations per run, {args.draws} runs; selected minus true value")
    print(f"{'selected by':30}{'as validated':>14}{'90th percentile':>17}{'corrected':>11}{'90th percentile':>17}")
    for title, (cases, counts) in SETTINGS.items():
        rng = np.random.default_rng(0)
        runs = np.array([one_run(rng, cases, counts, args.validations) for _ in range(args.draws)])
        before, after = runs[:, 0] - runs[:, 2], runs[:, 1] - runs[:, 2]
        shown = (before.mean(), np.quantile(before, 0.9), after.mean(), np.quantile(after, 0.9))
        print(f"{title:30}" + "".join(f"{v:{w}.3f}" for v, w in zip(shown, (14, 17, 11, 17), strict=True)))


if __name__ == "__main__":
    main()
