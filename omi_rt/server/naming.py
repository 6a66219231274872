"""What follows when a client says whose a voice is: the name counts at once, and the voice is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from omi_rt.codecs.wav import WavAudio
from omi_rt.core import events
from omi_rt.core.errors import OmiRtError
from omi_rt.core.ids import ID_RULE, is_valid_id
from omi_rt.core.voices import Identity
from omi_rt.light_event import LightEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from omi_rt.core.asks import AssignSpeaker
    from omi_rt.core.listen import ListenRequest
    from omi_rt.core.transcript import Transcript
    from omi_rt.server.shared import Shared

STORE_SECONDS = 10.0
"""Storing a voice may take this long."""


class Naming:
    """Follows one session's ``speaker_assigned``. One voice is stored at a time.

    Args:
        request: the client's.
        shared: what all sessions share.
        transcript: knows the speakers, and keeps clips of them.
        tell: takes events for the client.
        log: a structlog logger of the session's.
    """

    def __init__(
        self,
        request: ListenRequest,
        shared: Shared,
        transcript: Transcript,
        *,
        tell: Callable[[dict[str, Any]], None],
        log: Any,
    ) -> None:
        self._uid = request.uid
        self._sample_rate = request.sample_rate
        self._profiles = shared.profiles if request.include_speech_profile else None
        self._may_store = shared.settings.profile_learn
        self._transcript = transcript
        self._tell = tell
        self._log = log
        self._is_storing = False
        self._done = LightEvent()

    def assign(self, ask: AssignSpeaker, nursery: trio.Nursery) -> None:
        """Let a speaker be called what the client says, and store the voice in ``nursery``."""
        if ask.person_id is not None and not is_valid_id(ask.person_id):
            self._tell(events.assignment_failed(ask, f"person_id: {ID_RULE}"))
            return
        number: int | None = None
        if ask.speaker is not None:
            identity = Identity(ask.person_id)
            number = self._transcript.assign(ask.speaker, identity, ask.segment_ids)
        if number is None:
            self._tell(events.assignment_failed(ask, "speaker_id: there is no such speaker"))
            return
        self._log.info("speaker_assigned", is_user=ask.person_id is None)
        obstacle = self._find_obstacle(ask)
        if obstacle is not None:
            self._tell(events.speaker_assigned(ask, is_stored=False, reason=obstacle))
            return
        self._is_storing = True
        voice = WavAudio(self._sample_rate, 1, self._transcript.voices.recording(number))
        nursery.start_soon(self._store, ask, voice)

    async def wait_until_stored(self) -> None:
        """Wait until no voice is being stored, `STORE_SECONDS` at most. Cancelling is safe."""
        while self._is_storing:
            await self._done.wait()

    def _find_obstacle(self, ask: AssignSpeaker) -> str | None:
        if not ask.may_store:
            return "the client does not want it stored"
        if self._profiles is None:
            return "no voices are kept in this session"
        if not self._may_store:
            return "this server does not store voices that clients name"
        return "another voice is being stored" if self._is_storing else None

    async def _store(self, ask: AssignSpeaker, voice: WavAudio) -> None:
        assert self._profiles is not None
        reason: str | None = f"the profile store took over {STORE_SECONDS:g} s"
        with trio.move_on_after(STORE_SECONDS):
            try:
                await self._profiles.store_voice(self._uid, ask.person_id, voice)
            except OmiRtError as error:
                reason = str(error)
            else:
                reason = None
        self._is_storing = False
        self._done.set()
        self._done = LightEvent()
        if reason is None:
            self._log.info("voice_stored", seconds=round(voice.seconds, 1))
        else:
            self._log.info("voice_not_stored", seconds=round(voice.seconds, 1))
        self._tell(events.speaker_assigned(ask, is_stored=reason is None, reason=reason))
