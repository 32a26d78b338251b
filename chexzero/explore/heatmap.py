"""Heat maps of a text over an image: the cosine of every patch with the text's feature.

CLIP trains only the pooled feature, so a patch's cosine is a hint at what the model uses, not a localisation.
"""

from typing import Any

import torch
from torch.nn.functional import normalize


@torch.no_grad()
def patch_features(model, images: torch.Tensor) -> torch.Tensor:
    """Features of each patch in the joint space, L2-normalised: (B, 3, R, R) normalised images -> (B, h, w, D).

    Every patch passes through the norm and the projection of the pooled token.
    """
    visual = model.visual
    if hasattr(visual, "trunk"):  # a tower of timm
        return normalize(
            visual.head(_pooled_alone(visual.trunk, visual.trunk.forward_features(images))).float(), dim=-1
        )
    # with this option open_clip's VisionTransformer also returns the patches after its last norm
    visual.output_tokens = True
    try:
        tokens = visual(images)[1]
    finally:
        visual.output_tokens = False
    projected = tokens @ visual.proj
    side = round(projected.shape[1] ** 0.5)
    return normalize(projected.float(), dim=-1).unflatten(1, (side, side))


def _pooled_alone(trunk: Any, features: torch.Tensor) -> torch.Tensor:
    """Apply the trunk's pooling to each place alone: its last features -> (B, h, w, width)."""
    if features.ndim == 4:  # a convolutional network, (B, C, h, w)
        batch, _, height, width = features.shape
        places = features.permute(0, 2, 3, 1).reshape(batch * height * width, -1, 1, 1)
    else:
        prefix = trunk.num_prefix_tokens
        patches = features[:, prefix:]
        batch, height = len(patches), round(patches.shape[1] ** 0.5)
        width = patches.shape[1] // height
        places = patches.reshape(batch * height * width, 1, -1)
        if trunk.global_pool.startswith("avg"):  # this pooling drops the prefix again
            places = torch.cat([places.expand(-1, prefix, -1), places], dim=1)
    return trunk.forward_head(places, pre_logits=True).reshape(batch, height, width, -1)


@torch.no_grad()
def patch_similarity(model, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Cosines of patches with texts: images (B, 3, R, R), text features (T, D) -> (B, T, h, w) in -1..1."""
    return torch.einsum("bhwd,td->bthw", patch_features(model, images), texts.to(images.device))
