"""One epoch, from its dial to its end: a receiver, a sender and a timer around an exchange.

What is sent, what a message means and when the connection is given up is decided in
`omi_rt.core.exchange`. Here it is carried out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from attrs import frozen

from omi_rt.core.breaker import OwnDial
from omi_rt.core.deepgram import Results
from omi_rt.core.errors import ProviderClosed, ProviderError
from omi_rt.core.exchange import Later
from omi_rt.core.groups import first_error
from omi_rt.core.news import News
from omi_rt.core.phase import Phase
from omi_rt.core.speakers import EpochLabels
from omi_rt.light_event import LightEvent
from omi_rt.net.poller import running_poller
from omi_rt.timers import start_timer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from omi_rt.core.deepgram import Message
    from omi_rt.core.dials import DialCause
    from omi_rt.core.exchange import Exchange
    from omi_rt.core.lead_in import LeadIn
    from omi_rt.core.listen import ListenRequest
    from omi_rt.core.news import FinalHeard
    from omi_rt.core.short_lead_in import ShortLeadIn
    from omi_rt.deepgram.connection import Connection
    from omi_rt.deepgram.provider import Provider
    from omi_rt.net.poller import Poller


@frozen
class Opened:
    """The provider has accepted the connection."""


OPENED = Opened()
EpochNews = Opened | News
"""What an epoch tells its owner."""


class Epoch:
    """Dials, holds the conversation, and keeps what became of it.

    Args:
        exchange: decides what is sent and what comes of it.
        cause: why it is dialled.
        tell: takes the epoch's news at once, with the time, in the order in which they happen.
        lead_in: the voices that it hears first; None where it hears none.
        gives_way: whether it is opened beside the session's own connection, and can wait.
    """

    __slots__ = (
        "_connection",
        "_nursery",
        "_poller",
        "_scope",
        "_sends",
        "_tell",
        "_unsent",
        "_unsettled",
        "cause",
        "digested",
        "ended",
        "error",
        "exchange",
        "gives_way",
        "labels",
        "lead_in",
        "opened",
        "sent_lead_in",
    )

    def __init__(
        self,
        exchange: Exchange,
        cause: DialCause,
        tell: Callable[[Epoch, EpochNews, float], None],
        lead_in: LeadIn | ShortLeadIn | None = None,
        *,
        gives_way: bool = False,
    ) -> None:
        self.exchange = exchange
        self.cause = cause
        self.lead_in = lead_in
        self.gives_way = gives_way
        self.labels = EpochLabels()
        self.error: ProviderError | None = None
        """Why it ended, unless it was closed as we asked."""
        self.opened = LightEvent()
        """Set when the provider has accepted the connection."""
        self.sent_lead_in = LightEvent()
        """Set when all of the lead-in, and Finalize, has gone up."""
        self.digested = LightEvent()
        """Set when finals cover the lead-in on every channel."""
        self.ended = LightEvent()
        """Set when the connection is gone."""
        self._tell = tell
        self._connection: Connection | None = None
        self._scope = trio.CancelScope()
        """Of the dial, then of the conversation."""
        self._nursery: trio.Nursery | None = None
        """While the connection is open."""
        self._sends = False
        """Whether the sender runs: it is started where there is something that cannot go straight."""
        self._unsent = b""
        """What `offer` could not send: a part of its frame may be on the wire."""
        self._unsettled: FinalHeard | None = None
        """The last final, until what it brings besides its words has been taken."""
        self._poller: Poller | None = None
        """What serves the connection's socket, and puts off what a final has left; None where none runs."""

    @property
    def request_id(self) -> str:
        """Deepgram's id of the connection; empty before it is open."""
        return "" if self._connection is None else self._connection.request_id

    def retire(self) -> None:
        """End it: with a closing handshake if it is open, else by giving up the dial."""
        self.exchange.end()
        self._scope.cancel()

    def wake(self) -> None:
        """Let the sender look for something to send. Nothing before the connection is open."""
        if not self._sends and self._nursery is not None and self._connection is not None:
            self._sends = True
            self._nursery.start_soon(self._send, self._connection)

    def offer(self, payload: bytes, samples: int, now: float) -> None:
        """Send ``payload``, the audio that has just come, or let the sender where anything is in the way.

        Sending where the audio is received saves a task switch for every message, 2 µs.
        """
        connection = self._connection
        if self._sends or connection is None:
            return
        send_nowait = connection.send_audio_nowait
        if not self.exchange.pass_straight(samples, now):
            self.wake()
        elif not send_nowait(payload):
            self._unsent = payload
            self.wake()

    async def run(self, request: ListenRequest, provider: Provider) -> None:
        """Run from the dial to the end, which is then in ``error``. Cancelling drops the connection."""
        dialled_at = trio.current_time()
        dial = OwnDial(None if self.gives_way else provider.priming)
        try:
            async with provider.connect(request, self._scope) as connection:
                dial.over()
                provider.note_open(trio.current_time() - dialled_at, self.cause)
                if self.exchange.phase is not Phase.ENDED:
                    await self._converse(connection)
        except ProviderError as error:
            # The error's frames hold this epoch, which would hold the error: a cycle.
            error.__context__ = error.__cause__ = None
            if self.opened.is_set() or self.exchange.phase is not Phase.ENDED:
                self.error = error.with_traceback(None)
                provider.note_failure(
                    error,
                    was_open=self.opened.is_set(),
                    gives_way=self.gives_way,
                    cause=self.cause,
                )
        finally:
            dial.over()
        self.exchange.end()
        self.ended.set()

    async def _converse(self, connection: Connection) -> None:
        """Work until the epoch is retired, or until CloseStream is answered or ignored.

        Cancelling this ends it at once; the connection must then be dropped.

        Raises:
            ProviderError: the connection ended otherwise, or is no longer worth keeping.
        """
        failure: ProviderError | None = None
        try:
            async with trio.open_nursery() as self._nursery:
                # From here on, whoever cancels the scope wants the connection closed politely, not dropped.
                self._scope = self._nursery.cancel_scope
                self._connection = connection
                now = trio.current_time()
                self.exchange.open(now)
                self.opened.set()
                self._poller = running_poller()
                self._tell(self, OPENED, now)
                timer = start_timer(self._check, now, self._nursery)
                self.wake()
                try:
                    await self._receive(connection)
                    self._scope.cancel()
                finally:
                    timer.cancel()
                    self._nursery = None
        except* ProviderError as group:
            failure = first_error(group)
        try:
            if failure is not None:
                raise failure
        finally:
            # The error holds this frame, so a name for it in the frame would make a cycle.
            failure = None
        self._pass_on(self.exchange.conclude(), trio.current_time())

    async def _send(self, connection: Connection) -> None:
        """Send until there is nothing left, CloseStream has gone up, or a send meets a broken connection.

        Cancelling this may leave half a frame on the wire: the connection must then be dropped.
        """
        exchange = self.exchange
        while not connection.has_failed_to_send:
            now = trio.current_time()
            if self._unsent:
                item: bytes | str | Later | None = self._unsent
                self._unsent = b""
            else:
                item = exchange.next_to_send(now)
            if item is None:
                self._sends = False
                return
            if isinstance(item, Later):
                await trio.sleep_until(item.at)
                continue
            exchange.note_send_begun(now)
            if isinstance(item, bytes):
                await connection.send_audio(item)
            else:
                await connection.send(item)
            exchange.note_send_done(trio.current_time())
            if exchange.phase is Phase.CLOSING:
                break
            self._note_priming()
        if connection.has_failed_to_send:
            exchange.note_send_failed(trio.current_time())

    async def _receive(self, connection: Connection) -> None:
        """Apply what the provider says, until it closes after CloseStream."""
        try:
            while True:
                await connection.pass_on(self._take)
                # The message gets no name, which would keep it until the next: 4 KB for each session.
                self._take(await connection.receive(), trio.current_time())
        except ProviderClosed as closed:
            self.exchange.take_close(closed)

    def _take(self, message: Message, now: float) -> None:
        """Take a message; what a final brings besides its words may wait until some frames have gone by."""
        if self._unsettled is not None:
            self._settle()
        if isinstance(message, Results) and message.is_final:
            final, tell = self.exchange.hear(message, now), self._tell
            tell(self, final, now)
            self._unsettled = final
            if self._poller is None:
                self._settle()
            else:
                self._poller.put_off(self._settle)
        else:
            self._pass_on(self.exchange.receive(message, now), now)
            self._note_priming()

    def _settle(self) -> None:
        """Take what the last final brings besides its words, unless that has been done."""
        final, self._unsettled = self._unsettled, None
        if final is not None:
            self._pass_on(self.exchange.settle(final), final.at)
            self._note_priming()

    def _check(self, now: float) -> float:
        """Let the exchange do what is due; returns when something is due next."""
        exchange = self.exchange
        self._pass_on(exchange.check(now), now)
        if exchange.phase is Phase.ENDED:
            self._scope.cancel()
        if exchange.has_something_to_send:
            self.wake()
        return exchange.next_check(now)

    def _note_priming(self) -> None:
        if self.exchange.has_sent_lead_in and not self.digested.is_set():
            self.sent_lead_in.set()
            if self.exchange.is_digested:
                self.digested.set()

    def _pass_on(self, news: Iterable[News], now: float) -> None:
        for each in news:
            self._tell(self, each, now)
