"""Decoded profiles, kept from session to session. This is pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import field, frozen
from cachetools import LRUCache

from omi_rt.core.audio import AudioFormat

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

CACHE_BYTES: Final = 67_108_864
"""64 MiB hold the profiles of 200 users in 16 kHz mono, at 10 s each."""
ENTRY_BYTES: Final = 1_024
"""Each entry counts for this much besides its audio, so that entries without audio are bounded as well."""


@frozen
class CacheKey:
    """What was decoded, and how."""

    uid: str
    name: str
    audio_format: AudioFormat
    seconds: float
    """The longest that the stretch was allowed to be, in seconds."""


@frozen
class CachedStretch:
    """What became of one version of a stored sample."""

    version: str
    pcm: bytes = field(default=b"", repr=False)
    """The audio in the key's format; empty if there is a problem."""
    problem: str = ""
    """Why there is no audio; a broken file is kept too, so that it is not fetched again until it changes."""


class ProfileCache:
    """A cache for one thread. The least recently used entries go when the bytes are over the bound."""

    __slots__ = ("_entries",)

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._entries: LRUCache[CacheKey, CachedStretch] = LRUCache(max_bytes, getsizeof=_size)

    def __len__(self) -> int:
        """Return the number of stored samples that are held, in whatever formats and lengths."""
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """The number of bytes that are held; each entry counts with its `ENTRY_BYTES`."""
        return int(self._entries.currsize)

    def get(self, key: CacheKey, version: str) -> CachedStretch | None:
        """Return the entry if it is of that very version; one of another version is dropped."""
        entry = self._entries.get(key)
        if entry is not None and entry.version != version:
            del self._entries[key]
            return None
        return entry

    def put(self, key: CacheKey, entry: CachedStretch) -> None:
        """Keep an entry in place of the key's earlier one; one that is over the bound is not kept."""
        self._entries.pop(key, None)
        if _size(entry) <= self._entries.maxsize:
            self._entries[key] = entry

    def retain(self, uid: str, names: AbstractSet[str]) -> None:
        """Drop what is kept of samples of ``uid`` that are no longer stored."""
        for key in [key for key in self._entries if key.uid == uid and key.name not in names]:
            del self._entries[key]


def _size(entry: CachedStretch) -> int:
    return len(entry.pcm) + ENTRY_BYTES
