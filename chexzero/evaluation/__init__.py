"""Evaluation: choice of checkpoints and prompts, predictions, results."""
