"""Which recordings are fit to be profiles."""

from __future__ import annotations

import numpy as np
import pytest

from omi_rt.codecs.wav import WavAudio, read_wav
from omi_rt.core.errors import ProfileRefused
from omi_rt.fake.speech import Script, synthesise, utterance
from omi_rt.local.sample import sample_wav
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


def noise(exponent: float, seconds: float = 20.0, rate: int = RATE) -> WavAudio:
    """Noise whose power falls with the frequency to the power of ``exponent``, at -20 dBFS."""
    count = int(seconds * rate)
    lines = np.fft.rfft(np.random.default_rng(1).normal(size=count))
    hertz = np.maximum(np.fft.rfftfreq(count, 1 / rate), 20.0)
    samples = np.fft.irfft(lines * hertz ** (-exponent / 2), count)
    samples *= 3_276.8 / np.sqrt(np.square(samples).mean())
    return WavAudio(rate, 1, np.clip(samples, -32_768, 32_767).astype("<i2").tobytes())


def hum(*hertz: float, seconds: float = 20.0) -> WavAudio:
    """Steady tones."""
    time = np.arange(int(seconds * RATE)) / RATE
    samples = 3_000 * np.sin(2 * np.pi * np.array(hertz)[:, None] * time).sum(axis=0)
    return WavAudio(RATE, 1, samples.astype("<i2").tobytes())


WHITE, PINK, BROWN = 0.0, 1.0, 2.0


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
@pytest.mark.parametrize("exponent", [WHITE, PINK, BROWN])
def test_noise_is_refused(exponent: float, rate: int) -> None:
    assert "is noise: its level changes by" in refusal(noise(exponent, rate=rate))


@pytest.mark.parametrize("tones", [(50.0, 100.0, 150.0, 250.0), (60.0, 180.0, 300.0), (1000.0,)])
def test_a_hum_is_refused(tones: tuple[float, ...]) -> None:
    assert "is noise: its level changes by" in refusal(hum(*tones))


@pytest.mark.parametrize("exponent", [WHITE, PINK, BROWN])
def test_noise_between_silences_is_refused(exponent: float) -> None:
    silence = bytes(2 * 5 * RATE)
    audio = WavAudio(RATE, 1, silence + noise(exponent, 6.0).pcm + silence)
    assert "is noise" in refusal(audio)


@pytest.mark.parametrize("exponent", [WHITE, PINK])
def test_noise_in_pieces_is_refused_for_its_spectrum(exponent: float) -> None:
    piece = noise(exponent, 0.3).pcm + bytes(2 * RATE // 5)
    assert "the flatness of its spectrum" in refusal(WavAudio(RATE, 1, piece * 30))


@pytest.mark.parametrize("exponent", [WHITE, PINK, BROWN])
def test_speech_over_noise_is_fit(exponent: float) -> None:
    """The noise is 10 dB below the voice."""
    voice = np.frombuffer(spoken(20.0).pcm, "<i2").astype(float)
    below = np.frombuffer(noise(exponent).pcm, "<i2") * 0.6
    samples = np.clip(voice + below, -32_768, 32_767).astype("<i2")
    check_profile(WavAudio(RATE, 1, samples.tobytes()))


def test_a_voice_of_real_speech_is_fit() -> None:
    with sample_wav() as path:
        check_profile(read_wav(path.read_bytes()))


def test_a_voice_is_heard_on_any_channel() -> None:
    one = np.frombuffer(spoken(10.0).pcm, "<i2")
    for channels in ([one, 0 * one], [0 * one, one], [one, -one]):
        check_profile(WavAudio(RATE, 2, np.stack(channels, axis=1).tobytes()))
