"""Preprocessing compared with a plain loop that does what CheXzero does, on the same files and cores.

    python -m benchmarks.preprocess --images 200 --rounds 5 --out benchmarks/results/preprocess.json
    python -m benchmarks.preprocess --pictures DIR ...       # the radiographs under DIR, enlarged to full size
    python -m benchmarks.preprocess --image_size 320 448 512 # time and disk of `build --image_size`, in one run

The loop reads in colour, converts BGR to RGB, resizes three channels, and writes float32, image by image. Ours runs
the steps of `python -m data_prep build`: processes write blocks, which are joined into one HDF5 file; their start is
included in the time. Both must give the same bytes. The files are 8-bit grey PNG and JPEG of 2,000 to 2,900 pixels,
half and half: CheXpert's sizes. Other load on the machine slows ours more than the loop, so the load is recorded. The
benchmark ends with the memory of a process that prepares images.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import h5py
import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from chexzero.common.errors import UserError, run_command
from chexzero.common.files import write_json
from chexzero.data_process import RESOLUTION, preprocess
from chexzero.imaging.decode import decode, prepare_image
from data_prep.steps import blocks
from data_prep.steps.prepare import run_tasks
from data_prep.steps.sets import new_images
from data_prep.steps.work import cpu_count, positive

REPEATS = 3  # of each stage; the fastest is reported
FEW = 100  # files on which the stages are timed one by one
KINDS = {
    "grey": {"channels": 1, "dtype": np.uint8},
    "colour": {"channels": 3, "dtype": np.uint8},
    "16-bit": {"channels": 1, "dtype": np.uint16},
}  # of files of 2,828 x 2,320 pixels, for the memory


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory(prefix="preprocess-") as folder:
        files = write_files(Path(folder) / "files", args.pictures, args.images)
        size = statistics.mean(path.stat().st_size for path in files)
        print(f"{len(files)} files of {size / 1e6:.1f} MB on average; {machine()}; {args.workers} processes of ours")
        rounds = [measure_round(files, Path(folder), args.workers) for _ in range(args.rounds)]
        processor = measure_processor(files[:FEW], Path(folder))
        stages = measure_stages(files[:FEW], Path(folder))
        sixteen_bits = measure_sixteen_bits(files[0], Path(folder))
        memory = {kind: measure_memory(Path(folder), **of) for kind, of in KINDS.items()}
        sizes = measure_sizes(files, Path(folder), args.workers, args.image_size, args.rounds)
    report = {
        "machine": machine(),
        "files": len(files),
        "bytes_per_file": size,
        "workers": args.workers,
        "opencv": cv2.__version__,
        "rounds": rounds,
        "equal_bytes": True,
        "milliseconds": stages,
        "processor": processor,
        "worker_MiB": memory,
        "sizes": sizes,
        "milliseconds_16_bit": sixteen_bits,
        "ratio": statistics.median(r["ratio"] for r in rounds),
        "ratio_lowest": min(r["ratio"] for r in rounds),
        "ratio_highest": max(r["ratio"] for r in rounds),
    }
    show(report)
    if args.out:
        write_json(args.out, report)


def parse_args() -> argparse.Namespace:
    from data_prep.build import IMAGE_SIZES  # here: our worker processes import this module, and need no pandas

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=Path, help="a folder of radiographs to start from (default: drawn ones)")
    parser.add_argument("--images", type=positive, default=200, help="files to make and read")
    parser.add_argument("--rounds", type=positive, default=5, help="turns of both, of which the median ratio counts")
    parser.add_argument(
        "--image_size",
        type=int,
        nargs="+",
        choices=IMAGE_SIZES,
        default=[],
        help="sides of the stored images that are compared with each other, by turns",
    )
    parser.add_argument("--workers", type=positive, default=cpu_count(), help="our processes")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    return parser.parse_args()


def write_files(folder: Path, pictures: Path | None, count: int) -> list[Path]:
    """Write grey PNG and JPEG files of 2,000 to 2,900 pixels: enlarged small pictures with detector noise."""
    folder.mkdir()
    if pictures is None:
        from data_prep.demo.corpus import write_corpus  # here, because our worker processes import this module too

        pictures = folder / "drawn"
        write_corpus(pictures, train=12, valid=1, test=1, seed=1)
    sources = sorted(path for path in pictures.rglob("*") if path.suffix in (".png", ".jpg"))
    if not sources:
        raise UserError(f"{pictures} has no .png or .jpg files; name a folder that has with --pictures")
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        grey = cv2.imread(str(sources[i % len(sources)]), cv2.IMREAD_GRAYSCALE)
        longer = int(rng.integers(2000, 2901))
        scale = longer / max(grey.shape)
        grown = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(grown + rng.normal(0, 1.5, grown.shape), 0, 255).astype(np.uint8)
        files.append(folder / f"{i:04d}{'.png' if i % 2 else '.jpg'}")
        cv2.imwrite(str(files[-1]), noisy)
    return files


def measure_round(files: list[Path], folder: Path, workers: int) -> dict[str, float]:
    """Time both on all files, one after the other; raises if the bytes differ."""
    theirs = images_per_second(lambda: plain_loop(files, folder / "plain.h5"), len(files))
    ours = images_per_second(lambda: prepare(files, folder, workers), len(files))
    with h5py.File(folder / "plain.h5") as a, h5py.File(folder / "ours.h5") as b:
        if not np.array_equal(a["cxr"][:], b["cxr"][:]):
            raise SystemExit("the bytes differ")
    remove_blocks(folder)
    return {
        "load": os.getloadavg()[0],
        "plain_images_per_second": theirs,
        "images_per_second": ours,
        "ratio": ours / theirs,
    }


def plain_loop(files: list[Path], target: Path) -> None:
    with h5py.File(target, "w") as handle:
        images = handle.create_dataset("cxr", (len(files), RESOLUTION, RESOLUTION), np.float32)
        for i, path in enumerate(files):
            image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            images[i] = np.array(preprocess(Image.fromarray(image)))


def prepare(files: list[Path], folder: Path, workers: int, side: int = RESOLUTION) -> None:
    """Prepare images as `build` does: all processes (this one if 0) write blocks, which are then joined."""
    size = min(blocks.SIZE, -(-len(files) // (2 * max(workers, 1))))  # a build has enough blocks for every process
    tasks = [
        (
            "train",
            blocks.Task(
                blocks.block_path(folder, at),
                [(str(path.parent), path.name, "") for path in files[at : at + size]],
                "stretch",
                side,
            ),
        )
        for at in range(0, len(files), size)
    ]
    done = run_tasks(tasks, workers) if workers else ((*task, blocks.prepare_block(task[1])) for task in tasks)
    failed = [error for _, _, errors in done for error in errors]
    if failed:
        raise SystemExit(failed[0])
    with new_images(folder / "ours.h5", [path.name.encode() for path in files], {}, side) as file:
        for at, (_, task) in zip(range(0, len(files), size), tasks, strict=True):
            file["cxr"][at : at + len(task.files)] = blocks.read_block(task.target, len(task.files)).images


def images_per_second(run: Callable[[], None], count: int) -> float:
    start = time.perf_counter()
    run()
    return count / (time.perf_counter() - start)


def measure_sizes(
    files: list[Path], folder: Path, workers: int, sides: list[int], rounds: int
) -> dict[int, dict[str, float]]:
    """Side -> images per second of ours (the median of the rounds, which alternate between the sides), milliseconds of
    processor time per image in one process, and bytes of the file per image."""
    speeds: dict[int, list[float]] = {side: [] for side in sides}
    found: dict[int, dict[str, float]] = {}
    for _ in range(rounds if sides else 0):
        for side in sides:
            speeds[side].append(images_per_second(partial(prepare, files, folder, workers, side), len(files)))
            remove_blocks(folder)
    for side in sides:
        start = time.process_time()
        prepare(files[:FEW], folder, 0, side)
        milliseconds = 1000 * (time.process_time() - start) / len(files[:FEW])
        remove_blocks(folder)
        found[side] = {
            "images_per_second": statistics.median(speeds[side]),
            "milliseconds": milliseconds,
            "bytes_per_image": (folder / "ours.h5").stat().st_size / len(files[:FEW]),
        }
    return found


def remove_blocks(folder: Path) -> None:
    for block in folder.glob("*.npz"):
        block.unlink()


def measure_processor(files: list[Path], folder: Path) -> dict[str, float]:
    """Milliseconds of processor time per image, all stages, one process: a figure independent of the machine's load."""
    cv2.setNumThreads(1)
    threadpool_limits(1)
    times = {}
    for name, run in {
        "plain": lambda: plain_loop(files, folder / "plain.h5"),
        "ours": lambda: prepare(files, folder, 0),
    }.items():
        start = time.process_time()
        run()
        times[name] = 1000 * (time.process_time() - start) / len(files)
    remove_blocks(folder)
    return times | {"ratio": times["plain"] / times["ours"]}


