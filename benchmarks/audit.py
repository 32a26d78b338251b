"""The overlap audit at full size, compared with other methods.

    python -m benchmarks.audit
    python -m benchmarks.audit --sizes 20000 40000 --out quick     # a quick look
    python -m benchmarks.audit --sizes --images FOLDER             # the methods alone, on your own radiographs
    python -m benchmarks.audit --sizes --reports reports.csv       # a table of real reports (findings, impression)

The search compares synthetic training signatures with 734 evaluation images. The words of each signature are drawn from
those of drawn pictures and their neighbours in the vocabulary; for every evaluation image the signature of a disguised
copy is added. Each size runs in its own process, whose peak resident memory is printed. The benchmark also measures
signatures and second-stage pairs per second, the comparison of ids, hashes and reports, and, on the same disguised
copies, recall, false alarms and time of ImageHash's perceptual hashes, of SIFT pair by pair, and of the audit.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import pandas as pd

from benchmarks.memory import peak
from chexzero.common.errors import run_command
from chexzero.common.files import read_table, write_json, write_text
from chexzero.imaging.image_files import ImageFiles, images_in
from data_prep.overlap import checks, disguise, features, near, nominate, verify
from data_prep.overlap.contract import Role
from data_prep.overlap.near_reports import near_reports

EVALUATION = 734
SIZES = (50_000, 100_000, 200_000, 300_000, 400_000, 500_000)


def main() -> None:
    args = parse_args()
    if args.child:
        print(json.dumps(MEASURES[args.child[0]](int(args.child[1]), args)))
        return
    result: dict[str, Any] = {
        "machine": machine(),
        "evaluation_images": EVALUATION,
        "workers": args.workers,
        "seed": args.seed,
        "first_stage": [child("search", size, args) for size in args.sizes],
        "records": [child("records", size, args) for size in args.sizes],
        "signatures": child("signatures", 128, args),
        "second_stage": child("pairs", 64, args),
        "peers": child("peers", args.peers, args),
    }
    if args.reports:
        result["reports"] = reports(args.reports, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "audit.json", result)
    write_text(args.out / "audit.md", markdown(result))
    print(markdown(result))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES), help="numbers of training images")
    parser.add_argument("--workers", type=int, default=2, help="threads (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=Path, help="folder of radiographs for the peers (default: drawn pictures)")
    parser.add_argument("--reports", type=Path, help="CSV with the columns findings and impression")
    parser.add_argument("--peers", type=int, default=8, help="images that are disguised (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder (default: %(default)s)"
    )
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def child(measure: str, size: int, args: argparse.Namespace) -> dict:
    """Run one measurement in a fresh process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.audit",
        "--workers",
        str(args.workers),
        "--seed",
        str(args.seed),
        "--child",
        measure,
        str(size),
        *(["--images", str(args.images)] if args.images else []),
    ]
    print(f"{measure} {size:,} ...", file=sys.stderr)
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def picture(rng: np.random.Generator) -> np.ndarray:
    """A drawn picture, uint8 (320, 320): a common shape and ribs; an individual pose, structures and texture."""
    y, x = np.mgrid[-1:1:320j, -1:1:320j]
    x, y = (x - rng.normal(0, 0.04)) * rng.normal(1, 0.04), (y - rng.normal(0, 0.04)) * rng.normal(1, 0.04)
    shape = 150 - 90 * np.exp(-((np.abs(x) - 0.45) ** 2 / 0.08 + y**2 / 0.35))
    shape = shape + 12 * np.exp(rng.normal(0, 0.5)) * np.cos(18 * y + 2 * x**2)
    for grain, weight in ((24, 14), (8, 8), (3, 6), (1, 6)):
        noise = cv2.resize(rng.standard_normal((320 // grain, 320 // grain)), (320, 320), interpolation=cv2.INTER_CUBIC)
        shape = shape + weight * noise / noise.std()
    return np.clip(shape, 0, 255).astype(np.uint8)


def pictures(n: int, seed: int) -> np.ndarray:
    return np.stack([picture(np.random.default_rng([seed, k])) for k in range(n)])


def search(size: int, args: argparse.Namespace) -> dict:
    """The first stage: weights, shared words of all signatures, geometry of the candidates."""
    cv2.setNumThreads(1)
    images = pictures(EVALUATION, args.seed)
    rng = np.random.default_rng(args.seed)
    vocabulary, views = nominate.prepare(images, args.workers)
    kinds = [disguise.DISGUISES[k % len(disguise.DISGUISES)] for k in range(EVALUATION)]
    copies = np.stack(
        [
            nominate.signature(disguise.disguised(image, kind, rng, images[k - 1]), vocabulary)
            for k, (image, kind) in enumerate(zip(images, kinds, strict=True))
        ]
    )
    places = rng.choice(size, EVALUATION, replace=False)
    pool = np.concatenate(
        [features.extract(picture, nominate.SIDE, nominate.WORDS).descriptors for picture in images[:150]]
    )
    neighbours = vocabulary.nearest(pool, 36)
    del pool, images
    with tempfile.TemporaryFile() as file:
        signatures = draw_signatures(file, size, places, copies, neighbours, rng)
        load, before, wall, cpu = os.getloadavg()[0], peak(), time.perf_counter(), time.process_time()
        weights = nominate.rarity(signatures, vocabulary.size)
        nominations = nominate.nominate(views, weights, signatures, args.workers)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found = [place in one.rows for place, one in zip(places, nominations, strict=True)]
    return {
        "images": size,
        "seconds": wall,
        "cpu_seconds": cpu,
        "load_average": load,
        "peak_mib": peak(),
        "peak_before_mib": before,
        "disk_mib": size * nominate.SIGNATURE.itemsize / 2**20,
        "planted": EVALUATION,
        "planted_nominated": sum(found),
        "missed": sorted({kind.name for kind, one in zip(kinds, found, strict=True) if not one}),
        "nominated": int(sum(len(one.rows) for one in nominations)),
    }


def draw_signatures(
    file: IO[bytes], size: int, places: np.ndarray, copies: np.ndarray, neighbours: np.ndarray, rng: np.random.Generator
) -> nominate.SignatureFile:
    """Write `size` signatures: each word is a random neighbour of a random feature's word; copies at their rows."""
    for start in range(0, size, 10_000):
        n = min(10_000, size - start)
        block = np.zeros(n, nominate.SIGNATURE)
        shape = (n, nominate.WORDS)
        block["words"] = neighbours[
            rng.integers(0, len(neighbours), shape), rng.integers(0, neighbours.shape[1], shape)
        ]
        block["places"] = rng.integers(0, 256, (*shape, 2))
        inside = (places >= start) & (places < start + n)
        block[places[inside] - start] = copies[inside]
        file.write(block.tobytes())
    file.flush()
    return nominate.SignatureFile(file, size)


def records(size: int, args: argparse.Namespace) -> dict:
    """Ids, hashes and reports of `size` training rows against the evaluation rows."""
    roles = {
        "train": Role(np.empty(size), rows(size, "rexgradient", "train", args.seed)),
        "valid": Role(np.empty(234), rows(234, "chexpert_plus", "valid", args.seed + 1)),
        "test": Role(np.empty(500), rows(500, "chexpert", "test", args.seed + 2)),
    }
    before, wall, cpu = peak(), time.perf_counter(), time.process_time()
    found = checks.compare_records(roles)
    return {
        "images": size,
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mib": peak(),
        "peak_before_mib": before,
        "matches": sum(len(check.matches) for check in found),
    }


def rows(n: int, source: str, split: str, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    words = np.array([f"word{k}" for k in range(3000)])
    studies = [f"{source}/GRDN{seed}{k // 4:08d}/GRDN{seed}{k // 2:08d}" for k in range(n)]
    texts = [" ".join(words[rng.integers(0, 3000, 30)]) for _ in range((n + 1) // 2)]
    return pd.DataFrame(
        {
            "id": [f"{study}/1.2.826.0.1.3680043.8.498.{k}" for k, study in enumerate(studies)],
            "source": source,
            "split": split,
            "patient_id": [study.rsplit("/", 1)[0] for study in studies],
            "patient_id_column": [study.rsplit("/", 1)[0] for study in studies],
            "study_id": studies,
            "report": [texts[k // 2] for k in range(n)],
            "file_sha256": [f"{seed}{k:062d}" for k in range(n)],
            "pixel_sha256": [f"{seed}{k:063d}" for k in range(n)],
        },
        dtype=object,
    )


def signatures(n: int, args: argparse.Namespace) -> dict:
    """Images per second whose signatures are computed."""
    cv2.setNumThreads(1)
    images = pictures(n, args.seed)
    vocabulary, _ = nominate.prepare(images[:16], args.workers)
    with tempfile.TemporaryFile() as file:
        wall, cpu = time.perf_counter(), time.process_time()
        nominate.write_signatures(images, vocabulary, file, args.workers)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"images": n, "per_second": n / wall, "per_cpu_second": n / cpu}


def pairs(n: int, args: argparse.Namespace) -> dict:
    """Pairs per CPU second in the second stage, on unrelated pairs, the usual case."""
    cv2.setNumThreads(1)
    images = pictures(n + 1, args.seed)
    own = verify.prepare_poses(images[0])
    cpu = time.process_time()
    found = [verify.compare(own, verify.prepare(image)) for image in images[1:]]
    return {
        "pairs": n,
        "per_cpu_second": n / (time.process_time() - cpu),
        "called_near_equal": sum(one is not None and one.same for one in found),
    }


def peers(n: int, args: argparse.Namespace) -> dict:
    """Recall on all disguises of `n` images, false alarms on unrelated images, and time, of the audit and others."""
    cv2.setNumThreads(1)
    pool = ImageFiles(images_in(args.images))[:] if args.images else pictures(4 * n, args.seed)
    order = np.random.default_rng(args.seed).permutation(len(pool))
    own, strangers = pool[order[:n]], pool[order[n : n + STRANGERS]]
    copies = [
        (k, kind, disguise.disguised(image, kind, np.random.default_rng([k, number]), own[k - 1]))
        for k, image in enumerate(own)
        for number, kind in enumerate(disguise.DISGUISES)
    ]
    results = {name: measure_peer(make, same, own, strangers, copies) for name, (make, same) in PEERS.items()}
    results["this audit, both stages"] = measure_audit(own, strangers, copies, args.workers)
    return {
        "images": n,
        "strangers": len(strangers),
        "copies": len(copies),
        "of": str(args.images or "drawn"),
        **results,
    }


def measure_peer(make: Callable, same: Callable, own: np.ndarray, strangers: np.ndarray, copies: list) -> dict:
    """Compare every copy with its original and every unrelated image with every image."""
    cpu = time.process_time()
    marks, others = [make(image) for image in own], [make(image) for image in strangers]
    found = [same(marks[k], make(copy)) for k, _, copy in copies]
    alarms = sum(same(mark, other) for mark in marks for other in others)
    return _peer(found, copies, alarms, len(marks) * len(others), time.process_time() - cpu)


def measure_audit(own: np.ndarray, strangers: np.ndarray, copies: list, workers: int) -> dict:
    """Audit the unrelated images as a training set to which every copy is added."""
    cpu = time.process_time()
    search = near.Search.prepare(own, workers)
    marks = np.stack([nominate.signature(image, search.vocabulary) for image in strangers])
    search.weights = nominate.rarity(marks, search.vocabulary.size)
    search.nominations = nominate.nominate(search.views, search.weights, marks, workers)
    alarms = near.second_stage(search, dict(enumerate(search.nominations)), near.reader(strangers), workers)
    found = [near.plant(search, k, copy)[2] for k, _, copy in copies]
    return _peer(found, copies, sum(one.same for one in alarms), len(own) * len(strangers), time.process_time() - cpu)


def _peer(found: list, copies: list, alarms: int, pairs: int, seconds: float) -> dict:
    missed: dict[str, int] = {}
    for one, (_, kind, _) in zip(found, copies, strict=True):
        missed[kind.kind] = missed.get(kind.kind, 0) + (not one)
    return {
        "recall": near.rate(sum(map(bool, found)), len(found)),
        "false_alarms": near.rate(int(alarms), pairs),
        "cpu_seconds": seconds,
        "missed": {kind: count for kind, count in missed.items() if count},
    }


def perceptual_hash(side: int) -> Callable:
    import imagehash
    from PIL import Image

    return lambda image: imagehash.phash(Image.fromarray(image), hash_size=side)


def sift(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2) and descriptors (n, 128) from OpenCV."""
    found, descriptors = cv2.SIFT.create(nfeatures=1000).detectAndCompute(image, None)
    points = np.array([one.pt for one in found], np.float32).reshape(-1, 2)
    return points, np.zeros((0, 128), np.float32) if descriptors is None else descriptors


def sift_same(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> bool:
    """OpenCV's tutorial: brute force, ratio 0.75, RANSAC, ten inliers."""
    if min(len(a[0]), len(b[0])) < 2:
        return False
    found = cv2.BFMatcher().knnMatch(a[1], b[1], k=2)
    good = [first for first, second in found if first.distance < 0.75 * second.distance]
    if len(good) < 10:
        return False
    here, there = a[0][[one.queryIdx for one in good]], b[0][[one.trainIdx for one in good]]
    _, inside = cv2.estimateAffine2D(here, there, method=cv2.RANSAC, ransacReprojThreshold=4)
    return inside is not None and int(inside.sum()) >= 10


SENTENCE = re.compile(r"(?<=[.])\s+")


def _typo(text: str, rng: np.random.Generator) -> str:
    place = int(rng.choice([k for k, letter in enumerate(text) if letter.isalpha()]))
    return text[:place] + "q" + text[place + 1 :]


def _dropped(text: str, rng: np.random.Generator) -> str:
    parts = SENTENCE.split(text)
    gone = int(rng.integers(len(parts)))
    return " ".join(part for k, part in enumerate(parts) if k != gone or len(parts) == 1)


#: name -> edit of a report whose copy must be found
EDITS: dict[str, Callable[[str, np.random.Generator], str]] = {
    "a typo": _typo,
    "three typos": lambda text, rng: _typo(_typo(_typo(text, rng), rng), rng),
    "a sentence dropped": _dropped,
    "the first sentence moved to the end": lambda text, rng: " ".join(np.roll(SENTENCE.split(text), -1)),
    "a prefix": lambda text, rng: "FINDINGS AND IMPRESSION: " + text,
    "no final stop": lambda text, rng: text.rstrip("."),
    "sentences numbered": lambda text, rng: " ".join(f"{k}. {part}" for k, part in enumerate(SENTENCE.split(text), 1)),
    "numbers masked": lambda text, rng: re.sub(r"\d+", "XXXX", text),
    "moved, a sentence dropped, a typo, a prefix": lambda text, rng: (
        "Impression: " + _typo(_dropped(" ".join(np.roll(SENTENCE.split(text), -1)), rng), rng)
    ),
}


def reports(path: Path, seed: int) -> dict:
    """Recall of telling reports after each edit, and false alarms among different studies of one table.

    700 reports are used as the evaluation set. A report is telling if its unchanged copy is found.
    """
    table = read_table(path, ["findings", "impression"]).fillna("")
    joined = (table["findings"] + " " + table["impression"]).str.strip()
    texts = [str(text) for text in joined[joined.str.contains("[a-zA-Z]")].sample(frac=1, random_state=seed)]
    own, others = texts[:700], texts[700:]

    def rows(values: list[str], name: str) -> pd.DataFrame:
        ids = [f"{name}{k}" for k in range(len(values))]
        return pd.DataFrame({"id": ids, "study_id": ids, "report": values})

    def found(copies: list[str]) -> set[str]:
        train = pd.concat([rows(others, "other"), rows(copies, "own")])
        return {m.b_id for m in near_reports("train", train, "valid", rows(own, "own"))[0] if m.a_id == m.b_id}

    alarms, common = near_reports("train", rows(others, "other"), "valid", rows(own, "own"))
    telling = found(own)
    recall = {}
    for name, edit in EDITS.items():
        copies = [edit(text, np.random.default_rng([seed, k])) for k, text in enumerate(own)]
        recall[name] = near.rate(len(found(copies) & telling), len(telling))
    return {
        "evaluation": len(own),
        "training": len(others),
        "telling": len(telling),
        "common_pairs": common,
        "false_alarms": near.rate(len(alarms), len(own) * len(others)),
        "recall": recall,
    }


STRANGERS = 60
#: method -> its descriptor of an image, and whether two descriptors match
PEERS: dict[str, tuple[Callable, Callable]] = {
    "pHash, 64 bits (ImageHash), 10 or fewer differ": (
        lambda image: perceptual_hash(8)(image),
        lambda a, b: a - b <= 10,
    ),
    "pHash, 256 bits (ImageHash), 40 or fewer differ": (
        lambda image: perceptual_hash(16)(image),
        lambda a, b: a - b <= 40,
    ),
    "SIFT pair by pair (OpenCV), 10 inliers": (sift, sift_same),
}
MEASURES: dict[str, Callable[[int, argparse.Namespace], dict]] = {
    "search": search,
    "records": records,
    "signatures": signatures,
    "pairs": pairs,
    "peers": peers,
}


def machine() -> str:
    """Processor, cores and Python."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {features.workers_available()} cores, {platform.system()}, Python {platform.python_version()}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


#: heading -> format of a row
SEARCH_COLUMNS = {
    "training images": "{images:,}",
    "seconds": "{seconds:.1f}",
    "CPU seconds": "{cpu_seconds:.1f}",
    "load before": "{load_average:.1f}",
    "peak memory, MiB": "{peak_mib:.0f}",
    "of which before the search": "{peak_before_mib:.0f}",
    "signatures on disk, MiB": "{disk_mib:.0f}",
    "pairs nominated": "{nominated:,}",
    "planted copies nominated": "{planted_nominated} of {planted}",
}
RECORD_COLUMNS = {
    "training images": "{images:,}",
    "seconds": "{seconds:.1f}",
    "CPU seconds": "{cpu_seconds:.1f}",
    "peak memory, MiB": "{peak_mib:.0f}",
    "of which the rows": "{peak_before_mib:.0f}",
}


def table(columns: dict[str, str], rows: list[dict]) -> list[str]:
    cells = [[form.format(**row) for form in columns.values()] for row in rows]
    lines = [list(columns), ["--:"] * len(columns), *cells]
    return ["| " + " | ".join(line) + " |" for line in lines]


def markdown(result: dict) -> str:
    """The result as a page."""
    marks, second, peers = result["signatures"], result["second_stage"], result["peers"]
    missed = sorted({name for row in result["first_stage"] for name in row["missed"]})
    rows = [
        f"| {name} | {percent(one['recall'])} | {percent(one['false_alarms'])} | {one['cpu_seconds']:.1f} | "
        f"{', '.join(f'{kind} {count}' for kind, count in one['missed'].items()) or 'none'} |"
        for name, one in peers.items()
        if isinstance(one, dict)
    ]
    return "\n".join(
        [
            "# The overlap audit at full size, compared with other methods",
            "",
            f"Machine: {result['machine']}; {result['workers']} threads. Made by `python -m benchmarks.audit`. If the "
            f"load (processes running or waiting) before a search is above 1, other processes used the cores; CPU "
            f"seconds divided by threads is then the better measure.",
            "",
            f"First stage: synthetic training signatures against {result['evaluation_images']} evaluation images; one "
            f"disguised copy of each is among them. Disguises with a copy that was not nominated: "
            f"{'; '.join(missed) or 'none'}.",
            "",
            *table(SEARCH_COLUMNS, result["first_stage"]),
            "",
            "Ids, hashes and reports (the rows are in memory before the comparison starts):",
            "",
            *table(RECORD_COLUMNS, result["records"]),
            "",
            f"Signatures: {marks['per_second']:.0f} images per second ({marks['per_cpu_second']:.0f} per CPU second). "
            f"Second stage: {second['per_cpu_second']:.0f} pairs per CPU second.",
            "",
            f"Comparison of methods: {peers['images']} images ({peers['of']}) in all {len(disguise.DISGUISES)} "
            f"disguises of the published list, {peers['copies']} copies, and {peers['strangers']} unrelated images for each.",
            "",
            "| method | recall | false alarms | CPU seconds | copies missed, by kind |",
            "|---|---|---|--:|---|",
            *rows,
            "",
            *reports_page(result.get("reports")),
        ]
    )


def reports_page(found: dict | None) -> list[str]:
    if not found:
        return []
    return [
        f"Reports: {found['evaluation']} as an evaluation set against {found['training']:,} others of the table; "
        f"{found['telling']} of them are telling. Different studies called near-equal and telling: "
        f"{percent(found['false_alarms'])}; near-equal and untelling: {found['common_pairs']:,} pairs.",
        "",
        "| what is done to the copy of a telling report | found |",
        "|---|---|",
        *(f"| {name} | {percent(one)} |" for name, one in found["recall"].items()),
        "",
    ]


def percent(rate: dict) -> str:
    return f"{rate['rate']:.2%} ({rate['hits']} of {rate['of']}; 95 %: {rate['lower_95']:.2%}–{rate['upper_95']:.2%})"


if __name__ == "__main__":
    run_command(main)
