"""A provider's clock that is wrong, in results that are otherwise right."""

from __future__ import annotations

from typing import Any

_TIMES = ("start", "end")


def claim_ahead(result: dict[str, Any], received: float, seconds: float) -> dict[str, Any]:
    """Let a final claim that it covers ``seconds`` more than was received; 0 leaves it as it is."""
    if not seconds:
        return result
    return {**result, "duration": round(received + seconds - result["start"], 6)}


def speed_up(result: dict[str, Any], factor: float) -> dict[str, Any]:
    """Multiply all times of a final; 1 leaves it as it is."""
    if factor == 1.0:
        return result
    channel = {
        "alternatives": [
            {**alternative, "words": [_faster(word, factor) for word in alternative["words"]]}
            for alternative in result["channel"]["alternatives"]
        ]
    }
    start, end = result["start"], result["start"] + result["duration"]
    return {
        **result,
        "start": round(start * factor, 6),
        "duration": round((end - start) * factor, 6),
        "channel": channel,
    }


def _faster(word: dict[str, Any], factor: float) -> dict[str, Any]:
    return {**word, **{name: round(word[name] * factor, 6) for name in _TIMES}}
