"""Why a connection to the provider is dialled."""

from __future__ import annotations

from enum import Enum


class DialCause(Enum):
    """What a connection to the provider is for."""

    FIRST = "first"
    """A session begins."""
    REDIAL = "redial"
    """The session's own connection failed, or ended with something left to finalise."""
    PRIMED = "primed"
    """It is to hear the stored voices while another connection serves the session, and then to take over."""
    RELABEL = "relabel"
    """After a redial, it is to hear the session's speakers, so that they keep their numbers."""
    PROBE = "probe"
    """It serves no session: the server looks whether the provider takes connections again."""
    FOLLOW_UP = "follow_up"
    """After a switch, it is to hear those who began to speak too late for the lead-in before."""
