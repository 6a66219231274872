"""The parameters of /listen."""

from __future__ import annotations

import pytest

from omi_rt.core.errors import BadRequest
from omi_rt.core.listen import ListenRequest, parse_listen, split_target


def test_the_defaults_are_those_of_the_documented_endpoint() -> None:
    assert parse_listen({"uid": "u1"}) == ListenRequest(
        uid="u1",
        language="en",
        sample_rate=8000,
        codec="pcm8",
        channels=1,
        include_speech_profile=True,
    )


def test_an_empty_language_is_the_default() -> None:
    assert parse_listen({"uid": "u1", "language": ""}).language == "en"


def test_unknown_parameters_are_ignored() -> None:
    assert parse_listen({"uid": "u1", "stt_service": "soniox", "x": ""}).uid == "u1"


@pytest.mark.parametrize("codec", ["opus", "opus_fs320", "pcm8", "pcm16", "linear16"])
def test_every_codec_of_the_app_is_taken(codec: str) -> None:
    assert parse_listen({"uid": "u", "codec": codec, "sample_rate": "16000"}).codec == codec


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({}, "uid"),
        ({"uid": ""}, "uid"),
        ({"uid": "a/b"}, "uid"),
        ({"uid": ".."}, "uid"),
        ({"uid": "a\x00b"}, "uid"),
        ({"uid": "u" * 129}, "uid"),
        ({"uid": " "}, "uid"),
        ({"uid": "\u3000\u200b"}, "uid"),
        ({"uid": "u", "codec": "aac"}, "codec"),
        ({"uid": "u", "codec": "opus", "sample_rate": "11025"}, "sample_rate"),
        ({"uid": "u", "sample_rate": "7999"}, "sample_rate"),
        ({"uid": "u", "sample_rate": "48001"}, "sample_rate"),
        ({"uid": "u", "sample_rate": "16k"}, "sample_rate"),
        ({"uid": "u", "sample_rate": "-8000"}, "sample_rate"),
        ({"uid": "u", "sample_rate": "1" * 5000}, "sample_rate"),
        ({"uid": "u", "channels": "0"}, "channels"),
        ({"uid": "u", "channels": "9"}, "channels"),
        ({"uid": "u", "channels": "1.5"}, "channels"),
        ({"uid": "u", "codec": "opus", "channels": "3"}, "channels"),
        ({"uid": "u", "include_speech_profile": "maybe"}, "include_speech_profile"),
        ({"uid": "u", "language": "en&model=x"}, "language"),
    ],
)
def test_a_bad_parameter_is_named(parameters: dict[str, str], name: str) -> None:
    with pytest.raises(BadRequest, match=f"^{name}:"):
        parse_listen(parameters)


def test_bytes_that_are_no_utf_8_make_no_two_uids_one() -> None:
    uids = [split_target(f"/listen?uid=a{byte}b")[1][0][1] for byte in ("%FF", "%FE", "%C3")]
    assert len(set(uids)) == 3
    for uid in uids:
        with pytest.raises(BadRequest, match=r"^uid: not UTF-8$"):
            parse_listen({"uid": uid})
    assert parse_listen(dict(split_target("/listen?uid=Zo%C3%AB")[1])).uid == "Zoë"


def test_booleans_come_as_text() -> None:
    assert not parse_listen({"uid": "u", "include_speech_profile": "False"}).include_speech_profile


def test_a_target_is_split_into_path_and_parameters() -> None:
    assert split_target("/listen?uid=a%20b&uid=c&flag") == (
        "/listen",
        (("uid", "a b"), ("uid", "c"), ("flag", "")),
    )
