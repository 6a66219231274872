"""How much audio goes up in one message.

A message costs the same whatever it holds, so a busy server sends fewer and larger ones. The one
place where this is decided:

* While the loop has slack, what has arrived goes up at once.
* As it fills, the least time between two messages of a stream grows to ``cap`` seconds, in
  proportion, from `SLACK_LOAD` on; at `FULL_LOAD` it is the cap.
* What has already waited, or arrived in one piece, goes up in messages of at most
  `MAX_MESSAGE_SECONDS`.
"""

from __future__ import annotations

from attrs import define

MAX_MESSAGE_SECONDS = 0.25
"""Deepgram advises 20 to 250 ms a message (its page on measuring streaming latency)."""
DEFAULT_CAP_SECONDS = 0.1
SLACK_LOAD = 0.5
FULL_LOAD = 0.9
_SMOOTHING_SECONDS = 0.5
"""Time constant of the load's moving average: longer than a burst, shorter than a stampede."""


def message_interval(load: float, cap: float) -> float:
    """Least time between two messages of one stream, in seconds, at ``load`` (0..1)."""
    if load <= SLACK_LOAD:
        return 0.0
    return cap * min(1.0, (load - SLACK_LOAD) / (FULL_LOAD - SLACK_LOAD))


@define
class LoadMeter:
    """The share of time that the event loop works rather than waits: a moving average, 0..1."""

    load: float = 0.0
    _since: float | None = None

    def waited(self, started: float, ended: float) -> None:
        """Note that the loop waited for I/O from ``started`` to ``ended`` (seconds, any clock)."""
        since = self._since if self._since is not None else started
        self._since = ended
        span = ended - since
        if span > 0:
            busy = max(0.0, started - since) / span
            weight = min(1.0, span / _SMOOTHING_SECONDS)
            self.load += (busy - self.load) * weight
