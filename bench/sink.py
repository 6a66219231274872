"""The provider: a process that takes the audio, notes when each frame arrived, and sends finals.

It speaks Deepgram's live protocol as far as a relay meets it. It finds frames by the marker that each
frame of linear16 begins with, however the server cut or joined them; what was Opus on the way in
is found by counting, connection by connection, in the order in which they were opened (the runner
opens such streams one at a time). Finals follow one another without a gap and cover all the audio
received so far.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
from array import array
from time import perf_counter_ns, sleep
from typing import Any

import numpy as np
import orjson
import uvloop
from attrs import define
from picows import (
    WSCloseCode,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    ws_create_server,
)

from bench.audio import BYTES_PER_SECOND, MAGIC, MARKER, Framing
from bench.control import reply, serve_commands
from bench.messages import make_final, make_metadata

RESTING_CONNECTIONS = 500
"""With more connections than this the provider reads once in `REST_SECONDS` at most. Woken for each
message, as with fewer, it would take a third of its core and 15 % of the server's for the waking."""
REST_SECONDS = 0.001
"""A latency is measured as longer by this at most; the search allows 50 ms (`capacity.P99_LIMIT_MS`)."""

_BINARY, _TEXT, _CLOSE = WSMsgType.BINARY, WSMsgType.TEXT, WSMsgType.CLOSE


@define
class ConnectionRecord:
    """What is told of one connection to the provider afterwards; times in nanoseconds, 0 for never."""

    opened_ns: int
    first_audio_ns: int = 0
    stream: int = -1
    """The stream whose marker came first."""
    first_sequence: int = -1
    first_frame_ns: int = 0
    dropped_ns: int = 0


