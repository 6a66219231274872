"""What an operator reads in the log: who, in seconds, one line for each thing that happens."""

from __future__ import annotations

import hmac
import json
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omi_rt.fake import FaultScript, Options, Script, random_script, synthesise
from omi_rt.fake.faults import Close, Refuse, Silence, Unreachable
from omi_rt.log import IDS, announce, configure_logging, get_logger, pseudonym
from tests.harness import listening_server, running_server, unreachable
from tests.processes_e2e import KEY, fake_in_process, serving
from tests.test_identities import STRANGER, USER, conversation, stored

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.harness import Device

RATE = 8000


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The log lines so far, taken apart; each is one JSON object."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def named(log: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in log if line["event"] == event]


async def play(device: Device, script: Script) -> dict[str, Any]:
    await device.stream_audio(synthesise(script, RATE), RATE * 2)
    return await device.finish()


def a_script(seconds: float) -> Script:
    return random_script(Random(3), seconds)


# The form.


def test_ids_come_first_and_zeros_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    get_logger(uid_hash="b", session="a").info(
        "happened", zero=0, nothing=None, empty="", none_at_all=0.0, no=False, request_id="d",
        seconds=1.23456, peer="c", last=1,
    )  # fmt: skip
    (line,) = lines(capsys)
    assert list(line) == ["timestamp", "level", "event", *IDS, "no", "seconds", "last"]
    assert [line[name] for name in IDS] == ["a", "b", "c", "d"]
    assert (line["seconds"], line["no"]) == (1.235, False)


def test_ids_come_first_in_text_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text")
    get_logger(session="a").info("happened", zulu=1, alpha=2, lost=0.0, request_id="d")
    assert capsys.readouterr().err.endswith("happened session=a request_id=d zulu=1 alpha=2\n")


def test_an_announcement_is_a_line_as_text_and_an_event_as_json_at_any_level(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("error", "text")
    announce("it is ready", "ready", address="x")
    assert capsys.readouterr().err == "it is ready\n"
    configure_logging("error", "json")
    announce("it is ready", "ready", address="x")
    (line,) = lines(capsys)
    assert line.pop("timestamp")
    assert line == {"level": "info", "event": "ready", "address": "x", "message": "it is ready"}


def test_the_hash_of_a_uid_depends_on_the_key_and_can_be_made_by_hand() -> None:
    configure_logging("info", "text", "a key of replicas")
    first = pseudonym("alice")
    assert first == hmac.digest(b"a key of replicas", b"alice", "sha256").hex()[:12]
    assert pseudonym("bob") != first
    configure_logging("info", "text", "another key of replicas")
    assert pseudonym("alice") != first


@pytest.mark.realtime
async def test_two_processes_agree_on_a_hash_only_where_they_share_a_key() -> None:
    hashes = []
    for key in ("", "", "shared-by-replicas", "shared-by-replicas"):
        settings = {"OMI_RT_LOG_KEY": key, "OMI_RT_LOG_FORMAT": "json"}
        async with (
            fake_in_process() as (_fake, url),
            serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY, **settings) as server,
        ):
            async with server.device(uid="alice-and-nobody-else") as device:
                await device.finish(20)
            await server.program.says("session_ended")
            async with server.device(uid="alice-and-nobody-else", codec="mp3") as refused:
                await refused.ended(10)
            await server.program.says("request_refused")
        log = [json.loads(line) for line in server.program.errors.splitlines()]
        assert log[0]["event"] == "ready"
        assert log[0]["address"] == f"http://127.0.0.1:{server.port}"
        assert all(line["peer"].startswith("127.0.0.1:") for line in log if "code" in line)
        (started,) = named(log, "session_started")
        assert started["peer"].startswith("127.0.0.1:")
        sessions = [line for line in log if "session" in line]
        assert len(sessions) >= 2
        assert len({(line["session"], line["uid_hash"], line["peer"]) for line in sessions}) == 1
        assert "alice" not in server.program.errors
        assert "shared-by" not in server.program.errors
        hashes.append(started["uid_hash"])
    assert hashes[0] != hashes[1] != hashes[2] == hashes[3]


