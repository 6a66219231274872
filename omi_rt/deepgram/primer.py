"""Primes epochs: lets Deepgram hear the known voices first, in the background, and hands over.

The session meanwhile goes on over its plain epoch, so no word waits. The one thing that words wait for is
the short lead-in of a redial (`omi_rt.core.short_lead_in`), whose cost is counted here as well.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio
from trio_util import wait_any

from omi_rt.core.dials import DialCause
from omi_rt.core.errors import OmiRtError
from omi_rt.core.lead_in import (
    ALLOWANCE_RATE,
    ALLOWANCE_SECONDS,
    ALLOWANCE_TO_BEGIN_SECONDS,
    LEAD_IN_SECONDS,
    LeadIn,
)
from omi_rt.core.short_lead_in import ShortLeadIn, make_short_lead_in
from omi_rt.core.token_bucket import TokenBucket
from omi_rt.core.votes import Vote, count_votes
from omi_rt.light_event import LightEvent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.lead_in import Anchor, VoiceClips
    from omi_rt.core.patience import Patience
    from omi_rt.deepgram.epoch import Epoch
    from omi_rt.deepgram.provider import Provider
    from omi_rt.deepgram.report import HealthReport

DIGEST_SECONDS = 60.0
"""The finals of a lead-in are awaited for at most this long after its Finalize: as long as answers take
here, and as long as the provider says that it gets on."""
_LOOK_SECONDS = 1.0
"""What is known of the provider's lateness is looked at again after this time."""
UTTERANCE_SECONDS = 5.0
"""The end of an utterance, at which to switch, is awaited for this much longer than answers take."""
RETRY_SECONDS = 60.0
"""Where nobody could be recognised for a reason that may pass, priming is tried again after this long."""
RELABEL_KNOWN_SECONDS = 5.0
"""A lead-in holds at most this much of each stored voice where the session's own speakers need the room
to get their numbers back."""
MAX_FOLLOW_UPS = 2
"""At most this many lead-ins follow the first after one plain epoch, because each is paid for."""
NO_PROFILE = "no speech profile is stored"
NOT_RECOGNISED = "the voices of the lead-in were not recognised"
"""This is tried again only after the next reconnect, because each try costs a whole lead-in."""
NOT_HEARD = "the lead-in was not answered in time"
"""This is tried again after pauses that double each time, because each try costs a whole lead-in."""
NO_ROOM = "Deepgram has no room for a second connection"
ONE_SPEAKER = "this recogniser does not tell speakers apart"
_NOT_RETRIED = frozenset({NOT_RECOGNISED, ONE_SPEAKER})
"""For these reasons another try before the next reconnect would find the same."""


