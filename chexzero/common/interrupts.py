"""Ctrl-C ends a command in one word, from its first import on.

A command imports this before anything else, since what it imports takes seconds: until `run_command` takes over, an
interruption would end in a traceback.
"""

import os
import sys
from types import TracebackType

from chexzero.common.errors import EXIT_INTERRUPTED, causes

_usual = sys.excepthook


def _say(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Also where a library has turned the interruption into an error of its own, an ImportError say."""
    if not any(isinstance(one, KeyboardInterrupt) for one in causes(error)):
        _usual(kind, error, traceback)
        return
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(EXIT_INTERRUPTED)


sys.excepthook = _say
