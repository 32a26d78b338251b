"""How a user's mistake reaches the user: one sentence on stderr, exit code 2, no traceback."""

import logging
import os
import sys
from collections.abc import Callable

EXIT_CODES = (
    "exit codes: 0 done; 2 a wrong input, said in one sentence; 75 a training stopped by a signal "
    "after saving:\nstart it again with --resume auto; 130 Ctrl-C; 1 anything else"
)
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class UserError(ValueError):
    """A wrong input. The message is one sentence that names the file (and row) and the remedy."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and leave the process with its exit code.

    0 for None, 2 with one sentence on stderr for a `UserError`, 130 after Ctrl-C; any other
    exception is a fault of ours and keeps its traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader (`| head`) has gone; nothing is left to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
