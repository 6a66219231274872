"""One epoch from its dial to its end."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import trio

from omi_rt.core.errors import ProviderError
from omi_rt.deepgram.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable

    from omi_rt.core.coverage import Coverage
    from omi_rt.core.deepgram import Results
    from omi_rt.core.dials import DialCause
    from omi_rt.core.lead_in import LeadIn
    from omi_rt.core.ledger import Cost
    from omi_rt.core.listen import ListenRequest
    from omi_rt.core.patience import Patience
    from omi_rt.core.timeline import Heard
    from omi_rt.deepgram.provider import Provider


class Attempt:
    """Dials, runs the link, and keeps what became of it."""

    __slots__ = (
        "_dialling",
        "cause",
        "ended",
        "error",
        "gives_way",
        "lead_in",
        "link",
        "opened",
    )

    def __init__(
        self, lead_in: LeadIn | None = None, *, cause: DialCause, gives_way: bool = False
    ) -> None:
        self.cause = cause
        self.gives_way = gives_way
        """Whether it is beside the session's own connection, and can wait."""
        self.lead_in = lead_in
        self.link: Link | None = None
        """Once the connection is open."""
        self.error: ProviderError | None = None
        """Why it ended, unless it was closed as we asked."""
        self.opened = trio.Event()
        self.ended = trio.Event()
        self._dialling = trio.CancelScope()

    async def run(
        self,
        request: ListenRequest,
        provider: Provider,
        coverage: Coverage,
        patience: Patience,
        cost: Cost,
        on_open: Callable[[Attempt, Link], None],
        on_heard: Callable[[Link, Results, Heard], None],
        on_progress: Callable[[], None],
        on_passed: Callable[[], None],
        on_work: Callable[[Link, float], None],
    ) -> None:
        """Run to the end, which is then in ``error``. Cancelling drops the connection."""
        dialled_at = trio.current_time()
        try:
            with (
                self._dialling,
                nullcontext() if self.gives_way else provider.dialling_own() as own_is_open,
            ):
                async with provider.connect(request) as connection:
                    if not connection.tells_speakers_apart:
                        self.lead_in = None
                    if own_is_open is not None:
                        own_is_open()
                    provider.opened(trio.current_time() - dialled_at, self.cause)
                    self.link = Link(
                        connection,
                        coverage,
                        patience,
                        provider.send_timeout,
                        cost,
                        on_heard,
                        on_progress,
                        on_passed,
                        provider.ignored,
                        on_work,
                        self.lead_in,
                    )
                    self.opened.set()
                    on_open(self, self.link)
                    await self.link.run()
        except ProviderError as error:
            # Without its frames: they hold this attempt, and the error would hold them.
            error.__context__ = error.__cause__ = None
            self.error = error.with_traceback(None)
            provider.failed(
                error,
                was_open=self.link is not None,
                gives_way=self.gives_way,
                cause=self.cause,
            )
        self.ended.set()

    def stop(self) -> None:
        """End it, with a closing handshake if it is open."""
        if self.link is not None:
            self.link.retire()
        else:
            self._dialling.cancel()
