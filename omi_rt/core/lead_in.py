"""The lead-in: the voices that an epoch hears before the session's own audio."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING

from attrs import define, evolve, field, frozen

from omi_rt.core.audio import BYTES_PER_SAMPLE
from omi_rt.core.budget import BacklogBudget
from omi_rt.core.early import (
    CLEAR_CONFIDENCE,
    EARLY_SECONDS,
    STRETCH_SECONDS,
    TAIL_SECONDS,
    EarlySpeech,
)
from omi_rt.core.voices import Place, Voice

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.backlog import Backlog
    from omi_rt.core.early import Stretch
    from omi_rt.core.words import HeardWord


SILENCE_SECONDS = 1.0
"""This much silence follows each anchor, so that no word reaches over its border."""
TAIL_SILENCE_SECONDS = 0.3
"""This much silence lies between the early speech that goes up last and the session's audio, which must
not wait for long."""
SPEAKER_SECONDS = 3.0
"""A lead-in has at most this much of a speaker heard in the session; early speech may be longer."""
KEPT_SECONDS = 7.0
"""A clip of a speaker has at most this length. It is more than a lead-in takes, so that a voice that is
named can be stored, for which 5 s are the least."""
LEAD_IN_SECONDS = 24.0
"""All voices of a lead-in together have at most this length, without the silence between them."""
ALLOWANCE_RATE = 20.0 / 60.0
"""A session may send this many seconds of lead-in for each second that it lasts, in the long run."""
ALLOWANCE_SECONDS = 30.0
"""A session may send this many seconds of lead-in at once."""
ALLOWANCE_TO_BEGIN_SECONDS = 15.0
"""Another lead-in begins only when this many seconds may be sent; what it takes beyond them is owed."""
MIN_ANCHOR_SECONDS = 1.4
"""A shorter anchor could hardly win a label, which takes 1 s of words (`votes.WINNING_SECONDS`)."""
MAX_SPEAKERS = 8
"""Clips are kept of this many speakers, as many as a lead-in has room for: of those heard last, and
first of those whom no stored voice finds again."""
_LEAST_SHARE_SECONDS = 2.4
"""A lead-in brings a speaker's clip only where this many seconds of its room fall to that speaker."""
_PIECE_SECONDS = 1.2
"""A longer stretch is kept in pieces, so that a part of a clip can be sent."""
_NOBODY: frozenset[int] = frozenset()
RENEWAL_SECONDS = 10.0
"""A full clip stays as it is for this long, because copying every word cost a third of what a final
costs."""
JOINT_SECONDS = 0.1
"""This much silence lies where two stretches are joined, so that their words do not run together."""


@frozen
class Anchor:
    """A stretch of one voice."""

    who: Voice | None
    """Whose voice it is. None stands for the contrast: the voice of nobody in the session, by which the
    provider shows whether it tells voices apart."""
    payload: bytes = field(repr=False)
    """linear16 in the session's format."""


@frozen
class LeadInPart:
    """Audio to send before the session's own."""

    payload: bytes = field(repr=False)
    anchor: int | None
    """The voice's place in `LeadIn.whose`, or None for silence."""
    said_at: Place | None = None
    """Where in the session its first sample was said; None where it is not from the session."""

    def said_at_sample(self, sample: int) -> Place | None:
        """Where in the session the sample with this number was said, counted from 0."""
        place = self.said_at
        return place if place is None else evolve(place, position=place.position + sample)


