"""The conversation with the provider over one connection: no server, no socket, no clock."""

from __future__ import annotations

from itertools import pairwise
from json import dumps
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from attrs import define, field

from omi_rt.core.audio import AudioFormat
from omi_rt.core.coverage import OVERLAP_SECONDS, Coverage
from omi_rt.core.deepgram import (
    CLOSE_STREAM,
    FINALIZE,
    KEEP_ALIVE,
    Alternative,
    Channel,
    Ignored,
    Malformed,
    Metadata,
    Progress,
    Results,
    Word,
    finalize_channel,
    parse_message,
)
from omi_rt.core.errors import ProviderClosed, ProviderUnreachable
from omi_rt.core.exchange import Exchange, Later
from omi_rt.core.heard import Discard
from omi_rt.core.lead_in import Anchor, LeadIn, LeadInPart, VoiceClips
from omi_rt.core.ledger import Cost
from omi_rt.core.news import (
    PROGRESSED,
    SILENCE_PASSED,
    FinalHeard,
    InterimHeard,
    News,
    Unused,
    Worked,
)
from omi_rt.core.patience import Patience
from omi_rt.core.phase import IllegalStep, Phase
from omi_rt.core.voices import USER, Identity

if TYPE_CHECKING:
    from collections.abc import Iterator

RATE = 1000
MONO = AudioFormat(RATE, 1)
STEREO = AudioFormat(RATE, 2)
SEND_TIMEOUT = 12.0


def speech(seconds: float, channels: int = 1, on: int | None = None) -> bytes:
    """Sound on one channel, or on all: 200 ms of every 300."""
    time = np.arange(round(seconds * RATE))
    voice = np.where(time % 300 < 200, 5000 * (-1) ** time, 0).astype("<i2")
    audio = np.zeros((len(time), channels), dtype="<i2")
    audio[:, slice(None) if on is None else on] = voice[:, None] if on is None else voice
    return audio.tobytes()


def silence(seconds: float, channels: int = 1) -> bytes:
    return bytes(round(seconds * RATE) * 2 * channels)


def final(start: float, end: float, *words: str, channel: int = 0, **more: Any) -> Results:
    """A final whose words share its time equally."""
    each = (end - start) / max(1, len(words))
    spoken = [
        {"word": text, "start": start + n * each, "end": start + (n + 1) * each, "speaker": 0}
        for n, text in enumerate(words)
    ]
    message = parse_message(
        dumps(
            {
                "type": "Results",
                "is_final": True,
                "channel_index": [channel, more.pop("of", 1)],
                "start": start,
                "duration": end - start,
                "channel": {"alternatives": [{"transcript": "", "words": spoken}]},
                **more,
            }
        )
    )
    assert isinstance(message, Results)
    return message


