"""Who said what: which words of an utterance are whose, by the sound of the voices.

Pure: vectors in, labels out. A label is a number that means one voice on one channel of one
connection, as Deepgram's do. What cannot be told gets `UNKNOWN_SPEAKER`, never the nearest name.

How alike two vectors of one voice are depends on how much speech each was made of, and on the
bandwidth; so do the limits here. They were measured on eleven voices, recorded and synthetic: each
piece of speech against the mean of the rest of its own voice, and of all others.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
from attrs import define, frozen
from numpy.typing import NDArray

from omi_rt.core.deepgram import UNKNOWN_SPEAKER
from omi_rt.local.embedder import STRIDE_SAMPLES, WINDOW_SAMPLES
from omi_rt.local.resampler import MODEL_RATE

if TYPE_CHECKING:
    from collections.abc import Sequence


MAX_VOICES = 50
"""On one channel; what sounds like none of so many is unknown."""
NARROW_RATE = 12_000
"""Audio at a lower rate has lost what tells voices apart best: all of them come closer."""
_SECONDS = (0.4, 0.6, 1.0, 1.6, 2.4, 3.0)
_SAME_WIDE = (0.56, 0.60, 0.63, 0.68, 0.76, 0.78)
_SAME_NARROW = (0.74, 0.76, 0.78, 0.81, 0.86, 0.88)
"""From this likeness on two pieces are one voice's; the shorter one's seconds count."""
_OTHER_BELOW = 0.10
"""So much under the limit a piece is another voice's. Between the two it is unknown."""
_MARGIN = 0.08
"""So much more alike than to the next voice, or nobody can tell."""
_FOUNDING_SECONDS = 1.2
"""Of speech that a voice is founded on, if there are others already."""
_FIRST_SECONDS = 0.8
"""Of speech that the first voice is founded on."""
_LEARNING_SECONDS = 0.8
"""Of speech from which a voice is learnt further."""
_MERGE = 0.88
"""Two voices that have come so close are one."""
_MERGE_NARROW = 0.95
_SIDE_SECONDS = (1.0, 1.6, 2.4, 3.0)
_CHANGE_WIDE = (0.28, 0.40, 0.62, 0.72)
_CHANGE_NARROW = (0.46, 0.56, 0.75, 0.84)
"""Less alike than that, what comes before and behind a border in an utterance is two voices'; the
shorter side's seconds count."""
_SIDE_SAMPLES = MODEL_RATE
"""So much there must be on each side of such a border;"""
_TURN_COST = 0.8
"""Of likeness, summed over windows, that another known voice must be better by to have its turn: two to
four windows of it, 0.4 to 0.8 s."""
_REACH_SAMPLES = 3 * MODEL_RATE
"""and so far from it is looked."""
_MEMORY_SECONDS = 60.0
"""A voice changes with the place and the mood: what lies further back gives way."""

Span = tuple[int, int]
"""Start and end of a word, in samples from the start of the utterance."""


@define(eq=False)
class _Voice:
    label: int
    total: NDArray[np.float64]
    """The sum of its vectors, each weighted with its seconds."""
    seconds: float

    @property
    def direction(self) -> NDArray[np.float64]:
        return _normalised(self.total)

    def learn(self, vector: NDArray[np.float64], seconds: float) -> None:
        kept = min(1.0, _MEMORY_SECONDS / (self.seconds + seconds))
        self.total = self.total * kept + vector * seconds
        self.seconds = self.seconds * kept + seconds


@frozen
class _Piece:
    """A part of an utterance that one voice said."""

    first: int
    """The first of its words;"""
    last: int
    """the last, this one included."""
    vector: NDArray[np.float64]
    seconds: float
    """Of speech."""


