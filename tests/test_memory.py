"""What connections leave behind is freed and given back, and what they needed once is not kept."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest
import trio

from omi_rt.deepgram.transport import WatchedStream
from omi_rt.fake import Script, synthesise
from omi_rt.fake.speech import utterance
from omi_rt.net.poller import open_poller
from omi_rt.net.protocol import ServerOpening
from omi_rt.server import memory
from omi_rt.server.memory import GARBAGE_ENDINGS, PAUSE_SECONDS, TRIMS, keep_memory_low
from tests.harness import assert_whole, listening_server
from tests.processes_e2e import UPGRADE
from tests.test_writer import connected, stream_of

if TYPE_CHECKING:
    from trio.testing import MockClock

TALK = Script(utterance("amber bako celu", 1, 0.5), seconds=3.0)


class Leftover:
    def __init__(self) -> None:
        self.itself = self


async def test_what_failed_connections_leave_behind_is_freed_within_seconds(
    autojump_clock: MockClock,
) -> None:
    failures = 0
    gc.disable()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_memory_low, lambda: failures, lambda: 0, lambda: 0)
            left = weakref.ref(Leftover())
            await trio.sleep(3 * PAUSE_SECONDS)
            assert left() is not None, "nothing has failed: nothing is to be done"
            failures = 1
            await trio.sleep(PAUSE_SECONDS + 0.1)
            assert left() is None
            nursery.cancel_scope.cancel()
    finally:
        gc.enable()


async def test_what_many_ended_connections_leave_behind_is_freed_within_seconds(
    autojump_clock: MockClock,
) -> None:
    endings = 0
    gc.disable()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_memory_low, lambda: 0, lambda: endings, lambda: 0)
            await trio.testing.wait_all_tasks_blocked()
            left = weakref.ref(Leftover())
            while endings < GARBAGE_ENDINGS - 10:
                endings += 10
                await trio.sleep(PAUSE_SECONDS + 0.1)
                assert left() is not None, "a few endings are not worth a pause of all sessions"
            endings = GARBAGE_ENDINGS
            await trio.sleep(PAUSE_SECONDS + 0.1)
            assert left() is None
            nursery.cancel_scope.cancel()
    finally:
        gc.enable()


async def test_memory_is_given_back_for_some_time_after_sessions_have_changed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    endings, changes, trims = 0, 0, []
    monkeypatch.setattr(memory, "_find_trim", lambda: lambda: trims.append(trio.current_time()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_memory_low, lambda: 0, lambda: endings, lambda: changes)
        await trio.sleep(3 * PAUSE_SECONDS + 0.1)
        assert trims == [], "nothing has changed: nothing is to be done"
        changes = 1
        await trio.sleep((TRIMS + 5) * PAUSE_SECONDS)
        assert len(trims) == TRIMS
        changes = 2
        await trio.sleep((TRIMS - 1) * PAUSE_SECONDS)
        changes = 3
        await trio.sleep((TRIMS + 5) * PAUSE_SECONDS)
        assert len(trims) == 3 * TRIMS - 1
        endings = 1
        await trio.sleep((TRIMS + 5) * PAUSE_SECONDS)
        assert len(trims) == 3 * TRIMS, "one that has ended has freed all at once"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("is_accepted", [True, False])
def test_a_handshake_is_freed_when_it_is_over(is_accepted: bool) -> None:
    gc.disable()
    try:
        opening = ServerOpening(1_000)
        opening.receive_head(UPGRADE.encode())
        parser = weakref.ref(opening._protocol)
        opened = opening.accept({}, b"") if is_accepted else None
        if not is_accepted:
            opening.plain_response(404, b"", {})
        del opening
        assert parser() is None
        assert opened is None or opened.is_open
    finally:
        gc.enable()


async def test_a_session_counts_as_a_change_and_keeps_nothing_of_its_handshake_with_the_provider(
    autojump_clock: MockClock,
) -> None:
    gc.collect()  # other tests' dials, which failed
    async with (
        listening_server() as (world, _fake),
        world.device(codec="pcm16", sample_rate=16_000) as device,
    ):
        await device.stream_audio(synthesise(TALK, 16_000), bytes_per_second=32_000)
        kept = [each for each in gc.get_objects() if type(each).__module__ == "wsproto.handshake"]
        changes = world.server.changed_sessions
        await device.finish()
    assert kept == []
    assert changes == 1
    assert_whole(device, TALK)


class Taker:
    """Takes one message and leaves the next."""

    def __init__(self) -> None:
        self.taken: list[str | bytes] = []

    def take(self, messages: list[bytes | str], now: float) -> list[bytes | str] | None:
        if not self.taken:
            self.taken.append(messages.pop(0))
        return messages or None

    def take_frame(self, message: bytes, now: float) -> list[bytes | str] | None:
        return self.take([message], now)

    def take_text(self, message: str, now: float) -> None:
        self.taken.append(message)


@pytest.mark.realtime
async def test_a_connection_does_not_keep_those_whom_it_has_passed_messages() -> None:
    server, client = await connected()
    taker = Taker()
    async with open_poller(lambda: 0.0), trio.open_nursery() as nursery:
        client.send_with(lambda: nursery.start_soon(client.write, 5.0))
        client.send_nowait(b"one")
        client.send_nowait("two")
        with trio.fail_after(5):
            assert await server.receive(taker.take, taker.take_frame) == ["two"]
    assert taker.taken == [b"one"]
    left = weakref.ref(taker)
    del taker
    assert left() is None
    for each in (client, server):
        await each.abort(1000)


@pytest.mark.realtime
async def test_the_providers_stream_does_not_keep_who_has_been_passed_its_messages() -> None:
    here, there = trio.socket.socketpair()
    stream, taker = WatchedStream(stream_of(here), 1_000), Taker()
    async with open_poller(lambda: 0.0):
        await there.send(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        await stream.receive_some()
        await there.send(b"\x81\x03one")
        there.shutdown(trio.socket.SHUT_WR)
        with trio.fail_after(5):
            await stream.pass_texts_on(str, taker.take_text)
    assert taker.taken == ["one"]
    left = weakref.ref(taker)
    del taker
    assert left() is None
    there.close()
    await stream.aclose()
