"""A connection's own clock, and the session's: what was sent when.

Deepgram's times mean something inside one connection only. A clock keeps *runs* (provider sample,
session position, samples), a new one at every discontinuity, and looks times up in them: never is one
offset added to everything.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import attrgetter
from typing import TYPE_CHECKING

from attrs import define

from omi_rt.core.voices import Place

if TYPE_CHECKING:
    from omi_rt.core.audio import AudioFormat

METADATA_TOLERANCE_SECONDS = 0.5
"""Deepgram's own count of the audio may differ from ours by this much and still mean all of it."""

_provider = attrgetter("provider")


@define
class Run:
    """A stretch without discontinuity on both clocks."""

    provider: int
    """First sample on the connection's clock."""
    position: int | None
    """Session position of that sample; None where the audio is not the session's (lead-in, filler)."""
    samples: int
    """The run's length per channel."""
    anchor: int | None = None
    """The number of the lead-in's anchor that it is; None where it is no anchor."""
    said_at: Place | None = None
    """Where in the session the first sample here was said, where the anchor is from the session."""

    @property
    def end(self) -> int:
        """The provider's sample just behind the run."""
        return self.provider + self.samples


class ConnectionClock:
    """The runs of one connection: its samples are counted from the first that went up."""

    __slots__ = ("_format", "first_position", "runs", "sent_position", "sent_samples")

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self.runs: list[Run] = []
        """In order; those that finals have covered are forgotten."""
        self.first_position = 0
        """Session position of the first session sample sent; 0 before it."""
        self.sent_samples = 0
        """Samples of everything that went up, which is the connection's own clock."""
        self.sent_position: int | None = None
        """Session position just behind the last session sample sent; None before the first."""

    @property
    def sent_seconds(self) -> float:
        """Everything that went up, in seconds."""
        return self.sent_samples / self._format.sample_rate

    def record_sent(self, position: int, samples: int) -> None:
        """Record session audio that goes up."""
        runs = self.runs
        if runs and self.sent_position == position and runs[-1].position is not None:
            runs[-1].samples += samples
        else:
            runs.append(Run(self.sent_samples, position, samples))
            if self.sent_position is None:
                self.first_position = position
        self.sent_samples += samples
        self.sent_position = position + samples

    def record_foreign(
        self, samples: int, anchor: int | None = None, said_at: Place | None = None
    ) -> None:
        """Record audio that goes up but is not session audio: an anchor, or silence."""
        self.runs.append(Run(self.sent_samples, None, samples, anchor, said_at))
        self.sent_samples += samples

    def position_of(self, seconds: float) -> int | None:
        """Session position of a time of this connection; None in audio that is not the session's."""
        sample = self.sample_of(seconds)
        run = self.run_at(sample)
        if run is None or run.position is None:
            return None
        return run.position + min(sample - run.provider, run.samples)

    def covers_all(self, metadata_duration: float | None) -> bool:
        """Tell whether the provider's count of seconds is all that was sent."""
        return (
            metadata_duration is not None
            and abs(metadata_duration - self.sent_seconds) <= METADATA_TOLERANCE_SECONDS
        )

    def sample_of(self, seconds: float) -> int:
        """The provider's sample at a time of this connection; that behind the last where it is later."""
        # A provider may say 1e300; nothing beyond what was sent can be meant.
        return min(round(min(seconds, 1e9) * self._format.sample_rate), self.sent_samples)

    def run_at(self, sample: int) -> Run | None:
        """The run that holds a provider's sample; the last run for what lies behind all of them."""
        runs = self.runs
        if runs and runs[-1].provider <= sample:
            # This is nearly always so, because a connection that is not lost has one run.
            return runs[-1]
        index = bisect_right(runs, sample, key=_provider) - 1
        return runs[index] if index >= 0 else None

    def position_of_start(self, sample: int) -> int:
        """Session position of the start of a stretch; 0 where that is not the session's audio."""
        run = self.run_at(sample)
        return 0 if run is None or run.position is None else run.position + sample - run.provider

    def position_of_end(self, sample: int) -> int | None:
        """Session position of the end of a stretch; in a foreign run, where the session's audio stopped."""
        runs = self.runs
        index = len(runs) - 1
        if index >= 0 and runs[index].provider >= sample:
            index = bisect_right(runs, sample - 1, key=_provider) - 1
        while index >= 0:
            run = runs[index]
            if run.position is not None:
                return run.position + min(sample - run.provider, run.samples)
            index -= 1
        return None

    def forget(self, until: int) -> None:
        """Forget the runs before the provider's sample ``until``, up to which finals cover all channels."""
        runs = self.runs
        while len(runs) > 1 and runs[1].provider <= until:
            # The run before stays, because an end that falls on the border is looked up in it.
            if runs[1].end > until:
                break
            del runs[0]
