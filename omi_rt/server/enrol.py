"""Enrolment: a voice that a page has recorded is checked, and stored as a speech profile.

``POST /web/profile`` takes a WAV file. It passes the same checks as ``omi-rt profile put``.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from omi_rt.core.errors import BadRequest, HandshakeFailed, ProfileRefused
from omi_rt.core.json import dumps
from omi_rt.log import get_logger, pseudonym
from omi_rt.profiles.commands import ProfileExists, check_wav, put_profile
from omi_rt.profiles.store import StoreUnavailable, check_id
from omi_rt.server.http import HTTPAnswer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omi_rt.net.handshake import ServerHandshake
    from omi_rt.net.protocol import HTTPRequest
    from omi_rt.profiles.service import Profiles

MAX_BYTES: Final = 4_194_304
"""Of one body: 120 s, the longest profile, take 3.8 MB at 16 kHz."""
BODY_SECONDS: Final = 30.0
"""So long may one body take: on a line of 128 kbit/s ten seconds of speech take 20 s."""
MAX_AT_ONCE: Final = 4
"""So many bodies are taken at once."""
MEDIA_TYPES: Final = frozenset({"audio/wav", "audio/wave", "audio/x-wav", "audio/vnd.wave"})
"""None of them is one that a foreign page may send without being asked about (the CORS protocol)."""
_TRUE: Final = frozenset({"true", "1"})


class Enrolment:
    """Takes recordings over HTTP.

    Args:
        profiles: of the server; None where speech profiles are switched off.
    """

    def __init__(self, profiles: Profiles | None) -> None:
        self._profiles = profiles
        self._under_way = 0

    def refuse(self, request: HTTPRequest) -> HTTPAnswer | None:
        """Decide by a request's head whether its body may come."""
        if request.method != "POST":
            return refusal(HTTPStatus.METHOD_NOT_ALLOWED, "only POST", {"Allow": "POST"})
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in MEDIA_TYPES:
            return refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send a WAV file, as audio/wav")
        if body_bytes(request) == 0:
            return refusal(HTTPStatus.LENGTH_REQUIRED, "say how long it is, in Content-Length")
        if body_bytes(request) > MAX_BYTES:
            return refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the file is over {MAX_BYTES} bytes"
            )
        if self._profiles is None:
            return refusal(
                HTTPStatus.SERVICE_UNAVAILABLE, "speech profiles are switched off on this server"
            )
        return self.refuse_when_busy()

    def refuse_when_busy(self) -> HTTPAnswer | None:
        """Decide whether a body may come beside those that are under way."""
        if self._under_way < MAX_AT_ONCE:
            return None
        return refusal(
            HTTPStatus.SERVICE_UNAVAILABLE, "others are enrolling just now", {"Retry-After": "2"}
        )

    async def take(
        self,
        handshake: ServerHandshake,
        request: HTTPRequest,
        uid: str,
        parameters: Mapping[str, str],
    ) -> HTTPAnswer:
        """Read the body of a request that was not refused, check it, and store it where that is wanted.

        A cancellation while it is stored waits for the end of that.

        Args:
            handshake: has the body.
            request: its head.
            uid: whose voice it is.
            parameters: ``check=true`` stores nothing, ``replace=true`` replaces what is stored.
        """
        self._under_way += 1
        try:
            check_id(uid, "uid")
            wav = await handshake.receive_body(body_bytes(request), BODY_SECONDS)
            return await self._store(uid, wav, parameters)
        except HandshakeFailed as error:
            return refusal(error.status or HTTPStatus.BAD_REQUEST, str(error))
        except BadRequest as error:
            return refusal(HTTPStatus.BAD_REQUEST, str(error))
        except ProfileExists:
            return refusal(HTTPStatus.CONFLICT, "another recording is stored already", exists=True)
        except ProfileRefused as error:
            return refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except StoreUnavailable as error:
            get_logger().warning("profile_not_stored", uid_hash=pseudonym(uid), reason=str(error))
            return refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        finally:
            self._under_way -= 1

    async def _store(self, uid: str, wav: bytes, parameters: Mapping[str, str]) -> HTTPAnswer:
        """Check a recording, and store it where that is wanted.

        Raises:
            OmiRtError: as `put_profile`.
        """
        assert self._profiles is not None
        store = self._profiles.store
        if parameters.get("check", "") in _TRUE:
            seconds = await check_wav(store, wav)
            return as_json(HTTPStatus.OK, {"fit": True, "seconds": seconds, "stored": None})
        replaces = parameters.get("replace", "") in _TRUE
        done = await put_profile(store, uid, wav, force=replaces)
        outcome = done.outcome.name.lower()
        get_logger().info("profile_stored", uid_hash=pseudonym(uid), outcome=outcome)
        return as_json(HTTPStatus.OK, {"fit": True, "stored": outcome})


def body_bytes(request: HTTPRequest) -> int:
    """Return how long a request says that its body is; 0 where it says nothing that can be read."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() and len(length) < 16 else 0


def refusal(
    status: int, reason: str, headers: Mapping[str, str] | None = None, **more: Any
) -> HTTPAnswer:
    """Say why not, in one line."""
    return as_json(status, {"fit": False, "reason": reason} | more, headers)


def as_json(
    status: int, value: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> HTTPAnswer:
    """Make an answer that a script reads, and nobody keeps."""
    return HTTPAnswer(
        status,
        dumps(value),
        "application/json",
        {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(headers or {})},
    )
