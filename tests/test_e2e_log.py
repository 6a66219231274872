"""Programs whose standard error or output cannot be written: no session and no command falls."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from socket import socket
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
import trio

from omi_rt.fake import Script, synthesise
from omi_rt.fake.speech import utterance
from tests.harness import words_of
from tests.processes_e2e import (
    KEY,
    Program,
    ServerProgram,
    environment,
    fake_in_process,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.realtime

TALK = Script(utterance("amber bako celu dorin", 1, 0.2), 1.5)
PCM = synthesise(TALK, 16_000)


def free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def deaf_server(redirection: str, url: str) -> AsyncIterator[ServerProgram]:
    """A server that says nothing to us: its standard error is what the shell's words say."""
    port = free_port()
    command = f'exec "{sys.executable}" -m omi_rt serve --port {port} {redirection}'
    settings = {"DEEPGRAM_URL": url, "DEEPGRAM_API_KEY": KEY, "OMI_RT_LOG_LEVEL": "debug"}
    with TemporaryDirectory() as directory:
        process = await trio.lowlevel.open_process(
            ["bash", "-c", command],
            env=environment(settings),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        server = ServerProgram(Program(process), port, f"ws://127.0.0.1:{port}/listen")
        try:
            with trio.fail_after(20):
                while True:
                    try:
                        await server.get("/healthz")
                    except OSError:
                        await trio.sleep(0.1)
                    else:
                        break
            yield server
            process.terminate()
            with trio.fail_after(20):
                assert await process.wait() == 0
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()


async def lost_lines(server: ServerProgram) -> float:
    text = (await server.get("/metrics"))[2]
    (value,) = re.findall(r"^omi_rt_log_lines_lost_total (\S+)$", text, re.MULTILINE)
    return float(value)


async def a_whole_session(server: ServerProgram) -> None:
    async with server.device(codec="pcm16", sample_rate=16_000) as device:
        await device.stream_audio(PCM, 32_000, speed=1.2)
        ended = await device.finish(30)
        assert words_of(device.segments) == TALK.transcript()
        assert ended["lost"] == 0


@pytest.mark.parametrize(
    "redirection", ["2>/dev/full", "2>&-", "2>&- >&- <&-", "2> >(exec head -c 10 >/dev/null)"]
)
async def test_a_server_whose_log_can_not_be_written_serves_on(redirection: str) -> None:
    async with (
        fake_in_process() as (_fake, url),
        deaf_server(redirection, url) as server,
    ):
        await a_whole_session(server)
        async with server.device(codec="mp3") as device:
            await device.ended(10)
        await a_whole_session(server)
        assert await lost_lines(server) > 3


async def test_a_reader_of_the_log_that_rests_holds_up_nobody() -> None:
    # A pipe that is full from the start, and that somebody has open for reading all the time.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    os.set_inheritable(writing, True)
    path = f"/proc/{os.getpid()}/fd/{writing}"
    try:
        async with (
            fake_in_process() as (_fake, url),
            deaf_server(f"2>{path}", url) as server,
        ):
            await a_whole_session(server)
            assert await lost_lines(server) == 0, "they wait"
            os.set_blocking(reading, False)
            text = b""

            def is_there() -> bool:
                nonlocal text
                with suppress(BlockingIOError):
                    text += os.read(reading, 1 << 20)
                return b"session_ended" in text

            await wait_until(is_there, 10)
            lines = text.replace(b"x", b"").decode().splitlines()
            assert "is ready on" in lines[0]
            assert "session_started" in lines[1]
    finally:
        os.close(reading)
        os.close(writing)


async def test_the_log_is_complete_when_a_server_ends() -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "log"
        async with (
            fake_in_process() as (_fake, url),
            deaf_server(f"2>{path}", url) as server,
        ):
            await a_whole_session(server)
        lines = path.read_text().splitlines()
        assert "is ready on" in lines[0]
        assert sum("draining" in line for line in lines) == 1
        assert sum("session_ended" in line for line in lines) == 1
