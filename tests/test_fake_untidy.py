"""A fake Deepgram that is well, but slow, silent or untidy: each option does what it says."""

from __future__ import annotations

import random
import re
from itertools import pairwise, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio

from omi_rt.core.errors import HandshakeFailed
from omi_rt.fake import (
    FakeDeepgram,
    FaultScript,
    Options,
    Script,
    ScriptError,
    parse_script,
    random_options,
    random_provider,
    random_script,
    read_script,
    synthesise,
)
from omi_rt.fake.borders import BORDERS, HARMFUL_BORDERS, Borders
from omi_rt.fake.faults import Close, Drop, Silence
from omi_rt.fake.finals import FINALIZE_ANSWERS, ChannelTranscriber, Final, FinalizeAnswer
from omi_rt.fake.serve import serve_fake
from omi_rt.fake.speech import utterance
from omi_rt.net.handshake import open_websocket
from tests.fake_client import CLOSE_STREAM, FINALIZE, Client, connected, target
from tests.patient_client import PatientClient

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

RATE = 8000
TALK = Script(
    [
        *utterance("amber bako celu", 1, 0.5),
        *utterance("dorin elfa", 4, 2.5),
        *utterance("fimo garo", 1, 4.0),
    ],
    6.0,
)
PCM = synthesise(TALK, RATE)
LONG = random_script(random.Random(5), 60.0)


async def times_of_a_talk(**options: Any) -> tuple[Client, list[float]]:
    """Stream the talk; returns the client, and when each message came from the start on."""
    async with connected(FakeDeepgram(Options(**options))) as client:
        begun = trio.current_time()
        await client.speak(PCM)
        await client.finish(100.0)
    return client, [time - begun for time in client.times]


# Lateness.


@pytest.mark.parametrize("lateness", [3.0, 12.0, 40.0])
async def test_every_message_is_late_steadily(autojump_clock: MockClock, lateness: float) -> None:
    _, on_time = await times_of_a_talk()
    client, late = await times_of_a_talk(lateness=(lateness, lateness))
    assert late == pytest.approx([time + lateness for time in on_time], abs=0.001)
    assert client.heard() == TALK.transcript()
    assert client.messages[-1]["type"] == "Metadata"
    assert client.closed is not None
    assert client.closed.code == 1000


async def test_lateness_jitters_between_its_bounds_and_keeps_the_order(
    autojump_clock: MockClock,
) -> None:
    _, on_time = await times_of_a_talk()
    client, late = await times_of_a_talk(lateness=(3.0, 9.0))
    by = [after - before for before, after in zip(on_time, late, strict=True)]
    # What waits for one that is later is later still than its own lateness says, but not in total.
    assert all(2.999 <= one <= 9.001 for one in by)
    assert max(by) - min(by) > 0.5
    starts = [result["start"] for result in client.results]
    assert starts == sorted(starts)
    assert client.heard() == TALK.transcript()


async def test_the_answer_to_finalize_is_late_too(autojump_clock: MockClock) -> None:
    async with connected(FakeDeepgram(Options(lateness=(5.0, 5.0)))) as client:
        await client.speak(PCM[: int(1.2 * RATE) * 2])
        asked = trio.current_time()
        client.say(FINALIZE)
        await trio.sleep(8.0)
        assert client.results[0]["from_finalize"] is True
        assert client.times[0] - asked == pytest.approx(5.2, abs=0.3)


# Finalize.


async def finalized(answer: FinalizeAnswer, seconds: float) -> list[dict[str, Any]]:
    """What Finalize brings after ``seconds`` of the talk."""
    fake = FakeDeepgram(Options(finalize=answer, empty_finals=None, minimum_finalize=0.0))
    async with connected(fake) as client:
        await client.speak(PCM[: int(seconds * RATE) * 2])
        await trio.sleep(0.5)
        before = len(client.results)
        client.say(FINALIZE)
        await trio.sleep(5.0)
        return client.results[before:]


ENDS = [word.end for word in TALK.words]


