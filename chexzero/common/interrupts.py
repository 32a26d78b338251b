"""Ctrl-C ends a command in one word, and a full disk in one sentence, from its first import on.

A command imports this before anything else, since what it imports takes seconds. Until `run_command` takes over, an
interruption would be raised within some library's import: a traceback, or whatever the library makes of it. And
libraries want a folder for temporary files as soon as they are imported.
"""

import signal
import sys
import threading

from chexzero.common.errors import leave_at_once, refused_while_importing

sys.excepthook = refused_while_importing

in_main_thread = threading.current_thread() is threading.main_thread()
if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave_at_once)
