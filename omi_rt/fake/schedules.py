"""Random providers, untidy and faulty, that a client with enough backlog survives whole."""

from __future__ import annotations

from random import Random

from attrs import define

from omi_rt.fake.borders import BORDERS, HARMFUL_BORDERS
from omi_rt.fake.faults import (
    HARMFUL,
    MALFORMED,
    Close,
    ConnectionPlan,
    Double,
    Drop,
    Fault,
    FaultScript,
    IgnoreCloseStream,
    Late,
    LyingMetadata,
    Malformed,
    NoAnswer,
    OpenFault,
    Refuse,
    Say,
    Silence,
    Stall,
    Unreachable,
)
from omi_rt.fake.finals import FINALIZE_ANSWERS
from omi_rt.fake.records import Options

MAX_CONNECTIONS = 12
RETRYABLE_STATUSES = (408, 429, 500, 502, 503, 504)
RETRYABLE_CODES = (1000, 1001, 1006, 1011, 1012, 1013)
NET_0000 = "Deepgram did not provide a response message within the timeout window."
NET_0001 = "Deepgram did not receive audio data or a text message within the timeout window."

# A fault costs a client at most this many seconds without progress: 10 s for a dial or a send that
# hangs, 10 s of audio and 10 s more until silence counts as one, and the buffers on the way.
_HANGING_DIAL = 10.0
_STALL = 16.0
_SILENCE = 22.0
_UNANSWERED_CLOSE = 10.0
_OFFENCE = 5.0
_LONGEST_BACK_OFF = 10.0
_SETTLED_AUDIO = 8.0
"""After this much audio a connection has brought results, and the back-off starts afresh."""

_NOISE = sorted(set(MALFORMED) - HARMFUL - {"huge"})
_CONNECTION_ENDING = frozenset({"huge", "invalid_utf8", "binary"})


_LATENESS = ((0.0, 0.0), (0.0, 0.0), (0.0, 2.0), (3.0, 3.0), (1.0, 6.0), (8.0, 8.0), (12.0, 12.0))
_CLAIMS_AHEAD = (0.0, 0.0, 0.0, 10.0, 30.0)
"""Finals claim this many seconds too much. A smaller claim could be of audio that is under way, and then
it could not be told from the truth."""


def random_provider(
    rng: Random, seconds: float, *, channels: int = 1
) -> tuple[Options, FaultScript]:
    """Draw a provider that is slow and untidy, and its faults; together they cost ``seconds``.

    Arguments and the bound are as `random_schedule` has them.
    """
    options = random_options(rng, channels=channels)
    lateness = options.lateness[1]
    # Audio whose results are late is not finalised yet, neither on the old connection nor on the new.
    return options, _Draw(rng, seconds - 2 * lateness, channels, lateness).schedule()


def random_options(rng: Random, *, channels: int = 1) -> Options:
    """Draw how a provider behaves that is well, but slow and untidy.

    No two kinds of untidy borders come together, because between them they could make one word out of
    two. Nor does a word reach over a final that claims too much, because then nothing tells where either
    of them ends.
    """
    borders = rng.choice(("clean", rng.choice(sorted(set(BORDERS) - HARMFUL_BORDERS))))
    claims_ahead = rng.choice(_CLAIMS_AHEAD)
    return Options(
        seed=rng.randrange(1 << 32),
        delay=rng.choice((0.05, 0.2, 1.0)),
        max_utterance=rng.choice((2.0, 5.0)),
        lateness=rng.choice(_LATENESS),
        empty_finals=rng.choice(((3.0, 5.0), None)),
        no_empty_finals=rng.choice((frozenset(), frozenset({rng.randrange(channels)}))),
        finalize=rng.choice(("all", rng.choice(FINALIZE_ANSWERS))),
        borders=borders,
        early_metadata=rng.choice((0, 1, 3)),
        claims_ahead=0.0 if borders == "reaches_over" else claims_ahead,
    )


def random_schedule(rng: Random, seconds: float, *, channels: int = 1) -> FaultScript:
    """Draw faults for the first connections; together they cost a client at most ``seconds``.

    That is the time without progress, with deadlines of 10 s on dials and sends, a silence noticed
    after 20 s, and a full-jitter back-off up to 10 s that is reset when results arrive. A client
    whose backlog is some 15 s longer loses nothing: no fault takes away what was not finalised.

    Args:
        rng: the source of chance; the same state gives the same schedule.
        seconds: the most that all faults together may cost.
        channels: the number of channels, of which one at a time may fall silent.
    """
    return _Draw(rng, seconds, channels).schedule()


