"""Without a key: the embedded recogniser behind ``omi-rt serve``, and ``omi-rt demo``."""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
from itertools import groupby
from typing import Any

import pytest
import trio
from attrs import define, field

from omi_rt.core.errors import PeerClosed
from omi_rt.local.accuracy import word_accuracy
from omi_rt.local.sample import sample_text, sample_wav
from tests.processes import descendants_of, ended, wait_ended
from tests.processes_e2e import Finished, run, running, serving
from tests.test_stream_client import become_foreground, read_end_of_terminal, screen_after

pytestmark = pytest.mark.realtime

NO_KEY = (
    "no DEEPGRAM_API_KEY and no DEEPGRAM_URL: using the embedded recogniser "
    "(tiny.en, English, tells speakers apart)"
)
AT_LEAST = 0.95
"""Of the sample's words."""


@define
class Heard:
    """What came of the sample, at real time."""

    demo: list[Finished] = field(factory=list)
    unread_demo: list[Finished] = field(factory=list)
    """Whose standard output nobody reads."""
    unplugged_demo: list[Finished] = field(factory=list)
    """Whose lines are cut on both sides of the server."""
    stream: list[Finished] = field(factory=list)
    french: list[tuple[PeerClosed | None, list[Any]]] = field(factory=list)
    """How a session in French ended at the same server, and what it was told."""
    server_said: str = ""
    recogniser: set[int] = field(factory=set)
    """Its processes, while it was used."""
    server_status: int | None = None


@pytest.fixture(scope="module")
def heard() -> Heard:
    """Demos, and beside them a server and a device: all take as long as the sample."""
    result = Heard()

    async def run_demo() -> None:
        result.demo.append(await run("demo", within=60))

    async def run_demo_unread() -> None:
        read_end, write_end = os.pipe()
        os.close(read_end)
        try:
            result.unread_demo.append(await run("demo", within=60, stdout=write_end))
        finally:
            os.close(write_end)
        # That one ended with its first segment, so these do not add up.
        result.unplugged_demo.append(await run("demo", "--unplug", within=60))

    async def serve_and_stream() -> None:
        with sample_wav() as path:
            async with serving() as server:
                async with server.device(language="fr") as device:
                    await device.ended(5)
                    result.french.append((device.closed, device.messages))
                async with server.device(language="en-GB") as device:
                    await device.finish(20)
                options = ("--codec", "opus", "--speed", "1")
                result.stream.append(
                    await run("stream", str(path), "--url", server.url, *options, within=60)
                )
                result.recogniser |= descendants_of(server.program.pid)
                server.program.signal()
                result.server_status = await server.program.status()
                result.server_said = server.program.errors

    async def run_all() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_demo)
            nursery.start_soon(run_demo_unread)
            nursery.start_soon(serve_and_stream)

    trio.run(run_all)
    return result


def test_serve_says_in_one_line_that_there_is_no_key(heard: Heard) -> None:
    assert heard.server_said.splitlines()[0] == NO_KEY
    assert heard.server_said.count(NO_KEY) == 1


def test_a_device_gets_at_least_95_percent_of_the_sample_s_words(heard: Heard) -> None:
    (stream,) = heard.stream
    assert stream.status == 0
    assert "lost 0.0 s" in stream.errors.splitlines()[-1]
    said = [re.split(r"SPEAKER_0([01])", line)[1:] for line in stream.output.splitlines()]
    # Two voices take turns.
    assert [speaker for speaker, _ in said] == ["0", "1", "0", "1", "0"]
    text = " ".join(words for _, words in said)
    assert word_accuracy(sample_text(), text) >= AT_LEAST


def test_the_recogniser_s_processes_end_with_the_server(heard: Heard) -> None:
    assert len(heard.recogniser) >= 2
    assert all(map(ended, heard.recogniser))
    assert heard.server_status == 0
    assert "Traceback" not in heard.server_said


