"""A whole session with profiles from Google Cloud Storage: the real client, and its emulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from omi_rt.fake import synthesise
from omi_rt.profiles.commands import put_profile
from omi_rt.profiles.gcs import GCSProfileStore
from omi_rt.profiles.service import Profiles
from tests.harness import RATE, listening_server, words_of
from tests.test_identities import ANNA, STRANGER, USER, conversation, known_after, voice_wav
from tests.test_profile_gcs import BUCKET, address_of, storage_emulator

if TYPE_CHECKING:
    from trio.testing import MockClock

FASTER = 4.0
"""The session's seconds in a second of the emulator's."""


@pytest.mark.realtime
async def test_a_session_knows_the_user_and_a_person_from_a_bucket(
    monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    """The client's threads do not mix with a clock that jumps, but with one that is fast."""
    mock_clock.rate = FASTER
    script = conversation([STRANGER, USER, ANNA], 40.0)
    with storage_emulator() as emulator:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address_of(emulator))
        store = GCSProfileStore(BUCKET)
        await put_profile(store, "u1", voice_wav(USER))
        await put_profile(store, "u1", voice_wav(ANNA), "anna")
        async with (
            listening_server(profiles=Profiles(store, 5.0 * FASTER)) as (world, _fake),
            world.device() as device,
        ):
            await device.stream_audio(synthesise(script, RATE), RATE * 2)
            ended = await device.finish()
        await store.aclose()
    assert words_of(device.segments) == script.transcript()
    assert ended["lost"] == 0.0
    known = [s for s in device.segments if s["start"] >= known_after(ended)]
    assert any(segment["is_user"] for segment in known)
    assert any(segment["person_id"] == "anna" for segment in known)
