"""``omi-rt stream``: a client that sends as a device does, and says clearly what went wrong."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import math
import os
import pty
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import termios
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import trio
import trio.testing

from omi_rt.client.connect import StreamFailed, server_address, with_parameters
from omi_rt.client.device import DEVICE_CODECS, DeviceAudio
from omi_rt.client.headers import HeaderRefused, header_fields
from omi_rt.client.run import run_stream
from omi_rt.client.stream import (
    AudioSent,
    EventReceived,
    SegmentsReceived,
    StreamEvent,
    StreamOptions,
    StreamSummary,
    load_recording,
    stream_recording,
)
from omi_rt.client.terminal import OutputClosed, Terminal
from omi_rt.codecs import open_decoder
from omi_rt.codecs.opus import OpusEncoder
from omi_rt.codecs.recording import RecordingError
from omi_rt.codecs.wav import WavAudio, convert, write_wav
from omi_rt.core.errors import PeerClosed
from omi_rt.net.handshake import ServerHandshake
from omi_rt.net.stream import TCPStream
from tests.harness import running_server, unreachable
from tests.processes_e2e import Finished, environment, run

if TYPE_CHECKING:
    from pathlib import Path

    from omi_rt.net.websocket import WebSocket

SEGMENT = {
    "id": "a1",
    "speaker": "SPEAKER_01",
    "speaker_id": 1,
    "start": 0.25,
    "end": 1.0,
    "text": "Hello there.",
    "is_user": False,
    "person_id": None,
}
ENDED = {"type": "session_ended", "received": 0.5, "lost": 0.0}


def recording(seconds: float = 0.5, sample_rate: int = 16_000, channels: int = 1) -> WavAudio:
    """Return tones, a different one on each channel."""
    # Each makes whole periods in a second.
    time = np.arange(sample_rate) / sample_rate
    tones = [np.sin(2 * np.pi * pitch * time) * 9_000 for pitch in (300, 500, 700)[:channels]]
    second = np.stack(tones, axis=1).astype("<i2").tobytes()
    size = round(seconds * sample_rate) * channels * 2
    return WavAudio(sample_rate, channels, (second * math.ceil(seconds))[:size])


class ListenServer:
    """The other end of ``/listen``: keeps what arrives, with its time, and answers as told."""

    def __init__(self) -> None:
        self.target = ""
        self.messages: list[tuple[float, bytes | str]] = []
        self.accepted_at = math.nan
        self.closed_with = 0
        self.finished = trio.Event()

    async def serve(self, stream: trio.abc.Stream) -> None:
        async with stream, trio.open_nursery() as nursery:
            handshake = ServerHandshake(stream)
            self.target = (await handshake.receive_request()).target
            websocket = handshake.accept()
            self.accepted_at = trio.current_time()
            nursery.start_soon(websocket.run_writer, 10.0)
            await self.on_open(websocket)
            try:
                while True:
                    for message in await websocket.receive():
                        self.messages.append((trio.current_time(), message))
                        self.on_message(websocket, message)
            except PeerClosed as closed:
                self.closed_with = closed.code
            await websocket.aclose()
        self.finished.set()

    async def on_open(self, websocket: WebSocket) -> None:
        """Called once, before anything is read."""
        await trio.lowlevel.checkpoint()

    def on_message(self, websocket: WebSocket, message: bytes | str) -> None:
        if isinstance(message, str):
            websocket.send_nowait(json.dumps([SEGMENT]))
            websocket.send_nowait(json.dumps(ENDED))
            websocket.close_nowait(1000)

    @property
    def audio(self) -> list[bytes]:
        return [message for _, message in self.messages if isinstance(message, bytes)]

    @property
    def texts(self) -> list[str]:
        return [message for _, message in self.messages if isinstance(message, str)]

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)


OpenStream = Callable[[str, int], Awaitable[trio.abc.Stream]]


def connected_to(
    nursery: trio.Nursery,
    serve: Callable[[trio.abc.Stream], Awaitable[None]],
    pair: Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]] = trio.testing.memory_stream_pair,
) -> OpenStream:
    async def open_stream(host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        ours, theirs = pair()
        nursery.start_soon(serve, theirs)
        return ours

    return open_stream


async def stream_to(
    server: ListenServer,
    nursery: trio.Nursery,
    audio: WavAudio,
    *,
    on_event: Callable[[StreamEvent], None] = lambda event: None,
    **options: Any,
) -> StreamSummary:
    open_stream = connected_to(nursery, server.serve)
    return await stream_recording(
        audio, StreamOptions(**options), on_event, open_stream=open_stream
    )


@pytest.mark.parametrize(("codec", "sample_rate"), [("pcm16", 16_000), ("pcm8", 8_000)])
@pytest.mark.parametrize("channels", [1, 2])
async def test_pcm_arrives_sample_for_sample_in_10_ms_messages(
    autojump_clock: Any, nursery: trio.Nursery, codec: str, sample_rate: int, channels: int
) -> None:
    server, audio = ListenServer(), recording(0.505, sample_rate, channels)
    await stream_to(server, nursery, audio, codec=codec)
    assert b"".join(server.audio) == audio.pcm
    frame = sample_rate // 100 * 2 * channels
    assert [len(message) for message in server.audio] == [frame] * 50 + [frame // 2]


async def test_a_recording_of_another_rate_is_converted(
    autojump_clock: Any, nursery: trio.Nursery
) -> None:
    server, audio = ListenServer(), recording(0.3, 44_100, 2)
    await stream_to(server, nursery, audio, codec="pcm16")
    assert b"".join(server.audio) == convert(audio, 16_000, 2).pcm
    assert server.query["channels"] == ["2"]


async def test_more_than_two_channels_become_mono(
    autojump_clock: Any, nursery: trio.Nursery
) -> None:
    server, audio = ListenServer(), recording(0.1, 16_000, 3)
    await stream_to(server, nursery, audio, codec="pcm16")
    assert b"".join(server.audio) == convert(audio, 16_000, 1).pcm
    assert server.query["channels"] == ["1"]


@pytest.mark.parametrize(("codec", "frame_samples"), [("opus", 160), ("opus_fs320", 320)])
@pytest.mark.parametrize("channels", [1, 2])
async def test_opus_arrives_in_the_codec_s_frames_and_decodes_to_the_whole_recording(
    autojump_clock: Any, nursery: trio.Nursery, codec: str, frame_samples: int, channels: int
) -> None:
    server, audio = ListenServer(), recording(0.5, 16_000, channels)
    await stream_to(server, nursery, audio, codec=codec)
    decoder = open_decoder(codec, 16_000, channels)
    decoded = [decoder.decode(message) for message in server.audio]
    assert {len(pcm) for pcm in decoded} == {frame_samples * 2 * channels}
    late = OpusEncoder(16_000, channels).lookahead * channels
    heard = np.frombuffer(b"".join(decoded), "<i2").astype(float)[late:]
    sent = np.frombuffer(audio.pcm, "<i2").astype(float)
    assert len(heard) >= len(sent)
    noise = sent - heard[: len(sent)]
    assert 10 * np.log10(np.sum(sent**2) / np.sum(noise**2)) > 15
    # The very end is there too, although the codec holds 2.5 ms back.
    assert np.abs(noise[-40 * channels :]).max() < 4_000


async def test_the_query_names_the_audio_and_keeps_what_the_url_had(
    autojump_clock: Any, nursery: trio.Nursery
) -> None:
    server = ListenServer()
    url = "ws://host:1/listen?language=es&codec=mp3&x=a%20b"
    await stream_to(server, nursery, recording(0.05), url=url, uid="jo & co", codec="opus_fs320")
    assert urlsplit(server.target).path == "/listen"
    assert server.query == {
        "language": ["es"],
        "x": ["a b"],
        "uid": ["jo & co"],
        "codec": ["opus_fs320"],
        "sample_rate": ["16000"],
        "channels": ["1"],
        "acknowledge": ["true"],
    }


@pytest.mark.parametrize(("codec", "period"), [("opus", 0.01), ("opus_fs320", 0.02)])
@pytest.mark.parametrize("speed", [1.0, 4.0, 0.5])
async def test_each_message_leaves_when_its_last_sample_is_recorded_without_drift(
    autojump_clock: Any, nursery: trio.Nursery, codec: str, period: float, speed: float
) -> None:
    server = ListenServer()
    await stream_to(server, nursery, recording(20.0), codec=codec, speed=speed)
    times = [at - server.accepted_at for at, message in server.messages if message != ""]
    wanted = [(index + 1) * period / speed for index in range(len(server.audio))]
    assert times[:-1] == pytest.approx(wanted, abs=1e-6)
    assert len(wanted) == pytest.approx(20.0 / period, abs=1)


async def test_after_the_audio_comes_close_stream_and_nothing_else(
    autojump_clock: Any, nursery: trio.Nursery
) -> None:
    server = ListenServer()
    summary = await stream_to(server, nursery, recording(0.5))
    assert [json.loads(text) for text in server.texts] == [{"type": "CloseStream"}]
    assert isinstance(server.messages[-1][1], str)
    assert summary == StreamSummary(0.5, ENDED)
    await server.finished.wait()
    assert server.closed_with == 1000


async def test_a_recording_without_audio_is_streamed_too(
    autojump_clock: Any, nursery: trio.Nursery
) -> None:
    server = ListenServer()
    summary = await stream_to(server, nursery, recording(0.0))
    assert (server.audio, summary.audio_seconds) == ([], 0.0)


async def test_segments_and_events_come_typed_with_their_time_on_the_audio_s_clock(
    autojump_clock: Any, nursery: trio.Nursery
) -> None:
    class Chatty(ListenServer):
        async def on_open(self, websocket: WebSocket) -> None:
            await trio.sleep(0.125)
            for text in (
                '{"type":"service_status","status":"ready"}',
                "ping",
                "[]",
                '{"no":"type"}',
                '{"type":7}',
                "[" * 100_000,
                "17",
                json.dumps([SEGMENT, "?", SEGMENT]),
            ):
                websocket.send_nowait(text)
            websocket.send_nowait(b"\x00\x01")

    heard: list[SegmentsReceived | EventReceived] = []

    def on_event(event: StreamEvent) -> None:
        if isinstance(event, SegmentsReceived | EventReceived):
            heard.append(event)

    await stream_to(Chatty(), nursery, recording(0.5), on_event=on_event)
    assert [
        event.segments if isinstance(event, SegmentsReceived) else event.event for event in heard
    ] == [
        {"type": "service_status", "status": "ready"},
        [SEGMENT, SEGMENT],
        [SEGMENT],
        ENDED,
    ]
    # The recording, the codec's 2.5 ms and the rest of the last frame: CloseStream goes at 0.51 s.
    assert [event.elapsed for event in heard] == pytest.approx([0.125, 0.125, 0.51, 0.51])


async def test_progress_comes_ten_times_a_second_and_ends_at_the_whole(
    autojump_clock: Any, nursery: trio.Nursery
) -> None:
    events: list[StreamEvent] = []
    await stream_to(ListenServer(), nursery, recording(2.0), on_event=events.append)
    sent = [event for event in events if isinstance(event, AudioSent)]
    assert sent[-1] == AudioSent(2.0, 2.0)
    assert [event.seconds for event in sent] == sorted(event.seconds for event in sent)
    assert 15 <= len(sent) <= 22


async def test_a_server_that_takes_no_data_holds_the_stream_back_instead_of_filling_memory(
    autojump_clock: Any, nursery: trio.Nursery
) -> None:
    """The recording is over the megabyte that the WebSocket would queue."""

    class Sleepy(ListenServer):
        async def on_open(self, websocket: WebSocket) -> None:
            await trio.sleep(50)

    server, audio = Sleepy(), recording(20.0, 16_000, 2)
    open_stream = connected_to(nursery, server.serve, trio.testing.lockstep_stream_pair)
    options = StreamOptions(codec="pcm16", speed=1_000)
    await stream_recording(audio, options, lambda event: None, open_stream=open_stream)
    assert len(audio.pcm) > 1_048_576
    assert b"".join(server.audio) == audio.pcm


async def test_a_server_that_takes_no_data_for_a_minute_is_given_up(
    autojump_clock: Any, nursery: trio.Nursery
) -> None:
    class Stalled(ListenServer):
        async def on_open(self, websocket: WebSocket) -> None:
            await trio.sleep_forever()

    open_stream = connected_to(nursery, Stalled().serve, trio.testing.lockstep_stream_pair)
    with pytest.raises(StreamFailed, match=r"^the server took no data for 60 s$"):
        await stream_recording(
            recording(), StreamOptions(), lambda event: None, open_stream=open_stream
        )


@pytest.mark.parametrize(
    ("code", "reason", "says"),
    [
        (1008, "unknown codec", r"closed the connection with 1008 \(unknown codec\) before"),
        (1001, "", "closed the connection with 1001 before the session ended"),
        (1000, "", "closed the connection with 1000 before the session ended"),
        (1011, "a\nb\x1b[2J", r"1011 \(a b \[2J\) before"),
    ],
)
async def test_a_close_before_the_end_names_its_code_and_reason(
    autojump_clock: Any, nursery: trio.Nursery, code: int, reason: str, says: str
) -> None:
    class Refusing(ListenServer):
        async def on_open(self, websocket: WebSocket) -> None:
            await trio.sleep(0.001)
            websocket.close_nowait(code, reason)

    with pytest.raises(StreamFailed, match=says):
        await stream_to(Refusing(), nursery, recording())


async def test_a_session_that_ends_before_all_was_sent_has_failed(
    autojump_clock: Any, nursery: trio.Nursery
) -> None:
    class Draining(ListenServer):
        async def on_open(self, websocket: WebSocket) -> None:
            await trio.sleep(0.1)
            websocket.send_nowait(json.dumps(ENDED))
            websocket.close_nowait(1001, "shutting down")

    with pytest.raises(StreamFailed, match=r"1001 \(shutting down\)"):
        await stream_to(Draining(), nursery, recording())


async def test_a_lost_connection_is_told_as_one(autojump_clock: Any, nursery: trio.Nursery) -> None:
    async def vanish(stream: trio.abc.Stream) -> None:
        handshake = ServerHandshake(stream)
        await handshake.receive_request()
        websocket = handshake.accept()
        async with trio.open_nursery() as writing:
            writing.start_soon(websocket.run_writer, 10.0)
            await trio.sleep(0.1)
            writing.cancel_scope.cancel()
        await trio.aclose_forcefully(stream)

    with pytest.raises(StreamFailed, match="connection to the server was lost"):
        await stream_recording(
            recording(),
            StreamOptions(),
            lambda event: None,
            open_stream=connected_to(nursery, vanish),
        )


@pytest.mark.parametrize("speed", [1.0, 10.0])
async def test_a_server_that_does_not_end_the_session_is_given_up(
    autojump_clock: Any, nursery: trio.Nursery, speed: float
) -> None:
    """After 120 s, and as many more as the audio was sent ahead of real time."""

    class Endless(ListenServer):
        def on_message(self, websocket: WebSocket, message: bytes | str) -> None:
            websocket.send_nowait('{"type":"ping"}')

    started_at = trio.current_time()
    with pytest.raises(StreamFailed, match="did not end the session in time"):
        await stream_to(Endless(), nursery, recording(10.0), speed=speed)
    assert trio.current_time() - started_at == pytest.approx(10.0 + 120.0, abs=0.1)


async def test_a_server_that_does_not_close_is_given_up(
    autojump_clock: Any, nursery: trio.Nursery
) -> None:
    class Open(ListenServer):
        def on_message(self, websocket: WebSocket, message: bytes | str) -> None:
            if isinstance(message, str):
                websocket.send_nowait(json.dumps(ENDED))

    started_at = trio.current_time()
    with pytest.raises(StreamFailed, match="did not close the connection"):
        await stream_to(Open(), nursery, recording(1.0))
    assert trio.current_time() - started_at == pytest.approx(1.0 + 10.0, abs=0.1)


async def test_an_http_refusal_names_the_server_and_the_status(nursery: trio.Nursery) -> None:
    async def refuse(stream: trio.abc.Stream) -> None:
        handshake = ServerHandshake(stream)
        await handshake.receive_request()
        await handshake.respond(404, "not here")
        await stream.aclose()

    with pytest.raises(
        StreamFailed,
        match=r"^cannot open a WebSocket to 127\.0\.0\.1:8080: refused with HTTP 404: not here$",
    ):
        await stream_recording(
            recording(),
            StreamOptions(),
            lambda event: None,
            open_stream=connected_to(nursery, refuse),
        )


@pytest.mark.parametrize(
    ("body", "headers", "says"),
    [
        (b"the server is full\n", {"Retry-After": "7"}, ": the server is full; try again in 7 s"),
        (b"", {"Retry-After": "12"}, "; try again in 12 s"),
        (b"full", {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, ": full"),
        (b"full", {"Retry-After": "9" * 5_000}, ": full"),
        (b"a\x1b[2Jb\nsecond line", {}, ": a [2Jb"),
        (b"x" * 500, {}, ": " + "x" * 200),
        (b"\xff", {}, ": \N{REPLACEMENT CHARACTER}"),
        (b"<html>", {"Content-Type": "text/html"}, ""),
    ],
)
async def test_a_503_is_told_with_its_reason_and_when_to_come_back(
    nursery: trio.Nursery, body: bytes, headers: dict[str, str], says: str
) -> None:
    async def refuse(stream: trio.abc.Stream) -> None:
        handshake = ServerHandshake(stream)
        await handshake.receive_request()
        await handshake.respond(503, body, headers=headers)
        await stream.aclose()

    with pytest.raises(StreamFailed) as caught:
        await stream_recording(
            recording(),
            StreamOptions(),
            lambda event: None,
            open_stream=connected_to(nursery, refuse),
        )
    assert str(caught.value) == (
        f"cannot open a WebSocket to 127.0.0.1:8080: refused with HTTP 503{says}"
    )


async def test_a_server_that_is_silent_from_the_start_is_given_up(autojump_clock: Any) -> None:
    async def silent(stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with pytest.raises(StreamFailed, match="no answer within 10 s"):
            await stream_recording(
                recording(),
                StreamOptions(),
                lambda event: None,
                open_stream=connected_to(nursery, silent),
            )
        nursery.cancel_scope.cancel()


async def test_a_connection_that_hangs_is_given_up(autojump_clock: Any) -> None:
    async def open_stream(host: str, port: int) -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    with pytest.raises(
        StreamFailed, match=r"cannot connect to 127\.0\.0\.1:8080: no answer within 10 s"
    ):
        await stream_recording(
            recording(), StreamOptions(), lambda event: None, open_stream=open_stream
        )


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EHOSTUNREACH, "No route to host"),
        OSError(errno.ECONNREFUSED, "Connection refused"),
        socket.gaierror(socket.EAI_NONAME, "No route to host"),
    ],
)
@pytest.mark.parametrize("collected", [False, True])
async def test_nobody_there_says_where_and_why(error: OSError, collected: bool) -> None:
    why = "no route to host"
    if error.errno == errno.ECONNREFUSED:
        why = r"connection refused; is `omi-rt serve` running there\?"

    async def open_stream(host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if not collected:
            raise error
        raise OSError("all attempts failed") from ExceptionGroup("tried", [error])

    with pytest.raises(StreamFailed, match=rf"^cannot connect to \[::1\]:80: {why}$"):
        await stream_recording(
            recording(),
            StreamOptions(url="ws://[::1]/listen"),
            lambda event: None,
            open_stream=open_stream,
        )


async def test_what_the_callback_raises_ends_the_stream_and_comes_out_as_it_is(
    autojump_clock: Any, nursery: trio.Nursery
) -> None:
    def show(event: StreamEvent) -> None:
        if isinstance(event, SegmentsReceived):
            raise OutputClosed("closed")

    with pytest.raises(OutputClosed):
        await stream_to(ListenServer(), nursery, recording(), on_event=show)


async def test_cancelling_drops_the_connection(autojump_clock: Any, nursery: trio.Nursery) -> None:
    server = ListenServer()
    with trio.move_on_after(1) as limit:
        await stream_to(server, nursery, recording(5.0))
    assert limit.cancelled_caught
    with trio.fail_after(1):
        await server.finished.wait()
    assert server.closed_with == 1006


@pytest.mark.parametrize("url", ["ws://host/listen", "wss://host/listen"])
async def test_cancelling_a_handshake_closes_what_was_opened(
    autojump_clock: Any, nursery: trio.Nursery, url: str
) -> None:
    was_closed = trio.Event()

    async def silent(stream: trio.abc.Stream) -> None:
        while await stream.receive_some():
            pass
        was_closed.set()

    with trio.move_on_after(1) as limit:
        await stream_recording(
            recording(),
            StreamOptions(url=url),
            lambda event: None,
            open_stream=connected_to(nursery, silent),
        )
    assert limit.cancelled_caught
    with trio.fail_after(1):
        await was_closed.wait()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"codec": "mp3"}, "the codec must be one of opus, opus_fs320, pcm16, pcm8"),
        ({"speed": 0.0}, "speed"),
        ({"speed": math.nan}, "speed"),
        ({"speed": math.inf}, "speed"),
        ({"url": "http://host/listen"}, "ws://"),
        ({"url": "host:80"}, "ws://"),
        ({"url": "ws:///listen"}, "ws://"),
        ({"url": "ws://host:x/listen"}, "impossible port"),
        ({"url": "ws://[::1/listen"}, "not a URL"),
    ],
)
async def test_impossible_options_are_refused_before_anything_is_opened(
    nursery: trio.Nursery, options: dict[str, Any], says: str
) -> None:
    server = ListenServer()
    with pytest.raises(StreamFailed, match=says):
        await stream_to(server, nursery, recording(), **options)
    assert math.isnan(server.accepted_at)


def test_the_default_ports_are_those_of_the_scheme() -> None:
    assert str(server_address("ws://host/listen")) == "host:80"
    assert str(server_address("wss://host/listen")) == "host:443"
    assert str(server_address("wss://[fd00::1]:99")) == "[fd00::1]:99"


def test_parameters_replace_their_own_names_only() -> None:
    url = with_parameters("ws://host/listen?uid=old&uidx=1&&flag#part", {"uid": "a b", "n": 1})
    assert url == "ws://host/listen?uidx=1&flag&uid=a+b&n=1"


def test_opus_is_encoded_only_as_it_is_asked_for() -> None:
    audio = DeviceAudio.from_wav(recording(1.0), DEVICE_CODECS["opus"])
    messages = audio.messages()
    assert next(messages).end == 160
    assert sum(1 for _ in messages) == 100


class TestTLS:
    """wss:// with the system's certificates, here replaced by ones made for the test."""

    @staticmethod
    def contexts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
        trustme = pytest.importorskip("trustme")
        authority = trustme.CA()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("listen.example").configure_cert(context)
        trusted = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(trusted)
        return context, trusted

    @staticmethod
    async def stream_over(
        context: ssl.SSLContext, server: ListenServer, nursery: trio.Nursery, host: str
    ) -> None:
        async def serve(stream: trio.abc.Stream) -> None:
            tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            try:
                await server.serve(tls)
            except* trio.BrokenResourceError:
                await trio.aclose_forcefully(stream)

        await stream_recording(
            recording(),
            StreamOptions(url=f"wss://{host}/listen", codec="pcm16"),
            lambda event: None,
            open_stream=connected_to(nursery, serve),
        )

    async def test_audio_arrives_over_tls(
        self,
        nursery: trio.Nursery,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        autojump_clock: Any,
    ) -> None:
        context, trusted = self.contexts(monkeypatch, tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        server = ListenServer()
        await self.stream_over(context, server, nursery, "listen.example")
        assert b"".join(server.audio) == recording().pcm

    async def test_an_untrusted_certificate_is_refused_in_one_line(
        self,
        nursery: trio.Nursery,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        autojump_clock: Any,
    ) -> None:
        context, _ = self.contexts(monkeypatch, tmp_path)
        with pytest.raises(
            StreamFailed,
            match=r"^cannot use TLS with listen\.example:443: the certificate is not trusted",
        ):
            await self.stream_over(context, ListenServer(), nursery, "listen.example")

    async def test_a_server_without_tls_is_told_as_one(
        self, nursery: trio.Nursery, autojump_clock: Any
    ) -> None:
        async def plain(stream: trio.abc.Stream) -> None:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        says = "the server does not speak TLS on this port; try a URL that begins with ws://"
        with pytest.raises(StreamFailed, match=f"^cannot use TLS with host:443: {says}$"):
            await stream_recording(
                recording(),
                StreamOptions(url="wss://host/listen"),
                lambda event: None,
                open_stream=connected_to(nursery, plain),
            )

    @pytest.mark.parametrize(
        ("is_silent", "says", "seconds"),
        [
            (False, "cannot use TLS with host:443: connection lost during the handshake; ", 0),
            (True, "cannot connect to host:443: no answer within 10 s; ", 10),
        ],
    )
    async def test_a_server_that_hangs_up_or_is_silent_is_asked_whether_it_speaks_tls(
        self,
        nursery: trio.Nursery,
        autojump_clock: Any,
        is_silent: bool,
        says: str,
        seconds: float,
    ) -> None:
        async def hang_up(stream: trio.abc.Stream) -> None:
            await stream.receive_some()
            if is_silent:
                await trio.sleep(60)
            await stream.aclose()

        started_at = trio.current_time()
        with pytest.raises(StreamFailed, match=f"^{says}does the server speak TLS on this port"):
            await stream_recording(
                recording(),
                StreamOptions(url="wss://host/listen"),
                lambda event: None,
                open_stream=connected_to(nursery, hang_up),
            )
        assert trio.current_time() - started_at == pytest.approx(seconds, abs=0.1)

    async def test_our_own_server_says_at_once_that_it_speaks_no_tls(
        self, autojump_clock: Any
    ) -> None:
        async with running_server(unreachable) as world, trio.open_nursery() as nursery:

            async def open_stream(host: str, port: int) -> trio.abc.Stream:
                await trio.lowlevel.checkpoint()
                ours, theirs = trio.testing.memory_stream_pair()
                nursery.start_soon(world.server.handle, theirs)
                return ours

            started_at = trio.current_time()
            with pytest.raises(StreamFailed, match="the server does not speak TLS on this port"):
                await stream_recording(
                    recording(),
                    StreamOptions(url="wss://host/listen"),
                    lambda event: None,
                    open_stream=open_stream,
                )
            assert trio.current_time() == started_at


def test_a_file_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StreamFailed, match=r"^cannot read .*none\.wav: no such file"):
        load_recording(tmp_path / "none.wav")