@define
class Talk:
    """An exchange with the audio that it is about, and a clock that is a number."""

    audio_format: AudioFormat = MONO
    lead_in: LeadIn | None = None
    coverage: Coverage = field(init=False)
    cost: Cost = field(factory=Cost)
    patience: Patience = field(factory=lambda: Patience(60.0))
    exchange: Exchange = field(init=False)
    now: float = 100.0
    check_at: float = 100.0
    sent: list[tuple[float, bytes | str]] = field(factory=list)
    news: list[News] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.coverage = Coverage(self.audio_format, 600.0)
        self.renew(self.lead_in)

    def renew(self, lead_in: LeadIn | None = None) -> None:
        """Begin the next epoch of the same session; it is dialled and not open yet."""
        self.exchange = Exchange(
            self.coverage, self.patience, self.cost, SEND_TIMEOUT, self.now, lead_in
        )

    def open(self) -> None:
        self.exchange.open(self.now)
        self.check_at = self.exchange.next_check(self.now)

    def go_live(self, *, is_planned: bool = False) -> None:
        self.exchange.go_live(is_planned=is_planned)

    def hear(self, payload: bytes) -> None:
        self.coverage.receive(payload)

    def receive(self, message: Any) -> list[News]:
        if isinstance(message, Results) and message.is_final:
            final = self.exchange.hear(message, self.now)
            return [final, *self.exchange.settle(final)]
        return list(self.exchange.receive(message, self.now))

    def send_now(self) -> Later | None:
        """Send all that may go up at this moment; returns what is said then."""
        while True:
            item = self.exchange.next_to_send(self.now)
            if item is None or isinstance(item, Later):
                return item
            self.exchange.note_send_begun(self.now)
            self.sent.append((self.now, item))
            self.exchange.note_send_done(self.now)

    def send_all(self) -> None:
        """Send all that there is, as fast as the pace allows."""
        while (later := self.send_now()) is not None:
            assert later.at > self.now
            self.now = later.at

    def check(self) -> list[News]:
        news = list(self.exchange.check(self.now))
        self.news += news
        return news

    def let_pass(self, seconds: float) -> None:
        """Let time go by, checking whenever the exchange asked to be checked."""
        end = self.now + seconds
        while self.check_at <= end and self.exchange.phase is not Phase.ENDED:
            self.now = max(self.now, self.check_at)
            self.check()
            self.send_now()
            self.check_at = self.exchange.next_check(self.now)
            assert self.now < self.check_at <= self.now + 1.0
        self.now = end

    def play(self, seconds: float, payload: bytes | None = None, step: float = 0.1) -> None:
        """Let the device send, in messages of ``step`` seconds; silence by default."""
        channels = self.audio_format.channels
        payload = silence(seconds, channels) if payload is None else payload
        size = round(step * RATE) * 2 * channels
        end = self.now + seconds
        for offset in range(0, len(payload), size):
            self.hear(payload[offset : offset + size])
            self.send_now()
            self.let_pass(step)
        self.now = end

    def is_over(self) -> bool:
        return self.exchange.phase is Phase.ENDED

    @property
    def controls(self) -> list[tuple[float, str]]:
        """The control messages that went up, with the time of each since the dial."""
        return [(round(at - 100.0, 3), item) for at, item in self.sent if isinstance(item, str)]

    @property
    def audio(self) -> bytes:
        return b"".join(item for _, item in self.sent if isinstance(item, bytes))

    def seconds_sent(self) -> float:
        return len(self.audio) / RATE / self.audio_format.frame_bytes


def live(audio_format: AudioFormat = MONO) -> Talk:
    """A talk that has just opened and serves the session."""
    talk = Talk(audio_format)
    talk.open()
    talk.go_live()
    return talk


def closing(seconds: float = 2.0, payload: bytes | None = None) -> Talk:
    """A talk whose audio has gone up, with CloseStream behind it."""
    talk = live()
    talk.hear(speech(seconds) if payload is None else payload)
    talk.exchange.finish()
    talk.send_all()
    assert talk.exchange.phase is Phase.CLOSING
    return talk


def anchors(*seconds: float, audio_format: AudioFormat = MONO) -> LeadIn:
    """A lead-in of voices of these lengths: the user's, then known people's."""
    whose = [USER, *(Identity(f"person{n}") for n in range(1, len(seconds)))]
    known = [
        Anchor(who, speech(length, audio_format.channels))
        for who, length in zip(whose, seconds, strict=True)
    ]
    return LeadIn(known, VoiceClips(audio_format), audio_format)


class WithTail(LeadIn):
    """A lead-in during which somebody else began to speak."""

    def tail(self) -> Iterator[LeadInPart]:
        return anchors(1.4).parts()


# Dialling and opening


