"""Telling voices apart: by vectors that are made up, and by the network on real sound."""

from __future__ import annotations

from itertools import pairwise, product
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.deepgram import UNKNOWN_SPEAKER
from omi_rt.local.embedder import STRIDE_SAMPLES, WINDOW_SAMPLES
from omi_rt.local.resampler import MODEL_RATE
from omi_rt.local.speakers import MAX_VOICES, SpeakerTracker, likeliest_path
from omi_rt.local.voices import ChannelVoices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from omi_rt.local.embedder import Embedder

DIMENSIONS = 64
WORD_SECONDS = 0.25


def voice(number: int) -> NDArray[np.float32]:
    """Voices that are as unlike as can be: different axes."""
    direction: NDArray[np.float32] = np.eye(DIMENSIONS, dtype=np.float32)[number]
    return direction


def mixed(
    first: NDArray[np.float32], second: NDArray[np.float32], likeness: float
) -> NDArray[np.float32]:
    """A voice whose cosine to ``first`` is ``likeness``."""
    other: NDArray[np.float32] = likeness * first + np.sqrt(1 - likeness**2) * second
    return other


class Utterance:
    """Stretches of voices one after another, as the embedder's vectors and the words' places."""

    def __init__(self, *stretches: tuple[NDArray[np.float32], float]) -> None:
        self.words: list[tuple[int, int]] = []
        voices: list[NDArray[np.float32]] = []
        end = 0
        for direction, seconds in stretches:
            for _ in range(round(seconds / WORD_SECONDS)):
                samples = round(WORD_SECONDS * MODEL_RATE)
                self.words.append((end, end + samples))
                voices += [direction] * (samples // 160)
                end += samples
        frames = np.array(voices)
        width, stride = WINDOW_SAMPLES // 160, STRIDE_SAMPLES // 160
        starts = range(0, max(1, len(frames) - width + 1), stride)
        means = np.array([frames[s : s + width].mean(axis=0) for s in starts])
        self.vectors = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def label(tracker: SpeakerTracker, *stretches: tuple[NDArray[np.float32], float]) -> list[int]:
    utterance = Utterance(*stretches)
    return tracker.label(utterance.vectors, utterance.words)


def test_voices_are_numbered_as_they_come_and_known_again() -> None:
    tracker = SpeakerTracker(16_000)
    heard = [set(label(tracker, (voice(n), 2.0))) for n in (0, 1, 0, 2, 1)]
    assert heard == [{0}, {1}, {0}, {2}, {1}]


def test_a_change_of_voice_within_an_utterance_is_found_where_it_is() -> None:
    labels = label(SpeakerTracker(16_000), (voice(0), 3.0), (voice(1), 3.0))
    assert labels == [0] * 12 + [1] * 12


def test_known_voices_take_short_turns_within_an_utterance() -> None:
    tracker = SpeakerTracker(16_000)
    label(tracker, (voice(0), 3.0))
    label(tracker, (voice(1), 3.0))
    labels = label(tracker, (voice(0), 1.5), (voice(1), 1.0), (voice(0), 1.5))
    assert sorted(set(labels)) == [0, 1]
    changes = [n for n, (one, other) in enumerate(pairwise(labels), 1) if one != other]
    assert changes == [6, 10]


def test_a_voice_that_is_like_two_known_ones_is_unknown() -> None:
    tracker = SpeakerTracker(16_000)
    label(tracker, (voice(0), 4.0))
    label(tracker, (voice(1), 4.0))
    between = (voice(0) + voice(1)) / np.float32(np.sqrt(2))
    assert set(label(tracker, (between, 0.75))) == {UNKNOWN_SPEAKER}
    # What is unknown has taught nothing.
    assert set(label(tracker, (voice(0), 2.0))) == {0}


def test_a_voice_between_known_and_new_is_unknown_and_one_clearly_other_is_new() -> None:
    tracker = SpeakerTracker(16_000)
    label(tracker, (voice(0), 5.0))
    assert set(label(tracker, (mixed(voice(0), voice(1), 0.72), 3.0))) == {UNKNOWN_SPEAKER}
    assert set(label(tracker, (mixed(voice(0), voice(1), 0.80), 3.0))) == {0}
    assert set(label(tracker, (mixed(voice(0), voice(2), 0.55), 3.0))) == {1}


def test_short_speech_of_nobody_known_is_no_new_speaker() -> None:
    tracker = SpeakerTracker(16_000)
    assert set(label(tracker, (voice(0), 0.5))) == {UNKNOWN_SPEAKER}
    label(tracker, (voice(0), 2.0))
    assert set(label(tracker, (voice(1), 1.0))) == {UNKNOWN_SPEAKER}
    assert set(label(tracker, (voice(0), 0.5))) == {0}


def test_at_8_khz_voices_must_be_more_alike_to_be_one() -> None:
    wide, narrow = SpeakerTracker(16_000), SpeakerTracker(8_000)
    heard = []
    for tracker in (wide, narrow):
        label(tracker, (voice(0), 5.0))
        heard.append(label(tracker, (mixed(voice(0), voice(1), 0.80), 3.0))[0])
    assert heard == [0, UNKNOWN_SPEAKER]


def test_two_voices_that_turn_out_to_be_one_keep_the_older_number() -> None:
    tracker = SpeakerTracker(16_000)
    label(tracker, (voice(0), 2.0))
    assert set(label(tracker, (mixed(voice(0), voice(1), 0.5), 2.0))) == {1}
    # It comes nearer, step by step, until it is the first one's.
    for likeness in (0.7, 0.8, 0.86, 0.9, 0.93, 0.95, 0.97, 0.98):
        label(tracker, (mixed(voice(0), voice(1), likeness), 6.0))
    assert set(label(tracker, (voice(0), 3.0))) == {0}


def test_more_voices_than_can_be_told_apart_are_unknown() -> None:
    tracker = SpeakerTracker(16_000)
    heard = [label(tracker, (voice(n), 2.0))[0] for n in range(MAX_VOICES + 3)]
    assert heard == [*range(MAX_VOICES), *[UNKNOWN_SPEAKER] * 3]


def test_no_vectors_is_unknown_and_no_words_is_nothing() -> None:
    tracker = SpeakerTracker(16_000)
    assert tracker.label(np.zeros((0, 1), np.float32), [(0, 100)]) == [UNKNOWN_SPEAKER]
    assert tracker.label(np.zeros((0, 1), np.float32), []) == []


@given(
    st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=1, max_size=6),
    st.floats(0, 2),
)
def test_the_likeliest_path_is_the_best_of_all(scores: list[list[float]], cost: float) -> None:
    rows = np.array(scores)

    def worth(path: tuple[int, ...]) -> float:
        changes = sum(one != other for one, other in pairwise(path))
        return float(sum(rows[n, column] for n, column in enumerate(path)) - cost * changes)

    found = tuple(int(column) for column in likeliest_path(rows, cost))
    assert worth(found) == pytest.approx(max(map(worth, product(range(3), repeat=len(rows)))))


