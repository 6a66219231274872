"""The lead-in: the voices that an epoch hears before the session's own audio."""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from omi_rt.core.voices import Voice

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.backlog import Backlog
    from omi_rt.core.words import HeardWord


SILENCE_SECONDS = 1.0
"""After each anchor, so that no word reaches over its border."""
SPEAKER_SECONDS = 3.0
"""Of each speaker heard in the session, at most."""
LEAD_IN_SECONDS = 24.0
"""Of all voices together, at most, without the silence between them."""
ALLOWANCE_RATE = 20.0 / 60.0
"""Seconds of lead-in that a session may send for each second that it lasts, in the long run."""
ALLOWANCE_SECONDS = 30.0
"""Of lead-in that a session may send at once."""
ALLOWANCE_TO_BEGIN_SECONDS = 15.0
"""Of the allowance that must be there for another lead-in to begin; what it takes more is owed."""
MIN_ANCHOR_SECONDS = 1.4
"""A shorter one could hardly win a label: that takes 1 s of words (`votes.WINNING_SECONDS`)."""
CLEAR_CONFIDENCE = 0.6
MAX_SPEAKERS = 8
"""Clips are kept of the speakers heard last: as many as a lead-in has room for."""
_LEAST_SHARE_SECONDS = 2.4
_PIECE_SECONDS = 1.2
"""Longer stretches are kept in pieces, so that a part of a clip can be sent."""
RENEWAL_SECONDS = 10.0
"""For so long a full clip stays as it is: copying every word cost a third of what a final costs."""
_JOINT_SECONDS = 0.1
"""Of silence where two stretches of a clip are joined, so that their words do not run together."""


@frozen
class Anchor:
    """A stretch of one voice."""

    who: Voice | None
    """None is a voice of nobody in the session, by which the provider shows whether it tells voices
    apart: the contrast."""
    payload: bytes = field(repr=False)
    """linear16 in the session's format."""


@frozen
class LeadInPart:
    """Audio to send before the session's own."""

    payload: bytes = field(repr=False)
    anchor: int | None
    """Number of the anchor that it is, or None for silence."""


class LeadIn:
    """The voices of one epoch, in the order in which they go up: stored ones, then the session's.

    The clips of the session's speakers are taken when their turn comes, not before: whoever has
    spoken meanwhile is among them. Each voice is let go of when it has gone up.
    """

    __slots__ = ("_contrast", "_format", "_known", "_voices", "whose")

    def __init__(
        self,
        known: list[Anchor],
        voices: VoiceClips,
        audio_format: AudioFormat,
        known_seconds: float = LEAD_IN_SECONDS,
    ) -> None:
        """Take the stored voices, ``known_seconds`` of each at most."""
        most = audio_format.samples(known_seconds) * audio_format.frame_bytes
        self._known = deque(
            Anchor(anchor.who, anchor.payload[:most]) for anchor in known if anchor.who is not None
        )
        self._contrast = next((anchor for anchor in known if anchor.who is None), None)
        self._voices = voices
        self._format = audio_format
        self.whose: list[Voice | None] = []
        """Whose voices have gone up; a part's ``anchor`` is a place in this list."""

    def __bool__(self) -> bool:
        """Whether there is any voice to hear."""
        return bool(self._known or self._voices.clips(self._format.samples(LEAD_IN_SECONDS)))

    def parts(self) -> Iterator[LeadInPart]:
        """Yield the anchors, each with silence behind it: `LEAD_IN_SECONDS` of voices at most."""
        room = self._format.samples(LEAD_IN_SECONDS)
        while self._known:
            anchor = self._known.popleft()
            samples = self._format.samples_in(anchor.payload)
            if samples <= room:
                room -= samples
                yield from self._part(anchor.who, anchor.payload)
        # One at a time: who begins to speak while the others go up is heard as well.
        while clips := self._voices.clips(room, without=self.whose):
            number, pieces = clips[0]
            payload = self._voices.joined(pieces)
            room -= self._format.samples_in(payload)
            yield from self._part(number, payload)
        if self._contrast is not None and self._needs_contrast():
            yield from self._part(None, self._contrast.payload)

    def _needs_contrast(self) -> bool:
        """Whether all voices so far may be one person's.

        Two known people are two; of three speakers of the session and a stored voice hardly all
        are one person.
        """
        known = sum(not isinstance(who, int) for who in self.whose)
        return known < 2 and len(self.whose) < 4

    def misses_somebody(self) -> bool:
        """Whether somebody unknown was heard whom this came too early for, or had no room for."""
        room = self._format.samples(LEAD_IN_SECONDS)
        return any(
            number not in self.whose and number not in self._voices.identified
            for number, _ in self._voices.clips(room)
        )

    def _part(self, who: Voice | None, payload: bytes) -> Iterator[LeadInPart]:
        self.whose.append(who)
        yield LeadInPart(payload, len(self.whose) - 1)
        yield LeadInPart(self._format.silence(SILENCE_SECONDS), None)


