"""The way up, as it is in production: TLS, and a fresh short-lived token for each dial."""

from __future__ import annotations

import json
import ssl
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trustme
from attrs import define, evolve, field

from omi_rt.fake import FakeDeepgram, FaultScript, Script, synthesise
from omi_rt.fake.faults import Drop, Refuse
from omi_rt.fake.speech import utterance
from tests.harness import words_of
from tests.processes_e2e import KEY, UPGRADE, exchange, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.harness import Device

pytestmark = pytest.mark.realtime

TALK = Script(utterance("amber bako celu", 1, 0.2), 1.2)
DEVICE = {"codec": "pcm16", "sample_rate": 16_000}
BYTES_PER_SECOND = 32_000


async def talk_to_the_end(device: Device) -> None:
    """Say the whole of `TALK` and have it transcribed."""
    await device.stream_audio(synthesise(TALK, 16_000), BYTES_PER_SECOND, speed=1.2)
    ended = await device.finish(30)
    assert words_of(device.segments) == TALK.transcript()
    assert ended["finalised"] == TALK.seconds


class AdaptedStream(trio.abc.HalfCloseableStream):
    """A stream that another begins with, or ends otherwise: what a front end makes of TCP."""

    def __init__(self, inner: trio.abc.Stream, already_read: bytes = b"") -> None:
        self._inner = inner
        self._already_read = already_read

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._already_read:
            data, self._already_read = self._already_read, b""
            return data
        return bytes(await self._inner.receive_some(max_bytes))

    async def send_eof(self) -> None:
        if isinstance(self._inner, trio.abc.HalfCloseableStream):
            await self._inner.send_eof()
        else:
            # TLS has no half of a connection to close.
            await self._inner.aclose()

    async def aclose(self) -> None:
        await self._inner.aclose()


