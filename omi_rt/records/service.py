"""Keeps what sessions tell: each notes it in memory, and one task has it written in a thread."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from attrs import define, field

from omi_rt.bucket import BucketUnavailable
from omi_rt.core.observers import Observer, SessionFacts
from omi_rt.core.records import AudioKind, first_line, line_of
from omi_rt.log import get_logger
from omi_rt.metrics import Metrics
from omi_rt.records.files import RecordFiles, mend, remove_old

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from omi_rt.core.updates import Update
    from omi_rt.records.bucket import RecordBucket
    from omi_rt.records.uploads import Uploads

_T = TypeVar("_T")

WRITE_SECONDS: Final = 0.25
"""Between two rounds of writing: so much a crash forgets, and no more."""
MAX_LINE_BYTES: Final = 1_048_576
"""Of one session, that wait to be written; what comes beyond that is lost, and counted."""
MAX_AUDIO_BYTES: Final = 4_194_304
"""Likewise: two minutes at 16 kHz. Where the disk is slower the audio ends there: with a gap in it the
times of the words would no longer fit."""
LOOK_SECONDS: Final = 3600.0
"""Between two looks for what is too old, and for what was not uploaded."""
CLOSE_SECONDS: Final = 10.0
"""For the last round."""


@define(eq=False)
class SessionRecord(Observer):
    """Notes one session."""

    facts: SessionFacts
    files: RecordFiles
    metrics: Metrics
    keeps_audio: bool
    head: bytes = field(default=b"", repr=False)
    """The line that the record begins with, until it is written: nothing can be read without it."""
    lines: list[bytes] = field(factory=list, repr=False)
    audio: list[bytes] = field(factory=list, repr=False)
    line_bytes: int = 0
    audio_bytes: int = 0
    is_closed: bool = False
    has_told: bool = False
    has_lost_audio: bool = False
    """Whether audio could not be written: what was heard until that was known goes nowhere either."""

    def note(self, update: Update) -> None:
        """Keep a line of it, if it is one to be kept."""
        line = line_of(update, self.facts.audio_format)
        if line is not None:
            self.add(line)

    def add(self, line: str) -> None:
        """Keep a line."""
        data = line.encode()
        if self.line_bytes + len(data) > MAX_LINE_BYTES:
            self.metrics.records_lost.labels("line").inc()
            return
        self.lines.append(data)
        self.line_bytes += len(data)

    @property
    def hears_audio(self) -> bool:
        """Whether audio is kept."""
        return self.keeps_audio

    def hear(self, payload: bytes) -> None:
        """Keep the audio, where that is wanted."""
        if not self.keeps_audio:
            return
        if self.audio_bytes + len(payload) > MAX_AUDIO_BYTES:
            self.keeps_audio = False
            self.metrics.records_lost.labels("audio").inc()
            return
        self.audio.append(payload)
        self.audio_bytes += len(payload)

    def close(self) -> None:
        """Let the files be closed once all is written."""
        self.is_closed = True

    @property
    def waits(self) -> bool:
        """Whether there is anything to write; a beginning that failed waits for what follows it."""
        return bool(self.lines or self.audio or (self.head and not self.has_told))

    def forget_written(self, lines: list[bytes], audio: list[bytes]) -> None:
        """Let go of what `write` was given, which is what had come first."""
        del self.lines[: len(lines)], self.audio[: len(audio)]
        self.line_bytes -= sum(map(len, lines))
        self.audio_bytes -= sum(map(len, audio))

    def write(self, lines: list[bytes], audio: list[bytes]) -> str | None:
        """Write in a thread; returns what went wrong, if anything did."""
        problem = None
        try:
            if self.head or lines:
                self.files.write_lines(self.head + b"".join(lines))
                self.head = b""
        except OSError as error:
            self.metrics.records_lost.labels("line").inc(len(lines))
            problem = error.strerror or type(error).__name__
        try:
            if audio and not self.has_lost_audio:
                self.files.write_audio(b"".join(audio))
        except OSError as error:
            self.files.give_up_audio()
            self.keeps_audio, self.has_lost_audio = False, True
            self.metrics.records_lost.labels("audio").inc()
            # Of the two that of the lines is the system's own word; FLAC's library has none.
            problem = problem or error.strerror or type(error).__name__
        return problem


class Records:
    """The records of all sessions, below one folder. ``write_records`` must run for anything to be written.

    Args:
        root: folder; it need not exist.
        metrics: of the server.
        audio: how audio is kept beside the words; None where it is not.
        retention_days: after which a record is removed; 0 is never.
        store: where records go whose sessions have ended; None where they stay in the folder.
        uploads: takes them there; None without ``store``.
    """

    def __init__(
        self,
        root: Path,
        metrics: Metrics,
        *,
        audio: AudioKind | None,
        retention_days: float,
        store: RecordBucket | None = None,
        uploads: Uploads | None = None,
    ) -> None:
        self._root = root
        self._metrics = metrics
        self._audio = audio
        self._retention_days = retention_days
        self._store = store
        self._uploads = uploads
        self._records: list[SessionRecord] = []
        self._limiter = trio.CapacityLimiter(1)

    def watch(self, facts: SessionFacts) -> SessionRecord:
        """Begin the record of a session."""
        files = RecordFiles(self._root, facts, self._audio or AudioKind.WAV)
        head = first_line(facts).encode()
        record = SessionRecord(facts, files, self._metrics, self._audio is not None, head)
        self._records.append(record)
        return record

    async def write_records(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Write what there is, a few times a second; until cancelled, and then once more."""
        task_status.started()
        try:
            while True:
                await self.write()
                await trio.sleep(WRITE_SECONDS)
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await self.write()
            for record in self._records:
                record.files.close()

    async def look_after_records(self) -> None:
        """Mend what an earlier process has left; then remove what is old, hourly, until cancelled.

        What is found that was not uploaded is uploaded.
        """
        limiter = trio.CapacityLimiter(1)
        mended = await trio.to_thread.run_sync(
            mend, self._root, abandon_on_cancel=True, limiter=limiter
        )
        if mended:
            get_logger().info("records_mended", files=mended)
        while True:
            if self._retention_days:
                removed = await trio.to_thread.run_sync(
                    remove_old, self._root, self._retention_days, limiter=limiter
                )
                removed += await self._remove_old_from_store()
                if removed:
                    get_logger().info("records_removed", files=removed)
            if self._uploads is not None:
                await self._uploads.find()
            await trio.sleep(LOOK_SECONDS)

    async def write(self) -> None:
        """Write all that waits. A disk that fails is told once a session, and the session goes on."""
        for record in tuple(self._records):
            is_closed = record.is_closed
            if record.waits:
                # They are let go of once they are written: a cancellation comes before the thread.
                lines, audio = record.lines.copy(), record.audio.copy()
                problem = await self._in_thread(partial(record.write, lines, audio))
                record.forget_written(lines, audio)
                if problem is not None and not record.has_told:
                    record.has_told = True
                    get_logger().error(
                        "record_failed", session=record.facts.id, reason=problem.lower()
                    )
            if is_closed:
                await self._in_thread(record.files.close)
                self._records.remove(record)
                if self._uploads is not None:
                    self._uploads.add(record.files.base)

    async def _remove_old_from_store(self) -> int:
        if self._store is None:
            return 0
        try:
            return await self._store.remove_old(self._retention_days)
        except BucketUnavailable as error:
            get_logger().error("records_not_removed", reason=str(error))
            return 0

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(function, limiter=self._limiter)
