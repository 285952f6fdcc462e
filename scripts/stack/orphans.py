"""Ends child processes when their parent dies, even by SIGKILL."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_parent(death_signal: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """Return a `preexec_fn` that ties the child's life to the thread that starts it. Linux only.

    Start children from the main thread: the kernel sends `death_signal` when the starting *thread* ends.
    Elsewhere than on Linux the function does nothing, and only an orderly end stops the children.
    """
    parent = os.getpid()
    # Loaded here: between fork and exec the child must not import or allocate more than it has to.
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def prepare() -> None:
        if libc is None:
            return
        libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the line above took effect
            os._exit(1)

    return prepare
