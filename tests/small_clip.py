"""The generated small model that several tests load: upstream's keys, weights that float16 represents exactly."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from tests.parity import inputs

GOLDEN = Path(__file__).parent / "golden"
_weights = cache(inputs.weights)


def state_dict(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value).to(dtype, copy=True) for key, value in _weights().items()}


def recorded() -> dict[str, np.ndarray]:
    """Results of upstream's own code on the generated inputs (`python -m tests.parity --record`)."""
    with np.load(GOLDEN / "upstream.npz", allow_pickle=False) as arrays:
        return dict(arrays)
