"""The first speech of a session, which its first lead-in brings again.

Whoever speaks before the stored voices have been heard is a number and no more. The first lead-in
lets the same connection hear the stored voices and this speech: what gets a known voice's label then
was said by that person, and what does not was not, whatever label it had before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from omi_rt.core.voices import Place

if TYPE_CHECKING:
    from collections.abc import Iterable

    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.backlog import Backlog
    from omi_rt.core.words import HeardWord

EARLY_SECONDS = 14.0
"""A lead-in holds at most this much early speech, which is what ten seconds of the user's profile leave
room for."""
TAIL_SECONDS = 5.0
"""At most this much early speech, said too late for the lead-in, goes up when the epoch takes over, and one
stretch more."""
CLEAR_CONFIDENCE = 0.6
"""A word counts as clear from this confidence (0 to 1) on."""
STRETCH_SECONDS = 3.0
"""A longer stretch is kept in pieces, so that a part of it can be sent."""
_GAP_SECONDS = 0.5
"""A pause between two words that is longer than this is not kept."""


@frozen
class Stretch:
    """Consecutive words of one speaker."""

    number: int
    """The number that the speaker had when it was heard."""
    place: Place
    payload: bytes = field(repr=False)
    """linear16 of its one channel."""


class EarlySpeech:
    """The first clear words of a session, in order: as many as a lead-in and its tail have room for."""

    __slots__ = ("_format", "_is_full", "_room", "held_bytes", "stretches")

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self._room = audio_format.samples(EARLY_SECONDS + TAIL_SECONDS)
        self._is_full = False
        self.stretches: list[Stretch] = []
        self.held_bytes = 0
        """Bytes of their audio."""

    def hear(self, words: Iterable[tuple[int, HeardWord]], backlog: Backlog) -> None:
        """Keep the audio of new words, each with its speaker's number, while it is there."""
        if self._is_full:
            return
        most = self._format.samples(STRETCH_SECONDS)
        longest_gap = self._format.samples(_GAP_SECONDS)
        run: list[HeardWord] = []
        speaker = 0
        for number, word in words:
            is_clear = word.confidence >= CLEAR_CONFIDENCE
            if run and not (
                is_clear
                and number == speaker
                and word.channel == run[0].channel
                and word.end - run[0].start <= most
                and word.start - run[-1].end <= longest_gap
            ):
                self._keep(speaker, run, backlog)
                run = []
            if is_clear:
                speaker = number
                run.append(word)
        if run:
            self._keep(speaker, run, backlog)

    def _keep(self, number: int, run: list[HeardWord], backlog: Backlog) -> None:
        start, end = run[0].start, run[-1].end
        # Once a stretch finds no room, nothing that follows it is kept, so that there is no hole.
        self._is_full |= end - start > self._room
        if self._is_full or end <= start:
            return
        chunk = backlog.read(start, end - start)
        if chunk is not None and (chunk.position, chunk.end) == (start, end):
            channel = run[0].channel
            payload = self._format.one_channel(chunk.payload, channel)
            self.stretches.append(Stretch(number, Place(start, channel), payload))
            self.held_bytes += len(payload)
            self._room -= end - start
