"""Format numbers for the report's tables; undefined values become None, which is shown as `n/a`."""

import numpy as np

from chexzero.evaluation.results import SetResult


def interval(lower: float, upper: float) -> str | None:
    """`0.812–0.874` (`-0.125 to 0.046` where a dash would be read as a minus), or None where undefined."""
    if not (np.isfinite(lower) and np.isfinite(upper)):
        return None
    return f"{lower:.3f}{'–' if lower >= 0 else ' to '}{upper:.3f}"


def signed(value: float) -> str | None:
    return f"{value:+.3f}" if np.isfinite(value) else None


def signed_interval(lower: float, upper: float) -> str | None:
    return f"{lower:+.3f} to {upper:+.3f}" if np.isfinite(lower) and np.isfinite(upper) else None


def p_text(p: float) -> str | None:
    return None if np.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def unit_name(result: SetResult) -> str:
    return "images, one per study" if result.units.level == "image" else "studies"
