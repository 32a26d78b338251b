"""Predictions, results and choices of an evaluation."""
