"""End a command on Ctrl-C with one word, and on a full disk with one sentence, from its first import on.

A command imports this before anything else, because the other imports take seconds. Until `run_command` takes over, an
interruption would be raised inside a library's import and show as a traceback or as that library's own error. Some
libraries also need a folder for temporary files as soon as they are imported.
"""

import signal
import sys
import threading

from chexzero.common.errors import leave_at_once, refused_while_importing

sys.excepthook = refused_while_importing

in_main_thread = threading.current_thread() is threading.main_thread()
if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave_at_once)