class SpeakerTracker:
    """Labels the words of one channel, utterance after utterance.

    Args:
        sample_rate: at which the audio came, before it was converted for the models.
    """

    def __init__(self, sample_rate: int) -> None:
        is_narrow = sample_rate < NARROW_RATE
        self._same = _SAME_NARROW if is_narrow else _SAME_WIDE
        self._change = _CHANGE_NARROW if is_narrow else _CHANGE_WIDE
        self._merge = _MERGE_NARROW if is_narrow else _MERGE
        self._voices: list[_Voice] = []
        self._next = 0

    def label(self, vectors: NDArray[np.float32], words: Sequence[Span]) -> list[int]:
        """Return a label for each word.

        Args:
            vectors: of the utterance, one for each window, as `Embedder.embed` makes them.
            words: where they are, in order.
        """
        if not words:
            return []
        if not len(vectors):
            return [UNKNOWN_SPEAKER] * len(words)
        rows = np.asarray(vectors, np.float64)
        pieces = self._pieces(rows, words)
        new = [self._found(piece) for piece in pieces if self._is_new(piece)]
        if new:
            # Now that the voice is known, its turns are found better, and then the voice itself.
            pieces = self._pieces(rows, words)
            self._refit(new, pieces)
        return [
            label
            for piece in pieces
            for label in [self._whose(piece, new)] * (piece.last - piece.first + 1)
        ]

    def _pieces(self, rows: NDArray[np.float64], words: Sequence[Span]) -> list[_Piece]:
        return [
            _piece(rows, words, *part)
            for turn in self._turns(rows, words)
            for part in self._split(rows, words, *turn)
        ]

    def _turns(self, rows: NDArray[np.float64], words: Sequence[Span]) -> list[tuple[int, int]]:
        """Cut where known voices take turns; each part is from a word to a word."""
        if len(self._voices) < 2:
            return [(0, len(words) - 1)]
        path = likeliest_path(
            rows @ np.stack([voice.direction for voice in self._voices]).T, _TURN_COST
        )
        middles = np.array([(start + end) // 2 for start, end in words])
        windows = (middles - WINDOW_SAMPLES // 2 + STRIDE_SAMPLES // 2) // STRIDE_SAMPLES
        voices = path[np.clip(windows, 0, len(path) - 1)]
        borders = [0, *(np.nonzero(np.diff(voices))[0] + 1).tolist(), len(words)]
        return [(first, last - 1) for first, last in itertools.pairwise(borders)]

    def _split(
        self, rows: NDArray[np.float64], words: Sequence[Span], first: int, last: int
    ) -> list[tuple[int, int]]:
        """Cut where the voice changes most, and then the parts, until it does not."""
        most, cut = 0.0, None
        for word in range(first, last):
            border = (words[word][1] + words[word + 1][0]) // 2
            left = (max(words[first][0], border - _REACH_SAMPLES), border)
            right = (border, min(words[last][1], border + _REACH_SAMPLES))
            side = min(left[1] - left[0], right[1] - right[0])
            if side < _SIDE_SAMPLES:
                continue
            likeness = float(_mean(rows, *left) @ _mean(rows, *right))
            change = float(np.interp(side / MODEL_RATE, _SIDE_SECONDS, self._change)) - likeness
            if change > most:
                most, cut = change, word
        if cut is None:
            return [(first, last)]
        return [
            *self._split(rows, words, first, cut),
            *self._split(rows, words, cut + 1, last),
        ]

    def _nearest(self, piece: _Piece) -> tuple[_Voice | None, float, float]:
        """Return the voice most like a piece, how much, and how much the next one is."""
        likenesses = sorted(
            ((float(voice.direction @ piece.vector), voice) for voice in self._voices),
            key=lambda each: -each[0],
        )
        if not likenesses:
            return None, -1.0, -1.0
        best, voice = likenesses[0]
        return voice, best, likenesses[1][0] if len(likenesses) > 1 else -1.0

    def _limit(self, voice: _Voice, piece: _Piece) -> float:
        return float(np.interp(min(piece.seconds, voice.seconds), _SECONDS, self._same))

    def _is_new(self, piece: _Piece) -> bool:
        voice, best, _ = self._nearest(piece)
        if voice is None:
            return piece.seconds >= _FIRST_SECONDS
        return (
            len(self._voices) < MAX_VOICES
            and piece.seconds >= _FOUNDING_SECONDS
            and best < self._limit(voice, piece) - _OTHER_BELOW
        )

    def _found(self, piece: _Piece) -> _Voice:
        voice = _Voice(self._next, piece.vector * piece.seconds, piece.seconds)
        self._next += 1
        self._voices.append(voice)
        return voice

    def _refit(self, new: Sequence[_Voice], pieces: Sequence[_Piece]) -> None:
        owners = [self._nearest(piece)[0] for piece in pieces]
        for voice in new:
            own = [piece for piece, owner in zip(pieces, owners, strict=True) if owner is voice]
            if own:
                voice.seconds = sum(piece.seconds for piece in own)
                voice.total = np.sum([piece.vector * piece.seconds for piece in own], axis=0)

    def _whose(self, piece: _Piece, new: Sequence[_Voice]) -> int:
        """Return the label of a piece, and learn its voice, unless that is ``new`` with it."""
        voice, best, second = self._nearest(piece)
        if voice is None or best < self._limit(voice, piece) or best - second < _MARGIN:
            return UNKNOWN_SPEAKER
        label = voice.label
        if piece.seconds >= _LEARNING_SECONDS and voice not in new:
            voice.learn(piece.vector, piece.seconds)
            self._merge_into_older(voice)
        return label

    def _merge_into_older(self, voice: _Voice) -> None:
        """Make one of two voices that turned out to be one; what was said keeps its label."""
        for other in self._voices:
            if other is not voice and float(other.direction @ voice.direction) >= self._merge:
                older, newer = sorted((voice, other), key=lambda each: each.label)
                older.learn(newer.direction, newer.seconds)
                self._voices.remove(newer)
                return


def likeliest_path(scores: NDArray[np.float64], turn_cost: float) -> NDArray[np.intp]:
    """Return the column for each row whose scores add up to most, less ``turn_cost`` for each change."""
    best = scores[0]
    came_from: list[NDArray[np.intp]] = []
    for row in scores[1:]:
        leader = int(best.argmax())
        changes = best[leader] - turn_cost > best
        came_from.append(np.where(changes, leader, np.arange(len(best))))
        best = np.where(changes, best[leader] - turn_cost, best) + row
    path = [int(best.argmax())]
    for previous in reversed(came_from):
        path.append(int(previous[path[-1]]))
    return np.array(path[::-1], np.intp)


def _piece(rows: NDArray[np.float64], words: Sequence[Span], first: int, last: int) -> _Piece:
    seconds = sum(end - start for start, end in words[first : last + 1]) / MODEL_RATE
    return _Piece(first, last, _mean(rows, words[first][0], words[last][1]), seconds)


def _mean(rows: NDArray[np.float64], start: int, end: int) -> NDArray[np.float64]:
    """Return the direction of the windows that lie between two samples, or of the one in the middle."""
    starts = np.arange(len(rows)) * STRIDE_SAMPLES
    slack = STRIDE_SAMPLES // 2
    inside = (starts >= start - slack) & (starts + WINDOW_SAMPLES <= end + slack)
    if not inside.any():
        middle = (start + end - WINDOW_SAMPLES) // 2
        inside[np.argmin(np.abs(starts - middle))] = True
    return _normalised(rows[inside].mean(axis=0))


def _normalised(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0.0 else vector
