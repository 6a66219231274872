"""An timeline translates a connection's times, and keeps every word exactly once."""

from __future__ import annotations

from json import dumps
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omi_rt.core.audio import AudioFormat
from omi_rt.core.coverage import Coverage
from omi_rt.core.deepgram import Results, parse_message
from omi_rt.core.heard import Discard, Heard, LeadInWord, superseded
from omi_rt.core.timeline import MAX_LEAD_IN_WORDS, Timeline
from omi_rt.core.values import replace
from omi_rt.core.voices import Place
from omi_rt.core.words import MAX_WORDS, HeardWord, SaidWords

MONO = AudioFormat(1000, 1)
STEREO = AudioFormat(1000, 2)


def word(text: str, start: float | None, end: float | None, **more: Any) -> dict[str, Any]:
    return {"word": text, "start": start, "end": end, **more}


def final(
    start: float | None, end: float, *words: dict[str, Any], channel: int = 0, of: int = 1
) -> Results:
    message = parse_message(
        dumps(
            {
                "type": "Results",
                "is_final": True,
                "channel_index": [channel, of],
                "start": start,
                "duration": end - (start or 0.0),
                "channel": {"alternatives": [{"transcript": "", "words": list(words)}]},
            }
        )
    )
    assert isinstance(message, Results)
    return message


def received(seconds: float, audio_format: AudioFormat = MONO) -> Coverage:
    coverage = Coverage(audio_format, 100)
    coverage.receive(bytes(int(seconds * 1000) * audio_format.frame_bytes))
    return coverage


def hear(timeline: Timeline, results: Results, coverage: Coverage) -> Heard:
    """Hear a final of an timeline that began no later than with its first session audio."""
    if timeline.sent_position is not None:
        timeline.begin(coverage)
    return timeline.hear(results, coverage)


def apply(timeline: Timeline, results: Results, coverage: Coverage) -> tuple[list[HeardWord], bool]:
    heard = hear(timeline, results, coverage)
    return heard.words, heard.finalise(coverage)


def texts(timeline: Timeline, coverage: Coverage, results: Results) -> list[str]:
    return [heard.text for heard in apply(timeline, results, coverage)[0]]


def bare_final(start: float, duration: float) -> Results:
    """A final with a transcript of one word, and no list of words."""
    message = {
        "type": "Results",
        "is_final": True,
        "channel_index": [0, 1],
        "start": start,
        "duration": duration,
        "channel": {"alternatives": [{"transcript": "A."}]},
    }
    results = parse_message(dumps(message))
    assert isinstance(results, Results)
    return results


def test_times_are_moved_to_the_session_clock() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    coverage.finalise(0, 4000)
    timeline.record_sent(4000, 3000)
    heard, _ = apply(timeline, final(0, 2, word("a", 0.5, 0.75)), coverage)
    assert [(w.start, w.end) for w in heard] == [(4500, 4750)]
    assert coverage.watermark == 6000


def test_a_doubled_final_brings_nothing() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_sent(0, 5000)
    results = final(0, 2, word("a", 0.5, 0.75))
    assert texts(timeline, coverage, results) == ["a"]
    assert texts(timeline, coverage, results) == []
    assert coverage.balance().is_exact


def test_a_word_shorter_than_a_sample_comes_once_though_its_final_is_doubled() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_sent(0, 5000)
    results = final(0, 2, word("a", 1.49961, 1.49964, speaker=0))
    assert texts(timeline, coverage, results) == ["a"]
    assert texts(timeline, coverage, results) == []


def test_a_word_that_begins_before_its_final_is_looked_up_where_the_audio_before_it_was_sent() -> (
    None
):
    coverage, timeline = received(30), Timeline(MONO)
    timeline.record_sent(0, 2000)
    timeline.record_sent(12_000, 3000)
    apply(timeline, final(0, 2, word("a", 0.5, 0.8)), coverage)
    heard, _ = apply(timeline, final(2, 4, word("b", 1.9, 2.6)), coverage)
    assert [(w.text, w.start, w.end) for w in heard] == [("b", 1900, 12_600)]


