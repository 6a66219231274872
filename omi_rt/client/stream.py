"""Streams a recording to ``/listen`` as a device would, and takes what comes back."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
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
from omi_rt.client.conversation import Conversation
from omi_rt.client.device import DEVICE_CODECS, DeviceAudio, DeviceMessage
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
in all with 60 s of audio; a provider whose answers were late before is given up to 40 s more."""
CLOSE_SECONDS: Final = 10.0
"""The close comes at most this long after ``session_ended``."""
PROGRESS_SECONDS: Final = 0.1
"""`AudioSent` comes at most once in this time."""
GREETING_SECONDS: Final = 10.0
"""On a connection that follows another, the server says at most this long after the handshake what has
become of the session."""
COME_BACK_SECONDS: Final = 120.0
"""After the loss of a connection another one is tried for this long."""
MAX_PAUSE: Final = 5.0
"""Between two tries lie at most this many seconds; the first try comes after 0.25 s at most."""
_COME_BACK_CODES: Final = frozenset({1001, 1006, 1012, 1013})
"""After these a server can be expected to be there, or to come back."""


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


@frozen
class CameBack:
    """A lost connection has a successor."""

    away_seconds: float
    resent_seconds: float
    """Of audio that is sent again."""
    missing_seconds: float
    """Of audio that the server does not have, and that is not kept any more."""
    is_new_session: bool
    """Whether the server had forgotten the session."""