def test_a_file_that_is_no_recording_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"hello")
    with pytest.raises(
        RecordingError, match=r"not a recording that can be read .*: convert it"
    ) as caught:
        load_recording(tmp_path / "x.wav")
    assert "\n" not in str(caught.value)


def test_an_empty_or_a_huge_file_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"")
    with pytest.raises(StreamFailed, match=r"^cannot read .*x\.wav: it is empty$"):
        load_recording(path)
    monkeypatch.setattr("omi_rt.client.stream.MAX_BYTES", 100)
    path.write_bytes(bytes(101))
    with pytest.raises(StreamFailed, match=r"^cannot read .*x\.wav: it has over 100 bytes$"):
        load_recording(path)


async def test_language_profile_and_headers_are_sent_where_they_are_asked_for(
    autojump_clock: Any, nursery: trio.Nursery
) -> None:
    class Asking(ListenServer):
        headers: Any = None

        async def serve(self, stream: trio.abc.Stream) -> None:
            handshake = ServerHandshake(stream)
            request = await handshake.receive_request()
            self.target, self.headers = request.target, request.headers
            await handshake.respond(403)
            await stream.aclose()

    server = Asking()
    url = "ws://host/listen?language=fr&include_speech_profile=true"
    headers = {"Authorization": "Bearer secret", "X-One": "1"}
    options = StreamOptions(url=url, language="de", uses_profile=False, headers=headers)
    assert "secret" not in repr(options)
    with pytest.raises(StreamFailed, match="403"):
        await stream_to(
            server,
            nursery,
            recording(),
            url=url,
            language="de",
            uses_profile=False,
            headers=headers,
        )
    assert server.query["language"] == ["de"]
    assert server.query["include_speech_profile"] == ["false"]
    assert server.headers["authorization"] == "Bearer secret"
    assert server.headers["x-one"] == "1"
    with pytest.raises(StreamFailed, match="403"):
        await stream_to(server, nursery, recording(), url=url)
    assert server.query["language"] == ["fr"]
    assert server.query["include_speech_profile"] == ["true"]
    assert "authorization" not in server.headers


