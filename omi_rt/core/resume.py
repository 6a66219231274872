"""How a client asks for a session that it has begun before, and what becomes of that.

The parameters are read from the query of any path, beside those of the path's own face.
"""

from __future__ import annotations

import math
import re
from enum import Enum
from typing import TYPE_CHECKING

from attrs import field, frozen

from omi_rt.core.errors import BadRequest
from omi_rt.core.presence import Presence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omi_rt.core.listen import ListenRequest

RESUMES_PER_SECOND = 1.0
RESUMES_AT_ONCE = 5.0
"""Of one session. Each resume may send up to 1 MiB again."""
TRY_AGAIN_LATER = 1013
"""The WebSocket close code of who comes back too often (IANA's registry)."""
_ALWAYS = frozenset({"resume", "acknowledge"})
_WITH_RESUME = frozenset({"after", "from"})
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@frozen
class Wish:
    """What a client says of the connection that it had before."""

    secret: str | None = field(default=None, repr=False)
    """Of the session that it wants to take up, perhaps empty; None where it names none."""
    after: int | None = None
    """The last number that it has; None where it does not say."""
    start: float | None = None
    """The session time in seconds at which the audio begins that it is going to send."""
    acknowledges: bool = False
    """Whether it wants to be told how far its audio has come."""

    @property
    def is_spoken(self) -> bool:
        """Whether the client knows of any of this."""
        return self.secret is not None or self.acknowledges


def split_wish(
    pairs: tuple[tuple[str, str], ...],
) -> tuple[dict[str, str], tuple[tuple[str, str], ...]]:
    """Part a query into the parameters of a `Wish` and those of the path."""
    names = _ALWAYS
    if any(name == "resume" for name, _ in pairs):
        names |= _WITH_RESUME
    return (
        {name: value for name, value in pairs if name in names},
        tuple(pair for pair in pairs if pair[0] not in names),
    )


def parse_wish(parameters: Mapping[str, str]) -> Wish:
    """Read the parameters of a `Wish`.

    Raises:
        BadRequest: one is no number or out of range; the message names it.
    """
    after: int | None = None
    if "after" in parameters:
        if not re.fullmatch(r"[0-9]{1,15}", parameters["after"]):
            raise BadRequest("after: must be a whole number from 0")
        after = int(parameters["after"])
    start: float | None = None
    if "from" in parameters:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", parameters["from"]):
            raise BadRequest("from: must be seconds on the session clock")
        start = float(parameters["from"])
        assert math.isfinite(start)
    acknowledges = _BOOLEANS.get(parameters.get("acknowledge", "false").lower())
    if acknowledges is None:
        raise BadRequest("acknowledge: must be true or false")
    return Wish(parameters.get("resume"), after, start, acknowledges)


class Outcome(Enum):
    """What becomes of a resume; the values are labels of a metric."""

    RESUMED = "resumed"
    UNKNOWN = "unknown"
    """There is no such session, or no longer: a new one begins."""
    REFUSED = "refused"
    """The session is another's, or of another format: it waits on."""
    TOO_OFTEN = "too_often"


@frozen
class Decision:
    """An outcome, and what the client is told where it is closed for it."""

    outcome: Outcome
    close_code: int | None = None
    reason: str = ""


def decide(
    wish: Wish,
    request: ListenRequest,
    *,
    presence: Presence,
    begun: ListenRequest,
    told: int,
    is_too_often: bool,
) -> Decision:
    """Decide whether a connection takes up the session whose secret it has.

    Args:
        wish: what it says of the session.
        request: what it asks for otherwise.
        presence: of the session's device.
        begun: what the session was begun with.
        told: the last number that the session has given.
        is_too_often: the session has been taken up so often that the next must wait.
    """
    if presence not in {Presence.HERE, Presence.AWAY}:
        return Decision(Outcome.UNKNOWN)
    if request.uid != begun.uid:
        return Decision(Outcome.REFUSED, 1008, "resume: the session is of another uid")
    if _sound(request) != _sound(begun):
        return Decision(
            Outcome.REFUSED, 1008, "resume: codec, sample_rate and channels must stay the same"
        )
    if request.is_transcribed_by_client != begun.is_transcribed_by_client:
        return Decision(Outcome.REFUSED, 1008, "resume: custom_stt must stay the same")
    if wish.after is not None and wish.after > told:
        return Decision(Outcome.REFUSED, 1008, f"after: the session has told {told} so far")
    if is_too_often:
        return Decision(Outcome.TOO_OFTEN, TRY_AGAIN_LATER, "resume: too often, wait a second")
    return Decision(Outcome.RESUMED)


def _sound(request: ListenRequest) -> tuple[str, int, int]:
    """What one decoder must understand; names that mean the same are one."""
    return request.encoding, request.sample_rate, request.channels
