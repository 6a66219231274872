"""Limits: what each of them refuses, what the client is told, and what a restart keeps."""

from __future__ import annotations

import contextlib
from contextlib import asynccontextmanager
from datetime import date, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omi_rt.core import endings
from omi_rt.core.errors import HandshakeFailed
from omi_rt.core.forwarded import parse_networks
from omi_rt.core.limits import DailyAccount, IdleWatch, LagMeter, Occupancy
from omi_rt.fake import random_script, synthesise
from omi_rt.log import configure_logging
from omi_rt.server.counts import Counts
from omi_rt.server.guard import Guard
from omi_rt.settings import Settings
from tests.harness import listening_server, read_all, split_response, words_of
from tests.processes_e2e import KEY, NOWHERE, UPGRADE, exchange, fake_in_process, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio.testing import MockClock

    from omi_rt.core.endings import Ending
    from tests.harness import World

FORMAT = {"codec": "pcm16", "sample_rate": 16_000}
SCRIPT = random_script(Random(5), 30.0)
PCM = synthesise(SCRIPT, 16_000)
UPGRADE_ONCE = UPGRADE.replace("Version: 13", "Version: 12")
"""Refused as no proper upgrade, but only once the address has been let in."""
TODAY = date(2026, 11, 27)


@asynccontextmanager
async def guarded(**settings: Any) -> AsyncIterator[World]:
    async with listening_server(**settings) as (world, _):
        async with trio.open_nursery() as nursery:
            await nursery.start(world.server.guard.watch_sessions, world.server.sessions)
            yield world
            await world.sessions_ended()
            nursery.cancel_scope.cancel()


def refused(world: World, reason: str) -> bool:
    return f'omi_rt_upgrades_refused_total{{reason="{reason}"}} 1.0' in world.exposition()


async def test_a_uid_has_so_many_sessions_at_once(autojump_clock: MockClock) -> None:
    async with guarded(max_uid_sessions=1) as world:
        async with world.device(**FORMAT) as first:
            async with world.device(**FORMAT) as second:
                await second.ended()
            assert second.closed is not None
            reason = "too many sessions of this uid: 1 of 1"
            assert (second.closed.code, second.closed.reason) == (1013, reason)
            assert refused(world, "uid")
            async with world.device(uid="u2", **FORMAT) as other:
                await other.finish()
            query = {"encoding": "linear16", "sample_rate": 16_000, "uid": "u1"}
            with pytest.raises(HandshakeFailed) as caught:
                async with world.client("/v1/listen", query):
                    pass
            assert caught.value.status == 429
            assert 'refused_total{reason="uid"} 2.0' in world.exposition()
            assert 'refused_total{reason="request"} 0.0' in world.exposition()
            await first.finish()
        async with world.device(**FORMAT) as again:
            await again.finish()


