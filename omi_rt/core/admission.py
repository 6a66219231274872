"""Whether a server takes new sessions: one answer, for upgrades and for ``/readyz``."""

from __future__ import annotations

from enum import Enum
from http import HTTPStatus

from attrs import frozen

from omi_rt.core.errors import DeviceError

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


_TAKEN_MEANWHILE = frozenset(
    {Obstacle.DRAINING, Obstacle.FULL, Obstacle.MEMORY, Obstacle.RECOGNISER}
)
_OF_THE_PROVIDER = frozenset({Obstacle.RECOGNISER, Obstacle.BREAKER})


@frozen
class Refusal:
    """Why every new session is sent away."""

    obstacle: Obstacle
    reason: str
    """The sentence that the refused peer is shown; it holds no secret."""

    def counts(self, *, needs_provider: bool) -> bool:
        """Whether it is for a session that does, or does not, need the speech provider."""
        return needs_provider or self.obstacle not in _OF_THE_PROVIDER

    def counts_late(self, *, needs_provider: bool) -> bool:
        """The same for a client that was let in, and has proved meanwhile who it is."""
        return self.obstacle in _TAKEN_MEANWHILE and self.counts(needs_provider=needs_provider)


class SentAway(DeviceError):
    """The room was gone when a client had proved who it is. The close code says: try again later."""

    close_code = 1013


class SentElsewhere(SentAway):
    """The server goes. The close code says: come back at once, and another one will be there."""

    close_code = 1001


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
    if 0 < max_lag_ms < lag_ms:
        return Refusal(Obstacle.LAG, f"too busy: {lag_ms:.0f} ms late, of {max_lag_ms:g} ms")
    if login_problem is not None:
        return Refusal(Obstacle.LOGIN, login_problem)
    # The provider's come last, and so hide none from those who need no provider.
    if not has_room:
        words = "the embedded recogniser cannot carry another session now"
        return Refusal(Obstacle.RECOGNISER, words)
    if refused is not None:
        words = _BREAKER_REASONS.get(refused, "the speech provider refuses")
        return Refusal(Obstacle.BREAKER, f"{words} (HTTP {refused})")
    return None
