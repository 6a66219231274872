"""Turns what epochs hear into what the device gets: segments, and corrections of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omi_rt.core import events
from omi_rt.core.deepgram import UNKNOWN_SPEAKER
from omi_rt.core.lead_in import VoiceClips
from omi_rt.core.speakers import Merged, Speakers
from omi_rt.core.transcript import make_segments
from omi_rt.core.votes import heard_again

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.backlog import Backlog
    from omi_rt.core.epoch import LeadInWord
    from omi_rt.core.speakers import EpochLabels, Identified
    from omi_rt.core.voices import Voice
    from omi_rt.core.votes import Vote
    from omi_rt.core.words import HeardWord


class Narrator:
    """A session's transcript in the making.

    Args:
        session_id: told to the device.
        audio_format: of the session.
        send: takes a message for the device: a list of segments, or an event.
        new_id: makes a segment's id.
        keeps_voices: whether clips of the speakers are kept, for later lead-ins.
    """

    __slots__ = (
        "_format",
        "_keeps_voices",
        "_new_id",
        "_send",
        "_speakers",
        "identities_known_from",
        "session_id",
        "voices",
    )

    def __init__(
        self,
        session_id: str,
        audio_format: AudioFormat,
        *,
        send: Callable[[Any], None],
        new_id: Callable[[], str],
        keeps_voices: bool,
    ) -> None:
        self.session_id = session_id
        self.voices = VoiceClips(audio_format)
        self.identities_known_from: int | None = None
        """Session position, or None: they never were."""
        self._speakers = Speakers()
        self._format = audio_format
        self._send = send
        self._new_id = new_id
        self._keeps_voices = keeps_voices

    def narrate(self, labels: EpochLabels, words: list[HeardWord], backlog: Backlog) -> None:
        """Send the words of one final, while their audio is still in the backlog."""
        if words and labels.pending:
            self._tell(self._speakers.confirm(labels, words, self._format.sample_rate))
            self._note_known(labels, words[0].start)
        numbered = [
            (self._speakers.number_of(labels, word.channel, word.label), word) for word in words
        ]
        if self._keeps_voices:
            self.voices.identified = self._speakers.identified
            contested = labels.contested
            pure = [
                (number, word)
                for number, word in numbered
                if (word.channel, word.label) not in contested and word.label != UNKNOWN_SPEAKER
            ]
            self.voices.hear(pure, backlog)
        segments = make_segments(numbered, self._speakers.identity_of, self._new_id)
        self._send([segment.as_json(self._format) for segment in segments])
        for segment in segments:
            self._speakers.remember(segment)

    def learn(
        self,
        labels: EpochLabels,
        votes: Sequence[Vote],
        whose: Sequence[Voice | None],
        position: int,
    ) -> None:
        """Learn from an epoch's lead-in what its labels mean, and tell what that corrects."""
        self._tell(self._speakers.resolve(labels, votes, whose))
        self._note_known(labels, position)

    def recall(
        self, labels: EpochLabels, words: Iterable[LeadInWord], whose: Sequence[Voice | None]
    ) -> None:
        """Take words of the session that a primed epoch has heard again since it took over."""
        again = [(whose[word.anchor], heard_again(word)) for word in words]
        self._tell(
            self._speakers.recall(
                labels,
                [(who, word) for who, word in again if isinstance(who, int) and word is not None],
            )
        )

    def _tell(self, news: Iterable[Merged | Identified]) -> None:
        for told in news:
            if isinstance(told, Merged):
                self.voices.merge(told.source, told.into)
                self._send(events.speakers_merged(told))
            else:
                self._send(events.speaker_identified(told))

    def _note_known(self, labels: EpochLabels, position: int) -> None:
        if self.identities_known_from is None and self._speakers.recognises(labels):
            self.identities_known_from = position
            self.voices.forget_early()
