"""Turns what epochs hear into what the device gets: segments, and corrections of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omi_rt.core.deepgram import UNKNOWN_SPEAKER
from omi_rt.core.lead_in import VoiceClips
from omi_rt.core.segments import make_segments
from omi_rt.core.speakers import Merged, Speakers
from omi_rt.core.updates import AttributedWord, Final, Interim
from omi_rt.core.votes import heard_again

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.backlog import Backlog
    from omi_rt.core.budget import BacklogBudget
    from omi_rt.core.heard import Heard, LeadInWord
    from omi_rt.core.segments import Segment
    from omi_rt.core.speakers import EpochLabels, Identified
    from omi_rt.core.updates import Update
    from omi_rt.core.voices import Identity, Voice
    from omi_rt.core.votes import Label, Vote
    from omi_rt.core.words import HeardWord


class Transcript:
    """A session's transcript in the making.

    Args:
        session_id: told to the device.
        audio_format: of the session.
        tell: takes what there is to tell the client.
        new_id: makes a segment's id.
        keeps_voices: whether clips of the speakers are kept, for later lead-ins.
        budget: in which they count; None where nothing bounds them.
    """

    __slots__ = (
        "_format",
        "_keeps_voices",
        "_new_id",
        "_speakers",
        "_tell_client",
        "identities_known_from",
        "session_id",
        "voices",
    )

    def __init__(
        self,
        session_id: str,
        audio_format: AudioFormat,
        *,
        tell: Callable[[Update], None],
        new_id: Callable[[], str],
        keeps_voices: bool,
        budget: BacklogBudget | None = None,
    ) -> None:
        self.session_id = session_id
        self.voices = VoiceClips(audio_format, budget)
        self.identities_known_from: int | None = None
        """Session position, or None: they never were."""
        self._speakers = Speakers()
        self._format = audio_format
        self._tell_client = tell
        self._new_id = new_id
        self._keeps_voices = keeps_voices
        if not keeps_voices:
            self.voices.forget_early()

    def narrate(
        self,
        labels: EpochLabels,
        heard: Heard,
        backlog: Backlog,
        *,
        speech_final: bool = False,
        from_finalize: bool = False,
    ) -> None:
        """Tell what one final brought, while the audio of its words is still in the backlog.

        Args:
            labels: of its epoch.
            heard: what it brought that is new, which may be nothing.
            backlog: of the session.
            speech_final: whether a pause ended it.
            from_finalize: whether it answers the client's own Finalize.
        """
        words = heard.words
        if words and labels.pending:
            self._tell(self._speakers.confirm(labels, words, self._format.sample_rate))
            self._note_known(labels, words[0].start)
        numbered = self._numbered(labels, words)
        if self._keeps_voices and words:
            self.voices.identified = self._speakers.identified
            contested = labels.contested
            pure = [
                (number, word)
                for number, word in numbered
                if (word.channel, word.label) not in contested and word.label != UNKNOWN_SPEAKER
            ]
            self.voices.hear(pure, backlog)
        known = self._speakers.identities
        segments = make_segments(numbered, known.get, self._new_id)
        self._tell_client(
            Final(
                channels=heard.channels,
                covered=heard.covered,
                numbered=numbered,
                segments=segments,
                identities=self._speakers.identities_of(numbered) if known else {},
                speech_final=speech_final,
                from_finalize=from_finalize,
            )
        )
        for segment in segments:
            self._speakers.remember(segment)

    def last_segments(self, most: int) -> list[Segment]:
        """Return the last segments as they stand after all corrections, ``most`` of them at most."""
        return self._speakers.last_segments(most)

    def _numbered(
        self, labels: EpochLabels, words: Sequence[HeardWord]
    ) -> list[tuple[int, HeardWord]]:
        """Give each word the number of its speaker, which is looked up where the speaker changes."""
        numbered: list[tuple[int, HeardWord]] = []
        label: int | None = None
        number = channel = 0
        for word in words:
            if word.label != label or word.channel != channel:
                label, channel = word.label, word.channel
                number = self._speakers.number_of(labels, channel, label)
            numbered.append((number, word))
        return numbered

    def preview(self, labels: EpochLabels, heard: Heard) -> None:
        """Tell what one interim result brought; nothing of it is remembered."""
        numbers = self._speakers.expect(labels, ((w.channel, w.label) for w in heard.words))
        words = []
        for word in heard.words:
            number = numbers[word.channel, word.label]
            words.append(AttributedWord(word, number, self._speakers.identity_of(number)))
        if words:
            self._tell_client(Interim(heard.channels, heard.covered, words))

    def tell(self, update: Update) -> None:
        """Tell the client what comes from its provider and is no transcript."""
        self._tell_client(update)

    def assign(self, number: int, identity: Identity, segment_ids: Sequence[str]) -> int | None:
        """Let a speaker be somebody, as the client says, and tell what that corrects.

        Returns the number that the speaker has then; None where there is no such speaker.
        """
        told = self._speakers.assign(number, identity, segment_ids)
        if told is None:
            return None
        self._tell(told)
        return self._speakers.current(number)

    def introduce(self, labels: EpochLabels, label: Label, identity: Identity) -> None:
        """Let a label be somebody whom nobody in the session was taken for, and tell what that corrects."""
        self._tell(self._speakers.introduce(labels, label, identity))

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
            self._tell_client(told)

    def _note_known(self, labels: EpochLabels, position: int) -> None:
        if self.identities_known_from is None and self._speakers.recognises(labels):
            self.identities_known_from = position
            self.voices.forget_early()
