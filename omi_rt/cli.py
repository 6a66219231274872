"""The command line: the one file that imports click. What the commands do is elsewhere."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import click
import trio

import omi_rt
from omi_rt.core.errors import OmiRtError, SettingsError
from omi_rt.log import configure_logging
from omi_rt.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

EXIT_FAILED = 1
EXIT_USAGE = 2


@click.group()
@click.version_option(omi_rt.__version__, prog_name="omi-rt")
def main() -> None:
    """Real-time transcription for wearables: audio in at /listen, diarized segments out."""


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option(
    "--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 picks one."
)
def serve(host: str, port: int) -> None:
    """Run the server. Settings come from the environment."""
    from omi_rt.server.main import serve as run_server

    settings = _settings()
    configure_logging(settings.log_level, settings.log_format)
    with _one_line_errors():
        trio.run(partial(run_server, settings, host, port, announce=_announce))


@main.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "--url", default="ws://127.0.0.1:8080/listen", show_default=True, help="The server's address."
)
@click.option("--uid", default="me", show_default=True, help="Who is speaking.")
@click.option(
    "--codec",
    default="opus",
    show_default=True,
    type=click.Choice(["opus", "opus_fs320", "pcm16", "pcm8"]),
)
@click.option(
    "--speed",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1000, min_open=True),
    help="1.0 is real time.",
)
@click.option("--json", "json_output", is_flag=True, help="One segment object a line, no more.")
def stream(file: str, url: str, uid: str, codec: str, speed: float, json_output: bool) -> None:
    """Stream a WAV FILE as a device would, and print the segments."""
    from omi_rt.client.run import run_stream

    sys.exit(run_stream(file, url, uid, codec, speed, json_output))


def _settings(**overrides: str) -> Settings:
    try:
        return load_settings({**os.environ, **overrides})
    except SettingsError as error:
        for problem in error.problems:
            click.echo(f"omi-rt: {problem}", err=True)
        sys.exit(EXIT_USAGE)


def _announce(line: str) -> None:
    click.echo(line, err=True)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn an expected failure into one line and exit status 1."""
    problems: list[Any] = []
    try:
        yield
    except* (OmiRtError, OSError) as group:
        problems = list(_leaves(group))
    for problem in problems[:1]:
        click.echo(f"omi-rt: {problem}", err=True)
        sys.exit(EXIT_FAILED)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
