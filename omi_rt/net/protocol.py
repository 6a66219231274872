"""The WebSocket protocol without I/O: the one file that imports ``websockets``.

Bytes in, messages out, and the other way round; its sans-I/O classes do the work. Both sides are
here: the server's, which devices meet (and, in ``fake`` and ``local``, Deepgram's clients), and the
client's, for ``omi-rt stream``.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping
from http import HTTPStatus
from secrets import token_bytes

from attrs import frozen
from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.frames import CloseCode, Frame, Opcode, apply_mask  # type: ignore[attr-defined]
from websockets.http11 import MAX_LINE_LENGTH, MAX_NUM_HEADERS, Request, Response
from websockets.protocol import CLOSED, CONNECTING, OPEN, SEND_EOF, SERVER, Protocol
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from omi_rt.core.errors import HandshakeFailed, PeerClosed
from omi_rt.net.frames import masked_frame_bytes

# The library logs every connection at INFO; ours are logged by the session, once.
_silent = logging.getLogger("omi_rt.websocket")
_silent.setLevel(logging.CRITICAL + 1)
_WHOLE_TEXT, _WHOLE_BINARY, _CLOSE_OPCODE = 0x81, 0x82, 0x08
_MASKED = 0x80
_OPCODE_BITS = 0x0F
_TWO_BYTE_LENGTH, _EIGHT_BYTE_LENGTH = 126, 127
_SHORTEST_FRAME = 6
_MOST_REASON_BYTES = 200
_MOST_RETRY_DIGITS = 6
_BINARY, _TEXT, _CONT = Opcode.BINARY, Opcode.TEXT, Opcode.CONT

FRAMES_PER_STEP = 25
"""This many frames are taken before others get a turn: they take 0.4 ms of Opus, or 0.2 ms of pings."""
_SKIPPED_PER_STEP = 200
"""After our close this many frames are skipped before others get a turn, which takes 0.1 ms."""
MAX_BYTES_AFTER_CLOSE = 4_194_304
"""A peer may have had this much under way when it was told to stop: its send buffer and our receive buffer."""


class WebSocketProtocol:
    """One open WebSocket connection.

    What has arrived is taken a step at a time, and what is not taken yet lies here as the bytes that
    came: a message costs more than the byte that it may hold. After our close nothing is kept.
    """

    __slots__ = (
        "_bytes_after_close",
        "_bytes_of_frame",
        "_fragments",
        "_fragments_are_text",
        "_is_at_rest",
        "_is_server",
        "_is_skipping",
        "_next",
        "_protocol",
        "_takes_plain",
        "_unread",
        "has_more",
        "taken_frames",
    )

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._fragments: bytearray | None = None
        self._fragments_are_text = False
        self._unread = b""
        self._next = 0
        """Where in ``_unread`` the next frame, or the rest of one, begins."""
        self._bytes_of_frame = 0
        """Still to come of the frame that the protocol is in, or that is skipped."""
        self._is_skipping = False
        self._bytes_after_close = 0
        self.has_more = False
        """Whether the last step left frames for another; until they are taken, receive no more."""
        self.taken_frames = 0
        """In the last step."""
        self._is_server = protocol.side is SERVER
        """Whose frames are told apart here; a client has chosen its server, and trusts it."""
        limit = protocol.max_message_size
        self._takes_plain = self._is_server and (limit is None or limit > 65_535)
        """Whether a frame of under 64 KiB is whole wherever all its bytes are there."""
        self._is_at_rest = self._find_rest()
        """As `_find_rest` says; every frame asks."""

    @property
    def is_open(self) -> bool:
        """Whether neither side has begun to close."""
        return self._protocol.state is OPEN

    @property
    def is_closed(self) -> bool:
        """Whether the peer's end of the stream was seen."""
        return self._protocol.state is CLOSED

    @property
    def is_flooded(self) -> bool:
        """Whether more came after our close than a peer can have had under way."""
        return self._bytes_after_close > MAX_BYTES_AFTER_CLOSE

    @property
    def is_late(self) -> bool:
        """Whether anything came after our close."""
        return self._bytes_after_close > 0

    @property
    def has_writes(self) -> bool:
        """Whether there is something to send."""
        return bool(self._protocol.writes)

    def receive(self, data: bytes | bytearray) -> None:
        """Take bytes from the stream; ``b""`` is its end. `take_messages` makes something of them."""
        self._is_at_rest = False
        if not data:
            self._protocol.receive_eof()
            return
        if not self.is_open:
            self._bytes_after_close += len(data)
        self._unread = self._unread[self._next :] + data if self._unread else bytes(data)
        self._next = 0

    def take_only(self, data: bytes) -> bytes | None:
        """Take ``data`` off the stream if it is one whole binary frame of under 64 KiB, and no more.

        Nearly every read of a device's stream is. Returns the message; None where `receive` must be
        given ``data``.
        """
        size = len(data)
        if not self._is_at_rest or size < _SHORTEST_FRAME or data[0] != _WHOLE_BINARY:
            return None
        length, body = data[1] - _MASKED, 6
        if length == _TWO_BYTE_LENGTH and size >= 8:
            length, body = data[2] << 8 | data[3], 8
        elif length == _EIGHT_BYTE_LENGTH:
            return None
        if body + length != size:
            return None
        return apply_mask(data[body:], data[body - 4 : body])

    def take_messages(self) -> list[bytes | str]:
        """Take the next whole messages that have arrived, of `FRAMES_PER_STEP` frames at most.

        After our close there are none: what comes is thrown away, up to the peer's own close.
        """
        messages: list[bytes | str] = []
        data = self._unread
        self.has_more, self.taken_frames = False, 0
        if not self._is_server:
            # Its first messages may have come with the answer to the handshake.
            if data:
                self._unread = b""
                self._protocol.receive_data(data)
            self._take_events(messages)
            return messages
        if not data:
            return messages
        start, size = self._next, len(data)
        while self.is_open and start < size:
            if self.taken_frames >= FRAMES_PER_STEP:
                self.has_more = True
                break
            before = start
            if (
                self._takes_plain
                and not self._bytes_of_frame
                and self._protocol.current_size is None
            ):
                start = self._take_plain(data, start, messages)
            if start == before:
                start = self._pass_on(data, start)
                if start == before:
                    break
                self.taken_frames += 1
                self._take_events(messages)
        if not self.is_open:
            start = self._skip(data, start)
        if start == size:
            self._unread, start = b"", 0
        # Not cut off here: a flood would be copied again and again.
        self._next = start
        self._is_at_rest = self._find_rest()
        return messages

    def _find_rest(self) -> bool:
        """Whether all that has arrived was taken, and the next frame may be told apart here."""
        return (
            self._takes_plain
            and not self._unread
            and not self._bytes_of_frame
            and self._protocol.current_size is None
            and self.is_open
        )

    def _take_plain(self, data: bytes, start: int, messages: list[bytes | str]) -> int:
        """Take whole binary messages from ``start`` on; returns where the next frame begins.

        All that a device sends hour after hour are masked binary frames of under 64 KiB. Read here
        they cost 1 µs each, through the protocol's coroutines 4; whatever else begins, and all that
        is not whole, is the protocol's.
        """
        size, left = len(data), FRAMES_PER_STEP - self.taken_frames
        while left and size - start >= _SHORTEST_FRAME and data[start] == _WHOLE_BINARY:
            length = data[start + 1] - _MASKED
            body = start + 6
            if length == _TWO_BYTE_LENGTH and size - start >= 8:
                length = int.from_bytes(data[start + 2 : start + 4], "big")
                body = start + 8
            elif not 0 <= length < _TWO_BYTE_LENGTH:
                break
            end = body + length
            if end > size:
                break
            messages.append(apply_mask(data[body:end], data[body - 4 : body]))
            left -= 1
            start = end
        self.taken_frames = FRAMES_PER_STEP - left
        return start

    def _pass_on(self, data: bytes, start: int) -> int:
        """Give the protocol the frame at ``start``, as far as it is there; returns what is next."""
        if not self._bytes_of_frame:
            self._bytes_of_frame = masked_frame_bytes(data, start)
        end = min(start + self._bytes_of_frame, len(data))
        if end > start:
            self._protocol.receive_data(data[start:end])
            self._bytes_of_frame -= end - start
        return end

    def _skip(self, data: bytes, start: int) -> int:
        """Throw frames away after our close, but for the peer's; returns what is next."""
        size, protocol = len(data), self._protocol
        for _ in range(_SKIPPED_PER_STEP):
            if protocol.eof_sent or protocol.state is CLOSED:
                # The protocol failed, or both have closed: nothing more is looked at.
                return size
            if not self._bytes_of_frame:
                self._bytes_of_frame = masked_frame_bytes(data, start)
                if not self._bytes_of_frame:
                    return start
                self._is_skipping = data[start] & _OPCODE_BITS != _CLOSE_OPCODE
            end = min(start + self._bytes_of_frame, size)
            if not self._is_skipping:
                protocol.receive_data(data[start:end])
                protocol.events_received()
            self._bytes_of_frame -= end - start
            start = end
            if start == size:
                return start
        self.has_more = True
        return start

    def _take_events(self, messages: list[bytes | str]) -> None:
        if not self._protocol.events:
            return
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                continue
            opcode = event.opcode
            if opcode is _BINARY and event.fin:
                messages.append(bytes(event.data))
            elif opcode is _TEXT and event.fin:
                self._add_text(bytes(event.data), messages)
            elif opcode is _BINARY or opcode is _TEXT:
                self._fragments = bytearray(event.data)
                self._fragments_are_text = opcode is _TEXT
            elif opcode is _CONT and self._fragments is not None:
                self._fragments += event.data
                if event.fin:
                    whole = bytes(self._fragments)
                    self._fragments = None
                    if self._fragments_are_text:
                        self._add_text(whole, messages)
                    else:
                        messages.append(whole)

    def _add_text(self, data: bytes, messages: list[bytes | str]) -> None:
        """Take a text message; one that is no UTF-8 ends the connection (RFC 6455, section 8.1)."""
        try:
            messages.append(data.decode())
        except UnicodeDecodeError:
            # A frame that came behind the peer's close is not looked at.
            if self.is_open:
                self._protocol.fail(CloseCode.INVALID_DATA, "invalid UTF-8 in a text message")

    def take_writes(self) -> list[bytes]:
        """Return what is to be sent; an empty element means that the sending side ends there."""
        return self._protocol.data_to_send() if self._protocol.writes else []

    def frame(self, message: str | bytes) -> bytes:
        """Frame a message; return what is to be sent, which after the close is nothing."""
        protocol = self._protocol
        if protocol.state is not OPEN:
            return b""
        if not isinstance(message, str):
            protocol.send_binary(message)
        elif self._is_server:
            # Not through the library, whose checks are for messages in fragments and for extensions.
            frame = server_text_frame(message.encode())
            if not protocol.writes:
                return frame
            protocol.writes.append(frame)
        else:
            protocol.send_text(message.encode())
        return b"".join(self.take_writes())

    def ping(self) -> None:
        """Frame a ping, which every peer must answer (RFC 6455, 5.5.3)."""
        if self.is_open:
            self._protocol.send_ping(b"")

    def close(self, code: int, reason: str) -> None:
        """Frame the close; a second one does nothing. The reason is cut to what a frame holds."""
        self._is_at_rest = False
        if self.is_open:
            # 123 bytes: RFC 6455, 5.5.
            self._protocol.send_close(code, reason.encode()[:123].decode("utf-8", "ignore"))

    def closed(self) -> PeerClosed:
        """Tell how the connection ended."""
        protocol = self._protocol
        if protocol.close_rcvd is not None:
            return PeerClosed(protocol.close_rcvd.code, protocol.close_rcvd.reason)
        if protocol.close_sent is not None:
            return PeerClosed(protocol.close_sent.code, protocol.close_sent.reason)
        return PeerClosed(CloseCode.ABNORMAL_CLOSURE, "connection lost")


