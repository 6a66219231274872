"""A whole server in memory: devices on bounded streams, and a provider behind a dial of the test's own."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import trio
from attrs import define, field

from omi_rt.core.budget import BacklogBudget
from omi_rt.core.errors import PeerClosed
from omi_rt.deepgram.provider import Provider, make_provider
from omi_rt.fake import FakeDeepgram, FaultScript, Options, Script, plain_words, synthesise
from omi_rt.fake.streams import BoundedStream, bounded_stream_pair
from omi_rt.metrics import Metrics
from omi_rt.net.handshake import open_websocket
from omi_rt.net.websocket import WebSocket
from omi_rt.server.app import Server
from omi_rt.server.memory import default_backlog_bytes
from omi_rt.server.session import Session
from omi_rt.server.shared import Shared
from omi_rt.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from omi_rt.auth.login import Login
    from omi_rt.core.observers import Watch
    from omi_rt.deepgram.connection import Dial
    from omi_rt.profiles.service import Profiles

CLOSE_STREAM = '{"type":"CloseStream"}'
RATE = 8000
"""Of the audio that `play` sends, in samples a second, unless a test says otherwise."""
LONG_MESSAGES = 0.5
"""Seconds of audio a message, for tests of many sessions: these cost about half of what they do with
messages of a tenth, and where a message ends is not what they are about."""


class BalancedServer(Server):
    """A server that keeps every session it had, so that each ledger can be looked at."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.budget = shared.budget
        self.all_sessions: list[Session] = []

    def assert_balanced(self) -> None:
        """Assert that every session's ledger is exact at this instant."""
        for session in self.all_sessions:
            balance = session.coverage.balance()
            assert balance.is_exact, str(balance)


@define
class World:
    """One server, its provider, and the nursery that all of it runs in."""

    server: BalancedServer
    provider: Provider
    nursery: trio.Nursery
    metrics: Metrics
    streams: list[BoundedStream] = field(factory=list)

    def open_stream(
        self, capacity_bytes: int = 65_536, *, is_loopback: bool = False
    ) -> BoundedStream:
        """Connect to the server."""
        here, there = bounded_stream_pair(capacity_bytes)
        self.nursery.start_soon(partial(self.server.handle, there, is_loopback=is_loopback))
        self.streams.append(here)
        return here

    async def get(self, target: str, method: str = "GET") -> tuple[int, dict[str, str], str]:
        """Make a plain HTTP request; return status, headers and body."""
        stream = self.open_stream()
        await stream.send_all(f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return split_response(await read_all(stream))

    @asynccontextmanager
    async def device(self, **parameters: Any) -> AsyncIterator[Device]:
        """Connect a device to /listen."""
        size = parameters.pop("capacity_bytes", 65_536)
        query = {"uid": "u1"} | parameters
        async with self.client("/listen", query, capacity_bytes=size) as device:
            yield device

    @asynccontextmanager
    async def client(
        self,
        path: str,
        query: Mapping[str, Any] | Sequence[tuple[str, Any]] = (),
        *,
        headers: Mapping[str, str] | None = None,
        is_loopback: bool = False,
        first: Sequence[str | bytes] = (),
        capacity_bytes: int = 65_536,
    ) -> AsyncIterator[Device]:
        """Connect a client to any path of the server's; ``first`` is what it sends at once."""
        before = set(self.server.sessions)
        stream = self.open_stream(capacity_bytes, is_loopback=is_loopback)
        target = f"{path}?{urlencode(query, doseq=True)}"
        websocket = await open_websocket(stream, f"ws://server{target}", headers=headers)
        device = Device(websocket, stream)
        for message in first:
            device.send(message)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.run_writer, 1e6)
            nursery.start_soon(device.read)
            await trio.testing.wait_all_tasks_blocked()
            for session in set(self.server.sessions) - before:
                device.session = session
                self.server.all_sessions.append(session)
            yield device
            nursery.cancel_scope.cancel()
        self.server.assert_balanced()
        if "resume" not in dict(query):
            assert device.numbers == list(range(1, len(device.numbers) + 1))

    def exposition(self) -> str:
        """The server's metrics, as text."""
        return self.metrics.exposition().decode()

    async def sessions_ended(self, within: float = 200.0) -> None:
        """Wait until no session is left."""
        with trio.fail_after(within):
            while self.server.sessions:
                await self.server.session_left.wait()


