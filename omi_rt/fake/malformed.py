"""Messages that are wrong in one way each, all of which a client must survive."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from omi_rt.core.json import dumps
from omi_rt.fake.messages import Outgoing, RawFrame

if TYPE_CHECKING:
    from collections.abc import Sequence

HUGE_BYTES = 10_000_000


def malformed(what: str, result: dict[str, Any], sent: float) -> Outgoing:
    """Make a message that is wrong in the way that ``faults.MALFORMED`` calls ``what``.

    Args:
        what: the way in which it is wrong.
        result: a right message, to begin with.
        sent: seconds of audio that the client has sent so far.
    """
    match what:
        case "invalid_json":
            return '{"type":"Results","channel":{"alternatives":['
        case "invalid_utf8":
            return RawFrame(1, b'{"type":"Results","transcript":"\xff\xfe\xc0"}')
        case "not_an_object":
            return "[1, 2, 3]"
        case "untyped":
            return '{"hello": 1}'
        case "unknown_type":
            return '{"type":"SpeechStarted","channel":[0,1],"timestamp":9.54}'
        case "binary":
            return RawFrame(2, dumps(result).encode())
        case "huge":
            return RawFrame(1, b'{"type":"Huge","padding":"' + b" " * HUGE_BYTES + b'"}')
        case "no_alternatives":
            return dumps({**result, "channel": {"alternatives": []}})
        case "no_channel":
            return dumps({key: value for key, value in result.items() if key != "channel"})
        case "wrong_shapes":
            return dumps({**result, "channel": "left", "channel_index": {"a": 1}, "start": [0]})
        case "jumps_ahead":
            return dumps(_ahead(result, sent))
    wrong = deepcopy(result)
    alternative = wrong["channel"]["alternatives"][0]
    _spoil(what, wrong, alternative, alternative["words"])
    # The standard library writes NaN as some servers do; orjson would write null.
    return json.dumps(wrong)


def _spoil(
    what: str,
    result: dict[str, Any],
    alternative: dict[str, Any],
    words: Sequence[dict[str, Any]],
) -> None:
    match what:
        case "interim":
            result["is_final"] = result["speech_final"] = False
            alternative["transcript"] += " and"
        case "overlap":
            start = max(0.0, result["start"] - 1.0)
            result["duration"] += result["start"] - start
            result["start"] = start
        case "no_words":
            alternative["words"] = []
        case "negative_times":
            _set_times(result, words, -1.0)
        case "nan_times":
            _set_times(result, words, float("nan"))
        case "text_times":
            _set_times(result, words, "soon")
    for word in words:
        match what:
            case "no_speaker":
                word.pop("speaker", None)
            case "text_speaker":
                word["speaker"] = "SPEAKER_B"
            case "no_punctuated_word":
                word.pop("punctuated_word", None)
            case "no_times":
                del word["start"], word["end"]


def _set_times(result: dict[str, Any], words: Sequence[dict[str, Any]], value: Any) -> None:
    result["start"] = result["duration"] = value
    for word in words:
        word["start"] = word["end"] = value


def _ahead(result: dict[str, Any], sent: float) -> dict[str, Any]:
    word = {"word": "ghost", "start": sent + 6.0, "end": sent + 6.2, "confidence": 0.5}
    alternative = {"transcript": "ghost", "confidence": 0.5, "words": [word]}
    return {
        **result,
        "start": sent + 5.0,
        "duration": 5.0,
        "channel": {"alternatives": [alternative]},
    }
