"""What the client shows. The one file that imports ``rich``.

The transcript goes to standard output; progress and errors go to standard error. A progress line is
drawn only where standard error is a terminal, by the caller's own calls: no thread refreshes it.
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import IO, TYPE_CHECKING, Any, Final, TextIO

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.table import Table
from rich.text import Text

from omi_rt.core.errors import OmiRtError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_BAR_CELLS: Final = 30
_LEAST_BAR_CELLS: Final = 4
_FREE_CELLS: Final = 3
"""This many cells are left free at the end of the progress line. A terminal puts ``^C`` there when it is
pressed; on the next line it could not be erased with the progress."""
_SPEAKER_STYLES: Final = ("cyan", "magenta", "yellow", "green", "blue", "red")
_ERASE_LINE: Final = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))


class OutputClosed(OmiRtError):
    """Standard output cannot be written any more."""


def give_up_output(output: IO[str] | None = None) -> None:
    """Let what is still to be written to ``output``, by default standard output, go nowhere.

    Otherwise the interpreter would meet the same failure when it flushes at its exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), (output or sys.stdout).fileno())


class Terminal:
    """Prints a transcript as it grows, with a progress line below it."""

    def __init__(self, output: TextIO | None = None, errors: TextIO | None = None) -> None:
        """Write to ``output`` and ``errors``, by default standard output and standard error."""
        self._output = sys.stdout if output is None else output
        if isinstance(self._output, io.TextIOWrapper):
            # A transcript may hold letters that the locale cannot write.
            self._output.reconfigure(errors="replace")
        self._console = _console(self._output)
        errors = sys.stderr if errors is None else errors
        if errors is None:
            # Standard error was closed when the process began.
            errors = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
        self._errors = _console(errors)
        self._progress: Text | None = None

    def print_segment(self, segment: Mapping[str, Any]) -> None:
        """Print a segment: its time in seconds, its speaker, its text.

        It is one line, which a terminal that is too narrow gets wrapped between words.

        Raises:
            OutputClosed: standard output cannot be written any more.
        """
        speaker = _printable(segment.get("speaker"))
        if segment.get("is_user") is True:
            speaker += " (user)"
        if "channel" in segment:
            speaker += f" channel {_printable(segment['channel'])}"
        line = Text.assemble(
            (f"{_seconds(segment.get('start'))} - {_seconds(segment.get('end'))}", "dim"),
            "  ",
            (speaker, _speaker_style(segment)),
            "  ",
            _printable(segment.get("text")),
        )
        self._print(line)

    def print_heading(self, text: str) -> None:
        """Print a line above what follows, after an empty line.

        Raises:
            OutputClosed: standard output cannot be written any more.
        """
        self._print(Text(f"\n{text}", "bold"))

    def print_json_line(self, value: Mapping[str, Any]) -> None:
        """Print a value as one line of JSON.

        Raises:
            OutputClosed: standard output cannot be written any more.
        """
        self._write(json.dumps(value) + "\n")

    def print_summary(self, rows: Mapping[str, str]) -> None:
        """Print names and values in two columns, after an empty line.

        Raises:
            OutputClosed: standard output cannot be written any more.
        """
        table = Table.grid(padding=(0, 2))
        for name, value in rows.items():
            table.add_row(Text(name, "bold"), Text(value))
        self._print(Text())
        self._print(table)

    def show_progress(self, seconds: float, total_seconds: float) -> None:
        """Draw how much of the audio has gone out, if there is a terminal."""
        if not self._errors.is_terminal:
            return
        sent = f"{seconds:.1f} of {total_seconds:.1f} s sent"
        room = self._errors.width - _FREE_CELLS - len(sent) - 2
        if room < _LEAST_BAR_CELLS:
            self._progress = Text(sent)
            self._draw_progress()
            return
        cells = min(_MOST_BAR_CELLS, room)
        full, empty = ("=", "-") if self._errors.options.ascii_only else ("━", "─")
        share = min(1.0, seconds / total_seconds) if total_seconds else 1.0
        filled = round(share * cells)
        self._progress = Text.assemble(
            (full * filled, "green"),
            (empty * (cells - filled), "dim"),
            f"  {sent}",
        )
        self._draw_progress()

    def clear_progress(self) -> None:
        """Take the progress line away."""
        if self._progress is not None:
            self._errors.control(_ERASE_LINE)
            self._progress = None

    def print_error(self, message: str) -> None:
        """Print a message to standard error, if anybody is there to read it.

        It is one line, which a terminal that is too narrow gets wrapped between words.
        """
        with self._errors.capture() as capture:
            self._errors.print(Text(_printable(message)), soft_wrap=not self._errors.is_terminal)
        try:
            self.clear_progress()
            self._errors.file.write(capture.get())
            self._errors.file.flush()
        except OSError:
            give_up_output(self._errors.file)

    def _print(self, renderable: Text | Table) -> None:
        # The text is rendered first and written here, because rich answers a closed pipe with SystemExit.
        with self._console.capture() as capture:
            self._console.print(renderable, soft_wrap=not self._console.is_terminal)
        self._write(capture.get())

    def _write(self, text: str) -> None:
        # The two streams may be one terminal, so the progress line makes room and comes back below.
        if self._progress is not None:
            self._errors.control(_ERASE_LINE)
        try:
            self._output.write(text)
            self._output.flush()
        except BrokenPipeError as error:
            raise OutputClosed("standard output was closed") from error
        except OSError as error:
            reason = (error.strerror or "?").lower()
            raise OutputClosed(f"cannot write to standard output: {reason}") from error
        if self._progress is not None:
            self._draw_progress()

    def _draw_progress(self) -> None:
        assert self._progress is not None
        self._errors.control(_ERASE_LINE)
        width = max(1, self._errors.width - _FREE_CELLS)
        self._errors.print(self._progress, end="", overflow="crop", no_wrap=True, width=width)
        self._errors.file.flush()


def _console(file: TextIO) -> Console:
    return Console(file=file, highlight=False, markup=False, emoji=False)


def _speaker_style(segment: Mapping[str, Any]) -> str:
    speaker_id = segment.get("speaker_id")
    number = speaker_id if isinstance(speaker_id, int) else 0
    return _SPEAKER_STYLES[number % len(_SPEAKER_STYLES)]


def _seconds(value: object) -> str:
    return f"{value:8.2f}" if isinstance(value, int | float) else f"{'?':>8}"


def _printable(value: object) -> str:
    """Return text that cannot steer the terminal."""
    text = value if isinstance(value, str) else "?" if value is None else str(value)
    return "".join(character if character.isprintable() else " " for character in text)
