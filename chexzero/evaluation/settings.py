"""The settings of an evaluation: the flags of `run_zero_shot.py` as one frozen, typed value."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from chexzero.common.errors import UserError
from chexzero.common.formats import PixelRange

LEVELS = ("image", "study_mean", "study_max")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class EvaluationSettings:
    """One field per flag, under the flag's name; `suites` holds the suites' own flags by name.

    Raises `UserError` for flags that exclude each other or need another.
    """

    run: Path | None = None
    runs: tuple[Path, ...] = ()
    checkpoint: tuple[Path, ...] = ()
    ensemble: int | None = None
    data: Path | None = None
    splits: Path = Path("splits")
    level: str = "image"
    prompts: Path | None = None
    baseline: Path | None = None
    radiologists: tuple[Path, ...] = ()
    supervised: tuple[Path, ...] = ()
    out: Path = Path("results")
    n_bootstrap: int = 1000
    strict: bool = False
    thumbnails: bool = False
    full_paths: bool = False
    suite: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    images: Path | None = None
    labels: tuple[str, ...] = ()
    batch_size: int = 64
    device: str | None = None
    precision: str = "fp32"
    pixel_range: str | None = None
    seed: int = 1234
    config: Path | None = None
    suites: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.checkpoint and self.ensemble:
            raise UserError("--checkpoint and --ensemble exclude each other; leave one out")
        if self.runs and (self.run or self.checkpoint or not self.ensemble):
            raise UserError("--runs takes the best checkpoints of several runs; add --ensemble top 10 and nothing else")
        if self.pixel_range:
            PixelRange.parse(self.pixel_range)
        if self.labels and not self.images:
            raise UserError("--labels belongs to --images FOLDER; add it, or leave --labels out")

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "EvaluationSettings":
        """Make the settings from parsed flags; flags that are no field here belong to the suites."""
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(args).items()}
        if given.get("ensemble") is not None:
            given["ensemble"] = ensemble_size(given["ensemble"])
        own = {one.name for one in fields(cls)} - {"suites"}
        known: dict[str, Any] = {name: value for name, value in given.items() if name in own and value is not None}
        return cls(**known, suites={name: value for name, value in vars(args).items() if name not in own})

    def flags(self) -> dict[str, Any]:
        """Every flag by name, as texts, numbers and lists of them, to be recorded."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "suites"}
        return {name: _plain(value) for name, value in (values | dict(self.suites)).items()}


def ensemble_size(words: Sequence[str]) -> int:
    """`top 3` or `3` -> 3."""
    text = words[-1]
    if len(words) > 2 or (len(words) == 2 and words[0] != "top") or not text.isdigit() or int(text) < 1:
        raise UserError(f"--ensemble {' '.join(words)} is not understood; write --ensemble top 3")
    return int(text)


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