def test_a_word_on_the_border_belongs_to_the_side_of_its_middle() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    coverage.finalise(0, 2000)
    timeline.record_sent(2000, 5000)
    heard, _ = apply(timeline, final(0, 3, word("after", 0.0, 0.1)), coverage)
    assert [w.text for w in heard] == ["after"]
    again, overlapping = received(10), Timeline(MONO)
    overlapping.record_sent(0, 5000)
    again.finalise(0, 2000)
    heard, _ = apply(
        overlapping, final(0, 3, word("before", 1.5, 2.4), word("after", 1.7, 2.4)), again
    )
    assert [(w.text, w.start) for w in heard] == [("after", 2000)]


def test_a_word_beyond_its_final_is_known_when_it_comes_again() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_sent(0, 5000)
    assert texts(timeline, coverage, final(0, 1, word("a", 0.9, 1.6))) == ["a"]
    assert coverage.watermark == 1000
    assert texts(timeline, coverage, final(1, 3, word("a", 0.9, 1.6), word("b", 2, 2.5))) == ["b"]


def test_after_a_word_that_reaches_over_its_final_the_next_one_is_heard() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_sent(0, 5000)
    apply(timeline, final(0, 1, word("a", 0.8, 1.4)), coverage)
    assert texts(timeline, coverage, final(1, 2, word("b", 1.05, 1.2), word("a", 1.3, 1.5))) == [
        "b",
        "a",
    ]


def test_a_first_word_that_begins_before_its_final_keeps_its_times() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_sent(0, 5000)
    apply(timeline, final(0, 1, word("a", 0.6, 0.8)), coverage)
    heard, _ = apply(timeline, final(1, 2, word("b", 0.75, 1.1)), coverage)
    assert [(w.text, w.start, w.end) for w in heard] == [("b", 750, 1100)]


def test_a_word_across_two_finals_comes_once_whichever_has_it() -> None:
    for first, second, expected in [
        ([word("a", 0.9, 1.3)], [], ["a"]),
        ([], [word("a", 0.9, 1.3)], ["a"]),
        ([word("a", 0.9, 1.3)], [word("A,", 0.9, 1.3)], ["a"]),
        ([word("a", 0.9, 1.3)], [word("a", 1.4, 1.8)], ["a", "a"]),
        ([word("a", 0.9, 1.3)], [word("a", 0.95, 1.7)], ["a", "a"]),
    ]:
        coverage, timeline = received(10), Timeline(MONO)
        timeline.record_sent(0, 5000)
        heard = texts(timeline, coverage, final(0, 1, *first))
        heard += texts(timeline, coverage, final(1, 2, *second))
        assert heard == expected


def test_other_words_for_audio_that_has_its_words_bring_nothing() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_sent(0, 5000)
    apply(timeline, final(0, 2, word("a", 0.5, 0.9), word("b", 1.0, 1.5)), coverage)
    for end in (2.0, 2.05):
        heard = hear(timeline, final(0, 2, word("a b", 0.0, end)), coverage)
        assert heard.words == []
        assert heard.discarded == {Discard.REPEATED: 1}


def test_words_of_long_ago_come_again_even_when_they_are_forgotten() -> None:
    coverage, timeline = received(60), Timeline(MONO)
    timeline.record_sent(0, 60_000)
    for second in range(30):
        apply(
            timeline, final(second, second + 1, word(f"w{second}", second, second + 0.5)), coverage
        )
    assert texts(timeline, coverage, final(2, 4, word("w2", 2, 2.5), word("w3", 3, 3.5))) == []


def test_a_new_epoch_knows_the_word_across_its_origin() -> None:
    """The audio before the origin goes up again: a word that ended in it, or was delivered, is known."""
    for delivered, again, expected in [
        ([word("a", 0.7, 0.9)], [word("a", 0.72, 0.93)], []),
        ([word("a", 0.7, 1.2)], [word("a", 0.7, 1.1)], []),
        ([word("a", 0.5, 0.6)], [word("b", 0.8, 1.15)], ["b"]),
        ([word("a", 0.5, 0.6)], [word("?", 0.5, 1.02)], []),
        ([word("a", 0.5, 0.6)], [word("b", 0.9, 1.3)], ["b"]),
    ]:
        coverage, former = received(10), Timeline(MONO)
        former.record_sent(0, 5000)
        apply(former, final(0, 1, *delivered), coverage)
        timeline = Timeline(MONO)
        timeline.record_sent(500, 4500)
        moved = [{**w, "start": w["start"] - 0.5, "end": w["end"] - 0.5} for w in again]
        assert texts(timeline, coverage, final(0, 2, *moved)) == expected