@define
class _Clip:
    """What is kept of one speaker."""

    pieces: list[bytes] = field(factory=list, repr=False)
    fresh_until: int = 0
    """Session position, before which it is full and needs no renewal."""


class VoiceClips:
    """Up to `SPEAKER_SECONDS` of each speaker heard last: whole words, clear and recent ones.

    "Recent" is exact to `RENEWAL_SECONDS` of a speaker's words for each piece of a clip.
    """

    __slots__ = ("_clips", "_format", "identified")

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self.identified: set[int] = set()
        """Speakers who are found again by their stored voice: they come last."""
        self._clips: OrderedDict[int, _Clip] = OrderedDict()

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
        clip = self._clips.pop(source, None)
        if clip is not None:
            kept = self._clips.setdefault(into, _Clip())
            self._clips.move_to_end(into)
            kept.pieces = self._latest(
                [*clip.pieces, *kept.pieces], self._format.samples(SPEAKER_SECONDS)
            )

    def clips(
        self, room: int, without: Container[Voice | None] = ()
    ) -> list[tuple[int, list[bytes]]]:
        """The pieces of each speaker, those heard last first: ``room`` samples at most in all.

        Speakers in ``without`` are left out. Short room is shared, as long as each share is long enough to win a label.
        """
        least = self._format.samples(MIN_ANCHOR_SECONDS)
        speakers = [
            number
            for number, clip in self._clips.items()
            if number not in without and self._length(clip.pieces) >= least
        ]
        speakers.reverse()
        speakers.sort(key=lambda number: number in self.identified)
        speakers = speakers[: room // self._format.samples(_LEAST_SHARE_SECONDS)]
        if not speakers:
            return []
        share = min(self._format.samples(SPEAKER_SECONDS), room // len(speakers))
        return [(n, self._latest(self._clips[n].pieces, share)) for n in speakers]

    def joined(self, pieces: list[bytes]) -> bytes:
        """The pieces as one stretch of audio."""
        return self._format.silence(_JOINT_SECONDS).join(pieces)

    def _keep(self, speaker: int | None, run: list[HeardWord], backlog: Backlog) -> None:
        assert speaker is not None
        clip = self._clips.setdefault(speaker, _Clip())
        self._clips.move_to_end(speaker)
        if len(self._clips) > MAX_SPEAKERS:
            self._clips.popitem(last=False)
        if run[0].start < clip.fresh_until:
            return
        most, full = self._format.samples(_PIECE_SECONDS), self._format.samples(SPEAKER_SECONDS)
        while run:
            # Whole words, as many as a piece holds.
            start = run[0].start
            piece = [word for word in run if word.end - start <= most] or run[:1]
            run = run[len(piece) :]
            end = piece[-1].end
            chunk = backlog.read(start, end - start) if end > start else None
            if chunk is not None and (chunk.position, chunk.end) == (start, end):
                pieces = [*clip.pieces, self._one_voice(chunk.payload, piece[0].channel)]
                clip.pieces = self._latest(pieces, full)
                if len(clip.pieces) < len(pieces):
                    clip.fresh_until = end + self._format.samples(RENEWAL_SECONDS)

    def _latest(self, pieces: list[bytes], most: int) -> list[bytes]:
        """The last pieces that, joined, have at most ``most`` samples."""
        first = len(pieces)
        while first > 0 and self._length(pieces[first - 1 :]) <= most:
            first -= 1
        return pieces[first:]

    def _length(self, pieces: list[bytes]) -> int:
        """Samples of the pieces, joined."""
        joints = max(0, len(pieces) - 1) * self._format.samples(_JOINT_SECONDS)
        return sum(self._format.samples_in(piece) for piece in pieces) + joints

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
