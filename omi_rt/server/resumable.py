"""Which sessions can be taken up by another connection, found by their secrets."""

from __future__ import annotations

import hmac
import secrets
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

from attrs import define, field

if TYPE_CHECKING:
    from omi_rt.core.resume import Decision, Wish
    from omi_rt.faces.face import Opening
    from omi_rt.server.line import Line

SECRET_BYTES = 24
WAITING_SHARE = 0.5
"""Of the sessions that may run: so many may wait for their devices. Who has waited longest gives way."""


class Resumable(Protocol):
    """What is asked of a session."""

    def resume(self, line: Line, opening: Opening, wish: Wish) -> Decision:
        """Let another connection take the session up, if it may."""

    def stop_waiting(self) -> None:
        """Give up a device that is away."""


@define(repr=False)
class ResumableSessions:
    """Knows the secrets' hashes, never a secret itself.

    Args:
        max_waiting: so many sessions may wait for their devices at once.
    """

    max_waiting: int
    _by_hash: dict[bytes, Resumable] = field(factory=dict)
    _hashes: dict[Resumable, bytes] = field(factory=dict)
    _waiting: dict[Resumable, None] = field(factory=dict)
    """In the order in which they began to wait."""

    def issue(self, session: Resumable) -> str:
        """Return the secret with which ``session`` can be found from now on."""
        secret = secrets.token_urlsafe(SECRET_BYTES)
        self._hashes[session] = _hash(secret)
        self._by_hash[self._hashes[session]] = session
        return secret

    def find(self, secret: str) -> Resumable | None:
        """Return the session whose secret it is.

        It is looked up by its hash, which nobody can aim, and compared in constant time.
        """
        wanted = _hash(secret)
        session = self._by_hash.get(wanted)
        if session is None or not hmac.compare_digest(self._hashes[session], wanted):
            return None
        return session

    def forget(self, session: Resumable) -> None:
        """A session cannot be taken up any more. A second call does nothing."""
        self._waiting.pop(session, None)
        known = self._hashes.pop(session, None)
        if known is not None:
            del self._by_hash[known]

    def wait(self, session: Resumable) -> Resumable | None:
        """Note that a session waits; returns the one that must give way, where too many do."""
        self._waiting[session] = None
        return next(iter(self._waiting)) if len(self._waiting) > self.max_waiting else None

    def stop_waiting(self, session: Resumable) -> None:
        """A session waits no more; if it did not, nothing changes."""
        self._waiting.pop(session, None)

    @property
    def waiting(self) -> int:
        """How many sessions wait."""
        return len(self._waiting)


def _hash(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "surrogateescape")).digest()
