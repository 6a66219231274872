"""What is decided without waiting when a connection is lost and another one comes."""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.client.device import DEVICE_CODECS, DeviceMessage
from omi_rt.client.kept import MAX_KEPT_SECONDS, KeptAudio
from omi_rt.codecs.opus import OpusEncoder, packet_samples
from omi_rt.codecs.resent import ResentPackets, resent
from omi_rt.core.budget import BacklogBudget
from omi_rt.core.json import dumps, loads
from omi_rt.core.listen import OPUS_SAMPLE_RATES, ListenRequest
from omi_rt.core.outbox import MAX_OUTBOX_BYTES, MissingNumbers, Outbox
from omi_rt.core.presence import MOVES, IllegalMove, Move, Presence, after_move
from omi_rt.core.resume import Decision, Outcome, Wish, decide, parse_wish, split_wish

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGUN = ListenRequest("u1", sample_rate=16_000, codec="pcm16")


@pytest.mark.parametrize(("presence", "move"), list(itertools.product(Presence, Move)), ids=str)
def test_a_device_s_presence_changes_as_the_table_says_and_no_other_way(
    presence: Presence, move: Move
) -> None:
    if move in MOVES[presence]:
        assert after_move(presence, move) is MOVES[presence][move]
    else:
        with pytest.raises(IllegalMove):
            after_move(presence, move)


def test_who_has_ended_or_is_gone_is_never_here_again() -> None:
    for last in (Presence.LEAVING, Presence.GONE):
        assert not {Presence.HERE, Presence.AWAY} & set(MOVES[last].values())


@pytest.mark.parametrize(
    ("presence", "request_", "after", "is_too_often", "outcome", "code"),
    [
        (Presence.AWAY, BEGUN, None, False, Outcome.RESUMED, None),
        (Presence.HERE, BEGUN, None, False, Outcome.RESUMED, None),
        (Presence.HERE, BEGUN, 7, False, Outcome.RESUMED, None),
        (Presence.HERE, BEGUN, 8, False, Outcome.REFUSED, 1008),
        (Presence.LEAVING, BEGUN, None, False, Outcome.UNKNOWN, None),
        (Presence.GONE, BEGUN, None, False, Outcome.UNKNOWN, None),
        (Presence.AWAY, BEGUN, None, True, Outcome.TOO_OFTEN, 1013),
        (Presence.AWAY, ListenRequest("u2", "en", 16_000, "pcm16"), 0, False, Outcome.REFUSED, 1008),
        (Presence.AWAY, ListenRequest("u1", "en", 8_000, "pcm16"), 0, True, Outcome.REFUSED, 1008),
        (Presence.AWAY, ListenRequest("u1", "en", 16_000, "opus"), 0, False, Outcome.REFUSED, 1008),
        (Presence.AWAY, ListenRequest("u1", "en", 16_000, "linear16", 2), 0, False, Outcome.REFUSED, 1008),
        (Presence.AWAY, ListenRequest("u1", "fr", 16_000, "linear16"), 0, False, Outcome.RESUMED, None),
    ],
)  # fmt: skip
def test_the_table_of_what_becomes_of_a_resume(
    presence: Presence,
    request_: ListenRequest,
    after: int | None,
    is_too_often: bool,
    outcome: Outcome,
    code: int | None,
) -> None:
    decision: Decision = decide(
        Wish("secret", after),
        request_,
        presence=presence,
        begun=BEGUN,
        told=7,
        is_too_often=is_too_often,
    )
    assert (decision.outcome, decision.close_code) == (outcome, code)
    assert bool(decision.reason) == (code is not None)


def test_what_belongs_to_the_path_is_left_to_it() -> None:
    pairs = (("uid", "u"), ("after", "3"), ("from", "x"))
    assert split_wish(pairs) == ({}, pairs)
    wishes, rest = split_wish((*pairs, ("resume", "s"), ("acknowledge", "true")))
    assert rest == (("uid", "u"),)
    assert wishes == {"after": "3", "from": "x", "resume": "s", "acknowledge": "true"}
    assert parse_wish({}) == Wish()
    assert parse_wish({"resume": "", "from": "1.5"}) == Wish("", start=1.5)
    assert "s3cret" not in repr(parse_wish({"resume": "s3cret"}))


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Iterator[None]:
    """Let a few messages make a block, so that what happens at its borders happens often."""
    with mock.patch("omi_rt.core.outbox._BLOCK_BYTES", 100):
        yield


