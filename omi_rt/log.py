"""Logging: one line an event on stderr, through structlog (the one file that imports it).

What goes into a line is named by the caller, field by field: no audio, no transcript, no key.
Logging never raises and never waits: where the lines go, and what becomes of those that can not be
written, is `omi_rt.lines`' concern.
"""

from __future__ import annotations

import atexit
import logging
import sys
from typing import Any

import structlog

from omi_rt.lines import LineWriter

_traceback = structlog.processors.format_exc_info
_lines = LineWriter(None)
atexit.register(_lines.flush)


def configure_logging(level: str = "info", form: str = "text") -> None:
    """Set up the process's logging. ``form`` is ``text`` or ``json``."""
    _lines.write_to(sys.stderr)
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr is not None and sys.stderr.isatty(),
            pad_event_to=0,
            # The default shows the local variables of every frame: audio, transcripts and keys.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    threshold = getattr(logging, level.upper())
    structlog.configure(
        processors=[*shared, *([] if form == "text" else [_traceback]), _Guarded(renderer)],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: _LineLogger(),
        cache_logger_on_first_use=False,
    )
    # Libraries log through the standard module; theirs come out in the same form.
    handler = _LineHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.WARNING))
    logging.getLogger("omi_rt").setLevel(threshold)


def get_logger(**context: Any) -> Any:
    """Return a logger whose every line carries ``context``."""
    return structlog.get_logger(**context)


def log_lines() -> LineWriter:
    """What the log is written with, for lines without a form of their own, and to be run."""
    return _lines


class _Guarded:
    """A renderer whose failure costs the line and nothing else."""

    def __init__(self, render: Any) -> None:
        self._render = render

    def __call__(self, logger: Any, name: str, event: Any) -> Any:
        try:
            return self._render(logger, name, event)
        except Exception as error:
            _lines.lose()
            raise structlog.DropEvent from error


class _LineLogger:
    """What structlog calls with a line that is ready."""

    def msg(self, message: str) -> None:
        _lines.write(message)

    debug = info = warning = error = critical = exception = msg


class _LineHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a library's line that has no form ends nothing
            _lines.lose()
        else:
            _lines.write(line)
