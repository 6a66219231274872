"""Backlog, watermarks and ledger, as a model-based property and in single cases."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.audio import AudioChunk, AudioFormat
from omi_rt.core.backlog import Backlog
from omi_rt.core.budget import BacklogBudget
from omi_rt.core.coverage import Coverage, Gap

MONO = AudioFormat(8000, 1)
STEREO = AudioFormat(8000, 2)


def pcm(first: int, samples: int) -> bytes:
    """Audio in which every sample tells its own position."""
    return b"".join((n % 65536).to_bytes(2, "little") for n in range(first, first + samples))


@given(
    appended=st.lists(st.integers(0, 40), max_size=20),
    reads=st.lists(st.tuples(st.integers(0, 900), st.integers(1, 60)), max_size=20),
    trimmed=st.integers(0, 900),
)
def test_what_is_read_is_what_was_put_there(
    appended: list[int], reads: list[tuple[int, int]], trimmed: int
) -> None:
    backlog = Backlog(MONO, 10_000)
    for samples in appended:
        backlog.append(pcm(backlog.end, samples))
    assert backlog.end == sum(appended)
    taken = backlog.trim(trimmed)
    assert taken == min(trimmed, backlog.end)
    assert backlog.pending == backlog.end - backlog.start
    for position, limit in reads:
        chunk = backlog.read(position, limit)
        start = max(position, backlog.start)
        if start >= backlog.end:
            assert chunk is None
        else:
            assert chunk is not None
            assert chunk.position == start
            assert chunk.samples == min(limit, backlog.end - start)
            assert chunk.payload == pcm(start, chunk.samples)


pieces = st.lists(st.tuples(st.sampled_from((0, 0, 1)), st.integers(1, 900)), max_size=20)


@given(
    pieces,
    st.lists(st.integers(0, 6000), max_size=6),
    st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 3000)), max_size=8),
)
def test_silence_reads_as_silence_and_takes_no_room(
    appended: list[tuple[int, int]], trims: list[int], reads: list[tuple[int, int]]
) -> None:
    budget = BacklogBudget(1 << 30)
    backlog, other = Backlog(MONO, 10_000, budget), Backlog(MONO, 10_000, budget)
    other.append(b"ab" * 50)
    whole = b""
    for number, (sounds, samples) in enumerate(appended):
        payload = (pcm(7, samples) if sounds else bytes(2 * samples))[: 2 * samples]
        backlog.append(payload)
        whole += payload
        if number < len(trims):
            before, gone = backlog.pending, min(trims[number], backlog.end)
            assert backlog.trim(trims[number]) == before - backlog.pending
            assert backlog.start >= gone
        assert backlog.pending == backlog.end - backlog.start
        assert budget.held_bytes == backlog.held_bytes + other.held_bytes
        assert backlog.held_bytes >= 0
    for position, limit in reads:
        chunk = backlog.read(position, limit)
        if chunk is not None:
            assert chunk.payload == whole[2 * chunk.position : 2 * chunk.end]
            assert chunk.end == min(chunk.position + limit, backlog.end)
    backlog.trim(backlog.end)
    assert backlog.held_bytes == 0


@given(
    pieces,
    st.lists(
        st.tuples(st.sampled_from(("trim", "trim", "drop")), st.integers(0, 6000)), max_size=8
    ),
    st.integers(0, 2000),
)
def test_what_was_trimmed_last_can_be_read_again_as_far_as_it_is_kept_and_nothing_was_dropped(
    appended: list[tuple[int, int]], taken: list[tuple[str, int]], kept: int
) -> None:
    backlog = Backlog(MONO, 10_000, BacklogBudget(1 << 30), kept)
    whole, dropped_to = b"", 0
    for number, (sounds, samples) in enumerate(appended):
        payload = (pcm(7, samples) if sounds else bytes(2 * samples))[: 2 * samples]
        backlog.append(payload)
        whole += payload
        for how, amount in taken[number : number + 1]:
            start = backlog.start
            if how == "trim":
                backlog.trim(amount)
            elif backlog.drop(amount):
                dropped_to = backlog.start
            assert backlog.start >= start
        first = max(dropped_to, backlog.start - kept)
        chunk = backlog.read_trimmed()
        assert (chunk is None) is (first >= backlog.start)
        if chunk is not None:
            assert (chunk.position, chunk.end) == (first, backlog.start)
            assert chunk.payload == whole[2 * first : 2 * backlog.start]
        assert backlog.pending == backlog.end - backlog.start
    # Of what lies before there is at most what the first block holds besides.
    sounding = 2 * (backlog.end - max(0, backlog.start - kept)) + 2 * 900 + 800
    assert backlog.held_bytes <= sounding + 200 * len(appended)
    backlog.trim(backlog.end)
    backlog.forget_trimmed()
    assert (backlog.held_bytes, backlog.read_trimmed()) == (0, None)


def test_a_minute_of_silence_takes_a_few_hundred_bytes() -> None:
    backlog = Backlog(AudioFormat(48_000, 2), 60 * 48_000)
    for _ in range(500):
        backlog.append(bytes(23_040))
    assert backlog.pending == 60 * 48_000
    assert backlog.held_bytes < 1000


@given(st.integers(1, 60), st.integers(500, 5000))
def test_greedy_backlogs_together_stay_below_the_bound_and_small_ones_go_on(
    greedy: int, step: int
) -> None:
    budget = BacklogBudget(1_000_000)
    held = [0] * greedy
    grown = True
    while grown:
        grown = False
        for number in range(greedy):
            if budget.has_room_for(held[number], is_drained=number % 2 == 0):
                held[number] += step
                budget.held_bytes += step
                grown = True
    assert budget.held_bytes < budget.capacity_bytes + step
    drained, undrained = held[0::2], held[1::2]
    assert max(undrained, default=0) <= max(drained) + step
    free = budget.capacity_bytes - budget.held_bytes
    assert budget.has_room_for(free // 5, is_drained=False) or free < 5


def test_who_is_not_drained_stops_at_a_quarter_of_what_the_others_may_have() -> None:
    budget = BacklogBudget(1000)
    budget.held_bytes = 600
    assert budget.has_room_for(99, is_drained=False)
    assert not budget.has_room_for(100, is_drained=False)
    assert budget.has_room_for(399, is_drained=True)
    assert not budget.has_room_for(400, is_drained=True)


def test_the_repr_of_a_chunk_holds_no_audio() -> None:
    assert repr(AudioChunk(0, 2, b"abcd")) == "AudioChunk(0..2)"


steps = st.one_of(
    st.tuples(st.just("receive"), st.integers(0, 300), st.just(0)),
    st.tuples(st.just("finalise"), st.integers(0, 3000), st.integers(0, 1)),
    st.tuples(st.just("drop"), st.just(0), st.just(0)),
    st.tuples(st.just("end"), st.just(0), st.just(0)),
)


@given(st.lists(steps, max_size=40))
def test_the_ledger_balances_after_every_step(actions: list[tuple[str, int, int]]) -> None:
    coverage = Coverage(STEREO, 0.05)
    for action, amount, channel in actions:
        before = [coverage.watermark_of(c) for c in range(2)]
        if action == "receive":
            coverage.receive(bytes(amount * 4))
        elif action == "finalise":
            coverage.finalise(channel, amount)
        elif action == "drop":
            coverage.drop_excess()
            assert coverage.backlog.excess <= 0
        else:
            coverage.lose_pending()
            assert coverage.balance().pending == 0
        balance = coverage.balance()
        assert balance.is_exact
        assert min(balance.received, balance.finalised, balance.pending, balance.lost) >= 0
        assert all(coverage.watermark_of(c) >= before[c] for c in range(2))
        assert coverage.backlog.start == coverage.watermark
        assert all(coverage.watermark_of(c) <= coverage.backlog.end for c in range(2))


def test_audio_is_final_when_the_slowest_channel_has_covered_it() -> None:
    coverage = Coverage(STEREO, 10)
    coverage.receive(bytes(4 * 100))
    assert coverage.finalise(0, 80)
    assert coverage.balance().finalised == 0
    assert coverage.finalise(1, 50)
    assert coverage.balance().finalised == 50


def test_a_watermark_never_goes_back() -> None:
    coverage = Coverage(MONO, 10)
    coverage.receive(bytes(200))
    assert coverage.finalise(0, 60)
    assert not coverage.finalise(0, 40)
    assert coverage.watermark == 60


def test_what_is_dropped_is_the_oldest_and_is_told() -> None:
    coverage = Coverage(MONO, 0.01)
    coverage.receive(bytes(2 * 100))
    assert coverage.drop_excess() == Gap(0, 20)
    assert coverage.watermark == 20
    assert coverage.balance().lost == 20


def test_the_overlap_stays_half_a_second_long_however_short_the_steps_of_the_watermark() -> None:
    coverage = Coverage(MONO, 60)
    coverage.receive(pcm(0, 24_000))
    for mark in (8_000, 8_100, 8_150, 9_000, 20_000, 20_010):
        coverage.finalise(0, mark)
        (chunk,) = coverage.overlap_before(mark, 8_000)
        assert chunk == AudioChunk(mark - 4_000, 4_000, pcm(mark - 4_000, 4_000))


def test_the_overlap_is_cut_into_messages_and_belongs_to_one_watermark_only() -> None:
    coverage = Coverage(STEREO, 60)
    coverage.receive(pcm(0, 32_000))
    coverage.finalise(0, 9_000)
    coverage.finalise(1, 8_000)
    chunks = coverage.overlap_before(8_000, 1_500)
    assert [(chunk.position, chunk.samples) for chunk in chunks] == [
        (4_000, 1_500),
        (5_500, 1_500),
        (7_000, 1_000),
    ]
    assert b"".join(chunk.payload for chunk in chunks) == pcm(8_000, 8_000)
    assert coverage.overlap_before(9_000, 1_500) == []