def test_nothing_goes_up_before_the_epoch_is_live() -> None:
    talk = Talk()
    talk.hear(speech(1.0))
    assert talk.exchange.next_to_send(talk.now) is None
    talk.open()
    assert talk.exchange.phase is Phase.PRIMING
    assert talk.send_now() is None
    assert not talk.exchange.pass_straight(RATE // 4, talk.now)
    assert talk.sent == []


def test_an_epoch_that_ends_while_it_is_dialled_cannot_open() -> None:
    talk = Talk()
    talk.exchange.end()
    talk.exchange.end()
    with pytest.raises(IllegalStep):
        talk.open()


def test_a_long_dial_is_no_silence_of_the_connection_s() -> None:
    talk = Talk()
    talk.now += 30.0
    talk.open()
    talk.go_live()
    talk.check()
    assert talk.send_now() is None
    assert talk.sent == []


# Session audio


def test_audio_goes_up_in_messages_of_a_quarter_of_a_second_at_most() -> None:
    talk = live()
    talk.hear(speech(1.1))
    talk.send_now()
    sizes = [len(item) / 2 / RATE for _, item in talk.sent]
    assert sizes == pytest.approx([0.25, 0.25, 0.25, 0.25, 0.1])
    assert talk.audio == speech(1.1)
    assert talk.send_now() is None


def test_no_message_of_many_channels_is_too_big_for_a_server_that_takes_64_kib() -> None:
    talk, audio = live(AudioFormat(48_000, 8)), b"\1\2" * 8 * 14_400
    talk.hear(audio)
    talk.send_now()
    assert [len(item) for _, item in talk.sent] == [65_536, 65_536, 65_536, 33_792]
    assert talk.audio == audio


def test_what_the_device_sent_just_now_may_go_up_straight() -> None:
    talk = live()
    for _ in range(2):
        talk.hear(speech(0.1))
        talk.now += 0.1
        assert talk.exchange.pass_straight(100, talk.now)
        assert talk.exchange.last_sent == talk.now
        assert not talk.exchange.pass_straight(100, talk.now)
    assert talk.send_now() is None
    assert talk.sent == []
    assert (talk.cost.live, talk.exchange.timeline.sent_samples) == (200, 200)


def test_what_came_before_goes_up_before_what_came_just_now() -> None:
    talk = live()
    talk.hear(speech(0.1))
    talk.hear(speech(0.2))
    assert not talk.exchange.pass_straight(200, talk.now)
    talk.send_now()
    assert [item for _, item in talk.sent] == [
        speech(0.1)[:200] + speech(0.2)[:300],
        speech(0.2)[300:],
    ]


def test_more_than_a_message_holds_does_not_go_up_straight() -> None:
    talk = live()
    talk.hear(speech(0.251))
    assert not talk.exchange.pass_straight(251, talk.now)
    talk.send_now()
    assert talk.audio == speech(0.251)


def test_nothing_goes_up_straight_faster_than_the_provider_takes_it() -> None:
    talk = live()
    passed = []
    for _ in range(10):
        talk.hear(speech(0.25))
        passed.append(talk.exchange.pass_straight(250, talk.now))
    assert passed == [True] * 8 + [False] * 2
    assert isinstance(talk.send_now(), Later)


def test_nothing_goes_up_straight_once_the_audio_has_ended() -> None:
    talk = live()
    talk.exchange.finish()
    talk.hear(speech(0.1))
    assert not talk.exchange.pass_straight(100, talk.now)


def test_nothing_overtakes_the_overlap_or_a_finalize_of_the_client_s() -> None:
    talk = spoken_before(2.0, 2.0)
    talk.renew()
    talk.open()
    talk.go_live()
    talk.hear(speech(0.1))
    assert not talk.exchange.pass_straight(100, talk.now)
    talk = live()
    talk.exchange.finalize_behind(50)
    talk.hear(speech(0.1))
    assert not talk.exchange.pass_straight(100, talk.now)


def test_a_control_message_or_a_voice_is_not_overtaken_by_the_device_s_task() -> None:
    talk = live()
    talk.hear(speech(0.1))
    talk.exchange.finalize()
    assert not talk.exchange.pass_straight(100, talk.now)
    talk.send_now()
    assert [item for _, item in talk.sent] == [FINALIZE, speech(0.1)]


def test_audio_waits_where_two_seconds_have_gone_up_at_once_and_then_follows_at_five_quarters() -> (
    None
):
    talk = live()
    talk.hear(speech(12.0))
    later = talk.send_now()
    assert talk.seconds_sent() == 2.0
    assert later == Later(talk.now + 0.25 / 1.25)
    talk.send_all()
    assert talk.now - 100.0 == pytest.approx((12.0 - 2.0) / 1.25)


# What keeps a connection alive


def test_keepalive_goes_up_every_four_seconds_in_which_nothing_else_did() -> None:
    talk = live()
    talk.hear(silence(0.1))
    talk.send_now()
    talk.let_pass(3.999)
    assert talk.controls == []
    talk.let_pass(8.0)
    assert talk.controls == [(4.0, KEEP_ALIVE), (8.0, KEEP_ALIVE)]


def test_keepalive_does_not_go_up_while_audio_does() -> None:
    talk = live()
    talk.play(30.0)
    assert talk.controls == []
    assert talk.seconds_sent() == 30.0


def test_keepalive_does_not_go_up_while_a_send_is_under_way() -> None:
    talk = live()
    talk.hear(silence(0.1))
    talk.send_now()
    talk.exchange.note_send_begun(talk.now)
    talk.now += 5.0
    talk.check()
    assert not talk.exchange.has_something_to_send


def test_a_primed_epoch_is_kept_alive_too() -> None:
    talk = Talk(lead_in=anchors(1.5))
    talk.open()
    talk.send_all()
    talk.let_pass(9.0)
    assert [item for _, item in talk.controls] == [FINALIZE, KEEP_ALIVE, KEEP_ALIVE]


def test_a_tenth_of_a_second_of_silence_goes_up_where_no_audio_came_for_eight() -> None:
    talk = live()
    talk.let_pass(7.99)
    assert talk.controls == [(4.0, KEEP_ALIVE)]
    assert talk.seconds_sent() == 0.0
    talk.let_pass(30.0)
    assert talk.audio == silence(0.1)
    assert [at for at, item in talk.sent if isinstance(item, bytes)] == [108.0]
    assert (talk.cost.filler, talk.cost.total) == (100, 100)


def test_the_silence_moves_no_time_of_what_follows() -> None:
    talk = live()
    talk.let_pass(8.0)
    talk.hear(speech(1.0))
    talk.send_now()
    heard, progressed = talk.receive(final(0.1, 1.1, "a", "b"))
    assert isinstance(heard, FinalHeard)
    assert [(w.start, w.end) for w in heard.heard.words] == [(0, 500), (500, 1000)]
    assert progressed is PROGRESSED
    assert talk.coverage.watermark == 1000


# Finalize


def test_finalize_goes_up_when_speech_has_had_no_final_for_ten_seconds() -> None:
    talk = live()
    talk.play(1.0, speech(1.0))
    talk.play(20.0)
    (asked,) = [at for at, item in talk.controls if item == FINALIZE]
    assert 10.0 <= asked <= 11.5


def test_finalize_waits_for_a_quiet_moment_and_three_seconds_at_most() -> None:
    talk, steady = live(), live()
    tone = (np.ones(RATE * 20) * 5000 * (-1) ** np.arange(RATE * 20)).astype("<i2")
    tone[round(12.1 * RATE) : round(12.5 * RATE)] = 0
    talk.play(14.0, tone.tobytes()[: 14 * RATE * 2])
    (asked,) = [at for at, item in talk.controls if item == FINALIZE]
    assert 12.2 <= asked <= 13.0
    tone[:] = (5000 * (-1) ** np.arange(RATE * 20)).astype("<i2")
    steady.play(20.0, tone.tobytes())
    first, *_ = [at for at, item in steady.controls if item == FINALIZE]
    assert 13.0 <= first <= 14.5


def test_of_several_channels_only_the_one_that_waits_is_asked() -> None:
    talk = live(STEREO)
    talk.play(1.0, speech(1.0, 2, on=1))
    talk.play(14.0)
    assert [item for _, item in talk.controls] == [finalize_channel(1)]


def test_speech_that_has_a_final_is_not_asked_for() -> None:
    talk = live()
    talk.play(1.0, speech(1.0))
    talk.receive(final(0.0, 1.0, "a"))
    talk.play(30.0)
    assert talk.controls == []


def test_a_pause_of_five_seconds_asks_at_once_and_once() -> None:
    talk = live()
    talk.play(1.0, speech(1.0))
    talk.let_pass(12.0)
    asked = [at for at, item in talk.controls if item == FINALIZE]
    assert len(asked) == 1
    # The last message goes up at 0.9 s.
    assert 5.9 <= asked[0] <= 6.9


def test_silence_that_nobody_answers_for_is_passed() -> None:
    talk = live()
    talk.play(30.0)
    assert SILENCE_PASSED in talk.news
    assert PROGRESSED not in talk.news
    assert talk.coverage.watermark > 15 * RATE
    assert talk.coverage.ledger.finalised_as_silence == talk.coverage.watermark
    assert talk.exchange.has_progressed is False


def test_a_channel_that_does_not_answer_goes_along_with_the_one_that_does() -> None:
    talk = live(STEREO)
    for second in range(40):
        talk.play(1.0, speech(1.0, 2))
        talk.receive(final(second, second + 1.0, "a", channel=0, of=2))
    assert finalize_channel(1) in [item for _, item in talk.controls]
    assert SILENCE_PASSED in talk.news
    assert talk.coverage.watermark_of(1) > 10 * RATE
    assert talk.coverage.ledger.finalised_unanswered > 0


def test_a_connection_that_answers_no_speech_is_given_up() -> None:
    talk = live()
    with pytest.raises(ProviderUnreachable, match="no answer to the audio"):
        talk.play(60.0, speech(60.0))
    assert talk.now - 100.0 == pytest.approx(50.0, abs=1.5)


def test_a_busy_provider_that_gets_on_is_neither_asked_nor_given_up() -> None:
    talk = live()
    for second in range(80):
        talk.play(1.0, speech(1.0))
        assert talk.receive(Progress(second * 0.5 + 0.1, second * 0.5)) == [Worked(second * 0.5)]
    assert talk.controls == []
    assert talk.receive(Progress(1.0, 50.0)) == []


# Precedence


def test_what_is_due_goes_up_in_order_of_precedence() -> None:
    talk = Talk(lead_in=anchors(0.25))
    talk.open()
    talk.now += 8.0
    talk.check()
    talk.exchange.finalize(1)
    talk.hear(speech(0.1))
    talk.send_now()
    lead_in = [speech(0.25), *[silence(0.25)] * 4, FINALIZE]
    assert [item for _, item in talk.sent] == [finalize_channel(1), *lead_in, silence(0.1)]
    talk.sent.clear()
    talk.go_live()
    talk.exchange.finish()
    talk.exchange.finalize(1)
    talk.send_now()
    assert [item for _, item in talk.sent] == [finalize_channel(1), speech(0.1), CLOSE_STREAM]


def test_control_messages_go_up_before_audio_in_the_order_in_which_they_came() -> None:
    talk = live()
    talk.hear(speech(0.1))
    talk.exchange.finalize(0)
    talk.exchange.finalize()
    talk.exchange.finish()
    talk.send_now()
    assert [item for _, item in talk.sent] == [
        finalize_channel(0),
        FINALIZE,
        speech(0.1),
        CLOSE_STREAM,
    ]


# CloseStream


def test_closestream_follows_all_audio_and_nothing_follows_it() -> None:
    talk = live()
    talk.hear(speech(6.0))
    talk.exchange.finish()
    assert isinstance(talk.send_now(), Later)
    assert talk.controls == []
    talk.send_all()
    assert talk.audio == speech(6.0)
    assert talk.sent[-1] == (talk.now, CLOSE_STREAM)
    assert talk.exchange.phase is Phase.CLOSING
    talk.hear(speech(1.0))
    assert talk.send_now() is None


def test_an_epoch_that_is_not_live_cannot_be_finished() -> None:
    talk = Talk()
    talk.open()
    with pytest.raises(IllegalStep):
        talk.exchange.finish()


# The lead-in


def test_every_anchor_goes_up_with_a_second_of_silence_behind_it_and_finalize_follows() -> None:
    talk = Talk(lead_in=anchors(1.5, 2.0))
    talk.open()
    talk.hear(speech(5.0))
    talk.send_all()
    assert talk.audio == speech(1.5) + silence(1.0) + speech(2.0) + silence(1.0)
    assert [item for _, item in talk.sent][-1] == FINALIZE
    assert len(talk.controls) == 1
    assert talk.cost.lead_in == talk.cost.total == 5500
    assert talk.exchange.lead_in_end == 4500


def test_a_lead_in_is_paced_as_audio_is() -> None:
    talk = Talk(lead_in=anchors(6.0))
    talk.open()
    assert isinstance(talk.send_now(), Later)
    assert talk.seconds_sent() == 2.0
    assert not talk.exchange.has_sent_lead_in
    talk.send_all()
    assert talk.now - 100.0 == pytest.approx(5.0 / 1.25)
    assert talk.exchange.has_sent_lead_in


def test_a_lead_in_is_digested_when_finals_cover_its_last_anchor_on_every_channel() -> None:
    talk = Talk(STEREO, anchors(2.0, audio_format=STEREO))
    talk.open()
    talk.receive(final(0.0, 2.0, channel=0, of=2))
    assert not talk.exchange.is_digested
    talk.send_all()
    talk.receive(final(0.0, 1.9, "u", channel=0, of=2))
    assert not talk.exchange.is_digested
    talk.receive(final(1.9, 2.0, channel=0, of=2))
    assert not talk.exchange.is_digested
    talk.receive(final(0.0, 2.0, "u", channel=1, of=2))
    assert talk.exchange.is_digested


def test_a_lead_in_is_digested_when_every_channel_has_answered_its_finalize() -> None:
    talk = Talk(STEREO, anchors(2.0, audio_format=STEREO))
    talk.open()
    talk.receive(final(0.0, 0.1, channel=0, of=2, from_finalize=True))
    talk.send_all()
    talk.receive(final(0.1, 1.5, channel=1, of=2, from_finalize=True))
    assert not talk.exchange.is_digested
    talk.receive(final(0.1, 1.5, channel=0, of=2, from_finalize=True))
    assert talk.exchange.is_digested


def test_the_lead_in_s_words_are_votes_and_reach_no_transcript() -> None:
    talk = Talk(lead_in=anchors(2.0))
    talk.open()
    talk.send_all()
    (heard,) = talk.receive(final(0.0, 2.0, "u", "v"))
    assert isinstance(heard, FinalHeard)
    assert heard.heard.words == []
    votes = talk.exchange.timeline.lead_in_words
    assert [(word.anchor, word.samples) for word in votes] == [(0, 1000), (0, 1000)]
    assert talk.coverage.watermark == 0


# Going live


def spoken_before(seconds: float, covered: float) -> Talk:
    """A session whose first epoch has sent ``seconds`` and had finals for ``covered`` of them."""
    talk = live()
    talk.play(seconds, speech(seconds))
    talk.receive(final(0.0, covered, "a"))
    talk.sent.clear()
    return talk


@pytest.mark.parametrize("is_planned", [False, True])
def test_a_new_epoch_begins_with_the_overlap_before_the_watermark(is_planned: bool) -> None:
    talk = spoken_before(4.0, 3.0)
    talk.renew()
    talk.open()
    talk.go_live(is_planned=is_planned)
    talk.play(1.0, speech(1.0))
    overlap = round(OVERLAP_SECONDS * RATE)
    assert talk.audio == speech(4.0)[(3000 - overlap) * 2 :] + speech(1.0)
    again = overlap + 1000
    assert (talk.cost.replay, talk.cost.overlap) == ((0, again) if is_planned else (again, 0))
    assert talk.cost.live == 5000


def test_a_word_across_the_border_of_two_epochs_comes_once_and_at_its_time() -> None:
    talk = spoken_before(4.0, 3.0)
    talk.renew()
    talk.open()
    talk.go_live()
    talk.send_all()
    heard, _ = talk.receive(final(0.5, 1.5, "b", "c"))
    assert isinstance(heard, FinalHeard)
    assert [(w.text, w.start, w.end) for w in heard.heard.words] == [
        ("b", 3000, 3500),
        ("c", 3500, 4000),
    ]


def test_the_tail_goes_up_before_the_overlap_and_without_another_finalize() -> None:
    talk = spoken_before(4.0, 3.0)
    talk.renew(WithTail(list(anchors(1.5)._known), VoiceClips(MONO), MONO))
    talk.open()
    talk.send_all()
    assert talk.controls[-1][1] == FINALIZE
    talk.sent.clear()
    talk.go_live(is_planned=True)
    talk.send_all()
    assert talk.controls == []
    assert talk.audio == speech(1.4) + silence(1.0) + speech(4.0)[2500 * 2 :]
    assert talk.exchange.lead_in_end == 2500 + 1400


def test_what_has_not_gone_up_of_a_lead_in_does_not_when_the_epoch_is_live() -> None:
    talk = Talk(lead_in=anchors(6.0))
    talk.open()
    talk.send_now()
    talk.hear(speech(0.5))
    talk.go_live()
    talk.send_all()
    assert talk.audio == speech(6.0)[: 2 * RATE * 2] + speech(0.5)


# What comes


def test_a_final_tells_its_words_before_it_moves_the_watermark() -> None:
    talk = live()
    talk.hear(speech(2.0))
    talk.send_now()
    heard = talk.exchange.hear(final(0.0, 2.0, "a", "b"), talk.now)
    assert [word.text for word in heard.heard.words] == ["a", "b"]
    assert talk.coverage.backlog.pending == 2000
    assert list(talk.exchange.settle(heard)) == [PROGRESSED]
    assert talk.coverage.balance().finalised == 2000
    assert talk.exchange.has_progressed


def test_what_an_ended_epoch_says_is_superseded_and_counted_and_covers_nothing() -> None:
    talk = live()
    talk.hear(speech(2.0))
    talk.send_now()
    talk.exchange.end()
    (heard,) = talk.receive(final(0.0, 2.0, "a", "b"))
    assert isinstance(heard, FinalHeard)
    assert heard.heard.words == []
    assert heard.heard.discarded == {Discard.SUPERSEDED: 2}
    assert talk.coverage.watermark == 0
    assert not talk.exchange.has_progressed


def test_an_interim_result_is_passed_on_and_moves_no_watermark() -> None:
    talk = live()
    talk.hear(speech(2.0))
    talk.send_now()
    interim = final(0.0, 2.0, "a", is_final=False)
    assert talk.receive(interim) == [InterimHeard(interim)]
    assert talk.coverage.watermark == 0


@pytest.mark.parametrize("message", [Malformed(), Ignored("SpeechStarted")])
def test_a_message_that_brings_nothing_is_told(message: Any) -> None:
    assert live().receive(message) == [Unused(message)]


def untimed(start: float) -> Results:
    """A final that says where it begins, and nothing of where it or its word ends."""
    timed = final(start, start)
    words = (Word("a"),)
    return Results("Results", Channel((Alternative("a", words),)), start=timed.start, is_final=True)


def test_words_without_times_are_an_answer_to_all_that_had_gone_up_and_to_nothing_later() -> None:
    talk = live()
    talk.play(3.0, speech(3.0))
    talk.receive(final(0.0, 1.0, "a"))
    assert talk.exchange.misses_speech
    talk.receive(untimed(1.0))
    heard = [talk.exchange.misses_speech]
    talk.play(1.0, speech(1.0))
    assert [*heard, talk.exchange.misses_speech] == [False, True]


def test_a_provider_that_never_says_what_it_covers_is_asked_for_no_more() -> None:
    talk = live()
    talk.play(2.0, speech(2.0))
    assert len(talk.receive(untimed(0.0))) == 1
    assert talk.exchange.timeline.lacks_times
    assert not talk.exchange.misses_speech
    assert talk.coverage.watermark == 0


# The end


def test_metadata_before_closestream_is_no_answer_to_it() -> None:
    talk = live()
    talk.hear(speech(1.0))
    talk.send_now()
    assert talk.receive(Metadata(duration=1.0)) == []
    assert talk.exchange.metadata is None


def test_metadata_and_1000_end_an_epoch_as_asked() -> None:
    talk = closing(2.0, speech(1.7) + silence(0.3))
    talk.receive(final(0.0, 1.7, "a"))
    talk.receive(Metadata(duration=2.0))
    talk.exchange.take_close(ProviderClosed(1000, "", retryable=True))
    assert list(talk.exchange.conclude()) == [PROGRESSED]
    assert list(talk.exchange.conclude()) == []
    assert talk.coverage.ledger.finalised_by_metadata == 300
    assert talk.is_over()


def test_metadata_that_counts_other_audio_than_was_sent_covers_nothing() -> None:
    talk = closing(2.0, silence(2.0))
    talk.receive(Metadata(duration=1.4))
    assert list(talk.exchange.conclude()) == []
    assert talk.coverage.watermark == 0


def test_metadata_covers_no_speech_of_itself_but_where_nothing_else_will() -> None:
    talk = closing(2.0)
    talk.receive(Metadata(duration=2.0))
    assert talk.exchange.misses_speech
    assert list(talk.exchange.conclude()) == []
    assert list(talk.exchange.apply_metadata()) == [PROGRESSED]
    assert talk.coverage.watermark == 2000


def test_results_that_metadata_has_overtaken_are_applied_while_it_lingers() -> None:
    talk = closing(2.0)
    talk.receive(Metadata(duration=2.0))
    talk.let_pass(3.0)
    assert talk.receive(final(0.0, 2.0, "a", "b"))[-1] is PROGRESSED
    talk.let_pass(4.9)
    assert not talk.is_over()
    talk.let_pass(1.2)
    assert talk.is_over()
    assert not talk.exchange.ignored_close


def test_it_lingers_for_the_session_s_patience_where_speech_has_no_final() -> None:
    talk = closing(2.0)
    talk.receive(Metadata(duration=2.0))
    talk.let_pass(49.0)
    assert not talk.is_over()
    talk.let_pass(2.0)
    assert talk.is_over()


def test_a_close_while_it_lingers_with_speech_missing_is_a_loss() -> None:
    talk = closing(2.0)
    talk.receive(Metadata(duration=2.0))
    dropped = ProviderClosed(1006, "", retryable=True)
    with pytest.raises(ProviderClosed):
        talk.exchange.take_close(dropped)
    talk.receive(final(0.0, 2.0, "a"))
    talk.exchange.take_close(dropped)


def test_an_ignored_closestream_is_given_up_after_ten_seconds_where_nothing_is_missing() -> None:
    talk = closing(2.0)
    talk.receive(final(0.0, 2.0, "a"))
    closed_at = talk.now
    talk.let_pass(9.9)
    assert not talk.is_over()
    talk.let_pass(0.2)
    assert talk.is_over()
    assert talk.exchange.ignored_close
    assert talk.now == pytest.approx(closed_at + 10.1)


def test_a_provider_whose_answers_are_late_may_answer_closestream_late() -> None:
    talk = closing(2.0)
    talk.patience.record_answer(12.0)
    talk.receive(final(0.0, 2.0, "a"))
    talk.let_pass(16.9)
    assert not talk.is_over()
    talk.let_pass(1.2)
    assert talk.is_over()


def test_an_ignored_closestream_waits_for_missing_speech_as_long_as_the_session_would() -> None:
    talk = closing(2.0)
    talk.patience.record_answer(0.5)
    talk.let_pass(19.0)
    assert not talk.is_over()
    talk.let_pass(3.0)
    assert talk.is_over()
    assert (talk.exchange.ignored_close, talk.exchange.misses_speech) == (True, True)


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1008, 1011])
def test_a_close_that_was_not_asked_for_is_a_loss(code: int) -> None:
    talk = live()
    talk.hear(speech(1.0))
    talk.exchange.finish()
    with pytest.raises(ProviderClosed, match=str(code)):
        talk.exchange.take_close(ProviderClosed(code, "", retryable=True))


