"""How often the sanity checks raise false alarms on correct pairs of sets, and which planted mistakes they find.

    python -m benchmarks.planted [--sound 500] [--planted 40] [--offset 0]

A pair is a validation set of 200 and a test set of 500 studies with the counts of positive cases of CheXpert's. Labels
are correlated, a study with No Finding has no finding, a label's score also depends on other labels, and every true
AUROC differs between the two sets, as it does between populations. Images are drawn chests of varying brightness.
Checks that need only ids and hashes are exact; the tests cover them.
"""

import argparse
from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from chexzero.common.labels import LABELS, NO_FINDING
from chexzero.evaluation.results import SetResult, evaluate_set
from chexzero.evaluation.sets import Units
from chexzero.imaging.orientation import FEW, ImageStatistics, image_statistics, turn_gains, wrong_way
from chexzero.report.image_checks import looks_alike
from chexzero.report.sanity import LOOK, label_checks

#: Positive cases in `LABELS` order in the two sets; No Finding follows from the others.
COUNTS = {
    "valid": (200, (75, 66, 32, 42, 105, 0, 1, 120, 0, 64, 1, 8, 6, 99)),
    "test": (500, (153, 151, 29, 78, 253, 5, 8, 264, 0, 104, 4, 11, 9, 261)),
}
#: True AUROCs, near CheXzero's; No Finding's is low because its prompt is a double negative.
AREAS = np.array([0.81, 0.91, 0.89, 0.90, 0.92, 0.62, 0.74, 0.92, 0.07, 0.93, 0.68, 0.78, 0.72, 0.77])
#: Standard deviation of the shift of all AUROCs, and of one label's, between the sets (probit units x 2 ** 0.5).
SHIFT_ALL, SHIFT_ONE = 0.05, 0.12

Pair = dict[str, tuple[NDArray, NDArray]]


def drawn_pair(seed: int) -> Pair:
    """Labels (N, 14) and probabilities (N, 14) of the two sets of one pair."""
    rng = np.random.default_rng(seed)
    spill = np.where(rng.random((14, 14)) < 0.2, rng.uniform(0, 0.5, (14, 14)), 0)
    np.fill_diagonal(spill, 0)
    sound, devices = LABELS.index(NO_FINDING), LABELS.index("Support Devices")
    pair: Pair = {}
    for name, (cases, counts) in COUNTS.items():
        latent = 0.3**0.5 * rng.normal(size=(cases, 1)) + 0.7**0.5 * rng.normal(size=(cases, 14))
        truth = (latent.argsort(0).argsort(0) >= cases - np.array(counts)).astype(float)
        truth[:, sound] = 0
        empty = ~truth[:, [i for i in range(14) if i != devices]].any(1)
        truth[:, sound] = empty & (rng.random(cases) < 0.7)
        areas = norm.ppf(AREAS) * 2**0.5 + rng.normal(0, SHIFT_ALL) + rng.normal(0, SHIFT_ONE, 14)
        noise = 0.3**0.5 * rng.normal(size=(cases, 1)) + 0.7**0.5 * rng.normal(size=(cases, 14))
        score = truth * areas + noise + truth @ spill
        pair[name] = truth, 0.5 + 0.01 * score
    return pair


def evaluated(pair: Pair) -> dict[str, SetResult]:
    found = {}
    for name, (truth, probability) in pair.items():
        rows = np.arange(len(truth))
        units = Units("image", pd.DataFrame({"id": rows}), truth, rows, rows, 0)
        found[name] = evaluate_set(name, units, np.clip(probability, 0, 1), np.full(14, 0.5), n_bootstrap=2)
    return found


