"""The made-up language: what is said is what is heard, and what was tampered with is not."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omi_rt.codecs.opus import OpusDecoder, OpusEncoder
from omi_rt.fake.finals import ChannelTranscriber, Final
from omi_rt.fake.language import VOCABULARY, VOICES, pitch_of, seconds_of, waveform
from omi_rt.fake.recogniser import UNKNOWN, RecognisedWord, Recogniser
from omi_rt.fake.speech import (
    MIN_GAP_SECONDS,
    Script,
    audio_chunks,
    plain_words,
    random_script,
    synthesise,
    utterance,
)

RATES = (8000, 16000)


def recognise(pcm: bytes, rate: int, piece_seconds: float = 0.1) -> list[RecognisedWord]:
    recogniser = Recogniser(rate)
    samples = np.frombuffer(pcm, dtype="<i2")
    size = max(1, round(piece_seconds * rate))
    words = []
    for begin in range(0, len(samples), size):
        words += recogniser.feed(samples[begin : begin + size])
    return words + recogniser.flush()


def texts(words: list[RecognisedWord]) -> list[str]:
    return [word.text for word in words]


def through_opus(pcm: bytes, rate: int, frame_seconds: float) -> bytes:
    encoder, decoder = OpusEncoder(rate, 1), OpusDecoder(rate, 1)
    size = round(frame_seconds * rate) * 2
    pcm += bytes(-len(pcm) % size + 2 * size)
    packets = [encoder.encode(pcm[at : at + size]) for at in range(0, len(pcm), size)]
    return b"".join(map(decoder.decode, packets))[2 * encoder.lookahead :]


# The language.


def test_words_are_distinct_tones_of_the_stated_range_and_lengths() -> None:
    pitches = [pitch_of(index) for index in range(len(VOCABULARY))]
    lengths = [seconds_of(index) for index in range(len(VOCABULARY))]
    assert len(set(VOCABULARY)) == len(VOCABULARY) >= 24
    assert min(pitches) >= 220
    assert max(pitches) <= 830
    assert min(b - a for a, b in pairwise(pitches)) > 15
    assert min(lengths) >= 0.12
    assert max(lengths) <= 0.3
    assert len(set(lengths)) == len(lengths)


@pytest.mark.parametrize("rate", RATES)
def test_every_word_is_understood_in_every_voice(rate: int) -> None:
    for index, word in enumerate(VOCABULARY):
        for voice in VOICES:
            quiet = bytes(rate)
            heard = recognise(quiet + waveform(index, voice, rate).tobytes() + quiet, rate)
            assert [(one.text, one.voice) for one in heard] == [(word, voice)]


# Scripts.


def test_an_utterance_has_its_words_in_a_row_with_the_gap_between() -> None:
    words = utterance("amber bako celu", 3, 1.0, gap=0.07)
    assert [word.text for word in words] == ["amber", "bako", "celu"]
    assert {word.voice for word in words} == {3}
    assert words[0].start == 1.0
    assert all(b.start - a.end == pytest.approx(0.07, abs=0.001) for a, b in pairwise(words))


@pytest.mark.parametrize(("text", "gap"), [("amber hello", 0.09), ("amber", 0.05)])
def test_an_utterance_that_can_not_be_said_is_refused(text: str, gap: float) -> None:
    with pytest.raises(ValueError, match=r"vocabulary|run into"):
        utterance(text, 0, 0.0, gap=gap)


def test_a_random_script_is_the_same_for_the_same_seed_and_keeps_the_gaps() -> None:
    script = random_script(random.Random(1), 120, channels=2)
    assert script == random_script(random.Random(1), 120, channels=2)
    assert script != random_script(random.Random(2), 120, channels=2)
    for channel in range(2):
        words = script.on_channel(channel)
        assert len(words) > 120
        assert {word.voice for word in words} == {1, 4, 6}
        assert min(b.start - a.end for a, b in pairwise(words)) >= MIN_GAP_SECONDS - 1e-9
        assert words[0].start >= 0.3
        assert words[-1].end <= 119.7


def test_a_random_script_has_long_utterances_pauses_and_interruptions() -> None:
    words = random_script(random.Random(5), 600).words
    gaps = [(b.start - a.end, a.voice != b.voice) for a, b in pairwise(words)]
    assert any(changes and gap < 0.1 for gap, changes in gaps)
    assert any(gap > 1.5 for gap, _ in gaps)
    longest = current = 0.0
    for word, (gap, _) in zip(words[1:], gaps, strict=True):
        current = current + gap + word.end - word.start if gap < 0.1 else 0.0
        longest = max(longest, current)
    assert longest > 5.0


def test_punctuation_and_capitals_come_off() -> None:
    assert plain_words("Amber bako. Celu") == ["amber", "bako", "celu"]
    assert plain_words("Amber ?.") == ["amber", "?"]


@pytest.mark.parametrize("seconds", [0.1, 0.333, 1.0])
def test_the_audio_is_the_same_in_pieces_of_any_length(seconds: float) -> None:
    script = random_script(random.Random(2), 20, channels=2)
    pieces = list(audio_chunks(script, 8000, chunk_seconds=seconds))
    assert b"".join(pieces) == synthesise(script, 8000)
    assert len(synthesise(script, 8000)) == 20 * 8000 * 2 * 2
    assert {len(piece) for piece in pieces[:-1]} == {round(seconds * 8000) * 4}


def test_a_rate_that_can_not_hold_the_language_is_refused() -> None:
    with pytest.raises(ValueError, match="8000"):
        next(audio_chunks(Script((), 1.0), 4000))


# Recognition.


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("piece", [0.013, 0.1, 1.0])
def test_linear16_gives_every_word_to_the_sample(rate: int, piece: float) -> None:
    script = random_script(random.Random(3), 120, voices=VOICES)
    heard = recognise(synthesise(script, rate), rate, piece)
    assert texts(heard) == script.transcript()
    assert [word.voice for word in heard] == [word.voice for word in script.words]
    for word, said in zip(heard, script.words, strict=True):
        assert (word.start, word.end) == (round(said.start * rate), round(said.end * rate))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("frame", [0.01, 0.02, 0.06])
def test_opus_at_32_kb_s_gives_every_word_within_25_ms(rate: int, frame: float) -> None:
    script = random_script(random.Random(4), 120, voices=VOICES)
    heard = recognise(through_opus(synthesise(script, rate), rate, frame), rate)
    assert texts(heard) == script.transcript()
    assert [word.voice for word in heard] == [word.voice for word in script.words]
    for word, said in zip(heard, script.words, strict=True):
        assert word.start / rate == pytest.approx(said.start, abs=0.025)
        assert word.end / rate == pytest.approx(said.end, abs=0.025)


def test_a_word_is_reported_as_soon_as_it_is_over() -> None:
    rate = 8000
    recogniser = Recogniser(rate)
    wave = waveform(0, 0, rate)
    assert recogniser.feed(np.zeros(400, dtype=np.int16)) == []
    assert recogniser.feed(wave) == []
    since = recogniser.open_since
    assert since is not None
    assert 350 < since <= 400
    (word,) = recogniser.feed(np.zeros(200, dtype=np.int16))
    assert (word.text, word.start, word.end) == ("amber", 400, 400 + len(wave))
    assert recogniser.open_since is None


def test_a_word_that_the_stream_begins_within_is_unknown() -> None:
    rate = 8000
    for missing in (1, 40, 400, 800):
        pcm = waveform(0, 2, rate)[missing:].tobytes() + bytes(2000)
        (word,) = recognise(pcm, rate)
        assert (word.text, word.voice, word.start) == (UNKNOWN, 2, 0)


def test_a_word_that_the_stream_ends_within_is_unknown() -> None:
    rate = 8000
    for missing in (1, 40, 400):
        pcm = bytes(2000) + waveform(0, 2, rate)[:-missing].tobytes()
        (word,) = recognise(pcm, rate)
        assert (word.text, word.voice, word.start) == (UNKNOWN, 2, 1000)


def test_a_word_at_the_very_ends_of_the_stream_is_whole() -> None:
    assert texts(recognise(waveform(0, 2, 8000).tobytes(), 8000)) == ["amber"]


def test_noise_is_unknown_and_a_click_is_nothing() -> None:
    noise = np.random.default_rng(1).integers(-9000, 9000, 2000).astype("<i2")
    quiet = bytes(1000)
    assert texts(recognise(quiet + noise.tobytes() + quiet, 8000)) == [UNKNOWN]
    assert recognise(quiet + noise[:40].tobytes() + quiet, 8000) == []


def test_endless_sound_is_bounded_pieces_of_the_unknown() -> None:
    noise = np.random.default_rng(1).integers(-9000, 9000, 80_000).astype("<i2")
    heard = recognise(noise.tobytes(), 8000)
    assert set(texts(heard)) == {UNKNOWN}
    assert len(heard) == 25


def tampered(how: str, frames: list[bytes], at: int) -> list[bytes]:
    match how:
        case "dropped":
            return frames[:at] + frames[at + 1 :]
        case "doubled":
            return [*frames[: at + 1], *frames[at:]]
        case "silenced":
            return [*frames[:at], bytes(len(frames[at])), *frames[at + 1 :]]
        case "swapped":
            return [*frames[:at], frames[at + 1], frames[at], *frames[at + 2 :]]
    # One bit too few somewhere: a byte is lost, all samples after it are garbled.
    return [*frames[:at], frames[at][:-1], *frames[at + 1 :]]


@pytest.mark.parametrize("how", ["dropped", "doubled", "silenced", "swapped", "torn"])
@pytest.mark.parametrize("rate", RATES)
def test_tampering_with_20_ms_inside_any_word_shows(how: str, rate: int) -> None:
    script = random_script(random.Random(8), 60)
    pcm = synthesise(script, rate)
    size = rate // 50 * 2
    frames = [pcm[at : at + size] for at in range(0, len(pcm), size)]
    for word in script.words[::5]:
        at = int((word.start + word.end) / 2 * 50)
        changed = b"".join(tampered(how, frames, at))
        heard = texts(recognise(changed[: len(changed) & ~1], rate))
        assert heard != script.transcript(), word


@pytest.mark.parametrize("how", ["dropped", "doubled"])
def test_tampering_with_silence_shifts_the_times(how: str) -> None:
    script = Script(utterance("amber bako", 0, 2.0), 4.0)
    pcm = synthesise(script, 8000)
    frames = [pcm[at : at + 320] for at in range(0, len(pcm), 320)]
    heard = recognise(b"".join(tampered(how, frames, 10)), 8000)
    shift = -160 if how == "dropped" else 160
    assert [word.start for word in heard] == [
        round(said.start * 8000) + shift for said in script.words
    ]


# Finals.


def finals_of(
    pcm: bytes,
    piece: int,
    *,
    endpointing: float | None = 0.1,
    max_utterance: float = 5.0,
    empty: float | None = 3.0,
    rate: int = 8000,
) -> list[Final]:
    spans = () if empty is None else [empty] * 10_000
    channel = ChannelTranscriber(
        rate, endpointing=endpointing, max_utterance=max_utterance, empty_spans=spans
    )
    samples = np.frombuffer(pcm, dtype="<i2")
    finals = []
    for begin in range(0, len(samples), piece):
        finals += channel.feed(samples[begin : begin + piece])
    return finals + channel.close(empty=empty is not None)


@given(piece=st.integers(80, 20_000), seed=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_finals_are_the_same_for_pieces_of_any_length(piece: int, seed: int) -> None:
    pcm = synthesise(random_script(random.Random(seed), 20), 8000)
    assert finals_of(pcm, piece) == finals_of(pcm, 800)


def test_finals_follow_each_other_without_a_hole_and_end_between_words() -> None:
    script = random_script(random.Random(9), 300)
    finals = finals_of(synthesise(script, 8000), 800)
    assert finals[0].start == 0
    assert finals[-1].end == 300 * 8000
    assert all(a.end == b.start for a, b in pairwise(finals))
    assert texts([word for final in finals for word in final.words]) == script.transcript()
    for final in finals:
        assert all(final.start < word.start and word.end < final.end for word in final.words)


def test_a_pause_ends_an_utterance_and_a_gap_does_not() -> None:
    script = Script([*utterance("amber bako", 0, 0.5), *utterance("celu", 0, 2.0)], 3.0)
    first, second, last = finals_of(synthesise(script, 8000), 800)
    assert texts(list(first.words)) == ["amber", "bako"]
    assert first.speech_final
    assert first.end == round((script.words[1].end + 0.05) * 8000)
    assert texts(list(second.words)) == ["celu"]
    assert last.words == ()
    assert not last.speech_final


def test_a_long_utterance_is_cut_at_a_gap_and_its_sentence_goes_on() -> None:
    script = Script(utterance(" ".join(VOCABULARY), 0, 0.5), 11.0)
    finals = [final for final in finals_of(synthesise(script, 8000), 800) if final.words]
    assert len(finals) == 2
    assert all(final.words[-1].end - final.words[0].start <= 5 * 8000 for final in finals)
    assert [final.speech_final for final in finals] == [False, True]
    assert [final.starts_sentence for final in finals] == [True, False]
    assert [final.ends_sentence for final in finals] == [False, True]


def test_silence_brings_empty_finals_or_none() -> None:
    quiet = bytes(2 * 8000 * 10)
    assert [final.end / 8000 for final in finals_of(quiet, 800)] == [3.0, 6.0, 9.0, 10.0]
    assert finals_of(quiet, 800, empty=None) == []


def test_without_endpointing_three_seconds_of_silence_end_an_utterance() -> None:
    script = Script([*utterance("amber bako", 0, 0.5), *utterance("celu", 0, 2.0)], 8.0)
    finals = finals_of(synthesise(script, 8000), 800, endpointing=None, empty=None)
    assert [texts(list(final.words)) for final in finals] == [["amber", "bako", "celu"]]
    assert not finals[0].speech_final


def test_finalize_brings_what_is_buffered_up_to_the_word_that_is_being_said() -> None:
    script = Script(utterance("amber bako celu", 0, 0.5), 3.0)
    samples = np.frombuffer(synthesise(script, 8000), dtype="<i2")
    channel = ChannelTranscriber(8000, endpointing=0.1, max_utterance=5.0)
    middle = round((script.words[1].start + 0.05) * 8000)
    assert channel.feed(samples[:middle]) == []
    (first,) = channel.finalize()
    assert texts(list(first.words)) == ["amber"]
    assert first.from_finalize
    assert round(script.words[0].end * 8000) < first.end < round(script.words[1].start * 8000)
    finals = channel.feed(samples[middle:])
    assert texts([word for final in finals for word in final.words]) == ["bako", "celu"]


def test_finalize_with_too_little_buffered_brings_nothing() -> None:
    channel = ChannelTranscriber(8000, endpointing=0.1, max_utterance=5.0, minimum_finalize=0.1)
    assert channel.finalize() == []
    channel.feed(np.zeros(799, dtype=np.int16))
    assert channel.finalize() == []
    channel.feed(np.zeros(1, dtype=np.int16))
    (final,) = channel.finalize()
    assert (final.start, final.end, final.words) == (0, 800, ())
    assert channel.finalize() == []


def test_finalize_can_be_set_to_answer_always() -> None:
    channel = ChannelTranscriber(8000, endpointing=0.1, max_utterance=5.0, minimum_finalize=0.0)
    for _ in range(2):
        (final,) = channel.finalize()
        assert (final.start, final.end, final.words) == (0, 0, ())
