"""Without a key, who is who: the embedded recogniser tells voices apart, and the server knows the user's."""

from __future__ import annotations

import json
import os
import signal
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import define, field

from bench.speech import SpeechUnavailable, Spoken, Turn, dialogue, human_recordings
from omi_rt.codecs.wav import WavAudio, write_wav
from omi_rt.local.accuracy import word_accuracy
from tests.processes import children_of
from tests.processes_e2e import Finished, run, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.realtime

USER, STRANGER = "awb", "kal16"
PROFILE = Turn(
    USER,
    "The north wind and the sun were disputing which was the stronger, when a traveller came along "
    "wrapped in a warm cloak. They agreed that the one who first made him take it off was stronger.",
)
TALK = (
    Turn(USER, "I would like to go to the market before the shops close this evening."),
    Turn(STRANGER, "The train to the city leaves at seven, so we have plenty of time."),
    Turn(USER, "Please remember to bring the blue umbrella, because it may rain again."),
    Turn(STRANGER, "My brother has borrowed it, but there is another one behind the door."),
    Turn(USER, "Good, then let us buy some bread, some apples and a bottle of milk."),
    Turn(STRANGER, "We should also look for a present, since her birthday is on Friday."),
    Turn(USER, "She told me last week that she wants to read more books about history."),
    Turn(STRANGER, "There is a small shop near the bridge that sells nothing but old books."),
    Turn(USER, "Then we will go there first, and to the market when we have found one."),
    Turn(STRANGER, "I hope that they are open today, because they are often closed on Mondays."),
    Turn(USER, "If they are closed we can still look for a present at the station."),
    Turn(STRANGER, "In that case we should leave now, before the rain begins again."),
)
"""The profile goes up for 25 s. A busy machine is some seconds late with it, and the talk goes on meanwhile."""


def spoken(name: str, *turns: Turn) -> Spoken:
    try:
        return dialogue(name, *turns)
    except SpeechUnavailable as error:
        pytest.skip(str(error))


def write(path: Path, recording: Spoken) -> str:
    path.write_bytes(write_wav(recording.audio))
    return str(path)


def corrected(lines: str) -> list[dict[str, Any]]:
    """The segments that ``omi-rt stream --json --events`` printed, as its events corrected them."""
    segments: dict[str, dict[str, Any]] = {}
    for line in map(json.loads, lines.splitlines()):
        if "id" in line:
            segments[line["id"]] = line
        elif line.get("type") == "speaker_identified":
            for each in line["segment_ids"]:
                segments[each] |= {key: line[key] for key in ("is_user", "person_id")}
        elif line.get("type") == "speakers_merged":
            for each in line["segment_ids"]:
                segments[each]["speaker"] = f"SPEAKER_{line['into']:02d}"
    return list(segments.values())


def whose(segment: dict[str, Any], recording: Spoken) -> str:
    """Whose voice most of the segment is."""
    return max(
        recording.turns,
        key=lambda turn: min(turn[1], segment["end"]) - max(turn[0], segment["start"]),
    )[2]


