"""A log that cannot be written: nothing raises, nothing waits, and what is lost is counted."""

from __future__ import annotations

import logging
import os
import socket
import threading
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

import trio

from omi_rt.lines import MAX_LINE_BYTES, MAX_QUEUED_BYTES, LineWriter
from omi_rt.log import configure_logging, get_logger, log_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest


@contextmanager
def pipe() -> Iterator[tuple[int, IO[str]]]:
    """A pipe: the descriptor to read from, the file to write to."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        try:
            yield reading, file
        finally:
            with suppress(OSError):
                os.close(reading)


def numbered(lines: range) -> list[str]:
    return [f"line {n} {'x' * 1000}" for n in lines]


def read_now(descriptor: int) -> str:
    os.set_blocking(descriptor, False)
    data = b""
    with suppress(BlockingIOError):
        while more := os.read(descriptor, 1 << 20):
            data += more
    return data.decode()


def test_a_reader_that_reads_gets_every_line_at_once_and_in_order() -> None:
    with pipe() as (reading, file):
        writer = LineWriter(file)
        for line in numbered(range(50)):
            writer.write(line)
        assert read_now(reading).splitlines() == numbered(range(50))
        assert os.get_blocking(file.fileno()), "others that have the descriptor keep it as it was"
        assert writer.lost_lines == 0


async def test_a_reader_that_rests_gets_what_fits_and_the_rest_is_counted() -> None:
    with pipe() as (reading, file):
        writer = LineWriter(file)
        lines = numbered(range(600))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            await trio.testing.wait_all_tasks_blocked()
            for line in lines:
                writer.write(line)
            counted: list[int] = []
            writer.count_lost_with(counted.append)
            kept = len(lines) - writer.lost_lines
            assert counted == [writer.lost_lines]
            assert MAX_QUEUED_BYTES < kept * 1010 < MAX_QUEUED_BYTES + 80_000
            text = ""
            with trio.fail_after(10):
                while text.count("\n") < kept:
                    await trio.sleep(0.01)
                    text += read_now(reading)
            writer.write("later")
            assert (text + read_now(reading)).splitlines() == [*lines[:kept], "later"]
            nursery.cancel_scope.cancel()


def test_what_waits_at_the_end_is_written_by_flush() -> None:
    with pipe() as (reading, file):
        writer = LineWriter(file)
        for line in numbered(range(100)):
            writer.write(line)
        text: list[str] = []

        def read() -> None:
            with os.fdopen(os.dup(reading)) as source:
                text.extend(source.readline().rstrip("\n") for _ in range(100))

        reader = threading.Thread(target=read)
        reader.start()
        writer.flush(10)
        reader.join()
        assert text == numbered(range(100))
        assert writer.lost_lines == 0


def test_flush_does_not_wait_for_ever() -> None:
    with pipe() as (_reading, file):
        writer = LineWriter(file)
        for line in numbered(range(100)):
            writer.write(line)
        writer.flush(0.01)
        assert 30 < writer.lost_lines < 100


def test_a_reader_that_went_costs_the_lines() -> None:
    with pipe() as (reading, file):
        writer = LineWriter(file)
        os.close(reading)
        for line in numbered(range(3)):
            writer.write(line)
        assert writer.lost_lines == 3


def test_a_full_disk_costs_the_lines() -> None:
    with open("/dev/full", "w") as file:
        writer = LineWriter(file)
        writer.write("a")
        writer.write("b")
        assert writer.lost_lines == 2


def test_no_stream_at_all_costs_the_lines() -> None:
    writer = LineWriter(None)
    writer.write("a")
    assert writer.lost_lines == 1


def test_a_line_that_was_torn_off_does_not_join_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with open(tmp_path / "log", "w") as file:
        writer = LineWriter(file)
        whole, room = os.write, [4]

        def write(descriptor: int, data: bytes) -> int:
            if not room[0]:
                raise OSError(28, "No space left on device")
            count = whole(descriptor, data[: room[0]])
            room[0] -= count
            return count

        monkeypatch.setattr(os, "write", write)
        writer.write("a long line")
        writer.write("nothing of it")
        room[0] = 100
        writer.write("whole")
        assert writer.lost_lines == 2
    assert (tmp_path / "log").read_text() == "a lo\nwhole\n"


def test_a_socket_is_written_without_waiting() -> None:
    here, there = socket.socketpair()
    with here, there, os.fdopen(os.dup(there.fileno()), "w") as file:
        writer = LineWriter(file)
        for line in numbered(range(2000)):
            writer.write(line)
        assert writer.lost_lines > 0
        assert here.recv(7) == b"line 0 "
        writer.write_to(None)


def test_a_line_of_any_length_and_any_text_is_written_in_bounds() -> None:
    with pipe() as (reading, file):
        writer = LineWriter(file)
        writer.write("\ud800 half a character")
        assert read_now(reading) == "\\ud800 half a character\n"
        writer.write("x" * 1_000_000)
        assert len(writer._queue) <= MAX_LINE_BYTES + 5


def test_what_can_not_be_rendered_is_counted_and_raises_nothing() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise ZeroDivisionError

    for form in ("text", "json"):
        configure_logging("debug", form)
        before = log_lines().lost_lines
        get_logger().info("an_event", value=Broken())
        logging.getLogger("omi_rt.x").warning("%d", "no number")
        assert log_lines().lost_lines == before + 2
