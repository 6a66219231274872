"""The rules that the embedded recogniser's server keeps, on the virtual clock, without a model."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import pytest
import trio
from attrs import define, field

from omi_rt.fake.streams import BoundedStream, bounded_stream_pair
from omi_rt.local import pipe
from omi_rt.local.pipe import Kind
from omi_rt.local.pool import BUSY_SECONDS, START_SECONDS, Worker, WorkerPool
from omi_rt.local.server import DRAIN_SECONDS, IDLE_SECONDS, Server
from tests.local_client import CLOSE_STREAM, KEEP_ALIVE, Client, connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

AUDIO = bytes(3_200)
END = pipe.frame(Kind.END)


@define
class FakeProcess:
    """What a `Worker` needs of a process; the test plays the worker at the other ends."""

    stdin: BoundedStream
    stdout: BoundedStream
    frames: BoundedStream
    """Where the worker reads."""
    lines: BoundedStream
    """Where the worker writes."""
    status: int | None = None
    ended: trio.Event = field(factory=trio.Event)

    @classmethod
    def make(cls) -> FakeProcess:
        stdin, frames = bounded_stream_pair()
        lines, stdout = bounded_stream_pair()
        return cls(stdin, stdout, frames, lines)

    def poll(self) -> int | None:
        return self.status

    async def wait(self) -> int:
        await self.ended.wait()
        assert self.status is not None
        return self.status

    def kill(self) -> None:
        self.status = -9 if self.status is None else self.status
        self.ended.set()

    async def end(self, status: int) -> None:
        self.status = status
        self.ended.set()
        await self.lines.send_eof()

    async def read_until_end(self) -> bytes:
        """Read as a worker does; return what came."""
        received = b""
        while not received.endswith(END):
            received += await self.frames.receive_some()
        return received


class ScriptedPool(WorkerPool):
    """Has one worker to give, or none."""

    def __init__(self, process: FakeProcess | None) -> None:
        super().__init__()
        self._worker = process and Worker(cast("trio.Process", process))

    async def take(self) -> Worker:
        return self._worker or await super().take()


@asynccontextmanager
async def served(process: FakeProcess | None) -> AsyncIterator[Client]:
    """Connect a client to a server whose worker is ``process``."""
    here, there = bounded_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server(ScriptedPool(process)).handle, there)
        async with here, connected(here, "ws://recogniser") as client:
            yield client


async def test_a_client_that_says_nothing_for_ten_seconds_is_closed(
    autojump_clock: MockClock,
) -> None:
    process = FakeProcess.make()
    async with served(process) as client:
        client.send(AUDIO)
        began = trio.current_time()
        closed = await client.read_to_end()
    assert closed.code == 1011
    assert "NET-0001" in closed.reason
    assert trio.current_time() - began == pytest.approx(IDLE_SECONDS)
    assert process.status == -9


async def test_keep_alive_keeps_the_connection_and_is_no_audio(
    autojump_clock: MockClock,
) -> None:
    process = FakeProcess.make()
    async with served(process) as client, trio.open_nursery() as nursery:
        nursery.start_soon(process.read_until_end)
        for _ in range(5):
            client.send(KEEP_ALIVE)
            await trio.sleep(IDLE_SECONDS - 1)
        client.send(AUDIO, CLOSE_STREAM)
        await trio.sleep(1)
        await process.end(0)
        assert (await client.read_to_end()).code == 1000
    assert [message["type"] for message in client.messages] == ["Metadata"]
    assert client.messages[0]["duration"] == 0.1


async def test_the_worker_gets_what_the_client_sends_and_nothing_after_its_end(
    autojump_clock: MockClock,
) -> None:
    process = FakeProcess.make()
    received: list[bytes] = []

    async def work() -> None:
        received.append(await process.read_until_end())
        await process.lines.send_all(b'{"type":"Results"}\n{"type":"Res')
        await process.lines.send_all(b'ults"}\n')
        await process.end(0)

    async with served(process) as client, trio.open_nursery() as nursery:
        nursery.start_soon(work)
        client.send(AUDIO, '{"type":"Finalize","channel":0}', CLOSE_STREAM, AUDIO, CLOSE_STREAM)
        assert (await client.read_to_end()).code == 1000
    assert received[0].endswith(
        pipe.frame(Kind.AUDIO, AUDIO) + pipe.frame(Kind.FINALIZE, b"\0") + END
    )
    assert [message["type"] for message in client.messages] == ["Results", "Results", "Metadata"]


async def test_a_worker_that_fails_at_the_end_is_no_good_end(
    autojump_clock: MockClock,
) -> None:
    process = FakeProcess.make()
    async with served(process) as client:
        client.send(AUDIO, CLOSE_STREAM)
        await process.read_until_end()
        await process.end(1)
        closed = await client.read_to_end()
    assert closed.code == 1011
    assert "NET-0000" in closed.reason
    assert client.messages == []


async def test_a_worker_that_does_not_end_is_ended(
    autojump_clock: MockClock,
) -> None:
    process = FakeProcess.make()
    async with served(process) as client:
        began = trio.current_time()
        client.send(AUDIO, CLOSE_STREAM)
        await process.read_until_end()
        assert (await client.read_to_end()).code == 1011
    assert trio.current_time() - began == pytest.approx(DRAIN_SECONDS)
    assert process.status == -9


async def test_a_worker_that_takes_nothing_more_is_given_up(
    autojump_clock: MockClock,
) -> None:
    process = FakeProcess.make()
    async with served(process) as client:
        began = trio.current_time()
        client.send(*[AUDIO] * 100)
        assert (await client.read_to_end()).code == 1011
    assert trio.current_time() - began == pytest.approx(BUSY_SECONDS)
    assert process.status == -9


async def test_a_client_that_goes_while_the_last_words_are_worked_out_frees_the_worker(
    autojump_clock: MockClock,
) -> None:
    process = FakeProcess.make()
    began = trio.current_time()
    async with served(process) as client:
        client.send(AUDIO, CLOSE_STREAM)
        await process.read_until_end()
    assert process.status == -9
    assert trio.current_time() == began


async def test_a_connection_that_gets_no_worker_in_time_is_closed(
    autojump_clock: MockClock,
) -> None:
    async with served(None) as client:
        began = trio.current_time()
        client.send(AUDIO)
        closed = await client.read_to_end()
    assert closed.code == 1011
    assert trio.current_time() - began == pytest.approx(START_SECONDS)
