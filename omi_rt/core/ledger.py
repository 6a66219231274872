"""The account of every sample that a session received.

``received = finalised + gated + pending + lost``, at any instant. The four that are kept here are
counted where they happen, and ``pending`` is the sum over the backlog's blocks, so the equation can
fail: if it does, there is a bug, and it shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, frozen

if TYPE_CHECKING:
    from omi_rt.core.audio import AudioFormat


@frozen
class Balance:
    """The ledger at one instant, in samples per channel."""

    received: int
    finalised: int
    gated: int
    pending: int
    lost: int

    @property
    def is_exact(self) -> bool:
        """Whether every sample is accounted for, once."""
        return self.received == self.finalised + self.gated + self.pending + self.lost

    def in_seconds(self, audio_format: AudioFormat) -> dict[str, float]:
        """The same in seconds, as clients get it."""
        return {
            "received": audio_format.seconds(self.received),
            "finalised": audio_format.seconds(self.finalised),
            "gated": audio_format.seconds(self.gated),
            "pending": audio_format.seconds(self.pending),
            "lost": audio_format.seconds(self.lost),
        }


@define
class Ledger:
    """Counters in samples per channel; see `Balance` for the equation."""

    received: int = 0
    finalised: int = 0
    """Audio that is done with. The next four counters are parts of it that no final covered."""
    finalised_as_silence: int = 0
    """Audio in which nothing sounded and about which the provider said nothing."""
    finalised_unanswered: int = 0
    """Audio for which one channel got no answer while others did."""
    finalised_by_metadata: int = 0
    """Audio that only the provider's summary at the end counted."""
    finalised_by_client: int = 0
    """Audio that went to no provider, because its client transcribes by itself."""
    gated: int = 0
    """Audio that was withheld as silence."""
    lost: int = 0
    """Audio that was given up without a final."""

    def balance(self, pending: int) -> Balance:
        """The account, with ``pending`` as the backlog counts it."""
        return Balance(self.received, self.finalised, self.gated, pending, self.lost)


@define
class Cost:
    """Samples per channel sent to the provider, by purpose. Their sum is all that was sent."""

    live: int = 0
    """Session audio that went up for the first time."""
    replay: int = 0
    """Session audio that went up again after a connection was lost."""
    overlap: int = 0
    """Session audio that went up again at a planned switch."""
    lead_in: int = 0
    """Anchors and the silence between them."""
    filler: int = 0
    """Silence that keeps a connection alive before there is audio."""
    sent_until: int = 0
    """Session position up to which every sample has gone up, or was given up."""

    def record_sent(self, start: int, end: int, *, planned: bool) -> None:
        """Count session audio that goes up, from session position ``start`` to ``end``.

        What goes up again is overlap where ``planned`` says that a switch is the reason, else replay.
        """
        if start >= self.sent_until:
            self.live += end - start
            self.sent_until = end
            return
        again = min(end, self.sent_until) - start
        self.live += end - start - again
        if planned:
            self.overlap += again
        else:
            self.replay += again
        self.sent_until = max(self.sent_until, end)

    @property
    def total(self) -> int:
        """All that was sent."""
        return self.live + self.replay + self.overlap + self.lead_in + self.filler

    def in_seconds(self, audio_format: AudioFormat) -> dict[str, float]:
        """The same in seconds."""
        return {
            "live": audio_format.seconds(self.live),
            "replay": audio_format.seconds(self.replay),
            "overlap": audio_format.seconds(self.overlap),
            "lead_in": audio_format.seconds(self.lead_in),
            "filler": audio_format.seconds(self.filler),
        }
