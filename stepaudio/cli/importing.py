"""Ctrl-C while the command is still being imported, when none of its code could catch an exception.

Imported before all else, so it imports next to nothing: what Python itself does before cannot be helped.
"""

import os
import signal
import sys
from itertools import pairwise

INTERRUPTED = 130  # as shells count: 128 and the number of the signal


def quiet_while_importing():
    """Let Ctrl-C end the process with one line until `signals.ends_by_exception` takes over, if it is the command's."""
    if _is_the_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def _is_the_command() -> bool:
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    if name == "-m":  # as Python calls it while it looks for the module
        return "-mstepaudio" in sys.orig_argv or ("-m", "stepaudio") in pairwise(sys.orig_argv)
    return name == "stepaudio"


def _leave(_number, _frame):
    os.write(2, b"stepaudio: interrupted\n")
    os._exit(INTERRUPTED)
