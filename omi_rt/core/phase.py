"""The life of one epoch, from its dial to its end, as a table.

All transitions of an epoch's phase are here and nowhere else. The table does not know why a step is
taken; that is decided by `omi_rt.core.exchange` and by whoever owns the epoch.

=========  =========================================================  ==========================
phase      what holds in it                                           left by
=========  =========================================================  ==========================
DIALLING   there is no connection yet                                 OPEN, END
PRIMING    the lead-in goes up and is digested; no session audio      GO_LIVE, END
           does. An epoch without a lead-in passes it at once
LIVE       session audio goes up; the epoch's finals are applied      FINISH, END
FINISHING  no more audio comes from the device; the rest goes up      CLOSE, END
CLOSING    CloseStream has gone up; what it answers is awaited        END
ENDED      nothing counts any more that the connection still says     nothing
=========  =========================================================  ==========================
"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """Where an epoch stands."""

    DIALLING = "dialling"
    PRIMING = "priming"
    LIVE = "live"
    FINISHING = "finishing"
    CLOSING = "closing"
    ENDED = "ended"


class Step(Enum):
    """What moves an epoch on."""

    OPEN = "open"
    """The provider has accepted the connection."""
    GO_LIVE = "go_live"
    """The epoch is to serve the session."""
    FINISH = "finish"
    """The session's audio has ended."""
    CLOSE = "close"
    """All audio has gone up, and CloseStream follows it."""
    END = "end"
    """The connection is over, or another epoch takes its place."""


TRANSITIONS: dict[Phase, dict[Step, Phase]] = {
    Phase.DIALLING: {Step.OPEN: Phase.PRIMING, Step.END: Phase.ENDED},
    Phase.PRIMING: {Step.GO_LIVE: Phase.LIVE, Step.END: Phase.ENDED},
    Phase.LIVE: {Step.FINISH: Phase.FINISHING, Step.END: Phase.ENDED},
    Phase.FINISHING: {Step.CLOSE: Phase.CLOSING, Step.END: Phase.ENDED},
    Phase.CLOSING: {Step.END: Phase.ENDED},
    Phase.ENDED: {},
}


class IllegalStep(RuntimeError):
    """A bug of ours: a step that the phase does not allow."""


def after(phase: Phase, step: Step) -> Phase:
    """Return the phase that follows ``step``.

    Raises:
        IllegalStep: ``phase`` does not allow it.
    """
    try:
        return TRANSITIONS[phase][step]
    except KeyError:
        raise IllegalStep(f"{step.value} while {phase.value}") from None
