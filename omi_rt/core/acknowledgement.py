"""How far a device's audio has come, told once a second at most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omi_rt.core import events

if TYPE_CHECKING:
    from omi_rt.core.coverage import Coverage

ACKNOWLEDGE_SECONDS = 1.0


class Acknowledgement:
    """Tells one connection what is new since it was told last."""

    __slots__ = ("_coverage", "_told")

    def __init__(self, coverage: Coverage) -> None:
        self._coverage = coverage
        self._told = (0, 0)

    def news(self) -> dict[str, Any] | None:
        """The event to send; None where nothing has changed."""
        coverage = self._coverage
        state = (coverage.backlog.end, coverage.watermark)
        if state == self._told:
            return None
        self._told = state
        return events.audio_received(*state, coverage.audio_format)
