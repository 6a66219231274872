"""The embedded recogniser's resampling and endpointing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.local.endpointer import (
    FRAME_SAMPLES,
    LONGEST_UTTERANCE,
    ONSET_FRAMES,
    PAUSE_FRAMES,
    SILENCE_INTERVAL,
    WHISPER_PACING,
    Endpointer,
    Pacing,
    Step,
)
from omi_rt.local.resampler import MODEL_RATE, Resampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def sine(hertz: float, rate: int, seconds: float = 0.5) -> NDArray[np.int16]:
    time = np.arange(round(rate * seconds)) / rate
    samples: NDArray[np.int16] = np.rint(10_000 * np.sin(2 * np.pi * hertz * time)).astype(np.int16)
    return samples


@pytest.mark.parametrize("rate", [8_000, 11_025, 12_000, 22_050, 44_100, 48_000])
def test_a_tone_keeps_its_level_and_its_place_in_time(rate: int) -> None:
    resampler = Resampler(rate)
    output = np.concatenate((resampler.convert(sine(440, rate)), resampler.flush()))
    expected = sine(440, MODEL_RATE)
    assert len(output) == len(expected)
    middle = slice(200, -200)  # the tone begins and ends with a jump
    assert np.abs(output[middle] - expected[middle].astype(int)).max() < 20


def test_what_the_model_can_not_hear_does_not_fold_back_into_what_it_can() -> None:
    output = Resampler(48_000).convert(sine(12_000, 48_000))
    assert np.abs(output[200:]).max() < 10


@given(
    rate=st.sampled_from([8_000, 11_025, 44_100, 48_000]),
    cuts=st.lists(st.integers(0, 600), max_size=6),
)
def test_the_output_does_not_depend_on_how_the_input_is_cut(rate: int, cuts: list[int]) -> None:
    tone = sine(440, rate, 0.05)
    whole = Resampler(rate)
    pieces = Resampler(rate)
    output = [pieces.convert(piece) for piece in np.split(tone, sorted(cuts))]
    np.testing.assert_array_equal(
        np.concatenate([*output, pieces.flush()]),
        np.concatenate([whole.convert(tone), whole.flush()]),
    )


def test_the_clock_goes_on_after_a_flush() -> None:
    tone = sine(440, 8_000)
    resampler = Resampler(8_000)
    output = [resampler.convert(tone[:1_234]), resampler.flush()]
    assert sum(map(len, output)) == 2 * 1_234
    output += [resampler.convert(tone[1_234:]), resampler.flush()]
    expected = sine(440, MODEL_RATE)
    joined = np.concatenate(output)
    assert len(joined) == len(expected)
    assert np.abs(joined[3_000:-200] - expected[3_000:-200].astype(int)).max() < 20


def steps(endpointer: Endpointer, frames: Sequence[bool]) -> list[Step]:
    return [endpointer.push(is_speech) for is_speech in frames]


def test_an_utterance_begins_with_the_lead_in_and_ends_after_a_pause() -> None:
    endpointer = Endpointer()
    assert steps(endpointer, [False] * 20 + [True] * ONSET_FRAMES)[-2:] == [
        Step.NOTHING,
        Step.BEGIN,
    ]
    assert endpointer.utterance_start == 18 * FRAME_SAMPLES  # two quiet frames before the speech
    assert set(steps(endpointer, [False] * (PAUSE_FRAMES - 1) + [True])) == {Step.CONTINUE}
    assert steps(endpointer, [False] * PAUSE_FRAMES)[-1] is Step.PAUSE
    assert endpointer.covered == endpointer.position
    assert not endpointer.in_utterance


def test_a_short_utterance_waits_longer_for_its_end_than_a_long_one() -> None:
    for speech, pause in ((1.0, 18), (5.0, 13), (8.0, 10), (10.0, 5), (11.5, 2)):
        endpointer = Endpointer(WHISPER_PACING)
        begun = steps(endpointer, [True] * round(speech * MODEL_RATE / FRAME_SAMPLES))
        assert begun[3] is Step.BEGIN
        assert steps(endpointer, [False] * pause) == [Step.CONTINUE] * (pause - 1) + [Step.PAUSE]


def test_without_any_pause_an_utterance_is_cut_after_twelve_seconds() -> None:
    endpointer = Endpointer(WHISPER_PACING)
    found = steps(endpointer, [True] * 410)
    assert found.index(Step.CUT) * FRAME_SAMPLES / MODEL_RATE == pytest.approx(12.0, abs=0.1)
    assert endpointer.in_utterance


def test_the_end_of_a_pause_belongs_to_the_next_utterance() -> None:
    endpointer = Endpointer(WHISPER_PACING)
    steps(endpointer, [True] * 40)
    assert steps(endpointer, [False] * 18)[-1] is Step.PAUSE
    kept = WHISPER_PACING.kept_frames * FRAME_SAMPLES
    assert endpointer.covered == endpointer.position - kept
    assert steps(endpointer, [True] * 4)[-1] is Step.BEGIN
    # Ten frames of lead-in: four of speech, and six of the eight that were kept.
    assert endpointer.utterance_start == endpointer.position - 10 * FRAME_SAMPLES
    assert endpointer.utterance_start >= endpointer.covered


def test_three_tenths_of_a_second_without_speech_end_an_utterance_and_less_does_not() -> None:
    endpointer = Endpointer()
    taken = steps(endpointer, [True] * 20 + [False] * 10)
    assert taken[-2:] == [Step.CONTINUE, Step.PAUSE]
    assert endpointer.covered == 30 * 480


def test_a_few_frames_of_speech_begin_nothing() -> None:
    assert set(steps(Endpointer(), [False] * 10 + [True] * (ONSET_FRAMES - 1) + [False] * 20)) == {
        Step.NOTHING
    }


@pytest.mark.parametrize(("frames", "begins"), [(3, False), (4, True)])
def test_at_the_end_of_a_stream_four_frames_of_speech_may_be_a_word(
    frames: int, begins: bool
) -> None:
    endpointer = Endpointer()
    steps(endpointer, [False] * 6 + [True] * frames)
    assert endpointer.begin_faint() is begins
    assert endpointer.in_utterance is begins
    assert not endpointer.begin_faint()


def test_silence_is_covered_every_three_seconds() -> None:
    endpointer = Endpointer()
    covered = [
        endpointer.covered for step in steps(endpointer, [False] * 320) if step is Step.SILENCE
    ]
    assert len(covered) == 3
    assert endpointer.covered == 3 * SILENCE_INTERVAL


def test_a_long_utterance_is_cut_and_goes_on() -> None:
    endpointer = Endpointer()
    frames = LONGEST_UTTERANCE // FRAME_SAMPLES + 1
    taken = steps(endpointer, [True] * frames)
    assert taken.count(Step.CUT) == 1
    assert endpointer.in_utterance
    assert endpointer.utterance_start == endpointer.covered
    assert endpointer.position - endpointer.covered < FRAME_SAMPLES
    assert LONGEST_UTTERANCE <= endpointer.covered < LONGEST_UTTERANCE + FRAME_SAMPLES


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 120)), max_size=20),
    st.sampled_from([Pacing(), WHISPER_PACING]),
)
def test_no_utterance_reaches_back_into_what_a_final_has_covered(
    runs: list[tuple[bool, int]], pacing: Pacing
) -> None:
    endpointer = Endpointer(pacing)
    for is_speech in (is_speech for is_speech, length in runs for _ in range(length)):
        before = endpointer.covered
        step = endpointer.push(is_speech)
        assert before <= endpointer.covered <= endpointer.position
        if step is Step.BEGIN:
            assert endpointer.utterance_start >= before
        if step is Step.NOTHING:
            assert endpointer.settled - endpointer.covered < SILENCE_INTERVAL
        if endpointer.in_utterance:
            assert endpointer.position - endpointer.utterance_start < pacing.longest
