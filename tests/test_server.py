"""The port: plain HTTP, refused requests, and whatever else connects to it."""

from __future__ import annotations

import contextlib

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from omi_rt.codecs.opus import OpusUnavailable
from omi_rt.core.errors import HandshakeFailed
from omi_rt.log import configure_logging
from omi_rt.net.handshake import DISCARD_SECONDS, open_websocket
from omi_rt.settings import Settings
from tests.harness import read_all, running_server, split_response, unreachable


@pytest.mark.parametrize(
    ("target", "status"),
    [("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/listen", 426), ("/nothing", 404)],
)
async def test_plain_requests_are_answered(
    autojump_clock: MockClock, target: str, status: int
) -> None:
    async with running_server(unreachable) as world:
        assert (await world.get(target))[0] == status


async def test_a_426_names_the_protocol_and_a_head_request_has_no_body(
    autojump_clock: MockClock,
) -> None:
    async with running_server(unreachable) as world:
        assert (await world.get("/listen"))[1]["upgrade"] == "websocket"
        assert (await world.get("/healthz", "HEAD"))[2] == ""
        assert (await world.get("/healthz", "DELETE"))[0] == 405


async def test_metrics_count_the_running_sessions(autojump_clock: MockClock) -> None:
    async with running_server(unreachable) as world, world.device() as device:
        assert "omi_rt_sessions 1.0" in (await world.get("/metrics"))[2]
        assert device.statuses()[0] == "initiating"


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"uid": ""}, "uid"),
        ({"codec": "mp3"}, "codec"),
        ({"sample_rate": "1"}, "sample_rate"),
        ({"channels": "9"}, "channels"),
        ({"channels": "two"}, "channels"),
        ({"uid": b"\xff"}, "uid"),
        ({"uid": " "}, "uid"),
        ({"uid": "\x00"}, "uid"),
    ],
)
async def test_a_bad_parameter_closes_with_1008_and_its_name(
    autojump_clock: MockClock, parameters: dict[str, str | bytes], name: str
) -> None:
    async with running_server(unreachable) as world, world.device(**parameters) as device:
        await device.ended()
        assert device.closed is not None
        assert device.closed.code == 1008
        assert device.closed.reason.startswith(f"{name}:")


async def test_those_sent_away_from_a_full_server_come_back_at_different_times(
    autojump_clock: MockClock,
) -> None:
    upgrade = (
        "GET /listen?uid=u HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    waits = set()
    async with (
        running_server(unreachable, settings=Settings(max_sessions=1)) as world,
        world.device(),
    ):
        for _ in range(100):
            stream = world.open_stream()
            await stream.send_all(upgrade.encode())
            status, headers, _ = split_response(await read_all(stream))
            assert status == 503
            waits.add(headers["retry-after"])
    assert waits == {str(seconds) for seconds in range(1, 11)}


async def test_an_upgrade_elsewhere_gets_404(autojump_clock: MockClock) -> None:
    async with running_server(unreachable) as world:
        with pytest.raises(HandshakeFailed, match="404"):
            await open_websocket(world.open_stream(), "ws://server/v9/listen")


async def test_a_broken_upgrade_gets_400(autojump_clock: MockClock) -> None:
    async with running_server(unreachable) as world:
        stream = world.open_stream()
        await stream.send_all(
            b"GET /listen?uid=u HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        assert split_response(await read_all(stream))[0] == 400


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03garbage\r\n\r\n",
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /listen HTTP/1.1\r\nConnection: \xff\xfe\r\n\r\n",
        b"POST /listen HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        b"x" * 100_000,
    ],
)
async def test_garbage_before_the_upgrade_is_dropped(
    autojump_clock: MockClock, data: bytes
) -> None:
    async with running_server(unreachable) as world, world.device() as device:
        stream = world.open_stream()
        with trio.move_on_after(30):
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(data)
            await read_all(stream)
        assert trio.current_time() < 11
        assert device.closed is None
        assert device.session in world.server.sessions


@pytest.mark.parametrize("data", [b"", b"GET /listen HTTP/1.1\r\nHost: x\r\n"])
async def test_a_connection_that_says_no_whole_request_is_dropped_after_ten_seconds(
    autojump_clock: MockClock, data: bytes
) -> None:
    async with running_server(unreachable) as world:
        stream = world.open_stream()
        await stream.send_all(data)
        assert await read_all(stream) == b""
        assert 10 <= trio.current_time() < 10.1


