"""One connection to Deepgram, as the session sees it: what was sent, and what its answers mean.

Deepgram's times and speaker labels mean something inside one connection only; `omi_rt.core.clock` turns
the times into positions on the session's clock.

The rules that keep a transcript whole over several epochs:

* Only the current epoch's finals are applied. Fixing the next epoch's origin ends this one.
* A channel's *origin* is its watermark when the epoch begins, and stays there when silence is passed
  before the first final: only what an earlier epoch had is a replay. A word belongs to the side of the
  origin on which its *middle* lies, and a start before the origin is moved to it. A word that lies
  across the origin and was not delivered before is new on either side: a connection may have been
  cut between a final that ended inside a word and the one that would have brought it.
* Behind the origin a word is dropped only where it comes again: the same word on the same audio, or
  any word on audio that has both a final and a delivered word. Finals may overlap, end inside a word,
  and bring a word that begins before them.
* Finals of one channel keep their order; a stretch between two of them counts as finalised.
* A final is clamped to what was sent. One that claims more than that covers what its words cover. So do
  all of a session once a new word has come for audio that an earlier final claimed: where answers are
  late, what a final claims had been sent long before, and nothing else shows that it claims too much.
* A word that reaches beyond its own final does not move the watermark: how far it really reaches is
  less sure than where the next one begins. A new epoch hears it again, whole, and knows it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from attrs import evolve

from omi_rt.core.clock import ConnectionClock, Run
from omi_rt.core.deepgram import UNKNOWN_SPEAKER
from omi_rt.core.heard import Discard, Heard, LeadInWord, counted
from omi_rt.core.values import replace
from omi_rt.core.words import SAID_SECONDS, HeardWord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.coverage import Coverage
    from omi_rt.core.deepgram import Results, Word
    from omi_rt.core.words import SaidWords


SAME_SECONDS = 0.1
"""The times of a word that comes again differ by less than this; two words are further apart."""
PIECE_SECONDS = 1.0
"""Where a connection's audio begins inside a word, what is heard of that word ends within this time; a
word that ends later is one whose beginning the provider puts too early."""
CLAIM_TOLERANCE_SECONDS = 0.1
"""A final may claim this much more than was sent by rounding alone."""
CONTRADICTION_SECONDS = 1.0
"""A new word that ends this long before the claimed end of an earlier final shows that the final ended
sooner. Borders that are no more than untidy lie closer."""

MAX_LEAD_IN_WORDS = 4000
"""So many words of a connection's lead-in count at most: 8 channels with 30 s of voices have 1,000."""