class LeadIn:
    """The voices of one epoch, in the order in which they go up: stored ones, then the session's.

    In a session's first lead-in the session's voices are its early speech (`omi_rt.core.early`), as far
    as there is room. Everybody who is not in that for long enough comes as a clip. A clip is taken only
    when its turn comes, so that whoever has spoken meanwhile is among them. Each voice is let go of when
    it has gone up.
    """

    __slots__ = (
        "_contrast",
        "_early_room",
        "_early_sent",
        "_format",
        "_heard",
        "_known",
        "_room",
        "_stretches",
        "_voices",
        "whose",
    )

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
        self._room = audio_format.samples(LEAD_IN_SECONDS)
        self._heard: Counter[Voice | None] = Counter()
        self._stretches = voices.early_stretches
        self._early_room = audio_format.samples(EARLY_SECONDS)
        self._early_sent = 0
        self.whose: list[Voice | None] = []
        """Whose voices have gone up; a part's ``anchor`` is a place in this list."""

    def __bool__(self) -> bool:
        """Whether there is any voice to hear."""
        return bool(self._known or self._voices.clips(self._format.samples(LEAD_IN_SECONDS)))

    def parts(self) -> Iterator[LeadInPart]:
        """Yield the voices, each with silence behind it: `LEAD_IN_SECONDS` of voices at most."""
        while self._known:
            anchor = self._known.popleft()
            if self._format.samples_in(anchor.payload) <= self._room:
                yield self._part(anchor.who, anchor.payload)
                yield self._silence(SILENCE_SECONDS)
        if self._stretches:
            # The contrast comes before the early speech, which also brings again what is said meanwhile.
            yield from self._contrast_parts()
        yield from self._session_parts()
        yield from self._contrast_parts()

    def tail(self) -> Iterator[LeadInPart]:
        """Yield the early speech said since then, right before the session's audio.

        It is `TAIL_SECONDS` at most, and one stretch more that the lead-in had room for in part.
        """
        left = min(self._early_room, self._format.samples(STRETCH_SECONDS))
        self._room = self._early_room = left + self._format.samples(TAIL_SECONDS)
        yield from self._early_parts(TAIL_SILENCE_SECONDS)
        self._voices.forget_early()
        self._stretches = ()

    def misses_somebody(self) -> bool:
        """Whether somebody unknown was heard for whom this lead-in was too early, or had no room."""
        room, enough = self._format.samples(LEAD_IN_SECONDS), self._heard_enough()
        return any(
            number not in enough and number not in self._voices.identified
            for number, _ in self._voices.clips(room)
        )

    def _session_parts(self) -> Iterator[LeadInPart]:
        yield from self._early_parts(SILENCE_SECONDS)
        # Clips are taken one at a time, so that whoever begins to speak meanwhile is heard as well.
        while clips := self._voices.clips(self._room, without=self._heard_enough()):
            number, pieces = clips[0]
            for place, piece in enumerate(pieces):
                if place > 0:
                    self._room -= self._format.samples(JOINT_SECONDS)
                    yield self._silence(JOINT_SECONDS)
                payload = self._format.on_all_channels(piece.payload)
                yield self._part(number, payload, Place(piece.position, piece.channel))
            yield self._silence(SILENCE_SECONDS)

    def _contrast_parts(self) -> Iterator[LeadInPart]:
        if self._contrast is not None and self._needs_contrast():
            yield self._part(None, self._contrast.payload)
            yield self._silence(SILENCE_SECONDS)
            self._contrast = None

    def _early_parts(self, silence_seconds: float) -> Iterator[LeadInPart]:
        """Yield the early speech that has not gone up, as far as there is room."""
        stretches, first = self._stretches, self._early_sent
        while self._early_sent < len(stretches):
            stretch = stretches[self._early_sent]
            payload = self._format.on_all_channels(stretch.payload)
            pause = 0 if self._early_sent == first else self._format.samples(JOINT_SECONDS)
            needed = pause + self._format.samples_in(payload)
            room = self._room - self._reserved({each.number for each in stretches})
            if needed > min(room, self._early_room):
                break
            self._early_room -= needed
            if pause:
                self._room -= pause
                yield self._silence(JOINT_SECONDS)
            yield self._part(stretch.number, payload, stretch.place)
            self._early_sent += 1
        if self._early_sent > first:
            yield self._silence(silence_seconds)

    def _reserved(self, early: set[int]) -> int:
        """Samples that must stay for those who are not heard in the early speech."""
        clips = self._voices.clips(self._room, without=early | set(self.whose))
        return sum(self._voices.length(pieces) for _, pieces in clips)

    def _heard_enough(self) -> set[Voice | None]:
        """The voices that have gone up for long enough to win a label."""
        least = self._format.samples(MIN_ANCHOR_SECONDS)
        return {who for who, samples in self._heard.items() if samples >= least}

    def _needs_contrast(self) -> bool:
        """Whether all voices so far may be one person's.

        Two known people are certainly two. Three speakers of the session and a stored voice are hardly
        all one person.
        """
        heard = self._heard_enough() | {stretch.number for stretch in self._stretches}
        known = sum(not isinstance(who, int) for who in heard)
        return known < 2 and len(heard) < 4

    def _part(self, who: Voice | None, payload: bytes, said_at: Place | None = None) -> LeadInPart:
        if who not in self.whose:
            self.whose.append(who)
        samples = self._format.samples_in(payload)
        self._heard[who] += samples
        # The contrast takes no room from the others, because without it they would be of no use.
        self._room -= 0 if who is None else samples
        return LeadInPart(payload, self.whose.index(who), said_at)

    def _silence(self, seconds: float) -> LeadInPart:
        return LeadInPart(self._format.silence(seconds), None)


