"""The greatest number of streams that a server carries on one core."""

from __future__ import annotations

from math import ceil, sqrt
from typing import TYPE_CHECKING

from attrs import frozen

from bench.measure import LATENESS_LIMIT_MS, measure
from bench.processes import BenchError
from bench.scenarios import CapacityPlan, Scenario

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.rig import Workshop
    from bench.servers import Server

P99_LIMIT_MS = 50.0
MISSING_LIMIT = 0.001
"""Share of frames, or of finals, that did not arrive at all."""
RIG_STRAINED = 0.85
"""Share of a core at which load generator and provider no longer keep up: a failure is theirs then,"""
SERVER_SATURATED = 0.95
"""unless the server's core is full as well."""
LATER_GROWTH = 1.15
"""Factor of a step in a search that begins where an earlier one ended."""
ATTEMPTS = 2
"""A number of streams has failed when it failed so often: other work on the machine is no verdict."""


@frozen
class Probe:
    """What came of one number of streams."""

    streams: int
    p99_ms: float | None
    """Of the slower way; None: the server failed."""
    passed: bool
    is_rig_limited: bool
    """The load generator and the provider were too busy to tell."""
    error: str = ""


@frozen
class Capacity:
    """The greatest number of streams with p99 under the limit, both ways."""

    streams: int
    failed_at: int | None
    """The least number that failed; None: the search ended before one did."""
    is_rig_limited: bool
    """The failure was the rig's, not the server's: the server may carry more."""
    probes: tuple[Probe, ...]


async def find_capacity(
    workshop: Workshop,
    server: Server,
    plan: CapacityPlan,
    earlier: int | None,
    report: Callable[[str], None],
) -> Capacity:
    """Search upwards in large steps, then between the last success and the first failure.

    Each probe has a fresh server, so that none inherits the backlog of the one before.
    ``earlier``: what an earlier search found, to begin there.
    """
    growth = LATER_GROWTH if earlier else plan.growth
    passed, failed, is_rig_limited = 0, None, False
    probes: list[Probe] = []
    streams = earlier or plan.start
    while True:
        probe = await _probe(workshop, server, streams, plan)
        probes.append(probe)
        report(_describe(probe))
        if probe.passed:
            passed = streams
        else:
            failed, is_rig_limited = streams, probe.is_rig_limited
        following = _next(passed, failed, growth, plan)
        if following is None:
            return Capacity(passed, failed, is_rig_limited, tuple(probes))
        streams = following


def _next(passed: int, failed: int | None, growth: float, plan: CapacityPlan) -> int | None:
    """The number to try next; None when the search is over."""
    if failed is None:
        return min(ceil(passed * growth), plan.most) if passed < plan.most else None
    if not passed:
        return max(int(failed / growth), 1) if failed > 1 else None
    middle = round(sqrt(passed * failed))
    if failed / passed <= plan.precision or middle in {passed, failed}:
        return None
    return middle


async def _probe(workshop: Workshop, server: Server, streams: int, plan: CapacityPlan) -> Probe:
    probe = Probe(streams, None, False, False, "no attempt")
    for _ in range(ATTEMPTS):
        try:
            result = await measure(workshop, server, Scenario(streams), plan.timing)
        except BenchError as error:
            probe = Probe(streams, None, False, False, str(error))
            continue
        ways = (result.to_provider, result.to_device)
        p99_ms = max(way.p99 for way in ways)
        passed = (
            p99_ms < P99_LIMIT_MS
            and all(way.missing <= MISSING_LIMIT * way.count for way in ways)
            and not result.streams_gone
        )
        strained = (
            result.rig_utilisation > RIG_STRAINED or result.lateness_p99_ms > LATENESS_LIMIT_MS
        )
        limited = strained and result.server_utilisation < SERVER_SATURATED
        probe = Probe(streams, p99_ms, passed, limited)
        if passed:
            break
    return probe


def _describe(probe: Probe) -> str:
    verdict = "passed" if probe.passed else "failed"
    if probe.is_rig_limited:
        verdict += ", the rig is at its limit"
    figure = probe.error if probe.p99_ms is None else f"p99 {probe.p99_ms:.1f} ms"
    return f"{probe.streams} streams: {figure}, {verdict}"
