"""The rules that the embedded recogniser's server keeps, on the virtual clock, without a model."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import pytest
import trio
import trio.testing
from attrs import define, field

from omi_rt.core.deepgram import PROGRESS_TYPE
from omi_rt.core.errors import HandshakeFailed
from omi_rt.fake.streams import BoundedStream, bounded_stream_pair
from omi_rt.local import pipe
from omi_rt.local import pool as pool_module
from omi_rt.local.capacity import Capacity
from omi_rt.local.choice import Choice
from omi_rt.local.connection import DRAIN_SECONDS, IDLE_SECONDS, NOTABLE_SECONDS, QUEUE_SECONDS
from omi_rt.local.decoding import RecogniserInfo
from omi_rt.local.pipe import Kind
from omi_rt.local.pool import BUSY_SECONDS, START_CPU_SECONDS, START_SECONDS, Worker, WorkerPool
from omi_rt.local.server import Server
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
    pid: int = 0

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

    def __init__(self, process: FakeProcess | None, kind: type[Worker] = Worker) -> None:
        super().__init__(Choice())
        self.info = RecogniserInfo("script", "none", ("en",))
        self._worker = process and kind(cast("trio.Process", process))
        if self._worker:
            self._worker.info = self.info

    async def take(self) -> Worker:
        return self._worker or await super().take()


@asynccontextmanager
async def served(
    process: FakeProcess | None,
    capacity: Capacity | None = None,
    pool: WorkerPool | None = None,
) -> AsyncIterator[Client]:
    """Connect a client to a server whose worker is ``process``."""
    here, there = bounded_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            Server(pool or ScriptedPool(process), capacity or Capacity(2.0, 8)).handle, there
        )
        async with here, connected(here, "ws://recogniser") as client:
            yield client


async def keep_alive(client: Client) -> None:
    while True:
        await trio.sleep(IDLE_SECONDS / 2)
        client.send(KEEP_ALIVE)


async def work_slowly(process: FakeProcess, rate: float, until: float = math.inf) -> None:
    """Read as a worker does that gets through ``rate`` seconds of audio a second, and tell of it."""
    worked, began = 0.0, trio.current_time()
    header = b""
    while True:
        data = await process.frames.receive_some()
        header += data
        while len(header) >= 5:
            kind, length = header[0], int.from_bytes(header[1:5], "little")
            if len(header) < 5 + length:
                break
            header = header[5 + length :]
            if kind == Kind.AUDIO:
                await trio.sleep(length / 32_000 / rate)
                if trio.current_time() - began >= until:
                    await trio.sleep_forever()
                worked += length / 32_000
                line = pipe.progress_line(pipe.Progress(worked, worked / rate))
                await process.lines.send_all(line.encode() + b"\n")
            elif kind == Kind.END:
                await process.end(0)
                return


async def speak(client: Client, seconds: float) -> None:
    for _ in range(round(seconds * 10)):
        client.send(AUDIO)
        await trio.sleep(0.1)


# Behind.


async def test_a_worker_that_keeps_up_is_not_worth_a_word(autojump_clock: MockClock) -> None:
    process = FakeProcess.make()
    async with served(process) as client, trio.open_nursery() as nursery:
        nursery.start_soon(work_slowly, process, 3.0)
        await speak(client, 30.0)
        client.send(CLOSE_STREAM)
        assert (await client.read_to_end()).code == 1000
    assert [message["type"] for message in client.messages] == ["Metadata"]


async def test_a_worker_that_is_slow_says_once_a_second_how_far_it_is_behind(
    autojump_clock: MockClock,
) -> None:
    process = FakeProcess.make()
    capacity = Capacity(2.0, 8)
    async with served(process, capacity) as client, trio.open_nursery() as nursery:
        nursery.start_soon(work_slowly, process, 0.5)
        assert capacity.carried == 2
        await speak(client, 40.0)
        # It is 20 s behind: whoever has not come yet had better go elsewhere.
        assert capacity.carried == 1
        client.send(CLOSE_STREAM)
        assert (await client.read_to_end()).code == 1000
        ended_at = trio.current_time()
    *told, metadata = client.messages
    assert ended_at == pytest.approx(80.0, abs=0.5)
    assert (metadata["type"], metadata["duration"]) == ("Metadata", 40.0)
    assert {message["type"] for message in told} == {PROGRESS_TYPE}
    assert len(told) == pytest.approx(78, abs=2)
    worked = [message["seconds_worked"] for message in told]
    assert worked == sorted(set(worked))
    behind = [message["seconds_behind"] for message in told]
    assert max(behind) == pytest.approx(20.0, abs=0.7)
    assert behind[-1] < NOTABLE_SECONDS, "in the end it has caught up, and says so"
    assert capacity.carried == 2


async def test_a_worker_that_has_caught_up_says_so_while_the_stream_goes_on(
    autojump_clock: MockClock,
) -> None:
    process = FakeProcess.make()
    async with served(process) as client, trio.open_nursery() as nursery:
        nursery.start_soon(work_slowly, process, 2.0)
        await client.send_audio(AUDIO * 100)
        with trio.move_on_after(60.0):
            nursery.start_soon(keep_alive, client)
            await client.read_to_end()
        nursery.cancel_scope.cancel()
    behind = [message["seconds_behind"] for message in client.messages]
    assert [seconds >= NOTABLE_SECONDS for seconds in behind] == [True] * (len(behind) - 1) + [
        False
    ]


async def test_a_worker_that_stands_still_says_nothing(autojump_clock: MockClock) -> None:
    process = FakeProcess.make()
    async with served(process) as client, trio.open_nursery() as nursery:
        nursery.start_soon(work_slowly, process, 0.5, 10.0)
        await speak(client, 10.0)
        said = len(client.messages)
        await speak(client, 10.0)
        nursery.start_soon(keep_alive, client)
        began = trio.current_time()
        client.send(CLOSE_STREAM)
        assert (await client.read_to_end()).code == 1011
        assert trio.current_time() - began <= DRAIN_SECONDS
        nursery.cancel_scope.cancel()
    assert said == 0, "nothing is read before the end"
    assert len(client.messages) == pytest.approx(8, abs=1)


async def test_a_client_is_read_until_a_minute_of_audio_waits(autojump_clock: MockClock) -> None:
    process = FakeProcess.make()
    async with served(process) as client, trio.open_nursery() as nursery:
        nursery.start_soon(work_slowly, process, 0.1)
        with trio.move_on_after(5.0):
            await client.send_audio(AUDIO * 3000)
        nursery.start_soon(keep_alive, client)
        (*_, told) = [await client.receive(PROGRESS_TYPE)]
        # What lies in the pipe and in the socket comes on top, a few seconds.
        assert QUEUE_SECONDS <= told["seconds_behind"] <= QUEUE_SECONDS + 6.0
        nursery.cancel_scope.cancel()


async def test_what_a_connection_took_is_free_when_it_has_ended(autojump_clock: MockClock) -> None:
    process, capacity = FakeProcess.make(), Capacity(2.0, 1)
    async with served(process, capacity) as client, trio.open_nursery() as nursery:
        nursery.start_soon(work_slowly, process, 3.0)
        await trio.testing.wait_all_tasks_blocked()
        assert capacity.is_full
        client.send(AUDIO, CLOSE_STREAM)
        await client.read_to_end()
        nursery.cancel_scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert not capacity.is_full


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
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_alive, client)
            assert (await client.read_to_end()).code == 1011
            nursery.cancel_scope.cancel()
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
    async with served(None) as client, trio.open_nursery() as nursery:
        began = trio.current_time()
        client.send(AUDIO)
        nursery.start_soon(keep_alive, client)
        closed = await client.read_to_end()
        nursery.cancel_scope.cancel()
    assert closed.code == 1011
    assert trio.current_time() - began == pytest.approx(START_SECONDS)


# Busy, and not yet able to say so.


class SlowPool(ScriptedPool):
    """Has its worker to give after some time, in which loading uses a twentieth of a processor."""

    def __init__(self, process: FakeProcess, seconds: float, rate: float = 0.05) -> None:
        super().__init__(None)
        self._slow, self._seconds, self._rate = ScriptedPool(process), seconds, rate
        self._began = trio.current_time()

    @property
    def cpu_seconds(self) -> float:
        return (trio.current_time() - self._began) * self._rate

    async def _take_alive(self) -> Worker:
        await trio.sleep(self._began + self._seconds - trio.current_time())
        return await self._slow.take()


class BusyWorker(Worker):
    """Uses a twentieth of a processor, whatever it says."""

    @property
    def cpu_seconds(self) -> float:
        return trio.current_time() * 0.05


async def test_a_client_is_read_and_told_while_its_worker_is_being_started(
    autojump_clock: MockClock,
) -> None:
    """For longer than a worker that does nothing may take, and than a client would wait to send."""
    process = FakeProcess.make()
    pool = SlowPool(process, 50.0)
    async with served(process, pool=pool) as client, trio.open_nursery() as nursery:
        nursery.start_soon(work_slowly, process, 10.0)
        await speak(client, 40.0)
        await client.websocket.drained()
        assert trio.current_time() == pytest.approx(40.0, abs=0.1), "nothing was held back"
        client.send(CLOSE_STREAM)
        assert (await client.read_to_end()).code == 1000
    *told, metadata = client.messages
    assert metadata["duration"] == 40.0
    worked = [message["seconds_worked"] for message in told]
    assert worked == sorted(set(worked)), "it gets on each time"
    early = [message for message in told if message["seconds_worked"] < 0.25]
    assert len(early) >= 48, "once a second, from the second on"
    assert all(
        message["seconds_worked"] + message["seconds_behind"] <= 40.0 + 1e-6 for message in told
    )


async def test_a_worker_whose_start_uses_no_processor_is_not_waited_for(
    autojump_clock: MockClock,
) -> None:
    pool = SlowPool(FakeProcess.make(), 50.0, rate=0.0)
    async with served(None, pool=pool) as client, trio.open_nursery() as nursery:
        nursery.start_soon(keep_alive, client)
        client.send(AUDIO * 20)
        assert (await client.read_to_end()).code == 1011
        nursery.cancel_scope.cancel()
    assert client.messages == []
    assert trio.current_time() == pytest.approx(START_SECONDS, abs=0.1)


async def test_starts_that_take_a_minute_of_the_processor_for_nothing_are_given_up(
    autojump_clock: MockClock,
) -> None:
    pool = SlowPool(FakeProcess.make(), 1e6, rate=1.0)
    async with served(None, pool=pool) as client, trio.open_nursery() as nursery:
        nursery.start_soon(keep_alive, client)
        client.send(AUDIO * 20)
        assert (await client.read_to_end(3_000)).code == 1011
        nursery.cancel_scope.cancel()
    assert trio.current_time() == pytest.approx(START_CPU_SECONDS + START_SECONDS, abs=0.1)


@pytest.mark.parametrize("ends", [False, True])
async def test_a_worker_that_decodes_for_long_is_seen_to_get_on_by_the_processor_it_uses(
    autojump_clock: MockClock, ends: bool
) -> None:
    """It says nothing for longer than a worker may take nothing, or may take to end."""
    process, capacity = FakeProcess.make(), Capacity(2.0, 8)
    capacity.speech_share = 0.1
    pool = ScriptedPool(process, BusyWorker)
    async with served(process, capacity, pool) as client, trio.open_nursery() as nursery:
        nursery.start_soon(keep_alive, client)
        client.send(*[AUDIO] * 100)
        if ends:
            client.send(CLOSE_STREAM)
        await trio.sleep(BUSY_SECONDS + DRAIN_SECONDS)
        nursery.start_soon(work_slowly, process, 100.0)
        if not ends:
            client.send(CLOSE_STREAM)
        assert (await client.read_to_end()).code == 1000
        nursery.cancel_scope.cancel()
    *told, metadata = client.messages
    worked = [message["seconds_worked"] for message in told]
    assert len(told) == pytest.approx(BUSY_SECONDS + DRAIN_SECONDS, abs=2)
    assert worked == sorted(set(worked))
    assert worked[-2] < 0.25 < worked[-1] == metadata["duration"] == 10.0


async def test_a_worker_that_is_long_about_its_last_words_says_that_it_gets_on(
    autojump_clock: MockClock,
) -> None:
    """All audio is worked through by its own account; what it was asked for takes for ever."""
    process, capacity = FakeProcess.make(), Capacity(2.0, 8)
    pool = ScriptedPool(process, BusyWorker)
    async with served(process, capacity, pool) as client, trio.open_nursery() as nursery:
        client.send(AUDIO, CLOSE_STREAM)
        await process.read_until_end()
        line = pipe.progress_line(pipe.Progress(0.1, 0.0))
        await process.lines.send_all(line.encode() + b"\n")
        nursery.start_soon(trio.sleep, 2 * DRAIN_SECONDS)
        assert (await client.receive(PROGRESS_TYPE))["seconds_worked"] < 0.1
        await trio.sleep(2 * DRAIN_SECONDS)
        await process.end(0)
        assert (await client.read_to_end()).code == 1000
    worked = [m["seconds_worked"] for m in client.messages if m["type"] == PROGRESS_TYPE]
    assert len(worked) >= 2 * DRAIN_SECONDS - 3
    assert worked == sorted(set(worked))
    assert worked[-1] < 0.1


async def test_a_worker_that_has_used_far_more_than_a_piece_may_cost_is_given_up(
    autojump_clock: MockClock,
) -> None:
    process, capacity = FakeProcess.make(), Capacity(2.0, 8)
    capacity.speech_share = 0.05
    load = capacity.open(1)
    allowed = capacity.piece_cpu_seconds(load)
    capacity.close(load)
    pool = ScriptedPool(process, BusyWorker)
    async with served(process, capacity, pool) as client, trio.open_nursery() as nursery:
        nursery.start_soon(keep_alive, client)
        client.send(*[AUDIO] * 100)
        assert (await client.read_to_end(3_000)).code == 1011
        nursery.cancel_scope.cancel()
    assert trio.current_time() == pytest.approx(allowed / 0.05 + BUSY_SECONDS, abs=2.0)


def test_what_a_piece_may_cost_goes_by_what_speech_was_measured_to_cost() -> None:
    capacity = Capacity(2.0, 8)
    one, two = capacity.open(1), capacity.open(2)
    assert capacity.piece_cpu_seconds(one) == pytest.approx(96.0)
    capacity.speech_share = 0.1
    assert capacity.piece_cpu_seconds(one) == pytest.approx(9.6)
    assert capacity.piece_cpu_seconds(two) == pytest.approx(19.2)


# Much at once.


async def test_a_minute_of_audio_sent_in_two_seconds_is_taken_and_worked_through(
    autojump_clock: MockClock,
) -> None:
    process, began = FakeProcess.make(), trio.current_time()
    async with served(process) as client, trio.open_nursery() as nursery:
        nursery.start_soon(work_slowly, process, 6.0)
        for _ in range(20):
            client.send(*[AUDIO] * 30)
            await trio.sleep(0.1)
        await client.websocket.drained()
        assert trio.current_time() - began == pytest.approx(2.0, abs=0.1), "none was held back"
        client.send(CLOSE_STREAM)
        assert (await client.read_to_end()).code == 1000
    assert trio.current_time() - began == pytest.approx(10.0, abs=0.5)
    told = [m["seconds_behind"] for m in client.messages if m["type"] == PROGRESS_TYPE]
    assert 40.0 < max(told) <= 60.0
    assert client.messages[-1]["duration"] == pytest.approx(60.0)


# Refused, or lost.


async def test_a_connection_too_many_is_answered_as_deepgram_does(
    autojump_clock: MockClock,
) -> None:
    capacity = Capacity(2.0, 1, is_fixed=True)
    load = capacity.open(1)
    with pytest.RaisesGroup(pytest.RaisesExc(HandshakeFailed), flatten_subgroups=True) as refused:
        async with served(FakeProcess.make(), capacity):
            pass
    (error,) = refused.value.exceptions
    assert isinstance(error, HandshakeFailed)
    assert error.status == 429
    capacity.close(load)
    assert not capacity.is_full


async def test_a_worker_that_dies_in_the_middle_ends_its_connection_at_once(
    autojump_clock: MockClock,
) -> None:
    process = FakeProcess.make()
    async with served(process) as client:
        client.send(AUDIO)
        await trio.sleep(1.0)
        began = trio.current_time()
        await process.end(-9)
        assert (await client.read_to_end()).code == 1011
    assert trio.current_time() == began


async def test_a_worker_that_died_while_it_waited_is_not_handed_out(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = [FakeProcess.make(), FakeProcess.make()]
    started = [Worker(cast("trio.Process", process)) for process in processes]
    for worker in started:
        worker.info = RecogniserInfo("script", "none", ("en",))
    waiting = iter(started)

    async def start(*_: object) -> Worker:
        await trio.lowlevel.checkpoint()
        for worker in waiting:
            return worker
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(pool_module, "start_worker", start)
    pool = WorkerPool(Choice())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        await pool.wait_ready()
        await processes[0].end(-9)
        taken = await pool.take()
        nursery.cancel_scope.cancel()
    assert taken is started[1]


async def test_a_stream_that_waits_for_its_worker_for_long_leaves_no_room_for_others(
    autojump_clock: MockClock,
) -> None:
    capacity = Capacity(8.0, 64)
    pool = SlowPool(FakeProcess.make(), 50.0)
    async with served(None, capacity, pool) as client:
        await speak(client, 3.0)
        assert capacity.carried == 8
        await speak(client, 4.0)
        assert capacity.carried == 1
