"""What all sessions share on the way to Deepgram."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from omi_rt.core.breaker import Breaker, DialGate, PrimingGate
from omi_rt.core.deepgram import Malformed, Message, listen_url
from omi_rt.core.dials import DialCause
from omi_rt.core.errors import BadRequest, ProviderError, ProviderRefused
from omi_rt.core.token_bucket import TokenBucket
from omi_rt.deepgram.connection import Connection, Dial, dial_tcp, open_connection
from omi_rt.deepgram.credentials import APIKey, Credentials, GrantedToken
from omi_rt.metrics import Metrics, status_label

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from omi_rt.core.listen import ListenRequest
    from omi_rt.net.http_client import HTTPClient
    from omi_rt.settings import Settings


_ROOM_CHECK_SECONDS = 1.0, 2.0
"""The least and the most seconds between two looks whether there is room."""


@define
class Provider:
    """Address, credentials and the process-wide protections of one Deepgram."""

    base_url: str
    options: Mapping[str, Sequence[str]]
    credentials: Credentials
    dial: Dial
    connect_timeout: float
    send_timeout: float
    breaker: Breaker
    gate: DialGate
    priming: PrimingGate
    random: Random
    metrics: Metrics
    languages: frozenset[str] | None = None
    """Primary subtags of the languages that it knows; None where only the provider itself can say."""
    tells_speakers_apart: bool = True
    """Whether its labels mean anything; only then are lead-ins worth their cost."""
    find_carried: Callable[[], int | None] = lambda: None
    """Finds how many sessions the provider can carry at this time. None means that it has not said;
    Deepgram never does."""
    failures: int = 0
    """The number of dials that failed and of connections that were lost since the start."""
    give_way: trio.Event = field(factory=trio.Event)
    """Set, and replaced, when there is no room at the provider for a session's own connection."""

    def connect(
        self, request: ListenRequest, dialling: trio.CancelScope | None = None
    ) -> AbstractAsyncContextManager[Connection]:
        """Open a connection for ``request``; see `open_connection`."""
        url = listen_url(self.base_url, request, self.options)
        return open_connection(url, self.credentials, self.dial, self.connect_timeout, dialling)

    def has_room(self, count: Callable[[], int]) -> bool:
        """Whether the provider can carry another session; ``count`` counts those that it has."""
        carried = self.find_carried()
        return carried is None or count() < carried

    def check_language(self, language: str) -> None:
        """Refuse a language tag that the provider is known not to know.

        Raises:
            BadRequest: the provider does not know the language; the message names those that it knows.
        """
        if self.languages is None or language == "auto":
            return
        if language.lower().partition("-")[0] not in self.languages:
            known = ", ".join(sorted(self.languages))
            raise BadRequest(f"language: this server only transcribes {known}")

    def note_open(self, seconds: float, cause: DialCause = DialCause.PROBE) -> None:
        """Note an open connection, and how long its dial took."""
        self.gate.failing = False
        self.breaker.record_success()
        self.metrics.provider_dials.labels(cause.value, "open").inc()
        self.metrics.setup_seconds.observe(seconds)

    def note_failure(
        self,
        error: ProviderError,
        *,
        was_open: bool,
        gives_way: bool,
        cause: DialCause = DialCause.PROBE,
    ) -> None:
        """Note a connection that was lost, or a dial that failed."""
        self.failures += 1
        status = error.status if isinstance(error, ProviderRefused) else None
        is_full = status is not None and self.priming.record_refusal(status, trio.current_time())
        if is_full and not gives_way:
            self.give_way.set()
            self.give_way = trio.Event()
        if was_open:
            self.metrics.provider_drops.inc()
        else:
            self.gate.failing = True
            self.metrics.provider_dials.labels(cause.value, "failed").inc()
            if status is not None:
                self.metrics.provider_refusals.labels(status_label(status)).inc()

    def note_unused(self, message: Message) -> None:
        """Count a message that brought nothing."""
        kind = "malformed" if isinstance(message, Malformed) else "ignored"
        self.metrics.provider_messages.labels(kind).inc()

    async def wait_for_room(self) -> None:
        """Wait until a connection may be opened beside a session's own. Cancelling is safe."""
        while True:
            if self.priming.may_begin(trio.current_time()):
                return
            await trio.sleep(self.random.uniform(*_ROOM_CHECK_SECONDS))

    async def wait_for_turn(self, *, is_redial: bool) -> None:
        """Wait until this process may dial again. Cancelling gives the place up."""
        delay = self.gate.reserve(trio.current_time(), is_redial=is_redial)
        try:
            await trio.sleep(delay)
        except trio.Cancelled:
            if delay > 0.0:
                self.gate.give_back()
            raise


def make_provider(
    settings: Settings,
    *,
    base_url: str,
    metrics: Metrics,
    client: HTTPClient | None = None,
    dial: Dial = dial_tcp,
    random: Random | None = None,
    languages: frozenset[str] | None = None,
    tells_speakers_apart: bool = True,
    find_carried: Callable[[], int | None] = lambda: None,
) -> Provider:
    """Build a provider from the settings. Must run inside Trio, for the clock.

    ``client`` is needed where tokens are granted.
    """
    random = random or Random()
    credentials: Credentials
    if settings.deepgram_grant and client is not None:
        credentials = GrantedToken(settings.deepgram_api_key, base_url, client)
    else:
        credentials = APIKey(settings.deepgram_api_key)
    bucket = TokenBucket.full(settings.redial_rate, settings.redial_burst, trio.current_time())
    breaker = Breaker(random)
    metrics.breaker_open.set_function(lambda: breaker.opened_by is not None)
    metrics.carried_sessions.set_function(lambda: find_carried() or 0)
    return Provider(
        base_url=base_url,
        options=settings.deepgram_options,
        credentials=credentials,
        dial=dial,
        connect_timeout=settings.connect_timeout,
        send_timeout=settings.send_timeout,
        breaker=breaker,
        gate=DialGate(bucket),
        priming=PrimingGate(settings.max_primed),
        random=random,
        metrics=metrics,
        languages=languages,
        tells_speakers_apart=tells_speakers_apart,
        find_carried=find_carried,
    )
