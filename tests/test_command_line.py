"""The command line itself: its help, what it loads, its table of settings, and what it cannot bind."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
import trio

from omi_rt.cli import main
from omi_rt.fake import FakeDeepgram, synthesise
from omi_rt.fake.serve import serve_fake
from omi_rt.net.listeners import BindFailed, connectable, open_listeners
from omi_rt.settings_table import settings_lines, settings_table
from tests.harness import words_of
from tests.processes_e2e import KEY, NOWHERE, ServerProgram, environment, run, running
from tests.test_e2e_serve import TALK

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAVY = {
    "attrs",
    "google",
    "httpx",
    "numpy",
    "opuslib",
    "orjson",
    "pocketsphinx",
    "prometheus_client",
    "rich",
    "soundfile",
    "soxr",
    "ssl",
    "structlog",
    "trio",
    "websockets",
}


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command line that asks for help, subcommands included."""
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


COMMANDS = list(commands(main))


def output_of(*arguments: str, columns: int = 80) -> str:
    code = f"from omi_rt.cli import main; main({list(arguments)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment({"COLUMNS": str(columns)}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_after_h_as_after_help(arguments: tuple[str, ...]) -> None:
    text = output_of(*arguments, "-h")
    assert text.startswith("Usage: ")
    assert text == output_of(*arguments, "--help")


@pytest.mark.parametrize("columns", [60, 80])
def test_no_line_of_the_help_is_cut(columns: int) -> None:
    for arguments in [(), ("profile",)]:
        text = output_of(*arguments, "-h", columns=columns)
        assert "..." not in text.partition("Options:")[2]
        assert max(map(len, text.splitlines())) <= columns
    listed = " ".join(output_of("-h").split())
    assert "Serve, stream a recorded sample, print the segments and a summary." in listed
    assert (
        "Store speech profiles of the user UID or, with --person, of somebody they know." in listed
    )


@pytest.mark.parametrize("arguments", [["--version"], ["-h"], ["stream", "-h"], ["serve", "-h"]])
def test_what_only_prints_a_text_loads_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import json, sys; from omi_rt.cli import main; "
        f"main({arguments!r}, standalone_mode=False); print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment({}),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert "click" in loaded
    assert loaded & HEAVY == set()


def test_a_server_loads_what_checks_signatures_only_for_a_login_that_has_some() -> None:
    code = (
        "import json, sys, trio, omi_rt.server.main; from omi_rt.auth.login import open_login; "
        "from omi_rt.settings import load_settings; settings = load_settings(json.loads(sys.argv[1]))\n"
        "async def main():\n"
        "    async with open_login(settings, None):\n"
        "        print(json.dumps([name for name in sys.modules if name.count('.') == 0]))\n"
        "trio.run(main)"
    )

    def loaded(**settings: str) -> set[str]:
        command = [sys.executable, "-c", code, json.dumps(settings)]
        done = subprocess.run(
            command, env=environment({}), capture_output=True, text=True, check=True
        )
        return set(json.loads(done.stdout)) & {"cryptography", "jwt"}

    assert loaded() == set()
    emulator = {"FIREBASE_AUTH_EMULATOR_HOST": "127.0.0.1:9099", "OMI_RT_FIREBASE_PROJECT": "p"}
    assert loaded(OMI_RT_AUTH="firebase", **emulator) == {"cryptography", "jwt"}


@pytest.fixture
def full() -> Iterator[int]:
    """Yield a file descriptor on a disk without room."""
    with Path("/dev/full").open("wb") as file:
        yield file.fileno()


@pytest.mark.realtime
@pytest.mark.parametrize("arguments", ["--version", "-h", "serve -h", "settings"])
async def test_a_full_disk_is_one_line_and_status_1(arguments: str, full: int) -> None:
    finished = await run(*arguments.split(), stdout=full)
    reason = "omi-rt: cannot write to standard output: no space left on device\n"
    assert (finished.status, finished.errors) == (1, reason)


@pytest.mark.realtime
async def test_a_reader_of_the_settings_that_leaves_early_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        finished = await run("settings", stdout=writing)
    finally:
        os.close(writing)
    assert (finished.status, finished.errors) == (1, "")


@pytest.mark.realtime
@pytest.mark.parametrize("size", [100, 20_000])
async def test_a_profile_that_can_not_be_written_out_is_one_line_and_status_1(
    tmp_path: Path, full: int, size: int
) -> None:
    store = tmp_path / "u1"
    store.mkdir()
    (store / "speech_profile.wav").write_bytes(bytes(size))
    finished = await run("profile", "get", "u1", "-", stdout=full, OMI_RT_PROFILE_DIR=str(tmp_path))
    reason = "omi-rt: cannot write the profile: no space left on device\n"
    assert (finished.status, finished.errors) == (1, reason)


# The settings.