@frozen
class HTTPRequest:
    """The head of a request, before it is known to be an upgrade."""

    method: str
    target: str
    """Path and query, as they stand in the request line."""
    headers: Mapping[str, str]
    """Names in lower case; a field on several lines is one list (RFC 9110, 5.3)."""
    is_upgrade: bool


class ServerOpening:
    """The server's handshake."""

    def __init__(self, max_message_bytes: int) -> None:
        self._protocol = ServerProtocol(max_size=max_message_bytes, logger=_silent)
        self._request: Request | None = None

    def receive_head(self, head: bytes) -> HTTPRequest:
        """Read a whole request head, its empty line included.

        Raises:
            HandshakeFailed: it is none, or more than the library reads (``status`` 431).
        """
        head, length = _part_length(head)
        lines = head.split(b"\r\n")
        if len(lines) > MAX_NUM_HEADERS or max(map(len, lines)) >= MAX_LINE_LENGTH:
            raise HandshakeFailed(
                "the request head is too long", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            )
        self._protocol.receive_data(head)
        events = self._protocol.events_received()
        if not events or not isinstance(events[0], Request):
            raise HandshakeFailed("not an HTTP request")
        request = self._request = events[0]
        headers = {name: ", ".join(request.headers.get_all(name)) for name in request.headers}
        return HTTPRequest(
            method=request.method,
            target=request.path,
            headers=headers | length,
            is_upgrade="upgrade" in headers.get("connection", "").lower(),
        )

    def accept(self, headers: Mapping[str, str], rest: bytes) -> WebSocketProtocol:
        """Answer 101 with extra ``headers``, then receive the bytes that came behind the head.

        Raises:
            HandshakeFailed: it is no proper upgrade; ``status`` is what to answer (426, 400, ...).
        """
        assert self._request is not None
        response = self._protocol.accept(self._request)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            raise HandshakeFailed("no proper WebSocket upgrade", response.status_code)
        for name, value in headers.items():
            response.headers[name] = value
        self._protocol.send_response(response)
        # The library's parser of the handshake would keep the request for as long as the connection lasts.
        protocol = Protocol(SERVER, max_size=self._protocol.max_message_size, logger=_silent)
        protocol.writes += self._protocol.data_to_send()
        self._end_parser()
        opened = WebSocketProtocol(protocol)
        if rest:
            opened.receive(rest)
        return opened

    def plain_response(self, status: int, body: bytes, headers: Mapping[str, str]) -> bytes:
        """Make a plain HTTP response that ends the connection; to HEAD without the body."""
        fields = Headers({"Content-Length": str(len(body)), "Connection": "close"})
        for name, value in headers.items():
            fields[name] = value
        is_head = self._request is not None and self._request.method == "HEAD"
        response = Response(status, HTTPStatus(status).phrase, fields, b"" if is_head else body)
        self._end_parser()
        return response.serialize()

    def _end_parser(self) -> None:
        # It holds the protocol, which holds it: 4 KB with the request, until the collector comes.
        self._protocol.parser.close()


