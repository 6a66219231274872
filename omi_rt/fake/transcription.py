"""All the audio of one connection: bytes go in, finals of each channel come out, without a clock."""

from __future__ import annotations

import hashlib
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from omi_rt.fake.borders import Borders
from omi_rt.fake.finals import ChannelTranscriber, Final
from omi_rt.fake.notices import ChannelNotices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omi_rt.fake.language import Samples
    from omi_rt.fake.notices import Notice
    from omi_rt.fake.parameters import ListenParameters
    from omi_rt.fake.records import Options

ChannelFinal = tuple[int, Final]
"""The channel of a final, and the final."""


class StreamTranscriber:
    """Takes a connection's messages as one stream of interleaved linear16.

    Attributes:
        samples: whole samples (per channel) taken so far.
    """

    def __init__(self, parameters: ListenParameters, options: Options, rng: Random) -> None:
        self._parameters = parameters
        self._channels = [
            ChannelTranscriber(
                parameters.sample_rate,
                endpointing=parameters.endpointing,
                max_utterance=options.max_utterance,
                empty_spans=_spans(rng, options.empty_finals_on(channel)),
                minimum_finalize=options.minimum_finalize,
                answer=options.finalize,
                borders=Borders(
                    options.borders, parameters.sample_rate, Random(f"{options.seed}/{channel}")
                ),
            )
            for channel in range(parameters.tracks)
        ]
        self._ends_empty = [
            options.empty_finals_on(channel) is not None for channel in range(parameters.tracks)
        ]
        pause = parameters.utterance_end
        self._noticing = [
            ChannelNotices(
                guesses=parameters.interim_results,
                speech=parameters.vad_events,
                pause=None if pause is None else round(pause * parameters.sample_rate),
            )
            for _ in range(parameters.tracks)
        ]
        self._frame_bytes = 2 * parameters.channels
        self._sha256 = hashlib.sha256()
        self._carry = b""
        self._unheard: list[bytes] = []
        self._heard = 0
        self.samples = 0

    @property
    def seconds(self) -> float:
        """Seconds of audio taken so far."""
        return self.samples / self._parameters.sample_rate

    @property
    def unheard_seconds(self) -> float:
        """Seconds of audio that were taken and have not been heard yet."""
        return (self.samples - self._heard) / self._parameters.sample_rate

    @property
    def sha256(self) -> str:
        """Hash of all that was taken."""
        return self._sha256.hexdigest()

    def take(self, message: bytes) -> None:
        """Take a message; it may end in the middle of a sample. It is heard by `hear`."""
        self._sha256.update(message)
        data = self._carry + message if self._carry else message
        rest = len(data) % self._frame_bytes
        self._carry = b""
        if rest:
            self._carry, data = data[-rest:], data[:-rest]
        self._unheard.append(data)
        self.samples += len(data) // self._frame_bytes

    def hear(self) -> list[ChannelFinal]:
        """Listen to what was taken. A call costs much the same however much there is to hear."""
        if not self._unheard:
            return []
        samples: Samples = np.frombuffer(b"".join(self._unheard), dtype="<i2")
        self._unheard.clear()
        self._heard = self.samples
        count = self._parameters.channels
        if count > 1 and not self._parameters.multichannel:
            samples = samples.reshape(-1, count).mean(axis=1).round().astype("<i2")
            count = 1
        return [
            (index, final)
            for index, channel in enumerate(self._channels)
            for final in channel.feed(samples[index::count])
        ]

    def notices(self, finals: list[ChannelFinal]) -> list[tuple[int, Notice]]:
        """What else is to be said after the ``finals`` that audio has just brought."""
        return [
            (index, notice)
            for index, (channel, noticing) in enumerate(
                zip(self._channels, self._noticing, strict=True)
            )
            for notice in noticing.after(
                (final for each, final in finals if each == index), channel.guess, channel.position
            )
        ]

    def finalize(self, only: int | None = None) -> list[ChannelFinal]:
        """Bring out what is buffered, on one channel or on all."""
        return self.hear() + [
            (index, final)
            for index, channel in enumerate(self._channels)
            if only is None or only == index
            for final in channel.finalize()
        ]

    def close(self) -> list[ChannelFinal]:
        """End the stream."""
        return self.hear() + [
            (index, final)
            for index, channel in enumerate(self._channels)
            for final in channel.close(empty=self._ends_empty[index])
        ]


def _spans(rng: Random, limits: tuple[float, float] | None) -> Iterator[float]:
    while limits is not None:
        yield rng.uniform(*limits)
