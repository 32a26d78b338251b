"""Checkpoints of every kind, read into one model."""
