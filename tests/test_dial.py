"""The dial of an epoch: it may succeed, take too long, or be given up, which is nobody's failure."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from omi_rt.core.audio import AudioFormat
from omi_rt.core.coverage import Coverage
from omi_rt.core.dials import DialCause
from omi_rt.core.errors import ProviderUnreachable
from omi_rt.core.exchange import Exchange
from omi_rt.core.ledger import Cost
from omi_rt.core.listen import ListenRequest
from omi_rt.core.patience import Patience
from omi_rt.deepgram.epoch import Epoch
from omi_rt.deepgram.provider import Provider, make_provider
from omi_rt.metrics import Metrics
from omi_rt.settings import Settings

if TYPE_CHECKING:
    from trio.testing import MockClock

TIMEOUT = 7.0


async def never(_url: str) -> trio.abc.Stream:
    await trio.sleep_forever()


def hanging_provider() -> Provider:
    return make_provider(
        Settings(deepgram_api_key="secret", connect_timeout=TIMEOUT),
        base_url="ws://deepgram",
        metrics=Metrics(),
        dial=never,
        random=Random(0),
    )


def epoch() -> Epoch:
    coverage = Coverage(AudioFormat(8000, 1), 10.0)
    exchange = Exchange(coverage, Patience(10.0), Cost(), 5.0, trio.current_time())
    return Epoch(exchange, DialCause.FIRST, lambda _epoch, _news, _now: None)


@pytest.mark.parametrize("seconds", [0.0, 3.0])
async def test_a_dial_that_is_given_up_is_no_failure(
    autojump_clock: MockClock, seconds: float
) -> None:
    provider, given_up, began_at = hanging_provider(), epoch(), trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(given_up.run, ListenRequest("u1"), provider)
        await trio.testing.wait_all_tasks_blocked()
        assert provider.priming.dialling == 1
        await trio.sleep(seconds)
        given_up.retire()
    assert trio.current_time() - began_at == pytest.approx(seconds)
    assert given_up.ended.is_set()
    assert not given_up.opened.is_set()
    assert given_up.error is None
    assert provider.failures == 0
    assert provider.priming.dialling == 0


async def test_an_epoch_that_is_given_up_before_it_begins_ends_at_once(
    autojump_clock: MockClock,
) -> None:
    provider, given_up, began_at = hanging_provider(), epoch(), trio.current_time()
    given_up.retire()
    await given_up.run(ListenRequest("u1"), provider)
    assert trio.current_time() == began_at
    assert given_up.ended.is_set()
    assert given_up.error is None
    assert provider.failures == provider.priming.dialling == 0


async def test_a_dial_that_takes_too_long_is_a_failure(autojump_clock: MockClock) -> None:
    provider, late, began_at = hanging_provider(), epoch(), trio.current_time()
    await late.run(ListenRequest("u1"), provider)
    assert trio.current_time() - began_at == pytest.approx(TIMEOUT)
    assert late.ended.is_set()
    assert isinstance(late.error, ProviderUnreachable)
    assert str(late.error) == "no connection within 7 s"
    assert provider.failures == 1
    assert provider.priming.dialling == 0
