"""Bounded streams in memory: a Trio stream's whole contract, and TCP's habits."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, check_half_closeable_stream, wait_all_tasks_blocked

from omi_rt.fake.streams import BoundedStream, bounded_stream_pair
from omi_rt.fake.transport import FaultyStream, server_frame


async def make_pair() -> tuple[BoundedStream, BoundedStream]:
    await trio.lowlevel.checkpoint()
    return bounded_stream_pair(1000)


async def make_clogged_pair() -> tuple[BoundedStream, BoundedStream]:
    here, there = bounded_stream_pair(1000)
    await here.send_all(bytes(1000))
    await there.send_all(bytes(1000))
    return here, there


async def test_the_streams_keep_the_contract_of_half_closeable_streams() -> None:
    # trio.testing's own check, which knows corners that no test here would think of.
    await check_half_closeable_stream(make_pair, make_clogged_pair)


async def test_a_send_waits_until_the_peer_has_read() -> None:
    here, there = bounded_stream_pair(100)
    sent = trio.Event()

    async def send() -> None:
        await here.send_all(bytes(250))
        sent.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert not sent.is_set()
        assert await there.receive_some() == bytes(100)
        await wait_all_tasks_blocked()
        assert not sent.is_set()
        assert await there.receive_some(60) == bytes(60)
        await wait_all_tasks_blocked()
        assert sent.is_set()
        assert await there.receive_some() == bytes(90)


async def test_what_was_sent_before_a_clean_close_still_arrives() -> None:
    here, there = bounded_stream_pair()
    await here.send_all(b"last words")
    await here.aclose()
    assert await there.receive_some() == b"last words"
    assert await there.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError):
        await there.send_all(b"x")


async def test_a_close_with_unread_data_resets_and_loses_what_was_under_way() -> None:
    here, there = bounded_stream_pair()
    await there.send_all(b"never read")
    await here.send_all(b"overtaken by the reset")
    await here.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await there.receive_some()


async def test_an_end_in_one_direction_leaves_the_other_open() -> None:
    here, there = bounded_stream_pair()
    await here.send_eof()
    assert await there.receive_some() == b""
    await there.send_all(b"answer")
    assert await here.receive_some() == b"answer"


async def test_a_cancelled_receive_loses_nothing(autojump_clock: MockClock) -> None:
    here, there = bounded_stream_pair()
    with trio.move_on_after(1):
        await there.receive_some()
    await here.send_all(b"whole")
    assert await there.receive_some() == b"whole"


def test_a_stream_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="room"):
        bounded_stream_pair(0)


async def test_a_faulty_stream_breaks_in_the_middle_of_a_send() -> None:
    here, there = bounded_stream_pair()
    faulty = FaultyStream(here)
    await faulty.send_all(b"good")
    faulty.cut_next_send()
    with pytest.raises(trio.BrokenResourceError):
        await faulty.send_all(b"halves")
    assert await there.receive_some() == b"goodhal"
    assert await there.receive_some() == b""


async def test_a_faulty_stream_breaks_in_the_middle_of_what_comes_in() -> None:
    here, there = bounded_stream_pair()
    faulty = FaultyStream(here)
    faulty.cut_next_receive()
    await there.send_all(b"frame")
    with pytest.raises(trio.BrokenResourceError):
        await faulty.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await there.send_all(b"more")


@pytest.mark.parametrize(("length", "head"), [(5, 2), (125, 2), (126, 4), (65535, 4), (65536, 10)])
def test_a_raw_frame_is_laid_out_as_the_standard_says(length: int, head: int) -> None:
    frame = server_frame(2, bytes(length))
    assert len(frame) == head + length
    assert frame[0] == 0x82
    assert int.from_bytes(frame[head - {2: 1, 4: 2, 10: 8}[head] : head], "big") == length
