"""What the provider says: Deepgram's messages, in the size that they really have."""

from __future__ import annotations

from typing import Any

WORDS_PER_FINAL = 12
WORDS_OF_FIRST_SPEAKER = 8
"""The rest are the second speaker's, so that there is something to group."""


REQUEST_ID = "00000000-0000-0000-0000-000000000000"


def make_final(now: int, start: float, end: float, from_finalize: bool) -> dict[str, Any]:
    """A Results message whose first word is the time at which it was made."""
    step = (end - start) / WORDS_PER_FINAL
    words = []
    for n in range(WORDS_PER_FINAL):
        text = f"word{n}" if n else f"t{now}"
        words.append(
            {
                "word": text,
                "start": start + n * step,
                "end": start + (n + 1) * step,
                "confidence": 0.99,
                "speaker": 0 if n < WORDS_OF_FIRST_SPEAKER else 1,
                "speaker_confidence": 0.9,
                "punctuated_word": text,
            }
        )
    return {
        "type": "Results",
        "channel_index": [0, 1],
        "duration": end - start,
        "start": start,
        "is_final": True,
        "speech_final": True,
        "from_finalize": from_finalize,
        "channel": {
            "alternatives": [
                {
                    "transcript": " ".join(str(word["word"]) for word in words),
                    "confidence": 0.99,
                    "words": words,
                }
            ]
        },
        "metadata": {
            "request_id": REQUEST_ID,
            "model_info": {"name": "2-general-nova", "version": "2024-01-18.0", "arch": "nova-2"},
            "model_uuid": "00000000-0000-0000-0000-000000000001",
        },
    }


def make_metadata(seconds: float) -> dict[str, Any]:
    """The summary that ends a stream of so much audio."""
    return {
        "type": "Metadata",
        "transaction_key": "deprecated",
        "request_id": REQUEST_ID,
        "sha256": "0" * 64,
        "created": "2024-01-01T00:00:00.000Z",
        "duration": seconds,
        "channels": 1,
    }
