"""Compare several runs on the same images: `python -m chexzero.compare RUN RUN ...`."""
