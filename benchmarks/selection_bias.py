"""How optimistic the selected checkpoint's validation AUROC is, before and after the correction.

    python -m benchmarks.selection_bias [--draws 100] [--validations 100]

Checkpoints of one training are drawn: their true AUROCs rise and level off, and their scores on an image share most of
the noise. The best on the validation set is selected; its true AUROC is known. All checkpoints of a run share a
deviation, as some validation sets are easier than others. Selection does not cause it, and with few positive cases it
is far larger than the optimism, so the mean of validated minus true over all checkpoints of the run, whose expectation
is 0, is subtracted. Standard errors are over the runs.
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
    """Optimism of the selected checkpoint as validated and as corrected, and the deviation shared by all checkpoints."""
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
    true = float(areas[best].mean())
    corrected = bias.corrected(range(validations))
    return (
        values[best] - true,
        np.nan if corrected is None else corrected - true,
        float(np.mean(values - areas.mean(1))),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100, help="runs per setting (default: %(default)s)")
    parser.add_argument("--validations", type=int, default=100, help="per run (default: %(default)s)")
    args = parser.parse_args()
    print(f"{args.validations} validations per run, {args.draws} runs; selected minus true value (standard error)")
    print(f"{'selected by':30}{'as validated':>18}{'90th percentile':>17}{'corrected':>18}{'90th percentile':>17}")
    for title, (cases, counts) in SETTINGS.items():
        rng = np.random.default_rng(0)
        runs = np.array([one_run(rng, cases, counts, args.validations) for _ in range(args.draws)])
        runs = runs[np.isfinite(runs).all(1)]
        line = f"{title:30}"
        for found in (runs[:, 0] - runs[:, 2], runs[:, 1] - runs[:, 2]):
            error = found.std(ddof=1) / len(found) ** 0.5
            line += f"{f'{found.mean():+.3f} ({error:.3f})':>18}{np.quantile(found, 0.9):>+17.3f}"
        print(line)
        common = runs[:, 2]
        print(f"{'  in common, subtracted':30}{f'{common.mean():+.3f} ({common.std() / len(common) ** 0.5:.3f})':>18}")


if __name__ == "__main__":
    main()
