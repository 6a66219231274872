"""Deepgram's messages as they should be: what goes out, as JSON.

The shapes are those of Deepgram's AsyncAPI specification of ``/v1/listen`` (2026-07); its official
clients require all of these fields.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from attrs import frozen

from omi_rt.core import live_api
from omi_rt.core.json import dumps
from omi_rt.fake.labelling import Labelling, Labels
from omi_rt.fake.notices import Guess, Notice, SpeechStarts, UtteranceEnds

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
        self._model = random_uuid(rng)
        self._info = {"name": MODEL_NAME, "version": "1", "arch": "tones"}
        self._metadata = {
            "request_id": self._request_id,
            "model_uuid": self._model,
            "model_info": self._info,
        }

    def results(self, final: Final, channel: int) -> dict[str, Any]:
        """Make the Results message of a final."""
        parameters = self._parameters
        start, end = self._seconds(final.start), self._seconds(final.end)
        words = self._words(final, channel)
        return live_api.results(
            words,
            channel_index=(channel, parameters.tracks),
            start=start,
            duration=round(end - start, self._decimals),
            metadata=self._metadata,
            confidence=min((word["confidence"] for word in words), default=0.0),
            speech_final=final.speech_final,
            from_finalize=final.from_finalize,
            languages=(["en"] if words else []) if parameters.languages else None,
        )

    def notice(self, notice: Notice, channel: int) -> dict[str, Any]:
        """Make the message of a notice."""
        index = channel, self._parameters.tracks
        match notice:
            case SpeechStarts(sample):
                return live_api.speech_started(index, self._seconds(sample))
            case UtteranceEnds(sample):
                return live_api.utterance_end(index, self._seconds(sample))
            case Guess(heard):
                # What it takes voices for now must not bind it later.
                labels = self._labels
                self._labels = deepcopy(labels)
                message = self.results(heard, channel)
                self._labels = labels
                return message | {"is_final": False}

    def configured(self, control: live_api.Control) -> str:
        """Make the answer to Configure."""
        if control.keyterms is not None and not self._parameters.model.startswith("nova-3"):
            code = "CONFIGURE_KEYTERMS_NOT_SUPPORTED"
            return dumps(live_api.configure_failure(self._request_id, code, "not with this model"))
        return dumps(live_api.configure_success(self._request_id, control.keyterms))

    def metadata(self, samples: int, offset: float, sha256: str, created: str) -> str:
        """Make the Metadata message. Where no audio has come, it counts no channels either."""
        duration = max(0.0, self._seconds(samples) + offset)
        return dumps(
            live_api.metadata(
                request_id=self._request_id,
                sha256=sha256,
                created=created,
                duration=duration,
                channels=self._parameters.channels if samples else 0,
                model_uuid=self._model,
                model_info=self._info,
            )
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


def random_uuid(rng: Random) -> str:
    """Draw an id."""
    digits = f"{rng.getrandbits(128):032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
