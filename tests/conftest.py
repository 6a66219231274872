"""Set-up that all tests share."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from omi_rt.log import configure_logging

if TYPE_CHECKING:
    from collections.abc import Generator

# A busy machine is no fault of the code under test.
settings.register_profile("omi_rt", deadline=None)
settings.load_profile("omi_rt")


LONGEST = ("test_e2e_voices.py", "test_busy_recogniser.py", "test_e2e_embedded.py")
"""Files whose tests wait for half a minute and more, for speech that is spoken in real time."""
MORE_WORKERS = 2
"""Than there are cores: nearly half of what the tests take is waiting."""


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Let ``-n auto`` start more workers than there are cores: most of them mostly wait."""
    return (yield) + MORE_WORKERS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Share out the tests that wait and those that compute, so that some of either run at any time.

    Each of the ``-n`` workers begins with an equal part of the list, and when it is through it takes tests
    from the end of another's. So the tests in real time stand first in the parts of all workers
    but the last, whole files, the longest before all; and the last worker begins with tests that compute.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    waiting: dict[str, list[pytest.Item]] = {name: [] for name in LONGEST}
    computing: list[pytest.Item] = []
    for item in items:
        is_realtime = item.get_closest_marker("realtime") is not None
        (waiting.setdefault(item.path.name, []) if is_realtime else computing).append(item)
    hands: list[list[pytest.Item]] = [[] for _ in range(max(1, workers - 1))]
    for number, tests in enumerate(waiting.values()):
        hands[number % len(hands)] += tests
    part = len(items) // workers
    ordered: list[pytest.Item] = []
    for hand in hands:
        room = max(0, part - len(hand))
        ordered += hand + computing[:room]
        del computing[:room]
    items[:] = ordered + computing


def pytest_collection_finish() -> None:
    """Keep what has been collected from being looked at by every later collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _logging() -> None:
    """Log as the server does, into what pytest captures."""
    configure_logging("debug")
