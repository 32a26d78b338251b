"""Evaluation suites beyond CheXzero's fourteen labels."""
