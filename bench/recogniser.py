"""The embedded recogniser: what it understands, whom it tells apart, how late it is and what it takes.

``python -m bench.recogniser [--model DIR]``: a worker for each recording, two at a time. Opus goes at real
time, for the delays; the other codecs as fast as they are taken. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from itertools import permutations
from statistics import mean, median, quantiles
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field, frozen

from bench.proc import memory
from bench.speech import SpeechUnavailable, Spoken, Turn, dialogue, human_recordings
from omi_rt.codecs.opus import OpusDecoder, OpusEncoder
from omi_rt.codecs.wav import convert
from omi_rt.core.deepgram import UNKNOWN_SPEAKER
from omi_rt.core.errors import OmiRtError
from omi_rt.local import pipe
from omi_rt.local.accuracy import word_accuracy
from omi_rt.local.capacity import USABLE_SHARE
from omi_rt.local.choice import NO_WHISPER, Choice, choose
from omi_rt.local.pool import start_worker
from omi_rt.local.wire import ListenParameters

if TYPE_CHECKING:
    from omi_rt.local.pool import Worker

CODECS = {"PCM 16 kHz": 16_000, "Opus 16 kHz": 16_000, "PCM 8 kHz": 8_000}
AT_REAL_TIME = "Opus 16 kHz"
AT_ONCE = 2
"""Workers at a time: one for each core."""
STEP_SECONDS = 0.1
MOST_VOICES = 6
"""That labels are matched with by trying every way."""
_OPUS_SAMPLES = 320
_BITRATE = 32_000

SENTENCES = (
    "I would like to go to the market before the shops close this evening.",
    "The train to the city leaves at seven, so we have plenty of time.",
    "Please remember to bring the blue umbrella, because it may rain again.",
    "My brother has borrowed it, but there is another one behind the door.",
    "Good, then let us buy some bread, some apples and a bottle of milk.",
    "We should also look for a present, since her birthday is on Friday.",
    "She told me last week that she wants to read more books about history.",
    "There is a small shop near the bridge that sells nothing but old books.",
)


@frozen
class Heard:
    """What came of one recording."""

    recording: Spoken
    words: tuple[dict[str, Any], ...]
    delays: tuple[float, ...]
    """Seconds from each word's end to its final; empty where the audio was not at real time."""
    last_delays: tuple[float, ...]
    """The same for the last words of finals alone."""
    cpu_share: float
    pss: int
    """Of the worker, at the end, in bytes."""

    @property
    def accuracy(self) -> float:
        text = " ".join(word["word"] for word in self.words)
        return word_accuracy(self.recording.text, text)

    @property
    def speaker_errors(self) -> tuple[int, int]:
        """Words with a wrong speaker, and with none, where labels mean what suits them best."""
        pairs = [(_voice_at(word, self.recording), word["speaker"]) for word in self.words]
        known = [(voice, label) for voice, label in pairs if label != UNKNOWN_SPEAKER]
        voices = sorted({voice for *_, voice in self.recording.turns})
        labels = sorted({label for _, label in known})[:MOST_VOICES]
        # Too few labels: the rest of the voices has none.
        labels += [-1 - n for n in range(max(0, len(voices) - len(labels)))]
        right = max(
            sum(dict(zip(voices, chosen, strict=True))[voice] == label for voice, label in known)
            for chosen in permutations(labels, len(voices))
        )
        return len(known) - right, len(pairs) - len(known)


@define
class _Run:
    """One worker that hears one recording."""

    recording: Spoken
    codec: str
    words: list[dict[str, Any]] = field(factory=list)
    delays: list[float] = field(factory=list)
    last_delays: list[float] = field(factory=list)
    progress: pipe.Progress | None = None
    began: float = 0.0

    async def hear(self, choice: Choice) -> Heard:
        rate = CODECS[self.codec]
        audio = convert(self.recording.audio, rate, 1).pcm
        if self.codec.startswith("Opus"):
            audio = _through_opus(audio, rate)
        worker = await start_worker(choice)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, worker, audio, rate)
                pss = await self._read(worker)
        finally:
            await worker.aclose()
        assert self.progress is not None
        share = self.progress.cpu_seconds / self.progress.worked_seconds
        if self.codec != AT_REAL_TIME:
            self.delays, self.last_delays = [], []
        return Heard(
            self.recording,
            tuple(self.words),
            tuple(self.delays),
            tuple(self.last_delays),
            share,
            pss,
        )

    async def _send(self, worker: Worker, audio: bytes, rate: int) -> None:
        query = f"encoding=linear16&sample_rate={rate}&diarize=true&punctuate=true"
        await worker.send(pipe.open_frame(ListenParameters.from_query(query), "bench"))
        size = round(rate * STEP_SECONDS) * 2
        self.began = trio.current_time()
        for number, begin in enumerate(range(0, len(audio), size), 1):
            if self.codec == AT_REAL_TIME:
                await trio.sleep_until(self.began + number * STEP_SECONDS)
            await worker.send(b"".join(pipe.audio_frames(audio[begin : begin + size])))
        await worker.send(pipe.frame(pipe.Kind.END))

    async def _read(self, worker: Worker) -> int:
        """Read to the end; return the memory that the worker took at last."""
        pss = 0
        while (line := await worker.receive_line()) is not None:
            progress = pipe.parse_progress(line)
            if progress is not None:
                self.progress = progress
                pss = max(pss, _pss(worker))
                continue
            now = trio.current_time() - self.began
            words = json.loads(line)["channel"]["alternatives"][0]["words"]
            self.words += words
            self.delays += [now - word["end"] for word in words]
            self.last_delays += [now - word["end"] for word in words[-1:]]
        return pss


