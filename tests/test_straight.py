"""A read that is one whole frame is taken in one step; however the bytes are cut, it comes to the same."""

from __future__ import annotations

import struct

from hypothesis import example, given
from hypothesis import strategies as st

from omi_rt.net.protocol import ServerOpening, WebSocketProtocol

HEAD = (
    b"GET /listen HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
MASK = bytes((3, 141, 59, 26))
MAX_BYTES = 65_536


def frame(first: int, payload: bytes) -> bytes:
    """A client's frame, masked (RFC 6455, 5.2)."""
    size = len(payload)
    masked = bytes(byte ^ MASK[place % 4] for place, byte in enumerate(payload))
    if size < 126:
        return struct.pack("!BB", first, 0x80 | size) + MASK + masked
    if size < 65_536:
        return struct.pack("!BBH", first, 0xFE, size) + MASK + masked
    return struct.pack("!BBQ", first, 0xFF, size) + MASK + masked


sizes = st.one_of(st.integers(0, 8), st.sampled_from((125, 126, 127, 640, 65_535, 65_536, 65_537)))
frames = st.builds(
    lambda first, size: frame(first, (b"abcdefg" * (size // 7 + 1))[:size]),
    # Whole binary and text, a beginning, a middle and an end, a ping, a close.
    st.sampled_from((0x82, 0x82, 0x82, 0x81, 0x02, 0x00, 0x80, 0x89, 0x88)),
    sizes,
)
reads = st.lists(
    st.one_of(frames, st.tuples(frames, frames).map(b"".join), st.binary(max_size=12)), max_size=8
)


def opened() -> WebSocketProtocol:
    opening = ServerOpening(MAX_BYTES)
    opening.receive_head(HEAD)
    protocol = opening.accept({}, b"")
    protocol.take_writes()
    return protocol


def take_all(protocol: WebSocketProtocol, data: bytes) -> list[bytes | str]:
    protocol.receive(data)
    taken = protocol.take_messages()
    while protocol.has_more:
        taken += protocol.take_messages()
    return taken


INNER = frame(0x82, b"abc")
"""What looks like a frame and is the rest of another."""


@example(reads=[struct.pack("!BB", 0x82, 0x80 | len(INNER)) + MASK, INNER], cut=0)
@example(reads=[INNER[:1], INNER], cut=0)
@example(reads=[frame(0x02, b"beginning"), frame(0x82, b"abc")], cut=0)
@given(reads=reads, cut=st.integers(0, 200))
def test_a_read_that_is_taken_in_one_step_comes_to_the_same_as_any_other(
    reads: list[bytes], cut: int
) -> None:
    if cut and reads:
        reads = [reads[0][:cut], reads[0][cut:], *reads[1:]]
    straight, ordinary = opened(), opened()
    for data in filter(None, reads):
        message = straight.take_only(data)
        taken = take_all(straight, data) if message is None else [message]
        assert taken == take_all(ordinary, data)
        assert straight.take_writes() == ordinary.take_writes()
        assert straight.is_open == ordinary.is_open
        assert straight.is_closed == ordinary.is_closed


def test_nothing_is_taken_in_one_step_before_what_came_earlier() -> None:
    protocol = opened()
    protocol.receive(frame(0x82, b"first"))
    assert protocol.take_only(INNER) is None
    assert protocol.take_messages() == [b"first"]
    assert protocol.take_only(INNER) == b"abc"


def test_nothing_is_taken_in_one_step_after_our_close() -> None:
    protocol = opened()
    protocol.close(1000, "")
    assert protocol.take_only(INNER) is None
    assert take_all(protocol, INNER) == []
