"""Segments: the words of one final, grouped by speaker, as the device gets them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from omi_rt.core.values import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.voices import Identity
    from omi_rt.core.words import HeardWord


class Segment(Struct):
    """Consecutive words of one speaker."""

    id: str
    speaker: int
    start: int
    """Session position, in samples."""
    end: int
    channel: int
    words: list[str]
    spoken: int = 0
    """Samples that its words take, without the pauses between them."""
    is_user: bool = False
    person_id: str | None = None

    def __repr__(self) -> str:
        return f"Segment({self.id}, speaker={self.speaker}, start={self.start}, end={self.end})"

    def as_json(self, audio_format: AudioFormat) -> dict[str, Any]:
        """The segment dictionary of the documented system, with ``id`` and ``speaker_id``.

        Times are seconds on the session clock. ``channel`` is there where there are several.
        """
        rate = audio_format.sample_rate
        fields = {
            "id": self.id,
            "speaker": speaker_name(self.speaker),
            "speaker_id": self.speaker,
            # As `AudioFormat.seconds` rounds, which would be called twice for each segment.
            "start": round(self.start / rate, 6),
            "end": round(self.end / rate, 6),
            "text": " ".join(self.words),
            "is_user": self.is_user,
            "person_id": self.person_id,
        }
        if audio_format.channels > 1:
            fields["channel"] = self.channel
        return fields


@lru_cache(maxsize=128)
def speaker_name(number: int) -> str:
    """The label that the Omi app parses: ``SPEAKER_00``."""
    return f"SPEAKER_{number:02d}"


def make_segments(
    words: Iterable[tuple[int, HeardWord]],
    identity_of: Callable[[int], Identity | None],
    new_id: Callable[[], str],
) -> list[Segment]:
    """Group consecutive words of one speaker, each with the speaker's number, into segments.

    ``identity_of`` tells whose a number is, if that is known.
    """
    segments: list[Segment] = []
    for number, word in words:
        last = segments[-1] if segments else None
        if last is not None and last.speaker == number:
            end = word.end
            last.words.append(word.text)
            if end > last.end:
                last.end = end
            last.spoken += end - word.start
        else:
            identity = identity_of(number)
            segments.append(
                Segment(
                    id=new_id(),
                    speaker=number,
                    start=word.start,
                    end=word.end,
                    channel=word.channel,
                    words=[word.text],
                    spoken=word.end - word.start,
                    is_user=identity is not None and identity.is_user,
                    person_id=identity.person_id if identity is not None else None,
                )
            )
    return segments
