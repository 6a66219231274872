"""How far a worker is said to have come while it says nothing itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.local.headway import HELD_SECONDS, Headway, process_cpu_seconds


@given(
    steps=st.lists(
        st.tuples(st.booleans(), st.floats(0.0, 2.0), st.floats(0.0, 20.0)), max_size=30
    ),
    allowed=st.floats(0.1, 100.0),
)
def test_it_never_goes_back_and_never_claims_more_than_was_received(
    steps: list[tuple[bool, float, float]], allowed: float
) -> None:
    headway, worked, cpu = Headway(), 0.0, 0.0
    for is_report, audio, spent in steps:
        before, cpu = headway.seconds, cpu + spent
        if is_report:
            worked += audio
            headway.report(worked, cpu)
            assert headway.seconds <= max(before, worked)
        else:
            got_on = headway.estimate(worked + audio, cpu, allowed)
            assert got_on == (headway.seconds > before)
            assert headway.seconds <= max(before, worked + audio)
        assert headway.seconds >= before
    headway.finish()
    assert headway.seconds >= worked


def test_a_piece_is_credited_by_what_of_its_cost_was_spent_and_never_as_done() -> None:
    headway = Headway()
    headway.report(10.0, 5.0)
    assert headway.seconds == 10.0 - HELD_SECONDS
    credited = [headway.estimate(10.25, 5.0 + spent, 8.0) for spent in (0.0, 2.0, 2.0, 4.0)]
    assert credited == [False, True, False, True]
    assert headway.seconds == pytest.approx(10.0)
    assert headway.estimate(10.25, 13.0, 8.0)
    assert 10.2 < headway.seconds < 10.25
    assert not headway.estimate(10.25, 60.0, 8.0), "it has spent all that the piece may cost"


def test_what_is_asked_for_at_the_end_of_all_audio_leaves_something_to_get_on_with() -> None:
    headway = Headway()
    headway.report(10.0, 0.0)
    assert headway.estimate(10.0, 1.0, 10.0)
    assert headway.seconds < 10.0
    headway.finish()
    assert headway.seconds == 10.0


def test_the_processor_time_of_another_process_is_known() -> None:
    program = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as worker:
        try:
            assert worker.stdout is not None
            worker.stdout.readline()
            before, deadline = process_cpu_seconds(worker.pid), time.monotonic() + 20
            while process_cpu_seconds(worker.pid) < before + 0.1:
                assert time.monotonic() < deadline
        finally:
            worker.kill()
    assert process_cpu_seconds(worker.pid) == 0.0, "it is gone"
    assert process_cpu_seconds(os.getpid()) == pytest.approx(time.process_time(), abs=0.2)
