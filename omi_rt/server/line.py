"""One connection of a device's: what it says and is sent, for a session that may outlive it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import trio

from omi_rt.core import endings, events
from omi_rt.core.acknowledgement import ACKNOWLEDGE_SECONDS, Acknowledgement
from omi_rt.core.errors import DeviceError, PeerClosed, PeerTooSlow
from omi_rt.core.json import dumps
from omi_rt.faces.face import SHORT_BYTES
from omi_rt.light_event import LightEvent
from omi_rt.net.turns import wait_turn
from omi_rt.timers import start_timer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from omi_rt.codecs import AudioDecoder
    from omi_rt.codecs.resent import Resent
    from omi_rt.core.asks import Ask
    from omi_rt.core.coverage import Coverage
    from omi_rt.core.endings import Ending
    from omi_rt.core.outbox import Outbox
    from omi_rt.faces.face import Face
    from omi_rt.net.websocket import WebSocket
    from omi_rt.server.shared import Shared
    from omi_rt.timers import Timer

UNDECODABLE_IN_A_ROW = 50
"""After this many packets, which are 0.5 to 1 s, the device is told that its codec is probably another one."""
_STEP_BYTES = 65_536
"""This much audio of one session is decoded before others get a turn: it takes 0.5 ms of Opus."""
_MEMORY_CHECK_SECONDS = 0.25
_LAST_AUDIO_SECONDS = 5.0
"""A lost connection is read for this long at most, because what the device had sent before lies in the kernel."""
_LEFT_CODE = 1000
"""A device that closes with this code goes on purpose, and nobody waits for it."""
_CATCH_UP_BYTES = 65_536
"""This much of what was told before is queued at once."""
MISSED_HEARTBEATS = 2
"""A device from which not a byte has come for this many heartbeats, not even a pong, has vanished."""


class Owner(Protocol):
    """What a line needs of the session that it belongs to."""

    coverage: Coverage
    decoder: AudioDecoder
    face: Face
    outbox: Outbox
    takes_audio: bool
    """Whether more audio may come: the session is not ending yet."""

    is_overheard: bool
    """Whether anybody but the provider wants the decoded audio."""
    pass_on: Callable[[bytes, float], None]
    """Takes decoded audio that nobody else hears, with the time (`trio.current_time`)."""

    def receive(self, parts: list[bytes], now: float) -> None:
        """Take decoded audio, in order, for all who hear it; it may be none."""

    def follow(self, ask: Ask) -> None:
        """Do what the client asks."""

    def tell_undecodable(self) -> None:
        """Tell the client, once, that its codec is probably another one."""

    def has_memory(self) -> bool:
        """Whether all sessions' backlogs leave room for more of this one's audio."""

    async def make_room(self) -> None:
        """Wait until the backlog takes more audio, or no more may come. Cancelling is safe."""

    def lose(self, line: Line, ending: Ending, *, is_left: bool = False) -> None:
        """Give ``line`` up (`Line.lose`), and decide what becomes of the session."""


class Line:
    """One connection, from the upgrade to its end: its audio, its heartbeat, and what it is sent.

    It knows how to read its device and how to send to it; what is said means something to the
    session only. `start` runs its tasks in the session's nursery.

    Args:
        websocket: open.
        shared: what all sessions share.
        early: messages that have been taken from the WebSocket already.
        acknowledges: whether the device is told how far its audio has come.
    """

    __slots__ = (
        "_acknowledgement",
        "_beat_due",
        "_nursery",
        "_owner",
        "_shared",
        "_timers",
        "acknowledges",
        "early",
        "farewell",
        "has_caught_up",
        "heard_at",
        "incoming",
        "incoming_ended",
        "is_catching_up",
        "is_lost",
        "is_reading",
        "over",
        "resent",
        "told",
        "websocket",
    )

    _nursery: trio.Nursery
    _owner: Owner

    def __init__(
        self,
        websocket: WebSocket,
        shared: Shared,
        early: Sequence[bytes | str] = (),
        *,
        acknowledges: bool = False,
    ) -> None:
        self.websocket = websocket
        self._shared = shared
        self.early = list(early)
        self.acknowledges = acknowledges
        self.heard_at = trio.current_time()
        """When the last message came, which is more than a pong."""
        self.incoming = trio.CancelScope()
        """Of whoever reads."""
        self.incoming_ended = LightEvent()
        self.is_reading = True
        """Whether a silence is the device's: the server may have stopped to read."""
        self.is_lost = False
        """Whether nothing that it brings counts any more."""
        self.resent: Resent | None = None
        """What its device sends once more, and that is left out."""
        self.is_catching_up = False
        """Whether it is sent what was told before it came; what is told meanwhile has to wait."""
        self.told = 0
        """While it catches up, the last number that it has been sent."""
        self.has_caught_up = LightEvent()
        self.farewell = (1001, "")
        """The close code and reason that it gets where it is lost."""
        self.over = LightEvent()
        """Set when nothing of it is left but its stream."""
        self._timers: list[Timer] = []
        self._beat_due = 0.0
        self._acknowledgement: Acknowledgement | None = None

    def start(
        self,
        owner: Owner,
        nursery: trio.Nursery,
        greeting: list[Any],
        *,
        told: int | None = None,
        resent: Resent | None = None,
    ) -> None:
        """Send ``greeting``, and serve the device from now on. A line is started once.

        Args:
            owner: the session.
            nursery: of the session.
            greeting: the first messages.
            told: the number of the last message that the device has; what was told after it is sent
                again. None where nothing was told before.
            resent: what of its audio has come before.
        """
        self._owner, self._nursery, self.resent = owner, nursery, resent
        if told is not None:
            self.told, self.is_catching_up = told, True
        self.send(greeting)
        self.websocket.send_with(self._start_writer)
        nursery.start_soon(self._serve_device)
        now, interval = trio.current_time(), self._shared.settings.heartbeat_seconds
        self._beat_due = now + interval
        self._timers = [start_timer(self._beat, self._beat_due, nursery)]
        if self.is_catching_up:
            nursery.start_soon(self._catch_up)
        if self.acknowledges:
            self._acknowledgement = Acknowledgement(owner.coverage)
            self._timers.append(start_timer(self._acknowledge, now + ACKNOWLEDGE_SECONDS, nursery))

    def lose(self, close_code: int, reason: str) -> None:
        """Give it up: whoever reads it stops. A second call does nothing."""
        if not self.is_lost:
            self.is_lost = True
            self.farewell = (close_code, reason)
            self.incoming.cancel()
            self.stop_timers()
            self.has_caught_up.set()

    @property
    def has_sent_all(self) -> bool:
        """Whether nothing is left to send, or nobody to send it to."""
        return self.is_lost or self.websocket.has_sent_all

    async def stop_reading(self) -> None:
        """Read no more, and wait until whoever reads has stopped. Cancelling is safe."""
        self.incoming.cancel()
        await self.incoming_ended.wait()

    async def wait_until_caught_up(self) -> None:
        """Wait until what is told goes out at once, or to nobody. Cancelling is safe."""
        if self.is_catching_up:
            await self.has_caught_up.wait()

    async def close(self, close_code: int, reason: str) -> None:
        """Say goodbye to a device that is there, when it is not read any more."""
        if not self.is_lost:
            await self.websocket.aclose(close_code, reason)

    async def abort(self, close_code: int, reason: str) -> None:
        """End it at once, when its tasks have ended. Cancelling drops the connection."""
        self.stop_timers()
        try:
            await self.websocket.abort(close_code, reason)
        finally:
            self.over.set()

    # From the device.

    async def _serve_device(self) -> None:
        with self.incoming:
            try:
                await self._receive_audio()
            except PeerClosed as closed:
                self._owner.lose(
                    self,
                    endings.device_lost(f"device_closed_{closed.code}", closed.code),
                    is_left=closed.code == _LEFT_CODE,
                )
        if self.is_lost:
            # Its side ends now, whatever is still to be finalised.
            await self.websocket.aclose(*self.farewell)
            self.over.set()
        self.incoming_ended.set()

    async def _receive_audio(self) -> None:
        """Take every message that is there, decode it, put it into the backlog; nothing else."""
        websocket, owner = self.websocket, self._owner
        coverage, budget = owner.coverage, self._shared.budget
        early, self.early = self.early, []
        await self._take_in_steps(early, websocket.received_at)
        while True:
            messages = await websocket.receive(self._take_at_once, self._take_frame)
            if self.is_lost:
                # Taken over meanwhile: the device has been told where its audio goes on.
                return
            await self._take_in_steps(messages, websocket.received_at)
            if coverage.is_full and owner.takes_audio:
                self.is_reading = False
                await owner.make_room()
                self.is_reading = True
            if budget.is_scarce and owner.takes_audio:
                await self._wait_for_memory()

    def _take_frame(self, message: bytes, now: float) -> list[bytes | str] | None:
        """Take one message straight to the provider; what is not ordinary goes by `_take_at_once`."""
        owner = self._owner
        if (
            self.is_lost
            or self.resent is not None
            or owner.is_overheard
            or not owner.takes_audio
            or len(message) <= SHORT_BYTES
        ):
            return self._take_at_once([message], now)
        self.heard_at = now
        decoder, pass_on = owner.decoder, owner.pass_on
        payload = decoder.decode(message)
        if decoder.failures_in_a_row == UNDECODABLE_IN_A_ROW:
            owner.tell_undecodable()
        pass_on(payload, now)
        return [] if owner.coverage.backlog.is_to_wait else None

    def _take_at_once(self, messages: list[bytes | str], now: float) -> list[bytes | str] | None:
        """Take messages as they arrive; returns what is left for the line's own task, which may wait."""
        if self.is_lost:
            # What comes after another line has taken the session up is nobody's.
            return []
        left = self._take(messages, now)
        return left if left or self._owner.coverage.backlog.is_to_wait else None

    async def _take_in_steps(self, messages: list[bytes | str], now: float) -> None:
        """Take messages; what is more than a step waits in the line of all that bring much."""
        left = self._take(messages, now)
        while left:
            await wait_turn()
            if self.is_lost:
                return
            left = self._take(left, now)

    async def _wait_for_memory(self) -> None:
        """Return when all sessions' backlogs leave room for more of this one's audio.

        Until then the device is not read, and TCP slows it, whether or not Deepgram is away: nothing
        is given up for the sake of other sessions. A device that has gone meanwhile is noticed by
        the task that writes to it.
        """
        owner = self._owner
        if owner.has_memory():
            return
        self._shared.metrics.held_back.inc()
        self.is_reading = False
        # Any of a thousand others may make room, by any final.
        while (  # noqa: ASYNC110
            not owner.has_memory() and owner.takes_audio and self.websocket.can_send
        ):
            await trio.sleep(_MEMORY_CHECK_SECONDS)
        self.is_reading = True
        # Else the pause would count as the device's.
        await owner.make_room()

    def _take(self, messages: list[bytes | str], now: float) -> list[bytes | str]:
        """Take messages until they have held `_STEP_BYTES` of audio; return the others.

        What a message holds shows only when it has been decoded: two bytes of Opus can be 120 ms, or 23 kB.
        """
        self.heard_at = now
        owner = self._owner
        decode, face = owner.decoder.decode, owner.face
        parts: list[bytes] = []
        taken_bytes = 0
        for number, message in enumerate(messages, 1):
            ask: Ask | None = None
            if isinstance(message, str):
                ask = face.read(message)
            elif len(message) <= SHORT_BYTES:
                ask = face.read_short(message)
            if ask is not None:
                # What it asks is about the audio before it.
                owner.receive(parts, now)
                parts = []
                owner.follow(ask)
            elif owner.takes_audio and isinstance(message, bytes):
                new = message if self.resent is None else self._new_part(self.resent, message)
                if new is None:
                    continue
                parts.append(decode(new))
                if owner.decoder.failures_in_a_row == UNDECODABLE_IN_A_ROW:
                    owner.tell_undecodable()
                taken_bytes += len(parts[-1])
                if taken_bytes >= _STEP_BYTES:
                    owner.receive(parts, now)
                    return messages[number:]
        owner.receive(parts, now)
        return []

    def _new_part(self, again: Resent, message: bytes) -> bytes | None:
        """Return what of a message has not come before; None where all of it has."""
        new = again.rest_of(message)
        if again.is_over:
            self.resent = None
        return new

    # To the device.

    def send(self, messages: list[Any]) -> None:
        """Queue messages as JSON. Once the line is lost this does nothing."""
        for message in messages:
            self.send_text(dumps(message))

    def send_text(self, text: str) -> None:
        """Queue one message. Once the line is lost this does nothing."""
        if self.is_lost:
            return
        try:
            self.websocket.send_nowait(text)
        except DeviceError as error:
            self._owner.lose(self, endings.device_lost(str(error), error.close_code))

    def stop_timers(self) -> None:
        """Beat and acknowledge no more; to be called before the nursery of `start` is over."""
        for timer in self._timers:
            timer.cancel()
        self._timers = []

    def _beat(self, now: float) -> float | None:
        """Send a heartbeat, unless the device has vanished; returns when the next is due."""
        interval = self._shared.settings.heartbeat_seconds
        silent = now - self.websocket.received_at
        if self.is_reading and silent > MISSED_HEARTBEATS * interval:
            self._owner.lose(self, endings.DEVICE_VANISHED)
            return None
        if self._owner.face.has_text_heartbeat:
            self.send([events.PING])
        self.websocket.ping_nowait()
        self._beat_due += interval
        return self._beat_due

    def _start_writer(self) -> None:
        self._nursery.start_soon(self._deliver)

    async def _deliver(self) -> None:
        """Send what the kernel did not take at once, in order."""
        try:
            if not await self.websocket.write(self._shared.settings.send_timeout):
                return
        except PeerTooSlow as error:
            self._owner.lose(self, endings.device_lost(str(error), error.close_code))
            await self.websocket.abort(*self.farewell)
        else:
            # It ends before the session where the connection is lost. The reader meets that end
            # only after all that had arrived before it, and that may be hours of audio.
            with trio.move_on_after(_LAST_AUDIO_SECONDS):
                await self.incoming_ended.wait()
            self._owner.lose(self, endings.DEVICE_VANISHED)

    async def _catch_up(self) -> None:
        """Send what was told after `told`, as fast as the device takes it, then join the present."""
        outbox = self._owner.outbox
        while not self.is_lost:
            missing = outbox.missing_after(self.told)
            if missing is not None:
                self.send([events.messages_missing(missing)])
                self.told = missing.last
            kept = outbox.take_after(self.told, _CATCH_UP_BYTES)
            if not kept:
                break
            for each in kept:
                self.send_text(each.after(self.told))
                self.told = each.last
            await wait_turn()
            await self.websocket.drained(_CATCH_UP_BYTES)
        self.is_catching_up = False
        self.has_caught_up.set()

    def _acknowledge(self, now: float) -> float:
        """Tell the device how far its audio has come; returns when to do so next."""
        assert self._acknowledgement is not None
        if not self.is_catching_up and (news := self._acknowledgement.news()) is not None:
            self.send([news])
        return now + ACKNOWLEDGE_SECONDS
