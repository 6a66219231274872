"""The device SDKs' self-hosted engine, ``/v3/stream``: raw audio up, transcripts down.

Its protocol is that of ``sdks/device/STT.md`` in BasedHardware/omi.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omi_rt.core.asks import Ask, End, NotUnderstood
from omi_rt.core.listen import parse_raw_listen
from omi_rt.core.updates import Final
from omi_rt.faces.face import Face, Opening

if TYPE_CHECKING:
    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.updates import Update
    from omi_rt.faces.face import Call

_END = "finalize"


class StreamFace(Face):
    """Talks to one of the device SDKs."""

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format

    def greet(self) -> list[Any]:
        """Tell the client that it may send: it waits for this."""
        return [{"type": "ready"}]

    def read(self, text: str) -> Ask:
        """Read a text message: the bare word ``finalize`` ends the audio."""
        return End() if text.strip() == _END else NotUnderstood(kind=None)

    def write(self, update: Update) -> list[Any]:
        """Write transcripts."""
        if not isinstance(update, Final) or not update.segments:
            return []
        segments = [segment.as_json(self._format) for segment in update.segments]
        text = " ".join(segment["text"] for segment in segments)
        return [{"type": "transcript", "text": text, "segments": segments}]


def open_stream(call: Call) -> Opening:
    """Read a request for ``/v3/stream``.

    Raises:
        BadRequest: the message names what is wrong.
    """
    request = parse_raw_listen(call.parameters)
    return Opening(request, StreamFace(request.audio_format))
