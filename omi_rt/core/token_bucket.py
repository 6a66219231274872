"""Token buckets: how fast audio goes up, and how often the process dials."""

from __future__ import annotations

from attrs import define

UPSTREAM_RATE = 1.25
"""Deepgram takes audio at no more than 1.25 times real time (its on-prem release notes 220831)."""
UPSTREAM_DEPTH_SECONDS = 2.0
"""This much audio may go up at once after a pause."""
_ROUNDING = 1e-6
"""Fewer missing tokens than this are not waited for, because adding so short a delay to the time may not
change it at all."""


@define
class TokenBucket:
    """Allows ``rate`` tokens a second, and ``depth`` at once. Time is passed in, in seconds."""

    rate: float
    depth: float
    _level: float
    _filled_at: float

    @classmethod
    def full(cls, rate: float, depth: float, now: float) -> TokenBucket:
        """A bucket that starts full."""
        return cls(rate, depth, depth, now)

    def delay(self, tokens: float, now: float) -> float:
        """Seconds until ``tokens`` (at most ``depth``) can be taken; 0.0 means now."""
        self._fill(now)
        missing = min(tokens, self.depth) - self._level
        return missing / self.rate if missing > _ROUNDING else 0.0

    def try_take(self, tokens: float, now: float) -> bool:
        """Take ``tokens`` if they are there; return whether they were."""
        level = self._level
        if now > self._filled_at:
            # `_fill`, which every frame would call.
            level += (now - self._filled_at) * self.rate
            if level > self.depth:
                level = self.depth
            self._level, self._filled_at = level, now
        if tokens - level > _ROUNDING and self.depth - level > _ROUNDING:
            return False
        self._level = level - tokens
        return True

    def take(self, tokens: float) -> None:
        """Take ``tokens``, after a ``delay`` of 0.0."""
        self._level -= tokens

    def reserve(self, now: float) -> float:
        """Take one token, even one that is still to come; return the seconds until it is there."""
        self._fill(now)
        self._level -= 1.0
        return max(0.0, -self._level / self.rate)

    def give_back(self) -> None:
        """Return a reserved token that is not needed after all."""
        self._level = min(self.depth, self._level + 1.0)

    def _fill(self, now: float) -> None:
        if now > self._filled_at:
            self._level = min(self.depth, self._level + (now - self._filled_at) * self.rate)
            self._filled_at = now
