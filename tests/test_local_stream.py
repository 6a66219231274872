"""From a connection's audio to its finals, with a decoder that follows a script."""

from __future__ import annotations

import io
import json
import tracemalloc
from fractions import Fraction
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.local import pipe, worker
from omi_rt.local.decoding import DecodedWord, RecogniserInfo
from omi_rt.local.endpointer import (
    FRAME_BYTES,
    FRAME_SAMPLES,
    WHISPER_PACING,
    Pacing,
)
from omi_rt.local.pipe import Kind
from omi_rt.local.recogniser import Final, StreamRecogniser
from omi_rt.local.resampler import MODEL_RATE
from omi_rt.local.wire import (
    ListenParameters,
)
from omi_rt.local.worker import work

if TYPE_CHECKING:
    from collections.abc import Sequence


LINEAR16 = "encoding=linear16&sample_rate=16000"
LOUD, QUIET = b"\x00\x10" * FRAME_SAMPLES, b"\x00\x00" * FRAME_SAMPLES


@define
class ScriptedDecoder:
    """Takes every frame with a sample other than 0 for speech; hears one word in each utterance."""

    utterances: list[bytes] = field(factory=list)
    is_open: bool = False

    def is_speech(self, frame: bytes, /) -> bool:
        assert len(frame) == FRAME_BYTES
        return any(frame)

    def start(self) -> None:
        assert not self.is_open
        self.is_open = True
        self.utterances.append(b"")

    def feed(self, pcm: bytes, /) -> None:
        assert self.is_open
        assert pcm
        self.utterances[-1] += pcm

    def peek(self) -> Sequence[DecodedWord]:
        assert self.is_open
        return [DecodedWord(f"{len(self.utterances[-1]) // FRAME_BYTES}", 0, 160, 0.5)]

    def finish(self) -> Sequence[DecodedWord]:
        assert self.is_open
        self.is_open = False
        # Rounded up to whole decoder frames, as pocketsphinx does: it may end after the audio.
        end = -(-len(self.utterances[-1]) // 320) * 160
        return (
            [DecodedWord(f"word{len(self.utterances)}", 0, end, 0.5)]
            if any(self.utterances[-1])
            else []
        )


class ScriptedRecogniser:
    info = RecogniserInfo("script", "one word", ("en",))
    pacing = Pacing()

    def open(self, language: str | None) -> ScriptedDecoder:
        assert language == "en"
        return ScriptedDecoder()


def recogniser(
    *decoders: ScriptedDecoder,
    rate: int = MODEL_RATE,
    channels: int = 1,
    multichannel: bool = False,
    pacing: Pacing | None = None,
    interim_seconds: float = 0.0,
) -> StreamRecogniser:
    remaining = list(decoders) or [ScriptedDecoder()]
    return StreamRecogniser(
        sample_rate=rate,
        channels=channels,
        multichannel=multichannel,
        make_decoder=lambda: remaining.pop(0),
        pacing=pacing,
        interim_seconds=interim_seconds,
    )


@given(
    frames=st.lists(st.tuples(st.booleans(), st.integers(1, 150)), min_size=1, max_size=12),
    cuts=st.lists(st.integers(1, 9_999), max_size=8),
    flushes=st.sets(st.integers(0, 8)),
    rate=st.sampled_from([8_000, 16_000, 44_100]),
    torn=st.integers(0, 600),
    pacing=st.sampled_from([Pacing(), WHISPER_PACING]),
)
def test_finals_follow_each_other_exactly_and_cover_all_audio(
    frames: list[tuple[bool, int]],
    cuts: list[int],
    flushes: set[int],
    rate: int,
    torn: int,
    pacing: Pacing,
) -> None:
    stream = recogniser(rate=rate, pacing=pacing)
    audio = b"".join((LOUD if loud else QUIET) * length for loud, length in frames) + b"\x01" * torn
    finals: list[Final] = []
    accepted = 0
    bounds = sorted({min(len(audio) * cut // 10_000, len(audio)) for cut in cuts} | {len(audio)})
    for number, (begin, end) in enumerate(zip([0, *bounds], bounds, strict=False)):
        finals += stream.feed(audio[begin:end])
        accepted = end // 2
        if number in flushes:
            finals += stream.flush()
            assert Fraction(finals[-1].end) == Fraction(accepted / rate)
    finals += stream.flush()
    assert finals[-1].end == accepted / rate
    covered = 0.0
    for final in finals:
        assert final.start == covered
        assert final.end >= final.start
        covered = final.end
        for word in final.words:
            assert final.start <= word.start <= word.end <= final.end
    assert {final.channel for final in finals} == {0}


def test_each_utterance_is_decoded_once_and_whole() -> None:
    decoder = ScriptedDecoder()
    stream = recogniser(decoder)
    finals = list(stream.feed(QUIET * 5 + LOUD * 40 + QUIET * 30 + LOUD * 20 + QUIET * 10))
    assert [[word.text for word in final.words] for final in finals] == [["word1"], ["word2"]]
    assert [final.at_pause for final in finals] == [True, True]
    assert [utterance.count(LOUD) for utterance in decoder.utterances] == [40, 20]


def test_interims_come_every_second_of_an_utterance_and_cover_nothing() -> None:
    stream = recogniser(interim_seconds=1.0)
    heard = list(stream.feed(LOUD * 120 + QUIET * 20))
    assert [final.is_interim for final in heard] == [True, True, True, False]
    # After 34, 68 and 102 frames: the first ones of over 1, 2 and 3 s.
    assert [final.words[0].text for final in heard] == ["34", "68", "102", "word1"]
    assert {final.start for final in heard} == {0.0}
    assert [final.end for final in heard] == pytest.approx([1.02, 2.04, 3.06, 3.9])


def test_the_last_word_is_heard_though_it_is_short() -> None:
    stream = recogniser()
    assert list(stream.feed(QUIET * 20 + LOUD * 5)) == []
    (final,) = stream.flush()
    assert [word.text for word in final.words] == ["word1"]
    assert not final.at_pause


def test_the_last_utterance_is_decoded_to_its_last_sample() -> None:
    decoder = ScriptedDecoder()
    stream = recogniser(decoder)
    audio = LOUD * 20 + LOUD[:100]
    assert list(stream.feed(audio)) == []
    assert len(list(stream.flush())) == 1
    assert decoder.utterances == [audio]


def test_two_channels_are_recognised_apart_or_mixed() -> None:
    left, right = np.frombuffer(QUIET * 60, "<i2"), np.frombuffer(LOUD * 60, "<i2")
    audio = np.stack((left, right), axis=1).tobytes()
    decoders = ScriptedDecoder(), ScriptedDecoder()
    stream = recogniser(*decoders, channels=2, multichannel=True)
    finals = [*stream.feed(audio), *stream.flush()]
    assert [(final.channel, len(final.words)) for final in finals] == [(0, 0), (1, 1)]
    assert list(stream.flush(1)) == [Final(1, 1.8, 1.8, ())]
    mixed = recogniser(channels=2)
    finals = [*mixed.feed(audio), *mixed.flush()]
    assert [(final.channel, len(final.words)) for final in finals] == [(0, 1)]


def worked(*frames: bytes) -> list[Any]:
    sink = io.BytesIO()
    work(io.BytesIO(b"".join(frames)), sink, ScriptedRecogniser())
    ready, *lines = sink.getvalue().decode().splitlines()
    assert pipe.parse_ready(ready) == ScriptedRecogniser.info
    return [json.loads(line) for line in lines if pipe.parse_progress(line) is None]


def opening(query: str = "") -> bytes:
    return pipe.open_frame(ListenParameters.from_query(f"{LINEAR16}&{query}"), "request-1")


def test_a_worker_answers_audio_finalize_and_the_end_in_order() -> None:
    messages = worked(
        opening(),
        pipe.frame(Kind.AUDIO, LOUD * 20),
        pipe.frame(Kind.FINALIZE),
        pipe.frame(Kind.FINALIZE),
        pipe.frame(Kind.AUDIO, QUIET),
        pipe.frame(Kind.END),
        pipe.frame(Kind.AUDIO, LOUD * 20),
    )
    assert [
        (message["start"], message["duration"], message["from_finalize"]) for message in messages
    ] == [(0.0, 0.6, True), (0.6, 0.0, True), (0.6, 0.03, False)]


def test_a_worker_finalizes_one_channel_alone() -> None:
    messages = worked(
        opening("channels=2&multichannel=true"),
        pipe.frame(Kind.AUDIO, QUIET * 4),
        pipe.frame(Kind.FINALIZE, b"\x01"),
        pipe.frame(Kind.END),
    )
    assert [(m["channel_index"], m["duration"], m["from_finalize"]) for m in messages] == [
        ([1, 2], 0.06, True),
        ([0, 2], 0.06, False),
    ]


def test_a_worker_says_how_far_it_has_come_and_what_that_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Loading has taken 7 s of processor time; a second of it goes by from each look to the next.
    looks = count(7)
    monkeypatch.setattr(worker, "process_time", lambda: float(next(looks)))
    sink = io.BytesIO()
    frames = b"".join(pipe.audio_frames(LOUD * 100)) + pipe.frame(Kind.AUDIO, QUIET)
    work(io.BytesIO(opening() + frames + pipe.frame(Kind.END)), sink, ScriptedRecogniser())
    told = [p for line in sink.getvalue().decode().splitlines() if (p := pipe.parse_progress(line))]
    worked = [0.512, 1.024, 1.536, 2.048, 2.56, 3.0, 3.03]
    assert [progress.worked_seconds for progress in told] == worked
    assert [progress.cpu_seconds for progress in told] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


@pytest.mark.parametrize("cut", [0, 3, 20])
def test_a_worker_ends_when_its_input_does(cut: int) -> None:
    assert worked((opening() + pipe.frame(Kind.AUDIO, LOUD * 20))[:cut]) == []


# Much, and odd.


def test_two_hours_are_worked_through_in_bounded_memory() -> None:
    """A short word a minute; what is kept does not grow from the first hour to the second."""

    class Forgetful(ScriptedDecoder):
        def start(self) -> None:
            self.utterances.clear()
            ScriptedDecoder.start(self)

    stream = recogniser(Forgetful(), pacing=WHISPER_PACING)
    minute = LOUD * 10 + QUIET * 1_990
    finals, covered, sizes = 0, 0.0, []
    for hour in range(2):
        for _ in range(60):
            for final in stream.feed(minute):
                assert final.start == covered
                finals, covered = finals + bool(final.words), final.end
        if hour == 0:
            tracemalloc.start()
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert finals == 120
    assert covered == pytest.approx(7_200.0, abs=3.5)
    assert sizes[1] - sizes[0] < 64_000


def test_an_hour_without_a_pause_is_cut_and_kept_no_longer_than_an_utterance() -> None:
    decoder = ScriptedDecoder()
    stream = recogniser(decoder, pacing=WHISPER_PACING)
    lengths: list[int] = []
    covered = 0.0
    for _ in range(360):
        for final in stream.feed(LOUD * 333):
            assert final.end - final.start == pytest.approx(12.0, abs=0.03)
            covered = final.end
            lengths.append(len(decoder.utterances[0]))
            decoder.utterances[:] = decoder.utterances[-1:]
    assert covered == pytest.approx(3_596.4, abs=12.1)
    assert max(lengths) <= 2 * (WHISPER_PACING.longest + FRAME_SAMPLES)


@pytest.mark.parametrize("level", [32_767, -32_768, 12_000])
@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_full_scale_and_direct_current_pass_without_wrapping_round(level: int, rate: int) -> None:
    decoder = ScriptedDecoder()
    stream = recogniser(decoder, rate=rate)
    audio = np.full(rate, level, "<i2").tobytes()
    finals = [*stream.feed(audio), *stream.flush()]
    assert finals[-1].end == 1.0
    heard = np.frombuffer(b"".join(decoder.utterances), "<i2")
    # The edges ring; between them it is what was sent.
    assert np.abs(heard[1_000:-1_000].astype(int) - level).max() <= 200


def test_eight_channels_of_full_scale_are_mixed_or_kept_apart() -> None:
    frames = np.full((MODEL_RATE, 8), 32_767, "<i2")
    frames[:, 3] = 0
    decoders = [ScriptedDecoder() for _ in range(8)]
    apart = recogniser(*decoders, channels=8, multichannel=True)
    finals = [*apart.feed(frames.tobytes()), *apart.flush()]
    assert [(f.channel, len(f.words), f.end) for f in finals] == [
        (channel, int(channel != 3), 1.0) for channel in range(8)
    ]
    mixed = ScriptedDecoder()
    one = recogniser(mixed, channels=8)
    assert [len(f.words) for f in [*one.feed(frames.tobytes()), *one.flush()]] == [1]
    heard = np.frombuffer(mixed.utterances[0], "<i2")
    assert set(heard.tolist()) == {32_767 * 7 // 8}
