"""What the client makes of a session's events, in words and in its transcript."""

from __future__ import annotations

from typing import Any

from omi_rt.client.report import StreamReport


def segment(number: int, text: str, **more: Any) -> dict[str, Any]:
    speaker = f"SPEAKER_{number:02d}"
    known = {"is_user": False, "person_id": None}
    return {"id": text, "speaker": speaker, "speaker_id": number, "text": text, **known, **more}


def test_one_voice_under_three_numbers_becomes_one_speaker_and_the_user_where_it_is_said() -> None:
    report = StreamReport()
    report.add([segment(0, "one"), segment(1, "two"), segment(2, "three")])
    lines = [
        report.describe(event)
        for event in (
            {"type": "speakers_merged", "from": 1, "into": 0, "segment_ids": ["two"]},
            {
                "type": "speaker_identified",
                "speaker": "SPEAKER_00",
                "is_user": True,
                "person_id": None,
                "segment_ids": ["one", "two"],
            },
            {"type": "speakers_merged", "from": 2, "into": 0, "segment_ids": ["three"]},
        )
    ]
    assert lines == [
        "SPEAKER_01 is SPEAKER_00",
        "SPEAKER_00 is the user",
        "SPEAKER_02 is SPEAKER_00",
    ]
    assert report.is_corrected
    assert [s["speaker"] for s in report.segments] == ["SPEAKER_00"] * 3
    assert [s["speaker_id"] for s in report.segments] == [0, 0, 0]
    assert [s["is_user"] for s in report.segments] == [True, True, False]


def test_a_person_is_named_and_an_identity_can_be_taken_back() -> None:
    report = StreamReport()
    report.add([segment(3, "hello")])
    known = {"type": "speaker_identified", "speaker": "SPEAKER_03", "segment_ids": ["hello"]}
    line = report.describe({**known, "is_user": False, "person_id": "bob"})
    assert line == "SPEAKER_03 is bob"
    assert report.segments[0]["person_id"] == "bob"
    line = report.describe({**known, "is_user": False, "person_id": None})
    assert line == "SPEAKER_03 is nobody known after all"
    assert report.segments[0]["person_id"] is None


def test_of_a_speaker_who_turns_out_to_be_the_user_only_the_named_segments_are() -> None:
    report = StreamReport()
    report.add([segment(0, "mine"), segment(0, "hers")])
    event = {"type": "speaker_identified", "speaker": "SPEAKER_00", "is_user": True}
    report.describe({**event, "person_id": None, "segment_ids": ["mine"]})
    assert [s["is_user"] for s in report.segments] == [True, False]
    # Taken back it is from all of them, also from those that are too old to be named.
    report.describe({**event, "is_user": False, "person_id": None, "segment_ids": []})
    assert [s["is_user"] for s in report.segments] == [False, False]


def test_what_corrects_nothing_that_was_shown_is_no_correction() -> None:
    report = StreamReport()
    report.describe({"type": "speakers_merged", "from": 1, "into": 0, "segment_ids": []})
    assert not report.is_corrected


def test_the_state_of_the_provider_is_told_in_words_with_its_reason() -> None:
    report = StreamReport()
    status = {"type": "service_status"}
    assert report.describe({**status, "status": "ready", "session_id": "x"}) is None
    assert report.describe({"type": "ping"}) is None
    assert report.describe({**status, "status": "stt_degraded", "reason": "no route"}) == (
        "the speech service failed; the server keeps trying: no route"
    )
    assert report.describe({**status, "status": "stt_recovered"}) == "the speech service is back"
    lost = {"type": "audio_lost", "start": 1.0, "end": 4.5}
    assert report.describe(lost) == "lost 3.5 s of audio: 1.00 - 4.50"
    report.add([segment(0, "two words")])
    ended = {"received": 37.5, "lost": 3.5}
    assert report.summary(ended) == "sent 37.5 s, 2 words, lost 3.5 s: no route"
    assert report.summary({"received": 37.5, "lost": 0.0}) == "sent 37.5 s, 2 words, lost 0.0 s"