@define
class Played:
    """What came of three things that nearly only wait for speech in real time, and so are done at once."""

    known: list[Finished] = field(factory=list)
    """A talk with the user, whose profile the server has."""
    interrupted: list[Finished] = field(factory=list)
    """A talk whose recogniser's worker is killed."""
    server_said: str = ""
    """What the server of the interrupted one has said."""
    people: dict[tuple[str, int], Finished] = field(factory=dict)
    """People through Opus, by their name and the part of their recording."""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Play what there is: a test whose speech is missing is skipped when it asks for that itself."""
    path, result = tmp_path_factory.mktemp("voices"), Played()
    recordings: dict[str, Spoken] = {}
    talks: list[Spoken] = []
    with suppress(SpeechUnavailable):
        recordings |= {recording.name: recording for recording in human_recordings()}
    with suppress(SpeechUnavailable):
        talks += dialogue("profile", PROFILE), dialogue("talk", *TALK), dialogue("short", *TALK[:2])

    async def play() -> None:
        async with trio.open_nursery() as nursery:
            if talks:
                profile, talk, short = talks
                nursery.start_soon(stream_to_one_who_has_a_profile, path, profile, talk, result)
                nursery.start_soon(stream_while_the_worker_is_killed, path, short, result)
            if recordings:
                nursery.start_soon(stream_people, path, recordings, result)

    trio.run(play)
    return result


async def stream_to_one_who_has_a_profile(
    path: Path, profile: Spoken, talk: Spoken, result: Played
) -> None:
    store = str(path / "store")
    mine = write(path / "profile.wav", profile)
    put = await run("profile", "put", "alice", mine, OMI_RT_PROFILE_DIR=store)
    assert put.status == 0, put.errors
    async with serving(OMI_RT_PROFILE_DIR=store) as server:
        options = ("--url", server.url, "--uid", "alice", "--codec", "opus", "--json", "--events")
        result.known.append(
            await run("stream", write(path / "talk.wav", talk), *options, within=90)
        )


async def stream_while_the_worker_is_killed(path: Path, talk: Spoken, result: Played) -> None:
    recording = write(path / "short.wav", talk)
    async with serving() as server, trio.open_nursery() as nursery:

        async def kill_the_busy_worker() -> None:
            (recogniser,) = children_of(server.program.pid)
            waiting = children_of(recogniser)
            await server.program.says("connection_opened", 30)
            await trio.sleep(3.5)
            for worker in waiting & children_of(recogniser):
                os.kill(worker, signal.SIGKILL)

        await trio.sleep(1.0)
        nursery.start_soon(kill_the_busy_worker)
        options = ("--url", server.url, "--no-profile", "--json", "--events")
        result.interrupted.append(await run("stream", recording, *options, within=60))
        result.server_said = server.program.errors


async def stream_people(path: Path, recordings: dict[str, Spoken], result: Played) -> None:
    # A server sends a quarter faster than real time, so the long one goes in two sessions at once.
    parts = {"reader": parted(recordings["reader"]), "actor": [recordings["actor"].audio]}
    async with (
        # However little it measures while other tests run.
        serving(OMI_RT_LOCAL_CONNECTIONS="3") as server,
        trio.open_nursery() as nursery,
    ):

        async def stream(name: str, number: int, audio: WavAudio) -> None:
            recording = path / f"{name} {number}.wav"
            recording.write_bytes(write_wav(audio))
            options = ("--url", server.url, "--codec", "opus", "--speed", "4", "--json")
            result.people[name, number] = await run("stream", str(recording), *options, within=90)

        for name, audios in parts.items():
            for number, audio in enumerate(audios):
                nursery.start_soon(stream, name, number, audio)


def parted(recording: Spoken) -> list[WavAudio]:
    """The two halves of a recording, parted where it is quietest near the middle."""
    pcm, rate = recording.audio.pcm, recording.audio.sample_rate
    step = rate // 10 * 2
    around = range(len(pcm) // 3 // step, len(pcm) * 2 // 3 // step)
    quiet = min(around, key=lambda n: max(map(abs, array("h", pcm[n * step : (n + 1) * step]))))
    cut = quiet * step + step // 4 * 2
    return [WavAudio(rate, 1, pcm[:cut]), WavAudio(rate, 1, pcm[cut:])]


def test_a_profile_marks_the_user_in_another_recording_and_no_stranger(played: Played) -> None:
    talk = spoken("talk", *TALK)
    (stream,) = played.known
    assert stream.status == 0, stream.errors
    segments = corrected(stream.output)
    said = {voice: [s for s in segments if whose(s, talk) == voice] for voice in (USER, STRANGER)}
    account = json.loads(stream.output.splitlines()[-1])
    # How much of what was said before is known too depends on how busy the machine is.
    since = account["identities_known_from"]
    known = [s["is_user"] for s in said[USER] if s["start"] >= since]
    assert (len(said[USER]), known) == (6, [True] * len(known))
    assert known
    assert [s["is_user"] for s in said[STRANGER]] == [False] * 6
    assert not {s["speaker"] for s in said[USER]} & {s["speaker"] for s in said[STRANGER]}
    assert word_accuracy(talk.text, " ".join(s["text"] for s in segments)) >= 0.95
    assert (account["finalised"], account["lost"]) == (account["received"], 0.0)


def test_a_worker_that_dies_costs_one_reconnect_and_no_word(played: Played) -> None:
    talk = spoken("talk", *TALK[:2])
    (stream,) = played.interrupted
    assert stream.status == 0, stream.errors
    text = " ".join(segment["text"] for segment in corrected(stream.output))
    assert word_accuracy(talk.text, text) >= 0.95
    assert played.server_said.count(" connection_opened ") == 2
    account = json.loads(stream.output.splitlines()[-1])
    assert (account["finalised"], account["lost"]) == (account["received"], 0.0)


def test_people_are_understood_through_opus(played: Played) -> None:
    try:
        recordings = {recording.name: recording for recording in human_recordings()}
    except SpeechUnavailable as error:
        pytest.skip(str(error))
    said = {}
    for part, streamed in played.people.items():
        assert streamed.status == 0, streamed.errors
        said[part] = " ".join(segment["text"] for segment in corrected(streamed.output))
    read = f"{said['reader', 0]} {said['reader', 1]}"
    assert word_accuracy(recordings["reader"].text, read) >= 0.95
    assert word_accuracy(recordings["actor"].text, said["actor", 0]) >= 0.95