def test_a_word_across_the_origin_comes_once_though_its_final_is_doubled() -> None:
    coverage, former = received(10), Timeline(MONO)
    former.record_sent(0, 5000)
    apply(former, final(0, 1, word("a", 0.5, 0.6)), coverage)
    timeline = Timeline(MONO)
    timeline.record_sent(500, 4500)
    results = final(0, 2, word("b", 0.2, 0.65))
    heard, _ = apply(timeline, results, coverage)
    assert [(w.text, w.start, w.end) for w in heard] == [("b", 1000, 1150)]
    assert texts(timeline, coverage, results) == []
    assert texts(timeline, coverage, results) == []


def test_a_word_across_the_origin_is_known_when_it_comes_again_long_after() -> None:
    """A final may repeat the last word of the one before: 15 s of silence may lie between them."""
    coverage, former = received(30), Timeline(MONO)
    former.record_sent(0, 5000)
    apply(former, final(0, 1, word("a", 0.82, 1.0)), coverage)
    timeline = Timeline(MONO)
    timeline.record_sent(500, 29_500)
    results = final(0.3, 17, word("a", 0.35, 0.53), word("b", 16, 16.5))
    assert texts(timeline, coverage, results) == ["b"]
    assert texts(timeline, coverage, results) == []


def test_a_bare_transcript_that_reaches_over_the_origin_is_judged_by_its_middle() -> None:
    coverage, former = received(10), Timeline(MONO)
    former.record_sent(0, 5000)
    apply(former, final(0, 1, word("a", 0.8, 1.0)), coverage)
    timeline = Timeline(MONO)
    timeline.record_sent(500, 4500)
    heard = hear(timeline, bare_final(0.1, 0.45), coverage)
    assert (heard.words, heard.discarded) == ([], {Discard.REPLAYED: 1})


def test_a_word_that_is_said_to_begin_with_the_connection_is_new_where_it_ends_long_after() -> None:
    # Of several channels the slowest decides where the connection begins; this one was ahead of it.
    coverage, former = received(10), Timeline(MONO)
    former.record_sent(0, 9000)
    apply(former, final(0, 4, word("a", 0.2, 0.4)), coverage)
    timeline = Timeline(MONO)
    timeline.record_sent(3000, 6000)
    heard = hear(timeline, final(0, 3, word("b", 0.0, 1.4)), coverage)
    assert [(w.text, w.start, w.end) for w in heard.words] == [("b", 4000, 4400)]
    cut = Timeline(MONO)
    cut.record_sent(3500, 5500)
    heard = hear(cut, final(0, 3, word("piece", 0.0, 0.9)), coverage)
    assert (heard.words, heard.discarded) == ([], {Discard.REPLAYED: 1})


def test_a_bare_transcript_that_comes_again_is_known_though_its_word_reached_over_its_final() -> (
    None
):
    coverage, timeline = received(20), Timeline(MONO)
    timeline.record_sent(0, 15_000)
    assert texts(timeline, coverage, final(9.6, 10.9, word("a", 10.68, 11.25))) == ["a"]
    heard = hear(timeline, bare_final(9.6, 1.3), coverage)
    assert (heard.words, heard.discarded) == ([], {Discard.REPEATED: 1})


def test_silence_that_was_passed_before_the_first_final_makes_no_word_of_it_a_replay() -> None:
    coverage, timeline = received(30), Timeline(MONO)
    timeline.record_sent(0, 30_000)
    timeline.begin(coverage)
    coverage.finalise_silence(0, 12_000)
    assert texts(timeline, coverage, final(0, 20, word("soft", 3, 3.4), word("a", 14, 15))) == [
        "soft",
        "a",
    ]


