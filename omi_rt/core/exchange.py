"""The conversation with the provider over one connection, without I/O and without a clock.

An exchange decides what is to be sent next and when, what a message means, what is due, and when the
connection is to be given up. Whoever owns it sends what `Exchange.next_to_send` returns, passes each
final to `Exchange.hear` and then to `Exchange.settle`, and all else to `Exchange.receive`, and calls
`Exchange.check` when `Exchange.next_check` says so. Times are seconds of the caller's clock.

What goes up, in this order of precedence:

* control messages that are due: KeepAlive, Finalize;
* the lead-in, then one Finalize, while the epoch is primed;
* once the epoch is live the lead-in's tail, or what is left of a short lead-in, then the overlap before
  the watermark, and the session's audio, at `UPSTREAM_RATE` at most;
* a little silence, where no audio has come for `FIRST_AUDIO_SECONDS`;
* CloseStream, when the audio has ended and all of it has gone up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from omi_rt.core.answers import PAUSE_SECONDS, AnswerWatch
from omi_rt.core.deepgram import (
    CLOSE_STREAM,
    FINALIZE,
    KEEP_ALIVE,
    ConfigureAnswer,
    Metadata,
    Progress,
    Results,
    SpeechStarted,
    UtteranceEnd,
    finalize_channel,
)
from omi_rt.core.errors import ProviderClosed, ProviderUnreachable
from omi_rt.core.heard import superseded
from omi_rt.core.load import MAX_MESSAGE_BYTES, MAX_MESSAGE_SECONDS
from omi_rt.core.news import (
    PROGRESSED,
    SILENCE_PASSED,
    ConfigureAnswered,
    FinalHeard,
    InterimHeard,
    News,
    SpeechNoticed,
    Unused,
    Worked,
)
from omi_rt.core.phase import Phase, Step, after
from omi_rt.core.timeline import Timeline
from omi_rt.core.token_bucket import UPSTREAM_DEPTH_SECONDS, UPSTREAM_RATE, TokenBucket

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from omi_rt.core.audio import AudioChunk
    from omi_rt.core.coverage import Coverage
    from omi_rt.core.deepgram import Message
    from omi_rt.core.lead_in import LeadIn, LeadInPart
    from omi_rt.core.ledger import Cost
    from omi_rt.core.patience import Patience
    from omi_rt.core.short_lead_in import ShortLeadIn

KEEP_ALIVE_SECONDS = 4.0
"""KeepAlive goes up when nothing else has for this long; Deepgram closes with NET-0001 after 10 s."""
FIRST_AUDIO_SECONDS = 8.0
"""Silence is sent where no audio has come for this long, because sources disagree on whether KeepAlive
alone holds a connection that has never had audio."""
FILLER_SECONDS = 0.1
"""This much silence is sent then."""
CLOSING_SECONDS = 10.0
"""CloseStream counts as ignored when nothing has answered it for this long. A provider whose answers are
late may take 5 s more than they usually do, and the session's patience where speech still has no final."""
LINGER_SECONDS = 5.0
"""Results that Metadata has overtaken are read until nothing has come for this long, or for the session's
patience where speech still has no final."""
LAST_WORDS_SECONDS = 1.0
"""After a send has failed, what had arrived before is read for this long."""
CHECK_SECONDS = 1.0
"""An exchange is checked at least this often."""
_NORMAL_CLOSURE = 1000
_LIVE = Phase.LIVE
"""Under a name of its own: to look a member up in its enumeration takes 60 ns, and every frame would."""
_PROGRESS = (PROGRESSED,)
_NO_CHANNELS: frozenset[int] = frozenset()
"""One for all: an empty set takes 216 bytes."""


@frozen
class Later:
    """Nothing may go up before the time ``at``, because the provider takes audio no faster."""

    at: float


