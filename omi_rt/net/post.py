"""One POST to a receiver that is not trusted: not with the address, nor with its answer."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import trio

from omi_rt.core.webhooks import is_public
from omi_rt.net.http_client import HTTP_ERRORS, cause_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omi_rt.net.http_client import HTTPClient

_PORTS = {"http": 80, "https": 443}


class NotPosted(OSError):
    """The message did not arrive; the text names the cause, and no address."""


class PrivateAddress(NotPosted):
    """The receiver is in a private network, where nothing may be sent."""


async def post(
    client: HTTPClient,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    within: float,
    may_be_private: bool,
) -> int:
    """Post ``body``; returns the status. The answer's own body is not read, redirects are not followed.

    The name is looked up once, and what was found is what is connected to: a name that points
    elsewhere a moment later leads nowhere else. Cancelling this closes the connection.

    Raises:
        NotPosted: it took over ``within`` seconds, or no answer came.
        PrivateAddress: the receiver is in a private network.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    extensions = {}
    with trio.move_on_after(within):
        if not may_be_private:
            address = await _public_address(host, parts.port or _PORTS[parts.scheme])
            shown = f"[{address}]" if ":" in address else address
            port = "" if parts.port is None else f":{parts.port}"
            headers = {**headers, "Host": parts.netloc.rpartition("@")[2]}
            url = urlunsplit(parts._replace(netloc=shown + port))
            extensions = {"sni_hostname": host}
        try:
            async with client.stream(
                "POST",
                url,
                content=body,
                headers=dict(headers),
                extensions=extensions,
                follow_redirects=False,
                timeout=within,
            ) as response:
                return response.status_code
        except HTTP_ERRORS as error:
            raise NotPosted(cause_of(error)) from None
    raise NotPosted("no answer in time")


async def _public_address(host: str, port: int) -> str:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise NotPosted("no such host") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise PrivateAddress(
            "the receiver is in a private network: OMI_RT_WEBHOOK_PRIVATE=1 allows it"
        )
    return addresses[0]