class ClientOpening:
    """The client's handshake."""

    def __init__(self, url: str, headers: Mapping[str, str], max_message_bytes: int) -> None:
        protocol = ClientProtocol(parse_uri(url), max_size=max_message_bytes, logger=_silent)
        request = protocol.connect()
        for name, value in headers.items():
            request.headers[name] = value
        protocol.send_request(request)
        self._protocol = protocol

    @property
    def is_waiting(self) -> bool:
        """Whether the answer is not complete yet."""
        return self._protocol.state is CONNECTING and self._protocol.handshake_exc is None

    def take_request(self) -> bytes:
        """Return the request to send."""
        return b"".join(self._protocol.data_to_send())

    def receive(self, data: bytes | bytearray) -> None:
        """Take bytes of the answer; ``b""`` is the end of the stream."""
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()

    def opened(self) -> WebSocketProtocol:
        """Return the open connection.

        Raises:
            HandshakeFailed: it was refused, with ``status``, or the answer was no WebSocket's.
        """
        error = self._protocol.handshake_exc
        if isinstance(error, InvalidStatus):
            raise _refusal(error.response)
        if error is not None:
            reason = str(error) if isinstance(error, InvalidHandshake) else type(error).__name__
            raise HandshakeFailed(f"no WebSocket server: {reason}")
        return WebSocketProtocol(self._protocol)


