"""Ctrl-C comes between any two steps of the program; a process that was started but noted nowhere would be lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held() -> Iterator[None]:
    """Hold Ctrl-C back for the moment of this block; it comes as the block ends. What is started inside inherits that.

    A mask alone would do only in a process of one thread: elsewhere the system gives the signal to another thread, for
    which Python interrupts the main one all the same.
    """
    came: list[int] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.getsignal(signal.SIGINT) if _is_main() else None
    try:
        if handler is not None:
            signal.signal(signal.SIGINT, lambda number, _: came.append(number))
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if came:
            signal.raise_signal(signal.SIGINT)


def _is_main() -> bool:
    """Say whether this is the thread that Python interrupts, and that alone may say how."""
    return threading.current_thread() is threading.main_thread()