@define
class _Piece:
    """Consecutive words of a speaker.

    Nobody changes a piece, but it is not declared frozen: that would cost 0.5 µs for each.
    """

    payload: bytes = field(repr=False)
    """linear16 of its one channel."""
    position: int
    """Session position of its first sample."""
    channel: int
    """The channel of the session on which it was said."""


@define
class _Clip:
    """What is kept of one speaker."""

    pieces: list[_Piece] = field(factory=list)
    fresh_until: int = 0
    """Session position up to which the clip is full and needs no renewal."""


class VoiceClips:
    """Up to `KEPT_SECONDS` of each speaker heard last, made of whole words that are clear and recent.

    Once a clip is full it takes new words only every `RENEWAL_SECONDS`, so "recent" is no more exact
    than that.

    What is kept counts in the ``budget`` of all sessions' audio. While little of that is left clips take
    nothing new: words come first.
    """

    __slots__ = ("_budget", "_clips", "_early", "_format", "held_bytes", "identified")

    def __init__(self, audio_format: AudioFormat, budget: BacklogBudget | None = None) -> None:
        self._format = audio_format
        self._budget = BacklogBudget() if budget is None else budget
        self.held_bytes = 0
        """Bytes of audio that are kept; the budget has the sum over all sessions."""
        self.identified: AbstractSet[int] = _NOBODY
        """Speakers whom a stored voice finds again anyway, so that they come last."""
        self._clips: OrderedDict[int, _Clip] = OrderedDict()
        self._early: EarlySpeech | None = EarlySpeech(audio_format)

    @property
    def early_stretches(self) -> Sequence[Stretch]:
        """The session's first speech, as long as a first lead-in may still bring it; it may grow."""
        return () if self._early is None else self._early.stretches

    def forget_early(self) -> None:
        """Let go of the session's first speech, which has been heard again or never will be."""
        if self._early is not None:
            self._hold(-self._early.held_bytes)
        self._early = None

    def forget_all(self) -> None:
        """Let go of everything, because the session has ended."""
        self._clips.clear()
        self._early = None
        self._hold(-self.held_bytes)

    def hear(self, words: Sequence[tuple[int, HeardWord]], backlog: Backlog) -> None:
        """Keep the audio of new words, each with its speaker's number, while it is there."""
        if self._early is not None:
            before = self._early.held_bytes
            self._early.hear(words, backlog)
            self._hold(self._early.held_bytes - before)
        if self._budget.is_scarce:
            return
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
        """Join the clips of two numbers that turned out to be one voice."""
        clip = self._clips.pop(source, None)
        if clip is not None:
            kept = self._clips.setdefault(into, _Clip())
            self._clips.move_to_end(into)
            self._hold(-_bytes_of(clip.pieces))
            pieces = [*clip.pieces, *kept.pieces]
            self._keep_pieces(kept, self._latest(pieces, self._format.samples(KEPT_SECONDS)))

    def clips(
        self, room: int, without: Container[Voice | None] = ()
    ) -> list[tuple[int, list[_Piece]]]:
        """The pieces of each speaker, those heard last first, ``room`` samples at most in all.

        Speakers in ``without`` are left out. Where room is short it is shared, as long as each share is
        long enough to win a label.
        """
        speakers = [number for number in self.recognisable if number not in without]
        speakers.sort(key=lambda number: number in self.identified)
        speakers = speakers[: room // self._format.samples(_LEAST_SHARE_SECONDS)]
        if not speakers:
            return []
        share = min(self._format.samples(SPEAKER_SECONDS), room // len(speakers))
        return [(n, self._latest(self._clips[n].pieces, share)) for n in speakers]

    def last_of(self, speaker: int, seconds: float) -> list[_Piece]:
        """The last ``seconds`` of what is kept of a speaker; the first piece may begin inside a word."""
        pieces = self._clips[speaker].pieces
        first = len(pieces) - 1
        while first > 0 and self.length(pieces[first:]) < self._format.samples(seconds):
            first -= 1
        last = pieces[first:]
        excess = self.length(last) - self._format.samples(seconds)
        if excess <= 0:
            return last
        begin = evolve(
            last[0],
            payload=last[0].payload[excess * BYTES_PER_SAMPLE :],
            position=last[0].position + excess,
        )
        return [begin, *last[1:]] if begin.payload else last[1:]

    @property
    def recognisable(self) -> list[int]:
        """The speakers who were heard for long enough to win a label, those heard last first."""
        least = self._format.samples(MIN_ANCHOR_SECONDS)
        return [n for n, clip in reversed(self._clips.items()) if self.length(clip.pieces) >= least]

    def recording(self, speaker: int) -> bytes:
        """What is kept of a speaker, as one channel of linear16 with short pauses; empty for nothing."""
        clip = self._clips.get(speaker)
        pieces = [] if clip is None else clip.pieces
        joint = bytes(BYTES_PER_SAMPLE * self._format.samples(JOINT_SECONDS))
        return joint.join(each.payload for each in pieces)

    def length(self, pieces: Sequence[_Piece]) -> int:
        """The number of samples that the pieces have once they are joined."""
        joints = max(0, len(pieces) - 1) * self._format.samples(JOINT_SECONDS)
        return _bytes_of(pieces) // BYTES_PER_SAMPLE + joints

    def _keep(self, speaker: int | None, run: list[HeardWord], backlog: Backlog) -> None:
        assert speaker is not None
        clip = self._clips.setdefault(speaker, _Clip())
        self._clips.move_to_end(speaker)
        if len(self._clips) > MAX_SPEAKERS:
            self._forget_one()
        if run[0].start < clip.fresh_until:
            return
        most, full = self._format.samples(_PIECE_SECONDS), self._format.samples(KEPT_SECONDS)
        while run:
            # A piece takes whole words, as many as it holds.
            start = run[0].start
            piece = [word for word in run if word.end - start <= most] or run[:1]
            run = run[len(piece) :]
            end = piece[-1].end
            chunk = backlog.read(start, end - start) if end > start else None
            if chunk is not None and (chunk.position, chunk.end) == (start, end):
                channel = piece[0].channel
                voice = self._format.one_channel(chunk.payload, channel)
                pieces = [*clip.pieces, _Piece(voice, start, channel)]
                self._keep_pieces(clip, self._latest(pieces, full))
                if len(clip.pieces) < len(pieces):
                    clip.fresh_until = end + self._format.samples(RENEWAL_SECONDS)

    def _forget_one(self) -> None:
        """Make room: a speaker whom a stored voice finds again goes first, else the one silent longest."""
        others = list(self._clips)[:-1]
        gone = self._clips.pop(next((n for n in others if n in self.identified), others[0]))
        self._hold(-_bytes_of(gone.pieces))

    def _keep_pieces(self, clip: _Clip, pieces: list[_Piece]) -> None:
        """Let a clip have ``pieces``, some of which it may have already."""
        self._hold(_bytes_of(pieces) - _bytes_of(clip.pieces))
        clip.pieces = pieces

    def _hold(self, size: int) -> None:
        self.held_bytes += size
        self._budget.held_bytes += size

    def _latest(self, pieces: list[_Piece], most: int) -> list[_Piece]:
        """The last pieces that have at most ``most`` samples once they are joined."""
        first = len(pieces)
        while first > 0 and self.length(pieces[first - 1 :]) <= most:
            first -= 1
        return pieces[first:]


def _bytes_of(pieces: Sequence[_Piece]) -> int:
    return sum([len(piece.payload) for piece in pieces])
