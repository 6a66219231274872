"""What comes of the environment."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from omi_rt.core.deepgram import listen_url
from omi_rt.core.errors import SettingsError
from omi_rt.core.listen import ListenRequest
from omi_rt.settings import load_settings


def sent(environment: dict[str, str]) -> tuple[str, dict[str, list[str]]]:
    """The address that is dialled with these settings, and the parameters in it."""
    settings = load_settings(environment)
    url = listen_url(settings.deepgram_url, ListenRequest("u"), settings.deepgram_options)
    return url.partition("?")[0], parse_qs(urlsplit(url).query)


def test_the_query_of_the_address_joins_and_replaces_the_defaults() -> None:
    address, query = sent({"DEEPGRAM_URL": "https://dg.example/x?model=nova-3&keyterm=a&keyterm=b"})
    assert address == "wss://dg.example/x/v1/listen"
    assert (query["model"], query["keyterm"]) == (["nova-3"], ["a", "b"])
    assert query["punctuate"] == ["true"]


def test_the_options_win_over_the_query_of_the_address() -> None:
    _, query = sent(
        {
            "DEEPGRAM_URL": "ws://dg?model=nova-3&tag=x&punctuate=false",
            "OMI_RT_DEEPGRAM_OPTIONS": "model=nova-2&tag=",
        }
    )
    assert query["model"] == ["nova-2"]
    assert query["punctuate"] == ["false"]
    assert "tag" not in query


def test_the_address_is_kept_without_its_query() -> None:
    """Tokens are granted at the same address, on another path."""
    settings = load_settings({"DEEPGRAM_URL": "https://dg.example/base?model=nova-3"})
    assert settings.deepgram_url == "https://dg.example/base"


@pytest.mark.parametrize(
    "query", ["encoding=opus", "model=a&sample_rate=8000", "channels=", "nonsense", "#part"]
)
def test_a_query_that_can_not_be_kept_is_refused_by_name(query: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({"DEEPGRAM_URL": f"wss://dg.example/?{query}"})
    message = str(refused.value)
    assert message.startswith("DEEPGRAM_URL: ")
    for name in ("encoding", "sample_rate", "channels"):
        assert name in message