def test_a_claim_that_a_later_word_contradicts_is_the_last_one_that_is_believed() -> None:
    """Answers are 25 s late: what the finals claim to cover, 15 s too much, had gone up long before."""
    coverage, timeline = received(60), Timeline(MONO)
    timeline.record_sent(0, 40_000)
    heard = hear(timeline, final(0, 17, word("a", 1, 2)), coverage)
    heard.finalise(coverage)
    assert (heard.claims_unsent, coverage.watermark) == (False, 17_000)
    for end, told in ((4, True), (7, False), (19, False)):
        heard = hear(timeline, final(end - 2, end + 15, word("b", end - 1, end)), coverage)
        heard.finalise(coverage)
        assert (heard.claims_unsent, len(heard.words)) == (told, 1)
        assert coverage.watermark == max(17_000, end * 1000)
    later = Timeline(MONO)
    later.record_sent(19_000, 30_000)
    hear(later, final(0, 17, word("c", 1, 2)), coverage).finalise(coverage)
    assert coverage.watermark == 21_000, "the session has learned it"


def test_a_word_that_comes_again_or_overlaps_a_little_contradicts_nothing() -> None:
    coverage, timeline = received(60), Timeline(MONO)
    timeline.record_sent(0, 40_000)
    for results in (
        final(0, 5, word("a", 1, 2), word("b", 3, 4.4)),
        final(0, 5, word("a", 1, 2), word("b", 3, 4.4)),
        final(4, 8, word("c", 4.5, 4.9), word("d", 6, 7)),
    ):
        assert not hear(timeline, results, coverage).claims_unsent
    assert coverage.trusts_ends


def test_an_epoch_lacks_times_only_where_no_final_has_any() -> None:
    for messages, lacks in [("", False), ("u", True), ("t", False), ("ut", False), ("tu", False)]:
        coverage, timeline = received(10), Timeline(MONO)
        timeline.record_sent(0, 5000)
        for number, message in enumerate(messages):
            start = None if message == "u" else number
            results = final(start, number + 1, word("a", number, number + 0.5))
            hear(timeline, results, coverage)
        assert timeline.lacks_times is lacks, messages


def test_a_new_epoch_knows_a_word_by_its_end_where_its_start_is_before_its_final() -> None:
    coverage, former = received(10), Timeline(MONO)
    former.record_sent(0, 5000)
    apply(former, final(0, 1, word("a", 0.8, 0.98)), coverage)
    timeline = Timeline(MONO)
    timeline.record_sent(500, 4500)
    assert texts(timeline, coverage, final(0.3, 2, word("a", 0.08, 0.52))) == []


def test_a_word_of_audio_that_was_not_sent_covers_nothing() -> None:
    coverage, timeline = received(20), Timeline(MONO)
    timeline.record_sent(0, 5000)
    heard = hear(timeline, final(10, 15, word("ghost", 11, 11.2)), coverage)
    assert not heard.finalise(coverage)
    assert coverage.watermark == 0


def test_a_final_that_claims_more_than_was_sent_covers_what_its_words_cover() -> None:
    coverage, timeline = received(20), Timeline(MONO)
    timeline.record_sent(0, 5000)
    heard = hear(timeline, final(0, 9, word("a", 1, 2)), coverage)
    heard.finalise(coverage)
    assert heard.claims_unsent
    assert coverage.watermark == 2000
    empty = hear(timeline, final(2, 12), coverage)
    assert (empty.claims_unsent, empty.finalise(coverage)) == (True, False)
    timeline.record_sent(5000, 5000)
    heard = hear(timeline, final(2, 8, word("b", 3, 4)), coverage)
    assert [(w.text, w.start) for w in heard.words] == [("b", 3000)]


def test_every_word_that_is_dropped_has_its_reason() -> None:
    coverage, timeline = received(20, STEREO), Timeline(STEREO)
    timeline.record_foreign(1000)
    coverage.finalise(0, 2000)
    coverage.finalise(1, 2000)
    timeline.record_sent(1500, 5000)
    heard = hear(
        timeline,
        final(
            0,
            3,
            word("lead-in", 0.2, 0.6),
            word("replayed", 1.1, 1.4),
            word("new", 2, 2.5),
            word("unsent", 9, 10),
            of=2,
        ),
        coverage,
    )
    assert [w.text for w in heard.words] == ["new"]
    assert heard.discarded == {Discard.FOREIGN: 1, Discard.REPLAYED: 1, Discard.UNSENT: 1}
    other = hear(timeline, final(0, 3, word("x", 1, 2), channel=5, of=6), coverage)
    assert other.discarded == {Discard.NO_CHANNEL: 1}
    assert superseded(final(0, 3, word("x", 1, 2))).discarded == {Discard.SUPERSEDED: 1}


