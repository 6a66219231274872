"""TLS as it is run: a certificate of trustme's, a session over it, and another one on SIGHUP."""

from __future__ import annotations

import signal
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trustme

from omi_rt.fake import random_script, synthesise
from omi_rt.net.certificate import Certificate
from omi_rt.net.handshake import open_websocket
from tests.harness import Device, words_of
from tests.processes_e2e import (
    KEY,
    NOWHERE,
    UPGRADE,
    exchange,
    fake_in_process,
    resources_of,
    run,
    serving,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from omi_rt.fake.streams import BoundedStream
    from tests.processes_e2e import ServerProgram

pytestmark = pytest.mark.realtime

CA = trustme.CA()
SCRIPT = random_script(Random(5), 6.0)


def write_certificate(folder: Path, issued: trustme.LeafCert) -> None:
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    (folder / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))


def files(folder: Path) -> dict[str, Any]:
    return {
        "OMI_RT_TLS_CERT": str(folder / "cert.pem"),
        "OMI_RT_TLS_KEY": str(folder / "key.pem"),
    }


async def secure(server: ServerProgram, name: str = "localhost") -> trio.SSLStream[Any]:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    stream = trio.SSLStream(
        cast("Any", await server.connect()), context, server_hostname=name, https_compatible=True
    )
    with trio.fail_after(10):
        await stream.do_handshake()
    return stream


@asynccontextmanager
async def device_over_tls(server: ServerProgram) -> AsyncIterator[Device]:
    stream = await secure(server)
    websocket = await open_websocket(stream, f"{server.url}?uid=u1&codec=pcm16&sample_rate=16000")
    device = Device(websocket, cast("BoundedStream", stream))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(websocket.run_writer, 30.0)
        nursery.start_soon(device.read)
        yield device
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)


async def test_a_session_over_tls_goes_on_while_the_certificate_is_changed(tmp_path: Path) -> None:
    write_certificate(tmp_path, CA.issue_cert("localhost"))
    async with (
        fake_in_process() as (_, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY, **files(tmp_path)) as server,
        device_over_tls(server) as device,
    ):
        assert server.url.startswith("wss://")
        pcm = synthesise(SCRIPT, 16_000)
        half = len(pcm) // 64_000 * 32_000
        await device.stream_audio(pcm[:half], 32_000, speed=1.2)
        write_certificate(tmp_path, CA.issue_cert("other.example"))
        server.program.signal(signal.SIGHUP)
        await server.program.says("certificate_read")
        await trio.aclose_forcefully(await secure(server, "other.example"))
        # A key that does not fit: the certificate of a moment ago stays.
        CA.issue_cert("third").private_key_pem.write_to_path(str(tmp_path / "key.pem"))
        server.program.signal(signal.SIGHUP)
        await server.program.says("certificate_refused.*key values mismatch")
        await trio.aclose_forcefully(await secure(server, "other.example"))
        await device.stream_audio(pcm[half:], 32_000, speed=1.2)
        end = await device.finish()
        assert words_of(device.segments) == SCRIPT.transcript()
        assert (end["lost"], end["pending"]) == (0.0, 0.0)
        assert server.program.errors.count("certificate_refused") == 1
        # SIGTERM still drains.
        server.program.signal(signal.SIGTERM)
        assert await server.program.status() == 0


async def test_after_its_close_the_server_ends_the_stream_over_tls_as_without(
    tmp_path: Path,
) -> None:
    """A client waits for that end before it closes (RFC 6455, 7.1.1), and so each for the other."""
    write_certificate(tmp_path, CA.issue_cert("localhost"))
    async with (
        fake_in_process() as (_, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY, **files(tmp_path)) as server,
        device_over_tls(server) as device,
    ):
        await device.stream_audio(synthesise(SCRIPT, 16_000)[:32_000], 32_000, speed=1.2)
        await device.finish()
        with trio.fail_after(3):
            assert await cast("Any", device.stream).receive_some() == b""