@pytest.mark.parametrize("answer", FINALIZE_ANSWERS)
async def test_finalize_among_words_brings_what_the_option_says(
    autojump_clock: MockClock, answer: FinalizeAnswer
) -> None:
    # Behind the second word, in the gap before the third.
    seconds = round(ENDS[1] + 0.05, 3)
    results = await finalized(answer, seconds)
    if answer == "never":
        assert results == []
        return
    (result,) = results
    assert result["from_finalize"] is True
    assert result["start"] == 0.0
    heard = [word["word"] for word in result["channel"]["alternatives"][0]["words"]]
    expected = {"last_word": ENDS[1], "no_length": 0.0}.get(answer, seconds)
    assert result["duration"] == pytest.approx(expected, abs=0.001)
    assert heard == ([] if answer == "no_length" else ["amber", "bako"])


@pytest.mark.parametrize("answer", FINALIZE_ANSWERS)
async def test_finalize_in_silence_brings_what_the_option_says(
    autojump_clock: MockClock, answer: FinalizeAnswer
) -> None:
    results = await finalized(answer, 2.0)
    if answer in {"never", "speech", "last_word"}:
        assert results == []
        return
    (result,) = results
    assert result["start"] == pytest.approx(ENDS[2] + 0.05, abs=0.001)
    assert result["start"] + result["duration"] == pytest.approx(
        result["start"] if answer == "no_length" else 2.0, abs=0.001
    )
    assert result["channel"]["alternatives"][0]["words"] == []


@pytest.mark.parametrize("answer", FINALIZE_ANSWERS)
async def test_no_word_is_lost_by_any_answer_to_finalize(
    autojump_clock: MockClock, answer: FinalizeAnswer
) -> None:
    async with connected(FakeDeepgram(Options(finalize=answer))) as client:
        for begin in range(0, len(PCM), 4000):
            await client.speak(PCM[begin : begin + 4000])
            client.say(FINALIZE)
        await client.finish()
    assert client.heard() == TALK.transcript()


# Silence.


async def test_silence_can_bring_nothing_on_one_channel_alone(autojump_clock: MockClock) -> None:
    script = Script(utterance("amber", 1, 0.5, channel=1), 20.0, channels=2)
    fake = FakeDeepgram(Options(no_empty_finals=frozenset({1})))
    async with connected(fake, channels=2, multichannel="true") as client:
        await client.speak(synthesise(script, RATE))
        await client.finish()
    of = [[r for r in client.results if r["channel_index"][0] == channel] for channel in (0, 1)]
    assert len(of[0]) >= 4
    assert len(of[1]) == 1
    assert client.heard(1) == ["amber"]


async def test_a_channel_that_is_silent_for_ever_keeps_nothing_else_back(
    autojump_clock: MockClock,
) -> None:
    script = random_script(random.Random(2), 20, channels=2)
    fake = FakeDeepgram(faults=FaultScript.of([Silence(channel=1)]))
    async with connected(fake, channels=2, multichannel="true") as client:
        await client.speak(synthesise(script, RATE))
        await client.finish()
    assert client.heard(0) == script.transcript(0)
    assert client.heard(1) == []
    assert client.metadata["duration"] == 20.0
    assert client.closed is not None
    assert client.closed.code == 1000


# Borders.


def finals_of(habit: Any, script: Script = LONG, seed: int = 1) -> list[Final]:
    """All finals of a script, with utterances cut up every second, and some in silence."""
    channel = ChannelTranscriber(
        RATE,
        endpointing=0.1,
        max_utterance=1.0,
        empty_spans=repeat(0.4),
        borders=Borders(habit, RATE, random.Random(seed)),
    )
    samples = np.frombuffer(synthesise(script, RATE), dtype="<i2")
    finals = [
        final
        for begin in range(0, len(samples), 1600)
        for final in channel.feed(samples[begin : begin + 1600])
    ]
    return finals + channel.close(empty=True)


def true_times(script: Script) -> list[tuple[str, int, int]]:
    return [(word.text, round(word.start * RATE), round(word.end * RATE)) for word in script.words]


def told(finals: list[Final]) -> list[tuple[str, int, int]]:
    return [(word.text, word.start, word.end) for final in finals for word in final.words]


def inside_words(finals: list[Final]) -> int:
    """How many finals end inside a true word."""
    return sum(start < final.end < end for final in finals for _, start, end in true_times(LONG))


CLEAN = finals_of("clean")


def test_clean_borders_are_in_pauses_and_words_inside_their_finals() -> None:
    assert told(CLEAN) == true_times(LONG)
    assert inside_words(CLEAN) == 0
    for final in CLEAN:
        assert all(final.start <= word.start < word.end <= final.end for word in final.words)


