"""Whisper as the embedded recogniser uses it: what it believes, and what comes of good and bad audio."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from omi_rt.local import pipe, worker
from omi_rt.local.accuracy import word_accuracy
from omi_rt.local.choice import choose
from omi_rt.local.decoding import DecodedWord
from omi_rt.local.endpointer import FRAME_SAMPLES
from omi_rt.local.errors import ModelUnusable
from omi_rt.local.pipe import Kind
from omi_rt.local.resampler import MODEL_RATE
from omi_rt.local.sample import sample_text
from omi_rt.local.whisper import (
    TimedWord,
    decoded_words,
    fetch_model,
    is_believable,
    is_near_speech,
    repeats_itself,
)
from omi_rt.local.wire import ListenParameters
from tests.local_client import sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from omi_rt.local.decoding import Recogniser
    from omi_rt.local.recogniser import Voices

Loaded = tuple["Recogniser", "Callable[[int], Voices] | None"]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """The model and the voices, for all tests of this file."""
    return worker.load(choose(""))


def results(loaded: Loaded, audio: bytes, query: str = "sample_rate=16000") -> list[dict[str, Any]]:
    """What a worker says of ``audio``, without how far it has come."""
    recogniser, make_voices = loaded
    parameters = ListenParameters.from_query(
        f"encoding=linear16&diarize=true&punctuate=true&{query}", recogniser.info.languages
    )
    frames = pipe.open_frame(parameters, "request-1") + b"".join(pipe.audio_frames(audio))
    sink = io.BytesIO()
    worker.work(io.BytesIO(frames + pipe.frame(Kind.END)), sink, recogniser, make_voices)
    lines = sink.getvalue().decode().splitlines()[1:]
    return [json.loads(line) for line in lines if pipe.parse_progress(line) is None]


def words(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        word
        for result in said
        if result["is_final"]
        for word in result["channel"]["alternatives"][0]["words"]
    ]


def transcript(said: list[dict[str, Any]]) -> str:
    return " ".join(word["punctuated_word"] for word in words(said))


def assert_covered(said: list[dict[str, Any]], seconds: float, channel: int = 0) -> None:
    """Check that the finals of a channel follow each other and cover all audio, words inside."""
    end = 0.0
    for result in said:
        if result["is_final"] and result["channel_index"][0] == channel:
            assert result["start"] == pytest.approx(end, abs=1e-5)
            begin, end = result["start"], result["start"] + result["duration"]
            for word in result["channel"]["alternatives"][0]["words"]:
                assert begin - 1e-5 <= word["start"] <= word["end"] <= end + 1e-5
    assert end == pytest.approx(seconds, abs=1e-5)


def pcm(samples: NDArray[np.float64]) -> bytes:
    return np.clip(np.rint(samples * 32_767), -32_768, 32_767).astype("<i2").tobytes()


# The sample


def test_the_sample_s_words_speakers_and_punctuation_are_right(loaded: Loaded) -> None:
    said = results(loaded, sample().pcm)
    assert word_accuracy(sample_text(), transcript(said)) >= 0.95
    speakers = [
        {word["speaker"] for word in result["channel"]["alternatives"][0]["words"]}
        for result in said
        if result["channel"]["alternatives"][0]["words"]
    ]
    assert speakers == [{0}, {1}, {0}, {1}, {0}]
    first = words(said)[0]
    assert (first["word"], first["punctuated_word"]) == ("good", "Good")
    assert transcript(said).count("?") == 2
    assert all(0.0 <= word["confidence"] <= 1.0 for word in words(said))
    assert_covered(said, sample().seconds)
    assert said[0]["metadata"]["model_info"] == {
        "name": "omi-rt-local-speakers", "version": "tiny.en", "arch": "faster-whisper",
    }  # fmt: skip


def test_interim_results_come_every_second_where_they_are_asked_for(loaded: Loaded) -> None:
    audio = sample().pcm[: 3 * 32_000]
    said = results(loaded, audio, "sample_rate=16000&interim_results=true")
    interims = [result for result in said if not result["is_final"]]
    finals = [result for result in said if result["is_final"]]
    assert len(interims) in {1, 2}
    assert interims[0]["channel"]["alternatives"][0]["transcript"].startswith("Good morning")
    assert (interims[0]["start"], interims[0]["duration"]) == (0.0, pytest.approx(1.1, abs=0.2))
    assert not interims[0]["speech_final"]
    assert transcript(finals) == transcript(results(loaded, audio))
    assert_covered(said, 3.0)


# Bad input


def test_a_kilobyte_and_a_torn_sample_are_covered_and_bring_nothing(loaded: Loaded) -> None:
    assert results(loaded, b"\x01") == []
    said = results(loaded, bytes(range(256)) * 4)
    assert words(said) == []
    assert_covered(said, 0.032)


def _music(seconds: float) -> NDArray[np.float64]:
    """Plucked notes of a scale, four a second, with overtones."""
    samples = np.zeros(round(seconds * MODEL_RATE))
    for number, note in enumerate((0, 4, 7, 12, 9, 5, 2, 7) * round(seconds / 2)):
        begin = number * MODEL_RATE // 4
        time = np.arange(len(samples) - begin) / MODEL_RATE
        hertz = 220 * 2 ** (note / 12)
        for overtone in (1, 2, 3, 4):
            tone = np.sin(2 * np.pi * hertz * overtone * time)
            samples[begin:] += 0.1 / overtone * np.exp(-3 * time) * tone
    return samples


_TIME = np.arange(8 * MODEL_RATE) / MODEL_RATE
_RANDOM = np.random.default_rng(7)


@pytest.mark.parametrize(
    "sound",
    [
        pytest.param(np.zeros(8 * MODEL_RATE), id="silence"),
        pytest.param(_RANDOM.normal(0, 0.05, 8 * MODEL_RATE), id="noise"),
        pytest.param(_RANDOM.normal(0, 0.5, 8 * MODEL_RATE), id="clipped noise"),
        pytest.param(0.3 * np.sin(2 * np.pi * 440 * _TIME), id="tone"),
        pytest.param(0.3 * np.sin(2 * np.pi * 50 * _TIME), id="hum"),
        pytest.param(np.full(8 * MODEL_RATE, 0.9), id="direct current"),
        pytest.param(_music(8.0), id="music"),
    ],
)
def test_what_is_no_speech_brings_no_words(loaded: Loaded, sound: NDArray[np.float64]) -> None:
    said = results(loaded, pcm(sound))
    assert words(said) == []
    assert_covered(said, 8.0)


def test_speech_that_is_clipped_or_shifted_is_still_understood(loaded: Loaded) -> None:
    spoken = np.frombuffer(sample().pcm, "<i2") / 32_768
    for heard in (spoken * 4, spoken * 0.5 + 0.4, spoken * 0.02):
        assert word_accuracy(sample_text(), transcript(results(loaded, pcm(heard)))) >= 0.85


def test_speech_at_8_khz_is_understood(loaded: Loaded) -> None:
    said = results(loaded, sample(8_000).pcm, "sample_rate=8000")
    assert word_accuracy(sample_text(), transcript(said)) >= 0.9
    assert_covered(said, sample(8_000).seconds)


def test_eight_channels_are_recognised_one_by_one(loaded: Loaded) -> None:
    mono = np.frombuffer(sample().pcm, "<i2")[: 2 * MODEL_RATE]
    channels = np.zeros((len(mono), 8), "<i2")
    channels[:, 5] = mono
    query = "sample_rate=16000&channels=8&multichannel=true"
    said = results(loaded, channels.tobytes(), query)
    for channel in range(8):
        assert_covered(said, 2.0, channel)
        own = [result for result in said if result["channel_index"] == [channel, 8]]
        assert transcript(own).startswith("Good morning") == (channel == 5)
        assert bool(words(own)) == (channel == 5)


# What is believed


@pytest.mark.parametrize(
    ("text", "mean_logprob", "no_speech", "is_rest", "believed"),
    [
        ("Would you like to come?", -0.2, 0.1, False, True),
        ("Would you like to come?", -0.8, 0.3, False, True),
        ("Thank you.", -0.3, 0.1, False, True),
        ("Thank you.", -0.91, 0.3, False, False),
        ("Thanks for watching!", -0.93, 0.76, True, False),
        ("that.", -1.25, 0.58, True, False),
        ("and so on", -0.7, 0.2, True, False),
        ("Would you like to come?", -0.8, 0.7, False, False),
        ("Would you like to come?", -1.1, 0.0, False, False),
    ],
)
def test_what_is_said_of_noise_is_not_believed(
    text: str, mean_logprob: float, no_speech: float, is_rest: bool, believed: bool
) -> None:
    assert is_believable(text, mean_logprob, no_speech, is_rest) is believed


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("Good morning, how are you? Good morning, how are you?", True),
        ("no matter no matter", True),
        ("no, no, no", True),
        ("very, very good", False),
        ("it was the best of times, it was the worst of times", False),
        ("", False),
    ],
)
def test_a_text_that_repeats_itself_is_noticed(text: str, repeats: bool) -> None:
    assert repeats_itself(text) is repeats


def test_words_follow_each_other_and_last_for_some_time() -> None:
    timed = [
        TimedWord(" It", 0.5, 0.5, 0.9),
        TimedWord(" was", 0.4, 0.7, 1.2),
        TimedWord(" -", 0.7, 0.8, 0.5),
        TimedWord(" I\N{RIGHT SINGLE QUOTATION MARK}m", 0.9, 9.0, 0.5),
        TimedWord(" gone", 1.0, 1.0, 0.5),
    ]
    found = decoded_words(timed, [DecodedWord("so", 0, 1_000, 0.5)], MODEL_RATE)
    assert [(word.text, word.written) for word in found] == [
        ("it", "It"), ("was", "was"), ("i'm", "I\N{RIGHT SINGLE QUOTATION MARK}m"),
    ]  # fmt: skip
    assert [(word.start, word.end) for word in found] == [
        (7_680, 8_000), (8_000, 11_200), (14_400, 16_000),
    ]  # fmt: skip
    assert [word.confidence for word in found] == [0.9, 1.0, 0.5]


def test_a_word_far_from_all_speech_is_none() -> None:
    voiced = np.zeros(100, np.bool_)
    voiced[10:20] = True
    near = DecodedWord("near", 25 * FRAME_SAMPLES, 28 * FRAME_SAMPLES, 0.5)
    far = DecodedWord("far", 40 * FRAME_SAMPLES, 45 * FRAME_SAMPLES, 0.5)
    assert is_near_speech(near, voiced)
    assert not is_near_speech(far, voiced)


def test_a_model_that_nobody_knows_is_not_looked_for_in_the_network() -> None:
    with pytest.raises(ModelUnusable, match="'medium-rare' is no directory and no model"):
        fetch_model("medium-rare")
