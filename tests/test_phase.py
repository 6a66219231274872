"""The phases of an epoch: every step that one allows, and none that it does not."""

from __future__ import annotations

import itertools

import pytest

from omi_rt.core import phase as phase_module
from omi_rt.core.phase import TRANSITIONS, IllegalStep, Phase, Step, after

LEGAL = {
    (Phase.DIALLING, Step.OPEN): Phase.PRIMING,
    (Phase.DIALLING, Step.END): Phase.ENDED,
    (Phase.PRIMING, Step.GO_LIVE): Phase.LIVE,
    (Phase.PRIMING, Step.END): Phase.ENDED,
    (Phase.LIVE, Step.FINISH): Phase.FINISHING,
    (Phase.LIVE, Step.END): Phase.ENDED,
    (Phase.FINISHING, Step.CLOSE): Phase.CLOSING,
    (Phase.FINISHING, Step.END): Phase.ENDED,
    (Phase.CLOSING, Step.END): Phase.ENDED,
}
ALL = list(itertools.product(Phase, Step))


@pytest.mark.parametrize(("phase", "step"), LEGAL, ids=lambda each: each.value)
def test_a_legal_step_leads_on(phase: Phase, step: Step) -> None:
    assert after(phase, step) is LEGAL[phase, step]


@pytest.mark.parametrize(
    ("phase", "step"), [pair for pair in ALL if pair not in LEGAL], ids=lambda each: each.value
)
def test_an_illegal_step_is_a_bug_that_names_both(phase: Phase, step: Step) -> None:
    with pytest.raises(IllegalStep, match=f"^{step.value} while {phase.value}$"):
        after(phase, step)


def test_every_phase_but_the_last_can_end_and_the_last_is_left_by_nothing() -> None:
    assert all(after(phase, Step.END) is Phase.ENDED for phase in Phase if TRANSITIONS[phase])
    assert [phase for phase in Phase if not TRANSITIONS[phase]] == [Phase.ENDED]


def test_the_table_in_the_docstring_is_the_table_in_the_code() -> None:
    table = (phase_module.__doc__ or "").splitlines()
    border = next(line for line in table if line.startswith("=="))
    left, middle, right = (len(part) for part in border.split())
    column = left + 2 + middle + 2
    body = table[table.index(border) + 3 :]
    told = {
        line[:left].strip().upper(): line[column : column + right].strip()
        for line in body[: body.index(border)]
        if line[:left].strip()
    }
    assert told == {
        phase.name: ", ".join(step.name for step in steps) or "nothing"
        for phase, steps in TRANSITIONS.items()
    }
