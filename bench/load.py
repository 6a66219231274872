"""The devices: a process that opens streams, sends every frame at its deadline and receives segments.

Run by the runner, which speaks to it through ``control``. The schedule is absolute: a frame that is
late, because the server does not take it or because this process is busy, does not move those
after it, so no waiting is left out of the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import random
import re
import ssl
from array import array
from time import perf_counter_ns
from typing import Any

import numpy as np
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from bench.audio import MAGIC, MARKER, Framing, make_frame, make_packets, token_of
from bench.control import reply, serve_commands
from bench.ticker import Ticker

OPEN_SECONDS = 15.0
"""How long a server may take to accept a stream."""
MIN_TICK_NS = 200_000
"""Frames due within this time go out together; a finer timer would cost more than it tells."""
MAX_FRAMES_PER_TICK = 256
"""Then the event loop has its turn, so that segments are read however late the schedule is."""

_BINARY, _TEXT, _CLOSE = WSMsgType.BINARY, WSMsgType.TEXT, WSMsgType.CLOSE
_STAMP = re.compile(rb"\bt(\d{9,})\b")
"""The provider puts the time at which it sent a final into the text of its first word."""
_IS_USER = re.compile(rb'"is_user": ?true')


class Stream(WSListener):
    """One device."""

    def __init__(self, number: int, period_ns: int) -> None:
        self.number = number
        self.period_ns = period_ns
        self.connect_ns = perf_counter_ns()
        self.sent = array("q")
        """When each frame went out; its index is its sequence number."""
        self.segments = array("q")
        """Pairs: the provider's time of sending, the time at which the segment arrived here."""
        self.user_known_ns = 0
        self.transport: WSTransport | None = None
        self.close_reason = ""
        self.is_started = False

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is _TEXT:
            now = perf_counter_ns()
            payload = frame.get_payload_as_bytes()
            for stamp in _STAMP.findall(payload):
                self.segments.append(int(stamp))
                self.segments.append(now)
            if not self.user_known_ns and _IS_USER.search(payload):
                self.user_known_ns = now
        elif frame.msg_type is _CLOSE:
            self.close_reason = f"{frame.get_close_code()} {frame.get_close_reason()}"
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.transport = None


