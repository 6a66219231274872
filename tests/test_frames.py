"""Frames that are taken off Deepgram's stream before the library sees them."""

from __future__ import annotations

import struct
from itertools import takewhile
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from websockets.protocol import State
from websockets.server import ServerProtocol

from omi_rt.deepgram.transport import TEXTS_PER_STEP, WatchedStream
from omi_rt.fake.streams import bounded_stream_pair
from omi_rt.net.frames import TextFrames
from omi_rt.net.protocol import server_text_frame

if TYPE_CHECKING:
    from trio.testing import MockClock

HEAD = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
MAX_BYTES = 70_000


def frame(opcode: int, payload: bytes) -> bytes:
    """An unmasked frame, as servers send them (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", opcode, size) + payload
    if size < 65_536:
        return struct.pack("!BBH", opcode, 126, size) + payload
    return struct.pack("!BBQ", opcode, 127, size) + payload


texts = st.one_of(
    st.text(max_size=200), st.sampled_from((125, 126, 65_535, 65_536, MAX_BYTES)).map("x".__mul__)
).map(lambda text: ("text", frame(0x81, text.encode()), text))
controls = st.tuples(st.sampled_from((0x89, 0x8A)), st.binary(max_size=125)).map(
    lambda parts: ("control", frame(*parts), "")
)
others = st.sampled_from(
    [
        ("other", frame(0x81, b"\xff\xfe"), ""),
        ("other", frame(0x01, b"a part"), ""),
        ("other", frame(0x82, b"binary"), ""),
        ("other", frame(0x88, struct.pack("!H", 1000)), ""),
        ("other", frame(0xC1, b"a reserved bit"), ""),
        ("other", frame(0x89, b"too long for a ping" * 10), ""),
        ("other", frame(0x81, bytes(MAX_BYTES + 1)), ""),
        ("other", b"\x81\x85mask" + b"hello", ""),
    ]
)


def feed_in_pieces(frames: TextFrames, data: bytes, cuts: list[int]) -> bytes:
    """Feed ``data`` cut where ``cuts`` say, modulo its length; returns what was handed on."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    pieces = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    return b"".join(frames.feed(piece) for piece in pieces if piece)


@given(
    st.lists(st.one_of(texts, texts, controls), max_size=6),
    st.one_of(st.none(), others),
    st.lists(st.one_of(texts, controls, others), max_size=2),
    st.lists(st.integers(min_value=0), max_size=8),
)
def test_plain_texts_are_taken_and_all_else_is_handed_on_in_order_however_it_is_cut(
    plain: list[tuple[str, bytes, str]],
    first_other: tuple[str, bytes, str] | None,
    after: list[tuple[str, bytes, str]],
    cuts: list[int],
) -> None:
    sent = [*plain, *([first_other, *after] if first_other else [])]
    frames = TextFrames(MAX_BYTES)
    handed_on = feed_in_pieces(frames, HEAD + b"".join(raw for _, raw, _ in sent), cuts)
    taken = list(takewhile(lambda each: each[0] != "other", sent))
    rest = sent[len(taken) :]
    assert list(frames.texts) == [text for kind, _, text in taken if kind == "text"]
    controls_of = [raw for kind, raw, _ in taken if kind == "control"]
    assert handed_on == HEAD + b"".join([*controls_of, *(raw for _, raw, _ in rest)])
    assert frames.is_over is bool(rest)


@given(
    st.lists(st.one_of(texts, texts, controls, others), min_size=1, max_size=3),
    st.integers(min_value=0),
    st.sampled_from((b"", HEAD[:-1], HEAD, HEAD + b"\x81", HEAD + frame(0x81, b"waits"))),
)
def test_a_read_is_taken_by_itself_only_where_it_is_one_whole_text_and_then_as_ever(
    sent: list[tuple[str, bytes, str]], cut: int, before: bytes
) -> None:
    data = b"".join(raw for _, raw, _ in sent)
    data = data[: cut % (len(data) + 1) or None]
    frames, usual = TextFrames(MAX_BYTES), TextFrames(MAX_BYTES)
    for each in (frames, usual):
        each.feed(before)
    text = frames.take_only(data)
    is_one_text = sent[0][0] == "text" and data == sent[0][1]
    if text is None:
        # The frames that are so long that their head is longer go the usual way.
        assert before != HEAD or not is_one_text or len(data) > 65_535
    else:
        assert before == HEAD
        assert is_one_text
        assert text == sent[0][2]
        assert usual.feed(data) == b""
        assert usual.texts == [text]
        data = b""
    # Whether or not it was taken, it is as if nothing else had happened.
    for after in (data, frame(0x81, b"after")):
        assert frames.feed(after) == (usual.feed(after) if after != b"" else b"")
    assert frames.is_over is usual.is_over
    assert frames.texts == usual.texts[1 if text is not None else 0 :]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 300, 65_535])
