"""How long a session waits for a provider's answers, and what it passes by when none come.

A connection is given up only when what would follow is better. A new connection hears all the
unanswered audio again, and answers as late as its predecessor would have. So the patience follows
what this provider was seen to do:

===============================================  ==================================================
what is known                                    patience, in seconds
===============================================  ==================================================
its answers came ``lag`` seconds late at most    20, or 2 x lag + 10 where that is more
it has never answered in this session            as long as the backlog has room: its length less 10
the last connection was given up unanswered      2.5 times as much with each
===============================================  ==================================================

It is never more than the backlog less 10 s (nor than a minute), and never less than 20 s. A stretch
for which two connections in a row gave no answer is passed by, and nothing that follows it.
"""

from __future__ import annotations

import math

from attrs import define

LEAST_PATIENCE_SECONDS = 20.0
"""No connection is given up before speech has waited this long for any progress."""
MOST_PATIENCE_SECONDS = 60.0
"""Every connection without any progress is given up after this long at the latest."""
ASK_SECONDS = 10.0
"""Speech that has waited this much longer than answers usually take is asked for with Finalize."""
_ANSWER_SECONDS = 5.0
"""A Finalize is answered within this time and twice what answers took so far."""
_ROOM_SECONDS = 10.0
"""The backlog's last seconds are left for what arrives while the next connection catches up."""
_GROWTH = 2.5
"""The patience grows by this factor with each connection in a row that was given up unanswered."""
_CONNECTIONS_TO_PASS_BY = 2
"""A stretch of audio is passed by when this many connections in a row gave no answer for it."""


@define
class Patience:
    """What a session has learned of its provider's lateness. It outlives the session's epochs."""

    backlog_seconds: float
    """Seconds of audio that the backlog holds."""
    _lag: float | None = None
    _unanswered: int = 0
    _overdue_until: int = 0

    @property
    def limit_seconds(self) -> float:
        """Seconds that speech may wait without any progress before the connection is given up."""
        most = min(MOST_PATIENCE_SECONDS, self.backlog_seconds - _ROOM_SECONDS)
        most = max(LEAST_PATIENCE_SECONDS, most)
        if self._lag is None:
            return most
        patience = max(LEAST_PATIENCE_SECONDS, 2 * self._lag + ASK_SECONDS)
        return min(most, patience * _GROWTH**self._unanswered)

    @property
    def ask_seconds(self) -> float:
        """Seconds that speech may wait before the provider is asked for its finals."""
        return min(ASK_SECONDS + (self._lag or 0.0), self.backlog_seconds / 2)

    @property
    def answer_seconds(self) -> float:
        """Seconds within which a Finalize is answered; infinite before the first answer of the session."""
        return math.inf if self._lag is None else _ANSWER_SECONDS + 2 * self._lag

    @property
    def lag_seconds(self) -> float:
        """The longest that an answer took in this session; 0 before the first."""
        return self._lag or 0.0

    def record_answer(self, lag: float) -> None:
        """Note a final that moved a watermark, ``lag`` seconds after its audio had been sent."""
        self._lag = max(lag, self.lag_seconds)
        self._unanswered = 0

    def record_unanswered(self, overdue_until: int) -> int | None:
        """Note an epoch that ended while its answers were overdue.

        Args:
            overdue_until: session position, in samples, up to which they were.

        Returns:
            The session position up to which the audio is now to be passed by, or None where the same
            stretch is worth another connection.
        """
        if self._unanswered == 0:
            self._overdue_until = overdue_until
        self._unanswered += 1
        if self._unanswered < _CONNECTIONS_TO_PASS_BY:
            return None
        # Both connections have had this stretch for long enough to answer for it.
        passed, self._overdue_until = min(self._overdue_until, overdue_until), overdue_until
        self._unanswered = 1
        return passed
