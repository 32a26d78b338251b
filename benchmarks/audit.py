"""The overlap audit at full size: synthetic training signatures against 734 evaluation images.

    python -m benchmarks.audit
    python -m benchmarks.audit --sizes 20000 40000 --out quick     # a quick look

The signatures are drawn from a normal distribution with the mean and covariance of thumbnails of drawn pictures that
are about as alike as chests, and for every evaluation image the thumbnail of one disguised copy is put among them.
Each size runs in a process of its own, whose highest resident memory is given. Also measured: thumbnails a second,
second-stage pairs a second, and the comparison of ids, hashes and reports.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import pandas as pd

from chexzero.common.errors import run_command
from chexzero.common.files import write_json, write_text
from data_prep.overlap import checks, disguise, nominate, signatures, verify
from data_prep.overlap.contract import Role

EVALUATION = 734
SIZES = (50_000, 100_000, 200_000, 300_000, 400_000, 500_000)


def main() -> None:
    args = parse_args()
    if args.child:
        print(json.dumps(MEASURES[args.child[0]](*map(int, args.child[1:]), args)))
        return
    result = {
        "machine": machine(),
        "evaluation_images": EVALUATION,
        "workers": args.workers,
        "seed": args.seed,
        "first_stage": [child("search", size, args) for size in args.sizes],
        "records": [child("records", size, args) for size in args.sizes],
        "thumbnails": child("thumbnails", 512, args),
        "second_stage": child("pairs", 256, args),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "audit.json", result)
    write_text(args.out / "audit.md", markdown(result))
    print(markdown(result))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of training images")
    parser.add_argument("--workers", type=int, default=2, help="threads (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
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
    ]
    print(f"{measure} {size:,} ...", file=sys.stderr)
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def picture(rng: np.random.Generator) -> np.ndarray:
    """A drawn picture, uint8 (320, 320): shape and ribs as all have them, a pose, own structures and texture."""
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
    """The first stage: coarse search over all signatures, fine search over the candidates."""
    cv2.setNumThreads(1)
    images = pictures(EVALUATION, args.seed)
    reliefs = np.stack([signatures.relief_map(image) for image in images])
    rng = np.random.default_rng(args.seed)
    copies = np.stack(
        [
            signatures.thumbnail(
                signatures.relief_map(disguise.disguised(image, disguise.KINDS[k % len(disguise.KINDS)], rng))
            )
            for k, image in enumerate(images)
        ]
    )
    own = np.stack([signatures.thumbnail(relief) for relief in reliefs])
    places = rng.choice(size, EVALUATION, replace=False)
    with tempfile.TemporaryFile() as file:
        thumbs = draw_signatures(file, size, places, copies, own, rng)
        load, before, wall, cpu = os.getloadavg()[0], peak(), time.perf_counter(), time.process_time()
        nominations = nominate.nominate(reliefs, thumbs, args.workers)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found = sum(place in one.rows for place, one in zip(places, nominations, strict=True))
    unrelated = np.concatenate([np.delete(nominate.fine_scores(reliefs[k], own)[0], k) for k in range(20)])
    return {
        "images": size,
        "unrelated_median": float(np.median(unrelated)),
        "unrelated_999": float(np.quantile(unrelated, 0.999)),
        "seconds": wall,
        "cpu_seconds": cpu,
        "load_average": load,
        "peak_mib": peak(),
        "peak_before_mib": before,
        "disk_mib": size * signatures.THUMB_SIZE**2 / 2**20,
        "planted": EVALUATION,
        "planted_nominated": found,
        "nominated": int(sum(len(one.rows) for one in nominations)),
    }


def draw_signatures(
    file: IO[bytes], size: int, places: np.ndarray, copies: np.ndarray, own: np.ndarray, rng: np.random.Generator
) -> signatures.ThumbnailFile:
    """Write `size` signatures like those of the pictures, the copies at their places."""
    own = own.astype(np.float32)
    mean = own.mean(axis=0)
    _, scales, basis = np.linalg.svd(own - mean, full_matrices=False)
    basis = basis * (scales / np.sqrt(len(own)))[:, None]
    for start in range(0, size, 10_000):
        n = min(10_000, size - start)
        block = mean + rng.standard_normal((n, len(basis)), dtype=np.float32) @ basis
        block = np.clip(np.round(block), -127, 127).astype(np.int8)
        inside = (places >= start) & (places < start + n)
        block[places[inside] - start] = copies[inside]
        file.write(block.data)
    file.flush()
    return signatures.ThumbnailFile(file, size)


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


def thumbnails(n: int, args: argparse.Namespace) -> dict:
    """Images a second through the making of thumbnails."""
    cv2.setNumThreads(1)
    images = pictures(n, args.seed)
    with tempfile.TemporaryFile() as file:
        wall, cpu = time.perf_counter(), time.process_time()
        signatures.write_thumbnails(images, file, args.workers)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"images": n, "per_second": n / wall, "per_cpu_second": n / cpu}


def pairs(n: int, args: argparse.Namespace) -> dict:
    """Pairs a CPU second through the second stage: unrelated ones, the usual case."""
    cv2.setNumThreads(1)
    images = pictures(n + 1, args.seed)
    own = verify.prepare(images[0])
    cpu = time.process_time()
    scores = [result.score for image in images[1:] if (result := verify.compare(own, verify.prepare(image)))]
    return {
        "pairs": n,
        "per_cpu_second": n / (time.process_time() - cpu),
        "aligned": len(scores),
        "highest_score": max(scores, default=None),
    }


MEASURES = {"search": search, "records": records, "thumbnails": thumbnails, "pairs": pairs}


def peak() -> float:
    """Highest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)