@asynccontextmanager
async def listening(serve: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """Serve connections on loopback; the value is the port."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


# TLS.


@asynccontextmanager
async def fake_behind_tls(authority: trustme.CA) -> AsyncIterator[tuple[FakeDeepgram, str]]:
    """Serve a fake at ``wss://localhost``."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    fake = FakeDeepgram()

    async def serve(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        await fake.serve_connection(AdaptedStream(tls))

    async with listening(serve) as port:
        yield fake, f"wss://localhost:{port}"
    assert fake.violations == []


async def test_words_come_through_tls_to_a_deepgram_that_is_trusted(tmp_path: Path) -> None:
    authority = trustme.CA()
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    async with (
        fake_behind_tls(authority) as (fake, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY, SSL_CERT_FILE=str(trusted)) as server,
        server.device(**DEVICE) as device,
    ):
        await talk_to_the_end(device)
        assert device.statuses()[:2] == ["initiating", "ready"]
    assert [record.status for record in fake.connections] == [101]


async def test_a_certificate_that_is_not_trusted_is_told_and_gets_no_key() -> None:
    async with (
        fake_behind_tls(trustme.CA()) as (fake, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY) as server,
        server.device(**DEVICE) as device,
    ):
        await device.until(lambda: "stt_degraded" in device.statuses(), 20)
        (degraded,) = (e for e in device.events("service_status") if "reason" in e)
        assert "certificate verify failed" in degraded["reason"]
    assert {record.status for record in fake.connections} == {None}


# Short-lived tokens.


@define
class GrantingDeepgram:
    """``/v1/auth/grant`` and ``/v1/listen`` at one address; a token is good for one dial."""

    fake: FakeDeepgram
    refusals: list[int] = field(factory=list)
    """Statuses that the next grants are refused with."""
    asked_with: list[str] = field(factory=list)
    """The ``Authorization`` of each request for a grant."""

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection."""
        head = b""
        while b"\r\n\r\n" not in head:
            data = await stream.receive_some()
            if not data:
                return
            head += data
        if head.startswith(b"GET /v1/auth/token "):
            # The key is good for tokens, and for nothing else.
            async with stream:
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return
        if not head.startswith(b"POST /v1/auth/grant "):
            await self.fake.serve_connection(AdaptedStream(stream, head))
            return
        async with stream:
            fields = (line.partition(b": ") for line in head.split(b"\r\n")[1:])
            headers = {name.lower(): value.decode() for name, _, value in fields}
            _, _, body = head.partition(b"\r\n\r\n")
            while len(body) < int(headers[b"content-length"]):
                body += await stream.receive_some()
            self.asked_with.append(headers[b"authorization"])
            await stream.send_all(self._answer())

    def _answer(self) -> bytes:
        if self.refusals:
            return f"HTTP/1.1 {self.refusals.pop(0)} No\r\nContent-Length: 0\r\n\r\n".encode()
        token = f"token-of-{KEY}-{len(self.asked_with)}"
        self.fake.options = evolve(self.fake.options, tokens=frozenset({token}))
        body = json.dumps({"access_token": token, "expires_in": 30})
        return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    @property
    def dialled_with(self) -> list[str]:
        """The ``Authorization`` of each dial."""
        return [record.headers["authorization"] for record in self.fake.connections]


@asynccontextmanager
async def granting(
    faults: FaultScript | None = None,
) -> AsyncIterator[tuple[GrantingDeepgram, str]]:
    """Serve such a fake, which takes no key where it wants a token."""
    fake = FakeDeepgram(faults=faults or FaultScript())
    fake.options = evolve(fake.options, keys=frozenset(), tokens=frozenset())
    deepgram = GrantingDeepgram(fake)
    async with listening(deepgram.serve) as port:
        yield deepgram, f"ws://127.0.0.1:{port}"
    assert fake.violations == []


def with_grant(url: str) -> dict[str, str]:
    """The settings of a server that asks for tokens."""
    return {"DEEPGRAM_URL": url, "DEEPGRAM_API_KEY": KEY, "OMI_RT_DEEPGRAM_GRANT": "1"}


async def test_each_dial_uses_a_fresh_token() -> None:
    faults = FaultScript.of([Drop(after_audio=0.4)], [Drop(at="frame", after_audio=0.4)])
    async with (
        granting(faults) as (deepgram, url),
        serving(**with_grant(url)) as server,
        server.device(**DEVICE) as device,
    ):
        await talk_to_the_end(device)
    count = len(deepgram.dialled_with)
    assert count >= 3
    assert deepgram.asked_with == [f"Token {KEY}"] * count
    assert deepgram.dialled_with == [f"Bearer token-of-{KEY}-{n + 1}" for n in range(count)]


async def test_a_401_is_renewed_once() -> None:
    async with (
        granting(FaultScript.of([Refuse(status=401)])) as (deepgram, url),
        serving(**with_grant(url)) as server,
        server.device(**DEVICE) as device,
    ):
        await device.until(lambda: "ready" in device.statuses(), 20)
        assert "stt_failed" not in device.statuses()
    assert [record.status for record in deepgram.fake.connections] == [401, 101]
    assert len(set(deepgram.dialled_with)) == 2


@pytest.mark.parametrize("refuses", ["the dial", "the grant"])
async def test_a_401_is_final_the_second_time_and_opens_the_breaker(refuses: str) -> None:
    twice = [Refuse(status=401)]
    faults = FaultScript.of(twice, twice) if refuses == "the dial" else FaultScript()
    async with granting(faults) as (deepgram, url), serving(**with_grant(url)) as server:
        if refuses == "the grant":
            deepgram.refusals += [401, 401]
        async with server.device(**DEVICE) as device:
            await device.ended(20)
            assert device.closed is not None
            assert device.closed.code == 1011
            assert device.statuses()[-1] == "stt_failed"
            (failed,) = (e for e in device.events("service_status") if e["status"] == "stt_failed")
            assert "HTTP 401" in failed["reason"]
        assert len(deepgram.asked_with) == 2
        status, headers, _body = await exchange(await server.connect(), UPGRADE)
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        assert len(deepgram.asked_with) == 2, "the breaker does not dial"
