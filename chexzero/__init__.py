"""CheXzero's modules under their names, and beside them what this project adds.

Submodules are imported on demand (``from chexzero import zero_shot``), so that a data job never pays for torch.
"""
