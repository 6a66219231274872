"""The cache of decoded profiles."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.audio import AudioFormat
from omi_rt.profiles.cache import ENTRY_BYTES, CachedStretch, CacheKey, ProfileCache

MONO = AudioFormat(16_000, 1)


def key(name: str, uid: str = "u", audio_format: AudioFormat = MONO) -> CacheKey:
    return CacheKey(uid, name, audio_format, 10.0)


def test_an_entry_serves_only_the_version_it_was_made_from() -> None:
    cache = ProfileCache()
    entry = CachedStretch("1", b"ab")
    cache.put(key("a"), entry)
    assert cache.get(key("a"), "1") == entry
    assert cache.get(key("a"), "2") is None
    assert len(cache) == 0


def test_formats_and_limits_are_kept_apart() -> None:
    cache = ProfileCache()
    cache.put(key("a"), CachedStretch("1", b"ab"))
    assert cache.get(key("a", audio_format=AudioFormat(8_000, 1)), "1") is None
    assert cache.get(CacheKey("u", "a", MONO, 3.0), "1") is None


def test_the_least_recently_used_goes_first() -> None:
    cache = ProfileCache(3 * (ENTRY_BYTES + 10))
    for name in "abc":
        cache.put(key(name), CachedStretch("1", bytes(10)))
    assert cache.get(key("a"), "1")
    cache.put(key("d"), CachedStretch("1", bytes(10)))
    assert [name for name in "abcd" if cache.get(key(name), "1")] == ["a", "c", "d"]


def test_what_is_larger_than_the_whole_cache_is_not_kept() -> None:
    cache = ProfileCache(ENTRY_BYTES + 10)
    cache.put(key("a"), CachedStretch("1", bytes(11)))
    assert len(cache) == cache.bytes == 0


def test_what_is_no_longer_stored_is_dropped() -> None:
    cache = ProfileCache()
    for uid, name in [("u", "a"), ("u", "b"), ("v", "a")]:
        cache.put(key(name, uid), CachedStretch("1", b"ab"))
    cache.retain("u", {"b"})
    assert cache.get(key("a"), "1") is None
    assert cache.get(key("b"), "1")
    assert cache.get(key("a", "v"), "1")


@given(
    steps=st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from("12"), st.integers(0, 4_000))
    )
)
def test_the_bytes_are_those_of_the_entries_and_never_over_the_bound(
    steps: list[tuple[str, str, int]],
) -> None:
    cache = ProfileCache(10_000)
    latest: dict[str, tuple[str, int]] = {}
    for name, version, size in steps:
        cache.put(key(name), CachedStretch(version, bytes(size)))
        latest[name] = version, size
        held = [size for name, (version, size) in latest.items() if cache.get(key(name), version)]
        assert cache.bytes == sum(held) + ENTRY_BYTES * len(cache) <= 10_000
        assert len(held) == len(cache) > 0
    cache.retain("u", frozenset())
    assert len(cache) == cache.bytes == 0


def test_audio_does_not_show_in_a_repr() -> None:
    assert "secret" not in repr(CachedStretch("1", b"secret"))