def test_headers_are_read_with_or_without_spaces_and_joined_where_they_repeat() -> None:
    assert header_fields(["X-A:1", "x-b :  two words ", "x-a: 3:4", "Empty:"]) == {
        "X-A": "1, 3:4",
        "x-b": "two words",
        "Empty": "",
    }


@pytest.mark.parametrize(
    "text",
    [
        "secret",
        ":secret",
        "X Y: secret",
        "X: secret\r\nY: 1",
        "X: s\N{LATIN SMALL LETTER E WITH ACUTE}cret",
    ]
    + [f"{name}: secret" for name in ("Host", "upgrade", "Sec-WebSocket-Key", "Content-Length")],
)
def test_a_header_that_can_not_be_sent_is_refused_without_its_value(text: str) -> None:
    with pytest.raises(HeaderRefused) as caught:
        header_fields([text])
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def become_foreground() -> None:
    """Take the terminal on standard input as one's own, so that its keys reach this process."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_end_of_terminal(descriptor: int) -> bytes:
    """Read what is left; Linux says EIO where nobody has the other side any more."""
    try:
        return os.read(descriptor, 65_536)
    except OSError:
        return b""


def screen_after(text: str, columns: int) -> list[str]:
    """Return the lines that a terminal shows after ``text``: it wraps, returns and erases lines."""
    lines, row, column = [[" "] * columns], 0, 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.", text, re.DOTALL):
        if token == "\r":
            column = 0
        elif token == "\x1b[2K":
            lines[row] = [" "] * columns
        elif token.startswith("\x1b"):
            assert token.endswith("m"), f"unknown control {token!r}"
        else:
            if token == "\n" or column == columns:
                row, column = row + 1, 0
                lines.append([" "] * columns)
            if token != "\n":
                lines[row][column] = token
                column += 1
    return ["".join(line) for line in lines]


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("plain_environment")
class TestTerminal:
    def test_a_segment_is_one_line_however_long(self) -> None:
        output = io.StringIO()
        long = SEGMENT | {"text": "word " * 60 + "end", "is_user": True, "channel": 1}
        Terminal(output, io.StringIO()).print_segment(long)
        assert output.getvalue().count("\n") == 1
        assert output.getvalue().startswith(
            "    0.25 -     1.00  SPEAKER_01 (user) channel 1  word word"
        )
        assert output.getvalue().endswith("end\n")

    def test_a_segment_can_not_steer_the_terminal(self) -> None:
        output = io.StringIO()
        nasty = {"speaker": "[red]x\r", "text": "a\x1b]0;title\x07b\nc", "start": None}
        Terminal(output, io.StringIO()).print_segment(nasty)
        assert output.getvalue() == "       ? -        ?  [red]x   a ]0;title b c\n"

    def test_without_a_terminal_there_is_no_progress(self) -> None:
        errors = io.StringIO()
        terminal = Terminal(io.StringIO(), errors)
        terminal.show_progress(1.0, 2.0)
        terminal.clear_progress()
        assert errors.getvalue() == ""

    def test_on_a_terminal_the_line_makes_room_for_each_segment_and_goes_at_the_end(self) -> None:
        screen = FakeTerminal()
        terminal = Terminal(screen, screen)
        terminal.show_progress(1.0, 2.0)
        terminal.print_segment(SEGMENT)
        terminal.clear_progress()
        before, after = screen.getvalue().split("Hello there.")
        erase = "\r\x1b[2K"
        assert "1.0 of 2.0 s sent" in before
        assert before.rindex(erase) > before.rindex("s sent")
        assert "1.0 of 2.0 s sent" in after
        assert after.endswith(erase)

    def test_letters_that_the_output_can_not_write_are_replaced(self) -> None:
        raw = io.BytesIO()
        output = io.TextIOWrapper(raw, encoding="ascii")
        Terminal(output, io.StringIO()).print_segment(SEGMENT | {"text": "Grüße"})
        assert raw.getvalue().endswith(b"Gr??e\n")

    def test_a_narrow_terminal_gets_whole_words(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "40")
        monkeypatch.setenv("NO_COLOR", "1")
        screen = FakeTerminal()
        terminal = Terminal(screen, screen)
        text = "Nevertheless extraordinary misunderstandings accumulate everywhere"
        terminal.print_segment(SEGMENT | {"text": text})
        terminal.print_error(f"trouble: {text}")
        terminal.print_summary({"seconds lost": text})
        lines = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).split("\n")
        assert max(map(len, lines)) <= 40
        words = " ".join(lines).split()
        assert [words.count(word) for word in text.split()] == [3] * 5

    @pytest.mark.parametrize(
        ("columns", "cells"), [(80, 30), (40, 14), (36, 10), (30, 4), (29, 0), (24, 0), (10, 0)]
    )
    def test_the_progress_leaves_room_at_the_end_of_its_line(
        self, monkeypatch: pytest.MonkeyPatch, columns: int, cells: int
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("NO_COLOR", "1")
        screen = FakeTerminal()
        terminal = Terminal(io.StringIO(), screen)
        terminal.show_progress(360.0, 360.0)
        (line,) = re.sub(r"\x1b\[[0-9;]*[mK]", "", screen.getvalue()).split("\r")[1:]
        assert len(line) <= columns - 3
        assert line.count("━") == cells
        assert "\n" not in screen.getvalue()

    def test_the_progress_bar_grows_without_colours_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NO_COLOR", "1")
        screen = FakeTerminal()
        terminal = Terminal(io.StringIO(), screen)
        for seconds in (0.0, 1.0, 2.0):
            terminal.show_progress(seconds, 2.0)
        assert [line.count("━") for line in screen.getvalue().split("\r")[1:]] == [0, 15, 30]

    def test_a_summary_has_names_and_values_in_two_columns(self) -> None:
        output = io.StringIO()
        Terminal(output, io.StringIO()).print_summary({"audio": "12.5 s", "seconds lost": "0"})
        assert [line.split() for line in output.getvalue().splitlines()] == [
            [],
            ["audio", "12.5", "s"],
            ["seconds", "lost", "0"],
        ]


@pytest.mark.realtime
class TestRun:
    """The whole command, on loopback and the real clock."""

    @staticmethod
    async def run(server: ListenServer, command: Callable[[str], Awaitable[Any]]) -> Any:
        """Run ``command`` with the URL of ``server`` on a free port."""
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

            async def serve(stream: trio.SocketStream) -> None:
                await server.serve(TCPStream(stream.socket))

            nursery.start_soon(partial(trio.serve_listeners, serve, listeners))
            port = listeners[0].socket.getsockname()[1]
            with trio.fail_after(30):
                result = await command(f"ws://127.0.0.1:{port}/listen")
            nursery.cancel_scope.cancel()
        return result

    @staticmethod
    def wav(tmp_path: Path, seconds: float = 0.2) -> str:
        path = tmp_path / "a.wav"
        path.write_bytes(write_wav(recording(seconds)))
        return str(path)

    async def test_segments_are_printed_and_the_status_is_0(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        server, path = ListenServer(), self.wav(tmp_path)

        async def command(url: str) -> int:
            run = partial(run_stream, path, url, "me", "pcm16", 1.0, json_output=False)
            return await trio.to_thread.run_sync(run)

        assert await self.run(server, command) == 0
        assert b"".join(server.audio) == recording(0.2).pcm
        shown = capsys.readouterr()
        assert shown.out == "    0.25 -     1.00  SPEAKER_01  Hello there.\n"
        assert shown.err == "sent 0.5 s, 2 words, lost 0.0 s\n"

    async def test_audio_that_was_lost_is_told_and_the_status_is_1(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Losing(ListenServer):
            def on_message(self, websocket: WebSocket, message: bytes | str) -> None:
                if isinstance(message, str):
                    reason = "cannot connect to x"
                    status = {"type": "service_status", "status": "stt_degraded"}
                    for event in (
                        {**status, "reason": reason},
                        {"type": "audio_lost", "start": 0.0, "end": 0.5},
                        {**ENDED, "lost": 0.5},
                    ):
                        websocket.send_nowait(json.dumps(event))
                    websocket.close_nowait(1000)

        path = self.wav(tmp_path, 2.0)

        async def command(url: str) -> int:
            run = partial(
                run_stream, path, url, "me", "pcm16", 5.0, json_output=True, with_events=True
            )
            return await trio.to_thread.run_sync(run)

        assert await self.run(Losing(), command) == 1
        shown = capsys.readouterr()
        kinds = [json.loads(line)["type"] for line in shown.out.splitlines()]
        assert kinds == ["service_status", "audio_lost", "session_ended"]
        assert shown.err.splitlines() == [
            "the speech service failed; the server keeps trying: cannot connect to x",
            "lost 0.5 s of audio: 0.00 - 0.50",
            "sent 0.5 s, 0 words, lost 0.5 s: cannot connect to x",
            "omi-rt stream: nothing was understood, but the audio is not silent",
        ]

    async def test_where_the_server_gives_no_account_the_client_says_what_it_knows(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Leaving(ListenServer):
            def on_message(self, websocket: WebSocket, message: bytes | str) -> None:
                if isinstance(message, str):
                    for known in (
                        [SEGMENT],
                        {"type": "service_status", "status": "stt_degraded", "reason": "no route"},
                        {"type": "audio_lost", "start": 0.0, "end": 0.5},
                        {"type": "audio_lost", "start": 1.0, "end": 1.25},
                        {"type": "speakers_merged", "from": 1, "into": 0, "segment_ids": []},
                    ):
                        websocket.send_nowait(json.dumps(known))
                    websocket.close_nowait(1011)

        path = self.wav(tmp_path, 2.0)

        async def command(url: str) -> int:
            run = partial(run_stream, path, url, "me", "pcm16", 5.0, json_output=False)
            return await trio.to_thread.run_sync(run)

        assert await self.run(Leaving(), command) == 1
        shown = capsys.readouterr()
        assert shown.out.splitlines() == [
            "    0.25 -     1.00  SPEAKER_01  Hello there.",
            "",
            "with the speakers as they are known now:",
            "    0.25 -     1.00  SPEAKER_00  Hello there.",
        ]
        assert shown.err.splitlines() == [
            "the speech service failed; the server keeps trying: no route",
            "lost 0.5 s of audio: 0.00 - 0.50",
            "lost 0.2 s of audio: 1.00 - 1.25",
            "SPEAKER_01 is SPEAKER_00",
            "sent 2.0 s, 2 words, lost 0.8 s: no route",
            "omi-rt stream: the server closed the connection with 1011 before the session ended",
        ]

    async def test_nothing_understood_of_audio_that_sounds_is_a_failure(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Deaf(ListenServer):
            def on_message(self, websocket: WebSocket, message: bytes | str) -> None:
                if isinstance(message, str):
                    websocket.send_nowait(json.dumps(ENDED))
                    websocket.close_nowait(1000)

        sounding, silent = tmp_path / "sounding.wav", tmp_path / "silent.wav"
        gap = bytes(32_000)
        audio = WavAudio(16_000, 1, gap + recording(1.0).pcm + gap)
        sounding.write_bytes(write_wav(audio))
        silent.write_bytes(write_wav(WavAudio(16_000, 1, gap * 3)))
        for path, status in ((sounding, 1), (silent, 0)):

            async def command(url: str, path: Path = path) -> int:
                run = partial(run_stream, path, url, "me", "pcm16", 50.0, json_output=False)
                return await trio.to_thread.run_sync(run)

            assert await self.run(Deaf(), command) == status
            told = "nothing was understood" in capsys.readouterr().err
            assert told == (status == 1)

    async def test_corrected_speakers_are_printed_once_more(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Knowing(ListenServer):
            def on_message(self, websocket: WebSocket, message: bytes | str) -> None:
                if isinstance(message, str):
                    websocket.send_nowait(json.dumps([SEGMENT]))
                    event = {"type": "speaker_identified", "is_user": True, "person_id": None}
                    event |= {"speaker": "SPEAKER_01", "segment_ids": [SEGMENT["id"]]}
                    websocket.send_nowait(json.dumps(event))
                    websocket.send_nowait(json.dumps(ENDED))
                    websocket.close_nowait(1000)

        path = self.wav(tmp_path)

        async def command(url: str) -> int:
            run = partial(run_stream, path, url, "me", "pcm16", 1.0, json_output=False)
            return await trio.to_thread.run_sync(run)

        assert await self.run(Knowing(), command) == 0
        shown = capsys.readouterr()
        assert shown.out.splitlines() == [
            "    0.25 -     1.00  SPEAKER_01  Hello there.",
            "",
            "with the speakers as they are known now:",
            "    0.25 -     1.00  SPEAKER_01 (user)  Hello there.",
        ]
        assert "SPEAKER_01 is the user" in shown.err

    async def test_json_prints_segment_objects_and_nothing_else(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = self.wav(tmp_path)

        async def command(url: str) -> int:
            run = partial(run_stream, path, url, "me", "opus", 2.0, json_output=True)
            return await trio.to_thread.run_sync(run)

        assert await self.run(ListenServer(), command) == 0
        shown = capsys.readouterr()
        assert [json.loads(line) for line in shown.out.splitlines()] == [SEGMENT]
        assert shown.err == "sent 0.5 s, 2 words, lost 0.0 s\n"

    def test_a_failure_is_one_line_on_standard_error_and_status_1(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
            url = f"ws://127.0.0.1:{port}/listen"
            status = run_stream(self.wav(tmp_path), url, "me", "opus", 1.0, json_output=True)
        assert status == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err == (
            f"omi-rt stream: cannot connect to 127.0.0.1:{port}: connection refused; "
            "is `omi-rt serve` running there?\n"
        )

    @staticmethod
    def process(path: str, url: str) -> list[str]:
        code = (
            "import sys; from omi_rt.client.run import run_stream; "
            f"sys.exit(run_stream({path!r}, {url!r}, 'me', 'pcm16', 1.0, json_output=True))"
        )
        return [sys.executable, "-c", code]

    async def test_a_closed_output_pipe_ends_the_stream_in_one_line(self, tmp_path: Path) -> None:
        path = self.wav(tmp_path)

        async def command(url: str) -> tuple[int, bytes]:
            read_end, write_end = os.pipe()
            os.close(read_end)
            try:
                done = await trio.run_process(
                    self.process(path, url), stdout=write_end, capture_stderr=True, check=False
                )
            finally:
                os.close(write_end)
            return done.returncode, done.stderr

        status, errors = await self.run(ListenServer(), command)
        assert (status, errors) == (1, b"omi-rt stream: standard output was closed\n")

    async def test_an_interrupt_ends_it_in_one_line(self, tmp_path: Path) -> None:
        path = self.wav(tmp_path, 20.0)

        class Greeting(ListenServer):
            async def on_open(self, websocket: WebSocket) -> None:
                websocket.send_nowait(json.dumps([SEGMENT]))

        async def command(url: str) -> tuple[int, bytes]:
            process = await trio.lowlevel.open_process(
                self.process(path, url), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            assert process.stdout is not None
            assert process.stderr is not None
            # The first segment shows that it is streaming.
            await process.stdout.receive_some()
            process.send_signal(signal.SIGINT)
            status = await process.wait()
            errors = b"".join([data async for data in process.stderr])
            await process.stdout.aclose()
            return status, errors

        status, errors = await self.run(Greeting(), command)
        assert (status, errors) == (130, b"omi-rt stream: interrupted\n")

    @pytest.mark.parametrize("columns", [24, 40, 80])
    async def test_on_a_terminal_nothing_of_the_progress_is_left_after_an_interrupt(
        self, tmp_path: Path, columns: int
    ) -> None:
        path = self.wav(tmp_path, 3_600.0)

        async def command(url: str) -> str:
            ours, theirs = pty.openpty()
            process = await trio.lowlevel.open_process(
                self.process(path, url),
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                env=environment({"COLUMNS": str(columns), "TERM": "xterm"}),
                preexec_fn=become_foreground,
            )
            os.close(theirs)
            said = b""
            while b"s sent" not in said:
                said += await trio.to_thread.run_sync(os.read, ours, 65_536)
            # Control and C, as from a keyboard: the terminal shows it, and sends the signal.
            os.write(ours, b"\x03")
            assert await process.wait() == 130
            while data := await trio.to_thread.run_sync(read_end_of_terminal, ours):
                said += data
            os.close(ours)
            return said.decode()

        text = await self.run(ListenServer(), command)
        assert "^C" in text
        shown = "".join(screen_after(text, columns))
        assert shown.replace(" ", "") == "omi-rtstream:interrupted"

    async def test_an_interrupt_while_the_progress_is_drawn_leaves_nothing_of_it(
        self, tmp_path: Path
    ) -> None:
        path = self.wav(tmp_path, 60.0)
        interrupting = (
            "import io, signal, sys\n"
            "class Terminal(io.TextIOWrapper):\n"
            "    count = 0\n"
            "    def isatty(self): return True\n"
            "    def write(self, text):\n"
            "        super().write(text)\n"
            "        self.count += 's sent' in text\n"
            "        if self.count == 2: self.count = 3; signal.raise_signal(signal.SIGINT)\n"
            "sys.stderr = Terminal(sys.stderr.buffer, write_through=True)\n"
        )

        async def command(url: str) -> tuple[int, str]:
            program, option, code = self.process(path, url)
            done = await trio.run_process(
                [program, option, interrupting + code],
                env=environment({"COLUMNS": "80", "TERM": "xterm"}),
                capture_stderr=True,
                check=False,
            )
            return done.returncode, done.stderr.decode()

        status, text = await self.run(ListenServer(), command)
        assert status == 130
        assert text.count("s sent") == 2
        assert [line.rstrip() for line in screen_after(text, 80)] == [
            "omi-rt stream: interrupted",
            "",
        ]

    async def test_the_command_sends_its_headers(self, tmp_path: Path) -> None:
        class Asking(ListenServer):
            headers: Any = None

            async def serve(self, stream: trio.abc.Stream) -> None:
                handshake = ServerHandshake(stream)
                self.headers = (await handshake.receive_request()).headers
                await handshake.respond(403, "who are you?")

        server, path = Asking(), self.wav(tmp_path)
        headers = ["--header", "Authorization: Bearer a:b", "--header", "X-One:1"]
        finished: Finished = await self.run(
            server, lambda url: run("stream", path, "--url", url, *headers)
        )
        assert finished.status == 1
        assert finished.errors.endswith("refused with HTTP 403: who are you?\n")
        assert server.headers["authorization"] == "Bearer a:b"
        assert server.headers["x-one"] == "1"

    async def test_standard_input_is_read_to_its_end_and_streamed(self, tmp_path: Path) -> None:
        server, wav = ListenServer(), write_wav(recording(0.2))

        async def command(url: str) -> tuple[int, bytes]:
            done = await trio.run_process(
                self.process("-", url), stdin=wav, capture_stdout=True, capture_stderr=True
            )
            return done.returncode, done.stderr

        assert await self.run(server, command) == (0, b"sent 0.5 s, 2 words, lost 0.0 s\n")
        assert b"".join(server.audio) == recording(0.2).pcm

    @pytest.mark.parametrize(
        ("shell", "says"),
        [
            ("{} </dev/null", "cannot read standard input: it is empty"),
            ("{} <&-", "cannot read standard input: it is closed"),
            ("printf hello | {}", "this is not a recording that can be read"),
        ],
    )
    async def test_a_standard_input_without_a_recording_is_one_line(
        self, shell: str, says: str
    ) -> None:
        command = shlex.join(self.process("-", "ws://127.0.0.1:9/listen"))
        done = await trio.run_process(
            ["bash", "-c", shell.format(command)], capture_stderr=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.decode().startswith(f"omi-rt stream: {says}")
        assert done.stderr.count(b"\n") == 1

    async def test_a_terminal_is_no_recording(self) -> None:
        ours, theirs = pty.openpty()
        try:
            done = await trio.run_process(
                self.process("-", "ws://127.0.0.1:9/listen"),
                stdin=theirs,
                capture_stderr=True,
                check=False,
            )
        finally:
            os.close(ours)
            os.close(theirs)
        assert (done.returncode, done.stderr) == (
            1,
            b"omi-rt stream: cannot read standard input: it is a terminal, not a recording\n",
        )

    async def test_a_truncated_file_is_said_to_be_one_and_streamed_as_far_as_it_goes(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        server, path = ListenServer(), tmp_path / "cut.wav"
        whole = write_wav(recording(1.0))
        path.write_bytes(whole[: 44 + 16_000])

        async def command(url: str) -> int:
            run = partial(run_stream, path, url, "me", "pcm16", 1.0, json_output=True)
            return await trio.to_thread.run_sync(run)

        assert await self.run(server, command) == 0
        assert b"".join(server.audio) == recording(1.0).pcm[:16_000]
        said = capsys.readouterr().err.splitlines()
        assert said[0] == f"{path} is truncated: 0.5 of 1.0 s are there"


async def test_a_close_that_comes_with_the_handshake_s_answer_is_a_close(
    nursery: trio.Nursery,
) -> None:
    """A bad parameter is refused so: both arrive in one read."""

    class Refusing(ListenServer):
        async def on_open(self, websocket: WebSocket) -> None:
            websocket.close_nowait(1008, "missing uid")
            await trio.lowlevel.checkpoint()

    with pytest.raises(StreamFailed, match=r"1008 \(missing uid\)"):
        await stream_to(Refusing(), nursery, recording())
