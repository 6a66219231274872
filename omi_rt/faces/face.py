"""What every face is: the request as it came, and the two directions of a conversation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen

from omi_rt.core.listen import ListenRequest

if TYPE_CHECKING:
    from omi_rt.core.asks import Ask
    from omi_rt.core.updates import Update

SHORT_BYTES = 2
"""A binary message of at most so many bytes may be something else than audio: `Face.read_short`."""
MAX_SHOWN_CHARACTERS = 64
"""Of the ``type`` of a message that is not known, in the answer to it."""

BEARER = "bearer"
"""The scheme of a token in the ``Authorization`` header."""


@frozen
class Call:
    """A request to open a session, as it came."""

    path: str
    pairs: tuple[tuple[str, str], ...] = field(repr=False)
    """The query, in order."""
    headers: Mapping[str, str] = field(repr=False)
    """Names in lower case."""
    is_loopback: bool
    """Whether it came in over the loopback interface, so that whoever calls is on this machine."""
    session_id: str
    """The id that the session is going to have: 32 hexadecimal digits."""
    called_at: datetime
    """When it came; aware."""
    token: str | None = field(default=None, repr=False)
    """What the first message said, where a client proves itself in that."""
    uid: str | None = field(default=None, repr=False)
    """Who the client has proved to be; None where there is no login."""

    @property
    def parameters(self) -> dict[str, str]:
        """The query; of a repeated parameter the last value. A uid that was proved takes its place."""
        found = dict(self.pairs)
        if self.uid is not None:
            found["uid"] = self.uid
        return found


def bearer_token(call: Call) -> str:
    """Return the token of the ``Authorization`` header; empty where there is none."""
    scheme, _, token = call.headers.get("authorization", "").strip().partition(" ")
    return token.strip() if scheme.lower() == BEARER else ""


@frozen
class Opening:
    """A request that was understood: what the session is to do, and how its client talks."""

    request: ListenRequest
    face: Face


class Face(ABC):
    """One client's way of talking to its one session.

    Whoever makes another face overrides what differs. Nothing here waits, and nothing raises.
    """

    has_text_heartbeat: ClassVar[bool] = False
    """Whether the client wants a text message for a heartbeat, beside protocol pings."""
    idle_seconds: ClassVar[float | None] = None
    """Without any message for so long the session ends; None where protocol pings are enough."""

    hears_audio: ClassVar[bool] = False
    """Whether it wants the decoded audio (`hear`)."""
    tells_status: ClassVar[bool] = False
    """Whether each client gets the session's events, with numbers and how to resume; elsewhere only
    those clients do that ask for it."""

    def greet(self) -> list[Any]:
        """Write what comes first, before anything is heard."""
        return []

    @abstractmethod
    def read(self, text: str) -> Ask:
        """Read a text message."""

    def read_short(self, message: bytes) -> Ask | None:
        """Read a binary message of at most `SHORT_BYTES`; None where it is audio."""
        return None

    def hear(self, payload: bytes) -> None:  # noqa: B027 - most faces want nothing of it
        """Note decoded audio, for whatever the face tells of it later, if it `hears_audio`."""

    @abstractmethod
    def write(self, update: Update) -> list[Any]:
        """Write what the session has to tell as messages: values that JSON can hold.

        Update for which the client has no form makes no message.
        """
