"""Deepgram's protocol: the query, and the rules for whatever comes back."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.deepgram import (
    Ignored,
    Malformed,
    Metadata,
    Results,
    is_retryable_close,
    is_retryable_status,
    listen_url,
    parse_message,
)
from omi_rt.core.json import dumps
from omi_rt.core.listen import ListenRequest


def query(
    request: ListenRequest, options: dict[str, tuple[str, ...]] | None = None
) -> dict[str, list[str]]:
    return parse_qs(urlsplit(listen_url("wss://x", request, options)).query)


def test_every_row_of_the_configuration_table_goes_up_as_written() -> None:
    request = ListenRequest("u", language="de", sample_rate=16000, codec="opus", channels=1)
    assert query(request) == {
        "language": ["de"],
        "sample_rate": ["16000"],
        "encoding": ["linear16"],
        "channels": ["1"],
        "punctuate": ["true"],
        "no_delay": ["true"],
        "endpointing": ["100"],
        "interim_results": ["false"],
        "smart_format": ["true"],
        "profanity_filter": ["false"],
        "diarize": ["true"],
        "filler_words": ["false"],
        "multichannel": ["false"],
        "model": ["nova-2-general"],
    }


def test_several_channels_are_multichannel() -> None:
    assert query(ListenRequest("u", channels=2))["multichannel"] == ["true"]


def test_auto_goes_up_as_multi() -> None:
    assert query(ListenRequest("u", language="auto"))["language"] == ["multi"]


def test_options_replace_join_repeat_and_remove() -> None:
    options = {"model": ("nova-3",), "keyterm": ("a b", "c&d"), "diarize": ()}
    parameters = query(ListenRequest("u"), options)
    assert parameters["model"] == ["nova-3"]
    assert parameters["keyterm"] == ["a b", "c&d"]
    assert "diarize" not in parameters


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("https://api.deepgram.com", "wss://api.deepgram.com/v1/listen"),
        ("http://localhost:8080/", "ws://localhost:8080/v1/listen"),
        ("ws://host/prefix", "ws://host/prefix/v1/listen"),
        ("wss://host/v1", "wss://host/v1/listen"),
        ("wss://host/v1/listen", "wss://host/v1/listen"),
    ],
)
def test_v1_listen_is_appended_to_the_base(base: str, expected: str) -> None:
    assert listen_url(base, ListenRequest("u")).partition("?")[0] == expected


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 413, 414])
def test_refusals_that_no_retry_mends_are_final(status: int) -> None:
    assert not is_retryable_status(status)


@pytest.mark.parametrize("status", [408, 429, 499, 500, 502, 503, 504])
def test_refusals_that_may_pass_are_retried(status: int) -> None:
    assert is_retryable_status(status)


def test_only_1008_ends_for_good() -> None:
    retried = [1000, 1001, 1002, 1006, 1007, 1009, 1011, 1012, 1013, 4000]
    assert all(is_retryable_close(code) for code in retried)
    assert not is_retryable_close(1008)


def results(words: Any, **more: Any) -> str:
    return json.dumps(
        {
            "type": "Results",
            "channel_index": [0, 1],
            "start": 1.0,
            "duration": 2.0,
            "is_final": True,
            "channel": {"alternatives": [{"transcript": "all of it", "words": words}]},
        }
        | more
    )


def parsed(text: str) -> Results:
    message = parse_message(text)
    assert isinstance(message, Results)
    return message


def test_unknown_fields_are_ignored() -> None:
    message = parsed(results([{"word": "a", "start": 1, "end": 2, "new": {}}], entities=[1]))
    assert [word.text for word in message.words] == ["a"]


def test_a_word_without_punctuated_word_is_its_word() -> None:
    assert [w.text for w in parsed(results([{"word": "a"}])).words] == ["a"]


@pytest.mark.parametrize(
    ("text", "read"),
    [("\ud83d", "\ufffd"), ("a\udc00b", "a\ufffdb"), ("\ud83d\ude00", "\U0001f600")],
)
def test_half_of_a_surrogate_pair_costs_no_more_than_itself(text: str, read: str) -> None:
    message = parsed(results([{"word": "a"}, {"word": text, "start": 1.5}, {"word": "b"}]))
    assert [word.text for word in message.words] == ["a", read, "b"]
    assert [word.start for word in message.words] == [None, 1.5, None]
    assert dumps([word.text for word in message.words]) == f'["a","{read}","b"]'


def test_a_transcript_without_words_is_one_word_that_spans_the_final() -> None:
    nothing: list[Any] = [[], None, 3, "x"]
    for words in nothing:
        (word,) = parsed(results(words)).words
        assert (word.text, word.start, word.end) == ("all of it", 1.0, 3.0)


@pytest.mark.parametrize("bad", [-1, "x", None, True, [], float("nan"), float("inf"), 1e999])
def test_an_unusable_time_is_no_time(bad: Any) -> None:
    (word,) = parsed(results([{"word": "a", "start": bad, "end": 2.0}])).words
    assert (word.start, word.end) == (None, 2.0)
    assert parsed(results([{"word": "a"}], start=bad)).end is None


@pytest.mark.parametrize("label", ["1", -1, 1.5, None, True, 10**30])
def test_a_label_that_is_no_number_is_no_label(label: Any) -> None:
    (word,) = parsed(results([{"word": "a", "speaker": label}])).words
    assert word.speaker is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "3",
        "{}",
        '{"type":3}',
        '{"type":"Results"}',
        '{"type":"Results","channel":{"alternatives":[]}}',
        '{"type":"Results","channel":[]}',
        '{"type":"Results","channel":{"alternatives":[{"transcript":"no times"}]},"start":"x"}'.replace(
            "no times", ""
        ),
        "[" * 100_000,
    ],
)
def test_what_can_not_be_understood_is_malformed(text: str) -> None:
    assert parse_message(text) == Malformed()


def test_other_types_are_ignored() -> None:
    for kind in ("Error", "SpeechStarted", "ConfigureSuccess", "Anything"):
        assert parse_message(json.dumps({"type": kind, "x": 1})) == Ignored(kind)


def test_metadata_tells_what_the_provider_accepted() -> None:
    assert parse_message('{"type":"Metadata","duration":93.25,"request_id":"r"}') == Metadata(
        93.25, "r"
    )


def test_no_transcript_is_in_a_repr() -> None:
    text = results([{"word": "secretword", "punctuated_word": "Secretword,", "start": 1, "end": 2}])
    shown = repr(parse_message(text)) + repr(parsed(text).words)
    assert "secret" not in shown.lower()
    assert "all of it" not in shown


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["type", "channel", "alternatives", "words", "start", "duration", "speaker", "word"]
            ),
            children,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(data: bytes) -> None:
    assert parse_message(data) is not None


@given(json_values, st.sampled_from(["Results", "Metadata", "Error"]))
def test_any_json_is_survived(value: Any, kind: str) -> None:
    if isinstance(value, dict):
        value = value | {"type": kind}
    message = parse_message(json.dumps(value))
    if isinstance(message, Results):
        assert message.best is not None
        assert isinstance(message.words, tuple)


@given(
    st.dictionaries(
        st.sampled_from(["channel_index", "start", "duration", "is_final"]), json_values
    ),
    st.dictionaries(
        st.sampled_from(
            ["word", "punctuated_word", "start", "end", "speaker", "confidence", "new"]
        ),
        json_values | st.sampled_from(["a", " a ", 0, 1, 999, 1000, 0.5, -0.5, 1.0, 1e300, 10**30]),
    ),
    st.booleans() | json_values,
)
def test_a_message_means_the_same_whether_or_not_a_field_of_it_is_odd(
    fields: dict[str, Any], one: dict[str, Any], flag: Any
) -> None:
    """NaN is no JSON: where it stands in any field each of the others is read by itself."""
    text = results([one, {"word": "b"}], speech_final=flag, **fields)
    odd = text[:-1] + ', "new": NaN}'
    first, second = parse_message(text), parse_message(odd)
    if isinstance(first, Results) and isinstance(second, Results):
        said = [
            [(w.text, w.start, w.end, w.speaker, w.confidence) for w in message.words]
            for message in (first, second)
        ]
        assert said[0] == said[1]
        assert (first.end, first.is_final, first.speech_final, first.channel_index) == (
            second.end,
            second.is_final,
            second.speech_final,
            second.channel_index,
        )
    else:
        assert first == second


def test_no_type_is_malformed_however_good_the_rest() -> None:
    whole = json.loads(results([{"word": "a", "start": 1.0, "end": 2.0}]))
    del whole["type"]
    assert parse_message(json.dumps(whole)) == Malformed()