async def test_the_seconds_of_a_day_are_counted_while_they_come(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with guarded(daily_seconds=10, daily_file=tmp_path / "day") as world:
        async with world.device(**FORMAT) as device:
            with trio.move_on_after(30):
                await device.stream_audio(PCM, 32_000)
            await device.ended()
            assert device.closed is not None
            assert (device.closed.code, device.closed.reason) == (4002, "day_used_up")
            end = device.event("session_ended")
            assert 10 <= end["received"] <= 11.2
            assert end["lost"] == 0
            said = words_of(device.segments)
            assert said == SCRIPT.transcript()[: len(said)]
            assert len(said) > 3
        async with world.device(**FORMAT) as second:
            await second.ended()
        assert second.closed is not None
        assert second.closed.code == 4002
        assert "10 s" in second.closed.reason
        assert refused(world, "day")
        async with world.device(uid="u2", **FORMAT) as other:
            await other.finish()


async def test_what_a_short_session_brought_counts_as_well(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with guarded(daily_seconds=100, daily_file=tmp_path / "day") as world:
        async with world.device(**FORMAT) as device:
            await device.stream_audio(PCM[: 32_000 * 5], 32_000, speed=100)
            await device.finish()
        await world.sessions_ended()
        assert world.server.guard.account._used["u1"] == pytest.approx(5.0)


async def test_a_session_without_audio_ends_and_one_with_silence_does_not(
    autojump_clock: MockClock,
) -> None:
    async with guarded() as world, world.device(**FORMAT) as mute, world.device(**FORMAT) as idle:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mute.stream_audio, bytes(32_000 * 120), 32_000)
            await idle.ended()
            assert trio.current_time() - started == pytest.approx(90, abs=1.5)
        assert idle.closed is not None
        assert (idle.closed.code, idle.closed.reason) == (1001, "no_audio")
        assert mute.closed is None
        await mute.finish()


async def test_connections_that_are_no_sessions_are_bounded(autojump_clock: MockClock) -> None:
    async with guarded(max_unfinished=3) as world:
        streams = [world.open_stream() for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked()
        status, headers, body = split_response(await read_all(world.open_stream()))
        assert status == 503
        assert int(headers["retry-after"]) > 0
        assert body == "too many connections that are no sessions: more than 3\n"
        assert refused(world, "unfinished")
        for stream in streams:
            await stream.aclose()
        async with world.device(**FORMAT) as device:
            await device.finish()


async def test_a_late_loop_takes_no_new_session(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _):
        meter = world.server.guard._lag
        for _ in range(5):
            meter.note(0.25)
        assert (await world.get("/readyz"))[::2] == (503, "too busy: 250 ms late, of 100 ms\n")
        with pytest.raises(HandshakeFailed) as caught:
            async with world.device(**FORMAT):
                pass
        assert caught.value.status == 503
        assert refused(world, "lag")
        for _ in range(5):
            meter.note(0.0)
        assert (await world.get("/readyz"))[0] == 200


@pytest.mark.realtime
async def test_an_address_has_so_many_sessions_and_a_proxy_says_whose_it_is() -> None:
    async with (
        fake_in_process() as (_, url),
        serving(
            DEEPGRAM_URL=url,
            DEEPGRAM_API_KEY=KEY,
            OMI_RT_MAX_ADDRESS_SESSIONS="1",
            OMI_RT_TRUSTED_PROXIES="127.0.0.1",
        ) as server,
    ):
        async with server.device(**FORMAT) as device:
            status, _, body = await exchange(await server.connect(), UPGRADE)
            assert (status, body) == (503, "too many sessions of this address: 1 of 1\n")
            assert (await server.get("/readyz"))[0] == 200
            proxied = UPGRADE.replace("Host", "X-Forwarded-For: 198.51.100.1\r\nHost")
            stream = await server.connect()
            await stream.send_all(proxied.encode())
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")
            await trio.aclose_forcefully(stream)
            await device.finish()
        with trio.fail_after(10):
            while (await exchange(await server.connect(), UPGRADE_ONCE))[0] == 503:  # noqa: ASYNC110
                await trio.sleep(0.05)


@pytest.mark.realtime
async def test_one_address_has_a_quarter_of_the_connections_that_are_no_sessions() -> None:
    """Whoever proves nothing, as slowly as it may, leaves room for those who come from elsewhere."""

    def from_address(address: str, path: str = "/v4/web/listen") -> str:
        head = UPGRADE.replace("GET /listen", f"GET {path}")
        assert path in head
        return head.replace("Host", f"X-Forwarded-For: {address}\r\nHost")

    async with (
        fake_in_process() as (_, url),
        serving(
            DEEPGRAM_URL=url,
            DEEPGRAM_API_KEY=KEY,
            OMI_RT_MAX_UNFINISHED="8",
            OMI_RT_TRUSTED_PROXIES="127.0.0.1",
        ) as server,
    ):
        waiting = []
        for _ in range(2):
            # Over it nobody says who they are.
            waiting.append(await server.connect())
            await waiting[-1].send_all(from_address("198.51.100.1").encode())
            assert (await waiting[-1].receive_some()).startswith(b"HTTP/1.1 101")
        for path in ("/v4/web/listen", "/healthz"):
            status, _, body = await exchange(
                await server.connect(), from_address("198.51.100.1", path)
            )
            assert status == 503
            assert body == "too many connections of this address that are no sessions\n"
        assert 'refused_total{reason="address"} 2.0' in (await server.get("/metrics"))[2]
        for _ in range(3):
            # Those that have become sessions do not count.
            waiting.append(await server.connect())
            await waiting[-1].send_all(from_address("203.0.113.5", "/listen").encode())
            assert (await waiting[-1].receive_some()).startswith(b"HTTP/1.1 101")
        for stream in waiting:
            await trio.aclose_forcefully(stream)
        again = from_address("198.51.100.1", "/healthz")
        with trio.fail_after(10):
            while (await exchange(await server.connect(), again))[0] == 503:  # noqa: ASYNC110
                await trio.sleep(0.05)


@pytest.mark.realtime
async def test_who_watches_from_an_address_is_no_connection_that_is_no_session(
    tmp_path: Path,
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("secret alice\n")
    head = UPGRADE.replace("/listen?uid=u1", "/web/watch").replace(
        "Host", "X-Forwarded-For: 198.51.100.1\r\nAuthorization: Bearer secret\r\nHost"
    )
    async with serving(
        DEEPGRAM_URL=NOWHERE,
        OMI_RT_MAX_UNFINISHED="8",
        OMI_RT_TRUSTED_PROXIES="127.0.0.1",
        OMI_RT_AUTH="tokens",
        OMI_RT_TOKEN_FILE=str(tokens),
    ) as server:
        watching = []
        for _ in range(3):
            watching.append(await server.connect())
            await watching[-1].send_all(head.encode())
            answer = b""
            with trio.fail_after(10):
                while b'"sessions"' not in answer:
                    answer += await watching[-1].receive_some()
        assert "omi_rt_watchers 3.0" in (await server.get("/metrics"))[2]
        for stream in watching:
            await trio.aclose_forcefully(stream)


async def test_a_connection_counts_for_its_address_before_it_has_said_anything() -> None:
    async with listening_server(
        max_unfinished=8, trusted_proxies=parse_networks("198.51.100.9")
    ) as (world, _):
        begin = world.server._admission.begin
        with contextlib.closing(Counts()) as beginning:
            for peer in ("[2001:db8::1]:5", "[2001:db8::2]:5"):
                assert begin(peer, beginning) is None
            refusal = begin("[2001:db8::3]:5", beginning)
            assert refusal is not None
            assert refusal[0] == "address"
            assert begin("203.0.113.5:5", beginning) is None
            # Of these nobody knows whose they are, or everybody's come from the same address.
            for peer in ("", "127.0.0.1:5", "[::1]:5", "198.51.100.9:5"):
                assert [begin(peer, beginning) for _ in range(5)] == [None] * 5
        assert begin("[2001:db8::3]:5", beginning) is None
        beginning.close()


@pytest.mark.realtime
async def test_the_day_is_kept_over_a_restart(tmp_path: Path) -> None:
    settings = {
        "DEEPGRAM_API_KEY": KEY,
        "OMI_RT_DAILY_SECONDS": "3",
        "OMI_RT_DAILY_FILE": str(tmp_path / "state" / "daily.json"),
    }
    async with fake_in_process() as (_, url):
        async with serving(DEEPGRAM_URL=url, **settings) as server:
            async with server.device(**FORMAT) as device:
                await device.stream_audio(PCM[: 32_000 * 4], 32_000, speed=1.2)
                await device.ended()
            assert device.closed is not None
            assert device.closed.code == 4002
            server.program.signal()
            assert await server.program.status() == 0
        async with serving(DEEPGRAM_URL=url, **settings) as server:
            async with server.device(**FORMAT) as device:
                await device.ended()
            assert device.closed is not None
            assert device.closed.code == 4002


def test_a_new_day_begins_at_nothing_and_the_account_survives_as_text() -> None:
    account = DailyAccount(10)
    account.note("a", 6, TODAY)
    assert not account.is_used_up("a", TODAY)
    account.note("a", 4, TODAY)
    other = DailyAccount(10)
    other.read(account.write())
    assert other.is_used_up("a", TODAY)
    assert not other.is_used_up("b", TODAY)
    assert not other.is_used_up("a", TODAY + timedelta(days=1))
    for text in ("", "[]", '{"day":7}', '{"day":"2026-11-27","seconds":[]}'):
        with pytest.raises(ValueError, match="no account"):
            other.read(text)


async def test_a_torn_account_is_told_and_does_not_stop_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "daily.json"
    path.write_text('{"day":')
    guard = Guard(Settings(daily_seconds=10, daily_file=path), lambda: TODAY)
    await guard._load(path)
    assert not guard.account.is_used_up("a", TODAY)


class _Session:
    """As much of a session as the guard asks for."""

    uid = "a"
    sample_rate = 16_000
    is_reading = True
    takes_audio = True

    def __init__(self) -> None:
        self.received_samples = 0
        self.endings: list[Ending] = []

    def end(self, ending: Ending) -> None:
        self.endings.append(ending)


async def test_what_came_after_the_last_look_counts_when_a_session_leaves(
    autojump_clock: MockClock,
) -> None:
    await trio.lowlevel.checkpoint()
    guard = Guard(Settings(daily_seconds=10), lambda: TODAY)
    session = _Session()
    guard.look([session], trio.current_time())
    session.received_samples = 16_000 * 3
    guard.look([session], trio.current_time())
    session.received_samples = 16_000 * 5
    guard.leave(session)
    guard.leave(session)
    assert guard.account._used == {"a": 5.0}
    unseen = _Session()
    unseen.received_samples = 16_000
    guard.leave(unseen)
    assert guard.account._used == {"a": 6.0}


async def test_what_came_after_the_last_look_counts_when_the_server_ends(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "day"
    guard, session = Guard(Settings(daily_seconds=10, daily_file=path), lambda: TODAY), _Session()
    async with trio.open_nursery() as nursery:
        await nursery.start(guard.watch_sessions, [session])
        await trio.testing.wait_all_tasks_blocked()
        session.received_samples = 16_000 * 4
        nursery.cancel_scope.cancel()
    account = DailyAccount(4)
    account.read(path.read_text())
    assert account.is_used_up("a", TODAY)


async def test_an_account_that_could_not_be_written_is_written_later_and_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info")
    path = tmp_path / "file" / "day"
    (tmp_path / "file").write_text("in the way")
    guard = Guard(Settings(daily_seconds=10, daily_file=path), lambda: TODAY)
    guard.account.note("a", 7, TODAY)
    for _ in range(3):
        await guard._write(path)
    (tmp_path / "file").unlink()
    await guard._write(path)
    account = DailyAccount(7)
    account.read(path.read_text())
    assert account.is_used_up("a", TODAY)
    assert capsys.readouterr().err.count("day_unwritable") == 1


def test_without_a_limit_no_session_is_idle() -> None:
    guard, session = Guard(Settings(idle_seconds=0), lambda: TODAY), _Session()
    guard.look([session], 0.0)
    guard.look([session], 1e6)
    assert session.endings == []
    strict = Guard(Settings(idle_seconds=10), lambda: TODAY)
    strict.look([session], 0.0)
    strict.look([session], 9.9)
    assert session.endings == []
    strict.look([session], 10.0)
    assert session.endings == [endings.NO_AUDIO]


def test_addresses_that_have_left_are_not_remembered() -> None:
    occupancy = Occupancy(2)
    for number in range(100):
        occupancy.enter(f"10.0.0.{number}")
        occupancy.leave(f"10.0.0.{number}")
    assert len(occupancy._connections) == 0


def test_an_address_leaves_what_it_has_entered() -> None:
    occupancy = Occupancy(2)
    assert occupancy.enter("2001:db8::1")
    assert occupancy.enter("2001:db8::2")
    assert not occupancy.enter("2001:db8::3")
    assert occupancy.enter("10.0.0.1")
    occupancy.leave("2001:db8::1")
    assert occupancy.enter("2001:db8::3")
    assert all(Occupancy(0).enter("10.0.0.1") for _ in range(5))


def test_one_long_step_is_no_lag() -> None:
    meter = LagMeter()
    for seconds in (0.0, 3.0, 0.0, 0.01, 2.0):
        meter.note(seconds)
    assert meter.lag == 0.01


def test_a_session_that_the_server_does_not_read_is_not_idle() -> None:
    watch = IdleWatch(0.0)
    assert watch.look(100, 10.0, is_read=True) == 100
    watch.look(100, 50.0, is_read=False)
    assert watch.look(100, 60.0, is_read=True) == 0
    assert watch.idle_seconds(60.0) == 10.0
