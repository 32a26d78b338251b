"""One pass over the images for any number of labels and templates: features first, cosines after.

Upstream encodes every image once per prompt, one at a time. The probabilities depend on the features alone, so here
each image and each text is encoded once, in batches, and the rest is two small matrix products.
"""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from chexzero.clip import tokenize, trim_padding
from chexzero.common.errors import UserError
from chexzero.common.labels import LABELS
from chexzero.imaging.normalise import prepare
from chexzero.model import CLIP

#: Name of a precision -> type under autocast (None: plain float32).
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def embed_images(
    model: CLIP,
    images: Any,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = False,
    precision: str = "fp32",
) -> np.ndarray:
    """Encode images once: float32 (N, D), rows of length 1.

    images: an HDF5 dataset, an array, or anything with a length whose slices give (b, H, W), uint8 or float, 0..255.
    Only one batch (and the next, read ahead) is in memory. `device` None is the device the model is on;
    `precision` is one of `fp32, bf16, fp16`. The model's mode is restored afterwards.
    """
    device = torch.device(device) if device is not None else next(model.parameters()).device
    model.to(device)
    features = []
    with _inference(model, device, precision):
        batches = tqdm(
            _read_ahead(images, batch_size),
            total=-(-len(images) // batch_size),
            unit="batch",
            disable=not progress,
            desc="images",
        )
        for batch in batches:
            pixels = prepare(batch.to(device, non_blocking=True), model.image_resolution)
            features.append(functional.normalize(model.encode_image(pixels).float(), dim=-1).cpu())
    return torch.cat(features).numpy() if features else np.zeros((0, _embed_dim(model)), np.float32)


def embed_texts(model: CLIP, texts: Sequence[str], *, batch_size: int = 256) -> np.ndarray:
    """Encode texts: float32 (T, D), rows of length 1. A text longer than the model's context is cut."""
    device = next(model.parameters()).device
    features = []
    with _inference(model, device, "fp32"):
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            tokens = trim_padding(tokenize(batch, model.context_length, truncate=True))
            features.append(functional.normalize(model.encode_text(tokens.to(device)).float(), dim=-1).cpu())
    return torch.cat(features).numpy() if features else np.zeros((0, _embed_dim(model)), np.float32)


def class_embeddings(model: CLIP, classnames: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """One feature per class, float32 (L, D), rows of length 1.

    Every template (`"{}"` stands for the class) is encoded and normalised, then the templates' mean is normalised
    again.
    """
    texts = [template.format(name) for name in classnames for template in templates]
    features = embed_texts(model, texts).reshape(len(classnames), len(templates), -1).mean(axis=1)
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def pair_probabilities(image_features: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Probability of each label from its pair of prompts: (N, D), (L, D), (L, D) -> (N, L) in 0..1.

    exp(p) / (exp(p) + exp(n)) of the plain cosines p and n, written as the logistic function of p - n. The
    cosines are not multiplied by the logit scale (upstream's choice), so values stay between 0.12 and 0.88.
    """
    difference = image_features @ positive.T - image_features @ negative.T
    return 1 / (1 + np.exp(-difference))


def predict_labels(
    model: CLIP,
    images: Any,
    labels: Sequence[str] = LABELS,
    template: tuple[str, str] = ("{}", "no {}"),
    **options: Any,
) -> np.ndarray:
    """Zero-shot probabilities (N, len(labels)) in 0..1; `options` are those of `embed_images`."""
    features = embed_images(model, images, **options)
    positive, negative = (class_embeddings(model, labels, [one]) for one in template)
    return pair_probabilities(features, positive, negative)


@contextlib.contextmanager
def _inference(model: CLIP, device: torch.device, precision: str) -> Iterator[None]:
    if precision not in PRECISIONS:
        raise UserError(f"the precision {precision!r} is not known; choose one of {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[precision]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            yield
    finally:
        model.train(was_training)


def _embed_dim(model: CLIP) -> int:
    return model.text_projection.shape[1]


def _read_ahead(images: Any, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield the batches in order; a thread reads the next one while the model works on this one."""

    def read(start: int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size]))

    with ThreadPoolExecutor(max_workers=1) as reader:
        starts = range(0, len(images), batch_size)
        ahead = reader.submit(read, 0) if starts else None
        for start in starts:
            batch = ahead.result()
            if start + batch_size < len(images):
                ahead = reader.submit(read, start + batch_size)
            yield batch
