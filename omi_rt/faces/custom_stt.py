"""The stock Omi app's "Custom STT": raw audio up, objects with ``segments`` down, nothing else.

The app takes each object without a ``type`` for new text, and joins neighbours of one speaker. It
reads the speaker as a number, and takes 0 for the user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omi_rt.core.asks import Ask, End, Pass
from omi_rt.core.json import JSONError, loads
from omi_rt.core.listen import parse_raw_listen
from omi_rt.core.updates import Final
from omi_rt.faces.face import Face, Opening

if TYPE_CHECKING:
    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.segments import Segment
    from omi_rt.core.updates import Update
    from omi_rt.faces.face import Call

USER_NUMBER = 0
"""What the app takes for the user. The session's speakers are counted from 1."""


class CustomSTTFace(Face):
    """Talks to the stock app."""

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format

    def read(self, text: str) -> Ask:
        """Read a text message. The app sends ``CloseStream``; whatever else comes asks nothing."""
        try:
            message = loads(text)
        except JSONError:
            return Pass()
        is_end = isinstance(message, dict) and message.get("type") == "CloseStream"
        return End() if is_end else Pass()

    def write(self, update: Update) -> list[Any]:
        """Write segments. Corrections have no form here: the app cannot take text back."""
        if isinstance(update, Final) and update.segments:
            return [{"segments": [self._written(segment) for segment in update.segments]}]
        return []

    def _written(self, segment: Segment) -> dict[str, Any]:
        return {
            "text": " ".join(segment.words),
            "start": self._format.seconds(segment.start),
            "end": self._format.seconds(segment.end),
            "speaker": USER_NUMBER if segment.is_user else segment.speaker + 1,
        }


def open_custom_stt(call: Call) -> Opening:
    """Read a request for ``/v1/stt``.

    Raises:
        BadRequest: the message names what is wrong.
    """
    request = parse_raw_listen(call.parameters)
    return Opening(request, CustomSTTFace(request.audio_format))