async def test_plain_http_on_the_port_of_tls_is_dropped_and_counted(tmp_path: Path) -> None:
    write_certificate(tmp_path, CA.issue_cert("localhost"))
    async with serving(DEEPGRAM_URL=NOWHERE, **files(tmp_path)) as server:
        stream = await server.connect()
        async with stream:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            with trio.fail_after(10):
                while await stream.receive_some():
                    pass
        tls = await secure(server)
        await tls.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        with trio.fail_after(10):
            while more := await tls.receive_some():
                answer += more
        await trio.aclose_forcefully(tls)
        assert b"omi_rt_connections_dropped_total 1.0" in answer


async def test_no_older_tls_than_1_2_is_spoken(tmp_path: Path) -> None:
    """OpenSSL refuses the older ones as well, unless somebody has lowered its security level."""
    write_certificate(tmp_path, CA.issue_cert("localhost"))
    certificate = Certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    await certificate.load()
    assert certificate.context.minimum_version is ssl.TLSVersion.TLSv1_2


async def hold(server: ServerProgram, held: AsyncExitStack, count: int, files: int) -> None:
    """Open connections that say nothing, and wait until the server has so many files open."""
    for _ in range(count):
        await held.enter_async_context(await server.connect())
    await wait_until(lambda: resources_of(server.program.pid)[0] == files, 10)


async def test_tls_handshakes_that_never_end_are_bounded(tmp_path: Path) -> None:
    write_certificate(tmp_path, CA.issue_cert("localhost"))
    settings = files(tmp_path) | {"OMI_RT_MAX_UNFINISHED": "3"}
    async with serving(DEEPGRAM_URL=NOWHERE, **settings) as server, AsyncExitStack() as held:
        idle = resources_of(server.program.pid)[0]
        await hold(server, held, 3, idle + 3)
        # From here on there is an answer, as long as there is no second crowd like this.
        tls = await secure(server)
        with trio.fail_after(5):
            assert (await tls.receive_some()).startswith(b"HTTP/1.1 503")
        await trio.aclose_forcefully(tls)
        await hold(server, held, 3, idle + 6)
        with trio.fail_after(5):
            async with await server.connect() as seventh:
                assert await seventh.receive_some() == b""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("missing", "no such file or directory"),
        ("mismatch", "key values mismatch"),
        ("garbage", "OMI_RT_TLS_CERT, OMI_RT_TLS_KEY: "),
    ],
)
async def test_a_server_does_not_start_with_a_bad_certificate(
    tmp_path: Path, change: str, reason: str
) -> None:
    write_certificate(tmp_path, CA.issue_cert("localhost"))
    match change:
        case "missing":
            (tmp_path / "key.pem").unlink()
        case "mismatch":
            CA.issue_cert("b").private_key_pem.write_to_path(str(tmp_path / "key.pem"))
        case _:
            (tmp_path / "cert.pem").write_text("garbage")
    done = await run("serve", "--port", "0", DEEPGRAM_URL=NOWHERE, **files(tmp_path))
    assert (done.status, done.errors.count("\n")) == (1, 1)
    assert reason in done.errors


async def test_who_speaks_plain_http_to_the_port_is_told_what_is_spoken_there(
    tmp_path: Path,
) -> None:
    write_certificate(tmp_path, CA.issue_cert("localhost"))
    async with serving(DEEPGRAM_URL=NOWHERE, **files(tmp_path)) as server:
        for request in ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", UPGRADE):
            status, headers, body = await exchange(await server.connect(), request)
            assert (status, body) == (400, "only TLS is spoken here: say https://, or wss://")
            assert int(headers["content-length"]) == len(body)


async def test_certificate_and_key_need_each_other() -> None:
    done = await run("serve", OMI_RT_TLS_CERT="x")
    assert done.status == 2
    assert "one needs the other" in done.errors
