"""Set-up that all tests share."""

from __future__ import annotations

import pytest
from hypothesis import settings

from omi_rt.log import configure_logging

# A busy machine is no fault of the code under test.
settings.register_profile("omi_rt", deadline=None)
settings.load_profile("omi_rt")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the tests come first that take seconds: none of them is then the last of a run."""
    items.sort(key=lambda item: item.get_closest_marker("realtime") is None)


@pytest.fixture(autouse=True)
def _logging() -> None:
    """Log as the server does, into what pytest captures."""
    configure_logging("debug")
