"""Every path on which a session can be opened, and how its clients talk.

===================  ======================  ==================  ==================  ================
path                 who speaks              who it is           what comes          refused by
===================  ======================  ==================  ==================  ================
``/listen``          Omi apps of 2024        ``uid``             arrays, events      close code 1008
``/v2/listen``       Omi apps of late 2024   ``uid``             the same            the same
``/v3/listen``       Omi apps of 2025        ``Bearer`` token    the same            the same
``/v4/listen``       Omi apps since then     ``Bearer`` token    growing segments    the same
``/v4/web/listen``   the web app             the first message   growing segments    the same
``/v1/listen``       clients of Deepgram's   a key; ``uid``      Results, Metadata   HTTP status
``/v1/stt``          the stock Omi app       ``uid``, optional   ``segments``        close code 1008
``/v3/stream``       the device SDKs         ``uid``, optional   ``transcript``      close code 1008
===================  ======================  ==================  ==================  ================

With ``custom_stt=enabled`` clients of ``/v4/listen`` and ``/v4/web/listen`` transcribe by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from attrs import frozen

from omi_rt.core.live_api import LISTEN_PATH
from omi_rt.faces.custom_stt import open_custom_stt
from omi_rt.faces.deepgram import answer_headers, deepgram_token, open_deepgram
from omi_rt.faces.face import Call, Opening, bearer_token
from omi_rt.faces.omi import Proof, Version, needs_provider, omi_token, open_omi
from omi_rt.faces.stream import open_stream


def _no_headers(_call: Call) -> Mapping[str, str]:
    return {}


def _always(_call: Call) -> bool:
    return True


@frozen
class Row:
    """How the clients of one path are met."""

    open: Callable[[Call], Opening]
    """Reads a request; raises `omi_rt.core.errors.BadRequest` or `omi_rt.core.live_api.Refused`."""
    token: Callable[[Call], str] = bearer_token
    """Finds what the client proves itself with, where there is a login; empty if there is nothing. May
    raise `omi_rt.core.live_api.Refused`."""
    headers: Callable[[Call], Mapping[str, str]] = _no_headers
    """Makes the headers of the answer to the upgrade."""
    needs_provider: Callable[[Call], bool] = _always
    """Tells, before the request is read, whether the session is to be transcribed here."""
    refuses_upgrade: bool = False
    """Whether a bad request is answered over HTTP, as Deepgram's clients expect. Elsewhere the upgrade
    is accepted first: an app can read the reason of a close, but no HTTP error."""
    waits_for_proof: bool = False
    """Whether the request is read only after the client's first message."""


def _omi(proof: Proof, *, is_v4: bool = False) -> Row:
    version = Version(proof, grows=is_v4, takes_suggestions=is_v4)
    return Row(
        partial(open_omi, version),
        partial(omi_token, version),
        needs_provider=partial(needs_provider, version),
        waits_for_proof=proof is Proof.FIRST_MESSAGE,
    )


FACES: Mapping[str, Row] = MappingProxyType(
    {
        "/listen": _omi(Proof.UID_PARAMETER),
        "/v2/listen": _omi(Proof.UID_PARAMETER),
        "/v3/listen": _omi(Proof.BEARER_TOKEN),
        "/v4/listen": _omi(Proof.BEARER_TOKEN, is_v4=True),
        "/v4/web/listen": _omi(Proof.FIRST_MESSAGE, is_v4=True),
        LISTEN_PATH: Row(open_deepgram, deepgram_token, answer_headers, refuses_upgrade=True),
        "/v1/stt": Row(open_custom_stt),
        "/v3/stream": Row(open_stream),
    }
)
