"""Whatever line is lost, and whenever: every word once, in order, on its time, by the same speakers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.line_drops import (
    play_with_a_client_that_just_goes_on,
    play_with_a_client_that_keeps_its_audio,
)

if TYPE_CHECKING:
    from trio.testing import MockClock


@pytest.mark.parametrize("seed", range(10))
async def test_a_client_that_keeps_its_audio_gets_every_word_once(
    autojump_clock: MockClock, seed: int
) -> None:
    await play_with_a_client_that_keeps_its_audio(seed)


@pytest.mark.parametrize("seed", range(10))
async def test_a_client_that_just_goes_on_gets_every_word_once(
    autojump_clock: MockClock, seed: int
) -> None:
    await play_with_a_client_that_just_goes_on(seed)
