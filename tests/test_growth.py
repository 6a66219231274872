"""Segments that grow under their id, and are parted again where a correction concerns a part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.corrections import MAX_KEPT_CHARACTERS
from omi_rt.core.segments import Segment
from omi_rt.core.sentences import ends_sentence
from omi_rt.core.speakers import Identified, Merged
from omi_rt.core.voices import USER, Identity
from omi_rt.faces.growth import MAX_GROWN_CHARACTERS, GrowingSegments

RATE = 1000


def segment(
    name: str, start: float, end: float, text: str = "and", speaker: int = 0, channel: int = 0
) -> Segment:
    return Segment(name, speaker, int(start * RATE), int(end * RATE), channel, text.split())


def shown(segments: list[Segment]) -> list[tuple[str, str]]:
    return [(each.id, " ".join(each.words)) for each in segments]


def test_the_same_speaker_going_on_within_two_seconds_grows_the_segment() -> None:
    growing = GrowingSegments(RATE)
    assert shown(growing.add([segment("a", 0, 1, "one two")])) == [("a", "one two")]
    (grown,) = growing.add([segment("b", 3, 4, "three")])
    assert shown([grown]) == [("a", "one two three")]
    assert (grown.start, grown.end) == (0, 4000)


@pytest.mark.parametrize(
    "second",
    [
        segment("b", 3.001, 4),
        segment("b", 1.5, 2, speaker=1),
        segment("b", 1.5, 2, channel=1),
        segment("b", 2, 60.001),
        segment("b", 2, 3, "x" * MAX_GROWN_CHARACTERS),
    ],
    ids=["a longer pause", "another speaker", "another channel", "over a minute", "very long"],
)
def test_what_does_not_go_on_begins_another_segment(second: Segment) -> None:
    growing = GrowingSegments(RATE)
    growing.add([segment("a", 0, 1)])
    assert shown(growing.add([second])) == [("b", second.words[0])]


def test_of_long_texts_fewer_segments_are_kept() -> None:
    growing = GrowingSegments(RATE)
    for number in range(300):
        growing.add([segment(f"s{number}", 3 * number, 3 * number + 0.5, "x" * 9_000)])
    assert [each.id for each in growing.last(1000)] == [f"s{n}" for n in range(271, 300)]
    growing.add([segment("long", 900, 901, "x" * MAX_KEPT_CHARACTERS)])
    assert [each.id for each in growing.last(1000)] == ["long"]


@pytest.mark.parametrize(
    "text", ["Done.", "好。", "क्या?", "है।", "سچ۔", 'He said "no."', "Oui !", "¿Qué?»"]
)
def test_a_sentence_ends_in_any_script(text: str) -> None:
    assert ends_sentence(text)
    growing = GrowingSegments(RATE)
    growing.add([segment("a", 0, 1, text)])
    assert [each.id for each in growing.add([segment("b", 1.5, 2)])] == ["b"]


@pytest.mark.parametrize("text", ["", "no", "well,", "3.5 metres", "…", '"', "and so on:"])
def test_other_ends_are_no_ends_of_sentences(text: str) -> None:
    assert not ends_sentence(text)


def test_another_speaker_in_between_ends_the_growth() -> None:
    growing = GrowingSegments(RATE)
    growing.add([segment("a", 0, 1), segment("b", 1, 1.5, speaker=1)])
    assert [each.id for each in growing.add([segment("c", 1.6, 2)])] == ["c"]


def test_several_pieces_at_once_are_sent_once_in_order() -> None:
    growing = GrowingSegments(RATE)
    sent = growing.add(
        [segment("a", 0, 1, "x"), segment("b", 1, 2, "y", speaker=1), segment("c", 2, 3, "z", 1)]
    )
    assert shown(sent) == [("a", "x"), ("b", "y z")]


def test_a_correction_of_all_pieces_names_the_segment_and_sends_it_again_whole() -> None:
    growing = GrowingSegments(RATE)
    growing.add([segment("a", 0, 1, "x")])
    growing.add([segment("b", 1, 2, "y")])
    ids, corrected = growing.correct(Identified(0, USER, ("a", "b")))
    assert ids == ("a",)
    assert shown(corrected) == [("a", "x y")]
    assert corrected[0].is_user
    assert shown(growing.add([segment("c", 2, 3, "z")])) == [("c", "z")]


def test_a_correction_of_one_piece_parts_the_segment() -> None:
    growing = GrowingSegments(RATE)
    growing.add([segment("a", 0, 1, "x")])
    growing.add([segment("b", 1, 2, "y")])
    growing.add([segment("c", 2, 3, "z")])
    ids, corrected = growing.correct(Identified(0, Identity("anna"), ("b",)))
    assert ids == ("b",)
    assert shown(corrected) == [("a", "x"), ("b", "y"), ("c", "z")]
    assert [each.person_id for each in corrected] == [None, "anna", None]


def test_merged_speakers_are_sent_again_under_the_number_that_stays() -> None:
    growing = GrowingSegments(RATE)
    growing.add([segment("a", 0, 1, "x", speaker=2)])
    ids, corrected = growing.correct(Merged(2, 0, ("a", "unknown")))
    assert ids == ("a",)
    assert [each.speaker for each in corrected] == [0]


def test_a_corrected_segment_goes_on_growing_for_whoever_it_is_now() -> None:
    growing = GrowingSegments(RATE)
    growing.add([segment("a", 0, 1, "x", speaker=2)])
    growing.correct(Merged(2, 0, ("a",)))
    assert shown(growing.add([segment("b", 1, 2, "y", speaker=0)])) == [("a", "x y")]


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=300))
def test_whatever_comes_each_word_is_in_one_segment_and_the_memory_is_bounded(
    said: list[tuple[int, bool]],
) -> None:
    growing = GrowingSegments(RATE)
    client: dict[str, list[str]] = {}
    for number, (speaker, ends) in enumerate(said):
        text = f"w{number}" + ("." if ends else "")
        for each in growing.add([segment(f"i{number}", number, number + 1, text, speaker)]):
            client[each.id] = " ".join(each.words).split()
    words = [word.strip(".") for texts in client.values() for word in texts]
    assert words == [f"w{number}" for number in range(len(said))]
    assert growing._pieces <= 260
