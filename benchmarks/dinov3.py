"""Measure a DINOv3 tower on this machine: images per second, share of the chip's peak, bf16 features against fp32.

    python -m benchmarks.dinov3 --vision dinov3_vitb --batch_size 128 --out benchmarks/results/dinov3.json
    python -m benchmarks.dinov3 --vision dinov3_tiny --image_resolution 64 --batch_size 4 --repeats 3

Operations are counted by torch's FlopCounterMode, not estimated. The peak is the data sheet's for the chips listed;
for any chip, the rate of a large matrix product in the same run is also given, as a practical upper limit.
"""

import argparse
import contextlib
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from chexzero.common.errors import run_command
from chexzero.common.files import write_json
from dinov3_adapter import SIZES, build_vision_tower

#: Dense tensor-core rates in TFLOP/s from NVIDIA's data sheets; fp32 is the rate without TF32, torch's default.
PEAK_TFLOPS = {
    "H100": {"bf16": 989.4, "fp32": 66.9},
    "H200": {"bf16": 989.4, "fp32": 66.9},
    "A100": {"bf16": 312.0, "fp32": 19.5},
    "L40S": {"bf16": 362.0, "fp32": 91.6},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    args = parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    tower = build_vision_tower(args.vision, args.vision_weights, image_resolution=args.image_resolution, embed_dim=512)
    tower = tower.to(device)
    images = torch.randn(args.batch_size, 3, args.image_resolution, args.image_resolution, device=device)

    report = {
        "machine": machine(device),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "settings": {key: str(value) for key, value in vars(args).items()},
        "parameters": sum(parameter.numel() for parameter in tower.parameters()),
        "bf16_relative_error": relative_error(tower, images),
        "rates": [],
    }
    print(f"{args.vision} at {args.image_resolution}, batch {args.batch_size}, on {report['machine']}")
    print(f"largest relative difference of bf16 features from fp32: {report['bf16_relative_error']:.2e}")
    print(f"{'':>18}{'images/s':>12}{'TFLOP/s':>10}{'of matmul':>11}{'of data sheet':>15}")
    for precision in DTYPES:
        matmul = matmul_tflops(device, DTYPES[precision], args.repeats)
        peak = next((rates[precision] for chip, rates in PEAK_TFLOPS.items() if chip in report["machine"]), None)
        for kind, step in (("forward", forward_step), ("training", training_step)):
            run = step(tower, images, precision)
            tflops_per_step = count_flops(run) / 1e12
            seconds = median_seconds(run, device, args.repeats)
            rate = tflops_per_step / seconds
            report["rates"].append(
                {
                    "precision": precision,
                    "kind": kind,
                    "images_per_second": len(images) / seconds,
                    "tflops": rate,
                    "matmul_tflops": matmul,
                    "of_matmul": rate / matmul,
                    "of_data_sheet": rate / peak if peak else None,
                }
            )
            sheet = f"{rate / peak:.1%}" if peak else "unknown"
            print(
                f"{precision + ' ' + kind:>18}{len(images) / seconds:>12.1f}{rate:>10.3f}{rate / matmul:>11.1%}"
                f"{sheet:>15}"
            )
    if args.out:
        write_json(args.out, report)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vision", choices=list(SIZES), default="dinov3_vitb")
    parser.add_argument("--vision_weights", default="random", help="a file, folder or name (default: %(default)s)")
    parser.add_argument("--image_resolution", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20, help="timed runs, of which the median counts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    return parser.parse_args()


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def relative_error(tower: torch.nn.Module, images: torch.Tensor) -> float:
    """Largest over the images of |bf16 feature - fp32 feature| / |fp32 feature|."""
    exact, rounded = (forward_step(tower, images, precision)() for precision in DTYPES)
    return ((rounded - exact).norm(dim=-1) / exact.norm(dim=-1)).max().item()


def forward_step(tower: torch.nn.Module, images: torch.Tensor, precision: str) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        tower.eval()
        with torch.inference_mode(), autocast(images.device, precision):
            return tower(images).float()

    return run


def training_step(tower: torch.nn.Module, images: torch.Tensor, precision: str) -> Callable[[], None]:
    """Forward, backward and AdamW's update of the tower, without the text encoder and the loss over pairs."""
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-6, fused=images.is_cuda)

    def run() -> None:
        tower.train()
        with autocast(images.device, precision):
            loss = tower(images).float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return run


def count_flops(run: Callable) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def matmul_tflops(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Rate of one large matrix product: the practical upper limit for the tower here."""
    side = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: left @ right, device, repeats) / 1e12


def median_seconds(run: Callable, device: torch.device, repeats: int) -> float:
    """Median wall time of `run` after three warm-up runs."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times = []
    for i in range(repeats + 3):
        wait()
        start = time.perf_counter()
        run()
        wait()
        if i >= 3:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    run_command(main)
