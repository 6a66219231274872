"""How often the sockets are read, what finals have of a turn, and so how much audio a message holds.

A read, a decode and a message cost much the same whatever they hold, so a busy server reads less
often, and each message holds more. The one place where this is decided:

* While the loop has slack, what has arrived is read and goes up at once.
* From `SLACK_LOAD` on nobody is read for a while after each turn of the poller, for ``cap`` seconds at
  `FULL_LOAD`. What is read of a stream then goes up as one message.
* What has waited for another reason goes up in messages of at most `MAX_MESSAGE_SECONDS`, and of at
  most `MAX_MESSAGE_BYTES`.

Reading seldom costs latency, so it begins late. Where it began at half load, p99 at 250 streams was 33 ms
for no less work. Where it begins at 0.96 instead of 0.9, p99 at 1,000 streams is 36 to 46 ms instead of
37 to 53.
"""

from __future__ import annotations

from attrs import define

MAX_MESSAGE_SECONDS = 0.25
"""A message holds at most this much audio, because Deepgram advises 20 to 250 ms a message (its page on
measuring streaming latency)."""
MAX_MESSAGE_BYTES = 65_536
"""A message of eight channels at 48 kHz would have 192 kB in that time. Many a WebSocket server takes no
more than this of one message, our own among them, and closes with 1009; what is sent again in the same
pieces would meet the same end for ever."""
SLACK_LOAD = 0.96
"""Up to this load (0..1) everything is read as soon as it has arrived."""
FULL_LOAD = 0.99
"""From this load (0..1) on the pause between two turns is the longest."""
BURST_SHARE = 0.25
"""Finals have this share of the time that the devices took in the same turn of the poller."""
PATIENT_SECONDS = 0.05
"""Where finals have been left over for this long, they have as much time as the devices."""
LEAST_FINALS_SECONDS = 0.0005
"""Finals have this much of a turn even where their share of it is less."""
_SMOOTHING_SECONDS = 0.5
"""This time constant of the load's moving average is longer than a burst and shorter than a stampede."""


def read_pause(load: float, cap: float) -> float:
    """Seconds to read nobody after a turn of the poller, at ``load`` (0..1); 0.0 means none."""
    if load <= SLACK_LOAD:
        return 0.0
    return cap * min(1.0, (load - SLACK_LOAD) / (FULL_LOAD - SLACK_LOAD)) ** 3


def finals_seconds(devices_seconds: float, left_over_seconds: float) -> float:
    """Seconds that finals have in a turn of the poller.

    A final costs ten times the work of a frame, and where many sessions began at once, theirs come
    all at once too. The frames between them then have the larger share, until the finals have waited
    for so long that they would starve.

    Args:
        devices_seconds: what the devices took in the same turn.
        left_over_seconds: for how long there have always been finals left over.
    """
    share = BURST_SHARE if left_over_seconds < PATIENT_SECONDS else 1.0
    return max(share * devices_seconds, LEAST_FINALS_SECONDS)


@define
class LoadMeter:
    """The share of time that the event loop works rather than waits: a moving average, 0..1."""

    load: float = 0.0

    def note(self, worked: float, span: float) -> None:
        """Note that in the last ``span`` seconds the loop worked for ``worked`` of them."""
        if span > 0:
            self.load += (min(1.0, worked / span) - self.load) * min(1.0, span / _SMOOTHING_SECONDS)
