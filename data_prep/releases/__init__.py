"""The datasets as they lie on disk."""
