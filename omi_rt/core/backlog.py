"""Audio that no final has covered yet."""

from __future__ import annotations

from bisect import bisect_right
from operator import attrgetter
from typing import TYPE_CHECKING

from attrs import define, field

from omi_rt.core.audio import AudioChunk
from omi_rt.core.budget import BacklogBudget

if TYPE_CHECKING:
    from omi_rt.core.audio import AudioFormat

BLOCK_SECONDS = 0.1
"""Audio is kept in blocks of about this length, because an object for each 10 ms of audio would take
half as much memory again as the audio."""

_BLOCK_OVERHEAD_BYTES = 200
"""A block takes this much memory besides its audio: two objects and a place in the queue."""

_position = attrgetter("position")


@define
class _Block:
    position: int
    """Session position of the first sample."""
    data: bytearray | None = field(repr=False)
    """The audio; None stands for digital silence, of which only the length is kept."""
    silent_samples: int = 0

    def samples(self, frame_bytes: int) -> int:
        """The block's length in samples."""
        return self.silent_samples if self.data is None else len(self.data) // frame_bytes


class Backlog:
    """The stretch of audio between the lowest watermark and the newest sample.

    It has no holes: audio comes in at the end and leaves at the start, because a final covered it
    (`trim`) or because there was no more room for it (`drop`). Both return what they have taken away,
    so that the caller can account for it.

    What was trimmed last stays where it is for a while, for whoever has to hear it again. So trimming
    moves no audio, of which nothing is in a busy server's caches.

    Args:
        audio_format: of the session.
        capacity: see there.
        budget: what all backlogs may hold together.
        kept_samples: how much of what was trimmed can be had from `read_trimmed`.
    """

    __slots__ = (
        "_block_bytes",
        "_blocks",
        "_budget",
        "_frame_bytes",
        "_kept_samples",
        "_trimmed_from",
        "capacity",
        "end",
        "held_bytes",
        "is_to_wait",
        "start",
    )

    def __init__(
        self,
        audio_format: AudioFormat,
        capacity: int,
        budget: BacklogBudget | None = None,
        kept_samples: int = 0,
    ) -> None:
        self._frame_bytes = audio_format.frame_bytes
        self._block_bytes = audio_format.samples(BLOCK_SECONDS) * audio_format.frame_bytes
        self._blocks: list[_Block] = []
        self._budget = BacklogBudget() if budget is None else budget
        self._kept_samples = kept_samples
        self._trimmed_from = 0
        """Session position behind which nothing was dropped."""
        self.held_bytes = 0
        """Bytes of memory that the blocks take; the budget has the sum over all backlogs."""
        self.capacity = capacity
        """Samples that the backlog is meant to hold; beyond it the owner stops reading, or drops."""
        self.start = 0
        """Session position of the oldest sample, or `end` where the backlog is empty."""
        self.end = 0
        """Session position just behind the newest sample."""
        self.is_to_wait = False
        """Whether whoever fills it must ask first: when audio was last added, it was full, or all backlogs
        together held much."""

    @property
    def excess(self) -> int:
        """Samples over the capacity; negative while there is room."""
        return self.end - self.start - self.capacity

    @property
    def pending(self) -> int:
        """Samples that have not been taken away, counted block by block, not as a difference of positions."""
        return sum(
            max(0, block.samples(self._frame_bytes) - max(0, self.start - block.position))
            for block in self._blocks
        )

    def append(self, payload: bytes) -> int:
        """Add audio of whole samples at the end; return how many samples that were."""
        size = len(payload)
        samples = size // self._frame_bytes
        if samples:
            blocks, block = self._blocks, None
            if blocks:
                block = blocks[-1]
            if block is not None and block.data is not None and len(block.data) < self._block_bytes:
                block.data += payload
                # `_hold`, which every frame would call.
                self.held_bytes += size
                self._budget.held_bytes += size
            else:
                if block is not None:
                    self._seal(block)
                blocks.append(_Block(self.end, bytearray(payload)))
                self._hold(size + _BLOCK_OVERHEAD_BYTES)
                if size >= self._block_bytes:
                    # Many decoded packets came as one payload, and nothing is added to its block.
                    self._seal(blocks[-1])
            self.end += samples
            # `is_scarce`, which every frame would ask.
            is_scarce = self._budget.held_bytes > self._budget.scarce_bytes
            self.is_to_wait = is_scarce or self.end - self.start >= self.capacity
        return samples

    def _seal(self, block: _Block) -> None:
        """Replace the audio of a block that is complete by its length, if it is digital silence.

        Each block is looked at once. That is cheap, because speech differs from silence within its
        first bytes.
        """
        data = block.data
        if data is None or data[0] or data[-1] or data != bytes(len(data)):
            return
        block.silent_samples, block.data = len(data) // self._frame_bytes, None
        self._hold(-len(data))
        blocks = self._blocks
        if len(blocks) > 1 and blocks[-1] is block and blocks[-2].data is None:
            blocks[-2].silent_samples += block.silent_samples
            blocks.pop()
            self._hold(-_BLOCK_OVERHEAD_BYTES)

    def _hold(self, size: int) -> None:
        self.held_bytes += size
        self._budget.held_bytes += size

    def read(self, position: int, limit: int) -> AudioChunk | None:
        """Return the audio from ``position`` on, at most ``limit`` samples; None if there is none.

        A position before the start reads from the start: what lay between is gone.
        """
        position = max(position, self.start)
        end = self.end
        if position >= end:
            return None
        return self._read(position, min(position + limit, end))

    def read_trimmed(self) -> AudioChunk | None:
        """Return the last audio before `start`, ``kept_samples`` at most, behind all that was dropped."""
        position = max(self._trimmed_from, self.start - self._kept_samples)
        return self._read(position, self.start) if position < self.start else None

    def _read(self, position: int, until: int) -> AudioChunk:
        index = bisect_right(self._blocks, position, key=_position) - 1
        parts: list[bytes | bytearray] = []
        size, at = self._frame_bytes, position
        while at < until:
            block = self._blocks[index]
            first, last = at - block.position, until - block.position
            if block.data is None:
                parts.append(bytes((min(last, block.silent_samples) - first) * size))
            else:
                parts.append(block.data[first * size : last * size])
            at += len(parts[-1]) // size
            index += 1
        return AudioChunk(position, until - position, b"".join(parts))

    def trim(self, position: int) -> int:
        """Take away what lies before ``position``, which a final has covered; return its samples."""
        position = min(position, self.end)
        taken = position - self.start
        if taken <= 0:
            return 0
        self.start = position
        self._free(position - self._kept_samples)
        return taken

    def drop(self, samples: int) -> int:
        """Give up the oldest ``samples``; return how many there were."""
        dropped = self.trim(self.start + samples)
        if dropped:
            self.forget_trimmed()
        return dropped

    def forget_trimmed(self) -> None:
        """Let nobody read any more what was taken away."""
        self._trimmed_from = self.start
        self._free(self.start)

    def _free(self, position: int) -> None:
        """Free the blocks that end before ``position``."""
        freed = gone = 0
        size = self._frame_bytes
        for block in self._blocks:
            data = block.data
            held = 0 if data is None else len(data)
            if block.position + (held // size or block.silent_samples) > position:
                break
            gone += 1
            freed += _BLOCK_OVERHEAD_BYTES + held
        if gone:
            del self._blocks[:gone]
            self._hold(-freed)
