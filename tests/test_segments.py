"""Segments: the words of one final, grouped by speaker."""

from __future__ import annotations

from omi_rt.core.segments import make_segments
from omi_rt.core.words import HeardWord


def test_a_segment_reaches_to_the_end_of_its_latest_word_whichever_that_is() -> None:
    words = [(0, HeardWord("amber", 0, 1000, 0, 0)), (0, HeardWord("bako", 200, 600, 0, 0))]
    (segment,) = make_segments(words, lambda _number: None, lambda: "id")
    assert (segment.start, segment.end, segment.spoken) == (0, 1000, 1400)
