"""OpenAI CLIP's interface under upstream's names: `load` for published models, and the strict `tokenize`."""

from collections.abc import Callable
from pathlib import Path

import torch

from chexzero.common.errors import UserError
from chexzero.model import CLIP
from chexzero.models.checkpoints import load_model
from chexzero.models.published import MODELS, weights_file
from chexzero.simple_tokenizer import END, START, default_tokenizer

CONTEXT_LENGTH = 77


class ClipError(UserError, RuntimeError):
    """A user's mistake in a call of this module; also a RuntimeError, which upstream's callers may expect here."""


def available_models() -> list[str]:
    """Names that `load` accepts."""
    return list(MODELS)


def tokenize(texts: str | list[str], context_length: int = CONTEXT_LENGTH, truncate: bool = False) -> torch.Tensor:
    """Tokenise texts: start token, byte pairs, end token, then zeros.

    Returns int64 (len(texts), context_length). A text that is too long raises `ClipError`; with `truncate` it is cut,
    with the end token in the last place.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    tokenizer = default_tokenizer()
    start, end = tokenizer.encoder[START], tokenizer.encoder[END]
    result = torch.zeros(len(texts), context_length, dtype=torch.int64)
    for row, text in enumerate(texts):
        tokens = [start, *tokenizer.encode(text), end]
        if len(tokens) > context_length:
            if not truncate:
                raise ClipError(
                    f"text {row} has {len(tokens)} tokens but the context length is {context_length}: "
                    f"{text[:60]!r}...; shorten it, or cut it with truncate=True"
                )
            tokens = [*tokens[: context_length - 1], end]
        result[row, : len(tokens)] = torch.tensor(tokens)
    return result


def trim_padding(tokens: torch.Tensor) -> torch.Tensor:
    """Cut a batch of tokens (B, T) after its longest text; the features stay the same and cost less."""
    return tokens[:, : int(tokens.argmax(dim=-1).max()) + 1] if len(tokens) else tokens


_BEST_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load(name: str, device: str | torch.device = _BEST_DEVICE, jit: bool = True) -> tuple[CLIP, Callable]:
    """Load a published model by name, or any checkpoint by path.

    Returns the model (float32, eval mode, on `device`) and OpenAI's transform, which turns a PIL image into a float
    tensor (3, R, R) normalised for photographs; CheXzero prepares its radiographs with `imaging.normalise.prepare`
    instead. `jit` is accepted for compatibility and ignored: only tensors are read from the file.
    """
    if name not in MODELS and not Path(name).is_file():
        raise ClipError(f"the model {name!r} is not known; choose one of {', '.join(MODELS)}, or name a file")
    try:
        path = weights_file(name) if name in MODELS else name
    except UserError as error:
        raise ClipError(str(error)) from error
    model = load_model(path, device)
    return model, image_transform(model.image_resolution)


def image_transform(resolution: int) -> Callable:
    """OpenAI's transform for photographs: resize, centre crop, RGB, 0..1, CLIP's mean and standard deviation."""
    from open_clip.transform import image_transform as build

    return build(resolution, is_train=False)
