"""Comparisons of a result: with published figures, readers and a baseline; paired differences."""
