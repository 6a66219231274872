"""Audio that no final has covered yet."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING

from omi_rt.core.audio import AudioChunk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omi_rt.core.audio import AudioFormat

_position = attrgetter("position")


class Backlog:
    """The stretch of audio between the lowest watermark and the newest sample.

    It has no holes: audio comes in at the end and leaves at the start, because a final covered it
    (`trim`) or because there was no more room for it (`drop`). Both return what they took away, so
    that whoever calls can account for it.
    """

    __slots__ = ("_chunks", "_frame_bytes", "_start", "capacity", "end")

    def __init__(self, audio_format: AudioFormat, capacity: int) -> None:
        self._frame_bytes = audio_format.frame_bytes
        self._chunks: deque[AudioChunk] = deque()
        self._start = 0
        self.capacity = capacity
        """Samples that it is meant to hold; the owner stops reading or drops beyond it."""
        self.end = 0
        """Session position just behind the newest sample."""

    @property
    def start(self) -> int:
        """Session position of the oldest sample, or `end` where it is empty."""
        return self._start

    @property
    def excess(self) -> int:
        """Samples over the capacity; negative while there is room."""
        return self.end - self._start - self.capacity

    @property
    def pending(self) -> int:
        """Samples that are here: counted chunk by chunk, never as a difference of positions."""
        return sum(chunk.samples for chunk in self._chunks)

    def __iter__(self) -> Iterator[AudioChunk]:
        return iter(self._chunks)

    def append(self, payload: bytes) -> int:
        """Add audio at the end; returns its samples. ``payload`` is not copied."""
        samples = len(payload) // self._frame_bytes
        if samples:
            self._chunks.append(AudioChunk(self.end, samples, payload))
            self.end += samples
        return samples

    def read(self, position: int, limit: int) -> AudioChunk | None:
        """Return the audio from ``position`` on, at most ``limit`` samples; None if there is none.

        A position before the start reads from the start: what lay between is gone.
        """
        position = max(position, self._start)
        if position >= self.end:
            return None
        chunks = self._chunks
        last = chunks[-1]
        # A live stream reads just what came last: no search, no copy.
        if last.position == position and last.samples <= limit:
            return last
        index = bisect_right(chunks, position, key=_position) - 1
        until = min(position + limit, self.end)
        parts = []
        at = position
        while at < until:
            part = self._part(chunks[index], at, until)
            parts.append(part.payload)
            at = part.end
            index += 1
        return AudioChunk(position, until - position, b"".join(parts))

    def trim(self, position: int) -> int:
        """Forget what lies before ``position``, which a final has covered; returns its samples."""
        position = min(position, self.end)
        taken = 0
        chunks = self._chunks
        while chunks and chunks[0].end <= position:
            taken += chunks.popleft().samples
        if chunks and chunks[0].position < position:
            taken += position - chunks[0].position
            chunks[0] = self._part(chunks[0], position, chunks[0].end)
        self._start = max(self._start, position)
        return taken

    def drop(self, samples: int) -> int:
        """Give up the oldest ``samples``; returns how many there were."""
        return self.trim(self._start + samples) if samples > 0 else 0

    def _part(self, chunk: AudioChunk, start: int, end: int) -> AudioChunk:
        end = min(end, chunk.end)
        if start == chunk.position and end == chunk.end:
            return chunk
        size = self._frame_bytes
        payload = chunk.payload[(start - chunk.position) * size : (end - chunk.position) * size]
        return AudioChunk(start, end - start, payload)
