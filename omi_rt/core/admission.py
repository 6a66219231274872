"""Whether a server takes new sessions: one answer, for upgrades and for ``/readyz``."""

from __future__ import annotations

from enum import Enum
from http import HTTPStatus

from attrs import frozen

REFUSED_KEY = "Deepgram refuses the key: check DEEPGRAM_API_KEY"
_BREAKER_REASONS: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: REFUSED_KEY,
    HTTPStatus.PAYMENT_REQUIRED: "Deepgram refuses for want of credit",
    HTTPStatus.FORBIDDEN: "Deepgram does not allow the key what is asked of it",
    HTTPStatus.NOT_FOUND: "Deepgram knows no such model or path",
}


class Obstacle(Enum):
    """What stands in the way of every new session; the values are labels of a metric."""

    DRAINING = "draining"
    FULL = "full"
    MEMORY = "memory"
    RECOGNISER = "recogniser"
    BREAKER = "breaker"
    LOGIN = "login"
    LAG = "lag"


@frozen
class Refusal:
    """Why every new session is sent away."""

    obstacle: Obstacle
    reason: str
    """The sentence that the refused peer is shown; it holds no secret."""


def find_refusal(
    *,
    is_draining: bool,
    sessions: int,
    max_sessions: int,
    is_memory_full: bool,
    has_room: bool,
    refused: int | None,
    login_problem: str | None = None,
    lag_ms: float = 0.0,
    max_lag_ms: float = 100.0,
) -> Refusal | None:
    """Decide whether new sessions are sent away.

    A profile store that fails is no reason to send anybody away: sessions lose the speakers' names by
    it, but not a word.

    Args:
        is_draining: whether the server is shutting down.
        sessions: the number of sessions that run now.
        max_sessions: the number of sessions that may run at once.
        is_memory_full: whether the audio that all sessions keep has reached its bound.
        has_room: whether the recogniser can carry another session, as far as it says.
        refused: the HTTP status with which Deepgram refuses what all sessions have in common; None
            where it refuses nothing.
        login_problem: why nobody can log in; None where logins work.
        lag_ms: the milliseconds by which the event loop is late.
        max_lag_ms: the milliseconds by which it may be late; 0 allows any.
    """
    if is_draining:
        return Refusal(Obstacle.DRAINING, "going away")
    if sessions >= max_sessions:
        return Refusal(Obstacle.FULL, f"too many sessions: {sessions} of {max_sessions}")
    if is_memory_full:
        return Refusal(Obstacle.MEMORY, "no memory for another session")
    if not has_room:
        words = "the embedded recogniser cannot carry another session now"
        return Refusal(Obstacle.RECOGNISER, words)
    if 0 < max_lag_ms < lag_ms:
        return Refusal(Obstacle.LAG, f"too busy: {lag_ms:.0f} ms late, of {max_lag_ms:g} ms")
    if login_problem is not None:
        return Refusal(Obstacle.LOGIN, login_problem)
    if refused is not None:
        words = _BREAKER_REASONS.get(refused, "the speech provider refuses")
        return Refusal(Obstacle.BREAKER, f"{words} (HTTP {refused})")
    return None
