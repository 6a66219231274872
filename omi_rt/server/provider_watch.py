"""The server's own look at Deepgram: at the start, and while it refuses what all sessions share."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import trio

from omi_rt.core.admission import REFUSED_KEY
from omi_rt.core.breaker import PROBE_SECONDS
from omi_rt.core.errors import ProviderError, ProviderRefused
from omi_rt.core.listen import ListenRequest
from omi_rt.deepgram.key_check import KeyVerdict, check_key
from omi_rt.log import get_logger

if TYPE_CHECKING:
    from omi_rt.deepgram.provider import Provider
    from omi_rt.net.http_client import HTTPClient

_JITTER = 0.5
"""The pause between two probes is longer by at most this share of it, by chance, so that servers that
start together do not probe together."""
_REQUEST = ListenRequest(uid="probe")


async def look_at_key(provider: Provider, key: str, client: HTTPClient) -> None:
    """Find out whether Deepgram takes the key, and open the breaker where it does not.

    Nothing depends on an answer, because the sessions find out where none comes.
    """
    verdict, basis = await check_key(provider.base_url, key, client)
    log = get_logger()
    if verdict is KeyVerdict.REFUSED:
        provider.breaker.record_refusal(HTTPStatus.UNAUTHORIZED, trio.current_time())
        log.error("provider_refuses_key", reason=REFUSED_KEY)
    elif verdict is KeyVerdict.UNREACHABLE:
        log.warning("provider_unreachable", reason=f"the key could not be checked: {basis}")
    elif verdict is KeyVerdict.UNKNOWN:
        log.debug("provider_key_unchecked", reason=basis)


async def probe_provider(provider: Provider) -> None:
    """Dial now and then while the breaker is open, since an open connection closes it.

    This is needed because a server that says that it is not ready gets no sessions, which would find out
    otherwise. It runs until it is cancelled.
    """
    while True:
        await trio.sleep(PROBE_SECONDS * provider.random.uniform(1.0, 1.0 + _JITTER))
        breaker = provider.breaker
        if breaker.opened_by is None or breaker.retry_after(trio.current_time()) is not None:
            continue
        if await _probe(provider):
            get_logger().info("provider_accepts")


async def _probe(provider: Provider) -> bool:
    """Dial once, for no session; return whether a connection was open."""
    dialled_at, is_open = trio.current_time(), False
    try:
        async with provider.connect(_REQUEST):
            is_open = True
            provider.note_open(trio.current_time() - dialled_at)
    except ProviderError as error:
        if isinstance(error, ProviderRefused):
            provider.breaker.record_refusal(error.status, trio.current_time())
        provider.note_failure(error, was_open=is_open, gives_way=True)
    return is_open
