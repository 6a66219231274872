"""``/metrics``: there from the start, live while sessions run, and true."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omi_rt.core.audio import AudioFormat
from omi_rt.core.coverage import Coverage, Gap
from omi_rt.core.ledger import Cost
from omi_rt.core.receipts import ReceiptTimes
from omi_rt.deepgram.report import HealthReport
from omi_rt.fake import FaultScript, Options, Script, random_script, synthesise
from omi_rt.fake.faults import Close, Refuse, Unreachable
from omi_rt.log import get_logger
from omi_rt.metrics import AudioAccount, AudioAccounts, Metrics
from omi_rt.settings import Settings
from tests.harness import World, listening_server, running_server, unreachable
from tests.test_identities import STRANGER, USER, conversation, stored

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.harness import Device

RATE = 8000


async def scrape(world: World) -> dict[str, float]:
    """Every series by its name and labels, as Prometheus gets it."""
    text = (await world.get("/metrics"))[2]
    rows = re.findall(r"^([a-z_]+(?:\{.*\})?) (\S+)$", text, re.MULTILINE)
    assert len({name for name, _ in rows}) == len(rows)
    return {name: float(value) for name, value in rows}


async def play(device: Device, script: Script) -> dict[str, Any]:
    await device.stream_audio(synthesise(script, RATE), RATE * 2)
    return await device.finish()


def by(series: dict[str, float], name: str, label: str) -> dict[str, float]:
    """The values of a metric by one label that are not zero."""
    found: dict[str, float] = {}
    for key, value in series.items():
        if value and (match := re.fullmatch(rf'{name}\{{.*\b{label}="([^"]*)".*\}}', key)):
            found[match[1]] = found.get(match[1], 0.0) + value
    return found


def test_the_readme_lists_every_metric_as_it_is() -> None:
    rows = []
    for row in Metrics().rows():
        labels = "; ".join(
            f"`{name}`: {', '.join(values)}" if row.kind == "counter" else f"`{name}`"
            for name, values in row.labels.items()
        )
        rows.append(f"| `{row.name}` | {row.kind} | {labels} | {row.text} |")
    table = "\n".join(["| metric | kind | labels | |", "|---|---|---|---|", *rows])
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert f"<!-- metrics -->\n{table}\n<!-- /metrics -->" in readme


async def test_every_series_is_there_from_the_start_and_none_joins_later(
    autojump_clock: MockClock,
) -> None:
    faults = FaultScript.of(
        [Refuse(status=503)],
        [Refuse(status=418)],
        [Close(code=1011, after_audio=8.0)],
        [Unreachable()],
    )
    async with listening_server(faults=faults, profiles=stored(), max_sessions=1) as (world, _):
        before = await scrape(world)
        async with world.device() as device:
            await play(device, conversation((USER, STRANGER)))
        async with world.device(codec="mp3") as refused:
            await refused.ended()
        await world.sessions_ended()
        after = await scrape(world)
    assert before.keys() == after.keys()
    ours = {name: value for name, value in before.items() if name.startswith("omi_rt_")}
    not_zero = {name.partition("{")[0] for name, value in ours.items() if value}
    assert not_zero <= {"omi_rt_build_info", "omi_rt_max_sessions", "omi_rt_loop_load"}
    assert sum("process_resident_memory_bytes" in name for name in before) == 1
    assert sum("python_info" in name for name in before) == 1


async def test_the_audio_of_a_running_session_is_counted_as_it_comes(
    autojump_clock: MockClock,
) -> None:
    script = random_script(Random(3), 30.0)
    async with listening_server() as (world, _fake), world.device() as device:
        seen = []

        async def watch() -> None:
            while True:
                await trio.sleep(5)
                seen.append(await scrape(world))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            ended = await play(device, script)
            nursery.cancel_scope.cancel()
        await world.sessions_ended()
        last = await scrape(world)
    received = [each["omi_rt_received_seconds_total"] for each in seen]
    assert received[:5] == pytest.approx([5, 10, 15, 20, 25], abs=0.3)
    for each in seen:
        states = by(each, "omi_rt_audio_seconds_total", "state")
        balance = sum(states.values()) + each["omi_rt_pending_seconds"]
        assert balance == pytest.approx(each["omi_rt_received_seconds_total"])
    assert seen[4]['omi_rt_audio_seconds_total{state="finalised"}'] > 15
    assert seen[4]['omi_rt_provider_seconds_total{purpose="live"}'] > 20
    assert last["omi_rt_pending_seconds"] == 0.0
    assert not world.metrics.audio._running, "a session that has ended is let go of"
    assert last["omi_rt_received_seconds_total"] == ended["received"] == 30.0
    assert by(last, "omi_rt_audio_seconds_total", "state") == {"finalised": 30.0}
    assert by(last, "omi_rt_provider_seconds_total", "purpose") == {"live": 30.0}


def test_sums_of_any_rates_never_fall_and_do_not_change_when_a_session_ends() -> None:
    class Decoder:
        concealed_packets = 0

    def value(accounts: AudioAccounts) -> float:
        (family,) = [f for f in accounts.collect() if f.name == "omi_rt_received_seconds"]
        return family.samples[0].value

    random, accounts = Random(1), AudioAccounts()
    running: list[AudioAccount] = []
    before = 0.0
    for _ in range(2000):
        step = random.random()
        if step < 0.1 or not running:
            rate = random.choice([8000, 11_025, 16_000, 44_100, 47_999])
            coverage = Coverage(AudioFormat(rate, 1), 60.0)
            running.append(AudioAccount(coverage, Cost(), Decoder()))
            accounts.open(running[-1])
        elif step < 0.19:
            account = running.pop(random.randrange(len(running)))
            accounts.close(account)
            accounts.close(account)
            assert value(accounts) == before
        else:
            random.choice(running).coverage.ledger.received += random.randrange(1, 1000)
        assert value(accounts) >= before
        before = value(accounts)
    assert before > 10


async def test_dials_are_counted_by_what_they_were_for(autojump_clock: MockClock) -> None:
    faults = FaultScript.of(
        [Unreachable()], [Refuse(status=429)], [Close(code=1011, after_audio=30.0)]
    )
    async with (
        listening_server(faults=faults, profiles=stored(), options=Options(seed=1)) as (world, _),
        world.device() as device,
    ):
        await play(device, conversation((USER, STRANGER), 200.0))
        series = await scrape(world)
    failed = {k: v for k, v in series.items() if 'outcome="failed"' in k}
    opened = {k: v for k, v in series.items() if 'outcome="open"' in k}
    assert by(failed, "omi_rt_provider_dials_total", "cause") == {"first": 1, "redial": 1}
    causes = by(opened, "omi_rt_provider_dials_total", "cause")
    assert causes["redial"] >= 1
    assert causes.keys() & {"primed", "relabel"}
    assert by(series, "omi_rt_provider_refusals_total", "status") == {"429": 1}


async def test_a_degraded_session_shows_for_as_long_as_it_is(autojump_clock: MockClock) -> None:
    faults = FaultScript.of([Close(code=1011, after_audio=3.0)], *[[Unreachable()]] * 4)
    async with listening_server(faults=faults) as (world, _fake):
        async with world.device() as device, trio.open_nursery() as nursery:
            nursery.start_soon(play, device, random_script(Random(3), 40.0))
            assert (await scrape(world))["omi_rt_sessions_degraded"] == 0
            await device.until(lambda: "stt_degraded" in device.statuses())
            assert (await scrape(world))["omi_rt_sessions_degraded"] == 1
            await device.until(lambda: "stt_recovered" in device.statuses())
            assert (await scrape(world))["omi_rt_sessions_degraded"] == 0


async def test_a_session_that_ends_degraded_is_no_longer_counted(
    autojump_clock: MockClock,
) -> None:
    async with running_server(unreachable) as world:
        async with world.device() as device:
            await device.until(lambda: "stt_degraded" in device.statuses())
            assert (await scrape(world))["omi_rt_sessions_degraded"] == 1
            await device.finish()
        await world.sessions_ended()
        assert (await scrape(world))["omi_rt_sessions_degraded"] == 0


async def test_breaker_drain_and_room_are_gauges(autojump_clock: MockClock) -> None:
    faults = FaultScript.of([Refuse(status=401)])
    settings = Settings(deepgram_api_key="secret", max_sessions=7)
    async with listening_server(faults=faults, settings=settings) as (world, _fake):
        series = await scrape(world)
        assert series["omi_rt_max_sessions"] == 7
        assert series["omi_rt_breaker_open"] == series["omi_rt_draining"] == 0
        async with world.device() as device:
            await device.ended()
        series = await scrape(world)
        assert series["omi_rt_breaker_open"] == 1
        assert by(series, "omi_rt_provider_refusals_total", "status") == {"401": 1}
        world.server.drain()
        assert (await scrape(world))["omi_rt_draining"] == 1


async def test_requests_that_are_closed_at_once_are_counted_by_code(
    autojump_clock: MockClock,
) -> None:
    async with running_server(unreachable) as world:
        for parameters in ({"codec": "mp3"}, {"channels": "9"}):
            async with world.device(**parameters) as device:
                await device.ended()
        assert by(await scrape(world), "omi_rt_requests_closed_total", "code") == {"1008": 2}


async def test_finalisation_lag_has_one_observation_for_each_second_of_audio(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), world.device() as device:
        await play(device, random_script(Random(3), 30.0))
        series = await scrape(world)
    name = "omi_rt_finalisation_lag_seconds"
    assert series[f"{name}_count"] == 30
    assert 0.2 < series[f"{name}_sum"] / 30 < 6
    buckets = [v for k, v in series.items() if k.startswith(f"{name}_bucket")]
    assert buckets == sorted(buckets)


async def test_audio_that_is_lost_has_no_lag(autojump_clock: MockClock) -> None:
    async with running_server(unreachable) as world, world.device() as device:
        await play(device, random_script(Random(3), 10.0))
        assert (await scrape(world))["omi_rt_finalisation_lag_seconds_count"] == 0


async def test_after_a_loss_only_what_became_final_has_a_lag(autojump_clock: MockClock) -> None:
    faults = FaultScript.of(*[[Unreachable()]] * 14)
    async with (
        listening_server(faults=faults, backlog_seconds=5.0) as (world, _),
        world.device() as device,
    ):
        ended = await play(device, random_script(Random(3), 150.0))
        series = await scrape(world)
    assert 20 < ended["lost"] < 140
    count = series["omi_rt_finalisation_lag_seconds_count"]
    assert count == pytest.approx(ended["finalised"], abs=2)


def test_receipts_are_one_a_step_and_leave_once() -> None:
    receipts = ReceiptTimes(10)
    for end, now in ((4, 1.0), (9, 2.0), (12, 3.0), (41, 4.0)):
        receipts.record_received(end, now)
    assert receipts.record_finalised(9, 5.0) == []
    assert receipts.record_finalised(20, 5.0) == [2.0, 1.0]
    assert receipts.record_finalised(20, 6.0) == []
    receipts.record_given_up(35)
    assert receipts.record_finalised(100, 6.0) == [2.0]
    receipts.record_received(50, 7.0)
    assert receipts.record_finalised(50, 8.0) == [1.0]


def test_losses_that_are_apart_are_told_apart() -> None:
    told: list[dict[str, Any]] = []
    report = HealthReport("s", AudioFormat(1000, 1), Metrics(), told.append, get_logger())
    report.note_loss(Gap(0, 500))
    report.note_loss(Gap(5000, 5400))
    report.note_loss(Gap(5400, 5500))
    report.close()
    assert [(event["start"], event["end"]) for event in told] == [(0.0, 0.5), (5.0, 5.5)]
