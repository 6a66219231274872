"""A voice that the client names: known at once, and in the next session."""

from __future__ import annotations

import json
from math import nan
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omi_rt.fake import synthesise
from omi_rt.profiles.commands import list_profiles
from omi_rt.profiles.service import Profiles
from tests.harness import CLOSE_STREAM, Device, listening_server, words_of
from tests.memory_store import MemoryProfileStore
from tests.test_identities import ANNA, BEN, USER, conversation, stored

if TYPE_CHECKING:
    from trio.testing import MockClock

RATE = 16_000
SOUND = {"codec": "pcm16", "sample_rate": RATE}
V4: dict[str, Any] = {"headers": {"Authorization": "Bearer u1"}, "is_loopback": True}


def assign(**fields: Any) -> str:
    return json.dumps({"type": "speaker_assigned", **fields})


async def hear_and_assign(
    device: Device, *assignments: str, seconds: float = 45.0, voices: tuple[int, ...] = (ANNA, BEN)
) -> None:
    """Stream a conversation, name speakers two thirds into it, and go to the end."""
    script = conversation(voices, seconds)
    pcm = synthesise(script, RATE)
    cut = len(pcm) * 2 // 3 // 2 * 2
    await device.stream_audio(pcm[:cut], 2 * RATE)
    for text in assignments:
        device.send(text)
    await device.stream_audio(pcm[cut:], 2 * RATE)
    device.send(CLOSE_STREAM)
    await device.ended()
    shown = {s["id"]: s for s in device.segments}
    assert sorted(words_of(list(shown.values()))) == sorted(script.transcript())


async def people_of(store: Any) -> list[str | None]:
    return [row.identity.person_id for row in await list_profiles(store, "u1")]


async def test_a_named_speaker_is_labelled_at_once_and_stored_for_the_next_session(
    autojump_clock: MockClock,
) -> None:
    profiles = stored()
    async with listening_server(profiles=profiles) as (world, _fake):
        async with world.device(**SOUND) as device:
            await hear_and_assign(device, assign(speaker_id=0, person_id="anna"))
        async with world.device(**SOUND) as later:
            await hear_and_assign(later)
    told = device.event("speaker_assigned")
    assert told == {
        "type": "speaker_assigned",
        "speaker_id": 0,
        "is_user": False,
        "person_id": "anna",
        "stored": True,
    }
    named = [e for e in device.events("speaker_identified") if e["person_id"] == "anna"]
    before = [s["id"] for s in device.segments if s["speaker_id"] == 0 and s["person_id"] is None]
    assert len(before) > 3
    assert set(before) <= {each for event in named for each in event["segment_ids"]}
    assert all(
        (s["person_id"] == "anna") == (s["speaker_id"] == 0)
        for s in device.segments
        if s["start"] > 32
    )
    assert await people_of(profiles.store) == [None, "anna"]
    known = {s["person_id"] for s in later.segments if s["start"] > 25}
    assert known == {"anna", None}


async def test_on_v4_the_corrected_segments_are_sent_again(autojump_clock: MockClock) -> None:
    async with (
        listening_server(profiles=stored()) as (world, _fake),
        world.client("/v4/listen", SOUND, **V4) as device,
    ):
        await hear_and_assign(device, assign(speaker_id=1, person_id="ben"))
    shown = {s["id"]: s for s in device.segments}
    assert {s["person_id"] for s in shown.values() if s["speaker_id"] == 1} == {"ben"}
    assert {s["person_id"] for s in shown.values() if s["speaker_id"] == 0} == {None}


async def test_the_user_may_be_named_and_stored_too(autojump_clock: MockClock) -> None:
    profiles = stored(user=False)
    async with (
        listening_server(profiles=profiles) as (world, _fake),
        world.device(**SOUND) as device,
    ):
        await hear_and_assign(device, assign(speaker_id=0, person_id="user"))
    assert device.event("speaker_assigned")["stored"] is True
    assert {s["is_user"] for s in device.segments if s["speaker_id"] == 0 and s["start"] > 32} == {
        True
    }
    assert await people_of(profiles.store) == [None]


async def test_only_the_segments_that_are_meant_are_corrected(autojump_clock: MockClock) -> None:
    async with (
        listening_server(profiles=stored(user=False)) as (world, _fake),
        world.device(**SOUND) as device,
    ):
        script = conversation((ANNA, BEN), 30)
        await device.stream_audio(synthesise(script, RATE), 2 * RATE)
        one = next(s["id"] for s in device.segments if s["speaker_id"] == 0)
        device.send(assign(speaker_id=0, person_id="anna", segment_ids=[one, "unknown", 7]))
        device.send(CLOSE_STREAM)
        await device.ended()
    (event,) = device.events("speaker_identified")
    assert event["segment_ids"] == [one]


async def test_a_voice_that_is_too_short_is_known_and_not_stored(
    autojump_clock: MockClock,
) -> None:
    profiles = stored(user=False)
    async with (
        listening_server(profiles=profiles) as (world, _fake),
        world.device(**SOUND) as device,
    ):
        await hear_and_assign(device, assign(speaker_id=0, person_id="anna"), seconds=9)
    told = device.event("speaker_assigned")
    assert told["stored"] is False
    assert "s long" in told["reason"]
    assert await people_of(profiles.store) == []


