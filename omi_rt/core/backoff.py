"""When to dial again after a failure."""

from __future__ import annotations

from random import Random

from attrs import define

BASE_SECONDS = 1.0
CAP_SECONDS = 10.0
MAX_RETRY_AFTER_SECONDS = 120.0
"""A longer ``Retry-After`` is not believed: it would keep a live session silent for good."""


@define
class Backoff:
    """Full-jitter exponential back-off: the first try at once, then random below a growing cap.

    It is reset when Results arrive, not when a connection opens, because a provider that accepts a
    connection and drops it at once would be hammered otherwise.
    """

    _random: Random
    failures: int = 0
    """Failures in a row since Results last arrived."""

    def reset(self) -> None:
        """Forget all failures, because Results have arrived."""
        self.failures = 0

    def after_failure(self, retry_after: float | None = None) -> float:
        """Count a failure; return the seconds to wait before the next try, ``retry_after`` at least."""
        self.failures += 1
        delay = 0.0
        if self.failures > 1:
            ceiling = min(CAP_SECONDS, BASE_SECONDS * 2.0 ** min(self.failures - 2, 10))
            delay = self._random.uniform(0.0, ceiling)
        return max(delay, min(retry_after or 0.0, MAX_RETRY_AFTER_SECONDS))
