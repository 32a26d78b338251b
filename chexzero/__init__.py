"""CheXzero's modules under their names, and beside them what this project adds.

    import chexzero
    model = chexzero.load("checkpoints/pt-imp")
    similarity = model.embed_images(["chest.png"]) @ model.embed_texts(["pleural effusion"]).T

`chexzero.library.load` and `chexzero.library.ChestCLIP` are offered here too. Submodules are imported on demand
(``from chexzero import zero_shot``), so that a data job never pays for torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what `__getattr__` gives, for type checkers
    from chexzero.library import ChestCLIP as ChestCLIP
    from chexzero.library import load as load


def __getattr__(name: str) -> object:
    if name in ("ChestCLIP", "load"):
        from chexzero import library

        return getattr(library, name)
    raise AttributeError(f"module 'chexzero' has no attribute {name!r}")