def quarter(truth: NDArray, rng: np.random.Generator) -> NDArray:
    rows = rng.choice(len(truth), len(truth) // 4, replace=False)
    truth[rows] = truth[rng.permutation(rows)]
    return truth


def permuted(*labels: str) -> Callable:
    def plant(truth: NDArray, rng: np.random.Generator) -> NDArray:
        columns = [LABELS.index(label) for label in labels]
        truth[:, columns] = rng.permutation(truth[:, columns])
        return truth

    return plant


def exchanged(a: str, b: str) -> Callable:
    def plant(truth: NDArray, rng: np.random.Generator) -> NDArray:
        columns = [LABELS.index(a), LABELS.index(b)]
        truth[:, columns] = truth[:, columns[::-1]]
        return truth

    return plant


def upside_down(label: str) -> Callable:
    def plant(truth: NDArray, rng: np.random.Generator) -> NDArray:
        truth[:, LABELS.index(label)] = 1 - truth[:, LABELS.index(label)]
        return truth

    return plant


#: Mistake in the labels of the test set -> the function that makes it.
MISTAKES: dict[str, Callable[[NDArray, np.random.Generator], NDArray]] = {
    "all rows permuted": permuted(*LABELS),
    "a quarter of the rows permuted": quarter,
    "Edema alone permuted": permuted("Edema"),
    "Consolidation alone permuted": permuted("Consolidation"),
    "Edema and Cardiomegaly exchanged": exchanged("Edema", "Cardiomegaly"),
    "two rare ones exchanged (Lung Lesion, Pneumothorax)": exchanged("Lung Lesion", "Pneumothorax"),
    "two rare ones exchanged (Fracture, Pleural Other)": exchanged("Fracture", "Pleural Other"),
    "a rare and a common one exchanged (Fracture, Edema)": exchanged("Fracture", "Edema"),
    "Fracture inverted": upside_down("Fracture"),
    "Edema inverted": upside_down("Edema"),
    "No Finding inverted": upside_down(NO_FINDING),
    "all labels zero": lambda truth, rng: np.zeros_like(truth),
}

SIDE = 64


def drawn_images(seed: int, count: int, brighter: float = 0.0) -> NDArray:
    """Grey images (count, 64, 64), uint8: two lungs and a heart right of the middle, shifted at random, with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
    images = []
    for _ in range(count):
        dx, dy, size, level, contrast = rng.normal(size=5)
        u, v = x + 0.03 * dx, y + 0.03 * dy
        lungs = np.exp(-(((np.abs(u) - 0.2) / 0.11) ** 2) - (v / (0.28 + 0.02 * size)) ** 2)
        heart = np.exp(-(((u - 0.06) / 0.12) ** 2) - ((v - 0.12) / 0.13) ** 2)
        image = 135 + 18 * level + brighter + (1 + 0.15 * contrast) * (70 * heart - 90 * lungs)
        images.append(image + rng.normal(0, 12, image.shape))
    return np.clip(np.stack(images), 0, 255).astype(np.uint8)


IMAGE_MISTAKES: dict[str, Callable[[NDArray], NDArray]] = {
    "mirrored": lambda images: images[:, :, ::-1],
    "upside down": lambda images: images[:, ::-1],
    "turned by 90 degrees": lambda images: images.transpose(0, 2, 1)[:, ::-1],
    "dark and bright exchanged": lambda images: 255 - images,
    "wrong mean (60 grey values brighter)": lambda images: np.clip(images + 60.0, 0, 255),
    "wrong deviation (half the contrast)": lambda images: 128 + (images - 128.0) / 2,
    "scaled to 0..1": lambda images: images / 255.0,
}


#: Those of `IMAGE_MISTAKES` that the comparison of orientations must find.
TURNED = ("mirrored", "upside down", "turned by 90 degrees", "dark and bright exchanged")


def alarms(pair: Pair) -> list[str]:
    found = evaluated(pair)
    return [check.name for check in label_checks(found["valid"], found["test"]) if check.verdict == LOOK]


def image_pair(
    seed: int, change: Callable[[NDArray], NDArray] | None = None
) -> tuple[ImageStatistics, ImageStatistics]:
    """Statistics of drawn test images, after `change`, and of training images with another hospital's brightness."""
    rng = np.random.default_rng(seed)
    train, test = (drawn_images(2 * seed + k, n, rng.normal(0, 6)) for k, n in ((0, 200), (1, 120)))
    return image_statistics(change(test) if change else test), image_statistics(train)


def best_gain(seed: int, change: Callable[[NDArray], NDArray] | None = None) -> float:
    """The greatest gain of a wrong orientation over the right one in a drawn pair, in standard errors."""
    test, train = image_pair(seed, change)
    return max(gain.errors for gain in turn_gains(test, train.small.mean(0)).values())


def image_alarms(seed: int, change: Callable[[NDArray], NDArray] | None = None) -> list[str]:
    checks = looks_alike("test", *_named(image_pair(seed, change)))
    return [check.name for check in checks if check.verdict == LOOK]


def _named(pair: tuple[ImageStatistics, ImageStatistics]) -> tuple[ImageStatistics, str, ImageStatistics]:
    return pair[0], "training", pair[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sound", type=int, default=500, help="sound pairs (default: %(default)s)")
    parser.add_argument("--planted", type=int, default=40, help="pairs per mistake (default: %(default)s)")
    parser.add_argument(
        "--offset",
        type=int,
        default=0,
        metavar="N",
        help="number of the first pair: constants of the checks were chosen on pairs below 11,000 and from 50,000 to "
        "51,000, other ones test them (default: %(default)s)",
    )
    args = parser.parse_args()
    by_check: Counter[str] = Counter()
    reports = 0
    for seed in range(args.offset, args.offset + args.sound):
        found = [*alarms(drawn_pair(seed)), *image_alarms(seed)]
        by_check.update(found)
        reports += bool(found)
    print(f"false alarms: {reports} of {args.sound} sound pairs from {args.offset} on ({reports / args.sound:.1%})")
    for name, count in by_check.most_common():
        print(f"  {count:4} × {name}")
    gains = [best_gain(seed) for seed in range(args.offset, args.offset + args.planted)]
    print(f"best wrong way of {args.planted} sound image sets: at most {max(gains):+.1f} standard errors", end="; ")
    turned = [
        best_gain(seed, change)
        for seed in range(args.offset, args.offset + args.planted)
        for name, change in IMAGE_MISTAKES.items()
        if name in TURNED
    ]
    print(f"of turned ones: at least {min(turned):+.1f}")
    for count in (FEW, 50):
        seeds = range(args.offset, args.offset + args.sound)
        ways = [wrong_way(image_statistics(drawn_images(seed, count))) for seed in seeds]
        mirrored = [wrong_way(image_statistics(drawn_images(seed, count)[:, :, ::-1])) for seed in seeds]
        print(
            f"{count} images beside a schematic chest: {sum(way is not None for way in ways)} of {args.sound} sound sets "
            f"raise an alarm, {sum(way == 'mirrored' for way in mirrored)} of {args.sound} mirrored ones are called so"
        )
    print(f"\nplanted in the test set, {args.planted} pairs each                    found")
    for title, plant in MISTAKES.items():
        hits = 0
        for seed in range(args.planted):
            pair = drawn_pair(args.offset + 10_000 + seed)
            truth, probability = pair["test"]
            pair["test"] = plant(truth.copy(), np.random.default_rng(seed)), probability
            hits += bool(alarms(pair))
        print(f"  {title:60}{hits / args.planted:7.0%}", flush=True)
    for title, change in IMAGE_MISTAKES.items():
        hits = sum(bool(image_alarms(args.offset + 10_000 + seed, change)) for seed in range(args.planted))
        print(f"  images {title:53}{hits / args.planted:7.0%}", flush=True)


if __name__ == "__main__":
    main()
