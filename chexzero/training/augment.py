"""Image augmentation on the device, from the stored bytes: `--augment`.

The random numbers of an image depend only on the seed, the epoch and its row, so a resumed run, any number of workers
and ranks, and the parts of a gradient cache all see the same picture. A few tensor operations, which never wait for the
device, change the whole batch. (torchvision's transforms draw one set of numbers per call, kornia's invert
matrices and check values on the host; `torch.nn.functional` has the parts of both.)
"""

import argparse
import math
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch.nn import functional

from chexzero.imaging.normalise import MEAN

#: Strength -> its largest value, and its effect. All are 0 (off) unless named.
STRENGTHS: dict[str, tuple[float, str]] = {
    "crop": (0.9, "cut away up to this share of the side, at a random place, and scale the rest"),
    "rotate": (180, "turn by up to this many degrees"),
    "shear": (45, "shear by up to this many degrees"),
    "shift": (0.5, "move by up to this share of the side"),
    "gamma": (2, "raise to a power between e^-G and e^G"),
    "contrast": (0.9, "multiply the distance from the image's mean by 1 - C to 1 + C"),
    "brightness": (0.9, "add up to this share of white"),
    "blur": (8, "blur half of the images, with a deviation of up to this many pixels at the tower's resolution"),
    "noise": (0.5, "add noise with a deviation of up to this share of white"),
    "cutout": (0.9, "cover a square of up to this share of the side with the mean grey"),
}
#: Names for several strengths at once.
PRESETS: dict[str, dict[str, float]] = {
    "light": {"crop": 0.15, "rotate": 5, "gamma": 0.2, "contrast": 0.2, "brightness": 0.1},
    "medium": {
        "crop": 0.25,
        "rotate": 10,
        "shear": 5,
        "shift": 0.05,
        "gamma": 0.4,
        "contrast": 0.3,
        "brightness": 0.15,
        "blur": 0.5,
        "noise": 0.05,
        "cutout": 0.25,
    },
}
#: The random numbers of an image, each in 0..1.
NUMBERS = [*STRENGTHS, "flip", "crop_y", "crop_x", "shift_x", "blurred", "noise_y", "noise_x", "cutout_y", "cutout_x"]


def strengths(text: str) -> dict[str, float]:
    """Read `medium` or `crop=0.2,rotate=10` or `medium,noise=0`: presets and strengths; later words override earlier.

    Raises a `ValueError` that names the wrong word.
    """
    found: dict[str, float] = {}
    for word in text.split(","):
        name, _, value = (part.strip() for part in word.partition("="))
        if name in PRESETS and not value:
            found |= PRESETS[name]
            continue
        if name not in STRENGTHS:
            raise ValueError(f"{word!r} is neither of {', '.join(PRESETS)} nor NAME=VALUE of {', '.join(STRENGTHS)}")
        most = STRENGTHS[name][0]
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 <= number <= most:
            raise ValueError(f"{name} must be a number of 0 to {most:g}, not {value!r}")
        found[name] = number
    return found


