"""A session that outlives its device's connections, beside login, limits and observers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from omi_rt.auth.tokens import TokenFile, add_token
from omi_rt.auth.tokens import _read_file as read_token_file
from omi_rt.core.observers import Observer, SessionFacts
from omi_rt.core.updates import Final
from tests.harness import listening_server, words_of
from tests.processes_e2e import KEY, fake_in_process, serving
from tests.test_limits import guarded, refused
from tests.test_login_sessions import bearer
from tests.test_resume import PCM, RATE, SECOND, TALK, drop, resuming, until_ready

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from omi_rt.core.updates import Update

CUT = 77 * SECOND // 10
"""Bytes, up to between two words: half a word is not understood."""
PCM16 = {"codec": "pcm16", "sample_rate": RATE}


class TwoPeople:
    """A login that knows two tokens."""

    problem: str | None = None

    async def uid_of(self, token: str) -> str:
        await trio.lowlevel.checkpoint()
        return {"a": "alice", "b": "bob"}[token]


async def test_with_a_login_a_session_is_taken_up_by_its_own_uid_alone(
    autojump_clock: MockClock,
) -> None:
    async with listening_server(login=TwoPeople()) as (world, _):
        async with world.client("/listen", headers=bearer("a")) as first:
            secret = await until_ready(first)
            await first.stream_audio(PCM[:CUT], SECOND)
            await drop(first)
            # The query's uid counts for nothing.
            query = {"resume": secret, "after": first.numbers[-1], "uid": "alice"}
            async with world.client("/listen", query, headers=bearer("b")) as other:
                await other.ended()
            assert other.closed is not None
            assert (other.closed.code, other.closed.reason) == (
                1008,
                "resume: the session is of another uid",
            )
            async with world.client("/listen", query, headers=bearer("a")) as second:
                assert second.statuses()[0] == "resumed"
                await second.stream_audio(PCM[CUT:], SECOND)
                await second.finish()
    assert words_of(first.segments + second.segments) == TALK.transcript()


async def test_a_token_that_was_taken_out_takes_no_session_up(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The session goes on while its connection lives, and ends as for any device that stays away."""
    path = tmp_path / "tokens"
    token, other = add_token(path, "alice"), add_token(path, "alice")
    file = TokenFile(path)
    file._take(read_token_file(path))
    async with listening_server(login=file, resume_seconds=10.0) as (world, _):
        async with world.client("/listen", headers=bearer(token)) as first:
            secret = await until_ready(first)
            await first.stream_audio(PCM[: CUT // 2], SECOND)
            text = path.read_text().splitlines(keepends=True)
            path.write_text(text[1])
            file._take(read_token_file(path))
            await first.stream_audio(PCM[CUT // 2 : CUT], SECOND)
            await drop(first)
            query = {"resume": secret, "after": first.numbers[-1]}
            async with world.client("/listen", query, headers=bearer(token)) as again:
                await again.ended()
            assert again.closed is not None
            assert (again.closed.code, again.closed.reason) == (1008, "Bad token")
            assert again.messages == []
            # The uid's other token is as good as the first one was.
            async with world.client("/listen", query, headers=bearer(other)) as second:
                assert second.statuses()[0] == "resumed"
                await drop(second)
            path.write_text("")
            file._take(read_token_file(path))
            async with world.client("/listen", query, headers=bearer(other)) as last:
                await last.ended()
            assert last.closed is not None
            assert last.closed.reason == "Bad token"
        began = trio.current_time()
        await world.sessions_ended()
        assert trio.current_time() - began < 15


async def test_a_session_that_is_taken_up_is_no_second_one_of_its_uid(
    autojump_clock: MockClock,
) -> None:
    async with guarded(max_uid_sessions=1) as world, world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM[:CUT], SECOND)
        await first.websocket.drained()
        await trio.testing.wait_all_tasks_blocked()
        # Once while the former connection is there, and once when it is lost.
        async with resuming(world, secret, after=first.numbers[-1]) as second:
            await drop(second)
            async with resuming(world, secret, after=first.numbers[-1]) as third:
                assert third.statuses()[0] == "resumed"
                async with world.device(resume="unknown") as fourth:
                    await fourth.ended()
                assert fourth.closed is not None
                assert fourth.closed.reason == "too many sessions of this uid: 1 of 1"
                assert refused(world, "uid")
                await third.stream_audio(PCM[CUT:], SECOND)
                await third.finish()
    heard = first.segments + second.segments + third.segments
    assert words_of(heard) == TALK.transcript()


async def test_connections_that_have_taken_a_session_up_are_not_unfinished(
    autojump_clock: MockClock,
) -> None:
    async with guarded(max_unfinished=1) as world, world.device() as first:
        secret = await until_ready(first)
        await drop(first)
        async with resuming(world, secret) as second:
            assert world.server._unfinished == 0
            async with world.device(uid="u2") as other:
                await other.finish()
            assert not refused(world, "unfinished")
            await second.finish()
        await world.sessions_ended()
        await trio.testing.wait_all_tasks_blocked()
        assert (world.server._resumed, world.server._connections) == (0, 0)


async def test_a_connection_whose_session_ends_while_it_comes_is_a_new_one_for_the_limits(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guarded(max_uid_sessions=1) as world, world.device() as first:
        secret = await until_ready(first)
        await drop(first)
        first.session.stop_waiting()
        async with world.device() as newer:
            # As if its secret had still been known when it came.
            monkeypatch.setattr(world.server._admission, "_has_place", lambda _wishes: True)
            async with resuming(world, secret) as late:
                await late.ended()
            assert late.closed is not None
            assert (late.closed.code, late.closed.reason) == (
                1013,
                "too many sessions of this uid: 1 of 1",
            )
            await newer.finish()


async def test_such_a_connection_is_refused_as_well_where_its_address_has_enough(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guarded() as world:
        monkeypatch.setattr(world.server._admission, "_has_place", lambda _wishes: True)
        monkeypatch.setattr(world.server._admission._occupancy, "enter", lambda _address: False)
        async with resuming(world, "gone") as late:
            await late.ended()
        assert late.closed is not None
        assert late.closed.code == 1013
        assert "of this address" in late.closed.reason
        assert refused(world, "address")


async def test_a_device_that_is_away_is_not_taken_for_one_without_audio(
    autojump_clock: MockClock,
) -> None:
    async with guarded(idle_seconds=20.0, resume_seconds=60.0) as world, world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM[:CUT], SECOND)
        await drop(first)
        await trio.sleep(50)
        async with resuming(world, secret, after=first.numbers[-1]) as second:
            assert second.statuses()[0] == "resumed"
            back_at = trio.current_time()
            await second.ended()
            assert second.closed is not None
            assert (second.closed.code, second.closed.reason) == (1001, "no_audio")
            assert trio.current_time() - back_at == pytest.approx(20, abs=2)


async def test_who_has_used_the_day_up_meanwhile_does_not_come_back(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with (
        guarded(daily_seconds=10, daily_file=tmp_path / "day", resume_seconds=60.0) as world,
        world.device() as first,
    ):
        secret = await until_ready(first)
        await first.stream_audio(PCM[:CUT], SECOND)
        await drop(first)
        async with world.device() as other:
            await other.stream_audio(PCM[:CUT], SECOND)
            await other.ended()
        await trio.sleep(5)
        async with resuming(world, secret) as second:
            await second.ended()
        assert second.closed is not None
        assert second.closed.code == 4002
        assert first.session._ending.reason == "day_used_up"
        assert world.server.guard.account._used["u1"] == pytest.approx(10.5, abs=1.0)


class Listener(Observer):
    """Writes down what it is told."""

    def __init__(self, facts: SessionFacts) -> None:
        self.id = facts.id
        self.heard = 0
        self.words: list[str] = []
        self.kinds: list[str] = []
        self.closings = 0

    @property
    def hears_audio(self) -> bool:
        return True

    def note(self, update: Update) -> None:
        if isinstance(update, dict):
            self.kinds.append(update["type"])
        elif isinstance(update, Final):
            self.words += [word for each in update.segments for word in each.words]

    def hear(self, payload: bytes) -> None:
        self.heard += len(payload)

    def close(self) -> None:
        self.closings += 1


@pytest.mark.parametrize("comes_back", [True, False])
async def test_an_observer_follows_one_session_over_all_of_its_connections(
    autojump_clock: MockClock, *, comes_back: bool
) -> None:
    observers: list[Listener] = []

    def watch(facts: SessionFacts) -> Observer:
        observers.append(Listener(facts))
        return observers[-1]

    async with listening_server(watches=(watch,)) as (world, _), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM[:CUT], SECOND, speed=10.0)
        await drop(first)
        if comes_back:
            await trio.sleep(20)
            async with resuming(world, secret, after=first.numbers[-1]) as second:
                await second.stream_audio(PCM[CUT:], SECOND)
                await second.finish()
        await world.sessions_ended()
    (observer,) = observers
    assert observer.id == first.session.id
    assert observer.heard == (len(PCM) if comes_back else CUT)
    said = TALK.transcript()
    told = words_of([{"text": " ".join(observer.words)}])
    assert told == (said if comes_back else said[: len(told)])
    assert len(told) > len(said) // 3
    assert observer.kinds[-1] == "session_ended"
    assert observer.kinds.count("session_ended") == observer.closings == 1


async def test_frames_that_arrive_for_a_line_that_was_taken_over_are_left(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM[:SECOND], SECOND)
        await first.websocket.drained()
        await trio.testing.wait_all_tasks_blocked()
        session, old = first.session, first.session._line
        async with resuming(world, secret) as second:
            await trio.testing.wait_all_tasks_blocked()
            # A poller has no task of the line's to cancel: it asks.
            assert old._take_at_once([bytes(RATE)], trio.current_time()) == []
            assert session.received_samples == RATE
            at = trio.current_time() + 3
            assert session._line._take_at_once([bytes(RATE)], at) is None
            assert session.received_samples == RATE + RATE // 2
            assert session._line.heard_at == at
            await second.finish()


@pytest.mark.realtime
async def test_over_tcp_a_session_that_is_taken_up_is_no_second_one_of_its_address() -> None:
    async with (
        fake_in_process() as (_, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY, OMI_RT_MAX_ADDRESS_SESSIONS="1") as server,
    ):
        async with server.device(**PCM16) as first:
            secret = await until_ready(first)
            await first.stream_audio(PCM[: 2 * SECOND], SECOND, speed=4.0)
            await first.websocket.drained()
        async with server.device(resume=secret, **PCM16) as second:
            await second.until(second.statuses)
            assert second.statuses()[0] == "resumed"
            await second.stream_audio(PCM[2 * SECOND : 4 * SECOND], SECOND, speed=4.0)
            ended = await second.finish()
        assert ended["received"] == ended["finalised"] == 4.0
