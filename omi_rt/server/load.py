"""Measures how busy the event loop is."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from omi_rt.core.coalescing import LoadMeter


class LoadInstrument(trio.abc.Instrument):
    """Feeds a `LoadMeter` from Trio's own hooks, twice a turn of the loop."""

    def __init__(self, meter: LoadMeter) -> None:
        self._meter = meter
        self._wait_started = 0.0

    def before_io_wait(self, timeout: float) -> None:
        """The loop has nothing more to run."""
        self._wait_started = perf_counter()

    def after_io_wait(self, timeout: float) -> None:
        """Something is ready again."""
        self._meter.waited(self._wait_started, perf_counter())