@pytest.mark.parametrize("code", [1001, 1006, 1011])
def test_after_closestream_only_1000_is_an_answer(code: int) -> None:
    talk = closing(2.0)
    talk.exchange.take_close(ProviderClosed(1000, "", retryable=True))
    with pytest.raises(ProviderClosed, match=str(code)):
        talk.exchange.take_close(ProviderClosed(code, "", retryable=True))


# Sends that hang or fail


def test_a_send_that_hangs_is_given_up_at_its_deadline() -> None:
    talk = live()
    talk.exchange.note_send_begun(talk.now)
    talk.now += SEND_TIMEOUT - 0.01
    talk.check()
    talk.now += 0.01
    with pytest.raises(ProviderUnreachable, match="took no audio for 12 s"):
        talk.check()


def test_a_send_that_is_done_has_no_deadline() -> None:
    talk = live()
    talk.exchange.note_send_begun(talk.now)
    talk.now += 1.0
    talk.exchange.note_send_done(talk.now)
    talk.let_pass(30.0)
    assert talk.controls


def test_a_send_to_a_busy_provider_has_its_deadline_from_its_last_word_on() -> None:
    talk = live()
    talk.exchange.note_send_begun(talk.now)
    talk.now += 10.0
    talk.receive(Progress(1.0, 9.0))
    talk.now += SEND_TIMEOUT - 0.01
    talk.check()
    talk.now += 0.01
    with pytest.raises(ProviderUnreachable):
        talk.check()


