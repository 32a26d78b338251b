"""What this package raises when something the user gave does not fit; every message is one sentence with a remedy."""


class AdapterError(ValueError):
    """A wrong argument: an unknown size, an image resolution that is no multiple of the patch size."""


class WeightsError(AdapterError):
    """Weights that cannot be had, cannot be read, or are not those of the size asked for."""