class Exchange:
    """One epoch's conversation, from its dial to its end.

    Args:
        coverage: the session's audio and watermarks.
        patience: what the session knows of its provider's lateness.
        cost: counts what goes up, by purpose.
        send_timeout: seconds that one send may take.
        now: the time of the dial.
        lead_in: the voices that the epoch is to hear before the session's audio.
    """

    __slots__ = (
        "_bucket",
        "_controls",
        "_cost",
        "_coverage",
        "_cursor",
        "_finalize_behind",
        "_format",
        "_is_planned",
        "_lead_in",
        "_message_samples",
        "_needs_filler",
        "_opened_at",
        "_overlap",
        "_patience",
        "_piece",
        "_rate",
        "_received_at",
        "_send_failed_at",
        "_send_timeout",
        "_undigested",
        "_voices",
        "audio_sent_at",
        "closing_since",
        "has_progressed",
        "has_sent_lead_in",
        "ignored_close",
        "last_sent",
        "lead_in_end",
        "metadata",
        "phase",
        "sending_since",
        "timeline",
        "watch",
    )

    def __init__(
        self,
        coverage: Coverage,
        patience: Patience,
        cost: Cost,
        send_timeout: float,
        now: float,
        lead_in: LeadIn | ShortLeadIn | None = None,
    ) -> None:
        self.phase = Phase.DIALLING
        self.timeline = Timeline(coverage.audio_format)
        self.watch = AnswerWatch(coverage, patience, self.timeline)
        """Judges whether the session's audio is answered in time."""
        self.metadata: Metadata | None = None
        """The provider's answer to CloseStream."""
        self.ignored_close = False
        """Whether CloseStream brought no answer in time."""
        self.has_progressed = False
        """Whether a final of this epoch has moved a watermark."""
        self.has_sent_lead_in = False
        """Whether all of the lead-in, and the Finalize behind it, has been handed out."""
        self.lead_in_end = 0
        """End of the last anchor that went up, in samples on the connection's clock."""
        self.sending_since: float | None = None
        """When the send that is under way began, or None while none is."""
        self.last_sent = now
        """When the last send was done."""
        self.audio_sent_at = now
        """When session audio was last handed out."""
        self.closing_since = 0.0
        """When CloseStream was handed out."""
        self._coverage = coverage
        self._format = coverage.audio_format
        self._rate = self._format.sample_rate
        self._message_samples = min(
            self._format.samples(MAX_MESSAGE_SECONDS), MAX_MESSAGE_BYTES // self._format.frame_bytes
        )
        self._patience = patience
        self._cost = cost
        self._send_timeout = send_timeout
        self._send_failed_at: float | None = None
        self._opened_at = now
        self._received_at = now
        self._lead_in = lead_in
        self._voices: Iterator[tuple[bytes, LeadInPart, int]] | None = None
        self._piece: tuple[bytes, LeadInPart, int] | None = None
        channels = frozenset(range(self._format.channels))
        self._undigested = channels if lead_in is not None else _NO_CHANNELS
        """Channels on which no final covers the lead-in yet."""
        self._cursor = 0
        self._overlap: list[AudioChunk] = []
        self._is_planned = False
        self._controls: list[str] = []
        self._needs_filler = False
        self._finalize_behind: int | None = None
        self._bucket = TokenBucket.full(UPSTREAM_RATE, UPSTREAM_DEPTH_SECONDS, now)

    # The phase.

    def open(self, now: float) -> None:
        """Note that the provider has accepted the connection."""
        self.phase = after(self.phase, Step.OPEN)
        self._opened_at = self._received_at = self.last_sent = self.audio_sent_at = now
        self._bucket = TokenBucket.full(UPSTREAM_RATE, UPSTREAM_DEPTH_SECONDS, now)
        if self._lead_in is not None:
            self._voices = self._pieces(self._lead_in.parts())

    def go_live(self, *, is_planned: bool, keeps_lead_in: bool = False) -> None:
        """Send the session's audio from the lowest watermark on, and the overlap before it first.

        Args:
            is_planned: a switch from an epoch that was still good: what goes up again because of it
                is counted as overlap, not as replay.
            keeps_lead_in: whether all of the lead-in goes up before that; otherwise only its tail does.
        """
        self.phase = after(self.phase, Step.GO_LIVE)
        self.timeline.begin(self._coverage)
        self._cursor = self._coverage.watermark
        self._overlap.extend(self._coverage.overlap_before(self._cursor, self._message_samples))
        self._is_planned = is_planned
        if not keeps_lead_in:
            self._piece = self._voices = None
            if self._lead_in is not None:
                self._voices = self._pieces(self._lead_in.tail())
        self._lead_in = None

    def finish(self) -> None:
        """Send what is left of the session's audio, then CloseStream."""
        self.phase = after(self.phase, Step.FINISH)

    def end(self) -> None:
        """Let nothing count any more that the connection says. It may be called twice."""
        if self.phase is not Phase.ENDED:
            self.phase = after(self.phase, Step.END)

    @property
    def sends_session_audio(self) -> bool:
        """Whether the session's audio goes up in the present phase."""
        return self.phase is Phase.LIVE or self.phase is Phase.FINISHING

    # What goes up.

    def next_to_send(self, now: float) -> bytes | str | Later | None:
        """Take what is to be sent next.

        Returns:
            Audio as bytes, a control message as text, `Later` where the pace forbids more, or None
            where there is nothing to send until something happens.
        """
        if self._controls:
            return self._controls.pop(0)
        if self._voices is not None:
            voice = self._next_voice(self._voices, now)
            if voice is not None:
                return voice
        if self._needs_filler:
            return self._take_filler()
        if not self.sends_session_audio:
            return None
        if self._is_finalize_due:
            self._finalize_behind = None
            return FINALIZE
        chunk = self._next_chunk()
        if chunk is not None:
            seconds = chunk.samples / self._rate
            if not self._bucket.try_take(seconds, now):
                return Later(now + self._bucket.delay(seconds, now))
            if self._overlap:
                del self._overlap[0]
            self._account(chunk.position, chunk.samples, now)
            return chunk.payload
        if self.phase is Phase.FINISHING:
            self.phase = after(self.phase, Step.CLOSE)
            self.closing_since = now
            return CLOSE_STREAM
        return None

    def pass_straight(self, samples: int, now: float) -> bool:
        """Tell whether the audio that has just come, the backlog's last ``samples``, goes up as it is.

        It does while all is well: the epoch is live, nothing comes first, and the pace allows it. It
        then counts as sent, and must be. Otherwise it is one of those that `next_to_send` returns.
        """
        position = self._coverage.backlog.end - samples
        if (
            self._cursor != position
            or self.phase is not _LIVE
            or self._controls
            or self._voices is not None
            or self._overlap
            or self._finalize_behind is not None
            or samples > self._message_samples
            or not self._bucket.try_take(samples / self._rate, now)
        ):
            return False
        self._account(position, samples, now)
        self.last_sent = now
        return True

    def note_send_begun(self, now: float) -> None:
        """Note that a send is under way."""
        self.sending_since = now

    def note_send_done(self, now: float) -> None:
        """Note that a send is done."""
        self.last_sent = now
        self.sending_since = None

    def note_send_failed(self, now: float) -> None:
        """Note that a send has met a broken connection; what had arrived before is still read."""
        self._send_failed_at = now

    def send_control(self, text: str) -> None:
        """Send a control message of the client's before anything else."""
        self._controls.append(text)

    def finalize_behind(self, position: int) -> None:
        """Ask for the finals of all channels as soon as all audio before ``position`` has gone up."""
        self._finalize_behind = position

    def finalize(self, channel: int | None = None) -> None:
        """Ask the provider for its finals, on one channel (counted from 0) or on all."""
        self._controls.append(FINALIZE if channel is None else finalize_channel(channel))

    # What comes.

    def hear(self, results: Results, now: float) -> FinalHeard:
        """Take a final and return what it heard, while the audio of its words is still in the backlog.

        `settle` must follow before anything else comes.
        """
        self._received_at = now
        if self.phase is Phase.ENDED:
            # Another epoch has its origin already, so what this one says now would come twice.
            return FinalHeard(results, superseded(results), now)
        return FinalHeard(results, self.timeline.hear(results, self._coverage), now)

    def settle(self, final: FinalHeard) -> Iterable[News]:
        """Move the watermarks over what a final covers, and return what that brings."""
        heard, results = final.heard, final.results
        news: Iterable[News] = ()
        if heard.finalise(self._coverage):
            self.watch.record_progress(heard.channels, heard.covered, final.at)
            self.has_progressed = True
            news = _PROGRESS
        elif heard.words:
            # Words without usable times cover nothing, but they are an answer.
            self.watch.record_progress(heard.channels, None, final.at)
        if results.from_finalize and self.has_sent_lead_in:
            self._undigested -= set(heard.channels)
        return news

    def receive(self, message: Message, now: float) -> Iterator[News]:
        """Apply a message that is no final, and yield what it brings."""
        self._received_at = now
        if isinstance(message, Results):
            assert not message.is_final, "a final is heard and settled"
            if self.sends_session_audio or self.phase is Phase.CLOSING:
                yield InterimHeard(message)
        elif isinstance(message, Metadata):
            if self.phase is Phase.CLOSING:
                self.metadata = message
        elif isinstance(message, Progress):
            if self.watch.record_work(message.seconds_worked or 0.0, now):
                yield Worked(message.seconds_behind or 0.0)
        elif isinstance(message, SpeechStarted | UtteranceEnd):
            position = self._position_of(message)
            if position is not None:
                yield SpeechNoticed(message, position)
        elif isinstance(message, ConfigureAnswer):
            yield ConfigureAnswered(message.failure)
        else:
            yield Unused(message)

    def take_close(self, closed: ProviderClosed) -> None:
        """Take the end of the connection.

        Raises:
            ProviderClosed: it is not the answer to our CloseStream.
        """
        is_asked = closed.code == _NORMAL_CLOSURE and self.phase is Phase.CLOSING
        if not is_asked and (self.metadata is None or self.misses_speech):
            raise closed

    def conclude(self) -> Iterable[News]:
        """End an exchange that was closed as we asked, and settle what its summary counts.

        It may be called twice; what it settles is returned once.
        """
        self.end()
        return () if self.metadata is None or self.misses_speech else self.apply_metadata()

    def apply_metadata(self) -> Iterable[News]:
        """Let the provider's summary cover what no final did, if it counts all that was sent.

        Where speech has no final this is to be done only when no other epoch will bring it.
        """
        position = self.timeline.sent_position
        if self.metadata is None or position is None:
            return ()
        if not self.timeline.covers_all(self.metadata.duration):
            return ()
        if not self._coverage.finalise_by_metadata(position):
            return ()
        self.has_progressed = True
        return (PROGRESSED,)

    @property
    def misses_speech(self) -> bool:
        """Whether anything that sounded has gone up and has no final, as far as finals have times."""
        return not self.timeline.lacks_times and self.watch.lacks_answer()

    @property
    def is_digested(self) -> bool:
        """Whether finals have covered the lead-in on every channel, or answered its Finalize."""
        if not self.has_sent_lead_in:
            return False
        self._undigested = frozenset(
            channel
            for channel in self._undigested
            if self.timeline.heard_until(channel) < self.lead_in_end
        )
        return not self._undigested

    @property
    def answers_all_channels(self) -> bool:
        """Whether a final has come on every channel."""
        channels = range(self._format.channels)
        return all(self.timeline.heard_until(channel) > 0 for channel in channels)

    # What is due.

    def check(self, now: float) -> Iterable[News]:
        """Do what is due, and return what that brings. It may end the exchange.

        Raises:
            ProviderUnreachable: the provider takes no audio, or answers none.
            ProviderClosed: the connection broke a while ago, and what it had brought has been read.
        """
        since = self.sending_since
        if since is not None and now - max(since, self.watch.worked_at) >= self._send_timeout:
            raise ProviderUnreachable(f"took no audio for {self._send_timeout:g} s")
        failed_at = self._send_failed_at
        if failed_at is not None and now - failed_at >= LAST_WORDS_SECONDS:
            raise ProviderClosed(1006, "connection lost", retryable=True)
        if self.phase is Phase.CLOSING:
            return self._wait_for_the_end(now)
        return self._keep_up(now)

    def next_check(self, now: float) -> float:
        """The time at which `check` is to be called next."""
        dues = [self.last_sent + KEEP_ALIVE_SECONDS]
        if self.sending_since is not None:
            dues.append(self.sending_since + self._send_timeout)
        if self._send_failed_at is not None:
            dues.append(self._send_failed_at + LAST_WORDS_SECONDS)
        if self.phase is Phase.CLOSING:
            dues.append(self.closing_since + CLOSING_SECONDS)
            dues.append(self._received_at + LINGER_SECONDS)
        if self.timeline.sent_samples == 0:
            dues.append(self._opened_at + FIRST_AUDIO_SECONDS)
        due = min((due for due in dues if due > now), default=now + CHECK_SECONDS)
        return min(due, now + CHECK_SECONDS)

    @property
    def has_something_to_send(self) -> bool:
        """Whether `next_to_send` has anything but session audio to return."""
        return bool(self._controls) or self._needs_filler or self._is_finalize_due

    @property
    def _is_finalize_due(self) -> bool:
        position = self._finalize_behind
        return position is not None and not self._overlap and self._cursor >= position

    def _position_of(self, message: SpeechStarted | UtteranceEnd) -> int | None:
        """Where in the session it was noticed; None where this epoch does not serve it."""
        if not self.sends_session_audio:
            return None
        match message:
            case SpeechStarted(timestamp=seconds) | UtteranceEnd(last_word_end=seconds):
                pass
        return None if seconds is None else self.timeline.position_of(seconds)

    def _keep_up(self, now: float) -> Iterable[News]:
        if self.timeline.sent_samples == 0 and now - self._opened_at >= FIRST_AUDIO_SECONDS:
            self._needs_filler = True
        elif (
            self.sending_since is None
            and not self._controls
            and now - self.last_sent >= KEEP_ALIVE_SECONDS
        ):
            self._controls.append(KEEP_ALIVE)
        if self.timeline.sent_position is None:
            return ()
        judgement = self.watch.judge(now, pauses=now - self.audio_sent_at >= PAUSE_SECONDS)
        if judgement.gives_up:
            raise ProviderUnreachable("no answer to the audio")
        several = self._format.channels > 1
        for channel in judgement.finalize:
            self.finalize(channel if several else None)
        passed = [self._coverage.finalise_silence(*silent) for silent in judgement.silent]
        passed += [self._coverage.finalise_unanswered(*behind) for behind in judgement.behind]
        return (SILENCE_PASSED,) if any(passed) else ()

    def _wait_for_the_end(self, now: float) -> Iterable[News]:
        """End where CloseStream was ignored, or where nothing more follows its answer."""
        unanswered = self.watch.unanswered_seconds(now)
        patience = self._patience.limit_seconds
        if self.metadata is not None:
            linger = LINGER_SECONDS if unanswered is None else patience
            return self.conclude() if now - self._received_at >= linger else ()
        waited = now - self.closing_since
        if unanswered is None:
            usual = self._patience.lag_seconds + LINGER_SECONDS
            is_over = waited >= max(CLOSING_SECONDS, usual)
        else:
            is_over = waited >= CLOSING_SECONDS and unanswered >= patience
        if not is_over:
            return ()
        self.ignored_close = True
        return self.conclude()

    # What is taken to be sent.

    def _next_chunk(self) -> AudioChunk | None:
        if self._overlap:
            return self._overlap[0]
        return self._coverage.backlog.read(self._cursor, self._message_samples)

    def _account(self, position: int, samples: int, now: float) -> None:
        # This comes before the send, because an answer may come while the send still waits for its turn.
        end, cost = position + samples, self._cost
        self.timeline.record_sent(position, samples)
        if position == cost.sent_until:
            # What `Cost.record_sent` does then, which every frame would call.
            cost.live += samples
            cost.sent_until = end
        else:
            cost.record_sent(position, end, planned=self._is_planned)
        self._cursor = end
        if now >= self.watch.times.due:
            self.watch.times.record(end, now)
        self.audio_sent_at = now

    def _next_voice(
        self, voices: Iterator[tuple[bytes, LeadInPart, int]], now: float
    ) -> bytes | str | Later | None:
        """Take the next piece of the lead-in, or the Finalize behind it; None behind its tail."""
        if self._piece is None:
            self._piece = next(voices, None)
        if self._piece is None:
            self._voices = None
            if self.has_sent_lead_in:
                return None
            self.has_sent_lead_in = True
            return FINALIZE
        payload, part, offset = self._piece
        samples = self._format.samples_in(payload)
        seconds = samples / self._rate
        if not self._bucket.try_take(seconds, now):
            return Later(now + self._bucket.delay(seconds, now))
        self._piece = None
        self.timeline.record_foreign(samples, part.anchor, part.said_at_sample(offset))
        self._cost.lead_in += samples
        if part.anchor is not None:
            self.lead_in_end = self.timeline.sent_samples
        return payload

    def _pieces(self, parts: Iterator[LeadInPart]) -> Iterator[tuple[bytes, LeadInPart, int]]:
        """Cut a lead-in into messages, each with the part that it is of and its first sample in it."""
        frame_bytes = self._format.frame_bytes
        step = self._message_samples * frame_bytes
        for part in parts:
            for offset in range(0, len(part.payload), step):
                yield part.payload[offset : offset + step], part, offset // frame_bytes

    def _take_filler(self) -> bytes:
        self._needs_filler = False
        payload = self._format.silence(FILLER_SECONDS)
        samples = self._format.samples_in(payload)
        self.timeline.record_foreign(samples)
        self._cost.filler += samples
        return payload
