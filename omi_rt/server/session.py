"""One client's session: a nursery around its connections, one after another, and the transcription."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from omi_rt.codecs import open_decoder
from omi_rt.codecs.resent import resent
from omi_rt.core import endings, events
from omi_rt.core.acknowledgement import ACKNOWLEDGE_SECONDS, Acknowledgement
from omi_rt.core.asks import AssignSpeaker, Configure, End, Finalize, NotUnderstood
from omi_rt.core.coverage import Coverage
from omi_rt.core.errors import DeviceError, PeerClosed, PeerTooSlow, ProviderError
from omi_rt.core.json import dumps
from omi_rt.core.observers import SessionFacts
from omi_rt.core.outbox import Outbox
from omi_rt.core.presence import Move, Presence, after_move
from omi_rt.core.resume import RESUMES_AT_ONCE, RESUMES_PER_SECOND, Outcome, decide
from omi_rt.core.token_bucket import TokenBucket
from omi_rt.core.transcript import Transcript
from omi_rt.core.updates import Interim
from omi_rt.deepgram.transcriber import Transcriber
from omi_rt.faces.face import SHORT_BYTES
from omi_rt.log import get_logger, pseudonym
from omi_rt.metrics import AudioAccount
from omi_rt.net.turns import wait_turn
from omi_rt.server.naming import Naming

if TYPE_CHECKING:
    from omi_rt.codecs.resent import Resent
    from omi_rt.core.asks import Ask
    from omi_rt.core.endings import Ending
    from omi_rt.core.listen import ListenRequest
    from omi_rt.core.observers import Observer
    from omi_rt.core.resume import Decision, Wish
    from omi_rt.core.updates import Update
    from omi_rt.faces.face import Opening
    from omi_rt.server.line import Line
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
_LAST_AUDIO_SECONDS = 5.0
"""A lost connection is read for this long at most, because what the device had sent before lies in the kernel."""
_LEFT_CODE = 1000
"""A device that closes with this code goes on purpose, and nobody waits for it."""
_CATCH_UP_BYTES = 65_536
"""This much of what was told before is queued at once."""
MISSED_HEARTBEATS = 2
"""A device from which not a byte has come for this many heartbeats, not even a pong, has vanished."""


class Session:
    """What one device says, from its first upgrade to its last word, over all of its connections.

    The device's side and the transcription end apart: a device that goes leaves audio that is still
    to be finalised, and a provider that goes leaves a device that is told so and stays. A connection
    that is lost can be followed by another. What the device says and is told goes through its face,
    which alone knows the client's form.

    Args:
        session_id: 32 hexadecimal digits.
        line: the first connection.
        opening: what the client asked for, and its face.
        shared: what all sessions share.
        wish: what the client said of a connection before this one.
    """

    def __init__(
        self,
        session_id: str,
        line: Line,
        opening: Opening,
        shared: Shared,
        wish: Wish,
    ) -> None:
        settings, request = shared.settings, opening.request
        self.id = session_id
        self._face = opening.face
        self.coverage = Coverage(request.audio_format, settings.backlog_seconds, shared.budget)
        self._budget = shared.budget
        self._drained_to, self._drained_at = 0, trio.current_time()
        self._line = line
        """The last connection, perhaps lost."""
        self._presence = Presence.HERE
        self._has_come_back = trio.Event()
        self._loss = endings.DEVICE_VANISHED
        """How the session ends if the device does not come back."""
        self._resumable = shared.resumable
        self._tells_status = opening.face.tells_status or wish.is_spoken
        self._may_be_resumed = False
        """Whether the device has been told how."""
        self._secret: str | None = None
        """While it has not been told for the last time."""
        self._outbox = Outbox(is_kept=self._tells_status and settings.resume_seconds > 0)
        self._resumes: TokenBucket | None = None
        self._nursery: trio.Nursery | None = None
        self._wish = wish
        self._request = request
        self._settings = settings
        self._metrics = shared.metrics
        self._pace = shared.pace
        peer, uid_hash = line.websocket.peer, pseudonym(request.uid)
        self._log = get_logger(session=self.id, uid_hash=uid_hash, peer=peer)
        self._heard_at = trio.current_time()
        """When the last message came, which is more than a pong."""
        self._decoder = open_decoder(request.codec, request.sample_rate, request.channels)
        self._transcript, self._transcriber = self._make_transcriber(request, shared)
        self._observers = _observe(session_id, request, shared)
        self._account = AudioAccount(self.coverage, self._transcriber.cost, self._decoder)
        self._naming = Naming(request, shared, self._transcript, tell=self._tell, log=self._log)
        self._takes_audio = True
        self._has_told_undecodable = False
        self._has_logged_unknown = False
        self._has_taken_leave = False
        self._ending = endings.CANCELLED

    def _make_transcriber(
        self, request: ListenRequest, shared: Shared
    ) -> tuple[Transcript, Transcriber]:
        settings, profiles = shared.settings, shared.profiles
        load_anchors = None
        if profiles is not None and request.include_speech_profile:
            load_anchors = partial(profiles.anchors, request.uid, request.audio_format)
        transcript = Transcript(
            self.id,
            request.audio_format,
            tell=self._tell,
            new_id=_new_id,
            keeps_voices=load_anchors is not None,
        )
        transcriber = Transcriber(
            request,
            shared.provider,
            self.coverage,
            transcript,
            tell=self._tell,
            log=self._log,
            load_anchors=load_anchors,
            profile_first=settings.profile_mode == "first",
        )
        return transcript, transcriber

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
        self._send(self._line, self._face.greet())
        if self._wish.secret is not None:
            self._send(self._line, [events.RESUME_UNKNOWN])
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._start_line(nursery, self._line)
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
            self._resumable.forget(self)
            self._decoder.close()
            self.coverage.lose_pending()
            self._report()
            for observer in self._observers:
                observer.close()
            with trio.move_on_after(ABORT_SECONDS, shield=True):
                await self._line.websocket.abort(self._ending.close_code, self._ending.reason)
            self._line.over.set()

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
        """Whether the device is there and read now: a full backlog or memory makes it wait."""
        return self._presence is not Presence.AWAY and self._line.is_reading

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
        line = self._line
        return self._has_taken_leave and (line.is_lost or line.websocket.has_sent_all)

    def drain(self, within: float) -> None:
        """End the session because the server goes: finalise, tell the device, close with 1001.

        Args:
            within: seconds that finalising may take.
        """
        self._end(endings.SERVER_GOING_AWAY, within)

    # One connection after another.

    def resume(self, line: Line, opening: Opening, wish: Wish) -> Decision:
        """Let another connection take the session up, if it may; the former one is then closed."""
        now = trio.current_time()
        is_ending = self._nursery is None or self._nursery.cancel_scope.cancel_called
        if self._resumes is None:
            self._resumes = TokenBucket.full(RESUMES_PER_SECOND, RESUMES_AT_ONCE, now)
        decision = decide(
            wish,
            opening.request,
            presence=Presence.GONE if is_ending else self._presence,
            begun=self._request,
            told=self._outbox.last_seq,
            is_too_often=self._resumes.delay(1.0, now) > 0.0,
        )
        if decision.outcome is Outcome.RESUMED:
            self._resumes.take(1.0)
            self._take_up(line, opening, wish, now)
        return decision

    def _take_up(self, line: Line, opening: Opening, wish: Wish, now: float) -> None:
        self._presence = after_move(self._presence, Move.RESUME)
        self._resumable.stop_waiting(self)
        self._has_come_back.set()
        self._line.lose(*endings.TAKEN_OVER)
        self._line, self._heard_at = line, now
        self._decoder.cut()
        audio_format, received = self.coverage.audio_format, self.coverage.backlog.end
        if wish.start is not None and (again := received - audio_format.samples(wish.start)) > 0:
            line.resent = resent(self._request, again)
        line.told = self._outbox.recent(now) if wish.after is None else wish.after
        line.is_catching_up = True
        self._log.info(
            "session_resumed", peer=line.websocket.peer, received=audio_format.seconds(received)
        )
        resumed = events.resumed(self.id, received, audio_format)
        self._send(line, [*opening.face.greet(), resumed])
        assert self._nursery is not None
        self._start_line(self._nursery, line)

    def _start_line(self, nursery: trio.Nursery, line: Line) -> None:
        nursery.start_soon(self._deliver, line)
        nursery.start_soon(self._serve_device, line)
        nursery.start_soon(self._send_heartbeat, line)
        if line.is_catching_up:
            nursery.start_soon(self._catch_up, line)
        if line.acknowledges:
            nursery.start_soon(self._acknowledge, line)

    async def _wait_for_device(self, has_come_back: trio.Event) -> None:
        with trio.move_on_after(self._settings.resume_seconds):
            await has_come_back.wait()
        if not has_come_back.is_set():
            self.stop_waiting()

    def stop_waiting(self) -> None:
        """Give up a device that is away: what there is of its audio is finalised, as ever."""
        if self._presence is Presence.AWAY:
            self._log.info("device_stayed_away", reason=self._loss.reason)
            self._end(self._loss)

    async def _catch_up(self, line: Line) -> None:
        """Send what was told after `Line.told`, as fast as the device takes it, then join the present."""
        outbox = self._outbox
        while not line.is_lost:
            missing = outbox.missing_after(line.told)
            if missing is not None:
                self._send(line, [events.messages_missing(missing)])
                line.told = missing.last
            kept = outbox.take_after(line.told, _CATCH_UP_BYTES)
            if not kept:
                break
            for each in kept:
                self._send_text(line, each.after(line.told))
                line.told = each.last
            await wait_turn()
            await line.websocket.drained(_CATCH_UP_BYTES)
        line.is_catching_up = False
        line.has_caught_up.set()

    async def _acknowledge(self, line: Line) -> None:
        """Tell the device how far its audio has come."""
        acknowledgement = Acknowledgement(self.coverage)
        while not line.is_lost:
            await trio.sleep(ACKNOWLEDGE_SECONDS)
            if not line.is_catching_up and (news := acknowledgement.news()) is not None:
                self._send(line, [news])

    # The device's side.

    async def _serve_device(self, line: Line) -> None:
        with line.incoming:
            try:
                await self._receive_audio(line)
            except PeerClosed as closed:
                self._lose(
                    line,
                    endings.device_lost(f"device_closed_{closed.code}", closed.code),
                    is_left=closed.code == _LEFT_CODE,
                )
        if line.is_lost:
            # Its side ends now, whatever is still to be finalised.
            await line.websocket.aclose(*line.farewell)
            line.over.set()
        line.incoming_ended.set()

    async def _receive_audio(self, line: Line) -> None:
        """Take every message that is there, decode it, put it into the backlog; nothing else."""
        websocket, pace, backlog = line.websocket, self._pace, self.coverage.backlog
        rate = self.coverage.audio_format.sample_rate
        take = partial(self._take_at_once, line)
        early, line.early = line.early, []
        self._take(line, early, websocket.received_at)
        while True:
            messages = await websocket.receive(take)
            if line.is_lost:
                # Taken over meanwhile: the device has been told where its audio goes on.
                return
            # Asked once and passed on: every frame comes this way.
            now, before = websocket.received_at, backlog.end
            self._heard_at = now
            if len(messages) <= line.messages_at_once:
                self._take(line, messages, now)
            else:
                await self._take_in_steps(line, messages, now)
            if self.coverage.is_full and self._takes_audio:
                line.is_reading = False
                await self._transcriber.make_room()
                line.is_reading = True
                now = trio.current_time()
            if self._budget.is_scarce and self._takes_audio:
                await self._wait_for_memory(line)
                now = trio.current_time()
            if websocket.has_more:
                continue
            if not messages or pace.has_slack(now):
                continue
            pause = pace.pause((backlog.end - before) / rate / len(messages))
            if pause > 0.0:
                await pace.rest(pause)
                websocket.expect_data()

    def _take_at_once(
        self, line: Line, messages: list[bytes | str], now: float
    ) -> list[bytes | str] | None:
        """Take messages as they arrive; returns what is left for the line's own task, which may wait."""
        if line.is_lost:
            # What comes after another line has taken the session up is nobody's.
            return []
        if len(messages) > line.messages_at_once:
            return messages
        self._heard_at = now
        self._take(line, messages, now)
        return [] if self.coverage.is_full or self._budget.is_scarce else None

    async def _take_in_steps(self, line: Line, messages: list[bytes | str], now: float) -> None:
        """Take many messages in the line of all that bring much, `_STEP_BYTES` of audio at a time.

        A message of two bytes can hold 120 ms of Opus, which decode to 23 kB: what a message costs
        shows in what came of those before it.
        """
        backlog, size = self.coverage.backlog, self.coverage.audio_format.frame_bytes
        done = 0
        while done < len(messages):
            step = messages[done : done + line.messages_at_once]
            if done:
                await wait_turn()
                if line.is_lost:
                    return
            before = backlog.end
            self._take(line, step, now)
            bytes_each = (backlog.end - before) * size / len(step)
            line.messages_at_once = max(1, int(_STEP_BYTES / max(bytes_each, 1.0)))
            done += len(step)

    async def _wait_for_memory(self, line: Line) -> None:
        """Return when all sessions' backlogs leave room for more of this one's audio.

        Until then the device is not read, and TCP slows it, whether or not Deepgram is away: nothing
        is given up for the sake of other sessions. A device that has gone meanwhile is noticed by
        the task that writes to it.
        """
        if self._has_memory():
            return
        self._metrics.held_back.inc()
        line.is_reading = False
        # Any of a thousand others may make room, by any final.
        while (  # noqa: ASYNC110
            not self._has_memory() and self._takes_audio and line.websocket.can_send
        ):
            await trio.sleep(_MEMORY_CHECK_SECONDS)
        line.is_reading = True
        # Else the pause would count as the device's.
        await self._transcriber.make_room()

    def _has_memory(self) -> bool:
        backlog, now = self.coverage.backlog, trio.current_time()
        if backlog.start != self._drained_to:
            self._drained_to, self._drained_at = backlog.start, now
        is_drained = now - self._drained_at < _UNDRAINED_SECONDS
        return self._budget.has_room_for(backlog.held_bytes, is_drained=is_drained)

    def _take(self, line: Line, messages: list[bytes | str], now: float) -> None:
        decode, face = self._decoder.decode, self._face
        if line.resent is not None:
            messages = self._leave_out_resent(line, line.resent, messages)
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

    def _leave_out_resent(
        self, line: Line, again: Resent, messages: list[bytes | str]
    ) -> list[bytes | str]:
        """Return the messages without audio that has come before."""
        new: list[bytes | str] = []
        for message in messages:
            is_ask = isinstance(message, str) or (
                len(message) <= SHORT_BYTES and self._face.read_short(message) is not None
            )
            rest = message if is_ask or isinstance(message, str) else again.rest_of(message)
            if rest is not None:
                new.append(rest)
        if again.is_over:
            line.resent = None
        return new

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

    async def _send_heartbeat(self, line: Line) -> None:
        interval = self._settings.heartbeat_seconds
        beat = trio.current_time()
        while True:
            beat += interval
            await trio.sleep_until(beat)
            if line.is_lost:
                return
            silent = trio.current_time() - line.websocket.received_at
            if line.is_reading and silent > MISSED_HEARTBEATS * interval:
                self._lose(line, endings.DEVICE_VANISHED)
                return
            if self._face.has_text_heartbeat:
                self._send(line, [events.PING])
            line.websocket.ping_nowait()

    async def _end_when_idle(self, limit: float) -> None:
        """End the session when no message comes for ``limit`` seconds, as the face has it.

        Before any audio a client that only says that it is there is waited for
        `KEPT_OPEN_SECONDS` at most. One that is away is not idle.
        """
        opened_at = trio.current_time()
        while self._takes_audio:
            now = trio.current_time()
            due = self._heard_at + limit
            if not self.coverage.backlog.end:
                due = min(due, opened_at + max(limit, KEPT_OPEN_SECONDS))
            line = self._line
            is_idle = now >= due and line.is_reading and not line.websocket.has_more
            if is_idle and self._presence is Presence.HERE:
                self._end(endings.CLIENT_IDLE)
                return
            await trio.sleep(max(due - now, IDLE_CHECK_SECONDS))

    async def _deliver(self, line: Line) -> None:
        """Send segments, events and heartbeats to the device, in order."""
        try:
            await line.websocket.run_writer(self._settings.send_timeout)
        except PeerTooSlow as error:
            self._lose(line, endings.device_lost(str(error), error.close_code))
            await line.websocket.abort(*line.farewell)
        else:
            # It ends before the session where the connection is lost. The reader meets that end
            # only after all that had arrived before it, and that may be hours of audio.
            with trio.move_on_after(_LAST_AUDIO_SECONDS):
                await line.incoming_ended.wait()
            self._lose(line, endings.DEVICE_VANISHED)

    # The provider's side.

    async def _transcribe(self) -> None:
        try:
            await self._transcriber.run()
        except ProviderError as error:
            self._log.error("provider_failed", reason=str(error))
            self._tell(events.service_status("stt_failed", str(error)))
            self._ending = endings.STT_FAILED
            self._presence = after_move(self._presence, Move.LEAVE)

    async def _take_leave(self) -> None:
        line = self._line
        line.incoming.cancel()
        await line.incoming_ended.wait()
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
        if line.is_catching_up:
            await line.has_caught_up.wait()
        self._has_taken_leave = True
        if not line.is_lost:
            await line.websocket.aclose(self._ending.close_code, self._ending.reason)

    # Ends.

    def _end(self, ending: Ending, within: float | None = None) -> None:
        if self._takes_audio:
            self._takes_audio = False
            self._ending = ending
        self._presence = after_move(self._presence, Move.LEAVE)
        self._resumable.stop_waiting(self)
        self._transcriber.end_audio(within)

    def _lose(self, line: Line, ending: Ending, *, is_left: bool = False) -> None:
        """Give a connection up, and the session unless it waits for another.

        Args:
            line: the connection; once it has been given up, another call does nothing.
            ending: of the session, if no other connection comes.
            is_left: whether the device has closed it on purpose.
        """
        if line.is_lost:
            return
        line.lose(ending.close_code, ending.reason)
        if self._may_be_resumed and self._presence is Presence.HERE and not is_left:
            self._presence = after_move(self._presence, Move.LOSE)
            self._loss, self._has_come_back = ending, trio.Event()
            self._log.info("device_away", reason=ending.reason)
            assert self._nursery is not None
            self._nursery.start_soon(self._wait_for_device, self._has_come_back)
            if (other := self._resumable.wait(self)) is not None:
                other.stop_waiting()
            return
        self._presence = after_move(self._presence, Move.GO)
        self._end(ending)
        line.farewell = (self._ending.close_code, self._ending.reason)

    # What goes to the device.

    def _tell(self, update: Update) -> None:
        for observer in self._observers:
            observer.note(update)
        if self._presence is Presence.GONE:
            return
        messages = self._face.write(update)
        if not self._tells_status or isinstance(update, Interim):
            self._send(self._line, messages)
            return
        status = update.get("status") if isinstance(update, dict) else None
        if isinstance(update, dict) and not self._face.tells_status and not messages:
            # A client that has asked for it gets events for which its face has no form.
            messages = [update]
        for message in messages:
            before = self._outbox.last_seq
            numbered = self._outbox.number(message)
            text = dumps(numbered)
            # Without the secret: who comes back has it.
            self._outbox.keep(self._outbox.last_seq - before, text, trio.current_time())
            if status in {"initiating", "ready"}:
                text = dumps(numbered | self._way_back(is_last=status == "ready"))
            if not self._line.is_catching_up:
                self._send_text(self._line, text)

    def _way_back(self, *, is_last: bool) -> dict[str, str]:
        """Return what to add to an event that tells how to come back.

        The secret is told twice: before the provider is there, and when it is. Then it is forgotten.
        """
        if not self._may_be_resumed and self._settings.resume_seconds and not self._line.is_lost:
            self._may_be_resumed, self._secret = True, self._resumable.issue(self)
        secret = self._secret
        if is_last:
            self._secret = None
        return {} if secret is None else {"resume": secret}

    def _send(self, line: Line, messages: list[Any]) -> None:
        for message in messages:
            self._send_text(line, dumps(message))

    def _send_text(self, line: Line, text: str) -> None:
        if line.is_lost:
            return
        try:
            line.websocket.send_nowait(text)
        except DeviceError as error:
            self._lose(line, endings.device_lost(str(error), error.close_code))

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
    return [watch(facts) for watch in (*shared.watches, shared.watching.observe)]


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
