"""Errors, files, labels, settings, statistics: used by every room; imports no other room."""
