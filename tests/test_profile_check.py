"""Which recordings are fit to be profiles."""

from __future__ import annotations

import numpy as np
import pytest

from omi_rt.codecs.wav import WavAudio
from omi_rt.core.errors import ProfileRefused
from omi_rt.fake.speech import Script, synthesise, utterance
from omi_rt.profiles.check import check_profile

RATE = 16_000
SENTENCE = "amber bako celu dorin elfa fimo garo hesta ilun jorek kamu lento"


def spoken(seconds: float, *, until: float | None = None, gain: float = 1.0) -> WavAudio:
    """A recording with speech from its start to ``until``; amplified, and cut at full scale."""
    words = utterance(" ".join([SENTENCE] * 60), 1, 0.0)
    script = Script([word for word in words if word.end <= (until or seconds)], seconds)
    samples = np.frombuffer(synthesise(script, RATE), "<i2") * gain
    return WavAudio(RATE, 1, np.clip(samples, -32_768, 32_767).astype("<i2").tobytes())


def refusal(audio: WavAudio) -> str:
    with pytest.raises(ProfileRefused) as caught:
        check_profile(audio)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("seconds", [5.0, 30.0, 120.0])
def test_clear_speech_of_5_to_120_seconds_is_fit(seconds: float) -> None:
    check_profile(spoken(seconds))


@pytest.mark.parametrize("seconds", [0.0, 4.9, 120.1])
def test_other_lengths_are_refused(seconds: float) -> None:
    assert "5 to 120 s" in refusal(spoken(seconds))


def test_silence_is_refused_as_too_quiet() -> None:
    assert "too quiet: the speech is below -60 dBFS" in refusal(WavAudio(RATE, 1, bytes(20 * RATE)))


def test_faint_speech_is_refused_with_its_level() -> None:
    # The language's voices are at -14 dBFS.
    assert "too quiet: the speech is at -5" in refusal(spoken(10.0, gain=10 ** (-40 / 20)))


def test_quiet_speech_is_fit() -> None:
    check_profile(spoken(10.0, gain=10 ** (-30 / 20)))


def test_little_speech_in_much_silence_is_refused() -> None:
    assert "2." in refusal(spoken(20.0, until=2.9))
    check_profile(spoken(20.0, until=6.0))


def test_clipped_speech_is_refused() -> None:
    assert "clipped" in refusal(spoken(10.0, gain=10.0))


def test_silence_does_not_dilute_the_clipping() -> None:
    loudness = np.abs(np.frombuffer(spoken(6.0).pcm, "<i2").astype(int))
    gain = 32_767 / np.percentile(loudness[loudness > 0], 95)
    assert "clipped" in refusal(spoken(120.0, until=6.0, gain=float(gain)))


def test_speech_that_just_fills_the_range_is_fit() -> None:
    audio = spoken(10.0)
    peak = np.abs(np.frombuffer(audio.pcm, "<i2").astype(int)).max()
    check_profile(spoken(10.0, gain=32_767 / peak))