def measure_stages(files: list[Path], folder: Path) -> dict[str, dict[str, float]]:
    """Milliseconds of processor time per image of each stage in one process, in the loop and in ours."""
    cv2.setNumThreads(1)
    data = [path.read_bytes() for path in files]
    colour = [cv2.imdecode(np.frombuffer(d, np.uint8), cv2.IMREAD_COLOR) for d in data[:8]]
    grey = [image[..., 0].copy() for image in colour]
    small = np.zeros((len(files), RESOLUTION, RESOLUTION), np.uint8)

    def timed(run: Callable[[], object], count: int) -> float:
        times = []
        for _ in range(REPEATS):
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
        return 1000 * min(times) / count

    def write(dtype: type, **options: object) -> None:
        with h5py.File(folder / "stage.h5", "w") as handle:
            images = handle.create_dataset("cxr", small.shape, dtype, **options)
            for i, image in enumerate(small):
                images[i] = image

    n = len(files)
    loop = {
        "read and decode": timed(lambda: [cv2.imread(str(path)) for path in files], n),
        "turn to RGB": timed(lambda: [cv2.cvtColor(image, cv2.COLOR_BGR2RGB) for image in colour], len(colour)),
        "resize": timed(lambda: [preprocess(Image.fromarray(image)) for image in colour], len(colour)),
        "write": timed(lambda: write(np.float32), n),
    }
    ours = {
        "read and decode": timed(lambda: [decode(path.read_bytes()) for path in files], n),
        "resize": timed(lambda: [preprocess(Image.fromarray(image)) for image in grey], len(grey)),
        "write": timed(lambda: write(np.uint8, chunks=(1, RESOLUTION, RESOLUTION)), n),
    }
    whole = timed(lambda: [prepare_image(str(path.parent), path.name) for path in files], n)
    ours["checks and hashes"] = max(0.0, whole - ours["read and decode"] - ours["resize"])
    return {"plain": loop, "ours": ours}


