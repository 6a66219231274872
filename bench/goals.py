"""The goals, and whether the measured ratios meet them."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from bench import records
from bench.records import CAPACITY, GRID, MEMORY, Figure, Records, Spread, Term
from bench.scenarios import Scenario
from bench.servers import ASYNCIO, FLOOR, OURS, SDK

GROWTH_LIMIT = 1.05
"""What "falls or stays" allows for the resolution of the figure."""
SATURATED = 0.97
KIBIBYTE = 1024


@frozen
class Goal:
    """A limit on a ratio or on a figure; met when the median keeps it."""

    figure: str
    limit: float
    is_upper: bool
    measured: Spread | None
    """None: not measured in this run."""
    note: str = ""
    is_bound: bool = False
    """The true ratio may be smaller: the peer was not brought to its limit."""

    @property
    def is_met(self) -> bool | None:
        """None: not measured, or what was measured does not decide it."""
        if self.measured is None:
            return None
        middle = self.measured.median
        if self.is_upper:
            return middle <= self.limit
        return None if middle >= self.limit and self.is_bound else middle >= self.limit

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.measured is None:
            return "not measured"
        return {True: "met", False: "not met", None: "not decided"}[self.is_met]


def evaluate_goals(run: Records) -> list[Goal]:
    """All goals, in the order of the issue that set them."""
    plain_60, plain_250 = Scenario(60).name, Scenario(250).name
    step_60, step_250 = Scenario(60, in_step=True).name, Scenario(250, in_step=True).name
    opus_20, opus_10 = Scenario(60, "opus").name, Scenario(60, "opus", 10).name

    def against(
        title: str,
        place: tuple[str, str],
        figure: Figure,
        peer: str,
        limit: float,
        is_upper: bool = True,
    ) -> Goal:
        kind, scenario = place
        ratio = run.ratio(Term(kind, scenario, OURS, figure), Term(kind, scenario, peer, figure))
        is_bound = any(map(_is_bound, run.figures(kind, scenario, peer).values()))
        note = _note(run, place, peer)
        return Goal(f"{title}, ratio to {peer}", limit, is_upper, ratio, note, is_bound)

    p99, cpu = records.p99_to_provider, records.cpu
    return [
        against("p99 device to provider, 60 streams", (GRID, plain_60), p99, SDK, 1 / 40),
        against("p99 device to provider, 60 streams", (GRID, plain_60), p99, FLOOR, 3),
        against("p99 device to provider, 250 streams", (GRID, plain_250), p99, SDK, 1 / 30),
        against("p99 device to provider, 250 streams", (GRID, plain_250), p99, FLOOR, 10),
        against("p99, 60 streams in step", (GRID, step_60), p99, SDK, 1 / 40),
        against("p99, 60 streams in step", (GRID, step_60), p99, FLOOR, 3),
        against("p99, 250 streams in step", (GRID, step_250), p99, SDK, 1 / 30),
        against("p99, 250 streams in step", (GRID, step_250), p99, FLOOR, 10),
        against("streams per core", (CAPACITY, ""), records.streams, SDK, 5, False),
        against("streams per core", (CAPACITY, ""), records.streams, ASYNCIO, 2, False),
        against("streams per core", (CAPACITY, ""), records.streams, FLOOR, 0.5, False),
        against("CPU per stream-second, Opus 20 ms, 60 streams", (GRID, opus_20), cpu, SDK, 0.6),
        against("CPU per stream-second, Opus 20 ms, 60 streams", (GRID, opus_20), cpu, FLOOR, 1.8),
        against("CPU per stream-second, Opus 10 ms, 60 streams", (GRID, opus_10), cpu, SDK, 0.6),
        against("memory per running stream", (MEMORY, ""), records.running_memory, SDK, 0.5),
        Goal(
            "memory per running stream, KiB",
            64,
            True,
            run.spread(
                MEMORY, "", OURS, lambda figures: records.running_memory(figures) / KIBIBYTE
            ),
        ),
        *(
            Goal(
                f"p99 provider to device over device to provider, {scenario}",
                1,
                True,
                run.ratio(
                    Term(GRID, scenario, OURS, records.p99_to_device),
                    Term(GRID, scenario, OURS, p99),
                ),
            )
            for scenario in (plain_60, plain_250)
        ),
        _growth(run),
        *(
            Goal(
                f"{title} with TLS upstream over plain, {number} streams",
                1.5,
                True,
                run.ratio(
                    Term(GRID, Scenario(number, tls=True).name, OURS, figure),
                    Term(GRID, Scenario(number).name, OURS, figure),
                ),
            )
            for number in (60, 250)
            for title, figure in (("p99 device to provider", p99), ("CPU per stream-second", cpu))
        ),
    ]


def _growth(run: Records) -> Goal:
    few, many = Scenario(100).name, Scenario(400).name
    busy = run.spread(GRID, many, OURS, lambda figures: float(figures["server_utilisation"]))
    note = ""
    if busy is not None and busy.median > SATURATED:
        note = "at 400 streams the core is saturated: the ratio says nothing of the cost"
    return Goal(
        "CPU per stream-second at 400 streams over that at 100",
        GROWTH_LIMIT,
        True,
        run.ratio(Term(GRID, many, OURS, records.cpu), Term(GRID, few, OURS, records.cpu)),
        note,
    )


def _is_bound(figures: dict[str, Any]) -> bool:
    """Whether a search for the capacity ended before the server did."""
    return bool(figures.get("is_rig_limited")) or figures.get("failed_at", 0) is None


def _note(run: Records, place: tuple[str, str], peer: str) -> str:
    """What limits the meaning of a ratio."""
    kind, scenario = place
    notes = []
    for server in (OURS, peer):
        for number, figures in run.figures(kind, scenario, server).items():
            if _is_bound(figures):
                notes.append(f"{server}, round {number}: the search ended first, it may carry more")
            latency = figures.get("to_provider")
            if latency and latency["missing"]:
                share = latency["missing"] / latency["count"]
                notes.append(f"{server}, round {number}: {share:.1%} of the frames not yet there")
    return "; ".join(notes)
