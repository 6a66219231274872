"""Measures how busy the event loop is."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from omi_rt.core.coalescing import LoadMeter


SPAN_SECONDS = 0.05
"""The meter is told no more often: what is done in every turn of the loop has to be little."""


class LoadInstrument(trio.abc.Instrument):
    """Feeds a `LoadMeter` from Trio's own hooks, which are called twice a turn of the loop."""

    def __init__(self, meter: LoadMeter) -> None:
        self._meter = meter
        self._since = self._wait_started = perf_counter()
        self._waited = 0.0

    def before_io_wait(self, timeout: float) -> None:
        """The loop has nothing more to run."""
        self._wait_started = perf_counter()

    def after_io_wait(self, timeout: float) -> None:
        """Something is ready again."""
        now = perf_counter()
        self._waited += now - self._wait_started
        span = now - self._since
        if span > SPAN_SECONDS:
            self._meter.note(self._waited, span)
            self._since, self._waited = now, 0.0
