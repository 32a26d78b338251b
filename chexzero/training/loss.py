"""The contrastive loss over the batch of all ranks, and which pairs of a batch count as matching.

Loss of a batch of B pairs: logits = exp(logit_scale) x cosines, (B, B); the mean of the cross-entropies of its rows
and of its columns against the diagonal. Radford et al. 2021 (CLIP), as CheXzero uses it.
"""

import torch
from open_clip.loss import ClipLoss
from torch import nn
from torch.nn import functional

from chexzero.training import distributed

EQUAL_TEXT = ("negative", "positive")


class ContrastiveLoss(nn.CrossEntropyLoss):
    """Loss of the rows of a logit matrix; `equal_text` says what pairs with the same text are to each other.

    `negative` (upstream): each row's own pair matches it and all others are negatives; the cross-entropy.
    `positive`: every pair with the same text matches the row. Each match is set against the negatives alone, and a
    row's loss is the mean over its matches: -log(e^z / (e^z + sum of e^z over the negatives)). (Feeney and Hughes
    2023, SINCERE; without equal texts it is the cross-entropy. Equal shares of one softmax would change nothing: the
    logits of equal texts are equal, and summed over the batch that is upstream's loss.)
    """

    def __init__(self, equal_text: str = "negative"):
        super().__init__()
        if equal_text not in EQUAL_TEXT:
            raise ValueError(f"equal_text must be one of {EQUAL_TEXT}")
        self.equal_text = equal_text

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """logits: (b, B). labels: index of each row's match, int64 (b,); or all its matches, bool (b, B)."""
        if labels.dtype != torch.bool:
            return super().forward(logits, labels)
        negatives = logits.masked_fill(labels, -torch.inf).logsumexp(1, keepdim=True)
        losses = functional.softplus(negatives - logits).masked_fill(~labels, 0)
        return (losses.sum(1) / labels.sum(1)).mean()


def all_pairs(
    image_features: torch.Tensor, text_features: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of this rank's b rows against the pairs of all W ranks.

    image_features, text_features: (b, D), rows of length 1. Returns `(logits_per_image, logits_per_text)`, each
    (b, b x W). Gradients flow back to the features of every rank, so that the mean over ranks that
    DistributedDataParallel takes is the gradient of one process with the whole batch (open_clip's local loss).
    """
    loss = ClipLoss(
        local_loss=True, gather_with_grad=True, rank=distributed.rank(), world_size=distributed.world_size()
    )
    return loss.get_logits(image_features, text_features, scale)


def matches(texts: torch.Tensor, criterion: nn.Module) -> torch.Tensor:
    """What matches the rows of the logits, as `criterion` takes it.

    texts: this rank's tokens (b, T). Returns the index of each row's own pair among the pairs of all ranks, int64
    (b,); or, for `equal_text="positive"`, all pairs with its text, bool (b, b x ranks).
    """
    if getattr(criterion, "equal_text", "negative") == "negative":
        return torch.arange(len(texts), device=texts.device) + distributed.rank() * len(texts)
    own = text_codes(texts)
    return own[:, None] == distributed.gather(own)[None, :]


def text_codes(tokens: torch.Tensor) -> torch.Tensor:
    """One int64 a text, (B, T) -> (B,): equal for equal texts and, but for one chance in 2^64, only for these.

    A sum of tokens times fixed random numbers (it wraps around), so that padding with zeros changes nothing.
    """
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (tokens.shape[1],), generator=generator, dtype=torch.int64)
    return (tokens.to(torch.int64) * factors.to(tokens.device)).sum(1)


def equal_pairs(codes: torch.Tensor) -> int:
    """Number of pairs i < j with equal codes, that is, of pairs a batch calls negative although they match."""
    counts = torch.unique(codes, return_counts=True)[1]
    return int((counts * (counts - 1)).sum()) // 2
