"""Posts what sessions tell: a bounded queue and a task for each session, one client for all."""

from __future__ import annotations

import time
import uuid
from collections import Counter, deque
from enum import Enum
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, frozen

from omi_rt.core.json import dumps
from omi_rt.core.observers import Observer
from omi_rt.core.updates import Final as FinalWords
from omi_rt.core.webhooks import (
    MAX_TRIES,
    AudioHook,
    is_worth_another_try,
    pause_before_retry,
    sign,
    with_query,
)
from omi_rt.log import get_logger
from omi_rt.net.post import NotPosted, PrivateAddress, post

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from omi_rt.core.observers import SessionFacts
    from omi_rt.core.updates import Update
    from omi_rt.metrics import Metrics
    from omi_rt.net.http_client import HTTPClient

BATCH_SECONDS: Final = 1.0
MAX_SEGMENTS: Final = 1000
"""Of one session, that wait to be posted; the oldest is dropped for one more, and counted."""
MAX_AUDIO_BYTES: Final = 4_194_304
"""Likewise."""
POST_SECONDS: Final = 15.0
MAX_POSTS: Final = 8
"""Of each kind at once, over all sessions: together fewer than the client has connections, for others need
it as well. A receiver of audio that hangs holds up no words."""
MAX_ALL_AUDIO_BYTES: Final = 268_435_456
"""Of all sessions together, that wait to be posted or are on their way."""
MAX_ENDED: Final = 2000
"""Queues of sessions that have ended, which a receiver that hangs would let grow without end; what is
queued beyond that is dropped when its session ends, and counted."""
LAST_SECONDS: Final = 10.0
"""When the server ends: for what is still to be posted."""


class Kind(Enum):
    """What is posted; the values are labels of a metric."""

    TRANSCRIPT = "transcript"
    AUDIO = "audio"


@frozen
class Hooks:
    """Where things go. The secret signs them."""

    transcript: str
    audio: AudioHook | None
    secret: bytes | None
    may_be_private: bool

    def __repr__(self) -> str:
        # Their addresses hold keys, often enough.
        return "Hooks(...)"


@define
class Waiting:
    """What waits in the queues of all sessions."""

    audio_bytes: int = 0
    ended: int = 0
    """Queues of sessions that have ended."""


class SessionHooks(Observer):
    """Queues what one session tells."""

    def __init__(
        self, facts: SessionFacts, hooks: Hooks, metrics: Metrics, waiting: Waiting
    ) -> None:
        self.facts = facts
        self.queues = 0
        """How many of its queues are being posted."""
        self.scopes: list[trio.CancelScope] = []
        """Of the tasks that do so."""
        self.failing: set[Kind] = set()
        """Whose last message was not taken, which has been told."""
        self._waiting = waiting
        self.segments: deque[dict[str, object]] = deque()
        self.audio = bytearray()
        self.is_closed = False
        self.news = trio.Event()
        self._hooks = hooks
        self._metrics = metrics
        layout = facts.audio_format
        self.chunk_bytes = 0
        if hooks.audio is not None:
            frames = int(hooks.audio.seconds * layout.sample_rate)
            # A piece is whole when half of what may wait is there: the next comes while it is on its way.
            most = MAX_AUDIO_BYTES // 2 // layout.frame_bytes
            self.chunk_bytes = min(frames, most) * layout.frame_bytes

    def note(self, update: Update) -> None:
        """Queue segments."""
        if not self._hooks.transcript or not isinstance(update, FinalWords):
            return
        for segment in update.segments:
            if len(self.segments) >= MAX_SEGMENTS:
                self.segments.popleft()
                self._metrics.webhooks_dropped.labels(Kind.TRANSCRIPT.value).inc()
            self.segments.append(segment.as_json(self.facts.audio_format))
        if self.segments:
            self.news.set()

    @property
    def hears_audio(self) -> bool:
        """Whether audio is posted."""
        return self.chunk_bytes > 0

    def hear(self, payload: bytes) -> None:
        """Queue audio."""
        if not self.chunk_bytes:
            return
        size, all_bytes = len(payload), self._waiting.audio_bytes
        if len(self.audio) + size > MAX_AUDIO_BYTES or all_bytes + size > MAX_ALL_AUDIO_BYTES:
            self._metrics.webhooks_dropped.labels(Kind.AUDIO.value).inc()
            return
        self.audio += payload
        self._waiting.audio_bytes += size
        if len(self.audio) >= self.chunk_bytes:
            self.news.set()

    def close(self) -> None:
        """Let what is queued be posted; no more comes."""
        self.is_closed = True
        if self._waiting.ended + self.queues > MAX_ENDED:
            self._give_up()
        self._waiting.ended += self.queues
        self.news.set()

    def leave(self) -> None:
        """Note that one of its queues is posted no longer."""
        self.queues -= 1
        if self.is_closed:
            self._waiting.ended -= 1
        if not self.queues:
            self._waiting.audio_bytes -= len(self.audio)
            self.audio.clear()

    def _give_up(self) -> None:
        """Drop what is queued, and what is on its way."""
        for scope in self.scopes:
            scope.cancel()
        self._metrics.webhooks_dropped.labels(Kind.TRANSCRIPT.value).inc(len(self.segments))
        self._metrics.webhooks_dropped.labels(Kind.AUDIO.value).inc(bool(self.audio))
        self.segments.clear()
        self._waiting.audio_bytes -= len(self.audio)
        self.audio.clear()

    def take_audio(self) -> bytes:
        """Take the next stretch of audio that is whole, or the last; empty where there is none."""
        if len(self.audio) < self.chunk_bytes and not self.is_closed:
            return b""
        data = bytes(self.audio[: self.chunk_bytes])
        del self.audio[: self.chunk_bytes]
        return data