class Timeline(ConnectionClock):
    """The clock of one connection, and the words that were said at its times."""

    __slots__ = (
        "_has_times",
        "_heard_until",
        "_labels",
        "_lacked_times",
        "_origins",
        "_reached",
        "lead_in_words",
    )

    def __init__(self, audio_format: AudioFormat) -> None:
        super().__init__(audio_format)
        self._labels: dict[int, int] = {}
        self._heard_until = [0] * audio_format.channels
        self._origins: list[int] = []
        self._reached: list[int] = []
        self._has_times = False
        self._lacked_times = False
        self.lead_in_words: list[LeadInWord] = []
        """Words heard in anchors that nobody has taken yet."""

    @property
    def lacks_times(self) -> bool:
        """Whether finals came, and none of them said usably what it covers."""
        return self._lacked_times and not self._has_times

    def heard_until(self, channel: int) -> int:
        """How far on the connection's clock finals have come, in samples."""
        return self._heard_until[channel]

    def begin(self, coverage: Coverage) -> None:
        """Fix the origins, because the session's audio goes up from now on. Only the first call counts."""
        if not self._origins:
            self._origins = [coverage.watermark_of(c) for c in range(self._format.channels)]
            self._reached = list(self._origins)

    def take_lead_in_words(self, heard: Heard) -> list[LeadInWord]:
        """Return the words heard in anchors and forget them, once all of them have been heard.

        That is so when a final brings or covers any session audio, because that follows the anchors.
        """
        if heard.covered is None and not heard.words:
            return []
        taken = [word for word in self.lead_in_words if word.channel in heard.channels]
        self.lead_in_words = [w for w in self.lead_in_words if w.channel not in heard.channels]
        return taken

    def hear(self, results: Results, coverage: Coverage) -> Heard:
        """Take one final: return the words that are new, and what it covers.

        Each word is returned once, provided that `Heard.finalise`, which remembers it, is called before the
        next final is heard. A message for a channel that the session does not have brings nothing. `begin`
        must have been called before session audio goes up.
        """
        plain = self._hear_plainly(results, coverage)
        return self._hear_carefully(results, coverage) if plain is None else plain

    def _hear_plainly(self, results: Results, coverage: Coverage) -> Heard | None:
        """Take a final as nearly all are; None, and nothing is taken, where it has to be looked at.

        It lies in the last run, ends within what was sent, and is believed to, and all of its words are
        new beyond doubt. This is the same as each rule in turn, in a third of the calls.
        """
        channel, channels = self._channels(results)
        run = self.runs[-1] if self.runs else None
        start, duration = results.start, results.duration
        if (
            run is None
            or run.position is None
            or start is None
            or duration is None
            or not (coverage.trusts_ends and self._origins)
            or channel >= len(self._origins)
        ):
            return None
        rate = self._format.sample_rate
        end = (start + duration) * rate
        if end > self.sent_samples or end < run.provider + 1 or start * rate < run.provider:
            return None
        provider_end, offset = round(end), run.position - run.provider
        said_end = coverage.said[channel].end
        words = self._located_plainly(results.channel.alternatives[0].words, channel, said_end)
        if words is None:
            return None
        covered = provider_end + offset
        self._has_times = True
        for each in channels:
            if provider_end > self._heard_until[each]:
                self._heard_until[each] = provider_end
            if covered > self._reached[each]:
                self._reached[each] = covered
        if len(self.runs) > 1:
            self.forget(min(self._heard_until))
        return Heard(words, channels, covered, remember_from=round(start * rate) + offset)

    def _hear_carefully(self, results: Results, coverage: Coverage) -> Heard:
        """Take a final by each rule in turn."""
        channel, channels = self._channels(results)
        if channel >= self._format.channels:
            unheard = counted(Discard.NO_CHANNEL, len(results.words))
            return Heard([], range(0), None, discarded=unheard)
        end = results.end
        self._has_times |= end is not None
        self._lacked_times |= end is None
        claims_unsent = self._claims_unsent(end)
        believed = coverage.trusts_ends and not claims_unsent
        provider_end = self._provider_end(results, end if believed else None, channel)
        covered = self.position_of_end(provider_end)
        start, said = self.sample_of(results.start or 0.0), coverage.said[channel]
        bounds = self.position_of_start(start), covered or 0
        new, discarded = self._sifted(results, channel, start, coverage, bounds)
        if coverage.trusts_ends and self._contradicts(new, channel):
            coverage.trusts_ends = False
            claims_unsent = True
            provider_end = self._provider_end(results, None, channel)
            covered = self.position_of_end(provider_end)
        # Words are remembered as they were heard, not as they are moved below, to be known when they come again.
        said.add(new, bounds)
        words = [self._moved_to_origin(word) for word in new]
        for each in channels:
            self._heard_until[each] = max(self._heard_until[each], provider_end)
            if covered is not None:
                self._reached[each] = max(self._reached[each], covered)
        said.forget(
            (words[0].start if words else covered or 0) - self._format.samples(SAID_SECONDS)
        )
        self.forget(min(self._heard_until))
        return Heard(words, channels, covered, discarded or None, claims_unsent)

    def _located_plainly(
        self, words: Sequence[Word], channel: int, said_end: int
    ) -> list[HeardWord] | None:
        """Locate words that are new beyond doubt; None where any of them has to be looked at, or none is.

        Such are those of nearly every final: each has its times, lies in the last run, and begins
        behind the origin, all that was delivered, and all that an earlier final can be wrong about.
        For twelve words that takes 11 µs, where each rule in turn takes 39.
        """
        run = self.runs[-1]
        if not words or run.position is None:
            return None
        rate, most = self._format.sample_rate, self.sent_samples
        offset = run.position - run.provider
        label = self._labels.get(channel)
        contradicted = self._reached[channel] - CONTRADICTION_SECONDS * rate
        least = max(run.position, self._origins[channel], said_end, contradicted) - offset
        located = []
        for word in words:
            text = (word.punctuated_word or word.word).strip()
            if word.start is None or word.end is None or not text:
                return None
            if word.speaker is not None:
                label = word.speaker
            # Before they are rounded: a time may be as long as a float can be.
            if label is None or word.start >= word.end or word.end * rate > most:
                return None
            start, end = round(word.start * rate), round(word.end * rate)
            if start < least or start == end:
                return None
            confidence = 1.0 if word.confidence is None else word.confidence
            located.append(
                HeardWord(
                    text,
                    start + offset,
                    end + offset,
                    channel,
                    label,
                    confidence,
                    word.word,
                    word.language,
                )
            )
        assert label is not None
        self._labels[channel] = label
        return located

    def _sifted(
        self,
        results: Results,
        channel: int,
        start: int,
        coverage: Coverage,
        bounds: tuple[int, int],
    ) -> tuple[list[HeardWord], Counter[Discard]]:
        """Locate words one by one; returns those that are new, and counts the others by reason."""
        located, discarded = self._located(results, channel, start)
        said, watermark = coverage.said[channel], coverage.watermark_of(channel)
        new = []
        for heard in located:
            if isinstance(heard, LeadInWord):
                if len(self.lead_in_words) < MAX_LEAD_IN_WORDS:
                    self.lead_in_words.append(heard)
                continue
            reason = self._reason_to_discard(
                heard, said, bounds, watermark, is_bare=results.is_bare
            )
            if reason is None:
                new.append(heard)
            else:
                discarded[reason] += 1
        return new, discarded

    def preview(self, results: Results, coverage: Coverage) -> Heard:
        """Locate an interim result: the words that a final may bring later, and how far they reach.

        Nothing of it is remembered. Words that have been delivered are left out.
        """
        channel, channels = self._channels(results)
        if channel >= self._format.channels or not self._origins:
            return Heard([], range(0), None)
        labels = dict(self._labels)
        located, _ = self._located(results, channel, self.sample_of(results.start or 0.0))
        self._labels = labels
        watermark, said = coverage.watermark_of(channel), coverage.said[channel]
        words = [
            self._moved_to_origin(word)
            for word in located
            if isinstance(word, HeardWord)
            and word.start + word.end >= 2 * max(watermark, self._origins[channel])
            and not said.covers(word)
        ]
        end = results.end
        covered = None if end is None else self.position_of_end(self.sample_of(end))
        return Heard(words, channels, covered)

    def _channels(self, results: Results) -> tuple[int, range]:
        """The channel of a result, and those that it speaks for."""
        several = self._format.channels > 1
        channel, count = results.channel_index or (
            (self._format.channels, 0) if several else (0, 1)
        )
        # One result for several channels means that the provider mixed them down.
        return channel, (
            range(self._format.channels) if count == 1 else range(channel, channel + 1)
        )

    def _moved_to_origin(self, word: HeardWord) -> HeardWord:
        start = max(word.start, self._origins[word.channel])
        return word if start == word.start else replace(word, start=start, end=max(start, word.end))

    def _reason_to_discard(
        self,
        word: HeardWord,
        said: SaidWords,
        bounds: tuple[int, int],
        watermark: int,
        *,
        is_bare: bool,
    ) -> Discard | None:
        origin, middle = self._origins[word.channel], word.start + word.end
        tolerance, piece = self._format.samples(SAME_SECONDS), self._format.samples(PIECE_SECONDS)
        if middle < 2 * origin:
            # Where the epoch's audio begins inside a word, the piece that was heard is no word of its own.
            begun = self.first_position
            is_piece = word.start <= begun + tolerance // 2 and word.end <= begun + piece
            is_whole = not is_piece and not is_bare
            is_across = word.end > origin and said.end > 0 and is_whole
            is_known = (
                word.end < said.horizon
                or said.has_like(word)
                or said.has_same(word, bounds, tolerance)
            )
            return None if is_across and not is_known else Discard.REPLAYED
        if word.end == word.start:
            # Without times of its own, only its place can tell this word from one delivered before.
            return Discard.REPEATED if word.start < watermark else None
        if word.start >= said.end:
            return None
        if word.end <= self._reached[word.channel] + tolerance:
            covers = said.covers_bare if is_bare else said.covers
            comes_again = word.end < said.horizon or covers(word)
        else:
            comes_again = said.has_same(word, bounds, tolerance)
        return Discard.REPEATED if comes_again else None

    def _claims_unsent(self, end: float | None) -> bool:
        rate = self._format.sample_rate
        return end is not None and end * rate > self.sent_samples + CLAIM_TOLERANCE_SECONDS * rate

    def _contradicts(self, new: list[HeardWord], channel: int) -> bool:
        """Tell whether a new word lies where an earlier final said that nothing more was to come."""
        limit = self._reached[channel] if self._reached else 0
        limit -= self._format.samples(CONTRADICTION_SECONDS)
        return any(word.end < limit for word in new)

    def _provider_end(self, results: Results, believed_end: float | None, channel: int) -> int:
        """How far a final covers the audio, in samples; its own end counts where it is believed."""
        if believed_end is not None:
            return self.sample_of(believed_end)
        unsent = self.sent_samples / self._format.sample_rate + CLAIM_TOLERANCE_SECONDS
        ends = [w.end for w in results.words if w.end is not None and (w.start or 0.0) <= unsent]
        # Where the claimed end is of no use, a final without words covers nothing new.
        return self.sample_of(max(ends)) if ends else self._heard_until[channel]

    def _located(
        self, results: Results, channel: int, previous_end: int
    ) -> tuple[list[HeardWord | LeadInWord], Counter[Discard]]:
        located: list[HeardWord | LeadInWord] = []
        discarded: Counter[Discard] = Counter()
        unsent = self.sent_samples + self._format.samples(CLAIM_TOLERANCE_SECONDS)
        words = results.words
        label = self._labels.get(channel)
        if label is None:
            label = next((word.speaker for word in words if word.speaker is not None), 0)
        for word in words:
            if not word.text:
                continue
            label = word.speaker if word.speaker is not None else label
            if word.start is not None and word.start * self._format.sample_rate > unsent:
                discarded[Discard.UNSENT] += 1
                continue
            start = previous_end if word.start is None else self.sample_of(word.start)
            end = start if word.end is None else max(start, self.sample_of(word.end))
            previous_end = end
            found = self._locate(word, start, end, channel, label)
            if found is not None:
                located.append(found)
            elif self.sent_position is not None:
                discarded[Discard.FOREIGN] += 1
        if words:
            self._labels[channel] = label
        return located, discarded

    def _locate(
        self, word: Word, start: int, end: int, channel: int, label: int
    ) -> HeardWord | LeadInWord | None:
        middle = self._heard_in(start, end)
        if middle is None:
            return None
        if middle.position is None:
            # A word of an unknown speaker is no vote, nor is one that an earlier final has brought.
            heard_before = (start + end) // 2 < self._heard_until[channel]
            is_unknown = word.speaker in {None, UNKNOWN_SPEAKER}
            if middle.anchor is None or is_unknown or heard_before:
                return None
            place = middle.said_at
            if place is not None:
                place = evolve(place, position=place.position + start - middle.provider)
            return LeadInWord(middle.anchor, channel, label, end - start, place)
        first = self.run_at(start) or middle
        # A start in audio that is not the session's moves to where the session's audio begins.
        begin = (
            middle.position
            if first.position is None
            else first.position + max(0, start - first.provider)
        )
        finish = self.position_of_end(end)
        confidence = 1.0 if word.confidence is None else word.confidence
        return HeardWord(
            word.text,
            begin,
            max(begin, finish or begin),
            channel,
            label,
            confidence,
            word.word,
            word.language,
        )

    def _heard_in(self, start: int, end: int) -> Run | None:
        """The run that a word was heard in: where its middle lies.

        Nobody speaks in silence that was put in. A word that seems to has a start that is too early, if
        it reaches into the session's audio behind, and no less than into an anchor before.
        """
        run = self.run_at((start + end) // 2)
        if run is None or run.position is not None or run.anchor is not None:
            return run
        first, last = self.run_at(start), self.run_at(end - 1)
        if last is None or last.position is None:
            return run
        in_anchor = 0 if first is None or first.anchor is None else first.end - start
        return last if end - last.provider >= in_anchor else run
