"""Streams a recording to ``/listen`` as a device would, and takes what comes back."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, TypeAlias

import trio
from attrs import field, frozen

from omi_rt.client.connect import (
    MeteredStream,
    OpenStream,
    StreamFailed,
    open_connection,
    with_parameters,
)
from omi_rt.client.device import DEVICE_CODECS, DeviceAudio
from omi_rt.codecs.recording import MAX_BYTES, Recording, read_recording
from omi_rt.core.errors import PeerClosed, PeerTooSlow
from omi_rt.core.groups import first_error
from omi_rt.net.stream import open_tcp_stream

if TYPE_CHECKING:
    from omi_rt.codecs.wav import WavAudio
    from omi_rt.net.websocket import WebSocket

JSONObject: TypeAlias = dict[str, Any]

SEND_SECONDS: Final = 60.0
"""The server may take no audio for this long, since it holds a device back while its own upstream is
slow."""
END_SECONDS: Final = 120.0
"""A session that was sent in real time ends at most this long after CloseStream. Where its provider is
away the server tries for 30 s, and for as long as the audio that it keeps takes to be sent, which is 78 s
in all with 60 s of audio."""
CLOSE_SECONDS: Final = 10.0
"""The close comes at most this long after ``session_ended``."""
PROGRESS_SECONDS: Final = 0.1
"""`AudioSent` comes at most once in this time."""


@frozen
class StreamOptions:
    """Where to stream to, and how."""

    url: str = "ws://127.0.0.1:8080/listen"
    """The server's address. Its query is kept; ``uid``, ``codec``, ``sample_rate`` and ``channels`` are
    set in it, and so is what is asked for below."""
    uid: str = "me"
    codec: str = "opus"
    """A key of `DEVICE_CODECS`."""
    speed: float = 1.0
    """How fast to stream; 1 is real time, and greater is faster."""
    language: str = ""
    """The language spoken; empty leaves it to the URL, or to the server."""
    uses_profile: bool = True
    """Whether voices may be kept and sent, unless the URL says otherwise."""
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    """Headers that are sent with the handshake. There may be secrets in them."""


@frozen
class AudioSent:
    """Audio has gone out. This comes every `PROGRESS_SECONDS` at most, and once at the end."""

    seconds: float
    total_seconds: float


@frozen
class SegmentsReceived:
    """Segments have come."""

    segments: list[JSONObject]
    elapsed: float
    """Seconds since the first sample was due. A device sends a sample when it has recorded it, so
    ``elapsed - segment["end"] / speed`` is how late a segment is."""


@frozen
class EventReceived:
    """Another message of the server has come, such as ``service_status`` or ``session_ended``."""

    event: JSONObject
    """The message, whose ``type`` is a string."""
    elapsed: float
    """Seconds since the first sample was due, as in `SegmentsReceived`."""


StreamEvent: TypeAlias = AudioSent | SegmentsReceived | EventReceived
OnEvent: TypeAlias = Callable[[StreamEvent], None]


@frozen
class StreamSummary:
    """How a session ended that was streamed to its end."""

    audio_seconds: float
    """The length of the recording."""
    session_ended: JSONObject
    """The server's last event."""


def load_recording(path: str | Path) -> Recording:
    """Read a recording from a file, or from standard input (``-``) to its end.

    Raises:
        StreamFailed: the file cannot be read, is empty, or too large.
        OmiRtError: it is not a recording of a known kind.
    """
    name = recording_name(path)
    try:
        if str(path) == "-":
            data = _read_bounded(_standard_input())
        else:
            with Path(path).open("rb") as file:
                data = _read_bounded(file)
    except OSError as error:
        raise StreamFailed(f"cannot read {name}: {(error.strerror or '?').lower()}") from error
    if len(data) > MAX_BYTES:
        raise StreamFailed(f"cannot read {name}: it has over {MAX_BYTES} bytes")
    if not data:
        raise StreamFailed(f"cannot read {name}: it is empty")
    return read_recording(data)


def recording_name(path: str | Path) -> str:
    """Return what to call a recording in a message."""
    return "standard input" if str(path) == "-" else str(path)


def _standard_input() -> IO[bytes]:
    if sys.stdin is None:
        raise StreamFailed("cannot read standard input: it is closed")
    if sys.stdin.isatty():
        raise StreamFailed("cannot read standard input: it is a terminal, not a recording")
    return sys.stdin.buffer


def _read_bounded(file: IO[bytes]) -> bytes:
    return file.read(MAX_BYTES + 1)