def _refusal(response: Response) -> HandshakeFailed:
    """Put an answer that is no 101 into an error, with what a reader can make use of."""
    reason = ""
    if (_only(response, "Content-Type") or "").startswith("text/plain"):
        lines = (
            bytes(response.body or b"")[:_MOST_REASON_BYTES].decode(errors="replace").split("\n")
        )
        reason = lines[0].strip()
    after = _only(response, "Retry-After") or ""
    is_number = after.isascii() and after.isdigit() and len(after) <= _MOST_RETRY_DIGITS
    return HandshakeFailed(
        f"refused with HTTP {response.status_code}",
        response.status_code,
        reason=reason,
        retry_after=int(after) if is_number else None,
    )


def _only(response: Response, name: str) -> str | None:
    """The value of a header, or None where there is none or several."""
    values = response.headers.get_all(name)
    return values[0] if len(values) == 1 else None


_masks: list[bytes] = []
"""Masking keys that nobody has taken yet."""


def _draw_masks() -> None:
    """Draw masking keys of strong randomness, 1,024 at a time: a system call each was 5 %."""
    keys = token_bytes(4096)
    _masks.extend(keys[start : start + 4] for start in range(0, 4096, 4))


_pack_short_head = struct.Struct("!BB").pack
_pack_head = struct.Struct("!BBH").pack
_pack_long_head = struct.Struct("!BBQ").pack


