"""CheXzero's modules under their upstream names, and this project's additions.

    import chexzero
    model = chexzero.load("checkpoints/pt-imp")
    similarity = model.embed_images(["chest.png"]) @ model.embed_texts(["pleural effusion"]).T

`load` and `ChestCLIP` of `chexzero.library` are available here too. Submodules are imported on demand
(``from chexzero import zero_shot``), so that data jobs do not import torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the names that `__getattr__` provides, for type checkers
    from chexzero.library import ChestCLIP as ChestCLIP
    from chexzero.library import load as load


def __getattr__(name: str) -> object:
    if name in ("ChestCLIP", "load"):
        from chexzero import library

        return getattr(library, name)
    raise AttributeError(f"module 'chexzero' has no attribute {name!r}")
