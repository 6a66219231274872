"""The embedded recogniser's processes: started, ended, restarted, and never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from omi_rt.core.errors import HandshakeFailed
from omi_rt.local import __main__ as recogniser
from omi_rt.local import process
from omi_rt.local.calibration import measure_speech_share
from omi_rt.local.choice import Choice
from omi_rt.local.errors import RecogniserError, RecogniserNotInstalled
from omi_rt.local.process import Room, run_local_recogniser
from tests.local_client import CLOSE_STREAM, FINALIZE, listening
from tests.processes import children_of, descendants_of, wait_ended

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.realtime

SILENCE = bytes(32_000)
PARENT = """
import trio
from omi_rt.local.process import run_local_recogniser

async def main():
    async with trio.open_nursery() as nursery:
        print(await nursery.start(run_local_recogniser), flush=True)

trio.run(main)
"""
WITHOUT_POCKETSPHINX = """
import sys
sys.modules["pocketsphinx"] = None
from omi_rt.local.worker import main
sys.exit(main())
"""


async def is_served(url: str) -> bool:
    async with listening(url) as client:
        client.send(SILENCE, CLOSE_STREAM)
        return (await client.read_to_end()).code == 1000


def fake_python(tmp_path: Path, script: str) -> str:
    """Return a command that does what ``script`` says in place of the interpreter."""
    command = tmp_path / "python"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    return str(command)


async def test_cancelling_ends_every_process() -> None:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(run_local_recogniser)
        (server,) = children_of(os.getpid())
        async with listening(url) as client:
            client.send(SILENCE, FINALIZE)
            await client.receive("Results")
            started = {server} | descendants_of(server)
            assert len(started) >= 2
            nursery.cancel_scope.cancel()
    await wait_ended(started, 2)


async def test_a_client_is_told_when_the_recogniser_ends() -> None:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(run_local_recogniser)
        async with listening(url) as client:
            client.send(SILENCE, FINALIZE)
            await client.receive("Results")
            (server,) = children_of(os.getpid())
            os.kill(server, signal.SIGTERM)
            assert (await client.read_to_end()).code == 1001
        nursery.cancel_scope.cancel()


async def test_a_connection_too_many_is_refused_until_a_place_is_free() -> None:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(partial(run_local_recogniser, max_connections=1))
        async with listening(url) as client:
            with pytest.raises(HandshakeFailed) as refused:
                await is_served(url)
            assert refused.value.status == 429
            client.send(CLOSE_STREAM)
            await client.read_to_end()
        with trio.fail_after(20):
            while True:
                try:
                    assert await is_served(url)
                    break
                except HandshakeFailed:
                    await trio.sleep(0.02)
        nursery.cancel_scope.cancel()


async def test_a_worker_that_dies_ends_its_own_connection_alone() -> None:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(run_local_recogniser)
        (server,) = children_of(os.getpid())
        bystanders_worker = children_of(server)
        async with listening(url) as bystander:
            bystander.send(SILENCE, FINALIZE)
            await bystander.receive("Results")
            async with listening(url) as client:
                client.send(SILENCE, FINALIZE)
                await client.receive("Results")
                # The client's own, and one that may be waiting for work or loading.
                for worker in children_of(server) - bystanders_worker:
                    os.kill(worker, signal.SIGKILL)
                closed = await client.read_to_end()
                assert closed.code == 1011
                assert "NET-0000" in closed.reason
            bystander.send(SILENCE, CLOSE_STREAM)
            assert (await bystander.read_to_end()).code == 1000
        assert await is_served(url)
        nursery.cancel_scope.cancel()


async def test_nothing_outlives_a_parent_that_was_killed() -> None:
    parent = await trio.lowlevel.open_process(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    async with parent.stdout:
        with trio.fail_after(20):
            url = (await parent.stdout.receive_some()).decode().strip()
        async with listening(url) as client:
            client.send(SILENCE, FINALIZE)
            await client.receive("Results")
            started = descendants_of(parent.pid)
            assert len(started) >= 2
            parent.kill()
            await parent.wait()
            await wait_ended(started, 5)


async def test_a_recogniser_that_dies_is_started_again_at_the_same_port(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(run_local_recogniser)
        (server,) = children_of(os.getpid())
        os.kill(server, signal.SIGKILL)
        await wait_ended({server}, 5)
        with trio.fail_after(20):
            while True:
                try:
                    assert await is_served(url)
                    break
                except (OSError, HandshakeFailed):
                    await trio.sleep(0.02)
        assert children_of(os.getpid()) != {server}
        nursery.cancel_scope.cancel()
    assert "the embedded recogniser ended (exit status -9)" in caplog.text


async def test_it_is_given_up_when_it_dies_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    script = f"echo started >> {count}; echo 12345; exit 3"
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path, script))
    monkeypatch.setattr(process, "FIRST_PAUSE", 0.001)
    with pytest.RaisesGroup(
        pytest.RaisesExc(RecogniserError, match=r"does not stay up \(exit status 3\)")
    ):
        async with trio.open_nursery() as nursery:
            assert await nursery.start(run_local_recogniser) == "ws://127.0.0.1:12345"
    assert len(count.read_text().splitlines()) == 1 + process.MAX_RESTARTS


async def test_what_it_can_carry_is_known_while_it_runs_and_not_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "echo 12345; echo carries 3; echo nonsense; read line; exit 3"
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path, script))
    room = Room()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(run_local_recogniser, room=room))
        with trio.fail_after(5):
            while room.carried is None:  # noqa: ASYNC110 - the process sets no trio.Event
                await trio.sleep(0.01)
        assert room.carried == 3
        nursery.cancel_scope.cancel()
    assert room.carried is None


async def test_what_speech_costs_is_measured_and_decides_how_much_is_carried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    share = await measure_speech_share(Choice())
    assert share is not None
    assert share > 0.0

    async def measure(_choice: Choice) -> float:
        await trio.lowlevel.checkpoint()
        return 1e-9

    said: list[str] = []
    monkeypatch.setattr(recogniser, "measure_speech_share", measure)
    monkeypatch.setattr(recogniser, "_say", said.append)
    monkeypatch.setattr(recogniser, "_cancel_at_end_of_input", _sleep_forever)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(recogniser.serve, 0, asked="off", wants_speakers=False))
        with trio.fail_after(30):
            while "carries 64 measured" not in said:  # noqa: ASYNC110 - a list tells nobody
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert said[0].startswith("uses ")
    assert said[1].isdecimal()
    assert said[2].startswith("carries ")


async def _sleep_forever(_scope: trio.CancelScope) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", r"did not start \(exit status 3\)"),
        ("echo nonsense; exit 0", r"did not start \(exit status 0\)"),
        ("exec sleep 60", r"did not start \(not ready within 0.2 s\)"),
    ],
)
async def test_one_that_never_gets_ready_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path, script))
    monkeypatch.setattr(process, "START_SECONDS", 0.2)
    with trio.fail_after(5), pytest.raises(RecogniserError, match=message):
        await run_local_recogniser()
    assert children_of(os.getpid()) == set()


async def test_without_any_recogniser_it_is_said_how_to_install_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(RecogniserNotInstalled, match=r"pip install 'omi-rt\[local\]'"):
        await run_local_recogniser()


def test_a_worker_without_pocketsphinx_says_so_in_one_line() -> None:
    worker = subprocess.run(
        [sys.executable, "-c", WITHOUT_POCKETSPHINX],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert worker.returncode == 1
    assert worker.stdout == ""
    assert worker.stderr == (
        "omi-rt: the embedded recogniser is not installed: pip install 'omi-rt[local]'\n"
    )


@pytest.mark.parametrize("how", ["end of input", "SIGTERM"])
def test_the_server_ends_well_when_it_is_told_to(how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "omi_rt.local"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdin is not None
            assert server.stdout is not None
            assert server.stdout.readline().startswith("uses ")
            assert server.stdout.readline().strip().isdecimal()
            if how == "SIGTERM":
                server.terminate()
            else:
                server.stdin.close()
            assert server.wait(timeout=5) == 0
            said = server.stdout.read().splitlines()
            assert {line.partition(" ")[0] for line in said} <= {"carries"}
            assert server.stderr is not None
            assert server.stderr.read() == ""
        finally:
            server.kill()


def test_a_port_that_is_taken_is_an_error_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = subprocess.run(
            [sys.executable, "-m", "omi_rt.local", "--port", str(taken.getsockname()[1])],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    assert (server.returncode, server.stdout) == (1, "")
    assert server.stderr.startswith("omi-rt: the embedded recogniser failed: ")
    assert server.stderr.count("\n") == 1