@define
class _Draw:
    rng: Random
    budget: float
    channels: int
    lateness: float = 0.0
    """Seconds by which results are late at most."""
    failures: int = 0

    def schedule(self) -> FaultScript:
        plans: list[ConnectionPlan] = []
        while len(plans) < MAX_CONNECTIONS:
            faults = self._connection()
            if not faults:
                break
            plans.append(ConnectionPlan(tuple(faults)))
        return FaultScript(tuple(plans))

    def _connection(self) -> list[Fault]:
        faults: list[Fault] = []
        if self.rng.random() < 0.3:
            fault, cost = self._handshake()
            if self._pay(cost + self._back_off):
                self.failures += 1
                return [fault]
        while self.rng.random() < 0.4:
            soft, cost = self._soft()
            if self._pay(cost):
                faults.append(soft)
        ending, cost = self._ending()
        # A connection that ends before its first results has brought nothing.
        lateness = min(self.lateness, ending.after_audio or self.lateness)
        if self._pay(cost + lateness + self._back_off):
            settled = (ending.after_audio or 0.0) > _SETTLED_AUDIO + self.lateness
            self.failures = 0 if settled else self.failures + 1
            faults.append(ending)
        return faults

    @property
    def _back_off(self) -> float:
        return min(_LONGEST_BACK_OFF, 2.0**self.failures) if self.failures else 0.5

    def _pay(self, cost: float) -> bool:
        if cost > self.budget:
            return False
        self.budget -= cost
        return True

    def _handshake(self) -> tuple[Fault, float]:
        rng = self.rng
        match rng.randrange(5):
            case 0:
                return Unreachable(), 0.0
            case 1:
                return NoAnswer(), _HANGING_DIAL
            case 2:
                # trio-websocket waits out its deadline when TCP ends before the 101.
                return Drop(at=rng.choice(("request", "response"))), _HANGING_DIAL
            case _:
                wait = rng.choice((None, None, 1.0, 3.0))
                return Refuse(status=rng.choice(RETRYABLE_STATUSES), retry_after=wait), wait or 0.0

    def _ending(self) -> tuple[OpenFault, float]:
        rng = self.rng
        at = self._moment()
        match rng.randrange(10):
            case 0 | 1:
                return Drop(after_audio=at), 0.0
            case 2 | 3:
                return Drop(at="frame", after_audio=at), 0.0
            case 4:
                return Drop(at="result", after_audio=at), 0.0
            case 5:
                return Drop(after_results=rng.randint(1, 6), at=rng.choice(("now", "result"))), 0.0
            case 6:
                return Stall(after_audio=at), _STALL
            case 7:
                return Silence(after_audio=at), _SILENCE
            case _:
                code = rng.choice(RETRYABLE_CODES)
                reason = rng.choice((NET_0000, NET_0001)) if code == 1011 else ""
                return Close(code=code, reason=reason, after_audio=at), 0.0

    def _soft(self) -> tuple[OpenFault, float]:
        rng = self.rng
        at = self._moment()
        match rng.randrange(9):
            case 0:
                wait = rng.uniform(0.2, 4.0)
                return Late(seconds=wait, results=rng.randint(1, 4), after_audio=at), wait
            case 1:
                return Double(results=rng.choice((1, 3, None)), after_audio=at), 0.0
            case 2:
                wait = rng.uniform(0.5, 8.0)
                return Stall(seconds=wait, after_audio=at), wait
            case 3:
                wait = rng.uniform(0.5, 8.0)
                return Silence(seconds=wait, after_audio=at), wait
            case 4:
                wait = rng.uniform(0.5, 6.0)
                channel = rng.randrange(self.channels)
                return Silence(seconds=wait, channel=channel, after_audio=at), wait
            case 5:
                offset = rng.choice((-5.0, -0.7, 0.3, 7.0))
                return LyingMetadata(seconds=offset), 0.0
            case 6:
                return IgnoreCloseStream(results=True), _UNANSWERED_CLOSE
            case 7:
                return Say(text='{"type":"News","of":"no concern"}', after_audio=at), 0.0
            case _:
                what = "huge" if rng.random() < 0.02 else rng.choice(_NOISE)
                cost = _OFFENCE + self._back_off if what in _CONNECTION_ENDING else 0.0
                return Malformed(what=what, after_audio=at, results=rng.randint(1, 3)), cost

    def _moment(self) -> float:
        """Draw a moment in seconds of audio, often an early one, where a connection is most fragile."""
        return round(self.rng.choice((self.rng.uniform(0.02, 1.0), self.rng.uniform(1.0, 20.0))), 3)