def test_a_language_that_the_recogniser_does_not_know_is_refused_at_once(heard: Heard) -> None:
    ((closed, messages),) = heard.french
    assert closed is not None
    assert (closed.code, closed.reason.partition(":")[0]) == (1008, "language")
    assert messages == []
    # The one in British English, and the sample's.
    assert heard.server_said.count(" session_started ") == 2


def test_the_demo_prints_segments_and_a_summary_with_nothing_lost(heard: Heard) -> None:
    (demo,) = heard.demo
    assert demo.status == 0
    assert "Traceback" not in demo.errors
    segments, _, summary = demo.output.rpartition("\n\n")
    assert re.findall(r"SPEAKER_\d\d", segments) == [f"SPEAKER_0{n}" for n in (0, 1, 0, 1, 0)]
    rows = dict(line.split("  ", maxsplit=1) for line in summary.splitlines())
    assert {name: value.strip() for name, value in rows.items()}["seconds lost"] == "0"
    assert rows["audio"].strip() == "11.2 s"
    assert rows["speakers"].strip() == "2; the recording has 2"
    assert int(rows["segments"]) == len(segments.splitlines())
    assert int(rows["words right"].strip().rstrip("%")) >= 100 * AT_LEAST


def test_a_demo_whose_lines_are_cut_tells_the_same_words_by_the_same_speakers(
    heard: Heard,
) -> None:
    (unplugged,) = heard.unplugged_demo
    assert unplugged.status == 0, unplugged.errors
    assert unplugged.errors.count("the connection was lost, and is back after") == 3
    segments, _, summary = unplugged.output.rpartition("\n\n")
    turns = [number for number, _ in groupby(re.findall(r"SPEAKER_(\d\d)", segments))]
    assert turns == ["00", "01", "00", "01", "00"]
    rows = dict(line.split("  ", maxsplit=1) for line in summary.splitlines())
    assert rows["cut"].strip() == "3 times, on both sides of the server"
    assert rows["seconds lost"].strip() == "0"
    assert int(rows["words right"].strip().rstrip("%")) >= 100 * AT_LEAST


def test_a_demo_that_nobody_reads_ends_in_one_clear_line(heard: Heard) -> None:
    (demo,) = heard.unread_demo
    assert demo.status == 1
    assert demo.errors.splitlines()[-1] == "omi-rt: standard output was closed"


async def test_an_interrupted_demo_ends_with_status_130() -> None:
    async with running("demo") as program:
        await program.says("streaming ")
        program.signal(signal.SIGINT)
        assert await program.status() == 130
    assert "Traceback" not in program.errors


def sent_seconds(said: bytes) -> float:
    """The last figure that a progress has shown, which may leave out any; 0.0 where it has shown none."""
    return max(map(float, re.findall(rb" (\d+\.\d) of 11\.2 s sent", said)), default=0.0)


async def test_an_interrupted_demo_leaves_nothing_of_its_progress_beside_what_is_logged() -> None:
    ours, theirs = pty.openpty()
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "omi_rt", "demo"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "COLUMNS": "80", "TERM": "xterm", "DEEPGRAM_API_KEY": ""},
        preexec_fn=become_foreground,
    )
    os.close(theirs)
    said = b""
    with trio.fail_after(30):
        # Long after the end of an utterance: what is cut off here is logged as lost.
        while sent_seconds(said) < 4.0:
            said += await trio.to_thread.run_sync(os.read, ours, 65_536)
        os.write(ours, b"\x03")
        while data := await trio.to_thread.run_sync(read_end_of_terminal, ours):
            said += data
        assert await process.wait() == 130
    os.close(ours)
    screen = screen_after(said.decode(), 80)
    assert any("audio_lost" in line for line in screen)
    assert not any("s sent" in line for line in screen)


async def test_the_recogniser_s_processes_end_when_the_server_is_killed() -> None:
    async with serving() as server:
        recogniser = descendants_of(server.program.pid)
        assert len(recogniser) >= 2
        server.program.signal(signal.SIGKILL)
        assert await server.program.status() == -signal.SIGKILL
        await wait_ended(recogniser, 5)
