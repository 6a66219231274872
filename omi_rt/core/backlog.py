"""Audio that no final has covered yet."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING

from attrs import define, field

from omi_rt.core.audio import AudioChunk

if TYPE_CHECKING:
    from omi_rt.core.audio import AudioFormat

BLOCK_SECONDS = 0.1
"""What arrives is kept in blocks of about that length: an object for each 10 ms of audio would take
half as much memory again as the audio."""

_position = attrgetter("position")


@define
class _Block:
    position: int
    """Session position of the first sample."""
    data: bytearray = field(repr=False)


class Backlog:
    """The stretch of audio between the lowest watermark and the newest sample.

    It has no holes: audio comes in at the end and leaves at the start, because a final covered it
    (`trim`) or because there was no more room for it (`drop`). Both return what they took away, so
    that whoever calls can account for it.
    """

    __slots__ = (
        "_block_bytes",
        "_blocks",
        "_frame_bytes",
        "_latest",
        "_latest_position",
        "capacity",
        "end",
        "start",
    )

    def __init__(self, audio_format: AudioFormat, capacity: int) -> None:
        self._frame_bytes = audio_format.frame_bytes
        self._block_bytes = audio_format.samples(BLOCK_SECONDS) * audio_format.frame_bytes
        self._blocks: deque[_Block] = deque()
        self._latest = b""
        self._latest_position = 0
        self.capacity = capacity
        """Samples that it is meant to hold; the owner stops reading or drops beyond it."""
        self.start = 0
        """Session position of the oldest sample, or `end` where it is empty."""
        self.end = 0
        """Session position just behind the newest sample."""

    @property
    def excess(self) -> int:
        """Samples over the capacity; negative while there is room."""
        return self.end - self.start - self.capacity

    @property
    def pending(self) -> int:
        """Samples that are here: counted block by block, never as a difference of positions."""
        return sum(len(block.data) // self._frame_bytes for block in self._blocks)

    def append(self, payload: bytes) -> int:
        """Add audio, whole samples, at the end; returns how many."""
        samples = len(payload) // self._frame_bytes
        if samples:
            self._latest, self._latest_position = payload, self.end
            blocks = self._blocks
            if blocks and len(blocks[-1].data) < self._block_bytes:
                blocks[-1].data += payload
            else:
                blocks.append(_Block(self.end, bytearray(payload)))
            self.end += samples
        return samples

    def read(self, position: int, limit: int) -> AudioChunk | None:
        """Return the audio from ``position`` on, at most ``limit`` samples; None if there is none.

        A position before the start reads from the start: what lay between is gone.
        """
        position = max(position, self.start)
        end = self.end
        if position >= end:
            return None
        if position == self._latest_position and end - position <= limit:
            # A live stream reads just what came last: no search, no copy.
            return AudioChunk(position, end - position, self._latest)
        until = min(position + limit, end)
        index = bisect_right(self._blocks, position, key=_position) - 1
        size, at, parts = self._frame_bytes, position, []
        while at < until:
            block = self._blocks[index]
            parts.append(block.data[(at - block.position) * size : (until - block.position) * size])
            at += len(parts[-1]) // size
            index += 1
        return AudioChunk(position, until - position, b"".join(parts))

    def trim(self, position: int) -> int:
        """Forget what lies before ``position``, which a final has covered; returns its samples."""
        position = min(position, self.end)
        taken = 0
        blocks, size = self._blocks, self._frame_bytes
        while blocks and blocks[0].position < position:
            block = blocks[0]
            samples = min(len(block.data) // size, position - block.position)
            taken += samples
            if samples * size == len(block.data):
                blocks.popleft()
            else:
                del block.data[: samples * size]
                block.position = position
        self.start = max(self.start, position)
        return taken

    def drop(self, samples: int) -> int:
        """Give up the oldest ``samples``; returns how many there were."""
        return self.trim(self.start + samples) if samples > 0 else 0
