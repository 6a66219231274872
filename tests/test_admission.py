"""Readiness and upgrades: one answer for both, and the server's own look at Deepgram."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

import httpx
import pytest
import trio
import trio.lowlevel

from omi_rt.core import breaker
from omi_rt.core.admission import find_refusal
from omi_rt.core.forwarded import is_loopback_address
from omi_rt.deepgram.key_check import KEY_CHECK_SECONDS, KeyVerdict, check_key
from omi_rt.fake import Options
from omi_rt.fake.faults import FaultScript, Refuse
from omi_rt.log import configure_logging
from omi_rt.net.stream import open_tcp_stream
from omi_rt.server import main, provider_watch
from omi_rt.server.app import LAST_ANSWERS_SECONDS
from omi_rt.server.provider_watch import look_at_key, probe_provider
from omi_rt.settings import Settings
from tests.harness import listening_server, read_all, running_server, split_response, unreachable
from tests.processes_e2e import exchange, fake_in_process

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from trio.testing import MockClock

    from tests.harness import World

LANGUAGES = frozenset({"en", "multi"})
UPGRADE = (
    "GET /listen?uid=u HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
KEY = "5ec2e7"


async def assert_sends_away(world: World, reason: str) -> None:
    """Both answers are 503, with this reason."""
    status, _, body = await world.get("/readyz")
    assert (status, body) == (503, f"{reason}\n")
    stream = world.open_stream()
    await stream.send_all(UPGRADE.encode())
    status, headers, body = split_response(await read_all(stream))
    assert (status, body) == (503, f"{reason}\n")
    assert int(headers["retry-after"]) >= 1
    for target in ("/healthz", "/metrics"):
        assert (await world.get(target))[0] == 200


# One answer.


async def test_a_full_server_is_not_ready_until_a_session_has_gone(
    autojump_clock: MockClock,
) -> None:
    async with listening_server(max_sessions=1) as (world, _fake):
        assert (await world.get("/readyz"))[::2] == (200, "ok\n")
        async with world.device() as device:
            await assert_sends_away(world, "too many sessions: 1 of 1")
            await device.finish()
        await world.sessions_ended()
        assert (await world.get("/readyz"))[0] == 200


async def test_a_server_without_memory_for_another_session_is_not_ready(
    autojump_clock: MockClock,
) -> None:
    async with running_server(unreachable, settings=Settings(backlog_bytes=1 << 20)) as world:
        world.server.budget.held_bytes = 1 << 20
        await assert_sends_away(world, "no memory for another session")
        world.server.budget.held_bytes = 0
        assert (await world.get("/readyz"))[0] == 200


async def test_a_server_that_goes_is_not_ready(autojump_clock: MockClock) -> None:
    async with running_server(unreachable) as world:
        world.server.drain()
        await assert_sends_away(world, "going away")


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "Deepgram refuses the key: check DEEPGRAM_API_KEY"),
        (402, "Deepgram refuses for want of credit"),
        (403, "Deepgram does not allow the key what is asked of it"),
        (404, "Deepgram knows no such model or path"),
    ],
)
async def test_what_deepgram_refuses_to_all_is_named_until_the_server_finds_it_mended(
    autojump_clock: MockClock, status: int, reason: str
) -> None:
    faults = FaultScript((), (Refuse(status=status),))
    async with listening_server(faults=faults) as (world, fake):
        async with world.device() as device:
            await device.ended()
        await assert_sends_away(world, f"{reason} (HTTP {status})")
        world.nursery.start_soon(probe_provider, world.provider)
        await trio.sleep(60)
        # Nobody came, and nobody will come to a server that is not ready: it tries by itself.
        assert 4 <= len(fake.connections) - 1 <= 6
        assert (await world.get("/readyz"))[0] == 503
        fake.faults = FaultScript((), (Refuse(status=402),))
        await trio.sleep(16)
        told = (await world.get("/readyz"))[2]
        assert told == "Deepgram refuses for want of credit (HTTP 402)\n"
        fake.faults = FaultScript()
        await trio.sleep(16)
        assert (await world.get("/readyz"))[0] == 200
        dials = len(fake.connections)
        await trio.sleep(60)
        assert len(fake.connections) == dials, "a provider that takes sessions is left alone"
        async with world.device() as device:
            await device.until(lambda: "ready" in device.statuses())


async def test_one_of_those_who_come_is_let_in_to_see_whether_deepgram_still_refuses(
    autojump_clock: MockClock,
) -> None:
    async with listening_server(faults=FaultScript.of([Refuse(status=401)])) as (world, _):
        async with world.device() as device:
            await device.ended()
        await trio.sleep(breaker.PROBE_SECONDS)
        async with world.device() as device:
            await device.until(lambda: "ready" in device.statuses())
            await device.finish()
        assert (await world.get("/readyz"))[0] == 200


def test_the_first_obstacle_is_named_and_none_is_none() -> None:
    free = {
        "is_draining": False,
        "sessions": 1,
        "max_sessions": 2,
        "is_memory_full": False,
        "has_room": True,
        "refused": None,
    }
    assert find_refusal(**free) is None  # type: ignore[arg-type]
    for name, value, label in [
        ("refused", 401, "breaker"),
        ("has_room", False, "recogniser"),
        ("is_memory_full", True, "memory"),
        ("sessions", 2, "full"),
        ("is_draining", True, "draining"),
    ]:
        free[name] = value
        refusal = find_refusal(**free)  # type: ignore[arg-type]
        assert refusal is not None
        assert refusal.obstacle.value == label


@pytest.mark.realtime
async def test_a_running_server_finds_by_itself_that_the_key_is_taken_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (breaker, provider_watch):
        monkeypatch.setattr(module, "PROBE_SECONDS", 0.2)
    for name in ("raise_file_limit", "calm_the_collector"):
        monkeypatch.setattr(main, name, lambda: None)
    async with fake_in_process(keys=frozenset({"another"})) as (fake, url):
        settings = Settings(deepgram_api_key=KEY, deepgram_url=url, profile_mode="off")
        run = partial(
            main.serve,
            settings,
            "127.0.0.1",
            0,
            announce=lambda *_line, **_fields: None,
            handles_signals=False,
        )

        async def readiness() -> int:
            stream = await open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2]))
            return (await exchange(stream, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"))[0]

        async with trio.open_nursery() as nursery:
            address = await nursery.start(run)
            assert await readiness() == 503
            fake.options = Options(keys=frozenset({KEY}))
            with trio.fail_after(10):
                while await readiness() != 200:  # noqa: ASYNC110 - it is another's to say
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("::ffff:192.168.1.2", False),
        ("fe80::1%eth0", False),
    ],
)
def test_loopback_is_what_this_machine_alone_can_reach(host: str, is_loopback: bool) -> None:
    assert is_loopback_address(host) is is_loopback


# The key.


def answers(
    handler: Callable[[httpx.Request], Coroutine[None, None, httpx.Response]],
) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.MockTransport(handler))


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, '{"scopes":["usage:write"]}', KeyVerdict.ACCEPTED),
        (401, '{"err_code":"INVALID_AUTH","err_msg":"Invalid credentials."}', KeyVerdict.REFUSED),
        (401, "", KeyVerdict.REFUSED),
        (401, '{"err_code":"INSUFFICIENT_PERMISSIONS"}', KeyVerdict.UNKNOWN),
        (403, "", KeyVerdict.UNKNOWN),
        (404, "not found", KeyVerdict.UNKNOWN),
        (302, "", KeyVerdict.UNKNOWN),
        (500, "", KeyVerdict.UNKNOWN),
    ],
)
async def test_the_answer_to_the_key_is_judged(status: int, body: str, verdict: KeyVerdict) -> None:
    asked: list[httpx.Request] = []

    async def handler(request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        asked.append(request)
        return httpx.Response(status, text=body, headers={"Location": "http://elsewhere"})

    async with answers(handler) as client:
        found = await check_key("wss://dg.example:8443/base", KEY, client)
    assert found == (verdict, f"HTTP {status}")
    (request,) = asked
    assert str(request.url) == "https://dg.example:8443/v1/auth/token"
    assert request.method == "GET"
    assert request.headers["authorization"] == f"Token {KEY}"


async def test_where_nobody_answers_in_time_nobody_knows(autojump_clock: MockClock) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        await trio.sleep_forever()
        raise AssertionError

    async def unreachable_host(_request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        raise httpx.ConnectError(f"no route for {KEY}")

    async with answers(handler) as client:
        verdict, basis = await check_key("ws://dg", KEY, client)
    assert verdict is KeyVerdict.UNREACHABLE
    assert trio.current_time() == KEY_CHECK_SECONDS
    async with answers(unreachable_host) as client:
        # An address that only the HTTP library takes for none.
        assert (await check_key("ws://xn--", KEY, client))[0] is KeyVerdict.UNREACHABLE
        verdict, basis = await check_key("ws://dg", KEY, client)
    assert (verdict, basis) == (KeyVerdict.UNREACHABLE, "ConnectError")


@pytest.mark.parametrize(
    ("status", "event", "ready"),
    [
        (200, None, 200),
        (401, "provider_refuses_key", 503),
        (404, "provider_key_unchecked", 200),
    ],
)
async def test_what_came_of_it_is_said_once_without_the_key(
    autojump_clock: MockClock,
    capsys: pytest.CaptureFixture[str],
    status: int,
    event: str | None,
    ready: int,
) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        return httpx.Response(status, text=KEY)

    configure_logging("debug")
    async with answers(handler) as client, running_server(unreachable) as world:
        await look_at_key(world.provider, KEY, client)
        assert (await world.get("/readyz"))[0] == ready
    said = capsys.readouterr().err
    assert said.count("\n") == (0 if event is None else 1)
    assert (event or "") in said
    assert KEY not in said


# Languages.


@pytest.mark.parametrize("language", ["fr", "de-CH", "eng", "ENGLISH"])
async def test_a_language_that_the_provider_does_not_know_closes_with_1008_at_once(
    autojump_clock: MockClock, language: str
) -> None:
    async with running_server(unreachable) as world:
        world.provider.languages = LANGUAGES
        async with world.device(language=language) as device:
            await device.ended()
            assert device.closed is not None
            assert device.closed.code == 1008
            assert device.closed.reason == ("language: this server only transcribes en, multi")
        assert device.messages == []
        assert not world.server.sessions


@pytest.mark.parametrize("language", ["en", "en-GB", "multi", "auto", ""])
async def test_a_language_that_it_knows_is_taken(autojump_clock: MockClock, language: str) -> None:
    async with listening_server() as (world, _fake):
        world.provider.languages = LANGUAGES
        async with world.device(language=language) as device:
            await device.until(lambda: "ready" in device.statuses())
            await device.finish()


async def test_what_only_the_provider_can_say_is_left_to_it(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device(language="fr") as device:
        await device.until(lambda: "ready" in device.statuses())
        await device.finish()


# The end.


class _NobodyComes(trio.abc.Listener[trio.SocketStream]):
    async def accept(self) -> trio.SocketStream:
        await trio.sleep_forever()
        raise AssertionError

    async def aclose(self) -> None:
        pass


async def serve(world: World, ended: trio.Event) -> None:
    await world.server.serve([cast("trio.SocketListener", _NobodyComes())])
    ended.set()


async def test_a_request_that_has_begun_to_come_is_answered_before_the_end(
    autojump_clock: MockClock,
) -> None:
    async with running_server(unreachable) as world:
        ended = trio.Event()
        world.nursery.start_soon(serve, world, ended)
        stream = world.open_stream()
        await stream.send_all(b"GET /metrics HTTP/1.1\r\n")
        await trio.sleep(1)
        world.server.drain()
        await trio.sleep(LAST_ANSWERS_SECONDS / 2)
        assert not ended.is_set()
        await stream.send_all(b"Host: x\r\n\r\n")
        assert split_response(await read_all(stream))[0] == 200
        await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        assert ended.is_set()
    assert world.server.cut_sessions == 0


async def test_who_only_connects_holds_up_no_end(autojump_clock: MockClock) -> None:
    async with running_server(unreachable) as world:
        ended = trio.Event()
        world.nursery.start_soon(serve, world, ended)
        world.open_stream()
        await trio.sleep(1)
        world.server.drain()
        await ended.wait()
        assert trio.current_time() == 1 + LAST_ANSWERS_SECONDS
        await world.streams[0].aclose()


async def test_a_session_that_has_not_said_all_when_the_time_is_over_is_counted_as_cut(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("warning")
    async with listening_server(drain_seconds=3.0) as (world, _fake):
        ended = trio.Event()
        world.nursery.start_soon(serve, world, ended)
        async with world.device() as heard:
            # This one reads the answer to its upgrade, and nothing more.
            stream = world.open_stream(capacity_bytes=256)
            await stream.send_all(UPGRADE.encode())
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
            await trio.sleep(1)
            world.server.drain()
            await ended.wait()
            assert heard.closed is not None
            assert heard.closed.code == 1001
            assert world.server.cut_sessions == 1
            await stream.aclose()
    (line,) = capsys.readouterr().err.splitlines()
    assert "sessions_cut" in line
    assert "sessions=1" in line
