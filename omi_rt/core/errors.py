"""Every error that crosses a module boundary, split by whose fault it is.

Each error carries the answer to give: a WebSocket close code for the device, and, for the
provider's, whether trying again can help. No message holds a credential, audio or a transcript.

* ``OmiRtError``

  * ``DeviceError``: the device, or whoever speaks for it, did wrong

    * ``BadRequest``: the parameters of ``/listen`` (close 1008)
    * ``PeerTooSlow``: it does not read what it is sent (close 1011)

  * ``PeerClosed``: the other side of a WebSocket is gone; no fault in itself
  * ``HandshakeFailed``: what came was no WebSocket handshake, or none came in time
  * ``ProviderError``: Deepgram, or the way to it

    * ``ProviderRefused``: it answered the upgrade with an HTTP status
    * ``ProviderClosed``: it ended an open connection
    * ``ProviderUnreachable``: DNS, TCP, TLS, or silence

  * ``SettingsError``: who runs this server configured it wrongly
  * ``ProfileRefused``: a speech profile that is not fit to be stored
"""

from __future__ import annotations

from typing import ClassVar


class OmiRtError(Exception):
    """The root: ``except OmiRtError`` catches whatever this package raises on purpose."""


class DeviceError(OmiRtError):
    """The device's fault. ``close_code`` is the WebSocket close code to answer with."""

    close_code: ClassVar[int] = 1008


class BadRequest(DeviceError):
    """A parameter of ``/listen`` is missing or wrong; the message names it."""


class PeerTooSlow(DeviceError):
    """The peer does not read what it is sent."""

    close_code = 1011


class PeerClosed(OmiRtError):
    """The other side of a WebSocket is gone.

    Attributes:
        code: its close code; 1006 if there was no close frame, 1005 if the frame had no code.
        reason: its close reason, or what the network said.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"closed with {code}{': ' if reason else ''}{reason}")
        # A library's enum would show its name in the log.
        self.code = int(code)
        self.reason = reason


class HandshakeFailed(OmiRtError):
    """No usable HTTP request or response came, or none in time.

    Attributes:
        status: the HTTP status of a refusal, or None where none was read.
        reason: what the refusal says in plain text, in one line; else empty.
        retry_after: the seconds of its ``Retry-After``, or None.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        *,
        reason: str = "",
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


class ProviderError(OmiRtError):
    """Deepgram's fault, or the network's on the way there.

    Attributes:
        retryable: whether a new connection can mend it.
        retry_after: seconds that the provider asked to wait, or None.
    """

    retryable: bool = True
    retry_after: float | None = None


class ProviderRefused(ProviderError):
    """Deepgram answered the upgrade with an HTTP status instead of 101."""

    def __init__(
        self,
        status: int,
        *,
        retryable: bool,
        error: str = "",
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        details = "".join(
            f", {name} {value}"
            for name, value in (("dg-error", error), ("dg-request-id", request_id))
            if value
        )
        super().__init__(f"refused with HTTP {status}{details}")
        self.status = status
        self.retryable = retryable
        self.error = error
        self.request_id = request_id
        self.retry_after = retry_after


class ProviderClosed(ProviderError):
    """Deepgram ended an open connection with a close code, or without one (1006)."""

    def __init__(self, code: int, reason: str, *, retryable: bool) -> None:
        super().__init__(f"closed with {code}{': ' if reason else ''}{reason}")
        self.code = code
        self.reason = reason
        self.retryable = retryable


class ProviderUnreachable(ProviderError):
    """DNS, TCP or TLS failed, or the provider did not answer or take audio in time."""


class SettingsError(OmiRtError):
    """The settings are wrong; ``problems`` has one line for every bad key."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ProfileRefused(OmiRtError):
    """A speech profile that is not fit to be stored; the message is one clear line."""
