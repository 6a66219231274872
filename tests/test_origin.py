"""Which pages may open a session."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.origin import ANY, Origin, is_allowed, parse_origin

LISTED = frozenset([Origin("https", "app.example.com", 443), Origin("http", "localhost", 3000)])


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com",
        "https://app.example.com:443",
        "HTTPS://App.Example.COM",
        "http://localhost:3000",
    ],
)
def test_a_listed_origin_comes_in_however_it_is_written(origin: str) -> None:
    assert is_allowed(origin, "server:8080", LISTED)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "https://app.example.com:8443",
        "http://app.example.com",
        "https://app.example.com.evil.example",
        "https://evil.example/https://app.example.com",
        "https://app.example.com@evil.example",
        "https://app.example.com, https://evil.example",
        "https://xapp.example.com",
        "app.example.com",
        "https://",
        "https://app.example.com:99999",
        "https://[::1",
    ],
)
def test_any_other_does_not(origin: str) -> None:
    assert not is_allowed(origin, "server:8080", LISTED)
    assert is_allowed(origin, "server:8080", {ANY})


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://box:8080", "box:8080"),
        ("http://BOX", "box:80"),
        ("https://omi.example", "omi.example"),
        ("https://omi.example:443", "omi.example"),
        ("http://[::1]:8080", "[::1]:8080"),
    ],
)
def test_a_page_of_the_same_origin_comes_in(origin: str, host: str) -> None:
    assert is_allowed(origin, host, ())


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://box:8081", "box:8080"),
        ("https://box", "box:80"),
        ("http://box", "box:443"),
        ("http://evil.example", "box"),
        ("null", "null"),
        ("null", None),
        ("http://box", None),
        ("http://box", ""),
        ("http://box", "box:80:80"),
    ],
)
def test_a_page_of_another_origin_does_not(origin: str, host: str | None) -> None:
    assert not is_allowed(origin, host, ())


def test_who_sends_no_origin_is_no_page() -> None:
    assert is_allowed(None, None, ())


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://evil.example:8080", False),
        ("http://localhost.evil.example:8080", False),
        ("http://127.0.0.1.evil.example:8080", False),
        ("http://localhost:8080", True),
        ("http://app.localhost:8080", True),
        ("http://127.0.0.1:8080", True),
        ("http://[::1]:8080", True),
        ("https://omi.example", True),
    ],
)
def test_a_name_that_was_made_to_point_at_loopback_is_no_same_origin(
    origin: str, allowed: bool
) -> None:
    host = origin.partition("//")[2]
    assert is_allowed(origin, host, (), is_loopback=True) is allowed
    assert is_allowed(origin, host, ())
    parsed = parse_origin(origin)
    assert parsed is not None
    assert is_allowed(origin, host, {parsed}, is_loopback=True)


@given(st.text(max_size=60), st.none() | st.text(max_size=60), st.booleans())
def test_no_bytes_make_the_decision_fall(origin: str, host: str | None, is_loopback: bool) -> None:
    assert is_allowed(origin, host, (), is_loopback=is_loopback) in {True, False}