def canonical(text: str) -> str:
    """Return the strengths written out one by one, as a run records them. For argparse."""
    try:
        found = strengths(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return ",".join(f"{name}={found[name]:g}" for name in STRENGTHS if found.get(name))


class Augmentation:
    """Change the images of a run as `--augment` and `--augment_flip` ask.

    text: `--augment`'s strengths, or None. rows: number of rows of the training file. resolution: side of the tower's images in pixels.
    """

    def __init__(self, text: str | None, *, flip: bool, rows: int, seed: int, resolution: int):
        self.by = strengths(text) if text else {}
        self.flip, self.rows, self.seed, self.resolution = flip, rows, seed, resolution
        self._epoch, self._numbers = -1, torch.empty(0)

    def __bool__(self) -> bool:
        return any(self.by.values()) or self.flip

    def numbers(self, epoch: int, rows: torch.Tensor) -> torch.Tensor:
        """Return the random numbers of some rows in an epoch: float32 (B, len(NUMBERS)), 0..1."""
        if epoch != self._epoch:  # of all rows at once: 15 MiB and 0.1 s per 200,000
            seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
            generator = torch.Generator().manual_seed(seed)
            self._numbers, self._epoch = torch.rand(self.rows, len(NUMBERS), generator=generator), epoch
        return self._numbers[rows]

    def __call__(self, images: torch.Tensor, epoch: int, rows: torch.Tensor) -> torch.Tensor:
        """images: (B, H, W) as stored, 0..255, on the device; rows: int64 (B,), on the host.

        Returns float32 (B, R, R), 0..255, for `imaging.normalise.prepare`, which then only normalises.
        """
        numbers = self.numbers(epoch, rows).to(images.device, non_blocking=True)
        return augment(images, numbers, self.by, self.resolution, flip=self.flip)


@torch.no_grad()
def augment(
    images: torch.Tensor, numbers: torch.Tensor, by: Mapping[str, float], resolution: int, *, flip: bool = False
) -> torch.Tensor:
    """Change a batch: (B, H, W), 0..255, to float32 (B, R, R), 0..255, by the numbers (B, len(NUMBERS)) of each image.

    Crop, turn, shear, shift and scaling to R are one resampling, bicubic as `prepare`'s; outside the image is black.
    Without any strength the result is that of `prepare` before it normalises.
    """
    of = dict(zip(NUMBERS, numbers.T, strict=True))
    x, y = _places(of, by, resolution, flip)
    pixels = functional.grid_sample(
        images[:, None].float(), torch.stack([x, y], -1), mode="bicubic", padding_mode="border", align_corners=False
    ).squeeze(1)
    pixels = pixels.where((x.abs() <= 1) & (y.abs() <= 1), 0) / 255
    if by.get("gamma"):
        pixels = pixels.clamp(0, 1) ** _column((_both(of["gamma"]) * by["gamma"]).exp())
    if by.get("contrast"):
        mean = pixels.mean((1, 2), keepdim=True)
        pixels = mean + (pixels - mean) * _column(1 + _both(of["contrast"]) * by["contrast"])
    if by.get("brightness"):
        pixels = pixels + _column(_both(of["brightness"]) * by["brightness"])
    if by.get("blur"):
        pixels = _blur(pixels, by["blur"] * of["blur"] * (of["blurred"] < 0.5), by["blur"])
    if by.get("noise"):
        pixels = pixels + _column(by["noise"] * of["noise"]) * _noise(of, resolution)
    if any(by.get(name) for name in ("contrast", "brightness", "noise", "gamma")):
        pixels = pixels.clamp(0, 1)
    pixels = pixels * 255
    if by.get("cutout"):
        places, half = torch.arange(resolution, device=pixels.device) / resolution, by["cutout"] * of["cutout"] / 2
        inside = [(places - of[f"cutout_{axis}"][:, None]).abs() < half[:, None] for axis in "yx"]
        pixels = pixels.masked_fill(inside[0][:, :, None] & inside[1][:, None, :], MEAN)
    return pixels


def _places(
    of: Mapping[str, torch.Tensor], by: Mapping[str, float], resolution: int, flip: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the position of each output pixel in the image: x and y, (B, R, R), -1..1 from edge to edge."""
    size = 1 - by.get("crop", 0) * of["crop"]
    angle = math.radians(by.get("rotate", 0)) * _both(of["rotate"])
    slant = (math.radians(by.get("shear", 0)) * _both(of["shear"])).tan()
    x, y = (  # the centre of the visible part; the number `shift` moves it vertically, `shift_x` horizontally
        (1 - size) * _both(of[crop]) + 2 * by.get("shift", 0) * _both(of[shift])
        for crop, shift in (("crop_x", "shift_x"), ("crop_y", "shift"))
    )
    sine, cosine = size * angle.sin(), size * angle.cos()
    mirror = torch.where(of["flip"] < 0.5, -1.0, 1.0) if flip else 1.0
    ends = torch.arange(1 - resolution, resolution, 2, device=size.device) / resolution
    across, down = ends[None, None, :], ends[None, :, None]
    return (
        _column(cosine * mirror) * across + _column(cosine * slant - sine) * down + _column(x),
        _column(sine * mirror) * across + _column(sine * slant + cosine) * down + _column(y),
    )


def _both(number: torch.Tensor) -> torch.Tensor:
    """0..1 to -1..1."""
    return 2 * number - 1


def _column(number: torch.Tensor) -> torch.Tensor:
    return number[:, None, None]


def _blur(pixels: torch.Tensor, sigma: torch.Tensor, most: float) -> torch.Tensor:
    """Convolve each image (B, R, R) with a Gaussian of its own deviation; 0 leaves it as it is."""
    reach = math.ceil(3 * most)
    offsets = torch.arange(-reach, reach + 1, device=pixels.device)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    padded = functional.pad(pixels[None], (reach,) * 4, mode="replicate")
    down = functional.conv2d(padded, weights[:, None, :, None], groups=len(pixels))
    return functional.conv2d(down, weights[:, None, None, :], groups=len(pixels))[0]


def _noise(of: Mapping[str, torch.Tensor], resolution: int) -> torch.Tensor:
    """Normal noise (B, R, R): a square of a fixed sheet per image, so that every device gives the same."""
    sheet = _sheet(2 * resolution, of["noise"].device)
    places = torch.arange(resolution, device=sheet.device)
    rows, columns = (
        (places + (of[f"noise_{axis}"] * len(sheet)).long()[:, None]) % len(sheet) for axis in "yx"
    )  # the sheet wraps around
    return sheet[rows[:, :, None], columns[:, None, :]]


@cache
def _sheet(side: int, device: torch.device) -> torch.Tensor:
    return torch.randn(side, side, generator=torch.Generator().manual_seed(0)).to(device)