@pytest.mark.realtime
async def test_the_settings_are_printed_a_line_each_and_no_secret_with_them() -> None:
    # Bad ones too: whoever has set them wrongly is who needs the table.
    finished = await run(
        "settings", DEEPGRAM_API_KEY=KEY, OMI_RT_LOG_KEY=KEY, OMI_RT_DRAIN_SECONDS=KEY
    )
    assert (finished.status, finished.errors) == (0, "")
    rows = [re.split(r" {2,}", line) for line in finished.output.splitlines()]
    shown = [tuple(cell for cell in row if cell) for row in rows[1:]]
    assert rows[0] == ["variable", "default", "meaning"]
    assert shown == [tuple(cell for cell in row if cell) for row in settings_table()]


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
def test_on_a_terminal_the_table_is_wrapped_between_words(width: int) -> None:
    lines = settings_lines(width)
    # An address is one word, and a name stands beside its default.
    most = max(width, 30)
    assert all(len(line) <= most or " " not in line.strip() for line in lines)
    words = " ".join(lines).split()
    wanted = " ".join(["variable default meaning", *(" ".join(row) for row in settings_table())])
    assert words == wanted.split()
    names = [name for name, _, _ in settings_table()]
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["variable", *names]


@pytest.mark.realtime
async def test_the_terminal_is_asked_for_its_width() -> None:
    ours, theirs = pty.openpty()
    try:
        finished = await run("settings", stdout=theirs, COLUMNS="60")
        assert finished.status == 0
        text = os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert 40 < max(map(len, text.splitlines())) <= 60


# Addresses.


@pytest.mark.realtime
@pytest.mark.parametrize("command", ["serve", "fake-deepgram"])
async def test_a_port_in_use_is_named_with_what_to_do(command: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finished = await run(command, "--port", str(port), DEEPGRAM_URL=NOWHERE)
    assert (finished.status, finished.output) == (1, "")
    assert finished.errors == (
        f"omi-rt: cannot bind 127.0.0.1:{port}: in use; choose another with --port\n"
    )


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [
        ("192.0.2.1", 8080, "192.0.2.1:8080: this machine has no such address; choose .* --host"),
        ("2001:db8::1", 80, r"\[2001:db8::1\]:80: this machine has no such address; .* --host"),
        ("no-such-host.invalid", 1, "no-such-host.invalid:1: no such host; .* --host"),
    ],
)
async def test_an_address_that_can_not_be_had_is_named_with_what_to_do(
    host: str, port: int, says: str
) -> None:
    with pytest.raises(BindFailed, match=f"^cannot bind {says}$"):
        await open_listeners(host, port)


async def test_a_port_that_is_not_permitted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(trio, "open_tcp_listeners", refuse)
    with pytest.raises(
        BindFailed, match=r"127\.0\.0\.1:80: not permitted; .* --port, 1024 or more$"
    ):
        await open_listeners("127.0.0.1", 80)


def test_what_is_bound_to_every_address_is_found_on_loopback() -> None:
    hosts = ["127.0.0.1", "0.0.0.0", "::", "::1", "fd00::1", "name"]
    found = ["127.0.0.1", "127.0.0.1", "[::1]", "[::1]", "[fd00::1]", "name"]
    assert list(map(connectable, hosts)) == found


# The fake.


@pytest.mark.realtime
@pytest.mark.parametrize("keys", [(), ("--key", KEY)], ids=["any key", "one key"])
async def test_the_line_of_the_fake_works_as_it_is_pasted(keys: tuple[str, ...]) -> None:
    async with running("fake-deepgram", *keys) as fake:
        (line,) = await fake.says(r"(?m)^(DEEPGRAM_URL=.*)$")
        assert line.endswith(f" {shlex.quote(sys.executable)} -m omi_rt serve")
        async with trio.open_nursery() as nursery:
            start = partial(
                trio.run_process,
                ["bash", "-c", f"{line} --port 0"],
                env=environment({}),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
            process: trio.Process = await nursery.start(start)
            assert process.stderr is not None
            said = ""
            with trio.fail_after(20):
                while not (ready := re.search(r"\(devices: (ws://[^:]+:(\d+)/\S+)\)", said)):
                    data = await process.stderr.receive_some()
                    assert data, said
                    said += data.decode()
            server = ServerProgram(fake, int(ready[2]), ready[1])
            async with server.device(codec="pcm16", sample_rate=16_000) as device:
                await device.stream_audio(synthesise(TALK, 16_000), 32_000, speed=1.2)
                await device.finish(20)
                assert words_of(device.segments) == TALK.transcript()
            nursery.cancel_scope.cancel()


async def test_the_key_in_the_line_is_one_that_passes_quoted_for_a_shell(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve_nothing(
        _self: FakeDeepgram, _host: str, _port: int, **started: trio.TaskStatus[int]
    ) -> None:
        started["task_status"].started(77)
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(FakeDeepgram, "serve_tcp", serve_nothing)
    lines: list[str] = []
    for keys in (frozenset[str](), frozenset({"it's", "z"})):
        await serve_fake("0.0.0.0", 0, None, None, keys, lines.append, serve_command="x serve")
    assert lines[::2] == ["fake Deepgram is ready on ws://127.0.0.1:77; to use it, paste:"] * 2
    url = "DEEPGRAM_URL=ws://127.0.0.1:77"
    assert shlex.split(lines[1]) == [url, "DEEPGRAM_API_KEY=any-key", "x", "serve"]
    assert shlex.split(lines[3]) == [url, "DEEPGRAM_API_KEY=it's", "x", "serve"]
