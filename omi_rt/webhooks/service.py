"""Posts what sessions tell: a bounded queue and a task for each session, one client for all."""

from __future__ import annotations

import time
import uuid
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

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
    from collections.abc import Callable
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
MAX_POSTS: Final = 16
"""At once, over all sessions: fewer than the client has connections, for others need it as well."""
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


class SessionHooks(Observer):
    """Queues what one session tells."""

    def __init__(self, facts: SessionFacts, hooks: Hooks, metrics: Metrics) -> None:
        self.facts = facts
        self.segments: deque[dict[str, object]] = deque()
        self.audio = bytearray()
        self.is_closed = False
        self.news = trio.Event()
        self._hooks = hooks
        self._metrics = metrics
        layout = facts.audio_format
        self.chunk_bytes = 0
        if hooks.audio is not None:
            self.chunk_bytes = int(hooks.audio.seconds * layout.sample_rate) * layout.frame_bytes

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
        if len(self.audio) + len(payload) > MAX_AUDIO_BYTES:
            self._metrics.webhooks_dropped.labels(Kind.AUDIO.value).inc()
            return
        self.audio += payload
        if len(self.audio) >= self.chunk_bytes:
            self.news.set()

    def close(self) -> None:
        """Let what is queued be posted; no more comes."""
        self.is_closed = True
        self.news.set()

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
        self._limit = trio.CapacityLimiter(MAX_POSTS)

    def watch(self, facts: SessionFacts) -> SessionHooks:
        """Follow a session that begins."""
        session = SessionHooks(facts, self._hooks, self._metrics)
        if self._nursery is None:
            session.chunk_bytes = 0
        else:
            # Each kind has a task: audio that nobody takes holds up no words.
            self._nursery.start_soon(self._post_transcript, session)
            if self._hooks.audio is not None:
                self._nursery.start_soon(self._post_audio, session)
        return session

    async def post_all(
        self, *, task_status: trio.TaskStatus[Callable[[], None]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Post what sessions queue, until what was started with is called; then `LAST_SECONDS` more."""
        ending = trio.Event()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started(ending.set)
            await ending.wait()
            self._nursery = None
            nursery.cancel_scope.deadline = trio.current_time() + LAST_SECONDS

    async def _post_transcript(self, session: SessionHooks) -> None:
        if not self._hooks.transcript:
            return
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
            await self._deliver(Kind.TRANSCRIPT, url, body, "application/json", session.facts.id)

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
            await self._deliver(Kind.AUDIO, url, data, "application/octet-stream", session.facts.id)

    async def _wait_for(self, session: SessionHooks, is_there: Callable[[], bool]) -> None:
        while not is_there() and not session.is_closed:
            # Both tasks wait for the same news: whoever wakes finds out whose it is.
            session.news = trio.Event() if session.news.is_set() else session.news
            await session.news.wait()

    async def _deliver(self, kind: Kind, url: str, body: bytes, form: str, session: str) -> None:
        """Post one message, again if that may help; what fails in the end is counted, and logged."""
        message_id = f"msg_{uuid.uuid4().hex}"
        for failures in range(1, MAX_TRIES + 1):
            headers = {"Content-Type": form}
            if self._hooks.secret is not None:
                headers |= sign(self._hooks.secret, message_id, int(time.time()), body)
            reason = "?"
            try:
                async with self._limit:
                    status = await post(
                        self._client,
                        url,
                        body,
                        headers,
                        within=POST_SECONDS,
                        may_be_private=self._hooks.may_be_private,
                    )
            except PrivateAddress as error:
                reason = str(error)
                break
            except NotPosted as error:
                reason = str(error)
            else:
                if 200 <= status < 300:
                    self._metrics.webhooks.labels(kind.value, "delivered").inc()
                    return
                reason = f"HTTP {status}"
                if not is_worth_another_try(status):
                    break
            if failures < MAX_TRIES:
                await trio.sleep(pause_before_retry(failures, self._random.random()))
        self._metrics.webhooks.labels(kind.value, "failed").inc()
        get_logger().warning("webhook_failed", session=session, kind=kind.value, reason=reason)
