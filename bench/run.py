"""Run the benchmarks: ``python -m bench.run`` (under 45 minutes) or ``--quick`` (under 3).

Servers take turns within a round, and rounds follow one another, so that a machine that grows slower or
faster does so for all of them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import trio
from attrs import asdict, define, evolve, field

from bench.capacity import find_capacity
from bench.extras import measure_memory, measure_profile, measure_reconnect, measure_setup
from bench.goals import evaluate_goals
from bench.machine import describe_machine
from bench.measure import measure
from bench.plots import draw_plots
from bench.processes import ROOT, BenchError
from bench.records import (
    CAPACITY,
    GRID,
    MEMORY,
    OVERLOAD,
    PROFILE,
    RECONNECT,
    SETUP,
    SLOPE,
    Record,
    Records,
)
from bench.report import brief, write_json, write_markdown
from bench.rig import Workshop
from bench.scenarios import FULL, OVERLOAD_FACTOR, QUICK, SLOPE_FRAME_MS, Plan, Scenario
from bench.servers import OURS, SERVERS, Server

Work = Callable[[], Awaitable[Any]]

MEASUREMENT_SECONDS = 90.0
"""No single measurement takes longer; a capacity search is many."""
SEARCH_SECONDS = 300.0


@define
class Session:
    """One run of the plan."""

    plan: Plan
    workshop: Workshop
    servers: frozenset[str]
    """Those that take part."""
    records: Records = field(factory=Records)
    capacities: dict[str, int] = field(factory=dict)
    started: float = field(factory=perf_counter)

    async def run(self) -> None:
        """Every measurement of the plan, round by round, in the time that the plan has."""
        with trio.move_on_after(self.plan.most_seconds) as scope:
            await self._run_rounds()
        if scope.cancelled_caught:
            self._say("time is over: the rest is not measured")

    async def _run_rounds(self) -> None:
        for number in range(1, self.plan.rounds + 1):
            for scenario, names in self.plan.grid:
                for server in self._turn(names, number):
                    await self._measure(GRID, scenario, server, number)
            for count in self.plan.slope:
                scenario = Scenario(count, frame_ms=SLOPE_FRAME_MS)
                for server in self._turn(self.plan.slope_servers, number):
                    await self._measure(SLOPE, scenario, server, number)
            await self._run_extras(number)
            if self.plan.capacity is not None:
                for server in self._turn(self.plan.capacity_servers, number):
                    await self._search(server, number)

    def _turn(self, names: tuple[str, ...], number: int) -> list[Server]:
        """The servers that take part, each round beginning with another one."""
        chosen = [SERVERS[name] for name in names if name in self.servers]
        first = number % len(chosen) if chosen else 0
        return chosen[first:] + chosen[:first]

    async def _measure(self, kind: str, scenario: Scenario, server: Server, number: int) -> None:
        work = partial(measure, self.workshop, server, scenario, self.plan.timing)
        await self._record(kind, scenario.name, server, number, work)

    async def _run_extras(self, number: int) -> None:
        plan, workshop = self.plan, self.workshop
        for server in self._turn(plan.memory_servers, number):
            if plan.memory_streams:
                work: Work = partial(measure_memory, workshop, server, plan.memory_streams)
                await self._record(MEMORY, "", server, number, work)
        for server in self._turn(plan.setup_servers, number):
            if plan.setup_sessions:
                work = partial(measure_setup, workshop, server, plan.setup_sessions)
                await self._record(SETUP, "", server, number, work)
        # What follows is nothing that a peer does.
        for server in self._turn((OURS,), number):
            if plan.reconnect_streams:
                work = partial(measure_reconnect, workshop, server, plan.reconnect_streams)
                await self._record(RECONNECT, "", server, number, work)
            if plan.profile_sessions:
                work = partial(measure_profile, workshop, server, plan.profile_sessions)
                await self._record(PROFILE, "", server, number, work)

    async def _search(self, server: Server, number: int) -> None:
        assert self.plan.capacity is not None
        earlier = self.capacities.get(server.name)
        work = partial(find_capacity, self.workshop, server, self.plan.capacity, earlier, self._say)
        figures = await self._record(CAPACITY, "", server, number, work, SEARCH_SECONDS)
        if figures is not None and figures["streams"]:
            self.capacities[server.name] = figures["streams"]
            if server.name == OURS:
                scenario = Scenario(round(OVERLOAD_FACTOR * figures["streams"]))
                beyond = partial(
                    measure, self.workshop, server, scenario, self.plan.capacity.timing
                )
                await self._record(OVERLOAD, "", server, number, beyond)

    async def _record(
        self,
        kind: str,
        scenario: str,
        server: Server,
        number: int,
        work: Work,
        seconds: float = MEASUREMENT_SECONDS,
    ) -> dict[str, Any] | None:
        """Do the work within its time; what goes wrong is recorded, and the run goes on."""
        figures, error = None, ""
        try:
            with trio.fail_after(seconds):
                figures = asdict(await work())
        except trio.TooSlowError:
            error = f"not done in {seconds:g} s"
        except BenchError as problem:
            error = str(problem)
        self.records.add(Record(kind, scenario, server.name, number, figures, error))
        self._say(f"round {number}: {kind} {scenario} {server.name}: {_summary(figures, error)}")
        return figures

    def _say(self, line: str) -> None:
        print(f"{perf_counter() - self.started:6.0f} s  {line}", file=sys.stderr, flush=True)


def _summary(figures: dict[str, Any] | None, error: str) -> str:
    if figures is None:
        return f"FAILED: {error}"
    if "to_provider" in figures:
        up, down = figures["to_provider"], figures["to_device"]
        warnings = "; ".join(figures["warnings"])
        return (
            f"p99 {up['p99']:.2f} ms up, {down['p99']:.2f} ms down, "
            f"CPU {figures['cpu_ms_per_stream_second']:.2f} ms"
            + (f" ({warnings})" * bool(warnings))
        )
    return ", ".join(
        f"{key} {value:.6g}" for key, value in figures.items() if isinstance(value, int | float)
    )


def write_results(session: Session, machine: dict[str, Any], output: Path | None) -> list[str]:
    """Write JSON, tables and plots; the lines to show at the end.

    The full run's JSON goes to ``bench/results.json`` and the rest to ``bench/results/``; any other run
    has a directory of its own.
    """
    mode = session.plan.mode
    directory = output or ROOT / "bench" / "results" / ("" if mode == "full" else mode)
    directory.mkdir(parents=True, exist_ok=True)
    seconds = perf_counter() - session.started
    goals = evaluate_goals(session.records)
    is_canonical = output is None and mode == "full"
    json_path = (directory.parent if is_canonical else directory) / "results.json"
    write_json(json_path, machine, mode, seconds, session.records, goals)
    plots = draw_plots(directory, session.records)
    page = directory / "results.md"
    write_markdown(page, machine, mode, seconds, session.records, goals, plots)
    lines = []
    for goal in goals:
        if goal.measured is not None:
            relation = "≤" if goal.is_upper else "≥"
            lines.append(
                f"{goal.verdict:12} {goal.figure}: {brief(goal.measured.median)} "
                f"({relation} {brief(goal.limit)})"
            )
    return [*lines, f"{page} and {json_path}, in {seconds:.0f} s"]


def main() -> None:
    """Read the command line, run, write; an interrupt writes what there is."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the short plan")
    parser.add_argument("--servers", default=",".join(SERVERS), help="names, with commas between")
    parser.add_argument("--rounds", type=int, help="instead of the plan's")
    parser.add_argument("--output", type=Path, help="a directory for the results")
    arguments = parser.parse_args()
    servers = frozenset(arguments.servers.split(","))
    if unknown := servers - SERVERS.keys():
        parser.error(f"no such server: {', '.join(sorted(unknown))}")
    is_interrupted = False
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        workshop = Workshop.furnish(Path(directory))
        machine = describe_machine(workshop.cores)
        os.sched_setaffinity(0, {workshop.cores.load})
        plan = QUICK if arguments.quick else FULL
        if arguments.rounds:
            plan = evolve(plan, rounds=arguments.rounds)
        session = Session(plan, workshop, servers)
        try:
            trio.run(session.run)
        except KeyboardInterrupt:
            is_interrupted = True
    print("\n".join(write_results(session, machine, arguments.output)))
    failures = sum(1 for record in session.records.items if record.error)
    if failures:
        print(f"{failures} measurements failed: see the page")
    sys.exit(130 if is_interrupted else 1 if failures else 0)


if __name__ == "__main__":
    main()
