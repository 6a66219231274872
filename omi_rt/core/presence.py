"""Whether a session's device is there, as a table.

The device's connection is to the session what an epoch is: one may follow another. All transitions
are here and nowhere else.

========  ========================================================  =========================
presence  what holds in it                                          left by
========  ========================================================  =========================
HERE      a connection is open, and its audio is taken              LOSE, RESUME, LEAVE, GO
AWAY      the connection was lost; the session is kept for another  RESUME, LEAVE
LEAVING   the audio has ended; the last words are still to be sent  LEAVE, GO
GONE      nobody is there, and nobody is waited for                 LEAVE
========  ========================================================  =========================
"""

from __future__ import annotations

from enum import Enum


class Presence(Enum):
    """Where a session's device is."""

    HERE = "here"
    AWAY = "away"
    LEAVING = "leaving"
    GONE = "gone"


class Move(Enum):
    """What changes that."""

    LOSE = "lose"
    """The connection is lost, and the device may come back."""
    RESUME = "resume"
    """Another connection takes the session up, perhaps before the loss of the former is noticed."""
    LEAVE = "leave"
    """The audio ends, at the device's wish or the server's, or because nobody has come back."""
    GO = "go"
    """The connection is lost for good."""


MOVES: dict[Presence, dict[Move, Presence]] = {
    Presence.HERE: {
        Move.LOSE: Presence.AWAY,
        Move.RESUME: Presence.HERE,
        Move.LEAVE: Presence.LEAVING,
        Move.GO: Presence.GONE,
    },
    Presence.AWAY: {
        Move.RESUME: Presence.HERE,
        Move.LEAVE: Presence.GONE,
    },
    Presence.LEAVING: {Move.LEAVE: Presence.LEAVING, Move.GO: Presence.GONE},
    Presence.GONE: {Move.LEAVE: Presence.GONE},
}


class IllegalMove(RuntimeError):
    """A bug of ours: a move that the presence does not allow."""


def after_move(presence: Presence, move: Move) -> Presence:
    """Return the presence that follows ``move``.

    Raises:
        IllegalMove: ``presence`` does not allow it.
    """
    try:
        return MOVES[presence][move]
    except KeyError:
        raise IllegalMove(f"{move.value} while {presence.value}") from None
