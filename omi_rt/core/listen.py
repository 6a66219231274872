"""What a client asks of a session, and how Omi's apps write it in a query.

The names, defaults and meanings of the parameters are those of the Omi app (2024-08 and later).
Booleans come as text, unknown parameters are ignored. ``pcm8`` is signed 16 bit: the "8" is the kHz
of the first device that sent it, not a depth.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from inspect import unwrap
from urllib.parse import parse_qsl, urlsplit

from attrs import evolve, field, frozen

from omi_rt.core.audio import AudioFormat
from omi_rt.core.errors import BadRequest
from omi_rt.core.ids import ID_RULE, is_valid_id

OPUS_CODECS = frozenset({"opus", "opus_fs320"})
"""Bare Opus packets. A packet says itself how long it is, so the two names mean the same here."""
PCM_CODECS = frozenset({"pcm8", "pcm16", "linear16"})
"""s16le at the declared rate. The 8 of ``pcm8`` names 8 kHz, not the depth (the Omi firmware's
``config.h`` and its app agree on that)."""
OPUS_SAMPLE_RATES = (8000, 12000, 16000, 24000, 48000)
"""The rates in Hz that libopus decodes to and encodes from (RFC 6716, 2.1.3)."""
PCM_SAMPLE_RATES = range(8000, 48001)
MAX_CHANNELS = 8
MAX_OPUS_CHANNELS = 2
"""A bare packet carries at most two (RFC 6716); more needs a container."""

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,3}")
"""A BCP 47 tag, as far as any provider knows them; ``multi`` and ``auto`` have its form."""
_split_url = unwrap(urlsplit)
"""Without its cache: no two clients' targets are the same, and they say whose sessions they are."""
_RAW_RATE = "16000"
"""Hz of the raw audio of clients that do not say what they send."""


@frozen
class ListenRequest:
    """What a client asks for."""

    uid: str
    """Whose voices are known; empty where nobody's are to be."""
    language: str = "en"
    """A BCP 47 tag, ``multi`` or ``auto``."""
    sample_rate: int = 8000
    codec: str = "pcm8"
    channels: int = 1
    include_speech_profile: bool = True
    options: Mapping[str, tuple[str, ...]] | None = field(default=None, repr=False)
    """Deepgram's parameters in the client's own words, which then take the place of the defaults;
    None where the client has none."""
    is_mixed_down: bool = False
    """Whether several channels are transcribed as one."""
    wants_interims: bool = False
    """Whether the client is told what is not final yet."""
    is_transcribed_by_client: bool = False
    """Whether no provider is asked, because the client says what it has heard."""

    @property
    def audio_format(self) -> AudioFormat:
        """The format of the decoded audio."""
        return AudioFormat(self.sample_rate, self.channels)

    @property
    def encoding(self) -> str:
        """The codec, by one name where several mean the same."""
        if self.codec in OPUS_CODECS:
            return "opus"
        return "linear16" if self.codec in PCM_CODECS else self.codec


def split_target(target: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Split a request line's target into its path and its parameters, in order.

    Bytes that are no UTF-8 become lone surrogates, one for each: what differs stays different, and
    no check lets them pass.

    Raises:
        BadRequest: it is no target.
    """
    try:
        parts = _split_url(target)
    except ValueError:
        raise BadRequest("not a request target") from None
    pairs = parse_qsl(parts.query, keep_blank_values=True, errors="surrogateescape")
    return parts.path, tuple(pairs)


def parse_listen(parameters: Mapping[str, str]) -> ListenRequest:
    """Check the parameters of ``/listen``.

    Raises:
        BadRequest: one is missing or out of range; the message names it.
    """
    uid = parameters.get("uid", "")
    if not uid:
        raise BadRequest("uid: required")
    if not _is_text(uid):
        raise BadRequest("uid: not UTF-8")
    if not is_valid_id(uid):
        raise BadRequest(f"uid: {ID_RULE}")
    # Some apps send the parameter empty where the user has chosen none.
    language = parameters.get("language") or "en"
    if not LANGUAGE.fullmatch(language):
        raise BadRequest("language: must be a tag such as en, pt-BR, multi or auto")
    codec = parameters.get("codec", "pcm8")
    if codec not in OPUS_CODECS | PCM_CODECS:
        raise BadRequest("codec: must be one of opus, opus_fs320, pcm8, pcm16, linear16")
    sample_rate = _integer(parameters, "sample_rate", 8000)
    channels = _integer(parameters, "channels", 1)
    if codec in OPUS_CODECS:
        if sample_rate not in OPUS_SAMPLE_RATES:
            raise BadRequest(f"sample_rate: {codec} needs 8000, 12000, 16000, 24000 or 48000")
        if not 1 <= channels <= MAX_OPUS_CHANNELS:
            raise BadRequest(f"channels: {codec} takes 1 or 2")
    if sample_rate not in PCM_SAMPLE_RATES:
        raise BadRequest("sample_rate: must be from 8000 to 48000")
    if not 1 <= channels <= MAX_CHANNELS:
        raise BadRequest(f"channels: must be from 1 to {MAX_CHANNELS}")
    return ListenRequest(
        uid,
        language,
        sample_rate,
        codec,
        channels,
        _boolean(parameters, "include_speech_profile", default="true"),
        wants_interims=_boolean(parameters, "interim", default="false"),
    )


def parse_custom_stt(parameters: Mapping[str, str]) -> bool:
    """Return whether an Omi app transcribes by itself.

    Raises:
        BadRequest: it says neither that it does nor that it does not.
    """
    value = parameters.get("custom_stt") or "disabled"
    if value not in {"enabled", "disabled"}:
        raise BadRequest("custom_stt: must be enabled or disabled")
    return value == "enabled"


def parse_raw_listen(parameters: Mapping[str, str]) -> ListenRequest:
    """Check the parameters of a client that sends raw audio: s16le at 16 kHz, one channel.

    ``sample_rate`` may say another rate. Without a ``uid`` no voice is kept or sent.

    Raises:
        BadRequest: one is out of range; the message names it.
    """
    uid = parameters.get("uid", "")
    named = {
        "uid": uid or "anonymous",
        "codec": "pcm16",
        "sample_rate": parameters.get("sample_rate", _RAW_RATE),
        "language": parameters.get("language", ""),
    }
    request = parse_listen(named)
    return request if uid else evolve(request, uid="", include_speech_profile=False)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _boolean(parameters: Mapping[str, str], name: str, *, default: str) -> bool:
    value = _BOOLEANS.get(parameters.get(name, default).lower())
    if value is None:
        raise BadRequest(f"{name}: must be true or false")
    return value


def _integer(parameters: Mapping[str, str], name: str, default: int) -> int:
    text = parameters.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise BadRequest(f"{name}: must be a whole number")
    return int(text)
