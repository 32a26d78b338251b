"""The comparison with a CheXzero checkout: `python -m tests.parity CHECKOUT`."""
