"""Which stored voices go into a session's lead-in, and how much of each. This is pure.

An anchor is a few seconds of one known voice, which Deepgram hears before the session's own audio.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from attrs import field, frozen, validators

from omi_rt.codecs.wav import WavAudio, WavError, convert, read_wav
from omi_rt.core.lead_in import MIN_ANCHOR_SECONDS
from omi_rt.core.voices import Identity
from omi_rt.profiles.speech import best_stretch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from omi_rt.core.audio import AudioFormat
    from omi_rt.profiles.store import StoredSample

SPARE_PEOPLE: Final = 2
"""The samples of this many people more than fit are read, so that a broken one or two leave no gap."""


@frozen
class AnchorLimits:
    """How long the stored voices in a lead-in may be, in seconds of audio without the gaps.

    A limit under `MIN_ANCHOR_SECONDS` admits no voice.
    """

    user_seconds: float = field(default=10.0, validator=validators.ge(0))
    """The limit for the user."""
    person_seconds: float = field(default=3.0, validator=validators.ge(0))
    """The limit for each person but the user."""
    total_seconds: float = field(default=24.0, validator=validators.ge(0))
    """The limit for all of them, which is the lead-in's less what it keeps for the session's own
    speakers."""

    def seconds_for(self, identity: Identity) -> float:
        """The limit for one voice, never above that for all."""
        own = self.user_seconds if identity.is_user else self.person_seconds
        return min(own, self.total_seconds)


@frozen
class ProfileAnchor:
    """A stretch of one known voice, in the session's format."""

    identity: Identity
    pcm: bytes = field(repr=False)
    """The audio as linear16."""
    samples: int
    """The number of samples per channel."""
    seconds: float


def choose_samples(samples: Iterable[StoredSample], limits: AnchorLimits) -> list[StoredSample]:
    """Pick what to read: the user's profile, then the newest sample of each person.

    The most recently changed people come first, as many as fit and `SPARE_PEOPLE` more.
    """
    user: list[StoredSample] = []
    newest: dict[Identity, StoredSample] = {}
    for sample in samples:
        if sample.identity.is_user:
            user = [sample]
        elif sample.identity not in newest or _recency(newest[sample.identity]) < _recency(sample):
            newest[sample.identity] = sample
    if limits.user_seconds < MIN_ANCHOR_SECONDS:
        user = []
    rest = limits.total_seconds - (limits.user_seconds if user else 0.0)
    if limits.person_seconds < MIN_ANCHOR_SECONDS or rest < MIN_ANCHOR_SECONDS:
        return user
    count = math.ceil(rest / limits.person_seconds) + SPARE_PEOPLE
    return user + sorted(newest.values(), key=_recency, reverse=True)[:count]


def decode_stretch(wav: bytes, seconds: float, audio_format: AudioFormat) -> WavAudio:
    """Read a WAV file and return its best stretch in the session's format.

    Raises:
        WavError: it cannot be read, or holds less than `MIN_ANCHOR_SECONDS` of speech.
    """
    stretch = best_stretch(read_wav(wav), seconds)
    if stretch.seconds < MIN_ANCHOR_SECONDS:
        raise WavError(f"{stretch.seconds:.1f} s of speech, {MIN_ANCHOR_SECONDS:g} s are needed")
    return convert(stretch, audio_format.sample_rate, audio_format.channels)


def fit_anchors(
    stretches: Sequence[tuple[Identity, WavAudio]], limits: AnchorLimits
) -> list[ProfileAnchor]:
    """Take the stretches in their order until the limit for all is reached.

    The one that reaches it is shortened, or left out if less than `MIN_ANCHOR_SECONDS` is left.
    """
    anchors: list[ProfileAnchor] = []
    rest = limits.total_seconds
    for identity, stretch in stretches:
        if rest < MIN_ANCHOR_SECONDS:
            break
        allowed = min(rest, limits.seconds_for(identity))
        # When it is cut in a pause, the last stretch may become too short to be of use.
        taken = stretch if stretch.seconds <= allowed else best_stretch(stretch, allowed)
        if taken.seconds < MIN_ANCHOR_SECONDS:
            continue
        anchors.append(ProfileAnchor(identity, taken.pcm, taken.samples, taken.seconds))
        rest -= taken.seconds
    return anchors


def _recency(sample: StoredSample) -> tuple[float, str]:
    return sample.updated.timestamp(), sample.name
