"""Fault scripts: what goes wrong on which connection, and when.

A script is a JSON or TOML file::

    {"connections": [
        {"faults": [{"kind": "refuse", "status": 429, "retry_after": 2}]},
        {"faults": [{"kind": "late", "seconds": 1.5},
                    {"kind": "close", "code": 1011, "after_audio": 12.5}]},
        {"faults": []}
     ],
     "afterwards": []}

The first connection meets the first entry's faults, and so on; every connection after the list
meets ``afterwards``. In TOML the same is ``[[connections]]`` with ``[[connections.faults]]``. How
the fake behaves on all connections, faults or none, can be set beside them::

    "options": {"lateness": [8, 12], "finalize": "never", "borders": "reaches_over"}

The names are those of `omi_rt.fake.records.Options`.

Faults of the handshake come at once. A connection meets the first of them only:

=========================  =======================================================================
``unreachable``            the dial fails (over TCP: closed as soon as it is accepted)
``refuse``                 HTTP ``status``; optional ``error`` (for ``dg-error``), ``retry_after``
``no_answer``              the upgrade is read and not answered, for ``seconds`` or for ever, then
                           dropped
``drop`` ``at`` request    TCP ends before the 101
``drop`` ``at`` response   TCP ends after half of the 101
=========================  =======================================================================

The others come when the connection opens, or, with one of ``after_audio`` (seconds of audio
received), ``after_results`` (messages of results sent) or ``after_seconds`` (since it opened), then:

==========================  ======================================================================
``drop`` ``at`` now         TCP ends between two frames (the default)
``drop`` ``at`` frame       TCP ends in the middle of the next frame that comes in
``drop`` ``at`` result      TCP ends in the middle of the next frame that goes out
``close``                   close frame with ``code`` and ``reason`` (else Deepgram's own for 1008
                            and 1011); 1006 is a drop
``stall``                   stops reading, for ``seconds``; for ever is `STALL_LIMIT_SECONDS`,
                            then a drop
``silence``                 results, and what must come after them, are held for ``seconds`` or
                            for ever; on one ``channel`` or on all
``late``                    the next ``results`` (or all) come ``seconds`` late, in order
``double``                  the next ``results`` (or all) come twice
``malformed``               after each of the next ``results`` (1) comes one that is ``what``,
                            one of `MALFORMED`; or ``instead`` of it, where it says that it can
``say``                     ``text`` is sent as it is
``lying_metadata``          Metadata's duration is wrong by ``seconds``
``ignore_close_stream``     CloseStream brings no Metadata and no close, and no results either
                            unless ``results``
==========================  ======================================================================
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

from attrs import Attribute, field, frozen
from attrs.validators import ge, gt, in_, optional

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

STALL_LIMIT_SECONDS = 120.0
"""A stall "for ever" lasts this long, because a fake that does not read cannot see that its client has
gone."""

MALFORMED: Mapping[str, str] = {
    "invalid_json": "extra",
    "invalid_utf8": "extra",
    "not_an_object": "extra",
    "untyped": "extra",
    "unknown_type": "extra",
    "binary": "extra",
    "huge": "extra: 10 MB of text",
    "no_channel": "extra",
    "no_alternatives": "extra",
    "wrong_shapes": "extra",
    "interim": "extra: not final, and guesses on",
    "overlap": "extra: the same words in a final that begins 1 s earlier",
    "jumps_ahead": "extra: a final, with a word, of audio that was not sent yet",
    "negative_times": "extra or instead",
    "nan_times": "extra or instead",
    "text_times": "extra or instead",
    "no_times": "extra or instead: of the words alone",
    "no_words": "extra or instead: a transcript without words",
    "no_speaker": "extra or instead",
    "text_speaker": "extra or instead: a label that is not a number",
    "no_punctuated_word": "extra or instead",
}
"""The ways in which a message can be malformed. Extra messages repeat the last result's words, unless
something else is noted."""

HARMFUL = frozenset({"jumps_ahead"})
"""No client can be whole after these messages, because they claim what was not heard yet."""


_seconds = optional(gt(0.0))
_count = optional(ge(1))


@frozen(kw_only=True)
class Timed:
    """When a fault comes. With none of the three it comes as soon as the connection is open."""

    after_audio: float | None = field(default=None, validator=_seconds)
    after_results: int | None = field(default=None, validator=_count)
    after_seconds: float | None = field(default=None, validator=_seconds)

    def __attrs_post_init__(self) -> None:
        given = (self.after_audio, self.after_results, self.after_seconds)
        if sum(value is not None for value in given) > 1:
            raise ValueError("only one of after_audio, after_results, after_seconds")

    @property
    def is_timed(self) -> bool:
        """Whether the fault waits for something."""
        return (self.after_audio, self.after_results, self.after_seconds) != (None, None, None)


@frozen
class Unreachable:
    """The dial fails."""


_REFUSALS = frozenset(status.value for status in HTTPStatus if status >= 400)


def _check_status(_instance: Any, _attribute: Attribute[int], status: int) -> None:
    if status not in _REFUSALS:
        raise ValueError(f"{status} is no HTTP status of a refusal")


@frozen(kw_only=True)
class Refuse:
    """The upgrade is answered with an HTTP status."""

    status: int = field(validator=_check_status)
    error: str = ""
    retry_after: float | None = field(default=None, validator=_seconds)


@frozen(kw_only=True)
class NoAnswer:
    """The upgrade is not answered."""

    seconds: float | None = field(default=None, validator=_seconds)


@frozen(kw_only=True)
class Drop(Timed):
    """TCP ends without a close frame."""

    at: Literal["request", "response", "now", "frame", "result"] = "now"

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.is_of_handshake and self.is_timed:
            raise ValueError(f"a drop at {self.at} comes at once")

    @property
    def is_of_handshake(self) -> bool:
        """Whether the drop keeps the connection from opening."""
        return self.at in {"request", "response"}


def _check_close_code(_instance: Any, _attribute: Attribute[int], code: int) -> None:
    if not (code in {*range(1000, 1004), *range(1006, 1015)} or 3000 <= code <= 4999):
        raise ValueError(f"{code} is no close code that a server can send")


@frozen(kw_only=True)
class Close(Timed):
    """The server closes the connection."""

    code: int = field(validator=_check_close_code)
    reason: str = ""


@frozen(kw_only=True)
class Stall(Timed):
    """The server stops reading."""

    seconds: float | None = field(default=None, validator=_seconds)


@frozen(kw_only=True)
class Silence(Timed):
    """Results are held back."""

    seconds: float | None = field(default=None, validator=_seconds)
    channel: int | None = field(default=None, validator=optional(ge(0)))


@frozen(kw_only=True)
class Late(Timed):
    """Results come later than they would, in their order."""

    seconds: float = field(validator=gt(0.0))
    results: int | None = field(default=None, validator=_count)


@frozen(kw_only=True)
class Double(Timed):
    """Results come twice."""

    results: int | None = field(default=None, validator=_count)


@frozen(kw_only=True)
class Malformed(Timed):
    """Messages come that are wrong, along with the right ones or in their place."""

    what: str = field(validator=in_(list(MALFORMED)))
    results: int = field(default=1, validator=ge(1))
    instead: bool = False

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.instead and not MALFORMED[self.what].startswith("extra or instead"):
            raise ValueError(f"{self.what} cannot come instead of a result")


@frozen(kw_only=True)
class Say(Timed):
    """A text message is sent as it stands."""

    text: str


@frozen(kw_only=True)
class LyingMetadata(Timed):
    """Metadata tells another duration than was received."""

    seconds: float


@frozen(kw_only=True)
class IgnoreCloseStream(Timed):
    """CloseStream goes unanswered."""

    results: bool = False


OpenFault = (
    Drop
    | Close
    | Stall
    | Silence
    | Late
    | Double
    | Malformed
    | Say
    | LyingMetadata
    | IgnoreCloseStream
)
Fault = Unreachable | Refuse | NoAnswer | OpenFault


@frozen
class ConnectionPlan:
    """The faults of one connection."""

    faults: tuple[Fault, ...] = ()

    @property
    def of_handshake(self) -> Unreachable | Refuse | NoAnswer | Drop | None:
        """The first fault that keeps the connection from opening, if there is one."""
        for fault in self.faults:
            if isinstance(fault, Unreachable | Refuse | NoAnswer) or (
                isinstance(fault, Drop) and fault.is_of_handshake
            ):
                return fault
        return None

    @property
    def of_open_connection(self) -> list[OpenFault]:
        """The faults that come later."""
        return [
            fault
            for fault in self.faults
            if not isinstance(fault, Unreachable | Refuse | NoAnswer)
            and not (isinstance(fault, Drop) and fault.is_of_handshake)
        ]


@frozen
class FaultScript:
    """The faults of all connections, in the order in which they come in."""

    connections: tuple[ConnectionPlan, ...] = ()
    afterwards: tuple[Fault, ...] = ()

    @classmethod
    def of(cls, *connections: Iterable[Fault]) -> FaultScript:
        """Make a script of lists of faults, one for each connection; later connections have none."""
        return cls(tuple(ConnectionPlan(tuple(faults)) for faults in connections))

    def plan(self, index: int) -> ConnectionPlan:
        """The plan of the connection with that index, from 0."""
        if index < len(self.connections):
            return self.connections[index]
        return ConnectionPlan(self.afterwards)
