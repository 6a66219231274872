"""Watching: the running sessions as somebody else sees them, who may read along and say nothing.

A session knows of it as of any observer. What it tells is noted here at once, and each watcher takes
it from a queue of its own: one that does not keep up loses messages, is told so, and holds up nobody.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio
from attrs import define

from omi_rt.core.corrections import MAX_CORRECTED_SEGMENTS
from omi_rt.core.errors import DeviceError, PeerClosed, PeerTooSlow
from omi_rt.core.json import dumps
from omi_rt.core.observers import Observer, SessionFacts
from omi_rt.faces.omi import OmiFace, Proof, Version

if TYPE_CHECKING:
    from omi_rt.core.updates import Update
    from omi_rt.metrics import Metrics
    from omi_rt.net.websocket import WebSocket

MAX_WATCHERS = 100
"""On one server."""
MAX_UID_WATCHERS = 10
"""Of one uid: nobody takes the places of all others."""
NO_MORE = "there are as many watchers as may be"
NO_MORE_OF_UID = f"too many watchers of this uid: {MAX_UID_WATCHERS} of {MAX_UID_WATCHERS}"
MAX_KEPT_SEGMENTS = 100
"""Of each session: what a watcher gets who comes later."""
MAX_QUEUED_MESSAGES = 256
"""For one watcher: two minutes of interim results."""
MAX_QUEUED_CHARACTERS = 262_144
STALL_SECONDS = 60.0
"""A watcher that takes nothing for so long is given up."""
_MISSED_HEARTBEATS = 2
_AS_APPS_GET_IT = Version(Proof.FIRST_MESSAGE, grows=True)
"""Segments that are sent again under their id are easy to follow, whatever the session's own client gets."""


class TooManyWatchers(DeviceError):
    """There are as many watchers as may be, on the server or of one uid."""

    close_code = 1013


class Watcher:
    """One watcher's queue.

    Args:
        metrics: of the server.
    """

    __slots__ = ("_characters", "_metrics", "_missed", "_news", "_queue", "farewell")

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._queue: deque[str] = deque()
        self._characters = 0
        self._missed = 0
        self._news = trio.Event()
        self.farewell: tuple[int, str] | None = None
        """The close code and reason, once nothing more comes."""

    def put(self, message: Any) -> None:
        """Queue a message."""
        self.put_text(dumps(message))

    def put_text(self, text: str) -> None:
        """Queue a message as text; what there is no room for goes, the oldest first, and is counted."""
        if self.farewell is not None:
            return
        self._queue.append(text)
        self._characters += len(text)
        while len(self._queue) > 1 and (
            len(self._queue) > MAX_QUEUED_MESSAGES or self._characters > MAX_QUEUED_CHARACTERS
        ):
            self._characters -= len(self._queue.popleft())
            self._missed += 1
            self._metrics.watch_missed.inc()
        self._news.set()

    def end(self, close_code: int, reason: str) -> None:
        """Let nothing more come; what is queued is still sent. A second call does nothing."""
        if self.farewell is None:
            self.farewell = (close_code, reason)
            self._news.set()

    async def take(self) -> str | None:
        """Wait for the next message; None where nothing more comes. Cancelling is safe."""
        while not self._queue:
            if self.farewell is not None:
                return None
            self._news = trio.Event()
            await self._news.wait()
        if self._missed:
            missed, self._missed = self._missed, 0
            return dumps({"type": "watch_missed", "count": missed})
        text = self._queue.popleft()
        self._characters -= len(text)
        return text


@define(eq=False)
class WatchedSession(Observer):
    """One running session, and who watches it."""

    facts: SessionFacts
    leave: Callable[[WatchedSession], None]
    watchers: frozenset[Watcher] = frozenset()
    face: OmiFace | None = None
    """What they have been told; None where nobody has watched since the last one left."""

    def note(self, update: Update) -> None:
        """Pass it on. The session itself keeps what somebody is shown who comes later."""
        if self.face is None:
            return
        for message in self.face.write(update):
            # A hundred watchers get the same text.
            text = dumps(message)
            for watcher in self.watchers:
                watcher.put_text(text)

    def join(self, watcher: Watcher) -> None:
        """Show a watcher what has been said, and from now on what is said."""
        watcher.put({"type": "watching", **self.as_row()})
        if self.face is None:
            self.face = OmiFace(_AS_APPS_GET_IT, self.facts.audio_format)
            self.face.take(self.facts.last_segments(MAX_CORRECTED_SEGMENTS))
        for message in self.face.write_last(MAX_KEPT_SEGMENTS):
            watcher.put(message)
        self.watchers |= {watcher}

    def part(self, watcher: Watcher) -> None:
        """Tell a watcher nothing more. It may be called twice."""
        self.watchers -= {watcher}
        if not self.watchers:
            self.face = None

    def close(self) -> None:
        """The session has ended: so do its watchers."""
        self.leave(self)
        for watcher in self.watchers:
            watcher.end(1000, "session_ended")

    def as_row(self) -> dict[str, Any]:
        """What a list of sessions says of it."""
        facts = self.facts
        return {
            "session_id": facts.id,
            "uid": facts.uid,
            "language": facts.language,
            "began_at": facts.began_at.isoformat(),
        }


