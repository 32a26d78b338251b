"""The highest memory of a process, for the benchmarks that start one for each measurement."""

import resource
import sys
from pathlib import Path


def peak() -> float:
    """Highest resident memory of this process so far, MiB.

    Linux hands `ru_maxrss` of the process that started this one on to it, so that its own is read elsewhere there.
    """
    if sys.platform == "linux":
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
