"""What of a session's audio is received, finalised or lost: backlog, watermarks and ledger as one.

The three only ever change together, through the methods here, so none can run ahead of another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from omi_rt.core.audio import AudioChunk
from omi_rt.core.backlog import Backlog
from omi_rt.core.ledger import Balance, Ledger
from omi_rt.core.sound import SoundFinder
from omi_rt.core.words import SaidWords

if TYPE_CHECKING:
    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.budget import BacklogBudget

OVERLAP_SECONDS = 0.5
"""This much audio before the watermark goes up again with a new epoch, so that a word that lies across
the watermark is heard whole; it is longer than most words."""


@frozen
class Gap:
    """Audio that was given up, in session positions."""

    start: int
    end: int

    def joined(self, later: Gap) -> Gap:
        """Return this gap and a ``later`` one that follows it at once, as one."""
        return Gap(self.start, later.end)


class Coverage:
    """The session's audio and how far it is transcribed.

    A channel's *watermark* is the session position up to which finals cover it. The backlog is
    trimmed at the lowest.
    """

    __slots__ = (
        "_watermarks",
        "audio_format",
        "backlog",
        "ledger",
        "said",
        "trusts_ends",
    )

    def __init__(
        self,
        audio_format: AudioFormat,
        backlog_seconds: float,
        budget: BacklogBudget | None = None,
    ) -> None:
        self.audio_format = audio_format
        self.backlog = Backlog(
            audio_format,
            audio_format.samples(backlog_seconds),
            budget,
            audio_format.samples(OVERLAP_SECONDS),
        )
        self.ledger = Ledger()
        self.said = [SaidWords() for _ in range(audio_format.channels)]
        """The words delivered last, for each channel."""
        self.trusts_ends = True
        """Whether the provider's finals are believed to cover what they say."""
        self._watermarks = [0] * audio_format.channels

    @property
    def watermark(self) -> int:
        """The lowest watermark: where a new epoch begins."""
        return min(self._watermarks)

    @property
    def high_watermark(self) -> int:
        """The highest watermark: no channel has words before it still to come from a new epoch."""
        return max(self._watermarks)

    @property
    def is_full(self) -> bool:
        """Whether the backlog has no more room."""
        backlog = self.backlog
        return backlog.end - backlog.start >= backlog.capacity

    def overlap_before(self, origin: int, most: int) -> list[AudioChunk]:
        """The last audio before ``origin``, `OVERLAP_SECONDS` at most, in chunks of ``most`` samples."""
        overlap, size = self.backlog.read_trimmed(), self.audio_format.frame_bytes
        if overlap is None or overlap.end != origin:
            return []
        return [
            AudioChunk(
                position,
                min(most, origin - position),
                overlap.payload[(position - overlap.position) * size :][: most * size],
            )
            for position in range(overlap.position, origin, most)
        ]

    def watermark_of(self, channel: int) -> int:
        """The watermark of one channel (0-based)."""
        return self._watermarks[channel]

    def receive(self, payload: bytes) -> int:
        """Take audio from the device; return its samples."""
        samples = self.backlog.append(payload)
        self.ledger.received += samples
        return samples

    def finalise(self, channel: int, position: int) -> bool:
        """Raise a channel's watermark, which never goes back; return whether that moved it."""
        if position <= self._watermarks[channel]:
            return False
        self._watermarks[channel] = min(position, self.backlog.end)
        mark = self.watermark
        if mark > self.backlog.start:
            self.ledger.finalised += self.backlog.trim(mark)
        return True

    def finalise_silence(self, channel: int, position: int) -> bool:
        """Raise a channel's watermark over audio that does not sound and has no final."""
        before = self.ledger.finalised
        moved = self.finalise(channel, position)
        self.ledger.finalised_as_silence += self.ledger.finalised - before
        return moved

    def finalise_unanswered(self, channel: int, position: int) -> bool:
        """Raise the watermark of a channel that gets no answer to where the others' are."""
        before = self.ledger.finalised
        moved = self.finalise(channel, position)
        self.ledger.finalised_unanswered += self.ledger.finalised - before
        return moved

    def finalise_by_metadata(self, position: int) -> bool:
        """Raise all watermarks because the provider's summary counts the audio before ``position``."""
        before = self.ledger.finalised
        moved = [self.finalise(c, position) for c in range(self.audio_format.channels)]
        self.ledger.finalised_by_metadata += self.ledger.finalised - before
        return any(moved)

    def finalise_by_client(self) -> None:
        """Raise all watermarks over what has come, because the client transcribes it by itself."""
        before = self.ledger.finalised
        for channel in range(self.audio_format.channels):
            self.finalise(channel, self.backlog.end)
        self.ledger.finalised_by_client += self.ledger.finalised - before
        self.backlog.forget_trimmed()

    def pass_by(self, position: int) -> Gap | None:
        """Give up what lies before ``position``, because no connection gives an answer for it.

        Returns what is lost by that, or None where nothing sounded, so that nothing is lost.
        """
        start, end = self.backlog.start, min(position, self.backlog.end)
        if end <= start:
            return None
        if self._has_unheard_sound(end):
            return self._lose(end - start)
        for channel in range(self.audio_format.channels):
            self.finalise_silence(channel, end)
        return None

    def drop_excess(self) -> Gap | None:
        """Give up the oldest audio beyond the capacity; return what went, if anything did."""
        return self._lose(self.backlog.excess)

    def lose_pending(self, sent_until: int = 0) -> Gap | None:
        """Give up all that has no final, because the session is over and nothing more will come.

        Audio that a provider had, before session position ``sent_until`` in samples, is not lost if
        nothing sounds in it.
        """
        start, sent_until = self.backlog.start, min(sent_until, self.backlog.end)
        if sent_until > start and not self._has_unheard_sound(sent_until):
            for channel in range(self.audio_format.channels):
                self.finalise_silence(channel, sent_until)
        gap = self._lose(self.backlog.end - self.backlog.start)
        self.backlog.forget_trimmed()
        return gap

    def balance(self) -> Balance:
        """The ledger at this instant."""
        return self.ledger.balance(self.backlog.pending)

    def _has_unheard_sound(self, until: int) -> bool:
        """Whether anything sounds before ``until`` on a channel that has no final for it."""
        return any(
            SoundFinder(self.audio_format, channel).first_sound(self.backlog, mark, until)
            is not None
            for channel, mark in enumerate(self._watermarks)
        )

    def _lose(self, samples: int) -> Gap | None:
        start = self.backlog.start
        lost = self.backlog.drop(samples)
        if not lost:
            return None
        self.ledger.lost += lost
        end = start + lost
        self._watermarks = [max(mark, end) for mark in self._watermarks]
        return Gap(start, end)