def test_last_words_can_reach_over_their_finals() -> None:
    finals = finals_of("reaches_over")
    assert [(f.start, f.end) for f in finals] == [(f.start, f.end) for f in CLEAN]
    for final, clean in zip(finals, CLEAN, strict=True):
        assert final.words[:-1] == clean.words[:-1]
        for word, true in zip(final.words[-1:], clean.words[-1:], strict=True):
            assert (word.text, word.start) == (true.text, true.start)
            assert 0.1 <= (word.end - final.end) / RATE <= 0.4


def test_first_words_can_start_before_their_finals() -> None:
    finals = finals_of("starts_early")
    assert [(f.start, f.end) for f in finals] == [(f.start, f.end) for f in CLEAN]
    for final, clean in zip(finals[1:], CLEAN[1:], strict=True):
        assert final.words[1:] == clean.words[1:]
        for word, true in zip(final.words[:1], clean.words[:1], strict=True):
            assert (word.text, word.end) == (true.text, true.end)
            assert 0.05 <= (final.start - word.start) / RATE <= 0.3


@pytest.mark.parametrize("habit", ["in_first", "in_second"])
def test_a_word_at_a_border_is_told_once_with_its_true_times(habit: str) -> None:
    finals = finals_of(habit)
    assert told(finals) == true_times(LONG)
    assert inside_words(finals) >= 10
    for before, after in pairwise(finals):
        assert before.end == after.start
        over = [word for word in before.words if word.end > before.end]
        early = [word for word in after.words if word.start < after.start]
        assert (early if habit == "in_first" else over) == []


def test_a_word_at_a_border_can_be_told_whole_in_both_finals() -> None:
    finals = finals_of("in_both")
    heard = told(finals)
    twice = [one for one, after in pairwise(heard) if one == after]
    assert len(twice) == inside_words(finals) >= 10
    assert list(dict.fromkeys(heard)) == true_times(LONG)


def test_a_word_at_a_border_can_be_told_in_two_pieces() -> None:
    finals = finals_of("in_halves")
    split = inside_words(finals)
    assert split >= 10
    words = told(finals)
    for final, after in pairwise(finals):
        if final.words and final.words[-1].end == final.end and after.words:
            one, two = final.words[-1], after.words[0]
            index = words.index((one.text, one.start, one.end))
            words[index : index + 2] = [(one.text + two.text, one.start, two.end)]
    assert words == true_times(LONG)
    assert set(HARMFUL_BORDERS) == {"in_halves"}


def test_a_final_can_overlap_the_one_before_and_repeat_its_last_word() -> None:
    finals = finals_of("overlaps")
    offsets = set()
    for index, (final, clean) in enumerate(zip(finals, CLEAN, strict=True)):
        assert final.end == clean.end
        if index and clean.words and CLEAN[index - 1].words:
            true = CLEAN[index - 1].words[-1]
            again = final.words[0]
            assert again.text == true.text
            assert again.voice == true.voice
            assert 0.02 <= abs(again.start - true.start) / RATE <= 0.05
            assert again.end - again.start == true.end - true.start
            assert 0 <= (true.start - final.start) / RATE <= 0.05
            assert final.words[1:] == clean.words
            offsets.add(again.start - true.start)
        else:
            assert final == clean
    assert len(offsets) >= 10
    assert min(offsets) < 0 < max(offsets)
    assert [clean for clean in CLEAN if not clean.words], "silence keeps words apart"


def test_finalize_cuts_into_a_word_where_the_second_final_has_it() -> None:
    (word,) = utterance("amber", 1, 0.5)
    samples = np.frombuffer(synthesise(Script([word], 2.0), RATE), dtype="<i2")
    at = round((word.start + word.end) / 2 * RATE)
    for habit, end in (("clean", None), ("in_first", None), ("in_second", at)):
        channel = ChannelTranscriber(
            RATE,
            endpointing=0.1,
            max_utterance=5.0,
            borders=Borders(habit, RATE, random.Random(1)),  # type: ignore[arg-type]
        )
        assert channel.feed(samples[:at]) == []
        (final,) = channel.finalize()
        assert final.words == ()
        assert final.end == end or (end is None and final.end < word.start * RATE)
        (rest,) = [f for f in channel.feed(samples[at:]) if f.words]
        assert rest.start == final.end
        assert told([rest]) == [("amber", round(word.start * RATE), round(word.end * RATE))]


