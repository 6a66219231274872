"""A timer finer than an event loop's: the loops round to whole milliseconds.

With rounding, 400 streams would send twenty frames at once every millisecond, and the latency
measured would be that of the bursts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Final

_CLOCK_MONOTONIC: Final = 1
_NANOSECONDS: Final = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)


class Ticker:
    """A timerfd (``timerfd_create(2)``), readable when its delay is over."""

    def __init__(self) -> None:
        self.fd = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        # struct itimerspec: seconds and nanoseconds of the interval, then of the first expiry.
        self._setting = (ctypes.c_long * 4)()
        self._pointer = ctypes.byref(self._setting)

    def set(self, delay_ns: int) -> None:
        """Become readable after the delay; an earlier setting is forgotten."""
        self._setting[2], self._setting[3] = divmod(max(delay_ns, 1), _NANOSECONDS)
        _libc.timerfd_settime(self.fd, 0, self._pointer, None)

    def clear(self) -> None:
        """Take note that it was readable."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)
