"""One client's connection: a nursery around the device's side and the transcription."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from omi_rt.codecs import open_decoder
from omi_rt.core import endings, events
from omi_rt.core.asks import AssignSpeaker, Configure, End, Finalize, NotUnderstood
from omi_rt.core.coverage import Coverage
from omi_rt.core.errors import DeviceError, PeerClosed, PeerTooSlow, ProviderError
from omi_rt.core.json import dumps
from omi_rt.core.observers import SessionFacts
from omi_rt.core.transcript import Transcript
from omi_rt.deepgram.transcriber import Transcriber
from omi_rt.faces.face import SHORT_BYTES
from omi_rt.log import get_logger, pseudonym
from omi_rt.metrics import AudioAccount
from omi_rt.net.turns import wait_turn
from omi_rt.server.naming import Naming

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omi_rt.core.asks import Ask
    from omi_rt.core.endings import Ending
    from omi_rt.core.listen import ListenRequest
    from omi_rt.core.observers import Observer
    from omi_rt.core.updates import Update
    from omi_rt.faces.face import Opening
    from omi_rt.net.websocket import WebSocket
    from omi_rt.server.shared import Shared

UNDECODABLE_IN_A_ROW = 50
"""After this many packets, which are 0.5 to 1 s, the device is told that its codec is probably another one."""
KEPT_OPEN_SECONDS = 60.0
"""A client that has an idle limit may say that it is there for this long without ever sending audio."""
IDLE_CHECK_SECONDS = 0.25
"""Two looks at whether a client is idle are at least this far apart."""
ABORT_SECONDS = 2.0
_UNDRAINED_SECONDS = 10.0
"""A session that has had no final for this long is not being drained; in speech finals are closer together."""
_MEMORY_CHECK_SECONDS = 0.25
_STEP_BYTES = 65_536
"""This much audio of one session is decoded before others get a turn: it takes 0.5 ms of Opus."""
_FIRST_MESSAGES_AT_ONCE = 4
"""Before anything has been decoded, this many messages are taken without a look at what they cost."""
_LAST_AUDIO_SECONDS = 5.0
"""A lost connection is read for this long at most, because what the device had sent before lies in the kernel."""
MISSED_HEARTBEATS = 2
"""A device from which not a byte has come for this many heartbeats, not even a pong, has vanished."""


class Session:
    """A device's connection from its upgrade to its last word.

    The device's side and the transcription end apart: a device that goes leaves audio that is still
    to be finalised, and a provider that goes leaves a device that is told so and stays. What the
    device says and is told goes through its face, which alone knows the client's form.

    Args:
        session_id: 32 hexadecimal digits.
        websocket: open.
        opening: what the client asked for, and its face.
        shared: what all sessions share.
        early: messages that have been taken from the WebSocket already.
    """

    def __init__(
        self,
        session_id: str,
        websocket: WebSocket,
        opening: Opening,
        shared: Shared,
        early: Sequence[bytes | str] = (),
    ) -> None:
        settings, profiles = shared.settings, shared.profiles
        request = opening.request
        self.id = session_id
        self._face = opening.face
        self._early = list(early)
        self.coverage = Coverage(request.audio_format, settings.backlog_seconds, shared.budget)
        self._budget = shared.budget
        self._drained_to, self._drained_at = 0, trio.current_time()
        self._websocket = websocket
        self._request = request
        self._settings = settings
        self._metrics = shared.metrics
        self._pace = shared.pace
        peer, uid_hash = websocket.peer, pseudonym(request.uid)
        self._log = get_logger(session=self.id, uid_hash=uid_hash, peer=peer)
        self._heard_at = trio.current_time()
        """When the last message came, which is more than a pong."""
        self._decoder = open_decoder(request.codec, request.sample_rate, request.channels)
        load_anchors = None
        if profiles is not None and request.include_speech_profile:
            load_anchors = partial(profiles.anchors, request.uid, request.audio_format)
        self._transcript = Transcript(
            self.id,
            request.audio_format,
            tell=self._tell,
            new_id=_new_id,
            keeps_voices=load_anchors is not None,
        )
        self._transcriber = Transcriber(
            request,
            shared.provider,
            self.coverage,
            self._transcript,
            tell=self._tell,
            log=self._log,
            load_anchors=load_anchors,
            profile_first=settings.profile_mode == "first",
        )
        self._observers = _observe(session_id, request, shared)
        self._account = AudioAccount(self.coverage, self._transcriber.cost, self._decoder)
        self._nursery: trio.Nursery | None = None
        self._naming = Naming(request, shared, self._transcript, tell=self._tell, log=self._log)
        self._incoming = trio.CancelScope()
        self._incoming_ended = trio.Event()
        self._takes_audio = True
        self._device_is_there = True
        self._is_reading = True
        self._messages_at_once = _FIRST_MESSAGES_AT_ONCE
        self._has_told_undecodable = False
        self._has_logged_unknown = False
        self._has_taken_leave = False
        self._ending = endings.CANCELLED

    async def run(self) -> None:
        """Serve the device until it has all its words, or is gone and all is finalised.

        Cancelling this drops everything; what has no final is then counted as lost.
        """
        self._log.info(
            "session_started",
            codec=self._request.codec,
            sample_rate=self._request.sample_rate,
            channels=self._request.channels,
            language=self._request.language,
        )
        self._metrics.sessions.inc()
        self._metrics.audio.open(self._account)
        self._send(self._face.greet())
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._deliver)
                nursery.start_soon(self._serve_device)
                nursery.start_soon(self._send_heartbeat)
                if self._face.idle_seconds is not None:
                    nursery.start_soon(self._end_when_idle, self._face.idle_seconds)
                await self._transcribe()
                await self._take_leave()
                nursery.cancel_scope.cancel()
        except* Exception as group:  # noqa: BLE001 - the seam: one session's fault touches no other
            self._ending = endings.INTERNAL_ERROR
            self._metrics.faults.inc()
            self._log.exception("session_fault", exc_info=group)
        finally:
            if trio.current_effective_deadline() == -math.inf:
                self._ending = endings.CANCELLED
            self._decoder.close()
            self.coverage.lose_pending()
            self._report()
            for observer in self._observers:
                observer.close()
            with trio.move_on_after(ABORT_SECONDS, shield=True):
                await self._websocket.abort(self._ending.close_code, self._ending.reason)

    @property
    def uid(self) -> str:
        """Whose session it is; empty where nobody was named."""
        return self._request.uid

    @property
    def received_samples(self) -> int:
        """Samples of audio per channel that have come so far."""
        return self.coverage.ledger.received

    @property
    def sample_rate(self) -> int:
        """Of the audio, in Hz."""
        return self.coverage.audio_format.sample_rate

    @property
    def is_reading(self) -> bool:
        """Whether the device is read now: a full backlog or memory makes it wait."""
        return self._is_reading

    @property
    def takes_audio(self) -> bool:
        """Whether more audio may come: the session is not ending yet."""
        return self._takes_audio

    def end(self, ending: Ending) -> None:
        """End the session: finalise what has come, tell the device, close.

        A session that ends already goes on doing so.
        """
        if self._takes_audio:
            self._end(ending)

    @property
    def has_said_all(self) -> bool:
        """Whether everything is final, and the device has been sent its account, if it is there."""
        return self._has_taken_leave and self._websocket.has_sent_all

    def drain(self, within: float) -> None:
        """End the session because the server goes: finalise, tell the device, close with 1001.

        Args:
            within: seconds that finalising may take.
        """
        self._end(endings.SERVER_GOING_AWAY, within)

    # The device's side.

    async def _serve_device(self) -> None:
        with self._incoming:
            try:
                await self._receive_audio()
            except PeerClosed as closed:
                self._lose_device(endings.device_lost(f"device_closed_{closed.code}", closed.code))
        if not self._device_is_there:
            # Its side ends now, whatever is still to be finalised.
            await self._websocket.aclose(self._ending.close_code, self._ending.reason)
        self._incoming_ended.set()

    async def _receive_audio(self) -> None:
        """Take every message that is there, decode it, put it into the backlog; nothing else."""
        websocket, pace, backlog = self._websocket, self._pace, self.coverage.backlog
        rate = self.coverage.audio_format.sample_rate
        early, self._early = self._early, []
        self._take(early, websocket.received_at)
        while True:
            messages = await websocket.receive(self._take_at_once)
            # Asked once and passed on: every frame comes this way.
            now, before = websocket.received_at, backlog.end
            self._heard_at = now
            if len(messages) <= self._messages_at_once:
                self._take(messages, now)
            else:
                await self._take_in_steps(messages, now)
            if self.coverage.is_full and self._takes_audio:
                self._is_reading = False
                await self._transcriber.make_room()
                self._is_reading = True
                now = trio.current_time()
            if self._budget.is_scarce and self._takes_audio:
                await self._wait_for_memory()
                now = trio.current_time()
            if websocket.has_more:
                continue
            if not messages or pace.has_slack(now):
                continue
            pause = pace.pause((backlog.end - before) / rate / len(messages))
            if pause > 0.0:
                await pace.rest(pause)
                websocket.expect_data()

    def _take_at_once(self, messages: list[bytes | str], now: float) -> list[bytes | str] | None:
        """Take messages as they arrive; returns what is left for the session's own task, which may wait."""
        if len(messages) > self._messages_at_once:
            return messages
        self._heard_at = now
        self._take(messages, now)
        return [] if self.coverage.is_full or self._budget.is_scarce else None

    async def _take_in_steps(self, messages: list[bytes | str], now: float) -> None:
        """Take many messages in the line of all that bring much, `_STEP_BYTES` of audio at a time.

        A message of two bytes can hold 120 ms of Opus, which decode to 23 kB: what a message costs
        shows in what came of those before it.
        """
        backlog, size = self.coverage.backlog, self.coverage.audio_format.frame_bytes
        done = 0
        while done < len(messages):
            step = messages[done : done + self._messages_at_once]
            if done:
                await wait_turn()
            before = backlog.end
            self._take(step, now)
            bytes_each = (backlog.end - before) * size / len(step)
            self._messages_at_once = max(1, int(_STEP_BYTES / max(bytes_each, 1.0)))
            done += len(step)

    async def _wait_for_memory(self) -> None:
        """Return when all sessions' backlogs leave room for more of this one's audio.

        Until then the device is not read, and TCP slows it, whether or not Deepgram is away: nothing
        is given up for the sake of other sessions. A device that has gone meanwhile is noticed by
        the task that writes to it.
        """
        if self._has_memory():
            return
        self._metrics.held_back.inc()
        self._is_reading = False
        # Any of a thousand others may make room, by any final.
        while (  # noqa: ASYNC110
            not self._has_memory() and self._takes_audio and self._websocket.can_send
        ):
            await trio.sleep(_MEMORY_CHECK_SECONDS)
        self._is_reading = True
        # Else the pause would count as the device's.
        await self._transcriber.make_room()

    def _has_memory(self) -> bool:
        backlog, now = self.coverage.backlog, trio.current_time()
        if backlog.start != self._drained_to:
            self._drained_to, self._drained_at = backlog.start, now
        is_drained = now - self._drained_at < _UNDRAINED_SECONDS
        return self._budget.has_room_for(backlog.held_bytes, is_drained=is_drained)

    def _take(self, messages: list[bytes | str], now: float) -> None:
        decode, face = self._decoder.decode, self._face
        parts: list[bytes] = []
        for message in messages:
            ask: Ask | None = None
            if isinstance(message, str):
                ask = face.read(message)
            elif len(message) <= SHORT_BYTES:
                ask = face.read_short(message)
            if ask is not None:
                # What it asks is about the audio before it.
                self._receive(parts, now)
                parts = []
                self._follow(ask)
            elif self._takes_audio and isinstance(message, bytes):
                parts.append(decode(message))
                if self._decoder.failures_in_a_row == UNDECODABLE_IN_A_ROW:
                    self._tell_undecodable()
        self._receive(parts, now)

    def _receive(self, parts: list[bytes], now: float) -> None:
        if parts:
            payload = parts[0] if len(parts) == 1 else b"".join(parts)
            self._face.hear(payload)
            for observer in self._observers:
                observer.hear(payload)
            self._transcriber.receive(payload, now)

    def _follow(self, ask: Ask) -> None:
        """Do what the client asks."""
        match ask:
            case End():
                self._end(endings.CLIENT_CLOSED_STREAM)
            case NotUnderstood():
                if not self._has_logged_unknown:
                    self._has_logged_unknown = True
                    # Without what it says: it may be anything.
                    self._log.info("unknown_message")
                self._tell(ask)
            case Finalize(channel=channel):
                if self._takes_audio:
                    self._transcriber.finalize(channel)
            case Configure(keyterms=keyterms, numerals=numerals):
                if self._takes_audio:
                    self._transcriber.configure(keyterms, numerals=numerals)
            case AssignSpeaker():
                assert self._nursery is not None
                self._naming.assign(ask, self._nursery)
            case _:
                pass

    def _tell_undecodable(self) -> None:
        if self._has_told_undecodable:
            return
        self._has_told_undecodable = True
        self._log.warning("undecodable_audio", codec=self._request.codec)
        self._tell(events.undecodable_audio(self._request.codec, UNDECODABLE_IN_A_ROW))

    async def _send_heartbeat(self) -> None:
        interval = self._settings.heartbeat_seconds
        beat = trio.current_time()
        while True:
            beat += interval
            await trio.sleep_until(beat)
            silent = trio.current_time() - self._websocket.received_at
            if self._is_reading and silent > MISSED_HEARTBEATS * interval:
                self._lose_device(endings.DEVICE_VANISHED)
                return
            if self._face.has_text_heartbeat:
                self._send([events.PING])
            self._websocket.ping_nowait()

    async def _end_when_idle(self, limit: float) -> None:
        """End the session when no message comes for ``limit`` seconds, as the face has it.

        Before any audio a client that only says that it is there is waited for
        `KEPT_OPEN_SECONDS` at most.
        """
        opened_at = trio.current_time()
        while self._takes_audio:
            now = trio.current_time()
            due = self._heard_at + limit
            if not self.coverage.backlog.end:
                due = min(due, opened_at + max(limit, KEPT_OPEN_SECONDS))
            if now >= due and self._is_reading and not self._websocket.has_more:
                self._end(endings.CLIENT_IDLE)
                return
            await trio.sleep(max(due - now, IDLE_CHECK_SECONDS))

    async def _deliver(self) -> None:
        """Send segments, events and heartbeats to the device, in order."""
        try:
            await self._websocket.run_writer(self._settings.send_timeout)
        except PeerTooSlow as error:
            self._lose_device(endings.device_lost(str(error), error.close_code))
            await self._websocket.abort(self._ending.close_code, self._ending.reason)
        else:
            # It ends before the session where the connection is lost. The reader meets that end
            # only after all that had arrived before it, and that may be hours of audio.
            with trio.move_on_after(_LAST_AUDIO_SECONDS):
                await self._incoming_ended.wait()
            if self._device_is_there:
                self._lose_device(endings.DEVICE_VANISHED)

    # The provider's side.

    async def _transcribe(self) -> None:
        try:
            await self._transcriber.run()
        except ProviderError as error:
            self._log.error("provider_failed", reason=str(error))
            self._tell(events.service_status("stt_failed", str(error)))
            self._ending = endings.STT_FAILED

    async def _take_leave(self) -> None:
        self._incoming.cancel()
        await self._incoming_ended.wait()
        await self._naming.wait_until_stored()
        self._tell(
            events.session_ended(
                self.coverage.balance(),
                self._transcriber.cost,
                self.coverage.audio_format,
                self._ending.reason,
                self._transcript.identities_known_from,
            )
        )
        self._has_taken_leave = True
        if self._device_is_there:
            await self._websocket.aclose(self._ending.close_code, self._ending.reason)

    # Ends.

    def _end(self, ending: Ending, within: float | None = None) -> None:
        if self._takes_audio:
            self._takes_audio = False
            self._ending = ending
        self._transcriber.end_audio(within)

    def _lose_device(self, ending: Ending) -> None:
        self._device_is_there = False
        self._incoming.cancel()
        self._end(ending)

    # What goes to the device.

    def _tell(self, update: Update) -> None:
        for observer in self._observers:
            observer.note(update)
        if self._device_is_there:
            self._send(self._face.write(update))

    def _send(self, messages: list[Any]) -> None:
        if not self._device_is_there:
            return
        try:
            for message in messages:
                self._websocket.send_nowait(dumps(message))
        except DeviceError as error:
            self._lose_device(endings.device_lost(str(error), error.close_code))

    def _report(self) -> None:
        audio_format = self.coverage.audio_format
        balance = self.coverage.balance()
        account, cost = balance.in_seconds(audio_format), self._transcriber.cost
        metrics = self._metrics
        metrics.sessions.dec()
        metrics.sessions_ended.labels(self._ending.kind.value).inc()
        metrics.audio.close(self._account)
        self._log.info(
            "session_ended",
            reason=self._ending.reason,
            close_code=self._ending.close_code,
            **account,
            **{f"sent_{name}": value for name, value in cost.in_seconds(audio_format).items()},
            **ledger_details(self.coverage),
            concealed_packets=self._decoder.concealed_packets,
        )
        if not balance.is_exact:
            self._log.error("ledger_unbalanced", **account)


def _observe(session_id: str, request: ListenRequest, shared: Shared) -> list[Observer]:
    facts = SessionFacts(
        session_id, request.uid, request.language, request.audio_format, datetime.now(UTC)
    )
    return [watch(facts) for watch in shared.watches]


def ledger_details(coverage: Coverage) -> dict[str, float]:
    """The seconds of finalised audio that no final covered, by the reason why they count."""
    ledger, seconds = coverage.ledger, coverage.audio_format.seconds
    details = {
        "finalised_as_silence": seconds(ledger.finalised_as_silence),
        "finalised_unanswered": seconds(ledger.finalised_unanswered),
        "finalised_by_metadata": seconds(ledger.finalised_by_metadata),
    }
    return {name: value for name, value in details.items() if value}


_ids = Random()  # seeded by the system


def _new_id() -> str:
    """128 random bits: a name, no secret. ``uuid4`` asks the system each time, 2 % under load."""
    return f"{_ids.getrandbits(128):032x}"
