"""Training speed: the loader alone, the model alone, both together, and a loop like upstream's.

    python -m benchmarks.train                       # on a GPU: DINOv3 ViT-B and CLIP ViT-B/32
    python -m benchmarks.train --beside upstream open_clip    # and open_clip's own loop, on the same pairs and model
    python -m benchmarks.train --vision dinov3_tiny --batch_size 16 --steps 3     # a try on a laptop

Images and reports are random, weights too: speed does not depend on them. All loops of a model run one after the
other on the same machine. Results are printed and written to benchmarks/results/train_<machine>.json.
"""

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import open_clip
import pandas as pd
import torch
from open_clip import image_transform
from open_clip.loss import ClipLoss
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.audit import machine
from chexzero.common.errors import run_command
from chexzero.imaging.normalise import MEAN, STD
from chexzero.model import PRECISIONS
from chexzero.models.towers import VISION_CHOICES, create_model
from chexzero.simple_tokenizer import END, START, SimpleTokenizer
from chexzero.train import CXRDataset, planned_loader, train_batch
from chexzero.training.batches import Batches, default_workers
from chexzero.training.config import TrainConfig
from chexzero.training.loss import ContrastiveLoss
from chexzero.training.pace import flops_per_pair, peak_memory, peak_tflops
from chexzero.training.step import Updates, bare, for_training

RESULTS = Path(__file__).parent / "results"
WORDS = [
    "no",
    "acute",
    "cardiopulmonary",
    "process",
    "small",
    "left",
    "pleural",
    "effusion",
    "with",
    "adjacent",
    "atelectasis",
    "heart",
    "size",
    "is",
    "normal",
    "mild",
    "edema",
    "right",
    "lower",
    "lobe",
    "opacity",
]


class UpstreamDataset(Dataset):
    """Upstream's data loading: one float32 image at a time, three channels, normalised and resized on the CPU."""

    def __init__(self, path: Path, texts: list[str], resolution: int):
        self.images, self.texts, self.resolution = h5py.File(path, "r")["cxr_float"], texts, resolution

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> dict:
        image = np.repeat(self.images[row][None], 3, axis=0)
        image = (torch.from_numpy(image) - MEAN) / STD
        image = functional.interpolate(image[None], size=(self.resolution,) * 2, mode="bicubic", align_corners=False)
        return {"img": image[0], "txt": self.texts[row]}


def write_data(folder: Path, n: int) -> list[str]:
    """Write random images, as we store them and as upstream does, and random reports."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 320, 320), dtype=np.uint8)
    with h5py.File(folder / "cxr.h5", "w") as handle:
        handle.create_dataset("cxr", data=images, chunks=(1, 320, 320))
        handle.create_dataset("cxr_float", data=images.astype(np.float32))
        handle["id"] = ids = [f"a/b/patient{i}/study1/view1_frontal" for i in range(n)]
    texts = [" ".join(rng.choice(WORDS, rng.integers(5, 60))) for _ in range(n)]
    pd.DataFrame({"filename": ids, "impression": texts, "id": ids}).to_csv(folder / "impressions.csv", index=False)
    return texts


def forever(loader: DataLoader) -> Iterator[dict]:
    while True:
        yield from loader


def seconds_per_step(step: Callable[[], None], steps: int, device: torch.device) -> float:
    """Mean time of a step, after two warm-up steps."""
    for _ in range(2):
        step()
    synchronise(device)
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    synchronise(device)
    return (time.perf_counter() - begun) / steps


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_rate(device: torch.device, precision: str) -> float:
    """Operations per second of a large matrix product on this machine, in the towers' precision."""
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(size, size, device=device, dtype=PRECISIONS[precision] or torch.float32)
    return 2 * size**3 / seconds_per_step(lambda: matrix @ matrix, 20, device)