@given(st.lists(st.lists(st.text(max_size=20), min_size=1, max_size=4), max_size=30), st.data())
def test_everything_after_a_number_is_told_again_once_and_in_order(
    messages: list[list[str]], data: st.DataObject
) -> None:
    outbox = Outbox()
    for texts in messages:
        array = [{"text": text} for text in texts]
        before = outbox.last_seq
        outbox.keep(len(array), dumps(outbox.number(array)), 0.0)
        assert outbox.last_seq == before + len(array)
    after = data.draw(st.integers(0, outbox.last_seq))
    size = data.draw(st.integers(1, 500))
    again: list[tuple[int, str]] = []
    told = after
    while batch := outbox.take_after(told, size):
        for kept in batch:
            again += [(each["seq"], each["text"]) for each in loads(kept.after(told))]
            told = kept.last
    every = [text for texts in messages for text in texts]
    assert again == list(enumerate(every, 1))[after:]


def test_the_store_is_bounded_and_says_what_it_has_not() -> None:
    outbox = Outbox()
    event = {"text": "x" * 1000}
    for number in range(1, 3001):
        outbox.keep(1, dumps(outbox.number(event)), number)
        assert outbox.held_bytes <= MAX_OUTBOX_BYTES
    missing = outbox.missing_after(10)
    assert missing is not None
    (first, *_) = outbox.take_after(10, 1)
    assert missing == MissingNumbers(11, first.first - 1)
    assert first.first > 1500
    assert outbox.missing_after(first.first - 1) is None
    assert outbox.missing_after(3000) is None
    assert "x" not in repr(first)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 900), st.booleans()), min_size=1, max_size=200
    )
)
def test_all_stores_together_are_bounded_and_what_is_kept_and_what_is_missing_is_everything(
    steps: list[tuple[int, int, bool]],
) -> None:
    budget = BacklogBudget(20_000)
    budget.held_bytes = 3_000  # of backlogs
    outboxes = [Outbox(budget) for _ in range(6)]
    for which, size, closes in steps:
        outbox = outboxes[which]
        if closes and size < 50:
            outbox.close()
            assert outbox.held_bytes == 0
            outbox = outboxes[which] = Outbox(budget)
        outbox.keep(1, dumps(outbox.number({"text": "x" * size})), 0.0)
        assert budget.outbox_bytes == sum(each.held_bytes for each in outboxes) <= 5_000
        assert budget.backlog_bytes == 3_000
        # What it holds is no more than what is left for the others.
        assert outbox.held_bytes <= 5_000 - budget.outbox_bytes
        missing = outbox.missing_after(0)
        first = 1 if missing is None else missing.last + 1
        kept = [each.first for each in outbox.take_after(first - 1, 1 << 20)]
        assert kept == list(range(first, outbox.last_seq + 1))
        assert missing is None or missing.first == 1
    for outbox in outboxes:
        outbox.close()
        outbox.close()
        assert outbox.take_after(0, 1) == []
    assert (budget.held_bytes, budget.outbox_bytes) == (3_000, 0)


def test_who_was_told_little_keeps_it_where_another_was_told_much() -> None:
    budget = BacklogBudget(40_000)
    chatty, quiet = Outbox(budget), Outbox(budget)
    for number in range(1000):
        chatty.keep(1, dumps(chatty.number({"text": "x" * 100})), 0.0)
        if number % 200 == 0:
            quiet.keep(1, dumps(quiet.number({"text": "hello"})), 0.0)
    assert quiet.missing_after(0) is None
    missing = chatty.missing_after(0)
    assert missing is not None
    # What has begun to go goes on from any number.
    for after in range(missing.last, 1000):
        told = [each.first for each in chatty.take_after(after, 1 << 20)]
        assert told == list(range(after + 1, 1001))
        assert chatty.recent(0.0) == 0
    assert 4_000 < chatty.held_bytes <= 5_000


@pytest.mark.parametrize("text", ["plain", "слово", "今日は", "fine 😀", '"said"'])
def test_what_is_held_in_memory_is_what_is_counted_in_any_script(text: str) -> None:
    outbox = Outbox(BacklogBudget(400_000))
    for _ in range(3000):
        outbox.keep(1, dumps(outbox.number({"text": f"{text} " * 20})), 0.0)
    blocks = sum(sys.getsizeof(block.text) for block in outbox._blocks)
    # A quotation mark that was said takes two bytes more in a block than in its message.
    assert 0.7 * outbox.held_bytes < blocks <= 1.25 * outbox.held_bytes


def test_what_is_kept_is_kept_in_few_pieces() -> None:
    outbox = Outbox(BacklogBudget(40_000))
    for _ in range(1000):
        outbox.keep(1, dumps(outbox.number({"text": "x" * 10})), 0.0)
    count = len(outbox.take_after(0, 1 << 20))
    assert count > 40
    assert len(outbox._blocks) * 3 < count


