"""A local page to try a model on one image."""
