"""Turn stored radiographs into a vision tower's input: the last step before the model, on the model's device."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from chexzero.common.formats import MEAN, STD

__all__ = ["CHEXZERO", "MEAN", "STD", "Normalisation", "prepare"]


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel, on the 0..1 scale."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def is_near(self, other: "Normalisation") -> bool:
        """Whether the two differ by rounding only."""
        pairs = zip(self.mean + self.std, other.mean + other.std, strict=True)
        return all(abs(a - b) < 1e-4 for a, b in pairs)


CHEXZERO = Normalisation((MEAN / 255,) * 3, (STD / 255,) * 3)


def prepare(images: torch.Tensor, resolution: int, normalisation: Normalisation | None = None) -> torch.Tensor:
    """Normalise grey radiographs and bring them to the tower's resolution.

    images: (B, H, W), uint8 or float, 0..255. normalisation: another model's, None for CheXzero's. Returns float32
    (B, 3, R, R) on the device of `images`; with CheXzero's the three channels share memory (an expanded view), so clone
    before writing into it.

    CheXzero repeats the image to three channels, normalises each with the same mean and standard deviation, then
    resizes (bicubic, align_corners=False, no antialiasing: what torchvision 0.11 does with tensors). Both steps act
    on every channel alone, so three equal channels stay equal: doing them once on one channel and repeating the
    result gives the same values for a third of the work. An image that has the right size is not resized.
    """
    if images.ndim != 3:
        raise ValueError(f"images must have the shape (B, H, W), not {tuple(images.shape)}")
    pixels = images.to(torch.float32, copy=True).sub_(MEAN).div_(STD)  # in place: the copies cost more than the sums
    pixels = pixels.unsqueeze(1)
    if pixels.shape[-2:] != (resolution, resolution):
        pixels = functional.interpolate(
            pixels, size=(resolution, resolution), mode="bicubic", align_corners=False, antialias=False
        )
    pixels = pixels.expand(-1, 3, -1, -1)
    if normalisation is None:
        return pixels
    mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (normalisation.mean, normalisation.std))
    return ((pixels * STD + MEAN) / 255 - mean) / std