class VoiceByLevel:
    """Hears a voice for each level of the samples."""

    def embed(self, samples: NDArray[np.int16]) -> NDArray[np.float32]:
        starts = range(0, max(1, len(samples) - WINDOW_SAMPLES + 1), STRIDE_SAMPLES)
        return np.stack(
            [voice(int(np.median(samples[s : s + WINDOW_SAMPLES])) // 1_000) for s in starts]
        )


def test_each_connection_numbers_its_own_voices_from_the_first_word_on() -> None:
    """Labels of one connection say nothing of another; words are looked for where they are."""
    second = MODEL_RATE
    quiet = np.zeros(4 * second, np.int16)
    embedder = cast("Embedder", VoiceByLevel())
    for first, other in ((1, 2), (2, 1)):
        voices = ChannelVoices(embedder, MODEL_RATE)
        for level, expected in ((first, 0), (other, 1), (first, 0)):
            samples = np.full(3 * second, 1_000 * level, np.int16)
            assert voices.label(samples, [(0, second), (second, 3 * second)]) == [expected] * 2
        both = np.concatenate(
            (quiet, np.full(3 * second, 1_000 * first), np.full(3 * second, 1_000 * other))
        ).astype(np.int16)
        words = [(n * second, (n + 1) * second) for n in range(4, 10)]
        assert voices.label(both, words) == [0, 0, 0, 1, 1, 1]