async def test_borders_are_those_of_the_option_and_the_seed(autojump_clock: MockClock) -> None:
    over = []
    for seed in (1, 2):
        client, _ = await times_of_a_talk(borders="reaches_over", seed=seed)
        first = client.results[0]
        last = first["channel"]["alternatives"][0]["words"][-1]
        over.append(last["end"] - first["start"] - first["duration"])
    assert all(0.1 <= seconds <= 0.4 for seconds in over)
    assert over[0] != over[1]


# Metadata, and clocks.


@pytest.mark.parametrize("early", [0, 1, 2, 9])
async def test_metadata_can_overtake_the_last_results(
    autojump_clock: MockClock, early: int
) -> None:
    fake = FakeDeepgram(Options(early_metadata=early, lateness=(4.0, 4.0)))
    async with connected(fake) as client:
        await client.speak(PCM)
        await client.finish()
    kinds = [message["type"] for message in client.messages]
    assert kinds[::-1].index("Metadata") == min(early, 3)
    assert client.heard() == TALK.transcript()
    assert client.closed is not None
    assert client.closed.code == 1000


async def test_finals_can_claim_more_than_has_come_in(autojump_clock: MockClock) -> None:
    fake = FakeDeepgram(Options(claims_ahead=10.0, lateness=(1.5, 1.5)))
    async with connected(fake) as client:
        begun = trio.current_time()
        await client.speak(PCM)
        await client.finish()
    for result, time in zip(client.results, client.times, strict=False):
        received = min(time - begun, TALK.seconds)
        assert result["start"] + result["duration"] == pytest.approx(received + 10.0, abs=0.3)
    assert client.heard() == TALK.transcript()
    starts = [word["start"] for word in client.words()]
    assert starts == pytest.approx([word.start for word in TALK.words], abs=0.001)
    assert client.metadata["duration"] == TALK.seconds


async def test_a_clock_can_go_too_fast(autojump_clock: MockClock) -> None:
    client, _ = await times_of_a_talk(clock_factor=1.5)
    ends = [word["end"] for word in client.words()]
    assert ends == pytest.approx([word.end * 1.5 for word in TALK.words], abs=0.001)
    end = 0.0
    for result in client.results:
        assert result["start"] == pytest.approx(end, abs=0.001)
        end = result["start"] + result["duration"]
    assert end == pytest.approx(9.0, abs=0.001)
    assert client.metadata["duration"] == 9.0


# From files, and at random.


def test_a_script_can_set_options(tmp_path: Path) -> None:
    text = """
        [options]
        lateness = [8, 12.5]
        finalize = "never"
        borders = "in_both"
        empty_finals = [2, 3]
        no_empty_finals = [1]
        early_metadata = 2
        claims_ahead = 20
        [[connections]]
        [[connections.faults]]
        kind = "drop"
        after_audio = 2
    """
    (tmp_path / "a.toml").write_text(text)
    script = read_script(tmp_path / "a.toml")
    assert script.options == Options(
        lateness=(8.0, 12.5),
        finalize="never",
        borders="in_both",
        empty_finals=(2.0, 3.0),
        no_empty_finals=frozenset({1}),
        early_metadata=2,
        claims_ahead=20.0,
    )
    assert script.plan(0).faults == (Drop(after_audio=2.0),)
    assert parse_script({}).options == Options()


def test_wrong_options_of_a_script_are_named() -> None:
    with pytest.raises(ScriptError) as wrong:
        parse_script(
            {
                "options": {
                    "lateness": [3],
                    "finalize": "perhaps",
                    "delay": "long",
                    "early_metadata": 1.5,
                    "laziness": 1,
                }
            }
        )
    message = str(wrong.value)
    assert "\n" not in message
    for name in ("lateness", "finalize", "delay", "early_metadata"):
        assert f"options.{name}: " in message
    assert "options.laziness is unknown" in message


