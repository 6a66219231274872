"""Floods of each kind beside a running session: what they cost it, and what memory stays behind.

    python -m bench.flood [--sockets 100] [--seconds 5] [--kind NAME ...]

A server in a process of its own, the flooding sockets in another; a device and the provider in this
one. The device sends 20 ms frames of linear16 all the time; a frame's time is from the device to the
provider. The provider's finals have a word a second: each must come back once.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
from time import perf_counter
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import numpy as np
import orjson
import trio
from attrs import define, field

from bench.messages import make_final, make_metadata
from bench.proc import memory
from omi_rt.core.errors import HandshakeFailed, PeerClosed, PeerTooSlow
from omi_rt.net.handshake import ServerHandshake, open_websocket
from omi_rt.net.stream import TCPStream, open_tcp_stream

if TYPE_CHECKING:
    from omi_rt.net.websocket import WebSocket

FRAME_SECONDS = 0.02
FRAME_BYTES = 640
SETTLE_SECONDS = 25.0
"""For the server to give freed memory back to the system. It spends a hundredth of its time on that: after
a collection that took 0.1 s the next is 10 s away."""
END_SECONDS = 120.0
_GONE = (PeerClosed, HandshakeFailed, PeerTooSlow, trio.BrokenResourceError)
MIB = 1_048_576

HEAD = (
    "GET /listen?{} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def frame(first: int, payload: bytes) -> bytes:
    """A client's frame, masked with zeros."""
    size = len(payload)
    if size < 126:
        return bytes((first, 0x80 | size)) + bytes(4) + payload
    return bytes((first, 0xFE)) + size.to_bytes(2, "big") + bytes(4) + payload


NOISE = np.random.default_rng(1).integers(0, 256, 60_000, np.uint8).tobytes()
PCM, REFUSED = "uid=f&include_speech_profile=false", "uid=f&codec=mp3"
OPUS = PCM + "&codec=opus&sample_rate=48000&channels=2"
KINDS: dict[str, tuple[str, bytes]] = {
    "after a refusal, 60 kB": (REFUSED, frame(0x82, NOISE)),
    "after a refusal, one byte": (REFUSED, frame(0x82, b"x")),
    "after a refusal, pings": (REFUSED, frame(0x89, b"")),
    "one-byte messages": (PCM, frame(0x82, b"x")),
    "empty messages": (PCM, frame(0x82, b"")),
    "pings": (PCM, frame(0x89, bytes(100))),
    "text": (PCM, frame(0x81, b"{}")),
    "long text": (PCM, frame(0x81, b"[" + b"0," * 29_000 + b"0]")),
    "empty fragments": (PCM, b""),
    "packets that are not Opus": (OPUS, frame(0x82, b"\xff\xff\xff\xff")),
    "two-byte Opus": (OPUS, frame(0x82, bytes((26, 0)))),
    "8-channel PCM": (
        PCM + "&codec=pcm16&sample_rate=48000&channels=8",
        frame(0x82, NOISE),
    ),
    "refused requests": (REFUSED, b""),
    "half a request": ("", b"GET /"),
}


@define
class Provider:
    """Takes audio, and says a word for each second of it."""

    arrived: list[float] = field(factory=list)
    """When each frame of the device had come, whole."""

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection."""
        with contextlib.suppress(*_GONE):
            handshake = ServerHandshake(TCPStream(stream.socket))
            request = await handshake.receive_request()
            if not request.is_upgrade:
                # The server asks about its key when it starts.
                await handshake.respond(404)
                return
            query = parse_qs(urlsplit(request.target).query)
            rate = int(query["sample_rate"][0])
            channels = int(query.get("channels", ["1"])[0])
            websocket = handshake.accept({"dg-request-id": "r"})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(websocket.run_writer, 30.0)
                with contextlib.suppress(*_GONE):
                    await self._listen(websocket, rate, channels)
                nursery.cancel_scope.cancel()

    async def _listen(self, websocket: WebSocket, rate: int, channels: int) -> None:
        taken, covered = 0, 0.0
        while True:
            for message in await websocket.receive():
                if isinstance(message, bytes):
                    taken += len(message)
                    if rate == 16_000:
                        frames = taken // FRAME_BYTES - len(self.arrived)
                        self.arrived += [perf_counter()] * frames
                now = taken / (2 * channels * rate)
                kind = None if isinstance(message, bytes) else orjson.loads(message)["type"]
                while now - covered >= 1.0 or (
                    kind in {"Finalize", "CloseStream"} and now > covered
                ):
                    end = min(now, covered + 1.0)
                    for channel in range(channels):
                        final = make_final(round(covered), covered, end, kind == "Finalize")
                        final["channel_index"] = [channel, channels]
                        websocket.send_nowait(orjson.dumps(final).decode())
                    covered = end
                if kind == "CloseStream":
                    websocket.send_nowait(orjson.dumps(make_metadata(now)).decode())
                    await websocket.aclose(1000)
                    return


@define
class Device:
    """The session that is not to notice anything."""

    sent: list[float] = field(factory=list)
    texts: list[str] = field(factory=list)
    account: dict[str, float] = field(factory=dict)
    wants_end: trio.Event = field(factory=trio.Event)

    async def run(self, port: int) -> None:
        """Send frames until the end is wanted, then wait for the account."""
        url = f"ws://127.0.0.1:{port}/listen?uid=d&codec=pcm16&sample_rate=16000"
        stream = await open_tcp_stream("127.0.0.1", port)
        websocket = await open_websocket(stream, f"{url}&include_speech_profile=false")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.run_writer, 30.0)
            nursery.start_soon(self._send, websocket)
            try:
                while True:
                    for message in await websocket.receive():
                        said = orjson.loads(message)
                        if isinstance(said, list):
                            self.texts += [segment["text"] for segment in said]
                        elif said["type"] == "session_ended":
                            self.account = said
            except PeerClosed:
                nursery.cancel_scope.cancel()

    async def _send(self, websocket: WebSocket) -> None:
        start = trio.current_time()
        while not self.wants_end.is_set():
            await trio.sleep_until(start + (len(self.sent) + 1) * FRAME_SECONDS)
            self.sent.append(perf_counter())
            websocket.send_nowait(b"\1\2" * (FRAME_BYTES // 2))
        websocket.send_nowait('{"type":"CloseStream"}')

    def words(self) -> list[int]:
        """The second that each final's first word names, as they came."""
        return [int(n) for n in re.findall(r"\bt(\d+)\b", " ".join(self.texts))]