class Watching:
    """All running sessions of a server, and all watchers.

    Args:
        metrics: of the server.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._sessions: dict[str, WatchedSession] = {}
        self._lists: dict[Watcher, str] = {}
        """Who follows the list of a uid's sessions."""
        self.count = 0
        """How many watch, sessions and lists together."""
        self._of_uid: Counter[str] = Counter()
        """How many of them are each uid's."""

    @property
    def is_full(self) -> bool:
        """Whether nobody else may watch now."""
        return self.count >= MAX_WATCHERS

    @contextmanager
    def place(self, uid: str) -> Iterator[None]:
        """Count a watcher in the body. Only who has proved who they are is to have a place.

        Args:
            uid: whose watcher it is; empty where it is nobody's, and then any number may be.

        Raises:
            TooManyWatchers: there is none.
        """
        if self.is_full:
            self._metrics.watchers_refused.labels("full").inc()
            raise TooManyWatchers(NO_MORE)
        if uid and self._of_uid[uid] >= MAX_UID_WATCHERS:
            self._metrics.watchers_refused.labels("uid").inc()
            raise TooManyWatchers(NO_MORE_OF_UID)
        self.count += 1
        self._of_uid[uid] += 1
        self._metrics.watchers.inc()
        try:
            yield
        finally:
            self.count -= 1
            self._of_uid[uid] -= 1
            if not self._of_uid[uid]:
                del self._of_uid[uid]
            self._metrics.watchers.dec()

    def observe(self, facts: SessionFacts) -> Observer:
        """Make the observer of a session that begins."""
        session = WatchedSession(facts, self._leave)
        self._sessions[facts.id] = session
        self._tell_list(facts.uid)
        return session

    def find(self, session_id: str, uid: str | None) -> WatchedSession | None:
        """Return a running session, if it is of ``uid``; None for the uid means whoever's it is."""
        session = self._sessions.get(session_id)
        return session if session is not None and uid in {None, session.facts.uid} else None

    async def follow_session(
        self, session: WatchedSession, websocket: WebSocket, beat_seconds: float
    ) -> None:
        """Let a watcher follow a session until one of them goes. Cancelling closes the connection."""
        watcher = Watcher(self._metrics)
        session.join(watcher)
        try:
            await _serve(watcher, websocket, beat_seconds)
        finally:
            session.part(watcher)

    async def follow_list(
        self, uid: str, websocket: WebSocket, beat_seconds: float, until: trio.Event
    ) -> None:
        """Let a watcher follow the list of a uid's sessions, ``until`` at most."""
        watcher = Watcher(self._metrics)
        self._lists[watcher] = uid
        self._tell_list(uid, watcher)
        try:
            async with trio.open_nursery() as nursery:

                async def end() -> None:
                    await until.wait()
                    watcher.end(1001, "server_going_away")

                nursery.start_soon(end)
                await _serve(watcher, websocket, beat_seconds)
                nursery.cancel_scope.cancel()
        finally:
            del self._lists[watcher]

    def _leave(self, session: WatchedSession) -> None:
        self._sessions.pop(session.facts.id, None)
        self._tell_list(session.facts.uid)

    def _tell_list(self, uid: str, only: Watcher | None = None) -> None:
        watchers = [w for w, of in self._lists.items() if of == uid] if only is None else [only]
        if watchers:
            rows = [s.as_row() for s in self._sessions.values() if s.facts.uid == uid]
            for watcher in watchers:
                watcher.put({"type": "sessions", "sessions": rows})


async def _serve(watcher: Watcher, websocket: WebSocket, beat_seconds: float) -> None:
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.run_writer, STALL_SECONDS)
            reading = trio.CancelScope()
            nursery.start_soon(_feed, watcher, websocket, reading)
            nursery.start_soon(_beat, websocket, beat_seconds, reading)
            with reading:
                await _read_to_the_end(websocket)
            await websocket.aclose(*(watcher.farewell or (1001, "watcher_vanished")))
            nursery.cancel_scope.cancel()
    except* PeerTooSlow:
        await websocket.abort(PeerTooSlow.close_code, "took no data")


async def _feed(watcher: Watcher, websocket: WebSocket, reading: trio.CancelScope) -> None:
    while (text := await watcher.take()) is not None:
        websocket.send_nowait(text)
        # What waits for a slow watcher waits in its own queue, where it can be dropped.
        await websocket.drained()
    reading.cancel()


async def _beat(websocket: WebSocket, seconds: float, reading: trio.CancelScope) -> None:
    while trio.current_time() - websocket.received_at < _MISSED_HEARTBEATS * seconds:
        websocket.ping_nowait()
        await trio.sleep(seconds)
    reading.cancel()


async def _read_to_the_end(websocket: WebSocket) -> None:
    """Read what has no meaning here, for the sake of the close and of pongs."""
    try:
        while True:
            await websocket.receive()
    except PeerClosed:
        return
