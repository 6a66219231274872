"""``omi-rt serve`` as a process: settings, the port, what is left of sessions, what is never said."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omi_rt.core.errors import HandshakeFailed
from omi_rt.fake import Script, synthesise
from omi_rt.fake.faults import Close, Drop, FaultScript, Refuse
from omi_rt.fake.speech import utterance
from tests.harness import read_all, words_of
from tests.processes_e2e import (
    KEY,
    NOWHERE,
    UPGRADE,
    ServerProgram,
    exchange,
    fake_in_process,
    resident_bytes,
    resources_of,
    run,
    running,
    serving,
    wait_until,
)

if TYPE_CHECKING:
    from tests.harness import Device

pytestmark = pytest.mark.realtime

TALK = Script(utterance("amber bako celu dorin", 1, 0.2), 1.5)
PCM = synthesise(TALK, 16_000)
BYTES_PER_SECOND = 32_000


async def talk(device: Device) -> None:
    """Say the whole of `TALK`."""
    await device.stream_audio(PCM, BYTES_PER_SECOND, speed=1.2)


# Starting.


async def test_every_bad_setting_is_named_in_a_line_of_its_own_without_its_value() -> None:
    finished = await run(
        "serve",
        DEEPGRAM_API_KEY=f"{KEY} with spaces",
        DEEPGRAM_URL=f"ftp://{KEY}@example.com",
        OMI_RT_BACKLOG_SECONDS=KEY,
        OMI_RT_DRAIN_SECONDS="-1",
        OMI_RT_LOG_LEVEL=KEY,
        OMI_RT_NO_SUCH_THING=KEY,
    )
    assert (finished.status, finished.output) == (2, "")
    lines = finished.errors.splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == [
        "DEEPGRAM_API_KEY",
        "DEEPGRAM_URL",
        "OMI_RT_BACKLOG_SECONDS",
        "OMI_RT_DRAIN_SECONDS",
        "OMI_RT_LOG_LEVEL",
        "OMI_RT_NO_SUCH_THING",
    ]
    assert all(line.startswith("omi-rt: ") for line in lines)


async def test_an_address_in_use_is_one_clear_line_and_status_1() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        finished = await run("serve", "--port", port, DEEPGRAM_URL=NOWHERE)
    assert (finished.status, finished.output) == (1, "")
    assert finished.errors.startswith("omi-rt: ")
    assert finished.errors.count("\n") == 1
    assert "in use" in finished.errors


async def test_port_0_picks_a_free_one_for_each_and_the_ready_line_names_it() -> None:
    async with serving(DEEPGRAM_URL=NOWHERE) as one, serving(DEEPGRAM_URL=NOWHERE) as other:
        assert one.port != other.port
        for server in (one, other):
            assert server.url == f"ws://127.0.0.1:{server.port}/listen"
            assert (await server.get("/healthz"))[::2] == (200, "ok\n")
            assert server.program.errors.count("\n") == 1
            assert server.program.output == ""


async def test_plain_requests_are_answered_over_tcp() -> None:
    async with serving(DEEPGRAM_URL=NOWHERE) as server:
        statuses = {"/healthz": 200, "/readyz": 200, "/listen": 426, "/nothing": 404}
        assert {path: (await server.get(path))[0] for path in statuses} == statuses
        status, headers, body = await server.get("/metrics")
        assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
        assert "\nomi_rt_sessions 0.0\n" in body
        status, headers, body = await server.get("/healthz", "HEAD")
        assert (status, headers["content-length"], body) == (200, "3", "")


async def test_a_target_that_is_no_url_is_a_bad_request_and_no_fault_of_ours() -> None:
    async with serving(DEEPGRAM_URL=NOWHERE) as server:
        stream = await server.connect()
        async with stream:
            await stream.send_all(b"GET //[x HTTP/1.1\r\nHost: x\r\n\r\n")
            with trio.fail_after(5):
                await read_all(stream)
        assert "omi_rt_faults_total 0.0" in (await server.get("/metrics"))[2]
        assert "Traceback" not in server.program.errors


async def test_the_address_comes_from_the_settings_where_the_command_names_none() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    settings = {"DEEPGRAM_URL": NOWHERE, "OMI_RT_HOST": "127.0.0.2", "OMI_RT_PORT": port}
    async with running("serve", **settings) as program:
        await program.says(rf"ready on http://127\.0\.0\.2:{port} ")
    async with running("serve", "--host", "127.0.0.1", "--port", "0", **settings) as program:
        (chosen,) = await program.says(r"ready on http://127\.0\.0\.1:(\d+) ")
        assert chosen != port


async def test_a_kubernetes_service_of_the_same_name_is_no_setting_and_no_mistake() -> None:
    service: dict[str, Any] = {
        "OMI_RT_SERVICE_HOST": "10.0.0.1",
        "OMI_RT_SERVICE_PORT": "8080",
        "OMI_RT_SERVICE_PORT_HTTP": "8080",
        "OMI_RT_PORT": "tcp://10.0.0.1:8080",
        "OMI_RT_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "OMI_RT_PORT_8080_TCP_PROTO": "tcp",
        "OMI_RT_PORT_8080_TCP_PORT": "8080",
        "OMI_RT_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    async with serving(DEEPGRAM_URL=NOWHERE, **service) as server:
        assert (await server.get("/readyz"))[0] == 200
        first, second = server.program.errors.splitlines()
        assert "setting_ignored" in first
        assert "name=OMI_RT_PORT " in first
        assert "is ready on" in second
    listed = await run("profile", "list", "u1", **service)
    assert (listed.status, listed.errors) == (0, "")


@pytest.mark.parametrize(
    ("host", "warns"), [("0.0.0.0", True), ("127.0.0.1", False), ("::1", False)]
)
async def test_an_address_that_others_can_reach_is_warned_of_in_one_line(
    host: str, warns: bool
) -> None:
    settings = {"DEEPGRAM_URL": NOWHERE, "OMI_RT_INSECURE": "1"}
    async with running("serve", "--host", host, "--port", "0", **settings) as program:
        await program.says("is ready on")
        assert program.errors.count("no_login") == warns
        assert program.errors.count("\n") == 1 + warns


# Whether Deepgram takes the key.


async def test_a_key_that_deepgram_refuses_is_named_before_anybody_speaks() -> None:
    async with (
        fake_in_process(keys=frozenset({"another"})) as (fake, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY) as server,
    ):
        first, second = server.program.errors.splitlines()
        assert "[error" in first
        assert "Deepgram refuses the key: check DEEPGRAM_API_KEY" in first
        assert "is ready on" in second
        status, _, body = await server.get("/readyz")
        assert (status, body) == (
            503,
            "Deepgram refuses the key: check DEEPGRAM_API_KEY (HTTP 401)\n",
        )
        status, headers, reason = await exchange(await server.connect(), UPGRADE)
        assert (status, reason) == (503, body)
        assert int(headers["retry-after"]) > 0
        assert (await server.get("/healthz"))[0] == 200
        assert fake.connections == []


async def test_a_server_starts_where_nobody_can_say_whether_the_key_is_good() -> None:
    async with serving(DEEPGRAM_URL=NOWHERE, DEEPGRAM_API_KEY=KEY) as server:
        assert "provider_unreachable" in server.program.errors
        assert (await server.get("/readyz"))[0] == 200
    with socket.socket() as mute:
        # It takes connections, and never says a word.
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"ws://127.0.0.1:{mute.getsockname()[1]}"
        async with serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY) as server:
            assert "no answer within 3 s" in server.program.errors
            assert (await server.get("/readyz"))[0] == 200


# Who may come in.


async def test_a_foreign_page_is_refused_before_any_session_begins() -> None:
    def upgrade(port: int, origin: str, host: str = "") -> str:
        fields = f"Host: {host or f'127.0.0.1:{port}'}\r\nOrigin: {origin}"
        return UPGRADE.replace("Host: x", fields)

    async with serving(
        DEEPGRAM_URL=NOWHERE, OMI_RT_ORIGINS="https://App.example.com, http://localhost:3000"
    ) as server:
        for origin, host in [
            ("https://evil.example", ""),
            ("null", ""),
            ("https://app.example.com:444", ""),
            ("http://evil.example:8080", "evil.example:8080"),  # DNS made to point here
        ]:
            status, _, body = await exchange(
                await server.connect(), upgrade(server.port, origin, host)
            )
            assert status == 403
            assert "OMI_RT_ORIGINS" in body
        assert "session_started" not in server.program.errors
        assert server.program.errors.count("origin_refused peer=127.0.0.1:") == 4
        metrics = (await server.get("/metrics"))[2]
        assert 'omi_rt_upgrades_refused_total{reason="origin"} 4.0' in metrics
        for origin, host in [
            ("HTTPS://APP.example.com", ""),
            ("http://localhost:3000", ""),
            (f"http://127.0.0.1:{server.port}", ""),
            ("https://omi.example", "omi.example"),  # behind a proxy that ends TLS
        ]:
            stream = await server.connect()
            async with stream:
                await stream.send_all(upgrade(server.port, origin, host).encode())
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")


# Sessions.


async def test_twenty_devices_that_connect_at_once_are_all_served() -> None:
    async with (
        fake_in_process() as (fake, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY) as server,
        trio.open_nursery() as nursery,
    ):
        started = trio.Event()

        async def use(number: int) -> None:
            await started.wait()
            parameters = {"uid": f"u{number}", "codec": "pcm16", "sample_rate": 16_000}
            async with server.device(**parameters) as device:
                await talk(device)
                ended = await device.finish(30)
                assert ended["finalised"] == ended["received"] == TALK.seconds
                assert words_of(device.segments) == TALK.transcript()

        for number in range(20):
            nursery.start_soon(use, number)
        started.set()
    assert len(fake.connections) == 20


async def test_a_message_of_64_kib_is_taken_and_one_byte_more_closes_with_1009() -> None:
    async with (
        fake_in_process() as (_fake, url),
        serving(OMI_RT_RESUME_SECONDS="1", DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY) as server,
    ):
        async with server.device(codec="pcm16", sample_rate=16_000) as device:
            device.send(bytes(65_536))
            device.send(bytes(65_537))
            await device.ended(20)
            assert device.closed is not None
            assert device.closed.code == 1009
        await server.program.says(r"session_ended .*received=2\.048 finalised=2\.048 sent_live=")


async def test_a_device_that_pings_and_never_reads_fills_no_memory() -> None:
    ping = b"\x89\xfd\0\0\0\0" + bytes(125)
    async with serving(DEEPGRAM_URL=NOWHERE) as server, await server.connect() as stream:
        await stream.send_all(UPGRADE.encode())
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
        before = resident_bytes(server.program.pid)
        # What the system buffers on the way is not the server's: 20 MB are more than that.
        with trio.move_on_after(2), contextlib.suppress(trio.BrokenResourceError):
            for _ in range(20):
                await stream.send_all(ping * 8_000)
        assert resident_bytes(server.program.pid) - before < 8_000_000


async def test_nothing_is_left_of_sessions_however_they_ended() -> None:
    endings = (
        end_with_close_stream,
        end_with_close,
        vanish_with_a_reset,
        ask_for_the_impossible,
        say_half_a_request,
    )
    faults = FaultScript.of(
        [Drop(at="frame", after_audio=0.3)], [Close(code=1011, after_audio=0.3)]
    )
    async with (
        fake_in_process(faults) as (fake, url),
        serving(OMI_RT_RESUME_SECONDS="0", DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY) as server,
    ):
        descriptors, threads = resources_of(server.program.pid)
        async with trio.open_nursery() as nursery:
            for end in endings * 2:
                nursery.start_soon(end, server)
        # A session between two connections of its own has no descriptor, and is there all the same.
        with trio.fail_after(15):
            while "\nomi_rt_sessions 0.0\n" not in (await server.get("/metrics"))[2]:  # noqa: ASYNC110
                await trio.sleep(0.05)
        await wait_until(lambda: resources_of(server.program.pid)[0] == descriptors, 15)
        # Trio keeps the threads of a pool for 10 s; one that a session left would be one of six.
        assert resources_of(server.program.pid)[1] < threads + 6
        assert all(record.closed_at is not None for record in fake.connections)
        assert "\nomi_rt_sessions 0.0\n" in (await server.get("/metrics"))[2]
        assert server.program.errors.count(" session_ended ") == 6
        assert "Traceback" not in server.program.errors


async def end_with_close_stream(server: ServerProgram) -> None:
    async with server.device(codec="pcm16", sample_rate=16_000) as device:
        await talk(device)
        await device.finish(30)


async def end_with_close(server: ServerProgram) -> None:
    async with server.device(codec="pcm16", sample_rate=16_000) as device:
        await talk(device)
        device.websocket.close_nowait(1000)
        await device.ended(30)


async def vanish_with_a_reset(server: ServerProgram) -> None:
    stream: Any = await server.connect()
    async with stream:
        await stream.send_all(UPGRADE.encode())
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def ask_for_the_impossible(server: ServerProgram) -> None:
    async with server.device(channels=99) as device:
        await device.ended(10)
        assert device.closed is not None
        assert device.closed.code == 1008


async def say_half_a_request(server: ServerProgram) -> None:
    stream = await server.connect()
    async with stream:
        await stream.send_all(UPGRADE[:40].encode())


# What is never said.


async def test_the_key_is_in_nothing_that_the_server_says_at_any_level() -> None:
    async with (
        fake_in_process(FaultScript(afterwards=(Refuse(status=401),))) as (_fake, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY) as refused,
        serving(DEEPGRAM_URL=NOWHERE, DEEPGRAM_API_KEY=KEY, OMI_RT_LOG_FORMAT="json") as lonely,
    ):
        async with refused.device() as device:
            await device.ended(20)
        async with lonely.device() as other:
            await other.until(lambda: "stt_degraded" in other.statuses(), 20)
        with pytest.raises(HandshakeFailed, match="503"):
            async with refused.device():
                pass
        told = f"{device.messages} {device.closed} {other.messages}"
        metrics = (await refused.get("/metrics"))[2] + (await lonely.get("/metrics"))[2]
        lonely.program.signal()
        assert await lonely.program.status() == 0
    said = refused.program.errors + lonely.program.errors
    assert "HTTP 401" in said
    assert "cannot connect to 127.0.0.1:9: connection refused" in said
    assert KEY not in said + refused.program.output + lonely.program.output + told + metrics
