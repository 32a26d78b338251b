"""Where in an image a text's words are found: the cosine of every patch with the text's feature.

CLIP trains only the pooled feature, so a patch's cosine is a hint at what the model looks at, not a localisation.
"""

import torch
from torch.nn.functional import normalize


@torch.no_grad()
def patch_features(model, images: torch.Tensor) -> torch.Tensor:
    """Features of each patch in the joint space, L2-normalised: (B, 3, R, R) normalised images -> (B, h, w, D).

    Every patch goes through the norm and the projection that the pooled token goes through.
    """
    visual = model.visual
    if hasattr(visual, "trunk"):  # a DINOv3 tower
        tokens = visual.trunk.forward_features(images)[:, visual.trunk.num_prefix_tokens :]
        projected = visual.head.proj(tokens)
    else:  # open_clip's VisionTransformer gives the patches after its last norm when asked
        visual.output_tokens = True
        try:
            tokens = visual(images)[1]
        finally:
            visual.output_tokens = False
        projected = tokens @ visual.proj
    side = round(projected.shape[1] ** 0.5)
    return normalize(projected.float(), dim=-1).unflatten(1, (side, side))


@torch.no_grad()
def patch_similarity(model, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Cosines of patches with texts: images (B, 3, R, R), text features (T, D) -> (B, T, h, w) in -1..1."""
    return torch.einsum("bhwd,td->bthw", patch_features(model, images), texts.to(images.device))
