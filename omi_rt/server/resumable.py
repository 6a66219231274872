"""Which sessions can be taken up by another connection, found by their secrets."""

from __future__ import annotations

import hmac
import secrets
from hashlib import sha256
from typing import Generic, Protocol, TypeVar

from attrs import define, field

SECRET_BYTES = 24
WAITING_SHARE = 0.5
"""Of the sessions that may run: so many may wait for their devices. Who has waited longest gives way."""


class Resumable(Protocol):
    """What is asked of a session here."""

    def stop_waiting(self) -> None:
        """Give up a device that is away."""


S = TypeVar("S", bound=Resumable)


@define(repr=False)
class ResumableSessions(Generic[S]):
    """Knows the secrets' hashes, never a secret itself.

    Args:
        max_waiting: so many sessions may wait for their devices at once.
    """

    max_waiting: int
    _by_hash: dict[bytes, S] = field(factory=dict)
    _hashes: dict[S, bytes] = field(factory=dict)
    _waiting: dict[S, None] = field(factory=dict)
    """In the order in which they began to wait."""
    losses: int = 0
    """How many devices were lost whose sessions then waited for them."""

    def issue(self, session: S) -> str:
        """Return the secret with which ``session`` can be found from now on."""
        secret = secrets.token_urlsafe(SECRET_BYTES)
        self._hashes[session] = _hash(secret)
        self._by_hash[self._hashes[session]] = session
        return secret

    def find(self, secret: str) -> S | None:
        """Return the session whose secret it is.

        It is looked up by its hash, which nobody can aim, and compared in constant time.
        """
        wanted = _hash(secret)
        session = self._by_hash.get(wanted)
        if session is None or not hmac.compare_digest(self._hashes[session], wanted):
            return None
        return session

    def forget(self, session: S) -> None:
        """A session cannot be taken up any more. A second call does nothing."""
        self._waiting.pop(session, None)
        known = self._hashes.pop(session, None)
        if known is not None:
            del self._by_hash[known]

    def wait(self, session: S) -> S | None:
        """Note that a session waits; returns the one that must give way, where too many do."""
        self._waiting[session] = None
        self.losses += 1
        return next(iter(self._waiting)) if len(self._waiting) > self.max_waiting else None

    def stop_waiting(self, session: S) -> None:
        """A session waits no more; if it did not, nothing changes."""
        self._waiting.pop(session, None)

    @property
    def waiting(self) -> int:
        """How many sessions wait."""
        return len(self._waiting)


class WayBack(Generic[S]):
    """Tells one session's device how to come back: twice, before the provider is there and when it is.

    Args:
        session: the session.
        sessions: where it is to be found; None where nobody may come back.
    """

    __slots__ = ("_secret", "_session", "_sessions", "is_told")

    def __init__(self, session: S, sessions: ResumableSessions[S] | None) -> None:
        self._session, self._sessions = session, sessions
        self._secret: str | None = None
        """While it has not been told for the last time."""
        self.is_told = False
        """Whether the device knows how."""

    def tell(self, *, is_heard: bool, is_last: bool) -> dict[str, str]:
        """Return what to add to an event; the last time the secret is forgotten.

        ``is_heard`` is whether a device is there: else there is nobody who could come back.
        """
        if is_heard and not self.is_told and self._sessions is not None:
            self.is_told, self._secret = True, self._sessions.issue(self._session)
        secret = self._secret
        if is_last:
            self._secret = None
        return {} if secret is None else {"resume": secret}


def _hash(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "surrogateescape")).digest()
