"""Observers: whoever else wants to know what a session tells its client.

A session knows its observers by this interface alone. What they are told comes on the session's own
way: an observer notes it and returns, and does its work elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

from attrs import field, frozen

from omi_rt.core.audio import AudioFormat
from omi_rt.core.segments import Segment

if TYPE_CHECKING:
    from omi_rt.core.updates import Update


@frozen
class SessionFacts:
    """What is known of a session when it begins."""

    id: str
    """32 hexadecimal digits."""
    uid: str = field(repr=False)
    """Whose it is; empty where nobody was named."""
    language: str
    audio_format: AudioFormat
    """Of the decoded audio."""
    began_at: datetime
    """Aware."""
    last_segments: Callable[[int], list[Segment]] = field(repr=False)
    """Returns the last segments as they stand, so many at most."""


class Observer:
    """Follows one session. Nothing here waits, and nothing raises."""

    @property
    def hears_audio(self) -> bool:
        """Whether it wants the audio. This is asked once, when the session begins."""
        return False

    def note(self, update: Update) -> None:
        """Take what the session has to tell; segments are emptied afterwards."""

    def hear(self, payload: bytes) -> None:
        """Take decoded audio, in order, as it comes; for who `hears_audio` alone."""

    def close(self) -> None:
        """The session has ended."""


Watch: TypeAlias = Callable[[SessionFacts], Observer]
"""Makes the observer of a session that begins."""
