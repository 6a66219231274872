"""Whether a recording is fit to be a speech profile. This is pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from omi_rt.core.errors import ProfileRefused
from omi_rt.profiles.noise import LEAST_CHANGE_DB, MOST_FLATNESS, examine
from omi_rt.profiles.speech import SILENCE_DBFS, Speech, find_speech

if TYPE_CHECKING:
    from omi_rt.codecs.wav import WavAudio

MIN_SECONDS: Final = 5.0
MAX_SECONDS: Final = 120.0
"""Both bounds are those of Omi, whose app records 5 to 120 s and whose backend refuses the rest."""
MIN_LEVEL_DBFS: Final = -50.0
"""Profiles are sent as they are, and quieter speech than this is lost in the noise of 16 bit wearables."""
MIN_SPEECH_SECONDS: Final = 3.0
"""This is as much as is sent of a person, and three times what a vote about a label needs."""
MAX_CLIPPED_SHARE: Final = 0.01
"""At most this share of the speech's samples may be at full scale; a sine that just fills the range has
0.7 % of its samples there."""
_FULL_SCALE: Final = 32_766


def check_profile(audio: WavAudio) -> None:
    """Check the user's profile or a person's sample: length, level, speech, clipping, noise.

    Raises:
        ProfileRefused: it is not fit to be stored; the message says why in one line.
    """
    if not MIN_SECONDS <= audio.seconds <= MAX_SECONDS:
        raise ProfileRefused(
            f"the recording is {audio.seconds:.1f} s long; "
            f"a profile needs {MIN_SECONDS:g} to {MAX_SECONDS:g} s"
        )
    speech = find_speech(audio)
    level = speech.level_dbfs
    if level < MIN_LEVEL_DBFS:
        found = f"at {level:.0f} dBFS" if speech.seconds else f"below {SILENCE_DBFS:g} dBFS"
        raise ProfileRefused(
            f"the recording is too quiet: the speech is {found}, "
            f"and {MIN_LEVEL_DBFS:g} dBFS is the least; speak closer to the microphone"
        )
    if speech.seconds < MIN_SPEECH_SECONDS:
        raise ProfileRefused(
            f"the recording holds {speech.seconds:.1f} s of speech; "
            f"a profile needs {MIN_SPEECH_SECONDS:g} s"
        )
    clipped = _clipped_share(audio, speech)
    if clipped > MAX_CLIPPED_SHARE:
        raise ProfileRefused(
            f"the recording is clipped: {clipped:.1%} of the speech is at full scale, "
            f"and {MAX_CLIPPED_SHARE:.0%} is the most; record it at a lower gain"
        )
    sound = examine(audio, speech)
    if sound.change_db < LEAST_CHANGE_DB:
        raise ProfileRefused(
            f"the recording is noise: its level changes by {sound.change_db:.1f} dB where that of "
            f"speech changes by {LEAST_CHANGE_DB:g} dB or more; record a voice in a quieter place"
        )
    if sound.flatness > MOST_FLATNESS:
        raise ProfileRefused(
            f"the recording is noise: the flatness of its spectrum is {sound.flatness:.2f}, and "
            f"that of speech is {MOST_FLATNESS:g} or less; record a voice in a quieter place"
        )


def _clipped_share(audio: WavAudio, speech: Speech) -> float:
    frame_values = speech.frame_samples * audio.channels
    values = np.frombuffer(audio.pcm, "<i2", len(speech.is_speech) * frame_values)
    spoken = values.reshape(-1, frame_values)[speech.is_speech]
    at_the_end = (spoken >= _FULL_SCALE) | (spoken <= -_FULL_SCALE)
    return float(at_the_end.mean())