async def flood(port: int, kind: str, sockets: int) -> None:
    """Flood until killed: the part of the other process."""
    query, data = KINDS[kind]
    head = HEAD.format(query).encode() if query else b""
    many = data * max(1, 60_000 // len(data)) if data else b""

    async def one() -> None:
        while True:
            try:
                async with await open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(head)
                    if kind == "empty fragments":
                        await stream.send_all(frame(0x02, b""))
                        many_now = frame(0x00, b"") * 10_000
                    else:
                        many_now = many
                    while many_now and kind != "half a request":
                        await stream.send_all(many_now)
                        await trio.lowlevel.checkpoint()
                    if kind == "half a request":
                        await stream.send_all(data)
                    await stream.receive_some()
                    await stream.receive_some()
            except (OSError, trio.BrokenResourceError):
                await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        for _ in range(sockets):
            nursery.start_soon(one)


async def get_sessions(port: int) -> float:
    """How many sessions the server has."""
    async with await open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        text = b""
        while data := await stream.receive_some():
            text += data
    found = re.search(rb"^omi_rt_sessions (\S+)$", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


async def measure(port: int, pid: int, kind: str, sockets: int, seconds: float) -> dict[str, float]:
    """Flood for a while, then wait for what it leaves."""
    before = most = memory(pid).pss
    began = perf_counter()
    command = [sys.executable, "-m", "bench.flood", "--flood", str(port)]
    process = await trio.lowlevel.open_process(
        [*command, "--kind", kind, "--sockets", str(sockets)]
    )
    try:
        end = trio.current_time() + seconds
        while trio.current_time() < end:
            await trio.sleep(0.1)
            most = max(most, memory(pid).pss)
    finally:
        process.kill()
        with trio.move_on_after(END_SECONDS, shield=True):
            await process.wait()
    ended = perf_counter()
    with trio.move_on_after(END_SECONDS):
        while await get_sessions(port) > 1:  # noqa: ASYNC110 - it is another process that knows
            await trio.sleep(1)
    await trio.sleep(SETTLE_SECONDS)
    after = memory(pid).pss
    return {"began": began, "ended": ended, "most": most - before, "left": after - before}


async def run(sockets: int, seconds: float, kinds: list[str]) -> int:
    """Measure every kind; returns the exit status."""
    provider, device = Provider(), Device()
    rows: dict[str, dict[str, float]] = {}
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1024)
        provider_port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, provider.serve, listeners)
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "omi_rt", "serve", "--port", "0"],
            env={
                "PATH": "",
                "PYTHONPATH": ":".join(sys.path),
                "DEEPGRAM_API_KEY": "k",
                "DEEPGRAM_URL": f"ws://127.0.0.1:{provider_port}",
                "OMI_RT_LOG_LEVEL": "error",
            },
            stderr=subprocess.PIPE,
        )
        try:
            assert process.stderr is not None
            said = b""
            while (found := re.search(rb"http://[^:]+:(\d+)", said)) is None:
                said += await process.stderr.receive_some()
            port = int(found[1])
            nursery.start_soon(device.run, port)
            await trio.sleep(3)
            for kind in kinds:
                row = rows[kind] = await measure(port, process.pid, kind, sockets, seconds)
                times = [
                    1000 * (came - went)
                    for went, came in zip(device.sent, provider.arrived, strict=False)
                    if row["began"] <= went <= row["ended"]
                ]
                p50, p99 = np.percentile(times, (50, 99))
                print(
                    f"{kind:28} p50 {p50:6.2f} ms  p99 {p99:6.1f} ms  worst {max(times):6.1f} ms"
                    f"  at most {row['most'] / MIB:+7.1f} MiB  left {row['left'] / MIB:+6.1f} MiB",
                    flush=True,
                )
            device.wants_end.set()
            with trio.move_on_after(30):
                while not device.account:  # noqa: ASYNC110 - once, at the end
                    await trio.sleep(0.1)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
        nursery.cancel_scope.cancel()
    words = device.words()
    print(f"words {len(words)}, in order and once each: {words == list(range(len(words)))}")
    print(f"account: {device.account}")
    is_whole = words == list(range(len(words))) and device.account.get("lost") == 0
    return 0 if is_whole else 1


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--kind", action="append", choices=list(KINDS))
    parser.add_argument("--flood", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.flood is not None:
        trio.run(flood, arguments.flood, arguments.kind[0], arguments.sockets)
    kinds = arguments.kind or list(KINDS)
    sys.exit(trio.run(run, arguments.sockets, arguments.seconds, kinds))


if __name__ == "__main__":
    main()