#: Group -> names of its kernels; all others are memory traffic of small operations.
KERNELS = {
    "attention": r"fmha|flash|sdpa|attention",
    "matrix products": r"gemm|cutlass|nvjet|cublas|xmma|splitK|conv",
    "optimizer": r"adam|multi_tensor",
    "copies": r"memcpy|memset",
}


def kernel_times(step: Callable[[], None], steps: int = 5) -> dict[str, float]:
    """Milliseconds of a step on the GPU: by group of kernels, and the 15 costliest kernels by name."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    each = {one.key: one.self_device_time_total / 1e3 / steps for one in profile.key_averages()}
    each = {name: spent for name, spent in each.items() if spent and not name.startswith(("Profiler", "Optimizer"))}
    groups: dict[str, float] = {}
    for name, spent in each.items():
        group = next((group for group, pattern in KERNELS.items() if re.search(pattern, name, re.I)), "everything else")
        groups[group] = groups.get(group, 0.0) + spent
    costliest = sorted(each.items(), key=lambda one: -one[1])[:15]
    return {**groups, **{name[:120]: spent for name, spent in costliest}}


def measure(
    vision: str,
    batch_size: int,
    precision: str,
    folder: Path,
    texts: list[str],
    device: torch.device,
    args: argparse.Namespace,
) -> dict:
    """Pairs per second of every loop with one model and batch; `torch.OutOfMemoryError` if it does not fit."""
    text_encoder = "tiny" if vision == "dinov3_tiny" else "chexzero"
    clip = (
        create_model(
            vision,
            text_encoder=text_encoder,
            vision_weights="random",
            text_weights="random",
            grad_checkpointing=args.grad_checkpointing,
        )
        .to(device)
        .train()
    )
    config = TrainConfig(precision=precision, batch_size=batch_size, compile=args.compile)
    model, criterion = for_training(clip, device, config), ContrastiveLoss()
    adam = torch.optim.AdamW(clip.parameters(), lr=1e-6, fused=device.type == "cuda" or None)
    optimizer = Updates(adam, model, config, 10**6, device)
    dataset = CXRDataset(folder / "cxr.h5", folder / "impressions.csv", "impression")
    workers = default_workers() if args.num_workers is None else args.num_workers
    rows = np.resize(np.arange(len(texts)), batch_size * 1000)  # an epoch as long as a real one: none ends here
    loader = planned_loader(dataset, Batches(rows, batch_size, seed=0), workers, device)
    feed = forever(loader)
    batch = next(feed)
    on_device = {name: batch[name].to(device) for name in ("img", "txt")}

    def train(data: dict) -> None:
        train_batch(data["img"], data["txt"], model, device, criterion, optimizer)

    clip.set_grad_checkpointing(False)  # recomputation must not be counted
    flops = batch_size * flops_per_pair(clip)(on_device["txt"].shape[1])
    clip.set_grad_checkpointing(args.grad_checkpointing)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model_seconds = seconds_per_step(lambda: train(on_device), args.steps, device)
    both_seconds = seconds_per_step(lambda: train(next(feed)), args.steps, device)
    ahead = workers * (loader.prefetch_factor or 0)  # prefetched batches do not show the loader's speed
    loader_seconds = seconds_per_step(lambda: next(feed), max(args.steps, 4 * ahead), torch.device("cpu"))
    kernels = kernel_times(lambda: train(on_device)) if args.kernels and device.type == "cuda" else None
    peak = peak_rate(device, precision)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    table_peak = peak_tflops(name, precision)
    result = {
        "vision": vision,
        "batch_size": batch_size,
        "precision": precision,
        "workers": workers,
        "fits": True,
        "compiled": args.compile,
        "grad_checkpointing": args.grad_checkpointing,
        "pairs_per_second": batch_size / both_seconds,
        "model_alone": batch_size / model_seconds,
        "loader_alone": batch_size / loader_seconds,
        "lost_to_data": max(0.0, 1 - model_seconds / both_seconds),
        "tflop_per_step": flops / 1e12,
        "tflops": flops / both_seconds / 1e12,
        "share_of_peak": flops / both_seconds / 1e12 / table_peak if table_peak else None,
        "share_of_product": flops / model_seconds / peak,
        "product_tflops": peak / 1e12,
        "memory_gib": peak_memory(device),
    }
    return {**result, "kernels_ms": kernels} if kernels else result


def measure_upstream(
    vision: str, batch_size: int, folder: Path, texts: list[str], device: torch.device, steps: int
) -> float:
    """Pairs per second of a loop like upstream's: float32, SGD, no workers, a tokenizer built anew for each batch."""
    text_encoder = "tiny" if vision == "dinov3_tiny" else "chexzero"
    model = (
        create_model(vision, text_encoder=text_encoder, vision_weights="random", text_weights="random")
        .to(device)
        .train()
    )
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    feed = forever(
        DataLoader(
            UpstreamDataset(folder / "cxr.h5", texts, bare(model).image_resolution), batch_size=batch_size, shuffle=True
        )
    )

    def step() -> None:
        data = next(feed)
        tokens = tokenize_anew(data["txt"])
        train_batch(data["img"], tokens, model, device, criterion, optimizer)

    return batch_size / seconds_per_step(step, steps, device)


