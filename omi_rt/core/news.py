"""What an exchange with the provider tells its owner, as values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from omi_rt.core.deepgram import Message, Results, SpeechStarted, UtteranceEnd
from omi_rt.core.values import Struct

if TYPE_CHECKING:
    from omi_rt.core.heard import Heard


class FinalHeard(Struct, frozen=True, gc=False):
    """A final has come. The audio of its words is still in the backlog."""

    results: Results
    heard: Heard
    at: float
    """When it came, in seconds of the caller's clock."""


@frozen
class InterimHeard:
    """What a stretch sounds like that is not final yet."""

    results: Results


@frozen
class SpeechNoticed:
    """Speech has begun or paused, as the client had asked to be told."""

    message: SpeechStarted | UtteranceEnd
    position: int
    """Session position, in samples: where speech began, or where the last word ended."""


@frozen
class ConfigureAnswered:
    """The provider has taken the client's options, or has not."""

    failure: str | None


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


News = (
    FinalHeard
    | InterimHeard
    | SpeechNoticed
    | ConfigureAnswered
    | Progressed
    | SilencePassed
    | Worked
    | Unused
)
"""What an exchange tells its owner."""

PROGRESSED = Progressed()
SILENCE_PASSED = SilencePassed()
