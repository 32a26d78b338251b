"""CheXzero's modules under their names, and beside them what this project adds.

    import chexzero
    model = chexzero.load("checkpoints/pt-imp")
    similarity = model.embed_images(["chest.png"]) @ model.embed_texts(["pleural effusion"]).T

Submodules are imported on demand (``from chexzero import zero_shot``), so that a data job never pays for torch.
"""

__all__ = ["ChestCLIP", "load"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from chexzero import library
        return getattr(library, name)
    raise AttributeError(f"module 'chexzero' has no attribute {name!r}")