class Webhooks:
    """The webhooks of one server. ``post_all`` must run for anything to be posted."""

    def __init__(self, hooks: Hooks, client: HTTPClient, metrics: Metrics, random: Random) -> None:
        self._hooks = hooks
        self._client = client
        self._metrics = metrics
        self._random = random
        self._nursery: trio.Nursery | None = None
        self._waiting = Waiting()
        self._unposted: Counter[Kind] = Counter()
        """Sessions whose queue of that kind is not posted to its end yet."""
        self._limits = {kind: trio.CapacityLimiter(MAX_POSTS) for kind in Kind}

    def watch(self, facts: SessionFacts) -> SessionHooks:
        """Follow a session that begins."""
        session = SessionHooks(facts, self._hooks, self._metrics, self._waiting)
        if self._nursery is None:
            session.chunk_bytes = 0
            return session
        # Each kind has a task: audio that nobody takes holds up no words.
        if self._hooks.transcript:
            session.queues += 1
            self._nursery.start_soon(self._post, Kind.TRANSCRIPT, self._post_transcript, session)
        if self._hooks.audio is not None:
            session.queues += 1
            self._nursery.start_soon(self._post, Kind.AUDIO, self._post_audio, session)
        return session

    async def post_all(
        self, *, task_status: trio.TaskStatus[Callable[[], None]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Post what sessions queue, until what was started with is called; then `LAST_SECONDS` more.

        What has not been posted by then is told in one log line, also where this is cancelled.
        """
        ending = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started(ending.set)
                await ending.wait()
                self._nursery = None
                nursery.cancel_scope.deadline = trio.current_time() + LAST_SECONDS
        finally:
            if self._unposted.total():
                sessions = {kind.value: count for kind, count in self._unposted.items()}
                get_logger().warning("webhooks_cut", **sessions)

    async def _post(
        self,
        kind: Kind,
        post_queue: Callable[[SessionHooks], Awaitable[None]],
        session: SessionHooks,
    ) -> None:
        self._unposted[kind] += 1
        try:
            with trio.CancelScope() as scope:
                session.scopes.append(scope)
                await post_queue(session)
            self._unposted[kind] -= 1
        finally:
            session.leave()

    async def _post_transcript(self, session: SessionHooks) -> None:
        url = with_query(self._hooks.transcript, uid=session.facts.uid)
        while True:
            await self._wait_for(session, lambda: bool(session.segments))
            if not session.segments:
                return
            if not session.is_closed:
                await trio.sleep(BATCH_SECONDS)
            segments = list(session.segments)
            session.segments.clear()
            body = dumps({"segments": segments, "session_id": session.facts.id}).encode()
            await self._deliver(Kind.TRANSCRIPT, url, body, "application/json", session)

    async def _post_audio(self, session: SessionHooks) -> None:
        assert self._hooks.audio is not None
        layout = session.facts.audio_format
        more = {"channels": str(layout.channels)} if layout.channels > 1 else {}
        url = with_query(
            self._hooks.audio.url,
            sample_rate=str(layout.sample_rate),
            uid=session.facts.uid,
            **more,
        )
        while True:
            await self._wait_for(session, lambda: len(session.audio) >= session.chunk_bytes)
            data = session.take_audio()
            if not data:
                return
            try:
                await self._deliver(Kind.AUDIO, url, data, "application/octet-stream", session)
            finally:
                self._waiting.audio_bytes -= len(data)

    async def _wait_for(self, session: SessionHooks, is_there: Callable[[], bool]) -> None:
        while not is_there() and not session.is_closed:
            # Both tasks wait for the same news: whoever wakes finds out whose it is.
            session.news = trio.Event() if session.news.is_set() else session.news
            await session.news.wait()

    async def _deliver(
        self, kind: Kind, url: str, body: bytes, form: str, session: SessionHooks
    ) -> None:
        """Post one message, again if that may help; what fails in the end is counted.

        It is logged as well, but for a message that follows another one that failed. Cancelling this
        counts it as failed.
        """
        outcome = "failed"
        try:
            reason = await self._try(kind, url, body, form)
            if reason is None:
                outcome = "delivered"
                session.failing.discard(kind)
        finally:
            self._metrics.webhooks.labels(kind.value, outcome).inc()
        if reason is not None and kind not in session.failing:
            session.failing.add(kind)
            get_logger().warning(
                "webhook_failed", session=session.facts.id, kind=kind.value, reason=reason
            )

    async def _try(self, kind: Kind, url: str, body: bytes, form: str) -> str | None:
        """Post one message `MAX_TRIES` times at most; returns why it was not taken, if it was not."""
        message_id, reason = f"msg_{uuid.uuid4().hex}", "?"
        for failures in range(1, MAX_TRIES + 1):
            headers = {"Content-Type": form}
            if self._hooks.secret is not None:
                headers |= sign(self._hooks.secret, message_id, int(time.time()), body)
            try:
                async with self._limits[kind]:
                    status = await post(
                        self._client,
                        url,
                        body,
                        headers,
                        within=POST_SECONDS,
                        may_be_private=self._hooks.may_be_private,
                    )
            except PrivateAddress as error:
                return str(error)
            except NotPosted as error:
                reason = str(error)
            else:
                if 200 <= status < 300:
                    return None
                reason = f"HTTP {status}"
                if not is_worth_another_try(status):
                    return reason
            if failures < MAX_TRIES:
                await trio.sleep(pause_before_retry(failures, self._random.random()))
        return reason
