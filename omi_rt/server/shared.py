"""What all sessions of one server process share."""

from __future__ import annotations

from typing import Any

from attrs import Factory, field, frozen

from omi_rt.auth.login import Login
from omi_rt.core.budget import BacklogBudget
from omi_rt.core.observers import Watch
from omi_rt.deepgram.provider import Provider
from omi_rt.metrics import Metrics
from omi_rt.net.certificate import Certificate
from omi_rt.profiles.service import Profiles
from omi_rt.server.resumable import WAITING_SHARE, ResumableSessions
from omi_rt.server.watching import Watching
from omi_rt.settings import Settings


@frozen
class Shared:
    """The parts of the process that a session needs, as one value. It owns none of them."""

    settings: Settings
    provider: Provider
    metrics: Metrics
    budget: BacklogBudget
    """Bounds the bytes of audio that all sessions keep together."""
    profiles: Profiles | None = None
    """Stored voices; None where speech profiles are switched off."""
    login: Login | None = None
    """Tells whose a token is; None where clients are believed."""
    certificate: Certificate | None = None
    """For TLS; None where it is not spoken here."""
    watches: tuple[Watch, ...] = ()
    """Make the observers of each session."""
    resumable: ResumableSessions[Any] = field(
        default=Factory(lambda self: _resumable(self.settings), takes_self=True)
    )
    """Those sessions that another connection may take up."""
    watching: Watching = field(
        default=Factory(lambda self: Watching(self.metrics), takes_self=True)
    )
    """The running sessions, for whoever watches them."""


def _resumable(settings: Settings) -> ResumableSessions[Any]:
    return ResumableSessions(max(1, int(settings.max_sessions * WAITING_SHARE)))