async def stream_recording(
    audio: WavAudio,
    options: StreamOptions,
    on_event: OnEvent,
    *,
    open_stream: OpenStream = open_tcp_stream,
) -> StreamSummary:
    """Stream a recording at its own pace, ask for the end, and wait for it.

    Each message leaves when its last sample would have been recorded. Deadlines are counted from the
    beginning, so there is no drift. A server that takes no data holds the stream back for at most
    `SEND_SECONDS`; what is late then follows at once. ``on_event`` is called for what happens, in
    order; what it raises ends the stream and is raised here as it is.

    Cancelling this drops the connection, as a device does that is switched off.

    Raises:
        StreamFailed: there was no connection, or the server refused, closed before the end, or was silent.
        OpusUnavailable: libopus is not installed.
    """
    if options.codec not in DEVICE_CODECS:
        raise StreamFailed(f"the codec must be one of {', '.join(DEVICE_CODECS)}")
    if not (options.speed > 0 and math.isfinite(options.speed)):
        raise StreamFailed("the speed must be a number greater than 0")
    device = DeviceAudio.from_wav(audio, DEVICE_CODECS[options.codec])
    url = with_parameters(options.url, _parameters(options, device))
    websocket, transport = await open_connection(url, open_stream, options.headers)
    session = _Session(websocket, transport, device, options.speed, on_event)
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.run_writer, SEND_SECONDS)
            nursery.start_soon(session.send_audio)
            session_ended = await session.receive_to_the_end()
            await websocket.aclose()
            nursery.cancel_scope.cancel()
    except* Exception as errors:  # noqa: BLE001 - raised again below, out of the nursery's group
        failure = first_error(errors)
    finally:
        await trio.aclose_forcefully(transport)
    if isinstance(failure, PeerTooSlow):
        raise StreamFailed(f"the server {failure}") from failure
    if failure is not None:
        raise failure
    return StreamSummary(device.audio.seconds, session_ended)


def _parameters(options: StreamOptions, device: DeviceAudio) -> dict[str, str | int]:
    parameters: dict[str, str | int] = {
        "uid": options.uid,
        "codec": options.codec,
        "sample_rate": device.codec.sample_rate,
        "channels": device.channels,
    }
    if options.language:
        parameters["language"] = options.language
    if not options.uses_profile:
        parameters["include_speech_profile"] = "false"
    return parameters


class _Session:
    """One connection: the device's two tasks, and what they must know of each other."""

    def __init__(
        self,
        websocket: WebSocket,
        transport: MeteredStream,
        device: DeviceAudio,
        speed: float,
        on_event: OnEvent,
    ) -> None:
        self._websocket = websocket
        self._transport = transport
        self._device = device
        self._speed = speed
        self._on_event = on_event
        self._started_at = trio.current_time()
        self._limit = trio.CancelScope()
        self._has_sent_all = False
        self._session_ended: JSONObject | None = None

    async def send_audio(self) -> None:
        """Send the recording and CloseStream, then bound the wait for the end."""
        total = self._device.audio.seconds
        sample_rate = self._device.codec.sample_rate
        report_at = -math.inf
        for message in self._device.messages():
            due = self._started_at + message.end / sample_rate / self._speed
            await trio.sleep_until(due)
            await self._transport.wait_idle()
            self._websocket.send_nowait(message.payload)
            if trio.current_time() >= report_at:
                report_at = trio.current_time() + PROGRESS_SECONDS
                self._on_event(AudioSent(min(message.end / sample_rate, total), total))
        self._on_event(AudioSent(total, total))
        self._websocket.send_nowait(json.dumps({"type": "CloseStream"}))
        self._has_sent_all = True
        # A server need not take audio faster than real time, so what was sent faster may take as long.
        ahead = max(0.0, total - self._elapsed())
        self._limit_to(END_SECONDS + ahead)

    async def receive_to_the_end(self) -> JSONObject:
        """Take what comes until the server closes; return its ``session_ended``."""
        try:
            with self._limit:
                while True:
                    for message in await self._websocket.receive():
                        if isinstance(message, str):
                            self._take(message)
        except PeerClosed as closed:
            if self._session_ended is not None and self._has_sent_all:
                return self._session_ended
            raise StreamFailed(_early_end(closed)) from closed
        if self._session_ended is not None:
            raise StreamFailed("the server ended the session, but did not close the connection")
        raise StreamFailed("the server did not end the session in time after CloseStream")

    def _take(self, text: str) -> None:
        """Pass a message on, unless it is not JSON or has no known shape: then it is not for this client."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            return
        elapsed = self._elapsed()
        if isinstance(message, list):
            segments = [segment for segment in message if isinstance(segment, dict)]
            if segments:
                self._on_event(SegmentsReceived(segments, elapsed))
        elif isinstance(message, dict) and isinstance(message.get("type"), str):
            if message["type"] == "session_ended":
                self._session_ended = message
                self._limit_to(CLOSE_SECONDS)
            self._on_event(EventReceived(message, elapsed))

    def _limit_to(self, seconds: float) -> None:
        self._limit.deadline = min(self._limit.deadline, trio.current_time() + seconds)

    def _elapsed(self) -> float:
        return trio.current_time() - self._started_at


def _early_end(closed: PeerClosed) -> str:
    if closed.code == 1006:
        return "the connection to the server was lost before the session ended"
    reason = "".join(c if c.isprintable() else " " for c in closed.reason)
    return (
        f"the server closed the connection with {closed.code}{f' ({reason})' if reason else ''}"
        " before the session ended"
    )