def _part_length(head: bytes) -> tuple[bytes, dict[str, str]]:
    """Take the ``Content-Length`` out of the head of a POST: the library lets no body in."""
    if not head.startswith(b"POST "):
        return head, {}
    lines = head.split(b"\r\n")
    is_length = [line.lower().startswith(b"content-length:") for line in lines]
    if sum(is_length) != 1:
        return head, {}
    value = lines[is_length.index(True)].partition(b":")[2].strip()
    rest = [line for line, is_it in zip(lines, is_length, strict=True) if not is_it]
    return b"\r\n".join(rest), {"content-length": value.decode("latin-1")}


def client_binary_frame(payload: bytes) -> bytes:
    """Frame one binary message as a client must, masked (RFC 6455, 5.2 and 5.3)."""
    if not _masks:
        _draw_masks()
    mask = _masks.pop()
    length = len(payload)
    if length < _TWO_BYTE_LENGTH:
        head = _pack_short_head(_WHOLE_BINARY, _MASKED | length)
    elif length < 65_536:
        head = _pack_head(_WHOLE_BINARY, _MASKED | _TWO_BYTE_LENGTH, length)
    else:
        head = _pack_long_head(_WHOLE_BINARY, _MASKED | _EIGHT_BYTE_LENGTH, length)
    return b"".join((head, mask, apply_mask(payload, mask)))


def server_text_frame(payload: bytes) -> bytes:
    """Frame one text message as a server must, without a mask (RFC 6455, 5.2)."""
    length = len(payload)
    if length < _TWO_BYTE_LENGTH:
        return _pack_short_head(_WHOLE_TEXT, length) + payload
    if length < 65_536:
        return _pack_head(_WHOLE_TEXT, _TWO_BYTE_LENGTH, length) + payload
    return _pack_long_head(_WHOLE_TEXT, _EIGHT_BYTE_LENGTH, length) + payload


def ends_stream(writes: list[bytes]) -> bool:
    """Whether the sending side ends after ``writes``."""
    return SEND_EOF in writes
