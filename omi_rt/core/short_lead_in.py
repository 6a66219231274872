"""The short lead-in: the session's own voices, in front of its audio on a connection that replaces a lost one.

The labels of the new connection are then known before the first word that follows. That word waits for
it, by what the lead-in takes at the rate at which audio goes up, so it is short or there is none: whom
it has no room for is heard again in the background.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from omi_rt.core.lead_in import JOINT_SECONDS, MIN_ANCHOR_SECONDS, LeadInPart
from omi_rt.core.voices import Place

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.lead_in import VoiceClips
    from omi_rt.core.voices import Voice
    from omi_rt.core.votes import Label, Vote

SHORT_SECONDS: Final = 6.0
"""A short lead-in has at most this length, silence included. As 2 s go up at once and the rest at 1.25
times real time, the session's audio waits for up to 3.2 s."""
SILENCE_SECONDS: Final = 0.5
"""This much silence follows each voice."""
VOICE_SECONDS: Final = 2.0
"""Of each voice so much is brought, or less where several share the room."""


class ShortLeadIn:
    """The clips of everybody who was heard for long enough, taken when it is made."""

    __slots__ = ("_parts", "seconds", "whose")

    def __init__(
        self, audio_format: AudioFormat, parts: list[LeadInPart], whose: list[Voice | None]
    ) -> None:
        self._parts = parts
        self.whose = whose
        """Whose voices they are; a part's ``anchor`` is a place in this list."""
        samples = sum(audio_format.samples_in(part.payload) for part in parts)
        self.seconds = audio_format.seconds(samples)
        """Its length, silence included."""

    def parts(self) -> Iterator[LeadInPart]:
        """Yield the voices, each with silence behind it, once: what has gone up is let go of."""
        self._parts.reverse()
        while self._parts:
            yield self._parts.pop()

    def tail(self) -> Iterator[LeadInPart]:
        """Yield nothing, because nobody speaks between this lead-in and the session's audio."""
        return iter(())

    def recognised(
        self, votes: Iterable[Vote], contested: Container[Label], channels: int
    ) -> float:
        """The share (0..1) of the voices that won a label which nobody else has too.

        Each voice counts once on each of the ``channels`` that the votes are of.
        """
        winners = [vote.winner for vote in votes if vote.winner is not None]
        own = sum(label not in contested for label in winners)
        return own / (len(self.whose) * channels)


def make_short_lead_in(voices: VoiceClips, audio_format: AudioFormat) -> ShortLeadIn | None:
    """Return a lead-in of all the session's voices; None where there are none, or too many for it."""
    speakers = voices.recognisable
    if not speakers:
        return None
    seconds = min(VOICE_SECONDS, SHORT_SECONDS / len(speakers) - SILENCE_SECONDS)
    if seconds < MIN_ANCHOR_SECONDS:
        return None
    joint, silence = (audio_format.silence(each) for each in (JOINT_SECONDS, SILENCE_SECONDS))
    parts: list[LeadInPart] = []
    for anchor, speaker in enumerate(speakers):
        for place, piece in enumerate(voices.last_of(speaker, seconds)):
            if place > 0:
                parts.append(LeadInPart(joint, None))
            said_at = Place(piece.position, piece.channel)
            voice = audio_format.on_all_channels(piece.payload)
            parts.append(LeadInPart(voice, anchor, said_at))
        parts.append(LeadInPart(silence, None))
    return ShortLeadIn(audio_format, parts, list(speakers))
