"""What an exchange with the provider tells its owner, as values."""

from __future__ import annotations

from attrs import frozen

from omi_rt.core.deepgram import Message, Results
from omi_rt.core.timeline import Heard


@frozen
class FinalHeard:
    """A final has come. The audio of its words is still in the backlog."""

    results: Results
    heard: Heard


@frozen
class Progressed:
    """A final, or the summary at the end, has moved a watermark."""


@frozen
class SilencePassed:
    """A watermark has moved over audio that has no final and for which none is awaited any more."""


@frozen
class Worked:
    """The provider is busy and has got on with its work."""

    seconds_behind: float
    """Seconds of audio that it has received and has not worked through."""


@frozen
class Unused:
    """A message has come that brings nothing."""

    message: Message


News = FinalHeard | Progressed | SilencePassed | Worked | Unused
"""What an exchange tells its owner."""

PROGRESSED = Progressed()
SILENCE_PASSED = SilencePassed()
