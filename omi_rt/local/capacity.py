"""How many connections the recogniser can carry: decided from what its work was measured to cost.

Pure. The unit is the *share*: seconds of processor time for each second of audio. A stream in real
time takes so much of one core. What decoding costs is measured at the start, on recorded speech,
and then on every stream that runs; what is free of the cores, divided by the cost, is the room.
That is a forecast. Where it was wrong, because other programs want the processors too, the streams
fall behind, and then there is no room whatever the forecast says.
"""

from __future__ import annotations

import math

from attrs import define, field

from omi_rt.core.lateness import Lateness

USABLE_SHARE = 0.75
"""Of all cores: the rest is for the server, and for ends of utterances that come at the same time."""
SPEECH_MARGIN = 1.5
"""A stream that has not been measured yet counts as so much times the recording. Speech that the model
fits less well takes longer to search: espeak-ng's took 1.4 times as much as the recording."""
_PRIOR_SECONDS = 15.0
"""A stream counts as speech without a pause until its own audio outweighs this much of it."""
_PIECE_SECONDS = 12.0
"""The longest utterance. It is decoded in one go, and each channel may have one that ends now."""
_LEAST_SHARE = 0.05
_PIECE_MARGIN = 8.0
"""What repeats itself is decoded anew, and again behind its last word, and interims come on top."""
_HAIR = 1e-6
"""By which a sum of fractions may miss a whole number."""
_MEMORY_SECONDS = 60.0
"""Audio that lies so far back counts for 1/e of what comes now."""


@define(eq=False)
class StreamLoad:
    """What the work on one connection was measured to take."""

    channels: int
    lateness: Lateness = field(factory=Lateness)
    _audio_seconds: float = 0.0
    """Weighted: what lies back counts less."""
    _cpu_seconds: float = 0.0
    """Weighted in the same way."""
    _worked: float = 0.0
    _spent: float = 0.0

    def share(self, expected: float) -> float:
        """Cores that it takes; ``expected`` is the share of a channel of speech without a pause."""
        cpu = self._cpu_seconds + expected * self.channels * _PRIOR_SECONDS
        return cpu / (self._audio_seconds + _PRIOR_SECONDS)

    def record(self, worked: float, spent: float, behind: float) -> None:
        """Note how the work stands.

        Args:
            worked: seconds of audio that have been worked on since the connection began.
            spent: seconds of processor time that took.
            behind: seconds of audio that are still to be worked on.
        """
        audio, cpu = worked - self._worked, spent - self._spent
        self._worked, self._spent = worked, spent
        kept = math.exp(-audio / _MEMORY_SECONDS)
        self._audio_seconds = self._audio_seconds * kept + audio
        self._cpu_seconds = self._cpu_seconds * kept + cpu
        self.lateness.report(behind)


class Capacity:
    """The connections that run, and how many there may be.

    Args:
        cores: processors that may be used; a quota may make it a fraction.
        max_connections: that there may be in any case.
        is_fixed: so many are carried, whatever is measured.
    """

    def __init__(self, cores: float, max_connections: int, *, is_fixed: bool = False) -> None:
        self._is_fixed = is_fixed
        self.speech_share: float | None = None
        """What a channel of speech without a pause was measured to take, once it was."""
        self._cores = cores
        self.max_connections = max_connections
        self._loads: set[StreamLoad] = set()

    @property
    def is_full(self) -> bool:
        """Whether one more is to be refused.

        One more than are carried is not: it may take the place of one that was lost, or make ready to.
        """
        running = len(self._loads)
        if running >= self.max_connections:
            return True
        if self._is_fixed or running <= 1:
            return False
        if self.speech_share is None:
            return running > self._cores
        return self._free_share(self._shares()) < -_HAIR

    @property
    def is_measured(self) -> bool:
        """Whether ``carried`` is more than a guess."""
        return self._is_fixed or self.speech_share is not None

    def piece_cpu_seconds(self, load: StreamLoad) -> float:
        """Return the processor time that a worker may take for one piece of work on a stream."""
        # Not measured yet, a second of speech counts as a second: no slower model keeps up.
        share = 1.0 if self.speech_share is None else max(self.speech_share, _LEAST_SHARE)
        return load.channels * _PIECE_SECONDS * share * _PIECE_MARGIN

    def open(self, channels: int) -> StreamLoad:
        """A connection has begun, with so many channels that are recognised one by one."""
        load = StreamLoad(channels)
        self._loads.add(load)
        return load

    def close(self, load: StreamLoad) -> None:
        """A connection has ended."""
        self._loads.discard(load)

    @property
    def carried(self) -> int:
        """How many connections can be carried, with those that run; at least 1.

        The first is taken even where it is too much: its words come late, and that is said.
        """
        if self._is_fixed:
            return self.max_connections
        running = len(self._loads)
        if any(load.lateness.is_behind for load in self._loads):
            room = 0
        elif self.speech_share is None:
            # A worker has one thread: that much is known before anything has been measured.
            room = max(0, int(self._cores) - running)
        else:
            room = self._measured_room(self._expected)
        return min(max(1, running + room), self.max_connections)

    @property
    def _expected(self) -> float:
        """What a channel of a stream is expected to take, that has not been measured yet."""
        return (self.speech_share or 0.0) * SPEECH_MARGIN

    def _shares(self) -> list[float]:
        return [load.share(self._expected) for load in self._loads]

    def _free_share(self, shares: list[float]) -> float:
        return self._cores * USABLE_SHARE - sum(shares)

    def _measured_room(self, expected: float) -> int:
        shares = self._shares()
        channels = sum(load.channels for load in self._loads)
        # Where the streams that run cost more than was expected, so will the next.
        expected = max(expected, sum(shares) / channels if channels else 0.0)
        free = self._free_share(shares)
        return max(0, int(free / expected + _HAIR)) if expected > 0.0 else self.max_connections
