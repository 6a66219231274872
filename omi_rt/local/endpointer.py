"""Where utterances begin and end: decisions over frames that are speech or are not.

pocketsphinx has an endpointer of its own, but it counts time in single-precision seconds, which
drift within minutes; here positions are whole samples.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto

from attrs import define, field, frozen

from omi_rt.local.resampler import MODEL_RATE

FRAME_SAMPLES = MODEL_RATE * 30 // 1000
"""30 ms: the longest frame of the voice activity detector (WebRTC's)."""
FRAME_BYTES = FRAME_SAMPLES * 2
LEAD_IN_FRAMES = 10
"""0.3 s before speech is certain are decoded with it, so that a soft first sound is not cut off."""
ONSET_FRAMES = 8
"""So many of the lead-in's frames must be speech for an utterance to begin."""
FAINT_FRAMES = 4
"""At the end of a stream so many are enough: nothing more will come to make it certain."""
PAUSE_FRAMES = 10
"""0.3 s without speech end an utterance; the closure of a plosive lasts up to 0.15 s."""
LONGEST_UTTERANCE = 10 * MODEL_RATE


@frozen
class Pacing:
    """When an utterance begins and ends; it depends on the model that decodes it."""

    onset_frames: int = ONSET_FRAMES
    """So many of the lead-in's frames must be speech for an utterance to begin."""
    pauses: tuple[tuple[int, int], ...] = ((0, PAUSE_FRAMES),)
    """From so many samples on, so many frames without speech end an utterance."""
    longest: int = LONGEST_UTTERANCE
    """In samples: then it is cut, wherever that is."""

    kept_frames: int = 0
    """Of the pause that ended an utterance, so many belong to the next one: where the detector is late,
    a word may have begun in them."""

    def pause_frames(self, samples: int) -> int:
        """Frames without speech that end an utterance of this length."""
        return [frames for begin, frames in self.pauses if samples >= begin][-1]


WHISPER_PACING = Pacing(
    onset_frames=4,
    pauses=(
        (0, 18),
        (4 * MODEL_RATE, 13),
        (7 * MODEL_RATE, 10),
        (9 * MODEL_RATE, 5),
        (11 * MODEL_RATE, 2),
    ),
    longest=12 * MODEL_RATE,
    kept_frames=8,
)
"""Decoding costs nearly the same however short an utterance is, and a sentence is understood better than
its halves: short ones wait for a longer pause. Towards the end any breath will do, so that no word
is cut in two. The detector is surer of speech than WebRTC's, so fewer frames begin an utterance."""

SILENCE_INTERVAL = 3 * MODEL_RATE
"""In samples: in silence, a final without words covers each such stretch."""


class Step(Enum):
    """What a frame leads to."""

    NOTHING = auto()
    BEGIN = auto()
    """An utterance has begun with the frames of the lead-in, this one included."""
    CONTINUE = auto()
    PAUSE = auto()
    """The utterance has ended at a pause, `Endpointer.kept` frames before the end of this one."""
    CUT = auto()
    """The utterance has ended with this frame for its length; the next one begins right after."""
    SILENCE = auto()
    """Nothing was said up to `Endpointer.settled`."""


@define
class Endpointer:
    """Follows one channel, frame by frame. All positions are in samples at `MODEL_RATE`."""

    pacing: Pacing = field(factory=Pacing)
    position: int = 0
    """The end of the last frame."""
    covered: int = 0
    """Up to here finals were given."""
    in_utterance: bool = False
    kept: int = 0
    """Frames at the end of the last utterance that belong to the lead-in of the next."""
    _utterance_start: int = 0
    _quiet_frames: int = 0
    _lead_in: deque[bool] = field(factory=lambda: deque[bool](maxlen=LEAD_IN_FRAMES))

    @property
    def settled(self) -> int:
        """Up to here nothing can become part of an utterance any more, out of an utterance."""
        return self.position - len(self._lead_in) * FRAME_SAMPLES

    @property
    def utterance_start(self) -> int:
        """Where the utterance that goes on, or the last one, began."""
        return self._utterance_start

    def push(self, is_speech: bool) -> Step:
        """Take one frame."""
        self.position += FRAME_SAMPLES
        return self._push_speaking(is_speech) if self.in_utterance else self._push_idle(is_speech)

    def begin_faint(self) -> bool:
        """Begin an utterance with the lead-in if it may hold a short word; tell whether it did."""
        if self.in_utterance or sum(self._lead_in) < min(FAINT_FRAMES, self.pacing.onset_frames):
            return False
        self._begin()
        return True

    def end(self, position: int) -> None:
        """End whatever goes on at ``position``, at or after the last frame; all before is covered."""
        self.position = self.covered = position
        self.in_utterance = False
        self._lead_in.clear()

    def _push_idle(self, is_speech: bool) -> Step:
        self._lead_in.append(is_speech)
        if sum(self._lead_in) >= self.pacing.onset_frames:
            self._begin()
            return Step.BEGIN
        if self.settled - self.covered >= SILENCE_INTERVAL:
            self.covered = self.settled
            return Step.SILENCE
        return Step.NOTHING

    def _push_speaking(self, is_speech: bool) -> Step:
        self._quiet_frames = 0 if is_speech else self._quiet_frames + 1
        length = self.position - self._utterance_start
        if self._quiet_frames >= self.pacing.pause_frames(length):
            self.kept = min(self.pacing.kept_frames, self._quiet_frames - 1)
            self.covered = self.position - self.kept * FRAME_SAMPLES
            self.in_utterance = False
            self._lead_in.extend([False] * self.kept)
            return Step.PAUSE
        if length >= self.pacing.longest:
            self._utterance_start = self.covered = self.position
            return Step.CUT
        return Step.CONTINUE

    def _begin(self) -> None:
        self._utterance_start = self.settled
        self._lead_in.clear()
        self._quiet_frames = 0
        self.in_utterance = True