class Connection(WSListener):
    """One live connection."""

    def __init__(self, sink: Sink, index: int) -> None:
        self.record = ConnectionRecord(perf_counter_ns())
        self.transport: WSTransport | None = None
        self.received = 0
        self.finalised = 0
        """Bytes, as is ``received``."""
        self._sink = sink
        self._index = index
        self._frame_bytes = sink.framing.frame_bytes
        self._is_marked = sink.framing.is_marked
        self._rest = b""
        self._next_final = sink.bytes_per_final

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        self._sink.live += 1

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.transport = None
        self._sink.live -= 1

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is _BINARY:
            self._on_audio(frame.get_payload_as_memoryview(), perf_counter_ns())
        elif frame.msg_type is _TEXT:
            self._on_text(transport, orjson.loads(frame.get_payload_as_memoryview()))
        elif frame.msg_type is _CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()

    def _on_audio(self, payload: memoryview, now: int) -> None:
        sink, record = self._sink, self.record
        sink.messages += 1
        if not sink.is_to_rest:
            sink.rest_after_this_turn()
        if not record.first_audio_ns:
            record.first_audio_ns = now
        before = self.received
        self.received += len(payload)
        if self._is_marked:
            self._find_frames(payload, now)
        else:
            for sequence in range(before // self._frame_bytes, self.received // self._frame_bytes):
                self._on_frame(self._index, sequence, now)
        if self.received >= self._next_final:
            self.send_final(now)

    def _find_frames(self, payload: memoryview, now: int) -> None:
        size = self._frame_bytes
        data: memoryview | bytes = self._rest + payload if self._rest else payload
        at, end = 0, len(data)
        while at + size <= end:
            magic, stream, sequence = MARKER.unpack_from(data, at)
            if magic == MAGIC:
                self._on_frame(stream, sequence, now)
                at += size
                continue
            # A lead-in, or a replay that begins inside a frame: go on to the next marker.
            found = bytes(data[at:]).find(MAGIC)
            if found < 0:
                at = end - len(MAGIC) + 1
                break
            at += found
        self._rest = bytes(data[at:]) if at < end else b""

    def _on_frame(self, stream: int, sequence: int, now: int) -> None:
        record = self.record
        if record.stream < 0:
            record.stream, record.first_sequence, record.first_frame_ns = stream, sequence, now
        self._sink.note_arrival(stream, sequence, now)

    def _on_text(self, transport: WSTransport, message: dict[str, Any]) -> None:
        kind = message.get("type")
        now = perf_counter_ns()
        if kind == "Finalize":
            self.send_final(now, from_finalize=True)
        elif kind == "CloseStream":
            self.send_final(now)
            transport.send(_TEXT, orjson.dumps(make_metadata(self.received / BYTES_PER_SECOND)))
            transport.send_close(WSCloseCode.OK)

    def send_final(self, now: int, *, from_finalize: bool = False) -> None:
        """Send a final that covers what no final has covered yet."""
        start, end = self.finalised / BYTES_PER_SECOND, self.received / BYTES_PER_SECOND
        self.finalised = self.received
        self._next_final = self.received + self._sink.bytes_per_final
        if self.transport is None:
            return
        self._sink.finals.append(now)
        message = make_final(now, start, end, from_finalize)
        self.transport.send(_TEXT, orjson.dumps(message))


class Sink:
    """All connections, and what they recorded."""

    def __init__(self, framing: Framing, final_seconds: float) -> None:
        self.framing = framing
        self.bytes_per_final = int(final_seconds * BYTES_PER_SECOND)
        self.messages = 0
        self.finals = array("q")
        """When each final was sent."""
        self._connections: list[Connection] = []
        self._arrivals: list[array[int]] = []
        """By stream and sequence number: when the frame arrived first; 0 for not yet."""
        self._opened = asyncio.Event()
        self.live = 0
        """Connections that are open."""
        self.is_to_rest = False
        """Whether a rest has been asked for in this turn of the loop."""

    def rest_after_this_turn(self) -> None:
        """Let what comes pile up for a while once all has been read that is there, if there are many."""
        if self.live > RESTING_CONNECTIONS:
            self.is_to_rest = True
            asyncio.get_running_loop().call_soon(self._rest)

    def _rest(self) -> None:
        self.is_to_rest = False
        sleep(REST_SECONDS)

    def accept(self, request: WSUpgradeRequest) -> WSListener | None:
        """The connection for an upgrade request; anything else gets 404."""
        if not request.path.startswith(b"/v1/listen?"):
            return None
        connection = Connection(self, len(self._connections))
        self._connections.append(connection)
        self._opened.set()
        return connection

    def note_arrival(self, stream: int, sequence: int, now: int) -> None:
        """Keep the time at which a frame arrived for the first time."""
        arrivals = self._arrivals
        while len(arrivals) <= stream:
            arrivals.append(array("q"))
        times = arrivals[stream]
        if sequence == len(times):
            times.append(now)
            return
        if sequence > len(times):
            times.extend([0] * (sequence + 1 - len(times)))
        if not times[sequence]:
            times[sequence] = now

    async def wait_connections(self, count: int, within: float) -> dict[str, Any]:
        """Wait until so many connections were opened in all."""
        async with asyncio.timeout(within):
            while len(self._connections) < count:
                self._opened.clear()
                await self._opened.wait()
        return {"connections": len(self._connections)}

    async def drop(self, stream: int) -> dict[str, Any]:
        """Cut the newest connection that carries the stream, as a network that fails."""
        for connection in reversed(self._connections):
            if connection.record.stream == stream and connection.transport is not None:
                connection.record.dropped_ns = perf_counter_ns()
                connection.transport.underlying_transport.abort()
                return {}
        raise LookupError(f"no connection carries stream {stream}")

    async def state(self) -> dict[str, Any]:
        """How much there is, and how much audio no final has covered."""
        live = [c for c in self._connections if c.transport is not None]
        return {
            "connections": len(self._connections),
            "live": len(live),
            "messages": self.messages,
            "received_bytes": sum(c.received for c in self._connections),
            "pending_bytes": sum(c.received - c.finalised for c in live),
        }

    async def save(self, path: str) -> dict[str, Any]:
        """Write what was recorded, as NumPy arrays."""
        longest = max(map(len, self._arrivals), default=0)
        arrived = np.zeros((len(self._arrivals), longest), np.int64)
        for stream, times in enumerate(self._arrivals):
            arrived[stream, : len(times)] = times
        records = [connection.record for connection in self._connections]
        np.savez(
            path,
            arrived=arrived,
            finals=np.array(self.finals, np.int64),
            connections=np.array(
                [
                    (
                        r.opened_ns,
                        r.first_audio_ns,
                        r.stream,
                        r.first_sequence,
                        r.first_frame_ns,
                        r.dropped_ns,
                    )
                    for r in records
                ],
                np.int64,
            ).reshape(-1, 6),
        )
        return {}


async def run(framing: Framing, final_seconds: float, certificate: str | None) -> None:
    """Listen on a free port, tell it, and serve the runner's commands."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    sink = Sink(framing, final_seconds)
    server = await ws_create_server(sink.accept, "127.0.0.1", 0, ssl=context, backlog=1024)
    reply({"port": server.sockets[0].getsockname()[1]})
    await serve_commands(
        {
            "wait_connections": sink.wait_connections,
            "drop": sink.drop,
            "state": sink.state,
            "save": sink.save,
        }
    )


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codec", choices=["linear16", "opus"], required=True)
    parser.add_argument("--frame-ms", type=int, required=True)
    parser.add_argument("--final-seconds", type=float, default=1.0)
    parser.add_argument("--certificate", help="a PEM file with key and chain: TLS")
    arguments = parser.parse_args()
    framing = Framing(arguments.codec, arguments.frame_ms)
    uvloop.run(run(framing, arguments.final_seconds, arguments.certificate))


if __name__ == "__main__":
    main()
