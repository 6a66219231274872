"""Deepgram's messages as they should be: what goes out, as JSON.

The shapes are those of Deepgram's AsyncAPI specification of ``/v1/listen`` (2026-07); its official
clients require all of these fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from omi_rt.core.json import JSONError, dumps, loads
from omi_rt.fake.labelling import Labelling, Labels

if TYPE_CHECKING:
    from random import Random

    from omi_rt.fake.finals import Final
    from omi_rt.fake.parameters import ListenParameters

MODEL_NAME = "made-up-language"
CLOSE_REASONS = {
    1008: "DATA-0000: the payload cannot be decoded as audio",
    1011: "Deepgram did not provide a response message within the timeout window. "
    "See https://dpgr.am/net0000",
}
IDLE_REASON = (
    "Deepgram did not receive audio data or a text message within the timeout window. "
    "See https://dpgr.am/net0001"
)


_GOOD_LABELS = Labelling()


@frozen
class RawFrame:
    """A frame that a well-behaved server does not send."""

    opcode: int
    payload: bytes


@frozen
class Closing:
    """The end of the connection, in its place among the messages."""

    code: int
    reason: str = ""


Outgoing = str | RawFrame | Closing


class MessageMaker:
    """The messages of one connection.

    Speaker labels are drawn anew for each connection and channel, in no order: the first voice to
    be heard is not always 0.
    """

    def __init__(
        self,
        parameters: ListenParameters,
        request_id: str,
        rng: Random,
        *,
        decimals: int,
        jitter: float,
        labelling: Labelling = _GOOD_LABELS,
    ) -> None:
        """Draw the labels.

        Args:
            parameters: what the connection asked for.
            request_id: the connection's id.
            rng: the source of the labels, the model's id and the jitter.
            decimals: digits after the decimal point of a time.
            jitter: seconds by which a word's times are wrong at most, either way.
            labelling: what goes wrong in telling voices apart.
        """
        self._parameters = parameters
        self._rng = rng
        self._decimals = decimals
        self._jitter = jitter
        self._request_id = request_id
        self._labels = [Labels(labelling, rng) for _ in range(parameters.tracks)]
        model = random_uuid(rng)
        info = {"name": MODEL_NAME, "version": "1", "arch": "tones"}
        self._metadata = {
            "request_id": self._request_id,
            "model_uuid": model,
            "model_info": info,
        }
        self._models = {"models": [model], "model_info": {model: info}}

    def results(self, final: Final, channel: int) -> dict[str, Any]:
        """Make the Results message of a final."""
        parameters = self._parameters
        start, end = self._seconds(final.start), self._seconds(final.end)
        words = self._words(final, channel)
        alternative: dict[str, Any] = {
            "transcript": " ".join(word.get("punctuated_word", word["word"]) for word in words),
            "confidence": min((word["confidence"] for word in words), default=0.0),
            "words": words,
        }
        if parameters.languages:
            alternative["languages"] = ["en"] if words else []
        return {
            "type": "Results",
            "channel_index": [channel, parameters.tracks],
            "duration": round(end - start, self._decimals),
            "start": start,
            "is_final": True,
            "speech_final": final.speech_final,
            "from_finalize": final.from_finalize,
            "channel": {"alternatives": [alternative]},
            "metadata": self._metadata,
        }

    def metadata(self, samples: int, offset: float, sha256: str, created: str) -> str:
        """Make the Metadata message. Where no audio has come, it counts no channels either."""
        duration = max(0.0, self._seconds(samples) + offset)
        return dumps(
            {
                "type": "Metadata",
                "transaction_key": "deprecated",
                "request_id": self._request_id,
                "sha256": sha256,
                "created": created,
                "duration": duration,
                "channels": self._parameters.channels if samples else 0,
                **self._models,
            }
        )

    def _words(self, final: Final, channel: int) -> list[dict[str, Any]]:
        parameters = self._parameters
        labels = self._labels[channel].of_final(final.words)
        words: list[dict[str, Any]] = []
        for heard, label in zip(final.words, labels, strict=True):
            shift = self._rng.uniform(-self._jitter, self._jitter) if self._jitter else 0.0
            word: dict[str, Any] = {
                "word": heard.text,
                "start": max(0.0, self._seconds(heard.start, shift)),
                "end": max(0.0, self._seconds(heard.end, shift)),
                "confidence": round(heard.confidence, 6),
            }
            if parameters.punctuate:
                word["punctuated_word"] = heard.text
            if parameters.diarize:
                word["speaker"] = label
            if parameters.languages:
                word["language"] = "en"
            words.append(word)
        if words and parameters.punctuate:
            if final.starts_sentence:
                words[0]["punctuated_word"] = words[0]["punctuated_word"].capitalize()
            if final.ends_sentence:
                words[-1]["punctuated_word"] += "."
        return words

    def _seconds(self, samples: int, shift: float = 0.0) -> float:
        return round(samples / self._parameters.sample_rate + shift, self._decimals)


def schema_error(text: str) -> str:
    """Make the answer to a text message that cannot be understood; the stream goes on after it."""
    return dumps(
        {
            "type": "Error",
            "variant": "SchemaError",
            "description": "Could not deserialize last text message: expected a known type",
            "message": text[:1000],
        }
    )


def parse_control(text: str | bytes) -> dict[str, Any]:
    """Read the control message in ``text``; the result is empty where there is none."""
    try:
        message = loads(text)
    except JSONError:
        return {}
    return message if isinstance(message, dict) else {}


def random_uuid(rng: Random) -> str:
    """Draw an id."""
    digits = f"{rng.getrandbits(128):032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
