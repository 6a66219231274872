"""What a client asks of its provider, passed on to the connection that serves, and answered once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from attrs import evolve

from omi_rt.core.deepgram import configure
from omi_rt.core.phase import Phase
from omi_rt.core.requests import ConfigureRequest, FinalizeRequests
from omi_rt.core.updates import Configured, Final

if TYPE_CHECKING:
    from omi_rt.core.coverage import Coverage
    from omi_rt.core.heard import Heard
    from omi_rt.core.listen import ListenRequest
    from omi_rt.core.transcript import Transcript
    from omi_rt.deepgram.epoch import Epoch


class ClientRequests:
    """Finalize and Configure, over all epochs.

    Args:
        request: what the client asked for at first.
        coverage: the session's audio.
        transcript: tells the client the answers.
    """

    __slots__ = (
        "_configuring",
        "_coverage",
        "_finalize_sent",
        "_finalizing",
        "_transcript",
        "request",
    )

    def __init__(self, request: ListenRequest, coverage: Coverage, transcript: Transcript) -> None:
        self.request = request
        """What the next connection is asked for."""
        self._coverage = coverage
        self._transcript = transcript
        self._finalizing = FinalizeRequests(coverage)
        self._finalize_sent: int | None = None
        """The session position for which the epoch that serves has been asked."""
        self._configuring = ConfigureRequest()

    # From the client.

    def finalize(self, channel: int | None, serving: Epoch | None) -> None:
        """Finalise what has come so far, on one channel (counted from 0) or on all.

        The answer is a `Final` that says so. Any number of requests costs the provider one at a time.
        """
        for each in self._finalizing.ask(channel, trio.current_time()) or ():
            self._answer(each)
        self._pass_finalize(serving)

    def configure(
        self, keyterms: tuple[str, ...] | None, *, numerals: bool | None, serving: Epoch | None
    ) -> None:
        """Pass the client's options on; what is None stays as it is.

        The answer is a `Configured`, once the provider has said what became of it.
        """
        now = trio.current_time()
        model = ((self.request.options or {}).get("model") or ("",))[0]
        obstacle = self._configuring.find_obstacle(keyterms, model, now)
        if obstacle is None and (serving is None or serving.exchange.phase is not Phase.LIVE):
            obstacle = "CONFIGURE_INTERNAL_ERROR"
        if obstacle is not None:
            self._transcript.tell(Configured(keyterms, obstacle))
        elif serving is not None:
            self._configuring.begin(keyterms, now)
            serving.exchange.send_control(configure(keyterms, numerals=numerals))
            serving.wake()

    # From the provider.

    def note_serving(self, epoch: Epoch) -> None:
        """Note that an epoch serves from now on, which has not been asked for anything yet."""
        self._finalize_sent = None
        self._pass_finalize(epoch)

    def answers(self, heard: Heard, *, from_finalize: bool) -> bool:
        """Whether a final answers the client's own Finalize.

        ``from_finalize`` is whether the provider says that it was asked for.
        """
        return bool(self._finalizing.wanted) and self._finalizing.take_final(
            heard, from_finalize=from_finalize, now=trio.current_time()
        )

    def note_progress(self, now: float, serving: Epoch | None) -> None:
        """Answer what is met now that a watermark has moved."""
        if self._finalizing.wanted:
            for channel in self._finalizing.take_progress(now):
                self._answer(channel)
            self._pass_finalize(serving)

    def take_configured(self, failure: str | None) -> None:
        """Take the provider's answer to Configure: None, or its code for why it has failed."""
        if not self._configuring.end():
            return
        keyterms = self._configuring.keyterms
        if failure is None and keyterms is not None:
            # The next connection begins with them.
            options = {**(self.request.options or {}), "keyterm": keyterms}
            self.request = evolve(self.request, options=options)
        self._transcript.tell(Configured(keyterms, failure))

    def _pass_finalize(self, serving: Epoch | None) -> None:
        """Ask the provider for what the client wants finalised, once for each position."""
        position = self._finalizing.position
        if position in {None, self._finalize_sent} or serving is None:
            return
        if serving.exchange.phase is Phase.LIVE:
            self._finalize_sent = position
            serving.exchange.finalize_behind(position or 0)
            serving.wake()

    def _answer(self, channel: int) -> None:
        """Tell the client that its Finalize is done, where no final of the provider's says so."""
        if channel == 0 or not self.request.is_mixed_down:
            covered = self._coverage.watermark_of(channel)
            channels = range(channel, channel + 1)
            self._transcript.tell(Final(channels, covered, (), (), from_finalize=True))
