"""Several runs side by side on the same images: `python -m chexzero.compare RUN RUN ...`."""
