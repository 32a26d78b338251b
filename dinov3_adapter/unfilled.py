"""Build a module without drawing the random weights that a state dict then replaces."""

from torch import nn
from torch.overrides import TorchFunctionMode

#: The functions with which torch, timm and open_clip initialise a parameter.
_FILLS = {
    *("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"),
    *("xavier_normal_", "constant_", "zeros_", "ones_", "fill_", "zero_", "erfinv_", "mul_", "add_", "clamp_"),
}


class Unfilled(TorchFunctionMode):
    """Within `with Unfilled():`, a module's parameters are allocated but not initialised.

    Follow it with a strict `load_state_dict`. Buffers are computed as usual. Without this, one thread draws all weights,
    however many threads there are.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, nn.Parameter) and getattr(func, "__name__", "") in _FILLS:
            return target
        return func(*args, **kwargs)
