"""Loads the stored voices of a session: one listing, then whatever the cache does not hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from omi_rt.codecs.wav import WavAudio, WavError
from omi_rt.core.audio import AudioFormat
from omi_rt.profiles.anchors import (
    AnchorLimits,
    ProfileAnchor,
    choose_samples,
    decode_stretch,
    fit_anchors,
)
from omi_rt.profiles.cache import CachedStretch, CacheKey, ProfileCache
from omi_rt.profiles.store import MAX_SAMPLE_BYTES, ProfileStore, StoredSample, StoreUnavailable

if TYPE_CHECKING:
    from omi_rt.core.voices import Identity

LOAD_SECONDS: Final = 5.0
"""Loading everything may take this long; after that a session goes on without profiles."""


@frozen
class LoadedAnchors:
    """The stored voices by which a session knows who speaks."""

    anchors: tuple[ProfileAnchor, ...]
    """The user first, then the most recently changed people."""
    problems: tuple[str, ...]
    """One line for each stored voice that could not be used."""
    is_complete: bool
    """False if the store failed for some of them, so that another try may bring more."""


async def load_anchors(
    store: ProfileStore,
    cache: ProfileCache,
    uid: str,
    audio_format: AudioFormat,
    limits: AnchorLimits,
) -> LoadedAnchors:
    """Load the anchors of ``uid``'s stored voices, within `LOAD_SECONDS`.

    What is there when the time is up is used, and the rest is among the problems; what was read
    stays in the cache for the next try. Without anything stored there are no anchors and no
    problems. Cancelling this is safe.

    Raises:
        StoreUnavailable: the store failed or was too slow, and nothing at all can be used.
        BadRequest: ``uid`` breaks the rule of `check_id`.
    """
    load = _Load(store, cache, uid, audio_format, limits)
    with trio.move_on_after(LOAD_SECONDS):
        await load.run()
    return load.result()


@define
class _Load:
    store: ProfileStore
    cache: ProfileCache
    uid: str
    audio_format: AudioFormat
    limits: AnchorLimits
    chosen: list[StoredSample] | None = None
    """The samples to load; None before the listing has come."""
    done: dict[str, CachedStretch] = field(factory=dict)
    """What was loaded, by the samples' names."""
    failed: dict[str, StoreUnavailable] = field(factory=dict)
    """What could not be loaded, by the samples' names."""

    async def run(self) -> None:
        samples = await self.store.list_samples(self.uid)
        self.cache.retain(self.uid, {sample.name for sample in samples})
        self.chosen = choose_samples(samples, self.limits)
        async with trio.open_nursery() as nursery:
            for sample in self.chosen:
                nursery.start_soon(self.load, sample)

    async def load(self, sample: StoredSample) -> None:
        seconds = self.limits.seconds_for(sample.identity)
        key = CacheKey(self.uid, sample.name, self.audio_format, seconds)
        entry = self.cache.get(key, sample.version)
        if entry is None:
            try:
                entry = await self.decode(sample, seconds)
            except StoreUnavailable as error:
                self.failed[sample.name] = error
                return
            self.cache.put(key, entry)
        self.done[sample.name] = entry

    async def decode(self, sample: StoredSample, seconds: float) -> CachedStretch:
        if sample.size > MAX_SAMPLE_BYTES:
            return CachedStretch(sample.version, problem=f"over {MAX_SAMPLE_BYTES} bytes")
        wav = await self.store.read(sample)
        if wav is None:
            raise StoreUnavailable("it was replaced or deleted while it was being read")
        audio_format = self.audio_format
        try:
            stretch = await self.store.run_blocking(
                lambda: decode_stretch(wav, seconds, audio_format)
            )
        except WavError as error:
            return CachedStretch(sample.version, problem=str(error))
        return CachedStretch(sample.version, stretch.pcm)

    def result(self) -> LoadedAnchors:
        too_late = StoreUnavailable(f"the profile store took over {LOAD_SECONDS:g} s")
        if self.chosen is None:
            raise too_late
        stretches: list[tuple[Identity, WavAudio]] = []
        problems: list[str] = []
        errors: list[StoreUnavailable] = []
        for sample in self.chosen:
            entry = self.done.get(sample.name)
            if entry is None:
                errors.append(self.failed.get(sample.name, too_late))
                problems.append(f"{_voice(sample)}: {errors[-1]}")
            elif entry.problem:
                problems.append(f"{_voice(sample)}: {entry.problem}")
            else:
                rate, channels = self.audio_format.sample_rate, self.audio_format.channels
                stretches.append((sample.identity, WavAudio(rate, channels, entry.pcm)))
        if errors and not stretches:
            raise errors[0]
        anchors = fit_anchors(stretches, self.limits)
        return LoadedAnchors(tuple(anchors), tuple(problems), is_complete=not errors)


def _voice(sample: StoredSample) -> str:
    person_id = sample.identity.person_id
    return "the user's profile" if person_id is None else f"the sample of person {person_id}"
