"""Report a user's mistake: one sentence on stderr, exit code 2, no traceback."""

import errno
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import NoReturn

EXIT_CODES = (
    "exit codes: 0 done; 2 a wrong input, explained in one sentence; 3 a check failed and --strict was given;\n"
    "75 a training stopped by a signal after saving: start it again with --resume auto; 130 Ctrl-C; 1 anything else"
)
EXIT_USER_ERROR = 2
EXIT_ALARM = 3
EXIT_INTERRUPTED = 130

#: Errors of the operating system that are not the program's fault -> the remedy.
REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room within your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EIO: "the disk or the network share reports an error: try again, or use another",
    errno.ESTALE: "the network share has gone: try again when it is back",
    errno.EROFS: "the disk is read-only: name another folder",
    errno.EACCES: "change its permissions, or name another",
    errno.EPERM: "change its permissions, or name another",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of the path is a file, not a folder: correct the path",
    errno.EISDIR: "it is a folder: name a file",
    errno.ELOOP: "its symbolic links form a loop: correct them",
    errno.EMFILE: "raise the limit on open files (ulimit -n), or use fewer worker processes",
    errno.ENFILE: "the machine has too many files open: end other programs, or use fewer worker processes",
    errno.ENOMEM: "free memory, or use smaller batches or fewer worker processes",
    errno.EAGAIN: "raise the limit on processes (ulimit -u), or use fewer worker processes",
}


class UserError(ValueError):
    """A wrong input. The message is one sentence that names the file (and row) and the remedy."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and end the process with its exit code.

    0 for None, 2 with one sentence on stderr for a `UserError` or an error of the operating system (`REMEDIES`), 130
    after Ctrl-C; any other exception is a bug and keeps its traceback.
    """
    _repair_standard_streams()
    if signal.getsignal(signal.SIGINT) is leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    code: int | str | None
    try:
        code = main() or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (`| head`) has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        code = _say(error)
    finally:
        for child in multiprocessing.active_children():  # workers ignore SIGTERM: Python would wait for them
            child.kill()
    sys.exit(code)


def leave_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """Handle Ctrl-C while a command is still being imported (`chexzero.common.interrupts`): no work is lost."""
    os.write(2, b"interrupted\n")
    os._exit(EXIT_INTERRUPTED)


def refused_while_importing(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook` of the commands: report errors of the operating system during imports in one sentence."""
    sentence = refusal(error)
    if sentence is None:
        sys.__excepthook__(kind, error, trace)
        return
    _tell(f"error: {' '.join(sentence.split())}")
    os._exit(EXIT_USER_ERROR)  # a hook cannot choose the exit code


def _say(error: BaseException) -> int | str | None:
    """Print what ended the command; return its exit code.

    After Ctrl-C, or a signal that ends the process, libraries often raise an error of their own, such as a failed
    write. The interruption is then among that error's causes, and determines the exit code.
    """
    stop = next((one for one in causes(error) if isinstance(one, (KeyboardInterrupt, SystemExit))), None)
    if isinstance(stop, SystemExit):
        return stop.code
    if stop:
        _tell("interrupted")
        return EXIT_INTERRUPTED
    sentence = str(error) if isinstance(error, UserError) else refusal(error)
    if sentence is None:
        raise error
    _tell(f"error: {' '.join(sentence.split())}")
    return EXIT_USER_ERROR


def _tell(sentence: str) -> None:
    """Print to stderr; if that fails, for instance on a full disk, only the exit code reports the error."""
    for stream, words in ((sys.stderr, f"{sentence}\n"), (sys.stdout, "")):
        try:
            stream.write(words)
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception and its chain of causes, each once."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        yield one
        seen.add(id(one))
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def refusal(error: BaseException) -> str | None:
    """Return the sentence for an error of the operating system, whichever library reports it; else None."""
    for one in causes(error):
        if isinstance(one, MemoryError):
            return f"out of memory; {REMEDIES[errno.ENOMEM]}"
        if isinstance(one, FileNotFoundError) and "temporary directory" in str(one):  # Python tries several, all full
            return f"{one.strerror}; make room there, or name another folder in TMPDIR"
        number = getattr(one, "errno", None) or _errno_in(one)
        if number in REMEDIES:
            path = getattr(one, "filename", None)
            where = "the command" if path is None else f"{os.fsdecode(path) if isinstance(path, bytes) else path}"
            return f"{where}: {os.strerror(number)}; {REMEDIES[number]}"
    return None


def _errno_in(error: BaseException) -> int | None:
    """The error number that a library in another language gives only in its text: `... (os error 28)`."""
    if type(error).__module__ == "builtins" and not isinstance(error, (RuntimeError, OSError)):
        return None
    text = str(error).lower()
    return next((number for number in REMEDIES if os.strerror(number).lower() in text), None)


def _repair_standard_streams() -> None:
    """Make printing safe: a closed standard stream discards text, an ASCII one replaces other characters by `?`.

    A closed descriptor is opened on /dev/null first: otherwise the next file opened would get its number, and what
    libraries print would be written into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))  # noqa: SIM115  (for the whole process)
        elif number and hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="replace")
