"""Ctrl-C while a compiled solver runs: seen at once instead of after it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Seconds within which Ctrl-C is seen. A choice: a shorter wait only wakes the process more often.
_POLL_SECONDS = 0.1


def interruptible(solve: Callable[[], T]) -> T:
    """What a call returns that leaves Python for long and releases its lock meanwhile.

    Python runs signal handlers between its own instructions, so a solver called directly sees
    Ctrl-C only when it is done. Here it runs in a thread of its own while the caller waits, and
    Ctrl-C leaves it behind: it ends at its own time limit, or with the process.

    Args:
        solve: The call; it must have a time limit.

    Raises:
        KeyboardInterrupt: At once.
        Exception: Whatever the call raises.
    """
    answers: queue.SimpleQueue[tuple[bool, T | BaseException]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((True, solve()))
        except BaseException as error:  # raised again where the caller waits
            answers.put((False, error))

    threading.Thread(target=work, daemon=True).start()
    while True:
        try:
            succeeded, answer = answers.get(timeout=_POLL_SECONDS)
        except queue.Empty:  # a wait without an end does not see Ctrl-C on every system
            continue
        if succeeded:
            return answer
        raise answer