async def test_a_message_over_64_kib_closes_with_1009(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info")
    async with running_server(unreachable) as world, world.device() as device:
        device.send(bytes(65_537))
        await device.ended()
        assert device.closed is not None
        assert device.closed.code == 1009
    assert "close_code=1009" in capsys.readouterr().err


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=300), max_size=6))
def test_any_bytes_from_a_client_end_in_a_clean_close(chunks: list[bytes]) -> None:
    async def scenario() -> None:
        async with running_server(unreachable) as world:
            stream = world.open_stream()
            await open_websocket(stream, "ws://server/listen?uid=u&codec=opus&sample_rate=16000")
            for chunk in chunks:
                try:
                    await stream.send_all(chunk)
                except trio.BrokenResourceError:
                    break
                await trio.testing.wait_all_tasks_blocked()
            await stream.send_eof()
            await read_all(stream)
            assert world.metrics.faults._value.get() == 0

    trio.run(scenario, clock=MockClock(autojump_threshold=0))


async def test_empty_fragments_take_no_memory(autojump_clock: MockClock) -> None:
    async with running_server(unreachable) as world, world.device() as device:
        await device.websocket.drained()
        await device.stream.send_all(b"\x02\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 5000)
        await trio.testing.wait_all_tasks_blocked()
        fragments = device.session._line.websocket._protocol._fragments
        assert fragments is not None
        assert len(fragments) == 0


async def test_a_request_head_of_over_16_kib_is_refused_at_once_with_431(
    autojump_clock: MockClock,
) -> None:
    async with running_server(unreachable) as world:
        line = b"X-Long: " + b"x" * 992
        fitting = "/healthz HTTP/1.1\r\n" + (line.decode() + "\r\n") * 16 + "X: "
        assert (await world.get(fitting))[0] == 200
        stream = world.open_stream()
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        for _ in range(100):
            await stream.send_all(line + b"\r\n")
        answer = bytes(await stream.receive_some())
        assert trio.current_time() < 1.0, "not only after the ten seconds that a request may take"
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert answer.endswith(b"the request head is too long\n")
        assert await read_all(stream) == b""
        assert trio.current_time() < 1.0 + DISCARD_SECONDS


async def test_a_token_of_9_kb_or_a_megabyte_is_refused_with_431(
    autojump_clock: MockClock,
) -> None:
    async with running_server(unreachable) as world:
        for size in (9_000, 1_000_000):
            stream = world.open_stream()
            await stream.send_all(
                b"GET /v4/listen HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"x" * size
            )
            await stream.send_all(b"\r\n\r\n")
            assert (await read_all(stream)).startswith(b"HTTP/1.1 431 ")


async def test_where_libopus_is_missing_a_device_is_told_so_with_1011(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_decoder(*_arguments: object) -> None:
        raise OpusUnavailable("Opus needs libopus")

    monkeypatch.setattr("omi_rt.server.session.open_decoder", open_decoder)
    async with running_server(unreachable) as world, world.device(codec="opus") as device:
        await device.ended()
        assert device.closed is not None
        assert (device.closed.code, device.closed.reason) == (1011, "Opus needs libopus")


async def test_a_long_reason_is_cut_to_what_a_close_frame_holds(autojump_clock: MockClock) -> None:
    async with running_server(unreachable) as world, world.device() as device:
        device.session._line.websocket.close_nowait(
            1011, "\N{LATIN SMALL LETTER U WITH DIAERESIS}" * 100
        )
        await device.ended()
        assert device.closed is not None
        assert device.closed.reason == "\N{LATIN SMALL LETTER U WITH DIAERESIS}" * 61


async def test_of_an_origin_that_is_refused_only_the_beginning_is_logged(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info")
    async with running_server(unreachable) as world:
        stream = world.open_stream()
        await stream.send_all(
            b"GET /listen?uid=u HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"Origin: http://" + b"y" * 5000 + b"\r\n\r\n"
        )
        assert (await read_all(stream)).startswith(b"HTTP/1.1 403")
    logged = capsys.readouterr().err
    assert "origin_refused" in logged
    assert logged.count("y" * 93) == 1
    assert "y" * 94 not in logged