def test_a_final_beyond_what_was_sent_is_clamped() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_sent(0, 1000)
    assert texts(timeline, coverage, final(0, 1e300, word("a", 0.2, 9e99))) == ["a"]
    assert coverage.watermark == 1000
    assert coverage.balance().is_exact


def test_audio_dropped_between_two_sends_leaves_later_times_exact() -> None:
    coverage, timeline = received(20), Timeline(MONO)
    timeline.record_sent(0, 2000)
    timeline.record_sent(7000, 3000)
    heard, _ = apply(timeline, final(0, 4, word("a", 0.5, 1.0), word("b", 2.5, 3.0)), coverage)
    assert [(w.start, w.end) for w in heard] == [(500, 1000), (7500, 8000)]
    assert coverage.watermark == 9000


def test_silence_put_in_before_the_audio_moves_no_session_time() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_foreign(100)
    timeline.record_sent(0, 2000)
    heard, _ = apply(timeline, final(0, 1.1, word("a", 0.1, 0.6)), coverage)
    assert [(w.start, w.end) for w in heard] == [(0, 500)]
    assert coverage.watermark == 1000


def test_a_lead_in_has_no_more_words_than_a_bound_however_often_they_come() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_foreign(3000, anchor=0)
    words = [word("profile", 1, 2, speaker=4)] * 1500
    for _ in range(5):
        # It covers nothing, so each time its words are new.
        hear(timeline, final(0, 0, *words), coverage)
    assert timeline.lead_in_words == [LeadInWord(0, 0, 4, 1000)] * MAX_LEAD_IN_WORDS


def test_words_of_the_lead_in_are_votes_and_never_appear() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_foreign(3000, anchor=0)
    timeline.record_foreign(1000)
    timeline.record_sent(500, 2000)
    heard, _ = apply(
        timeline,
        final(0, 5, word("profile", 1, 2, speaker=4), word("live", 4.5, 5, speaker=4)),
        coverage,
    )
    assert [(w.text, w.start, w.label) for w in heard] == [("live", 1000, 4)]
    assert timeline.lead_in_words == [LeadInWord(0, 0, 4, 1000)]


@pytest.mark.parametrize(
    ("start", "end", "heard_at"),
    [(3.1, 4.4, (0, 400)), (2.8, 4.4, (0, 400)), (2.8, 4.1, None), (3.1, 3.9, None)],
    ids=["begins-in-silence", "begins-in-an-anchor", "reaches-over-silence", "in-silence"],
)
def test_a_word_that_seems_to_lie_in_the_silence_before_the_session_is_where_most_of_it_is(
    start: float, end: float, heard_at: tuple[int, int] | None
) -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_foreign(3000, anchor=0)
    timeline.record_foreign(1000)
    timeline.record_sent(0, 2000)
    heard = hear(timeline, final(2, 5, word("live", start, end)), coverage)
    found = [(each.start, each.end) for each in heard.words]
    assert found == ([] if heard_at is None else [heard_at])
    assert timeline.lead_in_words == []


def test_words_of_the_session_in_the_lead_in_know_where_they_were_said() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_foreign(1000, anchor=0, said_at=Place(5000, 0))
    timeline.record_foreign(1000, anchor=0, said_at=Place(6000, 0))
    timeline.record_foreign(1000)
    timeline.record_sent(8000, 1000)
    # The second one begins in one message and has its middle in the next.
    words = word("a", 0.25, 0.75, speaker=4), word("b", 0.9, 1.5, speaker=4)
    heard = hear(timeline, final(0, 2, *words), coverage)
    expected = [
        LeadInWord(0, 0, 4, 500, Place(5250, 0)),
        LeadInWord(0, 0, 4, 600, Place(5900, 0)),
    ]
    assert timeline.lead_in_words == expected
    # More may follow, until a final covers audio behind them.
    assert timeline.take_lead_in_words(heard) == []
    heard = hear(timeline, final(2, 3.5), coverage)
    assert timeline.take_lead_in_words(heard) == expected
    assert timeline.lead_in_words == []


def test_a_final_inside_the_lead_in_moves_no_watermark() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_foreign(3000, anchor=0)
    assert not apply(timeline, final(0, 3), coverage)[1]
    assert coverage.watermark == 0


