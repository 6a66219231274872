"""Logging: one line an event on stderr, through structlog (the one file that imports it).

What goes into a line is named by the caller, field by field: no audio, no transcript, no key.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

_traceback = structlog.processors.format_exc_info


def configure_logging(level: str = "info", form: str = "text") -> None:
    """Set up the process's logging. ``form`` is ``text`` or ``json``."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
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
        processors=[*shared, *([] if form == "text" else [_traceback]), renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    # Libraries log through the standard module; theirs come out in the same form.
    handler = logging.StreamHandler(sys.stderr)
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
