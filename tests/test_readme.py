"""The contract that README gives to whoever writes a client: each example is what is really sent."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omi_rt.codecs.wav import WavAudio, write_wav
from omi_rt.deepgram.primer import NO_PROFILE, NO_ROOM, NOT_HEARD, NOT_RECOGNISED, ONE_SPEAKER
from omi_rt.fake import FaultScript, Options, random_script, synthesise
from omi_rt.fake.faults import Close, Refuse, Say
from omi_rt.local.wire import progress_message
from omi_rt.server.line import UNDECODABLE_IN_A_ROW
from tests.harness import Device, World, listening_server, running_server, unreachable, words_of
from tests.processes_e2e import KEY, environment, fake_in_process, serving
from tests.test_identities import ANNA, BEN, STRANGER, USER, conversation, stored

if TYPE_CHECKING:
    from trio.testing import MockClock

README = (Path(__file__).parent.parent / "README.md").read_text()
RATE = 8000


def section(title: str) -> str:
    """The text of README from a heading to the next of its own level."""
    level, _, _ = title.partition(" ")
    (found,) = re.findall(
        rf"^{re.escape(title)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", README, re.DOTALL | re.MULTILINE
    )
    return str(found)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def examples() -> list[Any]:
    """Every JSON example, of messages that the server sends."""
    (block,) = blocks(section("### What the server sends"), "json")
    return [json.loads(line) for line in block.splitlines()]


def shape(value: Any) -> Any:
    """The keys in their order, and the JSON types: 1 and 1.0 are not the same to every client."""
    if isinstance(value, dict):
        return [(key, shape(each)) for key, each in value.items()]
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def kind(message: Any) -> tuple[Any, ...]:
    """What distinguishes a message for a client."""
    if isinstance(message, list):
        return ("segments", "channel" in message[0])
    return (message["type"], message.get("status"))


async def play(device: Device, seconds: float = 20.0, rate: int = RATE, channels: int = 1) -> None:
    script = random_script(Random(3), seconds, channels=channels)
    await device.stream_audio(synthesise(script, rate), rate * 2 * channels)
    await device.finish()


async def messages_of_a_comeback() -> list[Any]:
    """What a device gets that loses its connection, when it comes back and when it comes too late."""
    async with listening_server() as (world, _), world.device(resume="old") as first:
        await first.until(lambda: "ready" in first.statuses())
        await first.stream_audio(synthesise(random_script(Random(3), 60.0), RATE), RATE * 2)
        await first.websocket.drained()
        await trio.testing.wait_all_tasks_blocked()
        await trio.aclose_forcefully(first.stream)
        # As if it had told more than it keeps.
        first.session.outbox._let_go_of_oldest()
        secret = next(m["resume"] for m in first.messages if "resume" in m)
        async with world.device(resume=secret, after=0, acknowledge="true") as second:
            second.send(bytes(RATE))
            await trio.sleep(3)
            await second.finish()
    return [*first.raw, *second.raw]


async def all_messages() -> list[Any]:
    """What devices get in sessions in which everything happens."""
    messages: list[Any] = []
    faults = FaultScript.of([], [Close(code=1011, reason="net0001", after_audio=60.0)])
    # More speakers than are heard again before the audio that follows a lost connection.
    script = conversation((STRANGER, USER, ANNA, BEN), 120.0)
    async with (
        listening_server(profiles=stored(), options=Options(seed=2), faults=faults) as (world, _),
        world.device() as device,
    ):
        await device.stream_audio(synthesise(script, RATE), RATE * 2)
        await device.finish()
        messages += device.raw
    async with listening_server(profiles=stored(user=False)) as (world, _):
        async with world.device(channels=2) as device:
            device.send('{"type":"KeepAlive"}')
            await play(device, channels=2)
            messages += device.raw
        async with world.device(codec="opus", sample_rate=16000) as device:
            for _ in range(UNDECODABLE_IN_A_ROW):
                device.send(b"\xff\xff\xff")
            await device.finish()
            messages += device.raw
    async with listening_server(profiles=stored(user=False)) as (world, _):
        async with world.device(interim="true") as device:
            script = conversation((STRANGER, USER), 45.0)
            await device.stream_audio(synthesise(script, RATE), RATE * 2)
            for number, person in ((1, "anna"), (7, "ben")):
                device.send(
                    json.dumps(
                        {"type": "speaker_assigned", "speaker_id": number, "person_id": person}
                    )
                )
            await device.finish()
            messages += device.raw
        async with world.device() as device:
            script = conversation((STRANGER, USER), 9.0)
            await device.stream_audio(synthesise(script, RATE), RATE * 2)
            device.send('{"type":"speaker_assigned","speaker_id":0,"person_id":"user"}')
            await device.finish()
            messages += device.raw
    async with running_server(unreachable) as world:
        async with world.device() as device:
            await play(device)
            messages += device.raw
        messages += await messages_to_who_transcribes(world)
    late = [Say(text=progress_message(seconds_worked=1.0, seconds_behind=5.4), after_audio=5.0)]
    late += [Say(text=progress_message(seconds_worked=9.0, seconds_behind=0.5), after_audio=9.0)]
    async with listening_server(faults=FaultScript.of(late)) as (world, _):
        async with world.device() as device:
            await play(device)
            messages += device.raw
    messages += await messages_of_a_comeback()
    refused = FaultScript.of([Refuse(status=401)])
    async with listening_server(faults=refused) as (world, _), world.device() as device:
        await device.ended()
        messages += device.raw
    return messages


async def messages_to_who_transcribes(world: World) -> list[Any]:
    """What an app is told that transcribes by itself, and not well."""
    headers = {"Authorization": "Bearer u1"}
    query = {"custom_stt": "enabled"}
    async with world.client("/v4/listen", query, headers=headers, is_loopback=True) as device:
        segment = {"text": "Good morning.", "start": 2.0, "end": 1.0}
        device.send(json.dumps({"type": "suggested_transcript", "segments": [segment]}))
        await device.finish()
        return device.raw


async def test_each_example_of_a_message_is_what_is_sent_and_none_is_missing(
    autojump_clock: MockClock,
) -> None:
    sent = await all_messages()
    shown = examples()
    for example in shown:
        alike = [message for message in sent if kind(message) == kind(example)]
        assert alike, f"never sent: {example}"
        assert shape(example) in [shape(message) for message in alike], (example, alike[0])
    assert {kind(message) for message in sent} == {kind(example) for example in shown}


async def test_the_reasons_that_readme_names_are_those_that_are_sent(
    autojump_clock: MockClock,
) -> None:
    text = section("### What the server sends") + section("### How it ends")
    for message in await all_messages():
        if isinstance(message, dict) and message["type"] == "session_ended":
            assert f"`{message['reason']}`" in text
    words = " ".join(text.split())
    for reason in (NO_PROFILE, NOT_RECOGNISED, NOT_HEARD, NO_ROOM, ONE_SPEAKER):
        assert f"`{reason}`" in words


def logged_events() -> set[str]:
    """The names of all events that the package's own loggers write, or `announce` does."""
    package = Path(__file__).parent.parent / "omi_rt"
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            named = method in {"debug", "info", "warning", "error", "exception"}
            is_announced = isinstance(node.func, ast.Name) and node.func.id == "announce"
            event = node.args[1:2] if is_announced else node.args[:1] if named else []
            # The embedded recogniser's process and its parent log sentences.
            if event and isinstance(event[0], ast.Constant) and " " not in str(event[0].value):
                found.add(str(event[0].value))
    return found


