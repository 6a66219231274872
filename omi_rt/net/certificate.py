"""The server's own certificate: read at the start, and again when asked to."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import trio

from omi_rt.core.errors import OmiRtError
from omi_rt.log import get_logger

if TYPE_CHECKING:
    from pathlib import Path


class CertificateUnusable(OmiRtError):
    """Certificate and key cannot be used; the message is one clear line."""


class Certificate:
    """A certificate with its key, in files.

    Args:
        certificate: PEM, the server's own first, then those that it was signed with.
        key: PEM, without a password.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._context: ssl.SSLContext | None = None

    @property
    def context(self) -> ssl.SSLContext:
        """What new connections are made with; those that are open keep theirs."""
        assert self._context is not None, "it is loaded first"
        return self._context

    async def load(self) -> None:
        """Read the files. Cancelling this leaves what was read before.

        Raises:
            CertificateUnusable: they cannot be read, or do not fit each other.
        """
        self._context = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)

    async def reload(self) -> None:
        """Read the files again; where they cannot be used, the old certificate stays."""
        try:
            await self.load()
        except CertificateUnusable as error:
            get_logger().error("certificate_refused", reason=str(error))
        else:
            get_logger().info("certificate_read")

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # HTTP/2 is not spoken here, and no WebSocket client that is known needs another.
        context.set_alpn_protocols(["http/1.1"])
        try:
            # A key with a password would make the library ask for it on the terminal.
            context.load_cert_chain(self._certificate, self._key, password=lambda: b"")
        except ssl.SSLError as error:
            reason = (error.reason or "not PEM").lower().replace("_", " ")
            raise CertificateUnusable(f"OMI_RT_TLS_CERT, OMI_RT_TLS_KEY: {reason}") from None
        except (OSError, ValueError) as error:
            told = error.strerror if isinstance(error, OSError) else None
            reason = (told or "not usable").lower()
            raise CertificateUnusable(f"OMI_RT_TLS_CERT, OMI_RT_TLS_KEY: {reason}") from None
        return context
