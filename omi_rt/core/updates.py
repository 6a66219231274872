"""What a session has to tell its client, as values: each client's face writes them in its own form.

Positions are session positions in samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import field, frozen

from omi_rt.core.values import Struct
from omi_rt.core.voices import Identity
from omi_rt.core.words import HeardWord

if TYPE_CHECKING:
    from omi_rt.core.asks import NotUnderstood
    from omi_rt.core.segments import Segment
    from omi_rt.core.speakers import Identified, Merged


@frozen
class AttributedWord:
    """A word, and who said it."""

    heard: HeardWord
    speaker: int
    """The session's number."""
    identity: Identity | None
    """Who that is, if it is known."""


class Final(Struct, frozen=True, gc=False):
    """What one final of the provider's brought that is new; it may be nothing."""

    channels: range
    """The channels that it speaks for."""
    covered: int | None
    """Up to where it covers them; None where it covers nothing."""
    numbered: Sequence[tuple[int, HeardWord]]
    """Its words, each with the session's number for who said it."""
    segments: Sequence[Segment]
    """The same words, grouped by speaker."""
    identities: Mapping[int, Identity] = {}
    """Who the speakers are, by number, as far as that is known."""
    speech_final: bool = False
    """Whether a pause ended it."""
    from_finalize: bool = False
    """Whether it answers the client's own `omi_rt.core.asks.Finalize`."""

    def __repr__(self) -> str:
        return f"Final({len(self.numbered)} words, covered={self.covered})"

    @property
    def words(self) -> list[AttributedWord]:
        """Its words, each with who said it. They are made when asked for: few clients get them."""
        whose = self.identities.get
        return [AttributedWord(word, number, whose(number)) for number, word in self.numbered]


@frozen
class Interim:
    """What the provider takes a stretch for that it has not finished; the next one replaces it."""

    channels: range
    covered: int | None
    """Up to where it has listened."""
    words: Sequence[AttributedWord] = field(repr=False)


@frozen
class SpeechBegan:
    """The provider has noticed speech."""

    channels: range
    position: int


@frozen
class SpeechPaused:
    """Nothing has been said for as long as the client wanted to know of."""

    channels: range
    last_word_end: int


@frozen
class Configured:
    """What became of a `omi_rt.core.asks.Configure`."""

    keyterms: tuple[str, ...] | None = field(default=None, repr=False)
    failure: str | None = None
    """Deepgram's code for the reason where it was not taken; None where it was."""


Event: TypeAlias = "dict[str, Any]"
"""One of `omi_rt.core.events`: an object with a ``type``."""

Update: TypeAlias = (
    "Final | Interim | SpeechBegan | SpeechPaused | Configured | Merged | Identified"
    " | NotUnderstood | Event"
)
