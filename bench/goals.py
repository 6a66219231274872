"""The goals, and whether the measured ratios meet them."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from bench import records
from bench.records import CAPACITY, GRID, MEMORY, OVERLOAD, Figure, Records, Spread, Term
from bench.scenarios import OVERLOAD_FACTOR, Scenario
from bench.servers import ASYNCIO, FLOOR, OURS

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
    plain_400, step_250 = Scenario(400).name, Scenario(250, in_step=True).name
    p99, back, cpu = records.p99_to_provider, records.p99_to_device, records.cpu

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

    return [
        *(
            against(f"p99 device to provider, {name}", (GRID, name), p99, ASYNCIO, 1)
            for name in (plain_60, plain_250, plain_400)
        ),
        Goal(
            "p99 device to provider, 400 streams, ms",
            5,
            True,
            run.spread(GRID, plain_400, OURS, p99),
        ),
        against("p99 device to provider, 250 streams in step", (GRID, step_250), p99, ASYNCIO, 2),
        *(
            against(f"p99 provider to device, {name}", (GRID, name), back, ASYNCIO, 1.2)
            for name in (plain_60, plain_250)
        ),
        *(
            against(f"CPU per stream-second, {name}", (GRID, name), cpu, peer, limit)
            for codec, most in (("linear16", 1.8), ("opus", 1.5))
            for name in (Scenario(60, codec).name, Scenario(250, codec).name)
            for peer, limit in ((ASYNCIO, 1.0), (FLOOR, most))
        ),
        Goal("streams per core", 900, False, run.spread(CAPACITY, "", OURS, records.streams)),
        against("streams per core", (CAPACITY, ""), records.streams, ASYNCIO, 1.6, False),
        Goal(
            f"p99 of finals over that of frames, at {OVERLOAD_FACTOR:g} times the streams per core",
            2,
            True,
            run.ratio(Term(OVERLOAD, "", OURS, back), Term(OVERLOAD, "", OURS, p99)),
        ),
        Goal(
            "memory per running stream, KiB",
            60,
            True,
            run.spread(
                MEMORY, "", OURS, lambda figures: records.running_memory(figures) / KIBIBYTE
            ),
        ),
        against("memory per running stream", (MEMORY, ""), records.running_memory, ASYNCIO, 1),
        *(
            Goal(
                f"{title} with {where} over plain, {number} streams",
                1.5,
                True,
                run.ratio(
                    Term(GRID, scenario.name, OURS, figure),
                    Term(GRID, Scenario(number).name, OURS, figure),
                ),
            )
            for number in (60, 250)
            for where, scenario in (
                ("TLS upstream", Scenario(number, tls=True)),
                ("device TLS and login", Scenario(number, guarded=True)),
            )
            for title, figure in (("p99 device to provider", p99), ("CPU per stream-second", cpu))
        ),
    ]


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
