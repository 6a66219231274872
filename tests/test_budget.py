"""The memory that all sessions' audio may take: who waits at the bound, and that nothing is lost."""

from __future__ import annotations

import contextlib
from array import array
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.budget import BacklogBudget
from omi_rt.core.errors import HandshakeFailed
from omi_rt.core.lead_in import VoiceClips
from omi_rt.fake import Script, synthesise
from omi_rt.fake.speech import utterance
from omi_rt.server.memory import BACKLOG_SHARE, default_backlog_bytes
from tests.harness import assert_whole, listening_server, words_of
from tests.test_early import STEREO, recorded, spoken
from tests.test_identities import STRANGER, USER, conversation, stored

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

TALK = Script(utterance("amber bako celu dorin", 1, 0.2), 3.0)
PCM = synthesise(TALK, 8000)
MIB = 1_048_576


async def test_at_the_bound_who_holds_most_waits_and_loses_nothing(
    autojump_clock: MockClock,
) -> None:
    """Three devices send at once what takes 16 s to go up; a fourth talks, a fifth is refused."""
    async with listening_server(backlog_bytes=MIB) as (world, _fake):
        budget, most = world.server.budget, 0
        quiet = synthesise(Script(utterance("amber bako celu dorin", 1, 0.2), 20.0), 48_000)
        samples = np.frombuffer(quiet, "<i2")
        loud = np.where(samples == 0, 1, samples).astype("<i2").tobytes()
        ended = {}

        async def flood(uid: str) -> None:
            async with world.device(uid=uid, codec="pcm16", sample_rate=48_000) as device:
                for start in range(0, len(loud), 60_000):
                    await device.websocket.drained(60_000)
                    device.send(loud[start : start + 60_000])
                ended[uid] = await device.finish(300)
                assert words_of(device.segments) == TALK.transcript()

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, budget.held_bytes)
                await trio.sleep(0.05)

        async with world.device(uid="live") as live, trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as floods:
                for uid in "abc":
                    floods.start_soon(flood, uid)
                await trio.sleep(1)
                held_back = world.metrics.held_back._value.get()
                assert held_back >= 3
                started = trio.current_time()
                await live.stream_audio(PCM, 16_000)
                assert trio.current_time() - started < 3.5, "who holds little is read all the time"
            assert (await live.finish())["lost"] == 0
            assert words_of(live.segments) == TALK.transcript()
            nursery.cancel_scope.cancel()
        assert 0.5 * MIB < most < 1.2 * MIB
        assert [account["lost"] for account in ended.values()] == [0, 0, 0]
        assert [account["received"] for account in ended.values()] == [20.0] * 3
        assert budget.backlog_bytes == 0


async def test_without_memory_a_new_session_gets_503(autojump_clock: MockClock) -> None:
    async with listening_server(backlog_bytes=MIB) as (world, _fake):
        world.server.budget.held_bytes += MIB
        with pytest.raises(HandshakeFailed, match="503"):
            async with world.device():
                pass
        world.server.budget.held_bytes -= MIB
        async with world.device() as device:
            await device.finish()
        assert 'reason="memory"} 1.0' in (await world.get("/metrics"))[2]


async def test_tiny_packets_of_silence_take_no_memory(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake):
        parameters = {"codec": "opus", "sample_rate": 48_000, "channels": 2}
        async with world.device(**parameters) as device:
            for _ in range(2400):
                device.send(bytes([26, 0]))
            await trio.sleep(0.5)
            assert device.session.coverage.balance().pending > 30 * 48_000
            assert world.server.budget.held_bytes < 20_000
        with contextlib.suppress(trio.TooSlowError):
            await world.sessions_ended()


def test_the_default_is_a_share_of_what_the_container_has(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    machine = default_backlog_bytes(tmp_path / "none", own)
    assert machine > 100 * MIB
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "memory.max").write_text("max\n")
    (tmp_path / "a" / "memory.max").write_text(f"{400 * MIB}\n")
    own.write_text("0::/a/b\n")
    assert default_backlog_bytes(tmp_path, own) == 400 * MIB * BACKLOG_SHARE
    (tmp_path / "memory" / "x").mkdir(parents=True)
    (tmp_path / "memory" / "x" / "memory.limit_in_bytes").write_text(f"{200 * MIB}\n")
    own.write_text("4:memory:/x\n1:cpu:/y\n")
    assert default_backlog_bytes(tmp_path, own) == 200 * MIB * BACKLOG_SHARE
    own.write_text("4:memory:/nowhere\n")
    assert default_backlog_bytes(tmp_path, own) == machine


async def test_a_device_that_we_do_not_read_for_want_of_memory_has_not_vanished(
    autojump_clock: MockClock,
) -> None:
    async with listening_server(backlog_bytes=MIB) as (world, _fake), world.device() as device:
        await device.stream_audio(PCM[:16_000], 16_000)
        world.server.budget.held_bytes += MIB
        await device.stream_audio(PCM[16_000:], 16_000)
        await trio.sleep(150)
        assert device.closed is None
        world.server.budget.held_bytes -= MIB
        await device.finish()
    assert_whole(device, TALK)


async def test_clips_of_the_speakers_count_and_go_with_their_session(
    autojump_clock: MockClock,
) -> None:
    async with listening_server(profiles=stored()) as (world, _fake):
        async with world.device() as device:
            script = conversation((STRANGER, USER), 60.0)
            await device.stream_audio(synthesise(script, 8000), 16_000)
            voices = device.session._transcript.voices
            # Of two speakers, as long as a clip may be each; the first speech is let go of by then.
            assert 60_000 < voices.held_bytes <= 2 * 7 * 16_000
            backlog = device.session.coverage.backlog
            assert world.server.budget.backlog_bytes == voices.held_bytes + backlog.held_bytes
            await device.finish()
        await world.sessions_ended()
        assert world.server.budget.held_bytes == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("hhhhhmes"), st.integers(0, 9), st.integers(0, 9)), max_size=40
    )
)
def test_what_clips_hold_is_what_the_budget_says(steps: list[tuple[str, int, int]]) -> None:
    budget = BacklogBudget(4_000_000)
    voices, backlog = VoiceClips(STEREO, budget), recorded(90, STEREO)
    at = 0.0
    for what, one, other in steps:
        if what == "h":
            words = [(one, spoken(at, at + 1.0)), (other, spoken(at + 1, at + 1.5, channel=1))]
            voices.hear(words, backlog)
            at += 2.0
        elif what == "m" and one != other:
            voices.merge(one, other)
        elif what == "e":
            voices.forget_early()
        clips = [piece for clip in voices._clips.values() for piece in clip.pieces]
        kept = [len(piece.payload) for piece in clips]
        kept += [len(stretch.payload) for stretch in voices.early_stretches]
        assert voices.held_bytes == sum(kept) == budget.held_bytes
        # Of one channel alone, however many the session has.
        assert sum(kept) <= (8 * 7 + 19) * 2000
    voices.forget_all()
    assert (voices.held_bytes, budget.held_bytes) == (0, 0)


def test_clips_take_nothing_new_while_memory_is_scarce() -> None:
    budget = BacklogBudget(1_000_000)
    voices, backlog = VoiceClips(STEREO, budget), recorded(20, STEREO)
    voices.forget_early()
    budget.held_bytes = 500_001
    voices.hear([(0, spoken(0, 2))], backlog)
    assert voices.held_bytes == 0
    budget.held_bytes = 500_000
    voices.hear([(0, spoken(2, 4))], backlog)
    assert voices.held_bytes == 4000
    assert voices.recording(0)[:4] == array("h", [2001, 2002]).tobytes()