def test_a_read_that_is_one_whole_text_is_taken_by_itself(size: int) -> None:
    frames = TextFrames(MAX_BYTES)
    frames.feed(HEAD)
    assert frames.take_only(frame(0x81, b"x" * size)) == "x" * size


@pytest.mark.parametrize(
    ("data", "most"),
    [
        (frame(0x81, b"two") + frame(0x01, b"a part"), MAX_BYTES),
        (frame(0x81, b"longer than is taken"), 19),
        *((b"\x81" + bytes([size]) + b"x" * size, MAX_BYTES) for size in (127, 128, 129, 254, 255)),
    ],
)
def test_a_read_that_only_seems_to_be_one_whole_text_is_not_taken_by_itself(
    data: bytes, most: int
) -> None:
    frames = TextFrames(most)
    frames.feed(HEAD)
    assert frames.take_only(data) is None


@given(st.lists(st.integers(min_value=0), max_size=4))
def test_a_refusal_is_handed_on_whole(cuts: list[int]) -> None:
    refusal = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n\r\n" + frame(0x81, b"no frame")
    frames = TextFrames(MAX_BYTES)
    assert feed_in_pieces(frames, refusal, cuts) == refusal
    assert not frames.texts


@given(st.lists(st.binary(min_size=1), max_size=5), st.booleans())
def test_no_bytes_of_a_server_raise(pieces: list[bytes], has_head: bool) -> None:
    frames = TextFrames(MAX_BYTES)
    if has_head:
        frames.feed(HEAD)
    for piece in pieces:
        frames.feed(piece)


def test_a_head_without_end_is_not_held_back_for_ever() -> None:
    frames = TextFrames(MAX_BYTES)
    handed_on = sum(len(frames.feed(b"x" * 1000)) for _ in range(100))
    assert handed_on == 100_000


def test_a_message_that_is_too_long_is_handed_on_before_it_is_whole() -> None:
    frames = TextFrames(MAX_BYTES)
    frames.feed(HEAD)
    assert frames.feed(frame(0x81, bytes(MAX_BYTES + 1))[:20])


async def test_a_flood_of_pings_is_left_to_the_library_with_nothing_missing(
    autojump_clock: MockClock,
) -> None:
    here, there = bounded_stream_pair(1_000_000)
    watched = WatchedStream(here, MAX_BYTES)
    await there.send_all(HEAD + frame(0x81, b"before"))
    assert await watched.receive_some() == HEAD
    pings = frame(0x89, b"x" * 100) * 1000
    await there.send_all(pings)
    assert await watched.receive_text() == "before"
    with trio.fail_after(5):
        assert await watched.receive_text() is None
    seen = b""
    while len(seen) < len(pings):
        seen += await watched.receive_some()
    assert seen == pings


async def test_messages_that_came_at_once_let_others_have_their_turn(
    autojump_clock: MockClock,
) -> None:
    here, there = bounded_stream_pair(1_000_000)
    watched = WatchedStream(here, MAX_BYTES)
    await there.send_all(HEAD + frame(0x81, b"final") * 100)
    assert await watched.receive_some() == HEAD
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        for _ in range(100):
            assert await watched.receive_text() == "final"
        nursery.cancel_scope.cancel()
    assert turns >= 100 // TEXTS_PER_STEP // 2


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 100_000])
def test_a_text_frame_of_ours_is_the_one_that_the_library_would_send(size: int) -> None:
    text = "é" * (size // 2) + "x" * (size % 2)
    theirs = ServerProtocol()
    theirs.state = State.OPEN
    theirs.send_text(text.encode())
    assert server_text_frame(text.encode()) == b"".join(theirs.data_to_send())
