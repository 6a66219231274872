"""Whether a provider's answers keep up with the audio of one epoch, and what to do where they do not.

Only audio that *sounds* can be overdue: a provider need not say anything about silence, not even when
it is asked. What follows is a list of cases; each is judged for each channel, about once a second.

===============================================  ==================================================
what is seen                                     what is done
===============================================  ==================================================
nothing but silence behind the watermark         the silence is passed once its answer is overdue
speech without a final for `ask_seconds`         Finalize, once for that stretch: for that channel
                                                 alone, at a quiet moment or after 3 s at the latest
the device pauses for 5 s with speech unanswered Finalize, once for that pause
asked, unanswered, while other channels answer   the channel goes along with a final of theirs that
                                                 comes 5 s later than answers take
speech, and no progress on any channel for       the connection is given up
`Patience.limit_seconds`
the provider says that it is busy and gets on    nothing: it is waited for, from its last word on
===============================================  ==================================================

Times are seconds of the caller's clock, passed in; positions are session positions in samples.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from operator import itemgetter
from typing import TYPE_CHECKING

from attrs import define, frozen

from omi_rt.core.patience import ASK_SECONDS, LEAST_PATIENCE_SECONDS
from omi_rt.core.sound import SoundFinder

if TYPE_CHECKING:
    from omi_rt.core.clock import ConnectionClock
    from omi_rt.core.coverage import Coverage
    from omi_rt.core.patience import Patience

PAUSE_SECONDS = 5.0
"""A device that has sent no audio for this long has paused."""
QUIET_WAIT_SECONDS = 3.0
"""Finalize waits at most this long for a quiet moment, so that it cuts no word in two."""
CHANNEL_GRACE_SECONDS = 5.0
"""A channel that was asked may answer this much later than answers usually come."""
CALM_SECONDS = 4.0
"""An epoch is not judged before this much audio has gone up without a final, because finals are usually
no further apart than that."""
WORK_SECONDS = 5.0
"""A provider that has said that it gets on is left alone for this long; it says so once a second."""
_MARK_SECONDS = 0.25
"""The time of sending is remembered once for every stretch of audio of this length."""
_ONSET_SECONDS = 0.3
"""This much silence before a sound is not passed, so that a soft beginning stays with its word."""


@frozen
class Judgement:
    """What is to be done about one epoch now."""

    finalize: tuple[int, ...] = ()
    """Channels whose finals are to be asked for."""
    silent: tuple[tuple[int, int], ...] = ()
    """Channels, each with the position up to which nothing sounded and no answer is awaited."""
    behind: tuple[tuple[int, int], ...] = ()
    """Channels that do not answer, each with the position that the others have reached."""
    gives_up: bool = False
    """Whether the connection is no longer worth keeping."""


NOTHING = Judgement()


class SendTimes:
    """When the audio of an epoch went up, to a quarter of a second."""

    __slots__ = ("_marks", "due")

    def __init__(self) -> None:
        self._marks: list[tuple[int, float]] = []
        self.due = -math.inf
        """When a time is remembered next; what is sent before then goes by the last one."""

    def record(self, end: int, now: float) -> None:
        """Note that everything before position ``end`` has gone up by ``now``; nothing before ``due``."""
        if now >= self.due:
            self.due = now + _MARK_SECONDS
            self._marks.append((end, now))

    def sent_at(self, position: int) -> float | None:
        """The time by which the sample at ``position`` had gone up; None if only just, or not yet."""
        index = bisect_right(self._marks, position, key=itemgetter(0))
        return self._marks[index][1] if index < len(self._marks) else None

    def sent_by(self, time: float) -> int:
        """The position before which everything had gone up at ``time``; 0 if nothing had."""
        index = bisect_right(self._marks, time, key=itemgetter(1))
        return self._marks[index - 1][0] if index else 0

    def forget(self, position: int) -> None:
        """Forget what is known of audio before ``position``."""
        keep = bisect_left(self._marks, position, key=itemgetter(0))
        del self._marks[: min(keep, len(self._marks) - 1)]


@define
class _Channel:
    """What one channel waits for."""

    finder: SoundFinder
    later_finder: SoundFinder
    """Looks for sound in the audio that follows what Finalize has asked for."""
    asked_until: int = 0
    """Position up to which Finalize has asked for finals."""
    asked_at: float = 0.0
    progressed_at: float = 0.0
    """When a final last moved its watermark."""
    wants_since: float | None = None
    """When Finalize became due, while it waits for a quiet moment."""
    sound: int | None = None
    """The first unanswered sound that has gone up, as of the last judgement."""


class AnswerWatch:
    """The judge of one epoch's answers.

    Args:
        coverage: the session's audio and watermarks.
        patience: what the session knows of its provider.
        clock: the epoch's, which knows what has gone up.
    """

    __slots__ = (
        "_channels",
        "_clock",
        "_coverage",
        "_patience",
        "_progressed_at",
        "_untimed_until",
        "_worked",
        "times",
        "worked_at",
    )

    def __init__(self, coverage: Coverage, patience: Patience, clock: ConnectionClock) -> None:
        self._coverage = coverage
        self._patience = patience
        self._clock = clock
        self.times = SendTimes()
        """When what has gone up did so; whoever sends records it."""
        self._untimed_until = 0
        self._progressed_at = 0.0
        self._worked = 0.0
        self.worked_at = -math.inf
        """When the provider last said that it gets on with its work."""
        self._channels = [
            _Channel(
                SoundFinder(coverage.audio_format, channel),
                SoundFinder(coverage.audio_format, channel),
            )
            for channel in range(coverage.audio_format.channels)
        ]

    @property
    def _sent(self) -> int:
        """The position before which the session's audio has gone up."""
        return self._clock.sent_position or 0

    def record_progress(self, channels: range, covered: int | None, now: float) -> None:
        """Note a final of ``channels`` that has moved a watermark to ``covered``.

        ``covered`` is None for one that brought words and does not say up to where.
        """
        self._progressed_at = now
        for channel in channels:
            self._channels[channel].progressed_at = now
        if covered is None:
            self._untimed_until = self._sent
        sent_at = None if covered is None else self.times.sent_at(covered - 1)
        self._patience.record_answer(0.0 if sent_at is None else now - sent_at)
        self.times.forget(self._coverage.watermark)

    def record_work(self, seconds_worked: float, now: float) -> bool:
        """Note that the provider says how far it has come; return whether it has got on since.

        A provider that works is not silent. One that reports the same figure again has not got on,
        and its report counts for nothing.
        """
        if seconds_worked <= self._worked:
            return False
        self._worked, self.worked_at = seconds_worked, now
        return True

    def judge(self, now: float, *, pauses: bool) -> Judgement:
        """Say what is to be done now; ``pauses`` tells that the device has sent nothing for 5 s.

        What it returns is to be carried out: a channel counts as asked from then on.
        """
        if now - self.worked_at < WORK_SECONDS:
            # The provider has the audio and will come to it; Finalize would only queue up behind it.
            return NOTHING
        calm = self._coverage.audio_format.samples(min(CALM_SECONDS, self._patience.ask_seconds))
        if not pauses and self._sent - self._coverage.watermark < calm:
            return NOTHING
        awaited = self._awaited_since(now)
        if awaited is not None and now - awaited >= self._patience.limit_seconds:
            return Judgement(gives_up=True)
        finalize, silent, behind = [], [], []
        for number, channel in enumerate(self._channels):
            if channel.sound is None:
                until = self._pass_until(channel, number, now)
                if until > self._coverage.watermark_of(number):
                    silent.append((number, until))
            elif self._is_to_be_asked(channel, number, now, pauses=pauses):
                channel.asked_until, channel.asked_at = self._sent, now
                channel.wants_since = None
                finalize.append(number)
            else:
                until = self._others_reached(channel, number)
                if until > self._coverage.watermark_of(number):
                    behind.append((number, until))
        return Judgement(tuple(finalize), tuple(silent), tuple(behind))

    def unanswered_seconds(self, now: float) -> float | None:
        """How long speech that has gone up waits without any progress; None if none waits."""
        awaited = self._awaited_since(now)
        return None if awaited is None else now - awaited

    def lacks_answer(self) -> bool:
        """Tell whether speech that has gone up has no answer at all, be it one without times."""
        coverage = self._coverage
        return any(
            SoundFinder(coverage.audio_format, number).first_sound(
                coverage.backlog,
                max(coverage.watermark_of(number), self._untimed_until),
                self._sent,
            )
            is not None
            for number in range(coverage.audio_format.channels)
        )

    def may_answer(self, asked_at: float, now: float) -> bool:
        """Whether a Finalize that went up at ``asked_at`` may still be answered, as far as is known."""
        usual = asked_at + self._patience.answer_seconds
        return now < max(usual, self.worked_at + WORK_SECONDS)

    def overdue_until(self, now: float) -> int | None:
        """The position up to which answers are overdue, if speech has waited for 20 s; else None."""
        awaited = self._awaited_since(now)
        if awaited is None or now - awaited < LEAST_PATIENCE_SECONDS:
            return None
        return self.times.sent_by(now - ASK_SECONDS)

    def _awaited_since(self, now: float) -> float | None:
        """Since when speech waits without any progress; None if none waits."""
        since: float | None = None
        for number, channel in enumerate(self._channels):
            mark = self._coverage.watermark_of(number)
            before = channel.sound
            channel.sound = channel.finder.first_sound(self._coverage.backlog, mark, self._sent)
            if channel.sound != before:
                channel.wants_since = None
            if channel.sound is not None:
                sent_at = self.times.sent_at(channel.sound)
                waits = now if sent_at is None else sent_at
                since = waits if since is None else min(since, waits)
        return None if since is None else max(since, self._progressed_at, self.worked_at)

    def _is_to_be_asked(self, channel: _Channel, number: int, now: float, *, pauses: bool) -> bool:
        backlog = self._coverage.backlog
        if channel.sound is None:
            return False
        sound: int | None = channel.sound
        start = max(self._coverage.watermark_of(number), channel.asked_until)
        if channel.sound < start:
            # This sound has been asked for already. One that follows it deserves a Finalize of its own.
            sound = channel.later_finder.first_sound(backlog, start, self._sent)
        if sound is None:
            return False
        if pauses:
            return True
        sent_at = self.times.sent_at(sound)
        if sent_at is None or now - sent_at < self._patience.ask_seconds:
            return False
        if channel.wants_since is None:
            channel.wants_since = now
        is_quiet = channel.finder.is_quiet(backlog, self._sent)
        return is_quiet or now - channel.wants_since >= QUIET_WAIT_SECONDS

    def _pass_until(self, channel: _Channel, number: int, now: float) -> int:
        """The position where the silence ends for which no answer is awaited any more."""
        overdue = self.times.sent_by(now - self._patience.ask_seconds)
        margin = self._coverage.audio_format.samples(_ONSET_SECONDS)
        mark = self._coverage.watermark_of(number)
        # The search goes up to what was sent, and its last moments may be a word's soft beginning.
        return max(mark, min(overdue, self._sent - margin))

    def _others_reached(self, channel: _Channel, number: int) -> int:
        """The position that the answering channels have reached, where this one was asked and is silent."""
        mark = self._coverage.watermark_of(number)
        grace = CHANNEL_GRACE_SECONDS + self._patience.lag_seconds
        # A final of another channel says that this one is left out only where its own was overdue then:
        # all channels may have fallen silent, and then another connection will bring them.
        overdue = max(channel.asked_at, channel.progressed_at) + grace
        if channel.asked_until <= mark:
            return mark
        others = [
            self._coverage.watermark_of(each)
            for each, other in enumerate(self._channels)
            if other.progressed_at >= overdue and self._coverage.watermark_of(each) > mark
        ]
        return min([*others, channel.asked_until]) if others else mark
