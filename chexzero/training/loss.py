"""Losses over the batch of all ranks, and which pairs of a batch count as matching.

A loss takes the rows of a logit matrix (exp(logit_scale) x cosines, plus a bias where the model has one);
`chexzero.train.pair_loss` is its mean over the images' rows and the texts'. `--loss clip` is the cross-entropy against
the diagonal: Radford et al. 2021, as CheXzero uses it. To add a loss, write a `PairLoss` and add it to `LOSSES`.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.loss import ClipLoss
from torch import nn
from torch.nn import functional

from chexzero.training import distributed

EQUAL_TEXT = ("negative", "positive")


class PairLoss(nn.Module):
    """Base of the losses of the rows of a logit matrix: tells which pairs of the batch of all ranks match."""

    def __init__(self, equal_text: str = "negative", smoothing: float = 0.0):
        super().__init__()
        self.equal_text, self.smoothing = equal_text, smoothing

    def matches(self, texts: torch.Tensor) -> torch.Tensor:
        """Return the matches of each of this rank's rows among the pairs of all ranks.

        texts: this rank's tokens (b, T). Returns the index of the row's own pair, int64 (b,); with
        `equal_text="positive"` all pairs with its text, bool (b, b x ranks).
        """
        if self.equal_text == "negative":
            return torch.arange(len(texts), device=texts.device) + distributed.rank() * len(texts)
        own = text_codes(texts)
        return own[:, None] == distributed.gather(own)[None, :]


class ContrastiveLoss(PairLoss):
    """Softmax loss of the rows of a logit matrix; `equal_text` says how pairs with the same text count.

    `negative` (upstream): each row's own pair matches it and all others are negatives; the cross-entropy.
    `positive`: every pair with the same text matches the row. Each match is set against the negatives alone, and a
    row's loss is the mean over its matches: -log(e^z / (e^z + sum of e^z over the negatives)). (Feeney and Hughes
    2023, SINCERE; without equal texts it is the cross-entropy. Equal shares of one softmax would change nothing: the
    logits of equal texts are equal, and summed over the batch that is upstream's loss.)

    `smoothing` s: 1 - s times this loss, and s times the mean of the cross-entropies against all pairs of the row, as
    torch's cross-entropy has it.
    """

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """logits: (b, B). labels: index of each row's match, int64 (b,); or all its matches, bool (b, B)."""
        if labels.dtype != torch.bool:
            return functional.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        negatives = logits.masked_fill(labels, -torch.inf).logsumexp(1, keepdim=True)
        losses = functional.softplus(negatives - logits).masked_fill(~labels, 0)
        loss = (losses.sum(1) / labels.sum(1)).mean()
        if not self.smoothing:
            return loss
        return torch.lerp(loss, (logits.logsumexp(1) - logits.mean(1)).mean(), self.smoothing)


class SigmoidLoss(PairLoss):
    """Sigmoid loss of the rows of a logit matrix: each entry is a separate decision whether image and text match.

    A row's loss is the sum over its entries of -log sigmoid(z) where they match and -log sigmoid(-z) elsewhere (Zhai
    et al. 2023, SigLIP, as open_clip's `SigLipLoss` has it). The rows of one rank against the pairs of all ranks are
    that rank's part of the sum, so several ranks and parts of a batch need no extra code.
    """

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """logits: (b, B). labels: index of each row's match, int64 (b,); or all its matches, bool (b, B)."""
        if labels.dtype != torch.bool:
            labels = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
        return -functional.logsigmoid(torch.where(labels, logits, -logits)).sum(1).mean()


@dataclass(frozen=True)
class Loss:
    """A choice of `--loss`, with initial values of the factor on the cosines (its log) and of the bias."""

    criterion: type[PairLoss]
    log_scale: float | None = None  # None: CLIP's own
    bias: float | None = None  # None: the model has none


#: `--loss` -> its class and initial values. SigLIP's are those of its paper.
LOSSES = {"clip": Loss(ContrastiveLoss), "siglip": Loss(SigmoidLoss, log_scale=math.log(10), bias=-10.0)}


def all_pairs(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    alone: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of this rank's b rows against the pairs of all W ranks, or with `alone` against its own.

    image_features, text_features: (b, D), rows of length 1. Returns `(logits_per_image, logits_per_text)`, each
    (b, b x W). Gradients flow back to the features of every rank, so that the mean over ranks that
    DistributedDataParallel takes is the gradient of one process with the whole batch (open_clip's local loss).
    """
    loss = ClipLoss(
        local_loss=True,
        gather_with_grad=True,
        rank=0 if alone else distributed.rank(),
        world_size=1 if alone else distributed.world_size(),
    )
    return loss.get_logits(image_features, text_features, scale, bias)


def text_codes(tokens: torch.Tensor) -> torch.Tensor:
    """One int64 per text, (B, T) -> (B,): equal for equal texts and, but for one chance in 2^64, only for these.

    The sum of the tokens times fixed random numbers (it wraps around). Padding with zeros changes nothing, so ranks
    whose batches are cut at different lengths compare eight bytes per text.
    """
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (tokens.shape[1],), generator=generator, dtype=torch.int64)
    return (tokens.to(torch.int64) * factors.to(tokens.device)).sum(1)


def equal_pairs(numbers: NDArray) -> int:
    """Return the number of pairs i < j with equal numbers: matching pairs that a batch treats as negatives."""
    counts = np.unique(numbers, return_counts=True)[1]
    return int((counts * (counts - 1)).sum()) // 2
