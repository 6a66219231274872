"""How many connections the recogniser takes: by what its work was measured to cost, never by a guess."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from omi_rt.core.lateness import BEHIND_SECONDS, CAUGHT_UP_SECONDS, Lateness, LatenessChange
from omi_rt.local.capacity import SPEECH_MARGIN, USABLE_SHARE, Capacity, StreamLoad
from omi_rt.local.cores import usable_cores

if TYPE_CHECKING:
    from pathlib import Path


def measured(share: float, cores: float = 2.0, most: int = 64) -> Capacity:
    capacity = Capacity(cores, most)
    capacity.speech_share = share
    return capacity


def work(load: StreamLoad, share: float, seconds: int, behind: float = 0.0) -> None:
    for second in range(1, seconds + 1):
        load.record(float(second), second * share, behind)


def test_before_anything_is_measured_there_is_a_core_for_each() -> None:
    capacity = Capacity(4.0, 64)
    assert capacity.carried == 4
    capacity.open(1)
    assert capacity.carried == 4


def test_what_is_measured_at_the_start_says_how_many_fit() -> None:
    assert measured(0.1).carried == round(2.0 * USABLE_SHARE / (0.1 * SPEECH_MARGIN)) == 10
    assert measured(0.2).carried == 5
    assert measured(0.2, cores=1.0).carried == 2


def test_new_streams_count_as_speech_so_that_a_crowd_does_not_come_in_at_once() -> None:
    capacity = measured(0.2)
    for _ in range(5):
        assert capacity.carried == 5
        capacity.open(1)
    assert capacity.carried == 5, "full"


def test_streams_that_cost_less_make_room_and_such_that_cost_more_take_it() -> None:
    capacity = measured(0.2)
    loads = [capacity.open(1) for _ in range(4)]
    for load in loads:
        work(load, 0.01, 300)
    assert capacity.carried > 5
    cheap = capacity.carried
    for load in loads:
        capacity.close(load)
    for load in [capacity.open(1) for _ in range(4)]:
        work(load, 0.6, 300)
    assert capacity.carried == 4 < cheap


def test_what_a_stream_cost_long_ago_counts_less_than_what_it_costs_now() -> None:
    load = StreamLoad(1)
    work(load, 0.0, 600)
    silent = load.share(0.2)
    for second in range(601, 901):
        load.record(float(second), (second - 600) * 0.3, 0.0)
    assert silent < 0.05
    assert load.share(0.2) > 0.25


def test_two_channels_count_twice() -> None:
    capacity = measured(0.2)
    capacity.open(2)
    assert capacity.carried == 1 + 3


def test_one_more_than_the_cores_carry_is_taken_and_no_further_one() -> None:
    capacity = measured(0.2)
    for _ in range(5):
        capacity.open(1)
    assert capacity.carried == 5
    # It may take the place of one that was lost.
    extra = capacity.open(1)
    was_full = capacity.is_full
    capacity.close(extra)
    assert (was_full, capacity.is_full) == (True, False)


def test_before_anything_is_measured_one_more_than_the_cores_is_taken() -> None:
    capacity = Capacity(2.0, 64)
    for _ in range(3):
        assert not capacity.is_full
        capacity.open(1)
    assert capacity.is_full


def test_a_single_stream_may_make_ready_its_successor_however_slow_the_machine_is() -> None:
    slow = measured(3.0)
    slow.open(1)
    assert not slow.is_full
    slow.open(1)
    assert slow.is_full


def test_a_number_that_is_set_holds_whatever_is_measured() -> None:
    capacity = Capacity(2.0, 3, is_fixed=True)
    capacity.speech_share = 0.001
    assert (capacity.carried, capacity.is_measured) == (3, True)
    for _ in range(3):
        assert not capacity.is_full
        work(capacity.open(1), 3.0, 60)
    assert (capacity.carried, capacity.is_full) == (3, True)


def test_while_a_stream_is_behind_there_is_no_room() -> None:
    capacity = measured(0.1)
    load, other = capacity.open(1), capacity.open(1)
    work(load, 0.1, 3, behind=BEHIND_SECONDS)
    assert capacity.carried == 2
    work(load, 0.1, 3, behind=CAUGHT_UP_SECONDS + 0.1)
    assert capacity.carried == 2
    work(load, 0.1, 3, behind=CAUGHT_UP_SECONDS)
    assert capacity.carried > 2
    work(other, 0.1, 3, behind=BEHIND_SECONDS)
    capacity.close(other)
    assert capacity.carried > 1


def test_the_first_is_taken_however_slow_the_machine_is_and_no_more_than_the_most() -> None:
    slow = measured(3.0)
    assert slow.carried == 1
    slow.open(1)
    assert slow.carried == 1
    assert measured(0.0001, most=8).carried == 8
    assert measured(0.0, most=8).carried == 8


def test_it_falls_behind_and_catches_up_once_each() -> None:
    lateness = Lateness()
    told = [lateness.report(s) for s in (1.0, 4.9, 5.0, 9.0, 4.0, 2.1, 2.0, 4.0, 0.0, 6.0)]
    assert told == [
        None, None, LatenessChange.FELL_BEHIND, None, None, None, LatenessChange.CAUGHT_UP,
        None, None, LatenessChange.FELL_BEHIND,
    ]  # fmt: skip
    assert lateness.most_seconds == 6.0


@pytest.mark.parametrize(
    ("group", "files", "limit"),
    [
        ("0::/", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b", {"a/cpu.max": "25000 100000", "a/b/cpu.max": "max 100000"}, 0.25),
        ("0::/elsewhere", {"cpu.max": "max 100000"}, None),
        ("3:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "70000", "cpu/a/cpu.cfs_period_us": "100000"}, 0.7),
        ("3:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None),
        ("3:memory:/a", {"cpu.max": "50000 100000"}, None),
    ],
)  # fmt: skip
def test_a_quota_bounds_the_cores(
    tmp_path: Path, group: str, files: dict[str, str], limit: float | None
) -> None:
    own = tmp_path / "own"
    own.write_text(f"{group}\n")
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    unbounded = usable_cores(tmp_path / "nothing", tmp_path / "nobody")
    assert unbounded >= 1
    assert usable_cores(tmp_path / "groups", own) == (limit or unbounded)