class OpenClipDataset(Dataset):
    """The same pairs, loaded as in open_clip: each image through its transform, each text through its tokenizer."""

    def __init__(self, path: Path, texts: list[str], resolution: int):
        self.images, self.texts = h5py.File(path, "r")["cxr"], texts
        self.transform = image_transform(resolution, is_train=True, mean=(MEAN / 255,) * 3, std=(STD / 255,) * 3)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.fromarray(self.images[row]).convert("RGB")
        return self.transform(image), open_clip.tokenize([self.texts[row]])[0]


class OpenClipModel(nn.Module):
    """Our model with the outputs that open_clip's loop expects."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip, self.logit_scale = clip, clip.logit_scale

    def forward(self, images: torch.Tensor, texts: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "image_features": functional.normalize(self.clip.encode_image(images), dim=-1),
            "text_features": functional.normalize(self.clip.encode_text(texts), dim=-1),
            "logit_scale": self.logit_scale.exp(),
        }


class TimedBatches:
    """Batches for open_clip's loop; `begun` is the time at which it requests the third, the first two being warm-up."""

    def __init__(self, loader: DataLoader, steps: int, device: torch.device):
        self.feed, self.device = forever(loader), device
        self.num_batches, self.num_samples, self.begun = steps + 2, (steps + 2) * (loader.batch_size or 1), 0.0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number in range(self.num_batches):
            if number == 2:
                synchronise(self.device)
                self.begun = time.perf_counter()
            yield next(self.feed)


def measure_open_clip(
    vision: str,
    batch_size: int,
    precision: str,
    folder: Path,
    texts: list[str],
    device: torch.device,
    args: argparse.Namespace,
) -> float:
    """Pairs per second of open_clip's own `train_one_epoch` with our model, on the same pairs."""
    from open_clip_train.train import train_one_epoch

    text_encoder = "tiny" if vision == "dinov3_tiny" else "chexzero"
    clip = create_model(vision, text_encoder=text_encoder, vision_weights="random", text_weights="random")
    clip.set_grad_checkpointing(args.grad_checkpointing)
    model = OpenClipModel(clip.to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    workers = default_workers() if args.num_workers is None else args.num_workers
    dataset = OpenClipDataset(folder / "cxr.h5", texts, int(clip.image_resolution))
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=RandomSampler(dataset, replacement=True, num_samples=batch_size * 1000),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )
    batches = TimedBatches(loader, args.steps, device)
    settings = SimpleNamespace(
        device=str(device),
        precision={"fp32": "fp32", "bf16": "amp_bf16", "fp16": "amp"}[precision],
        distill=False,
        accum_freq=1,
        skip_scheduler=True,
        horovod=False,
        grad_clip_norm=None,
        rank=0,
        local_rank=0,
        world_size=1,
        batch_size=batch_size,
        log_every_n_steps=100,
        wandb=False,
    )
    scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None
    data = {"train": SimpleNamespace(dataloader=batches, set_epoch=lambda epoch: None)}
    train_one_epoch(model, data, ClipLoss(), 0, optimizer, scaler, None, None, settings)
    synchronise(device)
    return batch_size * args.steps / (time.perf_counter() - batches.begun)