async def test_another_recording_of_the_person_is_not_replaced(autojump_clock: MockClock) -> None:
    profiles = stored(user=False, people={"anna": USER})
    before = await profiles.store.list_samples("u1")
    async with (
        listening_server(profiles=profiles) as (world, _fake),
        world.device(**SOUND) as device,
    ):
        await hear_and_assign(device, assign(speaker_id=0, person_id="anna"))
    assert device.event("speaker_assigned")["stored"] is False
    assert await profiles.store.list_samples("u1") == before


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [({"profile_learn": False}, {}), ({}, {"include_speech_profile": "false"})],
)
async def test_storing_can_be_turned_off_and_the_name_counts_all_the_same(
    autojump_clock: MockClock, settings: dict[str, Any], parameters: dict[str, Any]
) -> None:
    profiles = stored(user=False)
    async with (
        listening_server(profiles=profiles, **settings) as (world, _fake),
        world.device(**SOUND, **parameters) as device,
    ):
        await hear_and_assign(device, assign(speaker_id=0, person_id="anna"))
    assert device.event("speaker_assigned")["stored"] is False
    assert {s["person_id"] for s in device.segments if s["start"] > 32} == {"anna", None}
    assert await people_of(profiles.store) == []


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"speaker_id": 7, "person_id": "anna"}, "speaker_id"),
        ({"speaker_id": -1, "person_id": "anna"}, "speaker_id"),
        ({"speaker_id": True, "person_id": "anna"}, "speaker_id"),
        ({"person_id": "anna"}, "speaker_id"),
        ({"speaker_id": 0, "person_id": "../../etc/passwd"}, "person_id"),
        ({"speaker_id": 0, "person_id": ""}, "person_id"),
        ({"speaker_id": 0}, "person_id"),
        ({"speaker_id": 0, "person_id": ["anna"]}, "person_id"),
        ({"speaker_id": 0, "person_id": "x" * 1000}, "person_id"),
        # NaN is no JSON, so this is read by other rules, which know integers of any length.
        ({"speaker_id": 1 << 70, "person_id": "anna", "confidence": nan}, "speaker_id"),
    ],
)
async def test_what_cannot_be_is_answered_and_changes_nothing(
    autojump_clock: MockClock, fields: dict[str, Any], named: str
) -> None:
    profiles = stored(user=False)
    async with (
        listening_server(profiles=profiles) as (world, _fake),
        world.device(**SOUND) as device,
    ):
        await hear_and_assign(device, assign(**fields), seconds=12)
    assert device.event("assignment_failed")["reason"].startswith(named)
    assert device.events("speaker_assigned") == device.events("speaker_identified") == []
    assert await people_of(profiles.store) == []


async def test_a_store_that_hangs_holds_the_session_for_ten_seconds_at_most(
    autojump_clock: MockClock,
) -> None:
    class Hanging(MemoryProfileStore):
        async def put(self, uid: str, person_id: str | None, wav: bytes) -> Any:
            await trio.sleep_forever()

    profiles = Profiles(Hanging(), 10.0)
    async with (
        listening_server(profiles=profiles) as (world, _fake),
        world.device(**SOUND) as device,
    ):
        await hear_and_assign(device, *[assign(speaker_id=0, person_id="anna")] * 2)
    reasons = [event["reason"] for event in device.events("speaker_assigned")]
    assert reasons == [
        "another voice is being stored",
        "the profile store took over 10 s",
    ]
    assert device.closed is not None
    assert device.closed.code == 1000


async def test_a_name_that_another_voice_had_is_taken_from_it(autojump_clock: MockClock) -> None:
    async with (
        listening_server(profiles=stored(user=False), profile_learn=False) as (world, _fake),
        world.device(**SOUND) as device,
    ):
        await hear_and_assign(
            device,
            assign(speaker_id=0, person_id="anna"),
            assign(speaker_id=1, person_id="anna"),
        )
    taken = [e for e in device.events("speaker_identified") if e["person_id"] is None]
    assert [(event["speaker_id"], event["is_user"]) for event in taken] == [(0, False)]
    assert taken[0]["segment_ids"]
    later = {(s["speaker_id"], s["person_id"]) for s in device.segments if s["start"] > 32}
    assert later == {(0, None), (1, "anna")}


async def test_the_end_waits_for_a_voice_that_is_being_stored(autojump_clock: MockClock) -> None:
    class Slow(MemoryProfileStore):
        async def put(self, uid: str, person_id: str | None, wav: bytes) -> Any:
            await trio.sleep(5)
            return await super().put(uid, person_id, wav)

    async with (
        listening_server(profiles=Profiles(Slow(), 10.0)) as (world, _fake),
        world.device(**SOUND) as device,
    ):
        script = conversation((ANNA, BEN), 45)
        await device.stream_audio(synthesise(script, RATE), 2 * RATE)
        device.send(assign(speaker_id=0, person_id="anna"))
        device.send(CLOSE_STREAM)
        await device.ended()
    assert device.event("speaker_assigned")["stored"] is True