def machine() -> str:
    """Processor, cores and Python."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {signatures.workers_available()} cores, {platform.system()}, Python {platform.python_version()}"


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
    "of it before the search": "{peak_before_mib:.0f}",
    "signatures on disk, MiB": "{disk_mib:.0f}",
    "pairs nominated": "{nominated:,}",
    "planted copies nominated": "{planted_nominated} of {planted}",
}
RECORD_COLUMNS = {
    "training images": "{images:,}",
    "seconds": "{seconds:.1f}",
    "CPU seconds": "{cpu_seconds:.1f}",
    "peak memory, MiB": "{peak_mib:.0f}",
    "of it the rows": "{peak_before_mib:.0f}",
}


def table(columns: dict[str, str], rows: list[dict]) -> list[str]:
    cells = [[form.format(**row) for form in columns.values()] for row in rows]
    lines = [list(columns), ["--:"] * len(columns), *cells]
    return ["| " + " | ".join(line) + " |" for line in lines]


def markdown(result: dict) -> str:
    """The result as a page."""
    first, thumbs, second = result["first_stage"][0], result["thumbnails"], result["second_stage"]
    return "\n".join(
        [
            "# The overlap audit at full size",
            "",
            f"Machine: {result['machine']}; {result['workers']} threads. Made by `python -m benchmarks.audit`. Where the "
            f"load (processes running or waiting) before a search is above 1, others used the cores: CPU seconds over "
            f"threads is then the better measure.",
            "",
            f"First stage: synthetic training signatures against {result['evaluation_images']} evaluation images; one "
            f"disguised copy of each is among them. Fine correlation of unrelated pictures: median "
            f"{first['unrelated_median']:.2f}, 99.9 % {first['unrelated_999']:.2f}.",
            "",
            *table(SEARCH_COLUMNS, result["first_stage"]),
            "",
            "Ids, hashes and reports (the rows themselves are in memory before):",
            "",
            *table(RECORD_COLUMNS, result["records"]),
            "",
            f"Thumbnails: {thumbs['per_second']:.0f} images a second ({thumbs['per_cpu_second']:.0f} a CPU second). "
            f"Second stage: {second['per_cpu_second']:.0f} pairs a CPU second.",
            "",
        ]
    )


if __name__ == "__main__":
    run_command(main)