def tokenize_anew(texts: list[str], length: int = 77) -> torch.Tensor:
    tokenizer = SimpleTokenizer()
    result = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in enumerate(texts):
        tokens = [tokenizer.encoder[START], *tokenizer.encode(text)][: length - 1] + [tokenizer.encoder[END]]
        result[row, : len(tokens)] = torch.tensor(tokens)
    return result


def measured(one: Callable[[int], dict], batch_size: int, double: bool) -> list[dict]:
    """Measure with this batch; with `double`, double it until it no longer fits."""
    found: list[dict] = []
    while not found or (double and found[-1]["fits"]):
        try:
            found.append(one(batch_size))
        except torch.OutOfMemoryError:
            found.append({"batch_size": batch_size, "fits": False})
        torch.cuda.empty_cache()
        print(json.dumps(found[-1]), flush=True)
        batch_size *= 2
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vision", nargs="+", choices=VISION_CHOICES, default=["dinov3_vitb", "vit_b_32"])
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument(
        "--precision", choices=list(PRECISIONS), default="bf16" if torch.cuda.is_available() else "fp32"
    )
    parser.add_argument("--steps", type=int, default=20, help="steps that are measured")
    parser.add_argument("--images", type=int, default=2048, help="size of the random data")
    parser.add_argument("--num_workers", type=int)
    parser.add_argument("--largest", action="store_true", help="on a GPU: double the batch until it no longer fits")
    parser.add_argument(
        "--beside",
        nargs="*",
        choices=["upstream", "open_clip"],
        default=["upstream"],
        help="other loops to measure in the same run: one as upstream's, and open_clip's own",
    )
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--grad_checkpointing", action="store_true")
    parser.add_argument("--kernels", action="store_true", help="on a GPU: where the time of a step goes, by kernel")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on = torch.cuda.get_device_name() if device.type == "cuda" else f"{machine()}, {torch.get_num_threads()} threads"
    report = {"machine": on, "load_before": os.getloadavg()[0], "torch": torch.__version__, "results": []}
    with tempfile.TemporaryDirectory() as folder:
        texts = write_data(Path(folder), max(args.images, args.batch_size))
        for vision in args.vision:

            def one(batch_size: int, vision: str = vision) -> dict:
                return measure(vision, batch_size, args.precision, Path(folder), texts, device, args)

            rows = measured(one, args.batch_size, args.largest and device.type == "cuda")
            if "upstream" in args.beside:
                try:
                    theirs = measure_upstream(vision, args.batch_size, Path(folder), texts, device, args.steps)
                    print(f"a loop as upstream's: {theirs:.1f} pairs a second")
                except torch.OutOfMemoryError:  # float32 takes twice the memory
                    theirs = None
                rows[0]["upstreams_loop"] = theirs
            if "open_clip" in args.beside and rows[0]["fits"]:
                beside = measure_open_clip(vision, args.batch_size, args.precision, Path(folder), texts, device, args)
                rows[0]["open_clips_loop"] = beside
                print(
                    f"open_clip's loop: {beside:.1f} pairs per second; ours {rows[0]['pairs_per_second']:.1f}, "
                    f"{rows[0]['pairs_per_second'] / beside:.2f} times that"
                )
            report["results"] += rows
    args.out.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9]+", "_", on) + "_compiled" * args.compile
    path = args.out / f"train_{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    run_command(main)