@pytest.mark.parametrize(
    "options",
    [
        {"lateness": (3.0, 1.0)},
        {"lateness": (-1.0, 1.0)},
        {"finalize": "perhaps"},
        {"borders": "none"},
        {"early_metadata": -1},
        {"claims_ahead": -1.0},
        {"clock_factor": 0.0},
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Options(**options)


def test_random_options_are_the_same_for_the_same_seed_and_know_all_but_harm() -> None:
    drawn = [random_options(random.Random(seed), channels=2) for seed in range(300)]
    assert drawn == [random_options(random.Random(seed), channels=2) for seed in range(300)]
    assert {options.borders for options in drawn} == set(BORDERS) - HARMFUL_BORDERS
    assert {options.finalize for options in drawn} == set(FINALIZE_ANSWERS)
    assert {options.clock_factor for options in drawn} == {1.0}
    assert not [o for o in drawn if o.borders == "reaches_over" and o.claims_ahead]
    for name in ("lateness", "early_metadata", "claims_ahead", "no_empty_finals", "empty_finals"):
        assert len({getattr(options, name) for options in drawn}) > 1, name


def test_a_late_provider_has_fewer_faults() -> None:
    """What is late is in the backlog: there is less room for outages."""
    ends: dict[bool, list[int]] = {False: [], True: []}
    for seed in range(300):
        options, faults = random_provider(random.Random(seed), 40.0)
        ends[options.lateness[1] >= 8.0].append(len(faults.connections))
    assert sum(ends[True]) / len(ends[True]) < 0.8 * sum(ends[False]) / len(ends[False])


def test_an_end_costs_what_is_late_by_then() -> None:
    """Twice the lateness is taken off first; what is left pays for short connections alone."""
    ends: list[Drop | Close] = []
    for seed in range(600):
        options, faults = random_provider(random.Random(seed), 2 * 8.0 + 6.0)
        if options.lateness[1] >= 8.0:
            ends += ends_in(faults)
            assert ends_in(random_provider(random.Random(seed), 2 * 8.0)[1]) == []
    assert ends
    assert all((end.after_audio or 0.0) < 6.0 for end in ends)


def ends_in(faults: FaultScript) -> list[Drop | Close]:
    """What ends connections that were open."""
    return [
        fault
        for plan in faults.connections
        for fault in plan.of_open_connection
        if isinstance(fault, Drop | Close)
    ]


@pytest.mark.parametrize("seed", range(40))
async def test_a_patient_client_gets_every_word_once_from_any_untidy_provider(
    autojump_clock: MockClock, seed: int
) -> None:
    rng = random.Random(seed)
    script = random_script(rng, 60, channels=1 + seed % 2)
    budget = 40.0
    options, faults = random_provider(rng, budget, channels=script.channels)
    fake = FakeDeepgram(options, faults)
    client = PatientClient(fake, synthesise(script, RATE), script.channels)
    with trio.fail_after(400):
        await client.run()
    for channel in range(script.channels):
        assert client.heard[channel] == script.transcript(channel), (options, faults)
    assert client.longest_backlog <= budget + 15.0
    assert fake.violations == []


async def test_metadata_is_late_also_where_no_results_come(autojump_clock: MockClock) -> None:
    fake = FakeDeepgram(Options(lateness=(7.0, 7.0), empty_finals=None))
    async with connected(fake) as client:
        client.say(bytes(16_000))
        await trio.sleep(1.0)
        closed_at = trio.current_time()
        await client.finish()
        assert trio.current_time() - closed_at == pytest.approx(7.2, abs=0.01)
    assert [message["type"] for message in client.messages] == ["Metadata"]


async def test_the_rest_after_close_stream_is_late_too(autojump_clock: MockClock) -> None:
    async with connected(FakeDeepgram(Options(lateness=(20.0, 20.0)))) as client:
        client.say(PCM[:32_000])
        await trio.sleep(1.0)
        closed_at = trio.current_time()
        client.say(CLOSE_STREAM)
        await client.until_closed(60.0)
        assert trio.current_time() - closed_at == pytest.approx(20.2, abs=0.01)


@pytest.mark.realtime
async def test_options_of_a_script_reach_the_fake_that_is_served(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"options": {"keys": ["right"]}}')

    async def status(keys: frozenset[str]) -> int:
        """The answer to an upgrade with another key."""
        send, receive = trio.open_memory_channel[str](1)
        answered = 101
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_fake, "127.0.0.1", 0, path, None, keys, send.send_nowait)
            with trio.fail_after(5.0):
                [url] = re.findall(r"ws://[\d.:]+\d", await receive.receive())
                stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
                try:
                    await open_websocket(
                        stream, url + target(), headers={"Authorization": "Token other"}
                    )
                except HandshakeFailed as error:
                    answered = error.status or 0
                finally:
                    await trio.aclose_forcefully(stream)
                    nursery.cancel_scope.cancel()
        return answered

    assert await status(frozenset()) == 401
    assert await status(frozenset({"other"})) == 101