class Load:
    """All devices, and the one schedule they share."""

    def __init__(self, port: int, framing: Framing, context: ssl.SSLContext | None) -> None:
        self._port = port
        self._context = context
        self._framing = framing
        self._period_ns = framing.frame_ms * 1_000_000
        self._streams: dict[int, Stream] = {}
        self._due: list[tuple[int, int]] = []
        """A heap: when a frame is due, and the number of its stream."""
        self._lateness = array("q")
        self._frame = make_frame(framing)
        self._packets = [] if framing.is_marked else make_packets(framing)
        self._phases = random.Random(1)
        self._ticker = Ticker()
        asyncio.get_running_loop().add_reader(self._ticker.fd, self._tick)

    async def open(self, first: int, count: int, profile: bool = False) -> dict[str, Any]:
        """Connect streams at the same time; each sends its first frame at once."""
        results = await asyncio.gather(
            *(self._open(number, profile) for number in range(first, first + count)),
            return_exceptions=True,
        )
        failures = [f"{type(r).__name__}: {r}" for r in results if isinstance(r, BaseException)]
        return {"failures": failures}

    async def _open(self, number: int, profile: bool) -> None:
        stream = Stream(number, self._period_ns)
        is_plain = self._context is None
        url = (
            f"{'ws' if is_plain else 'wss'}://127.0.0.1:{self._port}/listen?uid=u{number}&language=en"
            f"&{self._framing.query}&include_speech_profile={str(profile).lower()}"
        )
        await ws_connect(
            lambda: stream,
            url,
            ssl_context=self._context,
            extra_headers=None if is_plain else {"Authorization": f"Bearer {token_of(number)}"},
            websocket_handshake_timeout=OPEN_SECONDS,
        )
        self._streams[number] = stream
        if stream.transport is None:
            raise ConnectionError(f"closed at once: {stream.close_reason or 'no reason'}")
        # A server may dial the provider with the first audio only.
        self._send(stream)

    async def start(self, ramp_seconds: float) -> dict[str, Any]:
        """Let the streams that wait begin to send, spread over the ramp, each at a phase of its own."""
        now = perf_counter_ns()
        waiting = [stream for stream in self._streams.values() if not stream.is_started]
        for stream in waiting:
            stream.is_started = True
            delay = int(self._phases.random() * ramp_seconds * 1_000_000_000)
            heapq.heappush(self._due, (now + delay, stream.number))
        self._ticker.set(1)
        return {"started": len(waiting)}

    def _tick(self) -> None:
        self._ticker.clear()
        due = self._due
        now = perf_counter_ns()
        for _ in range(MAX_FRAMES_PER_TICK):
            if not due or due[0][0] > now:
                break
            deadline, number = due[0]
            stream = self._streams[number]
            if stream.transport is None:
                heapq.heappop(due)
                continue
            heapq.heapreplace(due, (deadline + stream.period_ns, number))
            self._lateness.append(self._send(stream) - deadline)
        if due:
            self._ticker.set(max(due[0][0] - perf_counter_ns(), MIN_TICK_NS))

    def _send(self, stream: Stream) -> int:
        """Send the stream's next frame; the time at which that began."""
        sequence = len(stream.sent)
        if self._packets:
            frame: bytes | bytearray = self._packets[sequence % len(self._packets)]
        else:
            frame = self._frame
            MARKER.pack_into(frame, 0, MAGIC, stream.number, sequence)
        now = perf_counter_ns()
        stream.sent.append(now)
        assert stream.transport is not None
        stream.transport.send(_BINARY, frame)
        return now

    async def vanish(self) -> dict[str, Any]:
        """Drop every connection without a word, as a device does that loses its network."""
        streams = [stream for stream in self._streams.values() if stream.transport is not None]
        for stream in streams:
            assert stream.transport is not None
            stream.transport.disconnect(graceful=False)
        return {"vanished": len(streams)}

    async def state(self) -> dict[str, Any]:
        """How the streams are, and how late frames went out since the last time this was asked (ms)."""
        lateness = np.array(self._lateness or [0]) / 1e6
        del self._lateness[:]
        gone = {n: s.close_reason for n, s in self._streams.items() if s.transport is None}
        return {
            "gone": len(gone),
            "reasons": sorted(set(gone.values())),
            "lateness_p99_ms": float(np.percentile(lateness, 99)),
            "lateness_max_ms": float(lateness.max()),
            "segments": sum(len(s.segments) // 2 for s in self._streams.values()),
            "users_known": sum(1 for s in self._streams.values() if s.user_known_ns),
        }

    async def save(self, path: str) -> dict[str, Any]:
        """Write what was recorded, as NumPy arrays."""
        streams = [self._streams[number] for number in sorted(self._streams)]
        longest = max((len(stream.sent) for stream in streams), default=0)
        sent = np.zeros((max(self._streams, default=-1) + 1, longest), np.int64)
        for stream in streams:
            sent[stream.number, : len(stream.sent)] = stream.sent
        np.savez(
            path,
            sent=sent,
            numbers=np.array([s.number for s in streams], np.int64),
            connect=np.array([s.connect_ns for s in streams], np.int64),
            user_known=np.array([s.user_known_ns for s in streams], np.int64),
            first_segment=np.array([s.segments[1] if s.segments else 0 for s in streams], np.int64),
            segments=np.array([value for s in streams for value in s.segments], np.int64).reshape(
                -1, 2
            ),
        )
        return {}


async def run(port: int, framing: Framing, authority: str | None) -> None:
    """Serve the runner's commands."""
    context = None if authority is None else ssl.create_default_context(cafile=authority)
    load = Load(port, framing, context)
    reply({"ready": True})
    await serve_commands(
        {
            "open": load.open,
            "start": load.start,
            "vanish": load.vanish,
            "state": load.state,
            "save": load.save,
        }
    )


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--codec", choices=["linear16", "opus"], required=True)
    parser.add_argument("--frame-ms", type=int, required=True)
    parser.add_argument("--authority", help="a PEM file: TLS, and a token for each stream")
    arguments = parser.parse_args()
    framing = Framing(arguments.codec, arguments.frame_ms)
    uvloop.run(run(arguments.port, framing, arguments.authority))


if __name__ == "__main__":
    main()
