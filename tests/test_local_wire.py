"""What the embedded recogniser reads and writes: parameters, messages, spelling, accuracy."""

from __future__ import annotations

import json
from typing import Any

import pytest

from omi_rt.core.live_api import Control, ControlKind
from omi_rt.local.accuracy import word_accuracy
from omi_rt.local.decoding import RecogniserInfo
from omi_rt.local.errors import UnusableParameters
from omi_rt.local.recogniser import Final, FinalWord
from omi_rt.local.sphinx import spelling
from omi_rt.local.wire import ListenParameters, ResultsWriter, read_control

LINEAR16 = "encoding=linear16&sample_rate=16000"
SPHINX = RecogniserInfo("pocketsphinx", "en-us", ("en",))


@pytest.mark.parametrize(
    ("hypothesis", "accuracy"),
    [
        ("it's late, go home now", 1.0),
        ("IT'S LATE GO HOME NOW!", 1.0),
        ("it\N{RIGHT SINGLE QUOTATION MARK}s late go home now", 1.0),
        ("it's late go now", 0.8),
        ("it's very late go home now", 0.8),
        ("it's gate go home now", 0.8),
        ("late it's go home now", 0.6),
        ("", 0.0),
        ("one two three four five six seven eight nine ten", 0.0),
    ],
)
def test_word_accuracy_is_one_minus_the_word_error_rate(hypothesis: str, accuracy: float) -> None:
    assert word_accuracy("It's late. Go home now!", hypothesis) == pytest.approx(accuracy)


def test_word_accuracy_of_a_text_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="no words"):
        word_accuracy(" ... ", "word")


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ("and", "and"),
        ("and(2)", "and"),
        ("a(12)", "a"),
        ("'cause", "'cause"),
        ("<s>", None),
        ("<sil>", None),
        ("</s>", None),
        ("[NOISE]", None),
        ("[SPEECH]", None),
        ("++UM++", None),
    ],
)
def test_words_are_told_from_noise_and_lose_their_variants(entry: str, word: str | None) -> None:
    assert spelling(entry) == word


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("sample_rate=16000", "encoding"),
        ("encoding=opus&sample_rate=16000", "encoding"),
        ("encoding=linear16", "sample_rate"),
        ("encoding=linear16&sample_rate=7999", "sample_rate"),
        ("encoding=linear16&sample_rate=48001", "sample_rate"),
        ("encoding=linear16&sample_rate=-8000", "sample_rate"),
        (f"encoding=linear16&sample_rate={'9' * 5000}", "sample_rate"),
        (LINEAR16 + "&channels=0", "channels"),
        (LINEAR16 + "&channels=9", "channels"),
        (LINEAR16 + "&channels=two", "channels"),
        (LINEAR16 + "&language=fr", "language"),
        (LINEAR16 + "&language=english", "language"),
    ],
)
def test_what_can_not_be_recognised_is_refused_by_name(query: str, named: str) -> None:
    with pytest.raises(UnusableParameters, match=f"^{named}:"):
        ListenParameters.from_query(query)


@pytest.mark.parametrize("language", ["en", "en-US", "multi"])
def test_the_configuration_of_a_session_is_understood(language: str) -> None:
    assert ListenParameters.from_query(
        f"model=nova-2-general&language={language}&encoding=linear16&sample_rate=8000&channels=2"
        "&punctuate=true&no_delay=true&endpointing=100&interim_results=false&smart_format=true"
        "&profanity_filter=false&diarize=true&filler_words=false&multichannel=true&keyterm=a&keyterm=b"
    ) == ListenParameters(
        sample_rate=8_000,
        channels=2,
        multichannel=True,
        diarize=True,
        punctuate=True,
        filler_words=False,
        language=language.partition("-")[0],
        interim_results=False,
    )


def test_other_languages_are_taken_where_the_recogniser_knows_them() -> None:
    query = LINEAR16 + "&language=fr-CA&interim_results=true"
    parameters = ListenParameters.from_query(query, ("en", "fr"))
    assert (parameters.language, parameters.interim_results) == ("fr", True)
    with pytest.raises(UnusableParameters, match=r"^language: "):
        ListenParameters.from_query(LINEAR16 + "&language=xx", ("en", "fr"))


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ('{"type":"KeepAlive"}', Control(ControlKind.KEEP_ALIVE)),
        ('{"type":"Finalize","channel":1}', Control(ControlKind.FINALIZE, 1)),
        ('{"type":"Finalize","channel":null}', Control(ControlKind.FINALIZE)),
        ('{"type":"CloseStream","more":[]}', Control(ControlKind.CLOSE_STREAM)),
        ('{"type":"Finalize","channel":-1}', None),
        ('{"type":"Finalize","channel":99}', None),
        ('{"type":"Configure"}', None),
        ('{"type":["KeepAlive"]}', None),
        ("KeepAlive", None),
        ("[]", None),
        ("[" * 100_000, None),
        ("", None),
    ],
)
def test_client_messages_are_read_and_others_told_apart(text: str, control: Control | None) -> None:
    assert read_control(text) == control


def written(query: str, final: Final) -> Any:
    parameters = ListenParameters.from_query(f"{LINEAR16}&{query}")
    return json.loads(ResultsWriter(parameters, "request-1", SPHINX).write(final))


def test_a_final_is_written_as_deepgram_writes_it() -> None:
    words = (
        FinalWord("um", 1.1, 1.2, 0.3),
        FinalWord("i", 1.2, 1.3, 0.9),
        FinalWord("do", 1.3, 1.7, 0.8),
    )
    message = written(
        "diarize=true&smart_format=true", Final(0, 0.1 + 0.2, 1.8, words, at_pause=True)
    )
    alternative = message["channel"]["alternatives"][0]
    assert message | {"channel": None} == {
        "type": "Results",
        "channel_index": [0, 1],
        "start": 0.3,
        "duration": 1.5,
        "is_final": True,
        "speech_final": True,
        "from_finalize": False,
        "channel": None,
        "metadata": {
            "request_id": "request-1",
            "model_uuid": message["metadata"]["model_uuid"],
            "model_info": {"name": "omi-rt-local", "version": "en-us", "arch": "pocketsphinx"},
        },
    }
    assert alternative == {
        "transcript": "I do",
        "confidence": 0.85,
        "words": [
            {
                "word": "i",
                "start": 1.2,
                "end": 1.3,
                "confidence": 0.9,
                "punctuated_word": "I",
                "speaker": 0,
            },
            {
                "word": "do",
                "start": 1.3,
                "end": 1.7,
                "confidence": 0.8,
                "punctuated_word": "do",
                "speaker": 0,
            },
        ],
    }


def test_speaker_spelling_and_fillers_come_only_when_asked_for() -> None:
    final = Final(0, 0.0, 1.0, (FinalWord("um", 0.1, 0.2, 1.0), FinalWord("i", 0.3, 0.4, 1.0)))
    (alternative,) = written("filler_words=true", final)["channel"]["alternatives"]
    assert alternative["transcript"] == "um i"
    assert [sorted(word) for word in alternative["words"]] == [
        ["confidence", "end", "start", "word"]
    ] * 2
    assert written("", Final(0, 0.0, 1.0, ()))["channel"]["alternatives"] == [
        {"transcript": "", "confidence": 0.0, "words": []}
    ]
