"""The query of ``/v1/listen``, judged as Deepgram judges it: the slightest mistake is a 400.

Sources: Deepgram's AsyncAPI specification of ``/v1/listen`` (2026-07) and its feature pages. This
provider transcribes ``linear16`` alone; containers and other encodings are refused.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from attrs import field, frozen

from omi_rt.core.live_api import (
    ENCODINGS,
    LISTEN_PATH,
    MAX_COUNTS,
    REPEATABLE,
    Refused,
    bad_parameter,
    check_value,
    is_whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Collection

MAX_CHANNELS = 20
SAMPLE_RATES = range(8_000, 48_001)
_MODEL = re.compile(
    r"nova-3(-(general|medical))?"
    r"|nova-2(-(general|meeting|finance|conversationalai|voicemail|video|medical|drivethru"
    r"|automotive|phonecall|atc))?"
    r"|nova(-(general|phonecall|medical))?"
    r"|enhanced(-(general|meeting|phonecall|finance))?"
    r"|base(-(general|meeting|phonecall|finance|conversationalai|voicemail|video))?"
    r"|general|meeting|phonecall|finance|conversationalai|voicemail|video"
    r"|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{4})?(-([A-Z]{2}|[a-z]{2}|\d{3}))?|multi")


@frozen
class ListenParameters:
    """What a connection asked for."""

    sample_rate: int
    channels: int = 1
    multichannel: bool = False
    diarize: bool = False
    punctuate: bool = False
    """Whether words are punctuated; ``smart_format`` asks for that too."""
    languages: bool = False
    """Whether words carry their language, as they do with ``language=multi``."""
    endpointing: float | None = 0.010
    """Seconds of pause that end an utterance; None where endpointing is off. Deepgram's default is
    10 ms."""
    model: str = "base-general"
    interim_results: bool = False
    vad_events: bool = False
    utterance_end: float | None = None
    """Seconds without a word after which UtteranceEnd is sent; None for never."""
    pairs: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """The query as it came."""

    @property
    def tracks(self) -> int:
        """How many channels are transcribed, which is one where they are mixed."""
        return self.channels if self.multichannel else 1

    def all_of(self, name: str) -> list[str]:
        """Every value that was given for ``name``, in order."""
        return [value for key, value in self.pairs if key == name]


def parse_target(target: str, extra: Collection[str] = ()) -> ListenParameters:
    """Judge the target of an upgrade request.

    Args:
        target: the request's path and query.
        extra: further names of parameters that are let through unjudged.

    Raises:
        Refused: with 404 for another path, else with 400 and a message that names the parameter.
    """
    try:
        parts = urlsplit(target)
    except ValueError:
        raise bad_parameter("the target is malformed") from None
    if parts.path != LISTEN_PATH:
        raise Refused(HTTPStatus.NOT_FOUND, "NOT_FOUND", "no such path")
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise bad_parameter("the query is malformed") from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name in extra:
            continue
        check_value(name, value)
        if name in values and name not in REPEATABLE:
            raise bad_parameter(f"{name} is given twice")
        values[name] = value
    for name, most in MAX_COUNTS.items():
        if sum(key == name for key, _ in pairs) > most:
            raise bad_parameter(f"more than {most} of {name}")
    _check_combinations(values)
    return ListenParameters(
        sample_rate=int(values["sample_rate"]),
        channels=int(values.get("channels", "1")),
        multichannel=_is_on(values, "multichannel"),
        diarize=_is_on(values, "diarize") or "diarize_model" in values,
        punctuate=_is_on(values, "punctuate", "smart_format", "detect_entities"),
        languages=values.get("language") == "multi",
        endpointing=_endpointing(values.get("endpointing", "10")),
        model=values.get("model", "base-general"),
        interim_results=_is_on(values, "interim_results"),
        vad_events=_is_on(values, "vad_events"),
        utterance_end=(
            int(values["utterance_end_ms"]) / 1000 if "utterance_end_ms" in values else None
        ),
        pairs=tuple(pairs),
    )


def _is_on(values: dict[str, str], *names: str) -> bool:
    return any(values.get(name) == "true" for name in names)


def _check_combinations(values: dict[str, str]) -> None:
    """Judge what must go together."""
    encoding = values.get("encoding")
    if encoding is None:
        raise bad_parameter("encoding is missing, and this provider reads no containers")
    if encoding not in ENCODINGS:
        raise bad_parameter("encoding is unknown")
    if encoding != "linear16":
        raise bad_parameter("encoding must be linear16 with this provider")
    if "sample_rate" not in values:
        raise bad_parameter("sample_rate is missing")
    if int(values["sample_rate"]) not in SAMPLE_RATES:
        raise bad_parameter("sample_rate is out of range")
    if not 1 <= int(values.get("channels", "1")) <= MAX_CHANNELS:
        raise bad_parameter("channels is out of range")
    model = values.get("model", "base-general")
    if _MODEL.fullmatch(model) is None:
        raise bad_parameter("no such model")
    language = values.get("language", "en")
    if _LANGUAGE.fullmatch(language) is None:
        raise bad_parameter("no such language")
    if language == "multi" and not model.startswith(("nova-2", "nova-3")):
        raise bad_parameter("no such model/language combination")
    if "keyterm" in values and not model.startswith("nova-3"):
        raise bad_parameter("keyterm needs a nova-3 model")
    if "keywords" in values and model.startswith("nova-3"):
        raise bad_parameter("keywords does not go with a nova-3 model")
    if "language_hint" in values and not (model.startswith("nova-3") and language == "multi"):
        raise bad_parameter("language_hint needs a nova-3 model and language=multi")
    if values.get("diarize_model", "latest") not in {"latest", "v1"}:
        raise bad_parameter("diarize_model must be latest or v1 when streaming")
    if "utterance_end_ms" in values and not (
        _is_on(values, "interim_results") and int(values["utterance_end_ms"]) >= 1000
    ):
        raise bad_parameter("utterance_end_ms needs interim_results and at least 1000")
    if _is_on(values, "dictation") and not _is_on(values, "punctuate"):
        raise bad_parameter("dictation needs punctuate")
    _endpointing(values.get("endpointing", "10"))


def _endpointing(value: str) -> float | None:
    if value == "false":
        return None
    if not is_whole_number(value):
        raise bad_parameter("endpointing must be milliseconds or false")
    return int(value) / 1000