def test_readme_names_every_event_of_the_log_and_no_other() -> None:
    rows = re.findall(r"^\| (`.*?) \|", section("### Logs"), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == logged_events()


def a_recording(tmp_path: Path) -> tuple[Path, list[str]]:
    script = random_script(Random(3), 4.0)
    path = tmp_path / "a.wav"
    path.write_bytes(write_wav(WavAudio(16000, 1, synthesise(script, 16000))))
    return path, script.transcript()


async def run_client(command: list[str], recording: Path, transcript: list[str]) -> None:
    async with (
        fake_in_process() as (_fake, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY) as server,
    ):
        with trio.fail_after(40):
            done = await trio.run_process(
                [*command, server.url, str(recording)],
                env=environment({}),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
    output = done.stdout.decode()
    assert done.returncode == 0, done.stderr.decode()
    spoken = [json.loads(line) for line in re.findall(r"^\{.*\}$", output, re.MULTILINE)]
    assert spoken == [], "segments are shown as text"
    said = re.findall(r"^ *\d+\.\d s  SPEAKER_\d\d  (.*)$", output, re.MULTILINE)
    assert words_of([{"text": " ".join(said)}]) == transcript
    assert re.search(r"^4\.0 s received, 0\.0 s lost$", output, re.MULTILINE), output


@pytest.mark.realtime
async def test_the_client_in_python_works_as_it_is_printed(tmp_path: Path) -> None:
    (program,) = blocks(section("### A client"), "python")
    path = tmp_path / "client.py"
    path.write_text(program)
    await run_client([sys.executable, str(path)], *a_recording(tmp_path))


def node_command() -> list[str] | None:
    """How to run Node with its own WebSocket, which it has without a flag from version 22 on."""
    node = shutil.which("node")
    if node is None:
        return None
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
    major, minor = map(int, version.stdout.strip().lstrip("v").split(".")[:2])
    if major >= 22:
        return [node]
    return [node, "--experimental-websocket"] if (major, minor) >= (20, 10) else None


@pytest.mark.realtime
@pytest.mark.skipif(node_command() is None, reason="no Node of version 20.10 or later")
async def test_the_client_in_javascript_works_as_it_is_printed(tmp_path: Path) -> None:
    (program,) = blocks(section("### A client"), "js")
    path = tmp_path / "client.mjs"
    path.write_text(program)
    command = node_command()
    assert command is not None
    await run_client([*command, str(path)], *a_recording(tmp_path))


DRIVER = """
import sys, time, wave

url = url.replace("ws://127.0.0.1:8080/listen", sys.argv[1])
with wave.open(sys.argv[2]) as wav:
    pcm = wav.readframes(wav.getnframes())
heard = []
show = lambda start, speaker, text: heard.append((start, text))
socket, first = reconnect()
for start in range(0, len(pcm), 3200):
    keep += pcm[start : start + 3200]
    if start in (32000, 64000):
        socket.socket.close()
        socket, first = reconnect()
    for message in first:
        take(message, show)
    first = []
    socket.send(bytes(keep[(sent - base) * 2 :]))
    sent = base + len(keep) // 2
    time.sleep(0.1)
    while True:
        try:
            take(json.loads(socket.recv(timeout=0)), show)
        except TimeoutError:
            break
socket.send(json.dumps({"type": "CloseStream"}))
for message in socket:
    take(json.loads(message), show)
print(json.dumps(heard))
"""


@pytest.mark.realtime
async def test_the_core_of_a_client_that_comes_back_works_as_it_is_printed(tmp_path: Path) -> None:
    (core,) = blocks(section("### A client that comes back"), "python")
    path = tmp_path / "client.py"
    path.write_text(core + DRIVER)
    recording, transcript = a_recording(tmp_path)
    async with (
        fake_in_process() as (_fake, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY) as server,
    ):
        with trio.fail_after(40):
            done = await trio.run_process(
                [sys.executable, str(path), server.url, str(recording)],
                env=environment({}),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        assert server.program.errors.count("session_resumed") == 2
    assert done.returncode == 0, done.stderr.decode()
    heard = json.loads(done.stdout)
    assert words_of([{"text": " ".join(text for _, text in heard)}]) == transcript


def test_the_two_cores_say_the_same() -> None:
    text = section("### A client that comes back")
    (python,), (js,) = blocks(text, "python"), blocks(text, "js")
    for word in ("audio_received", "finalised", "resumed", "received", "resume_unknown", "resume"):
        assert word in python
        assert word in js
