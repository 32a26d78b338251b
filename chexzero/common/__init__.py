"""Errors, files, labels, settings, statistics: what every room uses; imports nothing of ours."""
