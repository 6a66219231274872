"""WebSocket frames as they lie on the wire, where a whole protocol would cost too much."""

from __future__ import annotations

_WHOLE_TEXT = 0x81
_CONTROLS = frozenset({0x89, 0x8A})
"""The first bytes of a ping and of a pong."""
_TWO_BYTE_LENGTH, _EIGHT_BYTE_LENGTH, _MASKED = 126, 127, 128
_HEAD_END = b"\r\n\r\n"
_SWITCHING_PROTOCOLS = b"HTTP/1.1 101"
_MAX_HEAD_BYTES = 16_384


class TextFrames:
    """Takes the whole text messages out of what a server sends, and leaves the rest to a library.

    As long as all is well, Deepgram sends nothing but unfragmented text frames. The handshake's answer,
    pings and pongs are handed on, each whole. From the first other frame on (a fragment, a close, text
    that is not UTF-8, a message that is too long) everything is handed on.
    """

    __slots__ = ("_buffer", "_max_bytes", "has_head", "is_over", "texts")

    def __init__(self, max_message_bytes: int) -> None:
        self.texts: list[str] = []
        """Messages that have arrived, the oldest first; whoever reads them takes them out of here."""
        self.is_over = False
        """Whether everything that still comes is handed on as it is."""
        self.has_head = False
        """Whether the handshake's answer has come to its end."""
        self._buffer = b""
        self._max_bytes = max_message_bytes

    def take_only(self, data: bytes) -> str | None:
        """Take ``data`` off the stream if it is one whole text message, and no more.

        Nearly every read is. Returns the message; None where `feed` must be given ``data``.
        """
        size = len(data)
        if size < 2 or data[0] != _WHOLE_TEXT or self._buffer or self.texts or not self.has_head:
            return None
        length, body = data[1], 2
        if length == _TWO_BYTE_LENGTH and size >= 4:
            length, body = data[2] << 8 | data[3], 4
        elif length > _TWO_BYTE_LENGTH:
            return None
        if body + length != size or length > self._max_bytes or self.is_over:
            return None
        try:
            return data[body:].decode()
        except UnicodeDecodeError:
            return None

    def feed(self, data: bytes | bytearray) -> bytes:
        """Take bytes off the stream; return those that the library is to have."""
        if self.is_over:
            return bytes(data)
        data = self._buffer + data if self._buffer else bytes(data)
        if not self.has_head:
            return self._take_head(data)
        return self._take_frames(data, 0)

    def give_up(self) -> bytes:
        """Hand on everything from now on; return what had been kept back."""
        return self._give_up(self._buffer)

    def _take_head(self, data: bytes) -> bytes:
        end = data.find(_HEAD_END) + len(_HEAD_END)
        if end < len(_HEAD_END) and len(data) < _MAX_HEAD_BYTES:
            self._buffer = data
            return b""
        if end < len(_HEAD_END) or not data.startswith(_SWITCHING_PROTOCOLS):
            return self._give_up(data)
        self.has_head = True
        return data[:end] + self._take_frames(data, end)

    def _take_frames(self, data: bytes, start: int) -> bytes:
        size, handed_on = len(data), b""
        while size - start >= 2:
            opcode, length, body = data[start], data[start + 1], start + 2
            if length == _TWO_BYTE_LENGTH:
                body = start + 4
                length = int.from_bytes(data[start + 2 : body], "big")
            elif length == _EIGHT_BYTE_LENGTH:
                body = start + 10
                length = int.from_bytes(data[start + 2 : body], "big")
            end = body + length
            is_control = opcode in _CONTROLS and data[start + 1] < _TWO_BYTE_LENGTH
            is_text = opcode == _WHOLE_TEXT and data[start + 1] < _MASKED
            if not (is_control or (is_text and length <= self._max_bytes)):
                return handed_on + self._give_up(data[start:])
            if end > size or body > size:
                break
            if is_control:
                handed_on += data[start:end]
            else:
                try:
                    self.texts.append(data[body:end].decode())
                except UnicodeDecodeError:
                    return handed_on + self._give_up(data[start:])
            start = end
        self._buffer = data[start:] if start else data
        return handed_on

    def _give_up(self, data: bytes) -> bytes:
        self.is_over = True
        self._buffer = b""
        return data


def masked_frame_bytes(data: bytes, start: int) -> int:
    """The length of the masked frame at ``start`` with its head; 0 where that is not whole yet.

    What no client may send, such as a frame that is not masked, is all the bytes that are there: the
    protocol fails over its first two (RFC 6455, 5.2).
    """
    size = len(data) - start
    if size < 2:
        return 0
    length, head = data[start + 1] - _MASKED, 6
    if length < 0:
        return size
    if length == _TWO_BYTE_LENGTH:
        head = 8
    elif length == _EIGHT_BYTE_LENGTH:
        head = 14
    if head > 6:
        if size < head - 4:
            return 0
        length = int.from_bytes(data[start + 2 : start + head - 4], "big")
    return head + length
