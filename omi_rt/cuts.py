"""Lines that can be cut, for the demo: whatever was opened through here is dropped at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable


class Cutter:
    """Knows the open lines."""

    def __init__(self) -> None:
        self._streams: list[trio.abc.Stream] = []
        self.cuts = 0

    async def note(self, opening: Awaitable[trio.abc.Stream]) -> trio.abc.Stream:
        """Wait for a stream to open, and keep it to be cut."""
        stream = await opening
        self._streams.append(stream)
        return stream

    async def cut(self) -> None:
        """Drop what is open, without a word to the other side."""
        streams, self._streams = self._streams, []
        for stream in streams:
            await trio.aclose_forcefully(stream)
        self.cuts += 1

    async def cut_at(self, *seconds: float) -> None:
        """Cut at each of these times, in seconds from now."""
        began = trio.current_time()
        for each in seconds:
            await trio.sleep_until(began + each)
            await self.cut()
