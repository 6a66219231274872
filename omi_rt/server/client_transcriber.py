"""The transcription of a session whose client transcribes by itself: nothing is dialled."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import trio

from omi_rt.core import events
from omi_rt.core.heard import Heard
from omi_rt.core.ledger import Cost
from omi_rt.core.speakers import EpochLabels
from omi_rt.core.words import HeardWord

if TYPE_CHECKING:
    from collections.abc import Callable

    from omi_rt.core.asks import Suggest, SuggestedSegment
    from omi_rt.core.coverage import Coverage
    from omi_rt.core.transcript import Transcript

_CHANNEL = 0
"""The client does not say on which channel it has heard what."""


class ClientTranscriber:
    """Takes the place of `omi_rt.deepgram.transcriber.Transcriber`, with the same methods.

    What the client has heard becomes the session's segments, with its ids and its speaker numbers.
    Audio may come or not: it goes nowhere, and is finalised when it has come.

    Args:
        coverage: the session's audio.
        transcript: makes segments and corrections of what is heard.
        tell: takes events for the device.
        log: a structlog logger of the session's.
    """

    def __init__(
        self,
        coverage: Coverage,
        transcript: Transcript,
        *,
        tell: Callable[[dict[str, Any]], None],
        log: Any,
    ) -> None:
        self.cost = Cost()
        self._coverage = coverage
        self._transcript = transcript
        self._tell = tell
        self._log = log
        self._labels = EpochLabels()
        self._ended = trio.Event()
        self._has_logged_refusal = False

    def suggest(self, suggested: Suggest) -> None:
        """Take what the client has heard, and tell it what of that cannot be taken."""
        for segment in suggested.segments:
            self._narrate(segment)
        if suggested.reason is None:
            return
        if not self._has_logged_refusal:
            self._has_logged_refusal = True
            self._log.info("suggestion_refused", reason=suggested.reason)
        self._tell(events.suggestion_refused(suggested))

    def receive(self, payload: bytes, now: float) -> None:
        """Take audio from the device, and count it."""
        self._coverage.receive(payload)
        self._coverage.finalise_by_client()

    def finalize(self, channel: int | None = None) -> None:
        """Do nothing: whatever has come is final."""

    def configure(self, keyterms: tuple[str, ...] | None, *, numerals: bool | None) -> None:
        """Do nothing: there is no provider that has options."""

    async def make_room(self) -> None:
        """Return at once, because no audio is kept."""
        await trio.lowlevel.checkpoint()

    def end_audio(self, within: float | None = None) -> None:
        """Finish, because no more comes; everything is final already."""
        self._ended.set()

    async def run(self) -> None:
        """Wait until the audio has ended. Cancelling this is safe: nothing is ever pending."""
        self._tell(events.service_status("initiating"))
        self._tell(events.ready(self._transcript.session_id, datetime.now(UTC)))
        await self._ended.wait()

    def _narrate(self, segment: SuggestedSegment) -> None:
        samples = self._coverage.audio_format.samples
        word = HeardWord(
            segment.text, samples(segment.start), samples(segment.end), _CHANNEL, segment.speaker
        )
        if segment.identity is not None:
            self._transcript.introduce(self._labels, (_CHANNEL, segment.speaker), segment.identity)
        heard = Heard([word], range(_CHANNEL, _CHANNEL + 1), None)
        self._transcript.narrate(self._labels, heard, self._coverage.backlog)
