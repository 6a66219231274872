"""When a recogniser counts as behind, and when it has caught up: two bounds, so that it does not flicker."""

from __future__ import annotations

from enum import Enum, auto

from attrs import define

BEHIND_SECONDS = 5.0
"""A recogniser that has this much audio to work through, or more, is behind. The end of a long utterance
alone takes it up to 1 s, and 4 s where four recognisers share a core."""
CAUGHT_UP_SECONDS = 2.0
"""A recogniser that was behind has caught up when it has this much audio to work through, or less."""


class LatenessChange(Enum):
    """What a report changed."""

    FELL_BEHIND = auto()
    CAUGHT_UP = auto()


@define
class Lateness:
    """Whether one connection's recogniser is behind."""

    is_behind: bool = False
    most_seconds: float = 0.0
    """The most that it has been behind since it fell behind, in seconds."""

    def report(self, seconds: float) -> LatenessChange | None:
        """Take how many seconds of audio it still has to work through; return what that changes."""
        if self.is_behind:
            self.most_seconds = max(self.most_seconds, seconds)
            if seconds <= CAUGHT_UP_SECONDS:
                self.is_behind = False
                return LatenessChange.CAUGHT_UP
        elif seconds >= BEHIND_SECONDS:
            self.is_behind, self.most_seconds = True, seconds
            return LatenessChange.FELL_BEHIND
        return None
