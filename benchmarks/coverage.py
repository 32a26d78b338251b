"""How often a 95 % interval contains the true AUROC, and how often a test reports a difference of two equal models.

    python -m benchmarks.coverage [--draws 2000] [--mean_draws 400] [--pairs 400]

Scores are drawn from two normal distributions, so that the true AUROC is known. The labelled sets have the counts of
positive cases of the CheXpert validation and test sets; labels are correlated, and so are the scores of one image.
Three tables: one label at every count; the means over labels; comparisons of two equal models.
"""

import argparse

import numpy as np
from scipy.stats import norm

from chexzero.common.intervals import FEW, case_influence, holm, mean_interval, newcombe_interval, paired_areas
from chexzero.common.statistics import auroc, bootstrap_auroc, paired_difference, percentile_interval

COUNTS = (3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100)
AREAS = (0.6, 0.7, 0.8, 0.9, 0.95)

#: Set -> cases, and positive cases of the labels that have any; a true AUROC is drawn for each.
SETS = {
    "validation": (200, (75, 66, 32, 42, 105, 1, 120, 26, 64, 1, 8, 6, 99)),
    "test": (500, (153, 151, 29, 78, 253, 5, 8, 264, 104, 4, 11, 9, 261)),
}
COMPETITION = {"validation": (0, 1, 2, 3, 8), "test": (0, 1, 2, 3, 8)}

#: Share of each latent variable that the labels, and the scores of an image, have in common.
SHARED = 0.3


def label_coverage(draws: int, cases: int = 500) -> None:
    """One label: upstream's percentile interval and Newcombe's."""
    rng = np.random.default_rng(0)
    print(f"One label, {cases} cases, {draws} draws per area; worst over the areas {AREAS} in brackets")
    print("positives   as CheXzero       Newcombe")
    for count in COUNTS:
        truth = np.zeros((cases, draws))
        truth[:count] = 1
        inside: dict[str, list[float]] = {"percentile": [], "newcombe": []}
        for area in AREAS:
            scores = rng.normal(size=truth.shape) + truth * norm.ppf(area) * 2**0.5
            few = slice(0, min(draws, 400))  # the bootstrap is the slow one
            ends = {
                "percentile": percentile_interval(bootstrap_auroc(truth[:, few], scores[:, few], 400)),
                "newcombe": newcombe_interval(auroc(truth, scores), count, cases - count),
            }
            for name, (low, high) in ends.items():
                inside[name].append(float(np.mean((low <= area) & (area <= high))))
        print(f"{count:9}" + "".join(f"{np.mean(v):9.1%} ({min(v):.1%}–{max(v):.1%})" for v in inside.values()))


def drawn_set(rng: np.random.Generator, cases: int, counts: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, ...]:
    """Correlated labels (N, L) with the given counts, correlated noise (N, L), and the shift of each label."""
    latent = SHARED**0.5 * rng.normal(size=(cases, 1)) + (1 - SHARED) ** 0.5 * rng.normal(size=(cases, len(counts)))
    truth = (latent.argsort(0).argsort(0) >= cases - counts).astype(np.float64)
    noise = SHARED**0.5 * rng.normal(size=(cases, 1)) + (1 - SHARED) ** 0.5 * rng.normal(size=(cases, len(counts)))
    return truth, noise, norm.ppf(areas) * 2**0.5


def mean_coverage(draws: int) -> None:
    """Means over labels: percentile intervals of the mean, and the one that combines the labels' intervals."""
    print(f"\nMeans over labels, {draws} draws")
    print(f"{'set':12}{'mean over':28}{'as CheXzero':>12}{'combined':>10}")
    for name, (cases, numbers) in SETS.items():
        rng, counts = np.random.default_rng(1), np.array(numbers)
        areas = rng.uniform(0.65, 0.93, len(counts))
        groups = {
            "competition labels": np.array(COMPETITION[name]),
            f"labels with {FEW} or more": np.flatnonzero(np.minimum(counts, cases - counts) >= FEW),
            "all labels with a positive": np.arange(len(counts)),
        }
        inside = np.zeros((draws, len(groups), 2), bool)
        for draw in range(draws):
            truth, noise, shift = drawn_set(rng, cases, counts, areas)
            scores = noise + truth * shift
            found, samples = auroc(truth, scores), bootstrap_auroc(truth, scores, 300)
            influence = case_influence(truth, scores)
            low, high = newcombe_interval(found, counts, cases - counts)
            for k, group in enumerate(groups.values()):
                true = areas[group].mean()
                ends = (
                    percentile_interval(samples[:, group].mean(1)),
                    mean_interval(found[group], low[group], high[group], influence[:, group]),
                )
                inside[draw, k] = [a <= true <= b for a, b in ends]
        for k, group in enumerate(groups):
            print(f"{name:12}{group:28}" + "".join(f"{share:11.1%}" for share in inside[:, k].mean(0)))


def false_alarms(draws: int) -> None:
    """How often some label shows p < 0.05 for two models with equal true AUROCs on the same cases."""
    print(
        f"\nTwo equal models, {draws} draws: share of reports in which some label shows p < 0.05, and share per label"
    )
    print(f"{'set':12}{'test':44}{'some label':>11}{'per label':>11}")
    for name, (cases, numbers) in SETS.items():
        rng, counts = np.random.default_rng(2), np.array(numbers)
        areas = rng.uniform(0.65, 0.93, len(counts))
        tested = np.minimum(counts, cases - counts) >= FEW
        found: dict[str, list[np.ndarray]] = {"bootstrap, every label, no correction": [], f"DeLong, {FEW} or more": []}
        for _ in range(draws):
            truth, noise, shift = drawn_set(rng, cases, counts, areas)
            ours, theirs = (
                (noise + rng.normal(size=noise.shape)) / 2**0.5 + truth * shift for _ in range(2)
            )  # half of the noise is the image's, half the model's
            drawn = [bootstrap_auroc(truth, scores, 300) for scores in (ours, theirs)]
            found["bootstrap, every label, no correction"].append(paired_difference(*drawn)[2])
            found[f"DeLong, {FEW} or more"].append(np.where(tested, paired_areas(truth, ours, theirs).p, np.nan))
        rows = {title: np.array(p) for title, p in found.items()}
        rows[f"DeLong, {FEW} or more, Holm"] = np.array([holm(p) for p in rows[f"DeLong, {FEW} or more"]])
        for title, p in rows.items():
            low = np.nan_to_num(p, nan=1.0) < 0.05
            share = low.sum() / np.isfinite(p).sum()
            print(f"{name:12}{title:44}{low.any(1).mean():11.1%}{share:11.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000, help="of a label per area and count (default: %(default)s)")
    parser.add_argument("--mean_draws", type=int, default=400, help="of a whole set (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=400, help="of two equal models (default: %(default)s)")
    args = parser.parse_args()
    label_coverage(args.draws)
    mean_coverage(args.mean_draws)
    false_alarms(args.pairs)


if __name__ == "__main__":
    main()