# What happens.


async def test_a_gap_is_one_line_at_its_beginning_and_one_at_its_end(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "json")
    faults = FaultScript.of(*[[Unreachable()] for _ in range(14)])
    async with (
        listening_server(faults=faults, backlog_seconds=5.0) as (world, _fake),
        world.device() as device,
    ):
        await device.stream_audio(synthesise(a_script(150.0), RATE), RATE * 2)
        log = lines(capsys)
        assert named(log, "audio_lost"), "not only when the session ends"
        ended = await device.finish()
    log += lines(capsys)
    assert len(device.events("audio_lost")) > 10, "the device is told all the time"
    (began,) = named(log, "audio_loss_began")
    (lost,) = named(log, "audio_lost")
    assert "start" not in began, "it began at 0"
    assert lost["seconds"] == lost["end"] == pytest.approx(ended["lost"], abs=0.001)
    assert log.index(began) < log.index(lost) < log.index(named(log, "session_ended")[0])
    (end,) = named(log, "session_ended")
    assert end["received"] == 150.0
    assert "pending" not in end


async def test_a_gap_that_is_over_at_once_is_one_line(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "json")
    async with running_server(unreachable) as world, world.device() as device:
        await device.stream_audio(synthesise(a_script(4.0), RATE), RATE * 2)
        ended = await device.finish()
    log = lines(capsys)
    assert named(log, "audio_loss_began") == []
    (lost,) = named(log, "audio_lost")
    assert (lost["end"], lost["seconds"]) == (4.0, 4.0)
    assert ended["lost"] == 4.0


async def test_every_replaced_connection_is_logged_with_its_cause(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "json")
    faults = FaultScript.of(
        [Close(code=1011, reason="net0001", after_audio=4.0)],
        [Refuse(status=503)],
        [Silence(after_audio=3.0)],
    )
    async with listening_server(faults=faults) as (world, fake), world.device() as device:
        await play(device, a_script(40.0))
    log = lines(capsys)
    replaced = named(log, "connection_replaced")
    assert [line["cause"] for line in replaced] == ["lost", "lost"]
    assert [line["reason"] for line in replaced] == [
        "closed with 1011: net0001",
        "no answer to the audio",
    ]
    opened = named(log, "connection_opened")
    assert [line["cause"] for line in opened] == ["first", "redial", "redial"]
    assert [line["request_id"] for line in replaced] == [line["request_id"] for line in opened[:2]]
    assert len(fake.connections) == 4, "one dial was refused"


async def test_a_switch_says_which_connection_it_leaves_and_which_it_takes(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "json")
    script = conversation((USER, STRANGER))
    async with (
        listening_server(profiles=stored(), options=Options(seed=1)) as (world, _fake),
        world.device() as device,
    ):
        await play(device, script)
    log = lines(capsys)
    first, primed = named(log, "connection_opened")
    assert (first["cause"], primed["cause"]) == ("first", "primed")
    (replaced,) = named(log, "connection_replaced")
    assert (replaced["cause"], replaced["request_id"]) == ("switch", first["request_id"])
    (switched,) = named(log, "connection_switched")
    assert switched["request_id"] == primed["request_id"]
    assert 5.0 < switched["at"] < 30.0, "in seconds"


async def test_no_line_names_the_user(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("debug", "json")
    async with running_server(unreachable) as world:
        async with world.device(uid="alice-the-user") as device:
            await device.stream_audio(bytes(RATE), RATE * 2)
            await device.finish()
        async with world.device(uid="alice-the-user", codec="mp3") as refused:
            await refused.ended()
        await trio.sleep(1)
    text = capsys.readouterr().err
    assert "session_started" in text
    assert "request_refused" in text
    assert "alice" not in text
