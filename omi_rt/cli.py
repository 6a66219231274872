"""The command line: the one file that imports click. What the commands do is elsewhere.

Each command imports what it needs when it runs: ``omi-rt --version`` should not wait for the whole
program to load.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

import omi_rt
from omi_rt.core.errors import OmiRtError, SettingsError
from omi_rt.core.groups import errors_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from omi_rt.profiles.store import ProfileStore
    from omi_rt.settings import Settings

T = TypeVar("T")
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CUT = 3
"""The exit status of a server that was ended by force, and sessions with it."""
EXIT_INTERRUPTED = 130
"""The exit status is 128 + SIGINT, as shells have it."""
_WHOLE_LINE = 1_000
"""A command's description may have this many characters in the list of commands, where click alone would
cut it at 45."""


class _WholeHelp(click.Command):
    def get_short_help_str(self, limit: int = _WHOLE_LINE) -> str:
        return super().get_short_help_str(max(limit, _WHOLE_LINE))


class _Group(_WholeHelp, click.Group):
    command_class: type[click.Command] | None = _WholeHelp
    group_class: type[click.Group | type] | None = type

    def main(self, *args: Any, **kwargs: Any) -> Any:
        _fill_standard_descriptors()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            # The help and the version are printed by click itself, which raises this.
            _give_up(1)
            _complain(f"omi-rt: cannot write to standard output: {_reason(error)}")
            sys.exit(EXIT_FAILED)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(omi_rt.__version__, prog_name="omi-rt")
def main() -> None:
    """Real-time transcription for wearables: audio in at /listen, diarized segments out."""


@main.command()
@click.option("--host", help="Address to bind; else OMI_RT_HOST, else 127.0.0.1.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port to bind; else OMI_RT_PORT, else 8080; 0 picks a free one.",
)
def serve(host: str | None, port: int | None) -> None:
    """Run the server. Settings come from the environment: see omi-rt settings."""
    import trio

    from omi_rt.log import announce, configure_logging, get_logger
    from omi_rt.server.main import serve as run_server
    from omi_rt.settings import shadowed_settings

    settings = _settings()
    configure_logging(settings.log_level, settings.log_format, settings.log_key)
    for name in shadowed_settings(os.environ):
        get_logger().info("setting_ignored", name=name, reason="Kubernetes set it for a Service")
    host = settings.host if host is None else host
    port = settings.port if port is None else port
    cut_sessions = 0
    with _one_line_errors():
        cut_sessions = trio.run(partial(run_server, settings, host, port, announce=announce))
    if cut_sessions:
        sys.exit(EXIT_CUT)


@main.command("settings")
def print_settings() -> None:
    """Print every setting: its environment variable, its default, and what it means."""
    from omi_rt.settings_table import settings_lines

    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else None
    with _one_line_errors():
        for line in settings_lines(width):
            _print(line)


def _header_fields(_context: object, _option: object, values: tuple[str, ...]) -> dict[str, str]:
    from omi_rt.client.headers import HeaderRefused, header_fields

    try:
        return header_fields(values)
    except HeaderRefused as error:
        raise click.BadParameter(str(error)) from None


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
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
@click.option(
    "--language",
    default="",
    help="The language spoken, such as en or de, or auto; by default the server decides.",
)
@click.option(
    "--no-profile", is_flag=True, help="Neither keep nor send voices, so that nobody is recognised."
)
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="NAME:VALUE",
    callback=_header_fields,
    help="Send this HTTP header, as a proxy in front of the server may ask; may be repeated.",
)
@click.option(
    "--json",
    "json_output",
    is_flag=True,
    help="Print one segment a line, as a JSON object, and nothing else.",
)
@click.option("--events", "with_events", is_flag=True, help="With --json, print the events too.")
def stream(
    file: str,
    url: str,
    uid: str,
    codec: str,
    speed: float,
    language: str,
    no_profile: bool,
    headers: dict[str, str],
    json_output: bool,
    with_events: bool,
) -> None:
    """Stream a recording as a device would, and print the segments.

    FILE is WAV, FLAC, MP3 or OGG; "-" is standard input, which is read to its end first.
    """
    from omi_rt.client.run import run_stream

    if with_events and not json_output:
        raise click.UsageError("--events needs --json")
    status = run_stream(
        file,
        url,
        uid,
        codec,
        speed,
        json_output,
        with_events=with_events,
        language=language,
        uses_profile=not no_profile,
        headers=headers,
    )
    sys.exit(status)


@main.command()
@click.option("--unplug", is_flag=True, help="Cut both sides of the server a few times meanwhile.")
def demo(unplug: bool) -> None:
    """Serve, stream a recorded sample, print the segments and a summary. Needs no key."""
    import trio

    from omi_rt.client.terminal import OutputClosed, Terminal, give_up_output
    from omi_rt.demo import run_demo
    from omi_rt.log import configure_logging

    async def run() -> None:
        terminal = Terminal()
        try:
            await run_demo(terminal, unplugs=unplug)
        except* OutputClosed:
            give_up_output()
            raise
        finally:
            terminal.clear_progress()

    configure_logging("warning")
    with _one_line_errors():
        trio.run(run)


@main.group()
def profile() -> None:
    """Store speech profiles of the user UID or, with --person, of somebody they know."""


_person = click.option(
    "--person", "person_id", help="The id of a known person; without it, the user is meant."
)


@profile.command("put")
@click.argument("uid")
@click.argument("file", type=click.File("rb"))
@_person
@click.option("--force", is_flag=True, help="Replace another recording that is already stored.")
def profile_put(uid: str, file: IO[bytes], person_id: str | None, *, force: bool) -> None:
    """Check the WAV FILE (5 to 120 s of one voice) and store it.

    Nothing here can tell whether two recordings are of the same voice. So another recording is
    replaced only with --force.
    """
    from omi_rt.profiles.commands import put_profile

    wav = file.read()
    stored = _with_store(lambda store: put_profile(store, uid, wav, person_id, force=force))
    with _one_line_errors():
        _print(f"{stored.outcome.value} {stored.sample.name}")


@profile.command("get")
@click.argument("uid")
@click.argument("file", type=click.File("wb", lazy=True))
@_person
def profile_get(uid: str, file: IO[bytes], person_id: str | None) -> None:
    """Write the stored profile into FILE, as it is ("-" is standard output)."""
    from omi_rt.profiles.commands import get_profile

    # The profile is fetched first, because naming a method of the file opens it, and empties what was there.
    wav = _with_store(lambda store: get_profile(store, uid, person_id))
    with _one_line_errors():
        try:
            file.write(wav)
            file.flush()
        except OSError as error:
            if file.name == "-":
                _give_up(1)
            raise OSError(f"cannot write the profile: {_reason(error)}") from error


@profile.command("list")
@click.argument("uid")
def profile_list(uid: str) -> None:
    """List what is stored for UID: whose voice, seconds, when, where."""
    from omi_rt.profiles.commands import list_profiles

    for row in _with_store(lambda store: list_profiles(store, uid)):
        who = "user" if row.identity.is_user else f"person {row.identity.person_id}"
        seconds = "unreadable" if row.seconds is None else f"{row.seconds:.1f} s"
        with _one_line_errors():
            _print(f"{who}\t{seconds}\t{row.updated:%Y-%m-%d %H:%M:%S}Z\t{row.name}")


@profile.command("delete")
@click.argument("uid")
@_person
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Delete the voices of the user and of everybody they know.",
)
def profile_delete(uid: str, person_id: str | None, everything: bool) -> None:
    """Delete the user's profile, or a person's samples."""
    from omi_rt.profiles.commands import delete_profiles

    for sample in _with_store(
        lambda store: delete_profiles(store, uid, person_id, everything=everything)
    ):
        with _one_line_errors():
            _print(f"deleted {sample.name}")


@main.command()
@click.argument("session")
@click.option(
    "--format",
    "form",
    default="txt",
    show_default=True,
    type=click.Choice(["srt", "vtt", "txt", "json"]),
)
def export(session: str, form: str) -> None:
    """Print what OMI_RT_TRANSCRIPT_DIR keeps of SESSION, corrected."""
    from omi_rt.core.exports import FORMATS
    from omi_rt.records.commands import read_session

    settings = _settings()
    place, spool = settings.transcript_dir, settings.transcript_spool
    record = _run(partial(read_session, place, spool, session))
    with _one_line_errors():
        _print(FORMATS[form](record).removesuffix("\n"))


@main.command()
@click.argument("uid")
def forget(uid: str) -> None:
    """Remove everything kept of UID: records, audio, voices and tokens."""
    from omi_rt.profiles.commands import ProfileNotFound, delete_profiles
    from omi_rt.records.commands import forget_person

    settings = _settings()
    place, spool = settings.transcript_dir, settings.transcript_spool
    lines = _run(partial(forget_person, place, spool, settings.token_file, uid))
    with _one_line_errors():
        for line in lines:
            _print(line)

    async def forget_voices(store: ProfileStore) -> int:
        try:
            return len(await delete_profiles(store, uid, everything=True))
        except ProfileNotFound:
            return 0

    voices = _with_store(forget_voices)
    with _one_line_errors():
        _print(f"voices removed: {voices}")


@main.group()
def token() -> None:
    """Make tokens for OMI_RT_AUTH=tokens."""


@token.command("add")
@click.argument("uid")
def token_add(uid: str) -> None:
    """Make a token for UID, put its hash into OMI_RT_TOKEN_FILE, and print it.

    It is printed this once, and kept nowhere.
    """
    from omi_rt.auth.tokens import add_token

    settings = _settings()
    with _one_line_errors():
        _print(add_token(settings.token_file, uid))


@main.command("fake-deepgram")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=0, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--script",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Faults to play, as JSON or TOML; omi_rt/fake/faults.py describes the format.",
)
@click.option("--seed", type=int, help="Draw the faults at random.")
@click.option(
    "--key",
    "keys",
    multiple=True,
    help="An API key to accept; may be repeated. By default any is accepted.",
)
def fake_deepgram(
    host: str, port: int, script: Path | None, seed: int | None, keys: tuple[str, ...]
) -> None:
    """Run a fake Deepgram, which hears a made-up language and fails on request."""
    import trio

    from omi_rt.fake.serve import serve_fake
    from omi_rt.log import announce, configure_logging

    if script is not None and seed is not None:
        raise click.UsageError("--script and --seed exclude each other")
    configure_logging("info")
    with _one_line_errors():
        run = partial(serve_fake, host, port, script, seed, frozenset(keys), announce)
        trio.run(partial(run, serve_command=f"{_own_command()} serve"))


def _own_command() -> str:
    """How this program was called, in a form that a shell takes."""
    if Path(sys.argv[0]).name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m omi_rt"
    return shlex.quote(sys.argv[0])


def _with_store(work: Callable[[ProfileStore], Awaitable[T]]) -> T:
    from omi_rt.profiles.commands import open_store

    settings = _settings()

    async def run() -> T:
        async with open_store(settings.profile_bucket or None, settings.profile_dir) as store:
            return await work(store)

    return _run(run)


def _run(work: Callable[[], Awaitable[T]]) -> T:
    import trio

    with _one_line_errors():
        return trio.run(work)


def _settings(**overrides: str) -> Settings:
    from omi_rt.settings import load_settings

    try:
        return load_settings({**os.environ, **overrides})
    except SettingsError as error:
        for problem in error.problems:
            _complain(f"omi-rt: {problem}")
        sys.exit(EXIT_USAGE)


def _print(line: str) -> None:
    """Print a line that was asked for. Raises ``OSError``; exits where nobody reads any more."""
    try:
        click.echo(line)
    except BrokenPipeError:
        _give_up(1)
        sys.exit(EXIT_FAILED)
    except OSError as error:
        _give_up(1)
        raise OSError(f"cannot write to standard output: {_reason(error)}") from error


def _complain(line: str) -> None:
    """Say why the command fails, if anybody is there to hear it."""
    try:
        click.echo(line, err=True)
    except OSError:
        _give_up(2)


def _reason(error: OSError) -> str:
    return (error.strerror or "?").lower()


def _give_up(descriptor: int) -> None:
    """Let what the interpreter still writes to ``descriptor`` at its exit go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _fill_standard_descriptors() -> None:
    """Put something where a standard stream was closed at the start.

    Otherwise the next socket would get its number, and with it what is written to standard error. Python
    has None for such a stream; standard output gets one that cannot be written, so that a command that
    prints says so.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The system gives out the lowest free number, which is this one.
            os.open(os.devnull, os.O_RDONLY)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for the life of the process


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn an expected failure into one line and exit status 1; 2 where a setting is wrong."""
    problem: BaseException | None = None
    was_interrupted = False
    try:
        yield
    except* (OmiRtError, OSError) as group:
        problem = next(errors_in(group))
    except* KeyboardInterrupt:
        was_interrupted = True
    if was_interrupted:
        sys.exit(EXIT_INTERRUPTED)
    if problem is not None:
        _complain(f"omi-rt: {problem}")
        sys.exit(EXIT_USAGE if isinstance(problem, SettingsError) else EXIT_FAILED)