def _pss(worker: Worker) -> int:
    try:
        return memory(worker.pid).pss
    except OSError:
        # It has ended.
        return 0


def _through_opus(pcm: bytes, rate: int) -> bytes:
    encoder, decoder = OpusEncoder(rate, 1, bitrate=_BITRATE), OpusDecoder(rate, 1)
    size = _OPUS_SAMPLES * 2
    pcm += bytes(-len(pcm) % size)
    packets = (encoder.encode(pcm[begin : begin + size]) for begin in range(0, len(pcm), size))
    return b"".join(map(decoder.decode, packets))


def _voice_at(word: dict[str, Any], recording: Spoken) -> str:
    middle = (word["start"] + word["end"]) / 2
    return min(recording.turns, key=lambda turn: max(turn[0] - middle, middle - turn[1]))[2]


def recordings() -> list[Spoken]:
    """Everything that is to be had here; what is not is said on standard error."""
    found: list[Spoken] = []
    for make in (
        partial(_dialogue, "flite rms, slt", "rms", "slt"),
        partial(_dialogue, "flite awb, kal16", "awb", "kal16"),
        human_recordings,
    ):
        try:
            found += make()
        except SpeechUnavailable as error:
            sys.stderr.write(f"left out: {error}\n")
    return found


def _dialogue(name: str, *voices: str) -> list[Spoken]:
    turns = [Turn(voices[n % len(voices)], text) for n, text in enumerate(SENTENCES)]
    return [dialogue(name, *turns)]


async def measure(choice: Choice, codec: str, spoken: list[Spoken]) -> list[Heard]:
    """Let workers hear all recordings, a few at a time; in the order of the recordings."""
    limiter = trio.CapacityLimiter(AT_ONCE)
    heard: dict[str, Heard] = {}

    async def hear(recording: Spoken) -> None:
        async with limiter:
            heard[recording.name] = await _Run(recording, codec).hear(choice)

    async with trio.open_nursery() as nursery:
        for recording in spoken:
            nursery.start_soon(hear, recording)
    return [heard[recording.name] for recording in spoken]


def _rows(name: str, codec: str, heard: list[Heard]) -> list[str]:
    rows = []
    for each in heard:
        wrong, unknown = each.speaker_errors
        said = len(each.words) or 1
        rows.append(
            f"| {name} | {codec} | {each.recording.name} | {each.accuracy:.1%} "
            f"| {wrong / said:.1%} | {unknown / said:.1%} | {_delay(each.delays)} "
            f"| {_delay(each.last_delays)} | {each.cpu_share:.3f} | {each.pss / 2**20:.0f} MiB |"
        )
    return rows


def _delay(delays: tuple[float, ...]) -> str:
    if len(delays) < 2:
        return "–"
    return f"{median(delays):.2f} / {quantiles(delays, n=10)[-1]:.2f} s"


def _summary(name: str, heard: list[Heard]) -> str:
    delays = tuple(delay for each in heard for delay in each.delays)
    last = tuple(delay for each in heard for delay in each.last_delays)
    share = sum(each.cpu_share * each.recording.audio.seconds for each in heard) / sum(
        each.recording.audio.seconds for each in heard
    )
    words = sum(len(each.words) for each in heard) or 1
    wrong = sum(each.speaker_errors[0] for each in heard)
    unknown = sum(each.speaker_errors[1] for each in heard)
    return (
        f"{name}: {mean(each.accuracy for each in heard):.1%} of words (mean over recordings), "
        f"{wrong / words:.1%} of words with a wrong speaker and {unknown / words:.1%} with none, "
        f"delay of a word {_delay(delays)}, of a last word {_delay(last)}, {share:.3f} of a core, "
        f"{USABLE_SHARE / share:.1f} streams of speech on {USABLE_SHARE:.0%} of a core"
    )


async def main(models: list[str]) -> None:
    """Measure every recogniser with every codec, and print what came out."""
    spoken = recordings()
    print("| recogniser | codec | recording | words right | speaker wrong | speaker unknown "
          "| delay of a word, median / p90 | of a last word | CPU | PSS |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    summaries: list[str] = []
    for model in models:
        choice = choose(model)
        everything: list[Heard] = []
        for codec in CODECS:
            heard = await measure(choice, codec, spoken)
            everything += heard
            print("\n".join(_rows(choice.name, codec, heard)), flush=True)
        summaries.append(_summary(choice.name, everything))
    print("\n" + "\n".join(summaries))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.recogniser")
    parser.add_argument("--model", action="append", default=[], help="a directory, besides the two")
    try:
        trio.run(main, [NO_WHISPER, "", *parser.parse_args().model])
    except* OmiRtError as errors:
        sys.exit(f"bench.recogniser: {errors.exceptions[0]}")
