"""The errors that this package raises for wrong inputs; every message is one sentence with a remedy."""


class AdapterError(ValueError):
    """A wrong argument, such as an unknown size or an image resolution that is not a multiple of the patch size."""


class WeightsError(AdapterError):
    """Weights that are not available, cannot be read, or do not fit the requested size."""
