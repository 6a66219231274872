"""Finding the speech in a recording, and the stretch to take."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omi_rt.codecs.wav import WavAudio
from omi_rt.fake.speech import Script, SpokenWord, random_script, synthesise, utterance
from omi_rt.profiles.speech import (
    FRAMES_PER_SECOND,
    MARGIN_FRAMES,
    SILENCE_DBFS,
    best_stretch,
    find_speech,
)

RATE = 16_000
TEXT = "amber bako celu dorin elfa fimo garo hesta"
MARGIN = MARGIN_FRAMES / FRAMES_PER_SECOND
FRAME = 1 / FRAMES_PER_SECOND


def recording(words: list[SpokenWord], seconds: float, rate: int = RATE) -> WavAudio:
    return WavAudio(rate, 1, synthesise(Script(words, seconds), rate))


def placed(stretch: WavAudio, audio: WavAudio) -> tuple[float, float]:
    """Where in the recording the stretch was taken from, in seconds."""
    start = audio.pcm.index(stretch.pcm) / (2 * audio.channels * audio.sample_rate)
    return start, start + stretch.seconds


def noise(samples: int, dbfs: float, seed: int = 1) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.random.default_rng(seed).normal(0, 32_768 * 10 ** (dbfs / 20), samples)


def as_audio(samples: np.ndarray[tuple[int], np.dtype[np.float64]], rate: int = RATE) -> WavAudio:
    clipped = np.clip(np.rint(samples), -32_768, 32_767)
    return WavAudio(rate, 1, clipped.astype("<i2").tobytes())


def test_leading_and_trailing_silence_is_cut_to_the_margin() -> None:
    words = utterance(TEXT, 1, 2.0)
    audio = recording(words, 9.0)
    start, end = placed(best_stretch(audio, 10.0), audio)
    assert words[0].start - MARGIN - FRAME <= start <= words[0].start
    assert words[-1].end <= end <= words[-1].end + MARGIN + FRAME


def test_a_recording_that_is_short_and_all_speech_is_taken_whole() -> None:
    audio = as_audio(noise(4 * RATE, -20))
    assert best_stretch(audio, 10.0) == audio


def test_the_stretch_with_the_most_speech_is_taken() -> None:
    sparse = [word for at in (1.0, 2.0, 3.0, 4.0) for word in utterance("amber", 1, at)]
    dense = utterance(TEXT, 1, 12.0)
    audio = recording(sparse + dense, 20.0)
    start, end = placed(best_stretch(audio, 3.0), audio)
    assert start <= dense[0].start
    assert end >= dense[-1].end


def test_cuts_lie_in_pauses_between_words() -> None:
    words = utterance(" ".join([TEXT] * 6), 2, 0.5)
    audio = recording(words, words[-1].end + 0.5)
    start, end = placed(best_stretch(audio, 3.0), audio)
    assert end - start > 2.4
    assert not [word for word in words if word.start < start < word.end]
    assert not [word for word in words if word.start < end < word.end]


def test_cuts_lie_between_phrases_rather_than_between_words() -> None:
    phrases = [utterance("amber bako celu dorin", 1, at) for at in (0.5, 2.0, 3.5, 5.0, 6.5)]
    audio = recording([word for phrase in phrases for word in phrase], 9.0)
    # Room for two phrases, and for the first word of a third.
    start, end = placed(best_stretch(audio, 3.4), audio)
    inside = [phrase for phrase in phrases if start <= phrase[0].start and phrase[-1].end <= end]
    assert len(inside) == 2
    assert not [phrase for phrase in phrases if phrase[0].start < start < phrase[-1].end]
    assert not [phrase for phrase in phrases if phrase[0].start < end < phrase[-1].end]


def test_without_pauses_the_cuts_lie_at_the_quietest_frames_nearby() -> None:
    samples = noise(10 * RATE, -20)
    envelope = 1 + 0.5 * np.sin(2 * np.pi * 4 * np.arange(len(samples)) / RATE)
    audio = as_audio(samples * envelope)
    stretch = best_stretch(audio, 3.0)
    levels = find_speech(stretch).dbfs
    assert 2.5 <= stretch.seconds <= 3.0
    assert max(levels[0], levels[-1]) < np.median(levels)


@pytest.mark.parametrize("background_dbfs", [-70.0, -50.0, -40.0])
def test_speech_is_told_from_steady_background_noise(background_dbfs: float) -> None:
    words = utterance(TEXT, 1, 3.0)
    spoken = np.frombuffer(recording(words, 10.0).pcm, "<i2")
    audio = as_audio(spoken + noise(len(spoken), background_dbfs))
    start, end = placed(best_stretch(audio, 10.0), audio)
    assert start == pytest.approx(words[0].start, abs=MARGIN + 2 * FRAME)
    assert end == pytest.approx(words[-1].end, abs=MARGIN + 2 * FRAME)


def test_a_click_does_not_hide_the_speech() -> None:
    words = utterance(TEXT, 1, 1.0)
    samples = np.frombuffer(recording(words, 5.0).pcm, "<i2") / 50.0
    samples[4 * RATE : 4 * RATE + 40] = 32_000
    assert find_speech(as_audio(samples)).seconds > 1.0


def test_a_constant_offset_is_no_speech() -> None:
    assert find_speech(as_audio(np.full(5 * RATE, 3_000.0))).seconds == 0


@pytest.mark.parametrize(
    "audio",
    [
        WavAudio(RATE, 1, b""),
        WavAudio(RATE, 1, bytes(2 * 100)),
        WavAudio(RATE, 1, bytes(2 * 5 * RATE)),
        as_audio(noise(5 * RATE, SILENCE_DBFS - 6)),
    ],
    ids=["nothing", "less than a frame", "digital silence", "below the threshold of silence"],
)
def test_without_speech_the_stretch_is_empty(audio: WavAudio) -> None:
    assert best_stretch(audio, 10.0) == WavAudio(RATE, 1, b"")


def test_the_level_of_speech_does_not_depend_on_the_silence_around_it() -> None:
    burst = noise(2 * RATE, -20)
    padded = np.concatenate([np.zeros(8 * RATE), burst, np.zeros(8 * RATE)])
    speech = find_speech(as_audio(padded))
    assert speech.level_dbfs == pytest.approx(-20, abs=0.2)
    assert speech.seconds == pytest.approx(2.0)


def test_all_channels_count() -> None:
    mono = recording(utterance(TEXT, 1, 1.0), 5.0)
    stereo = np.zeros((mono.samples, 2), "<i2")
    stereo[:, 1] = np.frombuffer(mono.pcm, "<i2")
    stretch = best_stretch(WavAudio(RATE, 2, stereo.tobytes()), 10.0)
    assert stretch.samples == best_stretch(mono, 10.0).samples


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rate=st.sampled_from([8_000, 11_025, 16_000, 44_100]),
    length=st.floats(0.5, 25),
    limit=st.floats(0, 12),
    background=st.sampled_from([-90.0, -55.0, -45.0]),
)
def test_a_stretch_is_a_part_of_the_recording_within_the_limit(
    seed: int, rate: int, length: float, limit: float, background: float
) -> None:
    script = random_script(Random(seed), length, voices=(1,))
    samples = np.frombuffer(synthesise(script, rate), "<i2")
    audio = as_audio(samples + noise(len(samples), background, seed), rate)
    stretch = best_stretch(audio, limit)
    assert stretch.pcm in audio.pcm
    assert (stretch.sample_rate, stretch.channels) == (rate, 1)
    assert stretch.seconds <= limit
    assert len(stretch.pcm) % 2 == 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), limit=st.floats(1.0, 10.0))
def test_a_stretch_holds_nearly_as_much_speech_as_any_of_its_length_and_no_broken_word(
    seed: int, limit: float
) -> None:
    script = random_script(Random(seed), 30.0, voices=(1,))
    audio = recording(list(script.words), 30.0)
    start, end = placed(best_stretch(audio, limit), audio)
    whole = [word for word in script.words if start <= word.start and word.end <= end]
    touched = [word for word in script.words if word.start < end and start < word.end]
    taken = sum(word.end - word.start for word in whole)
    most = max(
        sum(
            word.end - word.start
            for word in script.words
            if at <= word.start and word.end <= at + limit
        )
        for at in (word.start for word in script.words)
    )
    assert touched == whole
    assert taken >= 0.75 * most - 2 * FRAME
