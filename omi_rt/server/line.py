"""One connection of a device's, which its session may outlive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omi_rt.codecs.resent import Resent
    from omi_rt.net.websocket import WebSocket

FIRST_MESSAGES_AT_ONCE = 4
"""Before anything has been decoded, this many messages are taken without a look at what they cost."""


class Line:
    """What belongs to one connection, and ends with it. Its session runs its tasks.

    Args:
        websocket: open.
        early: messages that have been taken from the WebSocket already.
        acknowledges: whether the device is told how far its audio has come.
    """

    __slots__ = (
        "acknowledges",
        "early",
        "farewell",
        "has_caught_up",
        "incoming",
        "incoming_ended",
        "is_catching_up",
        "is_lost",
        "is_reading",
        "messages_at_once",
        "over",
        "resent",
        "told",
        "websocket",
    )

    def __init__(
        self, websocket: WebSocket, early: Sequence[bytes | str] = (), *, acknowledges: bool = False
    ) -> None:
        self.websocket = websocket
        self.early = list(early)
        self.acknowledges = acknowledges
        self.incoming = trio.CancelScope()
        """Of whoever reads."""
        self.incoming_ended = trio.Event()
        self.is_reading = True
        """Whether a silence is the device's: the server may have stopped to read."""
        self.is_lost = False
        """Whether nothing that it brings counts any more."""
        self.messages_at_once = FIRST_MESSAGES_AT_ONCE
        self.resent: Resent | None = None
        """What its device sends once more, and that is left out."""
        self.is_catching_up = False
        """Whether it is sent what was told before it came; what is told meanwhile has to wait."""
        self.told = 0
        """While it catches up, the last number that it has been sent."""
        self.has_caught_up = trio.Event()
        self.farewell = (1001, "")
        """The close code and reason that it gets where it is lost."""
        self.over = trio.Event()
        """Set when nothing of it is left but its stream."""

    def lose(self, close_code: int, reason: str) -> None:
        """Give it up: whoever reads it stops. A second call does nothing."""
        if not self.is_lost:
            self.is_lost = True
            self.farewell = (close_code, reason)
            self.incoming.cancel()
            self.has_caught_up.set()
