"""What ``omi-rt export`` and ``omi-rt forget`` do, apart from the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omi_rt.auth.tokens import forget_tokens
from omi_rt.core.errors import BadRequest, OmiRtError
from omi_rt.core.ids import ID_RULE, is_valid_id
from omi_rt.core.records import NoRecord
from omi_rt.records.files import find_record, forget

if TYPE_CHECKING:
    from pathlib import Path

    from omi_rt.core.records import Record


class RecordNotFound(OmiRtError):
    """There is no such record; the message is one clear line."""


def read_session(root: Path | None, session: str) -> Record:
    """Read the record of a session, corrected; raises `RecordNotFound` or ``OSError``."""
    if root is None:
        raise RecordNotFound("OMI_RT_TRANSCRIPT_DIR is not set: nothing is kept")
    try:
        return find_record(root, session)
    except NoRecord as error:
        raise RecordNotFound(str(error)) from None


def forget_person(root: Path | None, token_file: Path, uid: str) -> list[str]:
    """Remove the records and tokens of a uid; returns a line for each kind. Raises ``OSError``.

    Raises:
        BadRequest: the uid cannot be one.
    """
    if not is_valid_id(uid):
        raise BadRequest(f"uid: {ID_RULE}")
    files = 0 if root is None else forget(root, uid)
    tokens = "yes" if forget_tokens(token_file, uid) else "none"
    return [f"files removed: {files}", f"tokens removed: {tokens}"]