def test_channels_have_watermarks_of_their_own() -> None:
    coverage, timeline = received(10, STEREO), Timeline(STEREO)
    timeline.record_sent(0, 5000)
    apply(timeline, final(0, 4, channel=0, of=2), coverage)
    assert (coverage.watermark_of(0), coverage.watermark_of(1)) == (4000, 0)
    assert texts(timeline, coverage, final(0, 2, word("b", 1, 1.5), channel=1, of=2)) == ["b"]
    assert coverage.watermark == 2000


def test_one_result_for_all_channels_moves_all_watermarks() -> None:
    coverage, timeline = received(10, STEREO), Timeline(STEREO)
    timeline.record_sent(0, 5000)
    apply(timeline, final(0, 4), coverage)
    assert coverage.watermark == 4000


def test_a_channel_that_the_session_does_not_have_brings_nothing() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_sent(0, 5000)
    assert apply(timeline, final(0, 4, word("a", 1, 2), channel=3, of=4), coverage) == ([], False)


def test_a_word_without_speaker_takes_the_one_before_or_the_first_of_its_channel() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_sent(0, 9000)
    heard, _ = apply(
        timeline,
        final(0, 4, word("a", 0, 1), word("b", 1, 2, speaker=3), word("c", 2, 3)),
        coverage,
    )
    assert [w.label for w in heard] == [3, 3, 3]
    heard, _ = apply(timeline, final(4, 8, word("d", 5, 6), word("e", 6, 7, speaker=1)), coverage)
    assert [w.label for w in heard] == [3, 1]


def test_words_without_usable_times_stand_at_the_end_of_the_one_before() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_sent(0, 5000)
    heard, _ = apply(
        timeline,
        final(1, 4, word("a", None, None), word("b", 2, 2.5), word("c", -1, None)),
        coverage,
    )
    assert [(w.text, w.start, w.end) for w in heard] == [
        ("a", 1000, 1000),
        ("b", 2000, 2500),
        ("c", 2500, 2500),
    ]


def test_metadata_within_half_a_second_covers_all_that_was_sent() -> None:
    timeline = Timeline(MONO)
    timeline.record_sent(0, 5000)
    assert timeline.covers_all(5.5)
    assert timeline.covers_all(4.5)
    assert not timeline.covers_all(5.501)
    assert not timeline.covers_all(None)


# What a lying provider may say: any times at all, in any order.
any_time = st.one_of(
    st.none(),
    st.floats(-10, 60),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=3),
    st.booleans(),
)
any_word = st.fixed_dictionaries(
    {"word": st.one_of(st.text(max_size=4), st.integers())},
    optional={"start": any_time, "end": any_time, "speaker": st.one_of(any_time, st.integers())},
)


@settings(max_examples=200)
@given(
    sends=st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 2000)), max_size=6),
    finals=st.lists(
        st.tuples(any_time, any_time, st.lists(any_word, max_size=4), st.integers(-1, 3)),
        max_size=8,
    ),
)
def test_nothing_that_a_provider_says_breaks_the_ledger_or_the_clock(
    sends: list[tuple[int, int]], finals: list[tuple[Any, Any, list[Any], int]]
) -> None:
    coverage, timeline = received(40, STEREO), Timeline(STEREO)
    position = 0
    for gap, samples in sends:
        position += gap
        timeline.record_sent(position, samples)
        position += samples
    sent = timeline.sent_position or 0
    for start, duration, words, channel in finals:
        message = parse_message(
            dumps(
                {
                    "type": "Results",
                    "is_final": True,
                    "channel_index": [channel, 2],
                    "start": start,
                    "duration": duration,
                    "channel": {"alternatives": [{"transcript": "x", "words": words}]},
                }
            )
        )
        if not isinstance(message, Results):
            continue
        before = [coverage.watermark_of(c) for c in range(2)]
        heard, _ = apply(timeline, message, coverage)
        assert coverage.balance().is_exact
        assert all(coverage.watermark_of(c) >= before[c] for c in range(2))
        assert all(coverage.watermark_of(c) <= sent for c in range(2))
        for each in heard:
            assert 0 <= each.start <= each.end <= max(sent, each.start)


