"""The lead-in: the voices that an epoch hears before the session's own audio."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING

from attrs import field, frozen

from omi_rt.core.speakers import Identity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.backlog import Backlog
    from omi_rt.core.epoch import HeardWord

SILENCE_SECONDS = 1.0
"""After each anchor, so that no word reaches over its border."""
SPEAKER_SECONDS = 3.0
"""Of each speaker heard in the session, at most."""
LEAD_IN_SECONDS = 24.0
"""Of all voices together, at most, without the silence between them."""
MIN_ANCHOR_SECONDS = 1.0
"""A shorter one could win no label (`omi_rt.core.speakers.WINNING_SECONDS`)."""
CLEAR_CONFIDENCE = 0.6
MAX_SPEAKERS = 8
"""Clips are kept of the speakers heard last: as many as a lead-in has room for."""
_JOINT_SECONDS = 0.1
"""Of silence where two stretches of a clip are joined, so that their words do not run together."""


@frozen
class Anchor:
    """A stretch of one voice."""

    who: Identity | int
    """Somebody known, or the number of a speaker of this session."""
    payload: bytes = field(repr=False)
    """linear16 in the session's format."""


@frozen
class LeadInPart:
    """Audio to send before the session's own."""

    payload: bytes = field(repr=False)
    anchor: int | None
    """Number of the anchor that it is, or None for silence."""


def lead_in_parts(anchors: Iterable[Anchor], audio_format: AudioFormat) -> tuple[LeadInPart, ...]:
    """Lay the anchors out, each with silence behind it."""
    silence = audio_format.silence(SILENCE_SECONDS)
    parts: list[LeadInPart] = []
    for number, anchor in enumerate(anchors):
        parts += [LeadInPart(anchor.payload, number), LeadInPart(silence, None)]
    return tuple(parts)


def fit_lead_in(
    known: Iterable[Anchor], speakers: Iterable[Anchor], audio_format: AudioFormat
) -> list[Anchor]:
    """Choose what a lead-in has room for: known voices first, in their order, then the speakers.

    Both are in the order of their weight; what does not fit as a whole is left out.
    """
    room = audio_format.samples(LEAD_IN_SECONDS)
    least = audio_format.samples(MIN_ANCHOR_SECONDS)
    fitting = []
    for anchor in (*known, *speakers):
        samples = audio_format.samples_in(anchor.payload)
        if least <= samples <= room:
            fitting.append(anchor)
            room -= samples
    return fitting


class VoiceClips:
    """Up to `SPEAKER_SECONDS` of each speaker heard last: whole words, the most recent clear ones."""

    __slots__ = ("_clips", "_format")

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self._clips: OrderedDict[int, list[bytes]] = OrderedDict()

    def hear(self, words: Iterable[tuple[int, HeardWord]], backlog: Backlog) -> None:
        """Keep the audio of new words, each with its speaker's number, while it is there."""
        run: list[HeardWord] = []
        speaker: int | None = None
        for number, word in words:
            if run and (number != speaker or word.channel != run[-1].channel):
                self._keep(speaker, run, backlog)
                run = []
            speaker = number
            if word.confidence >= CLEAR_CONFIDENCE:
                run.append(word)
            elif run:
                self._keep(speaker, run, backlog)
                run = []
        if run:
            self._keep(speaker, run, backlog)

    def merge(self, source: int, into: int) -> None:
        """Two numbers turned out to be one voice."""
        clips = self._clips.pop(source, None)
        if clips is not None:
            self._store(into, [*clips, *self._clips.get(into, [])])

    def anchors(self) -> list[Anchor]:
        """One anchor for each speaker, those heard last first."""
        joint = self._format.silence(_JOINT_SECONDS)
        return [
            Anchor(number, joint.join(clips)) for number, clips in reversed(self._clips.items())
        ]

    def _keep(self, speaker: int | None, run: list[HeardWord], backlog: Backlog) -> None:
        assert speaker is not None
        most = self._format.samples(SPEAKER_SECONDS)
        end = run[-1].end
        # Whole words from the end: the first that still fits begins the stretch.
        start = next((word.start for word in run if end - word.start <= most), end)
        chunk = backlog.read(start, end - start) if end > start else None
        if chunk is None or chunk.position != start or chunk.end != end:
            return
        payload = self._one_voice(chunk.payload, run[-1].channel)
        self._store(speaker, [*self._clips.get(speaker, []), payload])

    def _store(self, speaker: int, clips: list[bytes]) -> None:
        room = self._format.samples(SPEAKER_SECONDS) * self._format.frame_bytes
        kept: list[bytes] = []
        for clip in reversed(clips):
            room -= len(clip)
            if room < 0:
                break
            kept.append(clip)
            room -= self._format.samples(_JOINT_SECONDS) * self._format.frame_bytes
        self._clips[speaker] = kept[::-1]
        self._clips.move_to_end(speaker)
        while len(self._clips) > MAX_SPEAKERS:
            self._clips.popitem(last=False)

    def _one_voice(self, payload: bytes, channel: int) -> bytes:
        """The one channel's audio on all channels: an anchor goes on every channel."""
        channels = self._format.channels
        if channels == 1:
            return payload
        interleaved = array("h", payload)
        voice = interleaved[channel::channels]
        for each in range(channels):
            interleaved[each::channels] = voice
        return interleaved.tobytes()
