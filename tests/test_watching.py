"""Watching: who may follow a session, what a watcher gets, and what a slow one costs the session."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
import trio

from omi_rt.core.errors import HandshakeFailed
from omi_rt.fake import Options, random_script, synthesise
from omi_rt.metrics import Metrics
from omi_rt.net.handshake import open_websocket
from omi_rt.server.watching import (
    MAX_KEPT_SEGMENTS,
    MAX_QUEUED_CHARACTERS,
    MAX_QUEUED_MESSAGES,
    MAX_UID_WATCHERS,
    MAX_WATCHERS,
    NO_MORE,
    NO_MORE_OF_UID,
    Watcher,
)
from tests.harness import Device, assert_whole, listening_server, play, words_of
from tests.test_identities import STRANGER, USER, conversation, stored
from tests.test_web import OneToken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

    from omi_rt.server.watching import WatchedSession
    from tests.harness import World

RATE = 8000
BEARER: dict[str, Any] = {"headers": {"Authorization": "Bearer good"}}


class Page:
    """A watcher that reads when it is told to."""

    def __init__(self, device: Device) -> None:
        self.device = device

    @property
    def messages(self) -> list[Any]:
        return self.device.messages

    @property
    def shown(self) -> dict[str, dict[str, Any]]:
        """The segments as a page shows them that replaces each by its id."""
        return {s["id"]: s for m in self.messages if isinstance(m, list) for s in m}


@asynccontextmanager
async def watching(
    world: World,
    *,
    first: str | None = None,
    is_loopback: bool = True,
    headers: dict[str, str] | None = None,
    reads: bool = True,
    capacity_bytes: int = 65_536,
    **query: Any,
) -> AsyncIterator[Page]:
    stream = world.open_stream(capacity_bytes, is_loopback=is_loopback)
    target = f"ws://localhost/web/watch?{urlencode(query)}"
    websocket = await open_websocket(stream, target, headers=headers)
    device = Device(websocket, stream)
    if first is not None:
        device.send(first)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(websocket.run_writer, 1e6)
        if reads:
            nursery.start_soon(device.read)
        await trio.testing.wait_all_tasks_blocked()
        yield Page(device)
        nursery.cancel_scope.cancel()


def id_of(device: Device) -> str:
    return device.session.id


async def test_a_watcher_sees_what_the_session_says_and_its_end(
    autojump_clock: MockClock,
) -> None:
    script = random_script(Random(5), 30.0)
    async with listening_server() as (world, _), world.device(interim="true") as device:
        session = id_of(device)
        async with watching(world, session=session) as page:
            await play(device, script)
            with trio.fail_after(10):
                await page.device.ended()
        assert page.messages[0]["type"] == "watching"
        assert page.messages[0]["session_id"] == session
        assert sorted(words_of(list(page.shown.values()))) == sorted(script.transcript())
        kinds = {m["type"] for m in page.messages if isinstance(m, dict)}
        assert {"interim", "session_ended"} <= kinds
        assert page.device.closed is not None
        assert (page.device.closed.code, page.device.closed.reason) == (1000, "session_ended")
        # It can neither take the session up nor be taken for its device.
        assert "resume" not in json.dumps(page.device.raw)
        assert_whole(device, script)


async def test_who_comes_later_gets_what_was_said_as_it_stands(autojump_clock: MockClock) -> None:
    script = conversation((STRANGER, USER), 100.0)
    pcm = synthesise(script, RATE)
    async with (
        listening_server(profiles=stored(), options=Options(seed=2)) as (world, _),
        world.device() as device,
    ):
        session = id_of(device)
        await device.stream_audio(pcm, RATE * 2)
        async with watching(world, session=session) as page:
            await device.finish()
            await page.device.ended()
        shown = sorted(page.shown.values(), key=lambda s: float(s["start"]))
        assert sorted(words_of(shown)) == sorted(script.transcript())
        own = {word.text for word in script.words if word.voice == USER}
        marked = [s for s in shown if s["is_user"]]
        assert marked
        assert all(set(words_of([s])) <= own for s in marked)
        assert len(shown) <= MAX_KEPT_SEGMENTS


async def test_who_comes_later_is_shown_what_somebody_else_has_seen_come(
    autojump_clock: MockClock,
) -> None:
    script = conversation((STRANGER, USER), 60.0)
    pcm = synthesise(script, RATE)
    async with (
        listening_server(profiles=stored(), options=Options(seed=2)) as (world, _),
        world.device() as device,
        watching(world, session=id_of(device)) as early,
    ):
        await device.stream_audio(pcm, RATE * 2)
        async with watching(world, session=id_of(device)) as late:
            assert [m["type"] for m in late.messages if isinstance(m, dict)] == ["watching"]
            assert list(late.shown.values()) == sorted(
                early.shown.values(), key=lambda s: float(s["start"])
            )
            assert late.shown
        await device.finish()


def is_followed(session: WatchedSession) -> bool:
    """Whether anything is written of a session, or kept of what was."""
    return session.face is not None


async def test_nothing_is_written_or_kept_for_watchers_as_long_as_nobody_watches(
    autojump_clock: MockClock,
) -> None:
    script = conversation((STRANGER, USER), 60.0)
    pcm = synthesise(script, RATE)
    half = len(pcm) // 2
    whose = {word.start: word.voice for word in script.words}
    async with (
        listening_server(profiles=stored(), options=Options(seed=2)) as (world, _),
        world.device(interim="true") as device,
    ):
        watched = world.server._shared.watching.find(id_of(device), None)
        assert watched is not None
        for part in (pcm[:half], pcm[half : half + RATE * 20]):
            await device.stream_audio(part, RATE * 2)
            assert not is_followed(watched)
            async with watching(world, session=id_of(device)) as page:
                assert is_followed(watched)
                said = sorted(words_of(list(page.shown.values())))
                assert said == sorted(words_of(device.segments))
                # What was corrected while nobody watched is shown as it is now.
                assert any(event["segment_ids"] for event in device.events("speaker_identified"))
                assert [s["is_user"] for s in page.shown.values()] == [
                    whose[s["start"]] == USER for s in page.shown.values()
                ]
                await trio.aclose_forcefully(page.device.stream)
                await trio.testing.wait_all_tasks_blocked()
            assert not is_followed(watched)
        async with watching(world, session=id_of(device)) as page:
            async with watching(world, session=id_of(device)) as other:
                await trio.aclose_forcefully(other.device.stream)
                await trio.testing.wait_all_tasks_blocked()
            await device.stream_audio(pcm[half + RATE * 20 :], RATE * 2)
            await device.finish()
            await page.device.ended()
        assert sorted(words_of(list(page.shown.values()))) == sorted(script.transcript())
        assert any(s["is_user"] for s in page.shown.values())


async def test_of_a_long_session_a_late_watcher_gets_the_last_segments(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omi_rt.server.watching.MAX_KEPT_SEGMENTS", 3)
    script = conversation((STRANGER, USER), 40.0)
    async with listening_server() as (world, _), world.device() as device:
        await device.stream_audio(synthesise(script, RATE), RATE * 2)
        async with watching(world, session=id_of(device)) as page:
            last = sorted(float(s["start"]) for s in device.segments)[-3:]
            assert [s["start"] for s in page.shown.values()] == last
        await device.finish()


async def test_what_a_watcher_says_is_not_the_sessions(autojump_clock: MockClock) -> None:
    script = random_script(Random(6), 20.0)
    async with listening_server() as (world, _), world.device() as device:
        async with watching(world, session=id_of(device)) as page:
            page.device.send(b"\x00\x10" * 4000)
            page.device.send('{"type":"CloseStream"}')
            page.device.send('{"type":"speaker_assigned","speaker_id":0,"person_id":"eve"}')
            await play(device, script)
        assert_whole(device, script)
        assert device.events("speaker_assigned") == []


async def test_a_slow_watcher_loses_messages_is_told_so_and_holds_up_nothing(
    autojump_clock: MockClock,
) -> None:
    script = random_script(Random(7), 55.0)
    async with listening_server() as (world, _), world.device(interim="true") as device:
        session = id_of(device)
        async with (
            watching(world, session=session, reads=False, capacity_bytes=2000) as slow,
            watching(world, session=session) as quick,
        ):
            assert quick.device.websocket is not slow.device.websocket
            watched = world.server._shared.watching.find(session, None)
            assert watched is not None
            for number in range(MAX_QUEUED_MESSAGES * 2):
                watched.note({"type": "note", "number": number})
                if number % 100 == 0:
                    await trio.testing.wait_all_tasks_blocked()
            before = trio.current_time()
            await play(device, script)
            assert trio.current_time() - before < script.seconds + 5.0
            assert_whole(device, script)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(slow.device.read)
                await slow.device.ended()
            missed = [m["count"] for m in slow.device.events("watch_missed")]
            total = len(quick.messages) - (len(slow.messages) - len(missed))
        assert len(missed) >= 1
        assert sum(missed) == total
        assert f"omi_rt_watch_messages_missed_total {total}.0" in world.exposition()
        assert quick.device.events("watch_missed") == []


async def test_a_watchers_queue_is_bounded_in_messages_and_in_characters() -> None:
    metrics = Metrics()
    watcher = Watcher(metrics)
    part = "x" * (MAX_QUEUED_CHARACTERS // 4)
    for number in range(10):
        watcher.put({"number": number, "text": part})
    assert json.loads(await watcher.take() or "") == {"type": "watch_missed", "count": 7}
    kept = [json.loads(await watcher.take() or "")["number"] for _ in range(3)]
    assert kept == [7, 8, 9]
    # What has been taken makes room again.
    for number in range(10, 13):
        watcher.put({"number": number, "text": part})
    kept = [json.loads(await watcher.take() or "")["number"] for _ in range(3)]
    assert kept == [10, 11, 12]
    # One that is too long alone comes all the same.
    watcher.put({"number": 13, "text": part * 5})
    watcher.end(1000, "over")
    watcher.put({"number": 14})
    assert json.loads(await watcher.take() or "")["number"] == 13
    assert await watcher.take() is None
    assert b"omi_rt_watch_messages_missed_total 7.0" in metrics.exposition()


async def test_who_has_left_is_told_nothing_any_more(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _), world.device() as device:
        watching_ = world.server._shared.watching
        watched = watching_.find(id_of(device), None)
        assert watched is not None
        async with watching(world, session=id_of(device)) as page, watching(world) as other:
            assert (len(watched.watchers), len(watching_._lists)) == (1, 1)
            for each in (page, other):
                await trio.aclose_forcefully(each.device.stream)
            await trio.testing.wait_all_tasks_blocked()
            assert (len(watched.watchers), len(watching_._lists)) == (0, 0)
        await device.finish()


async def test_a_watcher_that_takes_nothing_at_all_is_given_up(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _), world.device() as device:
        async with watching(world, session=id_of(device), reads=False, capacity_bytes=500) as page:
            assert world.server._shared.watching.count == 1
            await device.stream_audio(synthesise(random_script(Random(1), 200.0), RATE), RATE * 2)
            assert world.server._shared.watching.count == 0
            del page
        await device.finish()


@pytest.mark.parametrize("session", ["nothing", "", "0" * 32])
async def test_a_session_that_is_not_there_is_said_to_be_none(
    autojump_clock: MockClock, session: str
) -> None:
    async with listening_server() as (world, _), watching(world, session=session) as page:
        await page.device.ended()
        assert page.device.closed is not None
        assert page.device.closed.code == 1008


async def test_with_a_login_a_session_is_watched_by_its_own_uid_alone(
    autojump_clock: MockClock,
) -> None:
    auth = json.dumps({"type": "auth", "token": "good"})
    async with (
        listening_server(login=OneToken()) as (world, _),
        world.client("/v4/listen", {"codec": "pcm16"}, **BEARER) as device,
    ):
        session = id_of(device)
        assert device.session.uid == "alice"
        async with watching(world, session=session, first=auth, is_loopback=False) as page:
            assert page.messages[0]["type"] == "watching"
        async with watching(world, session=session, **BEARER) as page:
            assert page.messages[0]["type"] == "watching"
        world.server._admission._gate._login.uid_of = _always_bob  # type: ignore[union-attr,method-assign]
        queries: list[dict[str, Any]] = [{"session": session}, {"session": session, "uid": "alice"}]
        for query in queries:
            async with watching(world, first=auth, **query) as page:
                await page.device.ended()
                assert page.device.closed is not None
                assert page.device.closed.code == 1008
                assert page.messages == []
        async with watching(world, first=auth, uid="alice") as page:
            assert page.messages == [{"type": "sessions", "sessions": []}]
        await device.finish()


async def _always_bob(_token: str) -> str:
    await trio.lowlevel.checkpoint()
    return "bob"


@pytest.mark.parametrize("first", ['{"type":"auth","token":"bad"}', "{}", None])
async def test_who_does_not_log_in_sees_nothing(
    autojump_clock: MockClock, first: str | None
) -> None:
    async with listening_server(login=OneToken()) as (world, _):
        async with watching(world, first=first) as page:
            await page.device.ended()
            assert page.messages == []
            assert page.device.closed is not None
            assert page.device.closed.code == 1008


async def test_without_a_login_only_this_machine_may_watch(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _), world.device() as device:
        queries: list[dict[str, Any]] = [{}, {"session": id_of(device)}]
        for query in queries:
            async with watching(world, is_loopback=False, **query) as page:
                await page.device.ended()
                assert page.messages == []
        await device.finish()


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:81"])
async def test_a_foreign_page_may_not_watch(autojump_clock: MockClock, origin: str) -> None:
    async with listening_server() as (world, _):
        with pytest.raises(HandshakeFailed) as caught:
            async with watching(world, headers={"Origin": origin}):
                pass
        assert caught.value.status == 403
        async with watching(world, headers={"Origin": "http://localhost"}, uid="u1") as page:
            assert page.messages == [{"type": "sessions", "sessions": []}]


async def test_the_list_follows_the_sessions_of_one_uid(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _), watching(world, uid="u1") as page:

        def listed() -> list[str]:
            return [row["session_id"] for row in page.messages[-1]["sessions"]]

        async with world.device() as device, world.device(uid="other") as other:
            assert listed() == [id_of(device)]
            await other.finish()
            await device.finish()
        await page.device.until(lambda: len(page.messages) > 2)
        assert [len(m["sessions"]) for m in page.messages] == [0, 1, 0]


async def test_there_is_room_for_so_many_watchers_and_they_are_no_unfinished_connections(
    autojump_clock: MockClock,
) -> None:
    async with listening_server(max_unfinished=10) as (world, _):
        async with trio.open_nursery() as nursery:

            async def watch(number: int) -> None:
                async with watching(world, uid=f"u{number}"):
                    await trio.sleep_forever()

            for number in range(MAX_WATCHERS):
                nursery.start_soon(watch, number)
                await trio.testing.wait_all_tasks_blocked()
            assert f"omi_rt_watchers {MAX_WATCHERS}.0" in world.exposition()
            with pytest.raises(HandshakeFailed) as caught:
                async with watching(world, uid="u1"):
                    pass
            assert caught.value.status == 503
            assert 'omi_rt_watchers_refused_total{reason="full"} 1.0' in world.exposition()
            async with world.device() as device:
                await device.finish()
            nursery.cancel_scope.cancel()
        for stream in world.streams:
            await trio.aclose_forcefully(stream)
        await trio.testing.wait_all_tasks_blocked()
        assert world.server._shared.watching.count == 0


async def test_one_uid_takes_no_more_than_its_own_places(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _), AsyncExitStack() as stack:
        for _ in range(MAX_UID_WATCHERS):
            last = await stack.enter_async_context(watching(world, uid="u1"))
        async with watching(world, uid="u1") as page:
            await page.device.ended()
            assert page.messages == []
            assert page.device.closed is not None
            assert (page.device.closed.code, page.device.closed.reason) == (1013, NO_MORE_OF_UID)
        assert 'omi_rt_watchers_refused_total{reason="uid"} 1.0' in world.exposition()
        assert f"omi_rt_watchers {MAX_UID_WATCHERS}.0" in world.exposition()
        async with watching(world, uid="u2") as page:
            assert page.messages == [{"type": "sessions", "sessions": []}]
        await trio.aclose_forcefully(last.device.stream)
        await trio.testing.wait_all_tasks_blocked()
        async with watching(world, uid="u1") as page:
            assert page.messages == [{"type": "sessions", "sessions": []}]


async def test_a_crowd_that_comes_at_once_gets_no_more_places_than_there_are(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omi_rt.server.watching.MAX_WATCHERS", 3)
    async with listening_server(login=OneToken()) as (world, _):
        devices = []
        for _ in range(8):
            stream = world.open_stream(is_loopback=True)
            websocket = await open_websocket(stream, "ws://localhost/web/watch")
            devices.append(Device(websocket, stream))
        # All of them are in before the first has said who it is.
        async with trio.open_nursery() as nursery:
            for device in devices:
                nursery.start_soon(device.websocket.run_writer, 1e6)
                nursery.start_soon(device.read)
                device.send('{"type":"auth","token":"good"}')
            await trio.testing.wait_all_tasks_blocked()
            assert world.server._shared.watching.count == 3
            assert "omi_rt_watchers 3.0" in world.exposition()
            refused = [each.closed for each in devices if each.closed is not None]
            assert [(each.code, each.reason) for each in refused] == [(1013, NO_MORE)] * 5
            assert sum(each.messages != [] for each in devices) == 3
            nursery.cancel_scope.cancel()


async def test_who_has_not_proved_who_they_are_takes_no_place(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omi_rt.server.watching.MAX_WATCHERS", 1)
    auth = json.dumps({"type": "auth", "token": "good"})
    bad = json.dumps({"type": "auth", "token": "bad"})
    async with listening_server(login=OneToken()) as (world, _):
        async with watching(world), watching(world, first=bad), watching(world, first=auth) as page:
            assert world.server._shared.watching.count == 1
            assert page.messages == [{"type": "sessions", "sessions": []}]
            await trio.aclose_forcefully(page.device.stream)
            await trio.testing.wait_all_tasks_blocked()
        async with watching(world, first=auth, session="0" * 32) as page:
            await page.device.ended()
        # Who had a place and found no session has given it back.
        async with watching(world, first=auth) as page:
            assert page.messages == [{"type": "sessions", "sessions": []}]


async def test_a_watcher_that_has_vanished_is_noticed(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _):
        async with watching(world, uid="u1", reads=False):
            assert world.server._shared.watching.count == 1
            await trio.sleep(100.0)
            assert world.server._shared.watching.count == 0


async def test_watchers_leave_when_the_server_goes(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _), watching(world, uid="u1") as page:
        world.server.drain()
        await page.device.ended(10.0)
        assert page.device.closed is not None
        assert page.device.closed.code == 1001
        with pytest.raises(HandshakeFailed) as caught:
            async with watching(world, uid="u1"):
                pass
        assert caught.value.status == 503