StreamEvent: TypeAlias = CameBack | AudioSent | SegmentsReceived | EventReceived
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
    random: Random | None = None,
) -> StreamSummary:
    """Stream a recording at its own pace, ask for the end, and wait for it.

    Each message leaves when its last sample would have been recorded. Deadlines are counted from the
    beginning, so there is no drift. A server that takes no data holds the stream back for at most
    `SEND_SECONDS`; what is late then follows at once. ``on_event`` is called for what happens, in
    order; what it raises ends the stream and is raised here as it is.

    A connection that is lost is followed by another, for `COME_BACK_SECONDS`, where the server has
    told how: with growing pauses that ``random`` spreads. What the server does not have yet is sent
    again, as far as it is kept (`omi_rt.client.kept.MAX_KEPT_SECONDS`), and no segment comes twice.

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
    session = _Session(device, options, on_event, open_stream, random or Random())
    return StreamSummary(device.audio.seconds, await session.run())


def _parameters(options: StreamOptions, device: DeviceAudio) -> dict[str, str | int]:
    parameters: dict[str, str | int] = {
        "uid": options.uid,
        "codec": options.codec,
        "sample_rate": device.codec.sample_rate,
        "channels": device.channels,
        "acknowledge": "true",
    }
    if options.language:
        parameters["language"] = options.language
    if not options.uses_profile:
        parameters["include_speech_profile"] = "false"
    return parameters


class _Session:
    """A device's session: one connection after another, until the server has said its last word."""

    def __init__(
        self,
        device: DeviceAudio,
        options: StreamOptions,
        on_event: OnEvent,
        open_stream: OpenStream,
        random: Random,
    ) -> None:
        self._device = device
        self._options = options
        self._on_event = on_event
        self._open_stream = open_stream
        self._random = random
        self._conversation = Conversation(device.codec, device.channels)
        self._messages = device.messages()
        self._next: DeviceMessage | None = next(self._messages, None)
        """The first message that was never sent."""
        self._report_at = -math.inf
        self._started_at = math.nan
        self._lost_at: float | None = None
        """When the connection was lost that has no successor yet."""
        self._tries = 0
        self._limit = trio.CancelScope()
        self._greeted = trio.Event()
        self._has_sent_all = False
        self._session_ended: JSONObject | None = None

    async def run(self) -> JSONObject:
        """Converse until the end; returns the server's ``session_ended``."""
        parameters = _parameters(self._options, self._device)
        more: dict[str, str | int] = {}
        while True:
            url = with_parameters(self._options.url, parameters | more)
            try:
                return await self._converse(url)
            except StreamFailed as failed:
                is_lost = isinstance(failed, _ConnectionLost)
                now = trio.current_time()
                is_away = is_lost or self._lost_at is not None
                if not (self._conversation.may_come_back and is_away):
                    raise
                if self._lost_at is None:
                    self._lost_at, self._tries = now, 0
                elif now - self._lost_at > COME_BACK_SECONDS:
                    raise
            await trio.sleep(self._random.uniform(0.5, 1.0) * min(MAX_PAUSE, 2.0**self._tries / 4))
            self._tries += 1
            more = self._conversation.come_back()

    async def _converse(self, url: str) -> JSONObject:
        """Open one connection, and use it to its end.

        Raises:
            _ConnectionLost: it was lost before the session ended.
            StreamFailed: no connection, or a fault that another one would not mend.
        """
        websocket, transport = await open_connection(url, self._open_stream, self._options.headers)
        if self._lost_at is None:
            self._started_at = trio.current_time()
        self._limit, self._greeted = trio.CancelScope(), trio.Event()
        self._has_sent_all, self._session_ended = False, None
        failure: Exception | None = None
        session_ended: JSONObject = {}
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(websocket.run_writer, SEND_SECONDS)
                nursery.start_soon(self._send_audio, websocket, transport)
                session_ended = await self._receive_to_the_end(websocket)
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
        return session_ended

    async def _send_audio(self, websocket: WebSocket, transport: MeteredStream) -> None:
        """Send the recording and CloseStream, then bound the wait for the end."""
        total = self._device.audio.seconds
        await self._send_again(websocket, transport)
        while self._next is not None:
            message, rate = self._next, self._device.codec.sample_rate
            await trio.sleep_until(self._started_at + message.end / rate / self._options.speed)
            await transport.wait_idle()
            self._conversation.kept.add(message)
            self._next = next(self._messages, None)
            websocket.send_nowait(message.payload)
            if trio.current_time() >= self._report_at:
                self._report_at = trio.current_time() + PROGRESS_SECONDS
                self._on_event(AudioSent(min(message.end / rate, total), total))
        self._on_event(AudioSent(total, total))
        websocket.send_nowait(json.dumps({"type": "CloseStream"}))
        self._has_sent_all = True
        # A server need not take audio faster than real time, so what was sent faster may take as long.
        ahead = max(0.0, total - self._elapsed())
        self._limit_to(END_SECONDS + ahead)

    async def _send_again(self, websocket: WebSocket, transport: MeteredStream) -> None:
        """On a connection that follows another, send what the server does not have."""
        if self._lost_at is None:
            return
        with trio.move_on_after(GREETING_SECONDS):
            await self._greeted.wait()
        position, kept = self._conversation.goes_on_at, self._conversation.kept
        if position is None:
            raise StreamFailed("the server does not say whether it still knows the session")
        rate, away = self._device.codec.sample_rate, trio.current_time() - self._lost_at
        self._lost_at = None
        first = max(position, kept.start)
        self._on_event(
            CameBack(
                away,
                max(0.0, (kept.end - first) / rate),
                (first - position) / rate,
                self._conversation.is_new_session,
            )
        )
        for message in kept.since(position):
            await transport.wait_idle()
            websocket.send_nowait(message.payload)

    async def _receive_to_the_end(self, websocket: WebSocket) -> JSONObject:
        """Take what comes until the server closes; return its ``session_ended``."""
        try:
            with self._limit:
                while True:
                    for message in await websocket.receive():
                        if isinstance(message, str):
                            self._take(message)
        except PeerClosed as closed:
            if self._session_ended is not None and self._has_sent_all:
                return self._session_ended
            kind = _ConnectionLost if closed.code in _COME_BACK_CODES else StreamFailed
            raise kind(_early_end(closed)) from closed
        if self._session_ended is not None:
            raise StreamFailed("the server ended the session, but did not close the connection")
        raise StreamFailed("the server did not end the session in time after CloseStream")

    def _take(self, text: str) -> None:
        """Pass a message on, unless it is not JSON or has no known shape: then it is not for this client."""
        message = self._conversation.take(text)
        if self._conversation.goes_on_at is not None:
            self._greeted.set()
        if isinstance(message, list):
            self._on_event(SegmentsReceived(message, self._elapsed()))
        elif message is not None:
            if message["type"] == "session_ended":
                self._session_ended = message
                self._limit_to(CLOSE_SECONDS)
            self._on_event(EventReceived(message, self._elapsed()))

    def _limit_to(self, seconds: float) -> None:
        self._limit.deadline = min(self._limit.deadline, trio.current_time() + seconds)

    def _elapsed(self) -> float:
        return trio.current_time() - self._started_at


class _ConnectionLost(StreamFailed):
    """Another connection may go on."""


def _early_end(closed: PeerClosed) -> str:
    if closed.code == 1006:
        return "the connection to the server was lost before the session ended"
    reason = "".join(c if c.isprintable() else " " for c in closed.reason)
    return (
        f"the server closed the connection with {closed.code}{f' ({reason})' if reason else ''}"
        " before the session ended"
    )