class Primer:
    """Decides when an epoch is primed, with what, and when it takes over.

    Args:
        audio_format: the session's format.
        voices: the clips that are kept of the session's speakers.
        patience: what the session knows of its provider's lateness.
        load_anchors: loads the stored voices.
        provider: where the second connection is dialled.
        report: tells the device why nobody is known.
        dial: dials an epoch with a lead-in beside the one that serves.
        owes_answer: tells whether a switch should wait for the first answer of the session's own epoch.
        switch: lets a primed epoch serve the session, with the votes on its labels; None where not all
            of its lead-in has been heard yet.
    """

    def __init__(
        self,
        audio_format: AudioFormat,
        voices: VoiceClips,
        patience: Patience,
        load_anchors: Callable[[], Awaitable[list[Anchor]]],
        provider: Provider,
        report: HealthReport,
        *,
        dial: Callable[[LeadIn, DialCause], Epoch],
        owes_answer: Callable[[], bool],
        switch: Callable[[Epoch, list[Vote] | None], None],
    ) -> None:
        self._format = audio_format
        self._voices = voices
        self._patience = patience
        self._load_anchors = load_anchors
        self._provider = provider
        self._report = report
        self._dial = dial
        self._owes_answer = owes_answer
        self._switch = switch
        self._utterance_end = LightEvent()
        self._allowance = TokenBucket.full(ALLOWANCE_RATE, ALLOWANCE_SECONDS, trio.current_time())
        self._wanted = LightEvent()
        self._relabel = False
        self._has_stored_voices = False
        self._short_are_of_use = True
        self._follow_ups = 0
        self._retry_seconds = RETRY_SECONDS
        self._has_recognised = False
        self._has_told = False
        self._has_failed = False
        self._is_hurried = trio.Event()

    def want(self, *, relabel: bool) -> None:
        """Ask for an epoch to be primed, because a plain one has opened.

        ``relabel`` says that the session's speakers have lost their labels, so that priming is
        worth it even where no voice is stored.
        """
        self._relabel |= relabel
        self._follow_ups = 0
        self._retry_seconds = RETRY_SECONDS
        self._wanted.set()

    def make_short(self) -> ShortLeadIn | None:
        """Return a lead-in for a redial, which the session's audio follows at once; None where none fits.

        Call `note_short_begun` when it is to go up, and `note_short_heard` when it has been heard.
        """
        if not (self._provider.tells_speakers_apart and self._short_are_of_use):
            return None
        lead_in = make_short_lead_in(self._voices, self._format)
        if lead_in is None or self._allowance.delay(lead_in.seconds, trio.current_time()) > 0.0:
            return None
        return lead_in

    def note_short_begun(self, lead_in: ShortLeadIn) -> None:
        """Count what a short lead-in costs, now that it goes up."""
        self._voices.forget_early()
        self._allowance.take(lead_in.seconds)

    def note_short_heard(self, recognised: float) -> None:
        """Note the share of the voices that were recognised.

        Unless it is 1.0 and no voice is stored, an epoch is primed in the background as well. Where it is
        0.0, no other short lead-in follows in this session.
        """
        self._short_are_of_use = recognised > 0.0
        if self._has_stored_voices or recognised < 1.0:
            self.want(relabel=True)

    async def run(self) -> None:
        """Prime and hand over, again after every reconnect. Cancelling drops what is being primed."""
        failure: str | None = None
        while True:
            is_worth_a_retry = failure is not None and failure not in _NOT_RETRIED
            pause = self._retry_seconds * self._provider.random.uniform(1.0, 1.2)
            if failure == NOT_HEARD:
                self._retry_seconds *= 2
            with trio.move_on_after(pause if is_worth_a_retry else math.inf):
                await self._wanted.wait()
            self._wanted = LightEvent()
            failure = await self._prime()
            if failure is not None:
                self.tell(failure)

    async def gather(self) -> tuple[LeadIn | None, str | None]:
        """Collect the voices for a lead-in, if it is worth one.

        The store's own time limit bounds this. The second value returned says why there are no stored
        voices in the lead-in; it is None where there are some.
        """
        if not self._provider.tells_speakers_apart:
            return None, ONE_SPEAKER
        known: list[Anchor] = []
        failure: str | None = NO_PROFILE
        try:
            known = await self._load_anchors()
        except OmiRtError as error:
            failure = str(error)
        if self._relabel or not known:
            self._voices.forget_early()
        self._has_stored_voices |= bool(known)
        if known:
            failure = None
        elif not self._relabel:
            return None, failure
        seconds = RELABEL_KNOWN_SECONDS if self._relabel else LEAD_IN_SECONDS
        lead_in = LeadIn(known, self._voices, self._format, seconds)
        return lead_in or None, failure

    @property
    def may_hear_first(self) -> bool:
        """Whether the allowance lets the session's own connection begin with a whole lead-in."""
        return self._allowance.delay(ALLOWANCE_TO_BEGIN_SECONDS, trio.current_time()) == 0.0

    async def gather_first(self) -> LeadIn | None:
        """Collect the voices for an epoch that hears them first, and tell the device what is missing."""
        lead_in, failure = await self.gather()
        if failure is not None:
            self.tell(failure)
        return lead_in

    async def hear_first(self, epoch: Epoch) -> None:
        """Let the session's audio follow the lead-in in the same epoch, or at once where there is no time."""
        await wait_any(epoch.sent_lead_in.wait, epoch.ended.wait, self._is_hurried.wait)
        self._allowance.take(self._format.seconds(epoch.exchange.lead_in_end))
        if not epoch.ended.is_set():
            self._switch(epoch, None)

    def hurry(self) -> None:
        """Let no audio wait for a lead-in any more, because the session must end soon."""
        self._is_hurried.set()

    def note_heard(self, lead_in: LeadIn, votes: list[Vote], *, is_all: bool) -> None:
        """Note votes of a lead-in that was heard while its epoch served already.

        ``is_all`` says that none of its votes are left, on any channel.
        """
        self._has_recognised |= _has_voices(votes, lead_in)
        if is_all and not self._has_recognised:
            self.tell(NOT_RECOGNISED)

    def note_utterance_end(self) -> None:
        """Note that an utterance has ended in the epoch that serves, which is a good moment to switch."""
        self._utterance_end.set()
        self._utterance_end = LightEvent()

    async def _digest(self, epoch: Epoch, give_way: trio.Event) -> None:
        """Wait until an open epoch has heard its lead-in, as long as that may still come.

        Returns as soon as the epoch ends or gives way.
        """
        ends = epoch.ended.wait, give_way.wait
        await wait_any(epoch.sent_lead_in.wait, *ends)
        sent_at, watch = trio.current_time(), epoch.exchange.watch
        with trio.move_on_after(DIGEST_SECONDS):
            while watch.may_answer(sent_at, trio.current_time()):
                with trio.move_on_after(_LOOK_SECONDS):
                    await wait_any(epoch.digested.wait, *ends)
                    break

    async def _wait_for_pause(self, epoch: Epoch, give_way: trio.Event) -> None:
        """Wait for the end of an utterance, and before that until the session's own epoch has answered.

        A switch begins the wait for a first answer anew, and the backlog has room for two of them in a row
        only where answers are not late. An epoch that answers nothing is given up at some time.
        """
        ends = epoch.ended.wait, give_way.wait
        with trio.move_on_after(DIGEST_SECONDS):
            while self._owes_answer():
                with trio.move_on_after(_LOOK_SECONDS):
                    await wait_any(*ends)
                    return
        with trio.move_on_after(UTTERANCE_SECONDS + self._patience.lag_seconds):
            await wait_any(self._utterance_end.wait, *ends)

    def _count(self, epoch: Epoch) -> list[Vote]:
        return count_votes(epoch.exchange.timeline.lead_in_words, self._format.sample_rate)

    def _recognises(self, epoch: Epoch, lead_in: LeadIn) -> bool:
        """Whether an open epoch answers on all channels and has given a voice a label, besides the contrast.

        It may not have answered all: a Finalize brings nothing where the provider has nothing left to say.
        """
        return epoch.exchange.answers_all_channels and _has_voices(self._count(epoch), lead_in)

    def tell(self, reason: str) -> None:
        """Tell the device, once a session, why identities are not to be had."""
        if reason in {NOT_RECOGNISED, ONE_SPEAKER}:
            self._voices.forget_early()
        if not self._has_told:
            self._has_told = True
            is_failure = reason not in {NO_PROFILE, NO_ROOM, ONE_SPEAKER}
            self._report.tell_identities_unavailable(reason, is_failure=is_failure)

    async def _prime(self) -> str | None:
        """Prime one epoch and switch to it; return what went wrong, if anything did."""
        # If a connection is cut every few seconds, lead-ins would otherwise be most of what is sent.
        await trio.sleep(self._allowance.delay(ALLOWANCE_TO_BEGIN_SECONDS, trio.current_time()))
        lead_in, failure = await self.gather()
        if lead_in is None:
            return failure
        await self._provider.wait_for_turn(is_redial=self._relabel or self._has_failed)
        await self._provider.wait_for_room()
        epoch = self._dial(lead_in, self._cause())
        give_way = self._provider.give_way
        has_switched = False
        self._provider.priming.primed += 1
        try:
            await wait_any(epoch.opened.wait, epoch.ended.wait, give_way.wait)
            if epoch.opened.is_set() and not give_way.is_set():
                await self._digest(epoch, give_way)
            if not give_way.is_set() and self._recognises(epoch, lead_in):
                await self._wait_for_pause(epoch, give_way)
            if give_way.is_set():
                return NO_ROOM
            self._has_failed = epoch.ended.is_set()
            if self._has_failed:
                return f"no primed connection: {epoch.error}"
            if not self._recognises(epoch, lead_in):
                return NOT_RECOGNISED if epoch.digested.is_set() else NOT_HEARD
            self._relabel = False
            self._switch(epoch, self._count(epoch) if epoch.digested.is_set() else None)
            has_switched = True
            # This epoch also serves the purpose of a reconnect that came while it was being primed.
            self._wanted = LightEvent()
            self._follow_up(lead_in)
        finally:
            self._provider.priming.primed -= 1
            self._allowance.take(self._format.seconds(epoch.exchange.lead_in_end))
            if not has_switched:
                epoch.retire()
        return failure

    def _cause(self) -> DialCause:
        if self._follow_ups:
            return DialCause.FOLLOW_UP
        return DialCause.RELABEL if self._relabel else DialCause.PRIMED

    def _follow_up(self, lead_in: LeadIn) -> None:
        """Prime once more for those who began to speak too late for this lead-in.

        Their labels are new with the switch; a later lead-in tells which number each had before.
        """
        if lead_in.misses_somebody() and self._follow_ups < MAX_FOLLOW_UPS:
            self._follow_ups += 1
            self._relabel = True
            self._wanted.set()


def _has_voices(votes: list[Vote], lead_in: LeadIn) -> bool:
    """Whether any voice has won a label, besides the contrast."""
    return any(vote.winner is not None and lead_in.whose[vote.anchor] is not None for vote in votes)
