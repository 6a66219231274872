"""What a connection has to say, and when: each channel's order is kept and faults are applied.

There is no clock in here; the time is passed in.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from typing import Any

from attrs import define, field, frozen

from omi_rt.fake.faults import Double, Late, Malformed, Silence
from omi_rt.fake.malformed import malformed
from omi_rt.fake.messages import Outgoing

Queued = Outgoing | dict[str, Any]
"""A message that waits; a result is turned into text only when it is sent."""


@frozen(order=True)
class _Entry:
    due: float
    number: float
    message: Queued = field(eq=False, order=False)
    is_result: bool = field(eq=False, order=False)


@define
class Outbox:
    """Messages that wait for their time.

    Attributes:
        results: how many messages of results were put in, doubled ones counted once.
    """

    results: int = 0
    _entries: list[_Entry] = field(factory=list)
    _number: int = 0
    _last_due: dict[int, float] = field(factory=dict)
    _held: dict[int | None, float] = field(factory=dict)
    _late: list[_Spell] = field(factory=list)
    _doubles: list[_Spell] = field(factory=list)
    _malformed: list[tuple[_Spell, Malformed]] = field(factory=list)

    def begin(self, fault: Silence | Late | Double | Malformed, now: float) -> None:
        """Let a fault begin."""
        match fault:
            case Silence(seconds=seconds, channel=channel):
                until = math.inf if seconds is None else now + seconds
                self._held[channel] = max(until, self._held.get(channel, 0.0))
            case Late(seconds=seconds, results=count):
                self._late.append(_Spell(count, seconds))
            case Double(results=count):
                self._doubles.append(_Spell(count))
            case Malformed(results=count):
                self._malformed.append((_Spell(count), fault))

    def put_result(self, result: dict[str, Any], channel: int, sent: float, now: float) -> None:
        """Add results of a channel.

        Args:
            result: the message as it should be.
            channel: the channel, whose order the message keeps.
            sent: seconds of audio that have come in so far.
            now: the time.
        """
        self.results += 1
        late = sum(spell.amount for spell in self._late if spell.strike())
        due = max(
            now + late,
            self._held.get(channel, 0.0),
            self._held.get(None, 0.0),
            self._last_due.get(channel, 0.0),
        )
        self._last_due[channel] = due
        extras: list[Outgoing] = []
        message: Queued = result
        for spell, fault in self._malformed:
            if spell.strike():
                wrong = malformed(fault.what, result, sent)
                if fault.instead:
                    message = wrong
                else:
                    extras.append(wrong)
        self._push(due, message, is_result=True)
        for spell in self._doubles:
            if spell.strike():
                self._push(due, message, is_result=False)
        for extra in extras:
            self._push(due, extra, is_result=False)

    def put_last(self, message: Outgoing, now: float) -> None:
        """Add a message that must come after all results, even after those that are held.

        A channel that is silent for ever keeps only its own results back.
        """
        held = (
            until for channel, until in self._held.items() if channel is None or until < math.inf
        )
        due = (due for due in self._last_due.values() if due < math.inf)
        self._push(max([now, *held, *due]), message, is_result=False)

    def put_before_last(self, message: Outgoing, now: float, results: int) -> None:
        """Add a message that overtakes the last results; where none wait, it comes last."""
        waiting = sorted(entry for entry in self._entries if entry.is_result)
        overtaken = waiting[-results:] if results else []
        if overtaken:
            first = overtaken[0]
            heappush(self._entries, _Entry(first.due, first.number - 0.5, message, False))
        else:
            self.put_last(message, now)

    def put_notice(self, message: Outgoing, channel: int, now: float) -> None:
        """Add what is no final, in its place among a channel's results; a silent channel drops it."""
        due = max(now, self._last_due.get(channel, 0.0))
        if max(self._held.get(channel, 0.0), self._held.get(None, 0.0)) <= now:
            self._push(due, message, is_result=False)

    def put_now(self, message: Outgoing, now: float) -> None:
        """Add a message that waits for nothing."""
        self._push(now, message, is_result=False)

    @property
    def next_due(self) -> float:
        """When the next message is due; infinity for never."""
        return self._entries[0].due if self._entries else math.inf

    def take(self, now: float) -> tuple[Queued, bool] | None:
        """Take the next message that is due; the flag tells whether it counts as a result."""
        if self.next_due > now:
            return None
        entry = heappop(self._entries)
        return entry.message, entry.is_result

    def _push(self, due: float, message: Queued, *, is_result: bool) -> None:
        self._number += 1
        # A message that is held for ever need not be remembered.
        if due < math.inf:
            heappush(self._entries, _Entry(due, self._number, message, is_result))


@define
class _Spell:
    """A fault that lasts for a number of results, or for all."""

    left: int | None
    amount: float = 0.0

    def strike(self) -> bool:
        """Count a result; tell whether the fault still strikes it."""
        if self.left is None:
            return True
        self.left -= 1
        return self.left >= 0
