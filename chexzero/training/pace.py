"""Speed of a run and where its time goes: the speed columns of `train_log.csv`."""

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from chexzero.model import CLIP
from chexzero.training import distributed
from chexzero.training.config import TrainConfig

log = logging.getLogger(__name__)

#: Peak of dense matrix products in TFLOP/s, from data sheets: part of the device's name -> precision. The first part
#: that fits counts. fp32 is without TF32, torch's default.
PEAKS: dict[str, dict[str, float]] = {
    "B200": {"bf16": 2250, "fp16": 2250, "fp32": 75},
    "H100 PCIe": {"bf16": 756, "fp16": 756, "fp32": 51},
    "H100 NVL": {"bf16": 835, "fp16": 835, "fp32": 60},
    "H100": {"bf16": 989, "fp16": 989, "fp32": 67},
    "H200": {"bf16": 989, "fp16": 989, "fp32": 67},
    "GH200": {"bf16": 989, "fp16": 989, "fp32": 67},
    "A100": {"bf16": 312, "fp16": 312, "fp32": 19.5},
    "A40": {"bf16": 149.7, "fp16": 149.7, "fp32": 37.4},
    "A30": {"bf16": 165, "fp16": 165, "fp32": 10.3},
    "A10": {"bf16": 125, "fp16": 125, "fp32": 31.2},
    "RTX A6000": {"bf16": 154.8, "fp16": 154.8, "fp32": 38.7},
    "L40S": {"bf16": 362, "fp16": 362, "fp32": 91.6},
    "L4": {"bf16": 121, "fp16": 121, "fp32": 30.3},
    "RTX 4090": {"bf16": 165.2, "fp16": 165.2, "fp32": 82.6},
    "RTX 3090": {"bf16": 71, "fp16": 71, "fp32": 35.6},
    "V100": {"fp16": 125, "fp32": 15.7},
    "T4": {"fp16": 65, "fp32": 8.1},
}


def peak_tflops(device_name: str, precision: str) -> float | None:
    """Return a device's peak in TFLOP/s, or None if `PEAKS` does not have it."""
    words = device_name.replace("-", " ")
    found = (peaks for part, peaks in PEAKS.items() if f" {part} " in f" {words} ")
    return next(found, {}).get(precision)


LENGTHS = (1, 2, 3)  # tokens of the texts whose operations are counted


def flops_per_pair(clip: CLIP) -> Callable[[int], float]:
    """Count the operations of training on one pair; returns a function of the text's length in tokens.

    Includes the forward and backward pass of both towers (a multiplication and an addition are two operations), without
    the backward pass of frozen parts and without what gradient checkpointing recomputes. Torch's counter runs on meta
    tensors: nothing is computed and no random number is drawn. The matrix products of a transformer grow with the
    text's length, attention with its square, so three `LENGTHS` determine all others.
    """
    weights: dict[str, torch.Tensor] = {
        f"clip.{name}": tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
        for name, tensor in [*clip.named_parameters(), *clip.named_buffers()]
    }
    resolution = int(clip.image_resolution)
    image = torch.empty(1, 3, resolution, resolution, device="meta")

    def count(*inputs: torch.Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            result = functional_call(_Text(clip), weights, inputs)
            if result.requires_grad:
                result.sum().backward()
        return counter.get_total_flops()

    texts = [torch.empty(1, length, dtype=torch.int64, device="meta") for length in LENGTHS]
    of_texts = [count(text) for text in texts]
    curve = np.polynomial.Polynomial.fit(LENGTHS, of_texts, 2).convert()
    rest = count(texts[0], image) - of_texts[0]
    return lambda tokens: rest + float(curve(tokens))


class _Text(nn.Module):
    """The text encoder alone, or, with an image, the whole CLIP, whose fixed part is counted once."""

    def __init__(self, clip: CLIP):
        super().__init__()
        self.clip = clip

    def forward(self, text: torch.Tensor, image: torch.Tensor | None = None) -> torch.Tensor:
        return self.clip.encode_text(text) if image is None else self.clip(image, text)[0]


class Pace:
    """Steps, pairs, operations and time since the last row of `train_log.csv`.

    Nothing is saved: after a resume the rates are those of the steps since.
    """

    def __init__(self, clip: CLIP, config: TrainConfig, device: torch.device):
        self.device = device
        self.flops_per_pair = _counted(clip, config)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self.peak = peak_tflops(name, config.precision)
        self.begin()

    def begin(self) -> None:
        """Reset all counts."""
        self._begun = time.perf_counter()
        self.steps, self.pairs, self.flops = 0, 0, 0.0
        self.seconds = {"data": 0.0, "validating": 0.0, "saving": 0.0}

    @contextmanager
    def spent(self, on: str) -> Iterator[None]:
        """Count the time in the block as spent on `data`, `validating` or `saving`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[on] += time.perf_counter() - begun

    def step(self, pairs: int, tokens: int) -> None:
        """Count a step on `pairs` pairs (of all ranks) with texts padded to `tokens`."""
        self.steps += 1
        self.pairs += pairs
        self.flops += pairs * self.flops_per_pair(tokens) if self.flops_per_pair else 0.0

    def training_seconds(self) -> float:
        """Seconds since the last row, without validating and saving."""
        passed = time.perf_counter() - self._begun
        return max(1e-9, passed - self.seconds["validating"] - self.seconds["saving"])

    def row(self) -> dict[str, Any]:
        """Return the speed columns of `train_log.csv`; None if there is no figure for the device or model."""
        training = self.training_seconds()
        passed = training + self.seconds["validating"] + self.seconds["saving"]
        tflops = self.flops / training / 1e12 if self.flops_per_pair else None
        peak = self.peak * distributed.world_size() if self.peak else None
        return {
            "pairs_per_second": self.pairs / training,
            "data_wait": min(1.0, self.seconds["data"] / training),
            "tflops": tflops,
            "share_of_peak": tflops / peak if tflops is not None and peak else None,
            "memory_gib": peak_memory(self.device),
            "validating": self.seconds["validating"] / passed,
            "saving": self.seconds["saving"] / passed,
        }


def peak_memory(device: torch.device) -> float:
    """Return the peak memory so far in GiB: torch's on a GPU, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def in_words(row: dict[str, Any]) -> str:
    """The speed of a row for the progress bar: `812.0 pairs/s, 95.0 TFLOP/s (10 % of peak)`."""
    text = f"{row['pairs_per_second']:.1f} pairs/s"
    if row["tflops"] is not None:
        text += f", {row['tflops']:.3g} TFLOP/s"
    return text + (f" ({row['share_of_peak']:.0%} of peak)" if row["share_of_peak"] is not None else "")


def _counted(clip: CLIP, config: TrainConfig) -> Callable[[int], float] | None:
    if config.cache_features:  # most of the tower is not run
        return None
    clip.set_grad_checkpointing(False)
    try:
        return flops_per_pair(clip)
    except (NotImplementedError, RuntimeError) as error:  # a tower that reads the values of its tensors
        log.warning("the operations of this model cannot be counted (%s); train_log.csv has none", _first_line(error))
        return None
    finally:
        clip.set_grad_checkpointing(config.grad_checkpointing)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]