@given(
    cuts=st.lists(st.integers(0, 20_000), min_size=1, max_size=6, unique=True),
    words=st.lists(st.integers(0, 199), min_size=1, max_size=40, unique=True),
)
def test_over_any_reconnects_at_any_finals_every_word_comes_exactly_once(
    cuts: list[int], words: list[int]
) -> None:
    """Words of 60 ms on a grid of 100 ms; each connection ends after finals up to one cut."""
    coverage = received(20)
    spoken = [(n, n * 0.1, n * 0.1 + 0.06) for n in sorted(words)]
    heard: list[tuple[str, int]] = []
    for cut in [*sorted(cuts), 20_000]:
        origin = coverage.watermark
        timeline = Timeline(MONO)
        timeline.record_sent(origin, 20_000 - origin)
        if cut <= origin:
            continue
        offset = origin / 1000
        # The provider hears what begins behind the origin, and gives a word on the side of its middle.
        inside = [
            word(str(n), max(0.0, start - offset), end - offset)
            for n, start, end in spoken
            if offset <= (start + end) / 2 < cut / 1000
        ]
        brought, _ = apply(timeline, final(0, cut / 1000 - offset, *inside), coverage)
        heard += [(each.text, each.start) for each in brought]
    assert [text for text, _ in heard] == [str(n) for n, _, _ in spoken]
    assert coverage.balance().finalised == 20_000


_seconds = st.one_of(
    st.none(), st.integers(-1, 60).map(lambda tenths: tenths / 10), st.floats(0.0, 6.0)
)
_any_word = st.builds(
    word,
    st.sampled_from(["a", "b", "c", "d", " e ", ""]),
    _seconds,
    _seconds,
    speaker=st.sampled_from([None, 0, 1]),
    confidence=st.sampled_from([None, 0.5]),
)


@settings(deadline=None, max_examples=300)
@given(
    runs=st.lists(st.tuples(st.integers(0, 2000), st.booleans()), min_size=1, max_size=3),
    finals=st.lists(
        st.tuples(_seconds, st.floats(0.0, 6.0), st.lists(_any_word, min_size=1, max_size=4)),
        max_size=5,
    ),
    ordered=st.booleans(),
    origin=st.integers(0, 1500),
)
@example(
    runs=[(1000, True), (2000, False)],
    finals=[(1.0, 1.0, [word("a", 1.2, 1.5, speaker=0)])],
    ordered=False,
    origin=0,
)
def test_a_final_means_the_same_whether_or_not_its_words_need_looking_at(
    runs: list[tuple[int, bool]],
    finals: list[tuple[float | None, float, list[dict[str, Any]]]],
    ordered: bool,
    origin: int,
) -> None:
    """A word without text brings nothing, but has each rule applied to each word in turn."""
    outcomes = []
    for nothing in ([], [word("", None, None)]):
        coverage, timeline = received(10), Timeline(MONO)
        position, brought = 0, []
        coverage.finalise(0, origin)
        timeline.begin(coverage)
        for samples, is_foreign in runs:
            if is_foreign:
                timeline.record_foreign(samples, 0)
            else:
                timeline.record_sent(position, samples)
                position += samples
        for number, (start, end, words) in enumerate(finals):
            if ordered:
                # As a provider's finals come: each behind the one before.
                start, end = number * 1.0, number + 1.0
                for place, each in enumerate(words):
                    each["start"] = number + place / 5
                    each["end"] = each["start"] + 0.15
            heard = timeline.hear(final(start, max(end, start or 0.0), *words, *nothing), coverage)
            heard.finalise(coverage)
            # When the words are remembered may differ; what is remembered may not.
            brought.append(replace(heard, remember_from=None))
        state = coverage.watermark, coverage.said, timeline.heard_until(0), timeline.lacks_times
        outcomes.append((brought, state, timeline.lead_in_words))
    assert outcomes[0] == outcomes[1]


def test_a_delivered_word_is_known_as_long_as_it_ends_behind_what_is_forgotten() -> None:
    said = SaidWords()
    said.add([HeardWord(str(n), n, n + 1, 0, 0) for n in range(10)], (0, 10))
    said.forget(6)
    known = [n for n in range(10) if said.has_like(HeardWord("x", n, n + 1, 0, 0))]
    assert known == [5, 6, 7, 8, 9]
    said.add([HeardWord("x", n, n + 1, 0, 0) for n in range(10, 10 + MAX_WORDS)], (0, 2000))
    said.forget(6)
    assert not said.has_like(HeardWord("x", 9, 10, 0, 0))
    assert said.has_like(HeardWord("x", 10, 11, 0, 0))


