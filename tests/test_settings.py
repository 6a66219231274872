"""What comes of the environment."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from omi_rt.core.deepgram import listen_url
from omi_rt.core.errors import SettingsError
from omi_rt.core.listen import ListenRequest
from omi_rt.settings import Settings, load_settings, shadowed_settings


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
    "name",
    [
        "OMI_RT_SERVICE_HOST",
        "OMI_RT_SERVICE_PORT",
        "OMI_RT_SERVICE_PORT_WEB_2",
        "OMI_RT_PORT_8080_TCP",
        "OMI_RT_PORT_53_UDP_ADDR",
        "OMI_RT_PORT_9_SCTP_PROTO",
        "OMI_RT_WEB_SERVICE_HOST",
        "OMI_RT_WEB_PORT",
        "OMI_RT_PORT",
        "OMI_RT_HOST",
    ],
)
def test_what_kubernetes_adds_for_a_service_is_passed_over(name: str) -> None:
    assert load_settings({name: "tcp://10.0.0.1:8080"}) == Settings()


@pytest.mark.parametrize(
    "variable",
    [
        "OMI_RT_PORT=http://10.0.0.1:8080",
        "OMI_RT_PORT=65536",
        "OMI_RT_PORTS=80",
        "OMI_RT_WEB_PORT=8080",
        "OMI_RT_SERVICE=x",
        "OMI_RT_PORT_8080=x",
        "OMI_RT_ORIGINS=app.example.com",
        "OMI_RT_ORIGINS=https://app.example.com/path",
        "OMI_RT_ORIGINS=null",
        "OMI_RT_ORIGINS=https://a.example,",
    ],
)
def test_what_only_looks_like_it_is_named(variable: str) -> None:
    name, _, value = variable.partition("=")
    with pytest.raises(SettingsError, match=f"^{name}: "):
        load_settings({name: value})


def test_a_setting_that_kubernetes_took_is_told_and_no_other() -> None:
    environment = {"OMI_RT_PORT": "tcp://10.0.0.1:8080", "OMI_RT_HOST": "0.0.0.0"}
    assert shadowed_settings(environment) == ["OMI_RT_PORT"]
    settings = load_settings(environment)
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert shadowed_settings({"OMI_RT_PORT": "9000"}) == []


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
