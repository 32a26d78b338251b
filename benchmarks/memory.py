"""Peak memory of a process, for the benchmarks that start one per measurement."""

import resource
import sys
from pathlib import Path


def peak() -> float:
    """Peak resident memory of this process so far, MiB.

    On Linux a process inherits `ru_maxrss` from its parent, so its own peak is read elsewhere.
    """
    if sys.platform == "linux":
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
