"""Set-up that all tests share."""

from __future__ import annotations

import pytest

from omi_rt.log import configure_logging


@pytest.fixture(autouse=True)
def _logging() -> None:
    """Log as the server does, into what pytest captures."""
    configure_logging("debug")