# Interims


def previewed(timeline: Timeline, results: Results, coverage: Coverage) -> list[tuple[str, int]]:
    return [(heard.text, heard.start) for heard in timeline.preview(results, coverage).words]


def test_an_interim_is_on_the_session_clock_and_says_how_far_it_reaches() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    coverage.finalise(0, 4000)
    timeline.record_sent(4000, 3000)
    timeline.begin(coverage)
    heard = timeline.preview(final(0, 2, word("a", 0.5, 0.75, speaker=3)), coverage)
    assert [(w.text, w.start, w.end, w.label) for w in heard.words] == [("a", 4500, 4750, 3)]
    assert (heard.channels, heard.covered) == (range(1), 6000)
    assert coverage.watermark == 4000, "an interim covers nothing"


def test_an_interim_brings_what_is_behind_the_watermark_and_begins_no_sooner_than_the_epoch() -> (
    None
):
    coverage, timeline = received(10), Timeline(MONO)
    coverage.finalise(0, 1000)
    timeline.record_sent(500, 9000)
    timeline.begin(coverage)
    across = final(0, 2, word("before", 0.1, 0.8), word("a", 0.4, 0.9), word("b", 1.0, 1.2))
    assert previewed(timeline, across, coverage) == [("a", 1000), ("b", 1500)]
    coverage.finalise(0, 1650)
    assert previewed(timeline, across, coverage) == []
    coverage = received(10)
    coverage.finalise(0, 1500)
    assert previewed(timeline, across, coverage) == [("b", 1500)], "a lies before the watermark"


def test_an_interim_leaves_out_what_was_delivered_and_is_not_remembered() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_sent(0, 5000)
    assert texts(timeline, coverage, final(0, 1, word("a", 0.9, 1.6))) == ["a"]
    interim = final(1, 3, word("other", 1.0, 1.6), word("b", 2.0, 2.5))
    assert previewed(timeline, interim, coverage) == [("b", 2000)]
    assert previewed(timeline, interim, coverage) == [("b", 2000)]
    assert texts(timeline, coverage, final(1, 3, word("b", 2.0, 2.5))) == ["b"]


def test_who_speaks_in_an_interim_does_not_speak_in_the_final_behind_it() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_sent(0, 5000)
    apply(timeline, final(0, 1, word("a", 0.2, 0.4, speaker=1)), coverage)
    timeline.preview(final(1, 2, word("x", 1.2, 1.4, speaker=7)), coverage)
    heard, _ = apply(timeline, final(1, 2, word("b", 1.2, 1.4)), coverage)
    assert [w.label for w in heard] == [1]


def test_an_interim_of_no_channel_or_before_any_session_audio_brings_nothing() -> None:
    coverage, timeline = received(10, STEREO), Timeline(STEREO)
    timeline.record_foreign(1000)
    interim = final(0, 1, word("a", 0.2, 0.4), channel=1, of=2)
    nothing = Heard([], range(0), None)
    assert timeline.preview(interim, coverage) == nothing
    timeline.begin(coverage)
    timeline.record_sent(0, 3000)
    other = final(1, 2, word("a", 1.2, 1.4), channel=1, of=2)
    assert previewed(timeline, other, coverage) == [("a", 200)]
    assert timeline.preview(other, coverage).channels == range(1, 2)
    assert timeline.preview(final(1, 2, word("a", 1.2, 1.4), channel=2, of=3), coverage) == nothing


def test_an_interim_without_times_reaches_nowhere() -> None:
    coverage, timeline = received(10), Timeline(MONO)
    timeline.record_sent(0, 5000)
    timeline.begin(coverage)
    message = {
        "type": "Results",
        "is_final": False,
        "channel_index": [0, 1],
        "channel": {"alternatives": [{"transcript": "a", "words": [word("a", 0.2, 0.4)]}]},
    }
    interim = parse_message(dumps(message))
    assert isinstance(interim, Results)
    heard = timeline.preview(interim, coverage)
    assert ([w.text for w in heard.words], heard.covered) == (["a"], None)