def test_of_what_has_begun_to_go_the_last_minute_is_still_recent() -> None:
    outbox = Outbox(BacklogBudget(10_000))
    for number in range(200):
        outbox.keep(1, dumps(outbox.number({})), float(number))
    for now in range(199, 260):
        missing = outbox.missing_after(outbox.recent(float(now)))
        told = [each.first for each in outbox.take_after(outbox.recent(float(now)), 1 << 20)]
        first = max(now - 60, (missing.last if missing else 0))
        assert told == list(range(first + 1, 201)), now


def test_where_all_of_the_last_minute_fell_out_the_gap_is_told_for_a_minute() -> None:
    outbox = Outbox(BacklogBudget(100))
    outbox.keep(1, dumps(outbox.number({"text": "hello"})), 10.0)
    assert outbox.held_bytes == 0
    assert outbox.recent(70.0) == 0
    assert outbox.missing_after(outbox.recent(70.0)) == MissingNumbers(1, 1)
    assert outbox.recent(70.1) == 1
    assert outbox.missing_after(outbox.recent(70.1)) is None


def test_recent_is_what_was_told_in_the_last_minute() -> None:
    outbox = Outbox()
    assert outbox.recent(0.0) == 0
    for number in range(100):
        outbox.keep(1, dumps(outbox.number({})), float(number))
    assert outbox.recent(99.0) == 39
    assert outbox.recent(1000.0) == 100
    assert outbox.recent(30.0) == 0


@pytest.mark.parametrize("rate", OPUS_SAMPLE_RATES)
@pytest.mark.parametrize("milliseconds", [2.5, 5, 10, 20, 40, 60])
def test_a_packet_says_how_long_it_is(rate: int, milliseconds: float) -> None:
    samples = int(rate * milliseconds / 1000)
    packet = OpusEncoder(rate, 1).encode(bytes(samples * 2))
    assert packet_samples(packet, rate) == samples


def test_packets_without_a_length_have_none() -> None:
    assert packet_samples(b"", 16_000) == 0
    assert packet_samples(b"\x03", 16_000) == 0


@given(st.integers(0, 300), st.lists(st.integers(1, 50), max_size=20))
def test_bytes_are_left_out_to_the_sample(samples: int, sizes: list[int]) -> None:
    again = resent(BEGUN, samples)
    data = bytes(n % 251 for n in range(sum(sizes)))
    at, kept = 0, b""
    for size in sizes:
        kept += again.rest_of(data[at : at + size]) or b""
        at += size
    assert kept == data[samples * 2 :]
    assert again.is_over == (len(data) >= samples * 2)


@pytest.mark.parametrize(("samples", "left_out"), [(0, 0), (150, 0), (161, 1), (320, 1), (479, 1), (480, 2), (3200, 10)])  # fmt: skip
def test_a_packet_is_left_out_where_its_middle_was_there(samples: int, left_out: int) -> None:
    packet = OpusEncoder(16_000, 1).encode(bytes(640))
    again = ResentPackets(samples, 16_000)
    assert [again.rest_of(packet) for _ in range(11)].count(None) == left_out
    assert again.is_over


@given(st.integers(0, 700), st.integers(0, 700))
def test_kept_pcm_is_sent_again_from_the_sample_on_as_far_as_it_is_kept(
    done: int, position: int
) -> None:
    kept = KeptAudio(DEVICE_CODECS["pcm16"], 1)
    data = bytes(n % 251 for n in range(2 * 640))
    for end in range(160, 641, 160):
        kept.add(DeviceMessage(data[2 * (end - 160) : 2 * end], end))
    kept.acknowledge(done)
    assert done - 160 < kept.start <= max(done, 0)
    again = b"".join(message.payload for message in kept.since(position))
    assert again == data[2 * max(position, kept.start) :]


def test_kept_opus_is_sent_again_from_the_nearest_packet_on() -> None:
    kept = KeptAudio(DEVICE_CODECS["opus"], 1)
    for end in range(160, 641, 160):
        kept.add(DeviceMessage(b"%d" % end, end))
    assert [m.end for m in kept.since(320)] == [480, 640]
    assert [m.end for m in kept.since(390)] == [480, 640]
    assert [m.end for m in kept.since(410)] == [640]


def test_what_is_kept_is_bounded() -> None:
    kept = KeptAudio(DEVICE_CODECS["pcm8"], 1)
    for end in range(8000, 8000 * 500, 8000):
        kept.add(DeviceMessage(b"", end))
        assert kept.end - kept.start <= MAX_KEPT_SECONDS * 8000
    assert kept.start > 8000 * 300