def test_after_a_send_failed_what_had_arrived_is_read_for_a_second() -> None:
    talk = live()
    talk.hear(speech(2.0))
    talk.send_now()
    talk.exchange.note_send_failed(talk.now)
    talk.now += 0.99
    talk.check()
    assert talk.receive(final(0.0, 1.0, "last"))[-1] is PROGRESSED
    talk.now += 0.01
    with pytest.raises(ProviderClosed, match="1006") as lost:
        talk.check()
    assert lost.value.retryable


# When to look again


def test_the_next_check_is_at_the_earliest_that_is_due() -> None:
    talk = live()
    exchange = talk.exchange
    assert exchange.next_check(100.0) == 101.0
    assert exchange.next_check(103.5) == 104.0
    assert exchange.next_check(107.5) == 108.0
    exchange.note_send_begun(100.0)
    assert exchange.next_check(111.5) == 112.0
    exchange.note_send_failed(110.7)
    assert exchange.next_check(111.5) == pytest.approx(111.7)
    later = closing(1.0).exchange
    assert later.next_check(later.closing_since + 4.5) == later.closing_since + 5.0
    assert later.next_check(later.closing_since + 9.5) == later.closing_since + 10.0


def test_checks_are_never_more_than_a_second_apart_and_never_in_the_past() -> None:
    talk = live()
    times = [talk.exchange.next_check(100.0 + n * 0.37) for n in range(100)]
    assert all(0.0 < due - (100.0 + n * 0.37) <= 1.0 for n, due in enumerate(times))
    assert all(a <= b for a, b in pairwise(times))
