"""How a session ends: what the client is told, and what the metrics count."""

from __future__ import annotations

from enum import Enum

from attrs import frozen

_KEPT_CLOSE_CODES = frozenset({1007, 1008, 1009, 1011})
"""These name a fault, and are passed on to a device that is lost; any other code becomes 1001."""


class EndingClass(Enum):
    """The kinds of ending that metrics tell apart. A reason may hold free text, a class never does."""

    CLIENT_CLOSED_STREAM = "client_closed_stream"
    CLIENT_IDLE = "client_idle"
    DEVICE_GONE = "device_gone"
    SERVER_GOING_AWAY = "server_going_away"
    STT_FAILED = "stt_failed"
    INTERNAL_ERROR = "internal_error"
    CANCELLED = "cancelled"
    NO_AUDIO = "no_audio"
    DAY_USED_UP = "day_used_up"


@frozen
class Ending:
    """Why a session ends.

    The close code 1000 is for a client that has asked for the end and for nobody else, because Omi's
    apps do not come back after it.
    """

    reason: str
    """Text of the close frame, of ``session_ended`` and of the log."""
    close_code: int
    """The WebSocket close code (RFC 6455, section 7.4)."""
    kind: EndingClass


CLIENT_CLOSED_STREAM = Ending("client_closed_stream", 1000, EndingClass.CLIENT_CLOSED_STREAM)
SERVER_GOING_AWAY = Ending("server_going_away", 1001, EndingClass.SERVER_GOING_AWAY)
STT_FAILED = Ending("stt_failed", 1011, EndingClass.STT_FAILED)
INTERNAL_ERROR = Ending("internal_error", 1011, EndingClass.INTERNAL_ERROR)
CANCELLED = Ending("cancelled", 1001, EndingClass.CANCELLED)
NO_AUDIO = Ending("no_audio", 1001, EndingClass.NO_AUDIO)
DAY_USED_UP = Ending("day_used_up", 4002, EndingClass.DAY_USED_UP)
CLIENT_IDLE = Ending(
    "NET-0001: neither audio nor a text message came within the timeout window",
    1011,
    EndingClass.CLIENT_IDLE,
)
DEVICE_VANISHED = Ending("device_vanished", 1001, EndingClass.DEVICE_GONE)

TAKEN_OVER = (1008, "resumed: another connection has taken the session up")
"""Close code and reason for a connection whose session goes on with a newer one."""


def device_lost(reason: str, close_code: int) -> Ending:
    """Make the ending of a session whose device closed with ``close_code``, or is to be closed so."""
    kept = close_code if close_code in _KEPT_CLOSE_CODES else DEVICE_VANISHED.close_code
    return Ending(reason, kept, EndingClass.DEVICE_GONE)
