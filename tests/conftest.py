"""Set-up that all tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from omi_rt.log import configure_logging

if TYPE_CHECKING:
    from collections.abc import Generator

# A busy machine is no fault of the code under test.
settings.register_profile("omi_rt", deadline=None)
settings.load_profile("omi_rt")


LONGEST = ("test_page.py", "test_e2e_voices.py", "test_e2e_resume.py", "test_busy_recogniser.py")
"""Files whose tests wait for up to 40 s each, for speech that is spoken in real time."""


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Let ``-n auto`` start one worker more than there are cores: one of them mostly waits."""
    return (yield) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the tests come first that take seconds, the longest before all: none is then the last of a run.

    They are the first worker's at the start, and wait beside tests that compute.
    """

    def place(item: pytest.Item) -> int:
        if item.get_closest_marker("realtime") is None:
            return 2
        return 0 if item.path.name in LONGEST else 1

    items.sort(key=place)


@pytest.fixture(autouse=True)
def _logging() -> None:
    """Log as the server does, into what pytest captures."""
    configure_logging("debug")