@define
class Device:
    """The device's end, reading all the time."""

    websocket: WebSocket
    stream: BoundedStream
    messages: list[Any] = field(factory=list)
    """What has come, without its numbers."""
    raw: list[Any] = field(factory=list)
    """The same as it came."""
    numbers: list[int] = field(factory=list)
    """All ``seq`` that have come, in order."""
    closed: PeerClosed | None = None
    _session: Session | None = None
    _ended: trio.Event = field(factory=trio.Event)
    _news: trio.Event = field(factory=trio.Event)

    async def read(self) -> None:
        """Collect what the server says until it closes."""
        try:
            while True:
                for text in await self.websocket.receive():
                    message = json.loads(text)
                    self.raw.append(message)
                    self.messages.append(without_numbers(message, self.numbers))
                self._tell()
        except PeerClosed as closed:
            self.closed = closed
            self._ended.set()
            self._tell()

    @property
    def session(self) -> Session:
        """The server's end; a device that was refused has none."""
        assert self._session is not None
        return self._session

    @session.setter
    def session(self, session: Session) -> None:
        self._session = session

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def send(self, message: bytes | str) -> None:
        """Queue a message to the server."""
        self.websocket.send_nowait(message)

    async def stream_audio(
        self, pcm: bytes, bytes_per_second: int, *, message_seconds: float = 0.1, speed: float = 1.0
    ) -> None:
        """Send PCM in messages, each when it would have been recorded."""
        size = int(bytes_per_second * message_seconds)
        started = trio.current_time()
        for number, offset in enumerate(range(0, len(pcm), size)):
            await trio.sleep_until(started + (number + 1) * message_seconds / speed)
            # A device can have no more under way than its socket's buffer holds.
            await self.websocket.drained(60_000)
            self.send(pcm[offset : offset + size])

    async def finish(self, within: float = 200.0) -> dict[str, Any]:
        """Send CloseStream and wait for the end; return ``session_ended``."""
        self.send(CLOSE_STREAM)
        await self.ended(within)
        return self.event("session_ended")

    async def ended(self, within: float = 200.0) -> None:
        """Wait until the server has closed."""
        with trio.fail_after(within):
            await self._ended.wait()

    async def until(self, condition: Callable[[], object], within: float = 200.0) -> None:
        """Wait until ``condition`` holds, looking whenever something has come."""
        with trio.fail_after(within):
            while not condition():
                await self._news.wait()

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one type, in order."""
        return [m for m in self.messages if isinstance(m, dict) and m.get("type") == kind]

    def event(self, kind: str) -> dict[str, Any]:
        """The only event of one type."""
        (event,) = self.events(kind)
        return event

    def statuses(self) -> list[str]:
        """The service statuses, in order."""
        return [event["status"] for event in self.events("service_status")]

    @property
    def segments(self) -> list[dict[str, Any]]:
        """All segments, in order."""
        return [segment for m in self.messages if isinstance(m, list) for segment in m]


@asynccontextmanager
async def running_server(
    dial: Dial,
    *,
    settings: Settings | None = None,
    profiles: Profiles | None = None,
    login: Login | None = None,
    watches: tuple[Watch, ...] = (),
    seed: int = 1,
    find_carried: Callable[[], int | None] = lambda: None,
    **more: Any,
) -> AsyncIterator[World]:
    """Run a server whose provider is reached through ``dial``; every ledger is checked at the end.

    ``find_carried`` says how many sessions the provider can carry.
    """
    settings = settings or Settings(deepgram_api_key="secret", **more)
    metrics = Metrics()
    provider = make_provider(
        settings,
        base_url="ws://deepgram",
        metrics=metrics,
        dial=dial,
        random=Random(seed),
        find_carried=find_carried,
    )
    budget = BacklogBudget(settings.backlog_bytes or default_backlog_bytes())
    shared = Shared(settings, provider, metrics, budget, profiles, login, None, watches)
    server = BalancedServer(shared)
    async with trio.open_nursery() as nursery:
        world = World(server, provider, nursery, metrics)
        yield world
        await world.sessions_ended()
        server.assert_balanced()
        assert budget.held_bytes == budget.outbox_bytes == 0, "an ended session holds no memory"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def listening_server(
    *, options: Options | None = None, faults: FaultScript | None = None, **more: Any
) -> AsyncIterator[tuple[World, FakeDeepgram]]:
    """Run a server whose provider is a fake Deepgram that listens; it notes every broken rule."""
    fake = FakeDeepgram(options or Options(), faults or FaultScript())
    async with trio.open_nursery() as nursery:
        connect = fake.dialler(nursery)

        async def dial(_url: str) -> trio.abc.Stream:
            return await connect()

        async with running_server(dial, **more) as world:
            yield world, fake
        nursery.cancel_scope.cancel()
    assert fake.violations == []


def without_numbers(message: Any, numbers: list[int]) -> Any:
    """Take the ``seq`` of a message, or of each of its segments, and put it into ``numbers``."""
    parts = message if isinstance(message, list) else [message]
    found = [part["seq"] for part in parts if "seq" in part]
    numbers += found
    bare = [{name: part[name] for name in part if name != "seq"} for part in parts]
    return bare if isinstance(message, list) else bare[0]


def words_of(segments: list[dict[str, Any]], channel: int | None = None) -> list[str]:
    """The plain words of segments, of one channel or of all."""
    texts = [s["text"] for s in segments if channel is None or s["channel"] == channel]
    return plain_words(" ".join(texts))


async def play(
    device: Device,
    script: Script,
    rate: int = RATE,
    *,
    pcm: bytes | None = None,
    within: float = 200.0,
    **options: Any,
) -> dict[str, Any]:
    """Stream a script at real time, then ask for the end; returns ``session_ended``.

    ``pcm`` is how the script sounds, where that is not as the fake would say it.
    """
    pcm = synthesise(script, rate) if pcm is None else pcm
    await device.stream_audio(pcm, rate * 2 * script.channels, **options)
    return await device.finish(within)


def assert_whole(device: Device, script: Script, *, within: float | None = 0.002) -> None:
    """The whole transcript and the whole account: a session that nothing was wrong with, in the end.

    Every word comes once, in order, on its channel; segments lie where their words were said, to
    ``within`` seconds and in order of time (None: the provider gave no times that could tell). Every second was finalised,
    and went up for the first time once.
    """
    for channel in range(script.channels):
        segments = [s for s in device.segments if s.get("channel", 0) == channel]
        words = script.on_channel(channel)
        assert words_of(segments) == [word.text for word in words]
        starts = [segment["start"] for segment in segments]
        assert within is None or starts == sorted(starts)
        for segment in segments:
            said, words = words[: len(words_of([segment]))], words[len(words_of([segment])) :]
            if within is not None:
                assert abs(segment["start"] - said[0].start) <= within
                assert abs(segment["end"] - said[-1].end) <= within
    account = device.event("session_ended")
    assert account["received"] == account["finalised"] == script.seconds
    assert (account["gated"], account["pending"], account["lost"]) == (0.0, 0.0, 0.0)
    assert account["sent"]["live"] == script.seconds
    assert device.events("audio_lost") == []
    assert [] not in device.messages


async def unreachable(url: str) -> trio.abc.Stream:
    """Fail to dial, as at a closed port."""
    await trio.lowlevel.checkpoint()
    raise ConnectionRefusedError(111, "Connection refused")


async def read_all(stream: trio.abc.Stream) -> bytes:
    """Read everything until the peer's end."""
    data = b""
    while True:
        try:
            more = await stream.receive_some()
        except trio.BrokenResourceError:
            return data
        if not more:
            return data
        data += more


def split_response(data: bytes) -> tuple[int, dict[str, str], str]:
    """Take an HTTP response apart."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, body.decode()