def measure_sixteen_bits(picture: Path, folder: Path) -> float:
    """Milliseconds of processor time for a 16-bit PNG of ReXGradient's size (707 x 580)."""
    grey = cv2.resize(cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE), (580, 707), interpolation=cv2.INTER_AREA)
    noise = np.random.default_rng(0).normal(0, 100, grey.shape)
    cv2.imwrite(str(folder / "16.png"), np.clip(grey * 257.0 + noise, 0, 65535).astype(np.uint16))
    start = time.process_time()
    for _ in range(FEW):
        prepare_image(str(folder), "16.png")
    return 1000 * (time.process_time() - start) / FEW


def measure_memory(folder: Path, channels: int, dtype: type) -> int:
    """Peak MiB of a process that prepares noise images of one kind; noise gives the largest file of a size."""
    path = folder / "noise.png"
    shape = (2320, 2828, channels)
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype))
    code = (
        "import sys, data_prep.steps.blocks\nfrom chexzero.imaging.decode import prepare_image\n"
        "for _ in range(3): prepare_image(*sys.argv[1:])\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )  # KiB; ru_maxrss may be the parent's
    run = subprocess.run([sys.executable, "-c", code, str(folder), path.name], stdout=subprocess.PIPE, check=True)
    return int(run.stdout) >> 10


def machine() -> str:
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else ():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return f"{name}, {cpu_count()} cores"


def show(report: dict) -> None:
    for r in report["rounds"]:
        print(
            f"plain loop {r['plain_images_per_second']:6.1f} images/s   ours {r['images_per_second']:6.1f} "
            f"images/s   ratio {r['ratio']:.2f}   load {r['load']:.1f}"
        )
    print(
        f"median ratio {report['ratio']:.2f} ({report['ratio_lowest']:.2f} to {report['ratio_highest']:.2f}), "
        f"equal bytes"
    )
    processor = report["processor"]
    print(
        f"processor time an image: plain {processor['plain']:.1f} ms, ours {processor['ours']:.1f} ms; "
        f"on {report['workers']} free cores {report['workers'] * processor['ratio']:.2f} times the loop's rate"
    )
    stages = report["milliseconds"]
    print(f"\n{'ms of one core an image':24}{'plain':>8}{'ours':>8}")
    for name in dict.fromkeys([*stages["plain"], *stages["ours"]]):
        print(f"{name:24}{stages['plain'].get(name, 0):8.1f}{stages['ours'].get(name, 0):8.1f}")
    plain, ours = (sum(stages[name].values()) for name in ("plain", "ours"))
    floor = stages["ours"]["read and decode"] + stages["ours"]["resize"]
    print(f"{'sum':24}{plain:8.1f}{ours:8.1f}")
    print(
        f"bound: decoding and resizing one channel take {floor:.1f} ms, {floor / ours:.0%} of ours: no more than "
        f"{1000 / floor:.1f} images/s a core with these decoders"
    )
    print(f"a 16-bit file of 707 x 580 pixels: {report['milliseconds_16_bit']:.1f} ms")
    if report["sizes"]:
        print(f"\n{'stored side':>11}{'images/s':>10}{'ms an image':>13}{'kB an image':>13}{'GB for 496,232':>16}")
    for side, of in report["sizes"].items():
        size = of["bytes_per_image"]
        print(
            f"{side:11}{of['images_per_second']:10.1f}{of['milliseconds']:13.1f}{size / 1e3:13.1f}{496_232 * size / 1e9:16.1f}"
        )
    print("memory of a process: " + ", ".join(f"{kind} {mib} MiB" for kind, mib in report["worker_MiB"].items()))


if __name__ == "__main__":
    run_command(main)
