"""Check whether this machine supports worker processes."""

import logging
import multiprocessing
from functools import cache

log = logging.getLogger(__name__)


@cache
def processes_can_share() -> bool:
    """Whether worker processes can be used; if not, a warning says that one process does all the work.

    They need semaphores, which Linux keeps in /dev/shm. In some containers it is missing or not writable.
    """
    try:
        multiprocessing.Lock()
    except OSError as error:
        log.warning("no worker processes: /dev/shm cannot be used (%s); one process does all the work", error.strerror)
        return False
    return True
