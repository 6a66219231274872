"""Where sessions get their stored voices from: one store and one cache for the whole process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omi_rt.codecs.wav import WavAudio, write_wav
from omi_rt.core.errors import OmiRtError
from omi_rt.core.lead_in import LEAD_IN_SECONDS, SPEAKER_SECONDS, Anchor
from omi_rt.log import get_logger, pseudonym
from omi_rt.profiles.anchors import AnchorLimits
from omi_rt.profiles.cache import ProfileCache
from omi_rt.profiles.commands import put_profile
from omi_rt.profiles.contrast import contrast_pcm
from omi_rt.profiles.loading import load_anchors

if TYPE_CHECKING:
    from omi_rt.core.audio import AudioFormat
    from omi_rt.profiles.store import ProfileStore


class ProfileUnusable(OmiRtError):
    """Voices are stored, and none of them can be used; the message is one clear line."""


class Profiles:
    """The stored voices of all users."""

    def __init__(self, store: ProfileStore, user_seconds: float) -> None:
        self.store = store
        self._cache = ProfileCache()
        self._limits = AnchorLimits(user_seconds, SPEAKER_SECONDS, LEAD_IN_SECONDS)
        self._log = get_logger()

    async def store_voice(self, uid: str, person_id: str | None, voice: WavAudio) -> None:
        """Store a recording of a session's as the user's profile or a person's sample.

        It is checked as any other, and replaces none. Cancelling this before the upload stores
        nothing; during it, it waits for the upload's end.

        Raises:
            ProfileRefused: it is not fit to be a profile, or another is stored.
            BadRequest: the person id can not be one.
            StoreUnavailable: the store failed.
        """
        await put_profile(self.store, uid, write_wav(voice), person_id)

    async def anchors(self, uid: str, audio_format: AudioFormat) -> list[Anchor]:
        """Load a user's voices: the user first, then the people changed last, then the contrast.

        The list is empty if none is stored. This takes at most `omi_rt.profiles.loading.LOAD_SECONDS`.
        Cancelling is safe.

        Raises:
            StoreUnavailable: the store failed or was too slow.
            ProfileUnusable: voices are stored, but none of them can be used.
        """
        loaded = await load_anchors(self.store, self._cache, uid, audio_format, self._limits)
        if loaded.problems:
            if not loaded.anchors:
                raise ProfileUnusable(loaded.problems[0])
            self._log.warning(
                "profile_problems", uid_hash=pseudonym(uid), problems=len(loaded.problems)
            )
        known = [Anchor(anchor.identity, anchor.pcm) for anchor in loaded.anchors]
        return [*known, Anchor(None, contrast_pcm(audio_format))] if known else []
