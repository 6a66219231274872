"""One client's session: a nursery around its connections, one after another, and the transcription."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import trio

from omi_rt.codecs import open_decoder
from omi_rt.codecs.resent import resent
from omi_rt.core import endings, events
from omi_rt.core.asks import AssignSpeaker, Configure, End, Finalize, NotUnderstood, Suggest
from omi_rt.core.budget import BacklogShare
from omi_rt.core.coverage import Coverage
from omi_rt.core.errors import ProviderError
from omi_rt.core.json import dumps
from omi_rt.core.observers import SessionFacts
from omi_rt.core.outbox import Outbox
from omi_rt.core.presence import Move, Presence, after_move
from omi_rt.core.resume import RESUMES_AT_ONCE, RESUMES_PER_SECOND, Outcome, decide
from omi_rt.core.token_bucket import TokenBucket
from omi_rt.core.transcript import Transcript
from omi_rt.core.updates import Interim
from omi_rt.deepgram.transcriber import Transcriber
from omi_rt.log import get_logger, pseudonym
from omi_rt.metrics import AudioAccount
from omi_rt.server.account import log_end
from omi_rt.server.client_transcriber import ClientTranscriber
from omi_rt.server.line import UNDECODABLE_IN_A_ROW
from omi_rt.server.naming import Naming
from omi_rt.server.resumable import WayBack

if TYPE_CHECKING:
    from collections.abc import Callable

    from omi_rt.core.asks import Ask
    from omi_rt.core.endings import Ending
    from omi_rt.core.listen import ListenRequest
    from omi_rt.core.observers import Observer
    from omi_rt.core.resume import Decision, Wish
    from omi_rt.core.updates import Update
    from omi_rt.faces.face import Opening
    from omi_rt.server.line import Line
    from omi_rt.server.shared import Shared

KEPT_OPEN_SECONDS = 60.0
"""A client that has an idle limit may say that it is there for this long without ever sending audio."""
IDLE_CHECK_SECONDS = 0.25
"""Two looks at whether a client is idle are at least this far apart."""
ABORT_SECONDS = 2.0


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

    # With so many attributes an instance's dictionary would not share its keys with the others': 1.6 KB.
    __slots__ = (
        "__weakref__",
        "_account",
        "_ending",
        "_has_come_back",
        "_has_logged_unknown",
        "_has_taken_leave",
        "_has_told_undecodable",
        "_line",
        "_listeners",
        "_log",
        "_loss",
        "_metrics",
        "_naming",
        "_nursery",
        "_observers",
        "_presence",
        "_request",
        "_resumable",
        "_resumes",
        "_settings",
        "_share",
        "_tells_status",
        "_transcriber",
        "_transcript",
        "_way_back",
        "_wish",
        "coverage",
        "decoder",
        "face",
        "id",
        "is_overheard",
        "outbox",
        "pass_on",
        "takes_audio",
    )

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
        self.face = opening.face
        self.coverage = Coverage(request.audio_format, settings.backlog_seconds, shared.budget)
        self._share = BacklogShare(shared.budget, trio.current_time())
        self._line = line
        """The last connection, perhaps lost."""
        self._presence = Presence.HERE
        self._has_come_back: trio.Event | None = None
        """While the device is away."""
        self._loss = endings.DEVICE_VANISHED
        """How the session ends if the device does not come back."""
        self._resumable = shared.resumable
        self._tells_status = opening.face.tells_status or wish.is_spoken
        self._way_back = WayBack(self, shared.resumable if settings.resume_seconds else None)
        self.outbox = Outbox(
            shared.budget, is_kept=self._tells_status and settings.resume_seconds > 0
        )
        self._resumes: TokenBucket | None = None
        self._nursery: trio.Nursery | None = None
        self._wish = wish
        self._request = request
        self._settings = settings
        self._metrics = shared.metrics
        peer, uid_hash = line.websocket.peer, pseudonym(request.uid)
        self._log = get_logger(session=self.id, uid_hash=uid_hash, peer=peer)
        self.decoder = open_decoder(request.codec, request.sample_rate, request.channels)
        tell = self._tell  # one for all: each bound method is an object
        self._transcript, self._transcriber = self._make_transcriber(request, shared, tell)
        self._observers = self._observe(request, shared)
        self._listeners = [observer for observer in self._observers if observer.hears_audio]
        self.is_overheard = bool(self._listeners) or self.face.hears_audio
        """Whether anybody but the provider wants the decoded audio."""
        self.pass_on: Callable[[bytes, float], None] = self._transcriber.receive
        """Takes decoded audio that nobody else hears."""
        self._account = AudioAccount(self.coverage, self._transcriber.cost, self.decoder)
        self._naming = Naming(request, shared, self._transcript, tell=tell, log=self._log)
        self.takes_audio = True
        """Whether more audio may come: the session is not ending yet."""
        self._has_told_undecodable = False
        self._has_logged_unknown = False
        self._has_taken_leave = False
        self._ending = endings.CANCELLED

    def _make_transcriber(
        self, request: ListenRequest, shared: Shared, tell: Callable[[Update], None]
    ) -> tuple[Transcript, Transcriber | ClientTranscriber]:
        settings, profiles = shared.settings, shared.profiles
        load_anchors = None
        if profiles is not None and request.include_speech_profile:
            load_anchors = partial(profiles.anchors, request.uid, self.coverage.audio_format)
        transcript = Transcript(
            self.id,
            self.coverage.audio_format,
            tell=tell,
            new_id=_new_id,
            keeps_voices=load_anchors is not None,
            budget=shared.budget,
        )
        if request.is_transcribed_by_client:
            return transcript, ClientTranscriber(
                self.coverage, transcript, tell=tell, log=self._log
            )
        transcriber = Transcriber(
            request,
            shared.provider,
            self.coverage,
            transcript,
            tell=tell,
            log=self._log,
            load_anchors=load_anchors,
            profile_first=settings.profile_mode == "first",
        )
        return transcript, transcriber

    def _observe(self, request: ListenRequest, shared: Shared) -> list[Observer]:
        facts = SessionFacts(
            id=self.id,
            uid=request.uid,
            language=request.language,
            audio_format=self.coverage.audio_format,
            began_at=datetime.now(UTC),
            last_segments=self._transcript.last_segments,
        )
        return [watch(facts) for watch in (*shared.watches, shared.watching.observe)]

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
        greeting = [*self.face.greet()]
        if self._wish.secret is not None:
            greeting.append(events.RESUME_UNKNOWN)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._line.start(self, nursery, greeting)
                if self.face.idle_seconds is not None:
                    nursery.start_soon(self._end_when_idle, self.face.idle_seconds)
                try:
                    try:
                        await self._transcriber.run()
                    except ProviderError as error:
                        self._note_refusal(error)
                    await self._take_leave()
                finally:
                    # What a timer raises needs a nursery that is open.
                    self._line.stop_timers()
                nursery.cancel_scope.cancel()
        except* Exception as group:  # noqa: BLE001 - the seam: one session's fault touches no other
            self._ending = endings.INTERNAL_ERROR
            self._metrics.faults.inc()
            self._log.exception("session_fault", exc_info=group)
        finally:
            if trio.current_effective_deadline() == -math.inf:
                self._ending = endings.CANCELLED
            self._resumable.forget(self)
            self.decoder.close()
            self.coverage.lose_pending()
            self._transcript.voices.forget_all()
            self._report()
            for observer in self._observers:
                observer.close()
            self.outbox.close()
            with trio.move_on_after(ABORT_SECONDS, shield=True):
                await self._line.abort(self._ending.close_code, self._ending.reason)

    @property
    def uid(self) -> str:
        """Whose session it is; empty where nobody was named."""
        return self._request.uid

    @property
    def needs_provider(self) -> bool:
        """Whether it is transcribed here, and not by its client."""
        return not self._request.is_transcribed_by_client

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

    def end(self, ending: Ending) -> None:
        """End the session: finalise what has come, tell the device, close.

        A session that ends already goes on doing so.
        """
        if self.takes_audio:
            self._end(ending)

    @property
    def has_said_all(self) -> bool:
        """Whether everything is final, and the device has been sent its account, if it is there."""
        return self._has_taken_leave and self._line.has_sent_all

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
            told=self.outbox.last_seq,
            is_too_often=self._resumes.delay(1.0, now) > 0.0,
        )
        if decision.outcome is Outcome.RESUMED:
            self._resumes.take(1.0)
            self._take_up(line, opening, wish, now)
        return decision

    def _take_up(self, line: Line, opening: Opening, wish: Wish, now: float) -> None:
        self._presence = after_move(self._presence, Move.RESUME)
        self._resumable.stop_waiting(self)
        if self._has_come_back is not None:
            self._has_come_back.set()
        self._line.lose(*endings.TAKEN_OVER)
        self._line = line
        self.decoder.cut()
        audio_format, received = self.coverage.audio_format, self.coverage.backlog.end
        again = 0 if wish.start is None else received - audio_format.samples(wish.start)
        self._log.info(
            "session_resumed", peer=line.websocket.peer, received=audio_format.seconds(received)
        )
        assert self._nursery is not None
        line.start(
            self,
            self._nursery,
            [*opening.face.greet(), events.resumed(self.id, received, audio_format)],
            told=self.outbox.recent(now) if wish.after is None else wish.after,
            resent=resent(self._request, again) if again > 0 else None,
        )

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

    # What a line needs of its session (`Owner`).

    def has_memory(self) -> bool:
        """Whether all sessions' backlogs leave room for more of this one's audio."""
        backlog = self.coverage.backlog
        return self._share.has_room(backlog.held_bytes, backlog.start, trio.current_time())

    async def make_room(self) -> None:
        """Wait until the backlog takes more audio, or no more may come. Cancelling is safe."""
        await self._transcriber.make_room()

    def receive(self, parts: list[bytes], now: float) -> None:
        """Take decoded audio, in order; it may be none."""
        if parts:
            payload = parts[0] if len(parts) == 1 else b"".join(parts)
            if self.face.hears_audio:
                self.face.hear(payload)
            for listener in self._listeners:
                listener.hear(payload)
            self._transcriber.receive(payload, now)

    def follow(self, ask: Ask) -> None:
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
                if self.takes_audio:
                    self._transcriber.finalize(channel)
            case Configure(keyterms=keyterms, numerals=numerals):
                if self.takes_audio:
                    self._transcriber.configure(keyterms, numerals=numerals)
            case AssignSpeaker():
                assert self._nursery is not None
                self._naming.assign(ask, self._nursery)
            case Suggest():
                if self.takes_audio and isinstance(self._transcriber, ClientTranscriber):
                    self._transcriber.suggest(ask)
            case _:
                pass

    def tell_undecodable(self) -> None:
        """Tell the client, once, that its codec is probably another one."""
        if self._has_told_undecodable:
            return
        self._has_told_undecodable = True
        self._log.warning("undecodable_audio", codec=self._request.codec)
        self._tell(events.undecodable_audio(self._request.codec, UNDECODABLE_IN_A_ROW))

    def lose(self, line: Line, ending: Ending, *, is_left: bool = False) -> None:
        """Give a connection up, and the session unless it waits for another.

        Args:
            line: the connection; once it has been given up, another call does nothing.
            ending: of the session, if no other connection comes.
            is_left: whether the device has closed it on purpose.
        """
        if line.is_lost:
            return
        line.lose(ending.close_code, ending.reason)
        if self._way_back.is_told and self._presence is Presence.HERE and not is_left:
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

    async def _end_when_idle(self, limit: float) -> None:
        """End the session when no message comes for ``limit`` seconds, as the face has it.

        Before any audio a client that only says that it is there is waited for
        `KEPT_OPEN_SECONDS` at most. One that is away is not idle.
        """
        opened_at = trio.current_time()
        while self.takes_audio:
            now = trio.current_time()
            line = self._line
            due = line.heard_at + limit
            if not self.coverage.backlog.end:
                due = min(due, opened_at + max(limit, KEPT_OPEN_SECONDS))
            is_idle = now >= due and line.is_reading and not line.websocket.has_more
            if is_idle and self._presence is Presence.HERE:
                self._end(endings.CLIENT_IDLE)
                return
            await trio.sleep(max(due - now, IDLE_CHECK_SECONDS))

    # The provider's side.

    def _note_refusal(self, error: ProviderError) -> None:
        self._log.error("provider_failed", reason=str(error))
        self._tell(events.service_status("stt_failed", str(error)))
        self._ending = endings.STT_FAILED
        self._presence = after_move(self._presence, Move.LEAVE)

    async def _take_leave(self) -> None:
        line = self._line
        await line.stop_reading()
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
        await line.wait_until_caught_up()
        self._has_taken_leave = True
        await line.close(self._ending.close_code, self._ending.reason)

    # Ends.

    def _end(self, ending: Ending, within: float | None = None) -> None:
        if self.takes_audio:
            self.takes_audio = False
            self._ending = ending
        self._presence = after_move(self._presence, Move.LEAVE)
        self._resumable.stop_waiting(self)
        self._transcriber.end_audio(within)

    # What goes to the device.

    def _tell(self, update: Update) -> None:
        for observer in self._observers:
            observer.note(update)
        if self._presence is Presence.GONE:
            return
        messages = self.face.write(update)
        if isinstance(update, Interim):
            # It is about the present, and the next one takes its place: it can be left out.
            if not self._line.is_catching_up:
                self._line.send(messages)
            return
        if not self._tells_status:
            self._line.send(messages)
            return
        status = update.get("status") if isinstance(update, dict) else None
        if isinstance(update, dict) and not self.face.tells_status and not messages:
            # A client that has asked for it gets events for which its face has no form.
            messages = [update]
        for message in messages:
            before = self.outbox.last_seq
            numbered = self.outbox.number(message)
            text = told = dumps(numbered)
            if status in {"initiating", "ready"}:
                is_heard, is_last = not self._line.is_lost, status == "ready"
                way_back = self._way_back.tell(is_heard=is_heard, is_last=is_last)
                told = dumps(numbered | way_back)
            if not self._line.is_catching_up:
                self._line.send_text(told)
            # Without the secret: who comes back has it.
            self.outbox.keep(self.outbox.last_seq - before, text, trio.current_time())

    def _report(self) -> None:
        ending, coverage = self._ending, self.coverage
        self._metrics.sessions.dec()
        self._metrics.sessions_ended.labels(ending.kind.value).inc()
        self._metrics.audio.close(self._account)
        log_end(self._log, ending, coverage, self._transcriber.cost, self.decoder)


_ids = Random()  # seeded by the system


def _new_id() -> str:
    """128 random bits: a name, no secret. ``uuid4`` asks the system each time, 2 % under load."""
    return f"{_ids.getrandbits(128):032x}"
