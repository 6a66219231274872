"""Logging: one line an event on stderr, through structlog (the one file that imports it).

What goes into a line is named by the caller, field by field: no audio, no transcript, no key, no
uid (`pseudonym` stands for it). Ids come first, then what the caller names in its order; what is
zero or missing is left out. Logging never raises and never waits: where the lines go, and what
becomes of those that cannot be written, is `omi_rt.lines`' concern.
"""

from __future__ import annotations

import atexit
import hmac
import logging
import secrets
import sys
from typing import Any, Protocol

import structlog

from omi_rt.lines import LineWriter

IDS = ("session", "uid_hash", "peer", "request_id")
"""The fields that say whom a line is about, in the order in which they stand in it."""
_HEAD = ("timestamp", "level", "event", *IDS)
_HASH_DIGITS = 12

_traceback = structlog.processors.format_exc_info
_lines = LineWriter(None)
_key = secrets.token_bytes(32)
_announcer: Any = None
"""The logger of `announce`; None where the lines are text."""
atexit.register(_lines.flush)


class Announce(Protocol):
    """Takes a line for whoever has started the program; see `announce`."""

    def __call__(self, line: str, event: str = ..., **fields: Any) -> None:
        """Say ``line``."""


def configure_logging(level: str = "info", form: str = "text", key: str = "") -> None:
    """Set up the process's logging.

    Args:
        level: the least level that is logged.
        form: ``text`` or ``json``.
        key: the key of `pseudonym`; where it is empty each process has its own.
    """
    global _key, _announcer
    _lines.write_to(sys.stderr)
    if key:
        _key = key.encode()
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr is not None and sys.stderr.isatty(),
            pad_event_to=0,
            sort_keys=False,
            # The default shows the local variables of every frame: audio, transcripts and keys.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        tidy,
    ]
    processors = [*shared, *([] if form == "text" else [_traceback]), _Guarded(renderer)]
    threshold = getattr(logging, level.upper())
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: _LineLogger(),
        cache_logger_on_first_use=False,
    )
    everything = structlog.make_filtering_bound_logger(logging.NOTSET)
    _announcer = None
    if form == "json":
        _announcer = structlog.wrap_logger(
            _LineLogger(), processors=processors, wrapper_class=everything
        )
    # Libraries log through the standard module; their lines come out in the same form.
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
    """Return the writer of the log, which somebody must run."""
    return _lines


def announce(line: str, event: str = "notice", **fields: Any) -> None:
    """Say something to whoever started this program, at any log level.

    As text it is ``line`` as it is; as JSON it is ``event`` with ``fields``, like the lines around it.
    """
    if _announcer is None:
        _lines.write(line)
    else:
        _announcer.info(event, **fields, message=line)


def pseudonym(uid: str) -> str:
    """Return what stands for a uid in the log: the same for the same uid and key, and no way back.

    It is the beginning of an HMAC-SHA256, so that whoever has the key and a uid can find its lines.
    """
    return hmac.digest(_key, uid.encode("utf-8", "surrogatepass"), "sha256").hex()[:_HASH_DIGITS]


def tidy(_logger: Any, _name: str, fields: Any) -> Any:
    """Put the ids first, leave out what is zero or missing, and round seconds to milliseconds."""
    head = [name for name in _HEAD if name in fields]
    rest = [name for name in fields if name not in _HEAD]
    tidied = {name: _rounded(fields[name]) for name in (*head, *rest)}
    return {name: value for name, value in tidied.items() if not _is_nothing(value)}


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def _is_nothing(value: Any) -> bool:
    return value is None or (type(value) in (int, float, str) and not value)


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
    """The logger that structlog calls with a line that is ready."""

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
