"""Settings: read from the environment once, checked as a whole, then frozen."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs
from attrs import field, frozen

from omi_rt.core.errors import SettingsError
from omi_rt.core.forwarded import Network, parse_networks
from omi_rt.core.kubernetes import is_service_variable
from omi_rt.core.origin import ANY, Origin, parse_origin
from omi_rt.core.webhooks import AudioHook, parse_audio_hook, parse_secret

DEEPGRAM_API = "https://api.deepgram.com"
PROFILE_MODES = ("switch", "first", "off")
_PROFILE_DIR = Path("profiles")
AUTH_KINDS = ("none", "tokens", "firebase", "jwks")
_DAILY_FILE = Path("daily.json")
_TOKEN_FILE = Path("tokens")
_AUTH_NEEDS = {
    "firebase": ("firebase_project",),
    "jwks": ("jwks_url", "jwt_issuer", "jwt_audience"),
}
_FIXED_OPTIONS = frozenset({"encoding", "sample_rate", "channels"})


def _env(
    name: str, parse: Callable[[str], Any], default: Any, doc: str, *, secret: bool = False
) -> Any:
    return field(
        default=default, repr=not secret, metadata={"env": name, "parse": parse, "doc": doc}
    )


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError
        return value

    parse.__doc__ = f"a number from {low:g} to {high:g}"
    return parse


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    parse.__doc__ = f"a whole number from {low} to {high}"
    return parse


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError
        return text.lower()

    parse.__doc__ = "one of " + ", ".join(choices)
    return parse


def _flag(text: str) -> bool:
    """1 or 0"""
    return {"1": True, "true": True, "0": False, "false": False}[text.lower()]


def _text(text: str) -> str:
    """text in printable ASCII without spaces"""
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError
    return text


def _path_or_name(text: str) -> str:
    """a path or a name"""
    if not text.isprintable():
        raise ValueError
    return text


def _log_key(text: str) -> str:
    """16 or more characters of printable ASCII without spaces"""
    if len(text) < 16:
        raise ValueError
    return _text(text)


def _url(text: str) -> str:
    """a ws, wss, http or https address; its query must not have encoding, sample_rate or channels"""
    parts = urlsplit(text)
    if parts.scheme not in {"ws", "wss", "http", "https"} or not parts.hostname or parts.username:
        raise ValueError
    _ = parts.port
    if parts.fragment:
        raise ValueError
    if parts.query:
        _options(parts.query)
    return text


def _web_url(text: str) -> str:
    """an http or https address without a user"""
    parts = urlsplit(_text(text))
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise ValueError
    _ = parts.port
    return text


def _networks(text: str) -> tuple[Network, ...]:
    """addresses or networks such as 10.0.0.0/8, separated by commas"""
    return parse_networks(text)


def _audio_hook(text: str) -> AudioHook:
    """an http or https address, a comma, and 1 to 60 seconds"""
    hook = parse_audio_hook(text)
    _web_url(hook.url)
    return hook


def _webhook_secret(text: str) -> bytes:
    """whsec_ and 24 to 64 bytes in base64"""
    return parse_secret(text)


def _origins(text: str) -> frozenset[Origin]:
    """* or origins such as https://app.example.com, separated by commas"""
    found: set[Origin] = set()
    for part in text.split(","):
        origin = ANY if part.strip() == "*" else parse_origin(part)
        if origin is None:
            raise ValueError
        found.add(origin)
    return frozenset(found)


def _options(text: str) -> Mapping[str, tuple[str, ...]]:
    """query parameters for Deepgram, as in model=nova-3&keyterm=a&keyterm=b (not encoding, sample_rate, channels)"""
    parsed = parse_qs(text, keep_blank_values=True, strict_parsing=True)
    if _FIXED_OPTIONS & parsed.keys():
        raise ValueError
    return {name: tuple(value for value in values if value) for name, values in parsed.items()}


@frozen
class Settings:
    """Everything that can be set. Each field names its environment variable and its meaning."""

    deepgram_api_key: str = _env(
        "DEEPGRAM_API_KEY",
        _text,
        "",
        "Deepgram's API key; without it and without DEEPGRAM_URL the embedded recogniser is used",
        secret=True,
    )
    deepgram_url: str = _env(
        "DEEPGRAM_URL",
        _url,
        "",
        "Deepgram's address: regional, dedicated or self-hosted"
        f" (default {DEEPGRAM_API} with a key); its query goes before OMI_RT_DEEPGRAM_OPTIONS",
    )
    deepgram_grant: bool = _env(
        "OMI_RT_DEEPGRAM_GRANT",
        _flag,
        False,
        "1: dial with a fresh short-lived token from /v1/auth/grant instead of the key",
    )
    deepgram_options: Mapping[str, tuple[str, ...]] = _env(
        "OMI_RT_DEEPGRAM_OPTIONS",
        _options,
        MappingProxyType({}),
        "query parameters that replace or join the defaults, as a query string; "
        "a name without a value leaves that parameter out",
    )
    host: str = _env(
        "OMI_RT_HOST",
        _text,
        "127.0.0.1",
        "address to bind, where serve has no --host",
    )
    port: int = _env(
        "OMI_RT_PORT",
        _integer(0, 65535),
        8080,
        "port to bind, where serve has no --port; 0 picks one",
    )
    origins: frozenset[Origin] = _env(
        "OMI_RT_ORIGINS",
        _origins,
        frozenset(),
        "origins of web pages, separated by commas, that may open /listen besides the server's own; "
        "* is any",
    )
    auth: str = _env(
        "OMI_RT_AUTH",
        _one_of(*AUTH_KINDS),
        "none",
        "none: a client is who it says; tokens: OMI_RT_TOKEN_FILE; firebase: ID tokens of "
        "OMI_RT_FIREBASE_PROJECT; jwks: tokens of the OpenID provider behind OMI_RT_JWKS_URL",
    )
    insecure: bool = _env(
        "OMI_RT_INSECURE",
        _flag,
        False,
        "1: serve addresses other than loopback without a login",
    )
    token_file: Path = _env(
        "OMI_RT_TOKEN_FILE",
        Path,
        _TOKEN_FILE,
        "file of token uid lines; omi-rt token add UID makes one",
    )
    firebase_project: str = _env(
        "OMI_RT_FIREBASE_PROJECT",
        _text,
        "",
        "id of the Firebase project whose users may log in",
    )
    firebase_certs_url: str = _env(
        "OMI_RT_FIREBASE_CERTS_URL",
        _web_url,
        "",
        "where the certificates are that Firebase signs with (default Google's own address)",
    )
    firebase_emulator: str = _env(
        "FIREBASE_AUTH_EMULATOR_HOST",
        _text,
        "",
        "set to take the unsigned tokens of Firebase's emulator, on loopback only",
    )
    jwks_url: str = _env(
        "OMI_RT_JWKS_URL",
        _web_url,
        "",
        "address of an OpenID provider's public keys (a JSON Web Key Set)",
    )
    jwt_issuer: str = _env(
        "OMI_RT_JWT_ISSUER",
        _text,
        "",
        "issuer (iss) of its tokens, letter by letter",
    )
    jwt_audience: str = _env(
        "OMI_RT_JWT_AUDIENCE",
        _text,
        "",
        "audience (aud) of its tokens",
    )
    tls_cert: Path | None = _env(
        "OMI_RT_TLS_CERT",
        Path,
        None,
        "PEM file with the server's certificate and those that it was signed with; speaks TLS; read "
        "again on SIGHUP",
    )
    tls_key: Path | None = _env(
        "OMI_RT_TLS_KEY",
        Path,
        None,
        "PEM file with the certificate's key, without a password",
    )
    trusted_proxies: tuple[Network, ...] = _env(
        "OMI_RT_TRUSTED_PROXIES",
        _networks,
        (),
        "addresses and networks, separated by commas, whose X-Forwarded-For is believed",
    )
    connect_timeout: float = _env(
        "OMI_RT_CONNECT_TIMEOUT",
        _seconds(0.1, 60),
        5.0,
        "seconds for a connection to Deepgram, handshake included",
    )
    backlog_seconds: float = _env(
        "OMI_RT_BACKLOG_SECONDS",
        _seconds(5, 600),
        60.0,
        "seconds of audio that are kept until a final covers them",
    )
    backlog_bytes: int = _env(
        "OMI_RT_BACKLOG_BYTES",
        _integer(1_048_576, 1 << 50),
        0,
        "bytes that the audio kept by all sessions may take together "
        "(default a quarter of the memory of the machine or container)",
    )
    send_timeout: float = _env(
        "OMI_RT_SEND_TIMEOUT",
        _seconds(0.5, 300),
        10.0,
        "seconds that one send may take, to a device or to Deepgram",
    )
    drain_seconds: float = _env(
        "OMI_RT_DRAIN_SECONDS",
        _seconds(0, 600),
        30.0,
        "seconds in which running sessions are ended after SIGTERM",
    )
    heartbeat_seconds: float = _env(
        "OMI_RT_HEARTBEAT_SECONDS",
        _seconds(1, 3600),
        30.0,
        "seconds between heartbeats",
    )
    resume_seconds: float = _env(
        "OMI_RT_RESUME_SECONDS",
        _seconds(0, 600),
        30.0,
        "seconds for which a session whose device's connection was lost can be taken up again; 0: not",
    )
    whisper_model: str = _env(
        "OMI_RT_WHISPER_MODEL",
        _path_or_name,
        "",
        "the embedded recogniser's Whisper model: a directory, a name that faster-whisper knows, or off "
        "for pocketsphinx (default tiny.en where it is installed)",
    )
    local_connections: int = _env(
        "OMI_RT_LOCAL_CONNECTIONS",
        _integer(1, 1000),
        0,
        "connections that the embedded recogniser carries (default what it measures); a session takes "
        "one, and for a while two where a stored voice is to be recognised",
    )
    max_sessions: int = _env(
        "OMI_RT_MAX_SESSIONS",
        _integer(1, 1_000_000),
        2000,
        "sessions at once; further upgrades get 503",
    )
    max_uid_sessions: int = _env(
        "OMI_RT_MAX_UID_SESSIONS",
        _integer(0, 1_000_000),
        0,
        "sessions at once of one uid; 0 is any number",
    )
    max_address_connections: int = _env(
        "OMI_RT_MAX_ADDRESS_SESSIONS",
        _integer(0, 1_000_000),
        0,
        "sessions at once of one address (IPv6: of a /64), those that begin included; 0 is any number",
    )
    max_unfinished: int = _env(
        "OMI_RT_MAX_UNFINISHED",
        _integer(1, 1_000_000),
        1000,
        "connections at once that have not become sessions",
    )
    daily_seconds: int = _env(
        "OMI_RT_DAILY_SECONDS",
        _integer(0, 10_000_000),
        0,
        "seconds of audio of one uid and day (UTC); 0 is any number",
    )
    daily_file: Path = _env(
        "OMI_RT_DAILY_FILE",
        Path,
        _DAILY_FILE,
        "file in which the seconds of the day outlive the process",
    )
    idle_seconds: float = _env(
        "OMI_RT_IDLE_SECONDS",
        _seconds(0, 86_400),
        90.0,
        "seconds without any audio, silence included, after which a session is ended; 0 is never",
    )
    max_lag_ms: float = _env(
        "OMI_RT_MAX_LAG",
        _seconds(0, 10_000),
        100.0,
        "ms that the event loop may be late; beyond that further upgrades get 503; 0 is any",
    )
    redial_rate: float = _env(
        "OMI_RT_REDIAL_RATE",
        _seconds(0.1, 10_000),
        10.0,
        "re-dials to Deepgram a second, over all sessions",
    )
    redial_burst: float = _env(
        "OMI_RT_REDIAL_BURST",
        _seconds(1, 10_000),
        20.0,
        "re-dials to Deepgram at once",
    )
    max_primed: int = _env(
        "OMI_RT_MAX_PRIMED",
        _integer(0, 1_000_000),
        50,
        "connections to Deepgram at once, over all sessions, beside the sessions' own, to learn who "
        "speaks; they give way to those",
    )
    message_cap_ms: float = _env(
        "OMI_RT_MESSAGE_CAP_MS",
        _seconds(0, 250),
        100.0,
        "a busy server collects at most so many ms of audio for one message to Deepgram",
    )
    profile_bucket: str = _env(
        "BUCKET_SPEECH_PROFILES",
        _text,
        "",
        "Google Cloud Storage bucket with speech profiles",
    )
    profile_dir: Path = _env(
        "OMI_RT_PROFILE_DIR",
        Path,
        _PROFILE_DIR,
        "directory with speech profiles, where no bucket is set",
    )
    profile_mode: str = _env(
        "OMI_RT_PROFILE_MODE",
        _one_of(*PROFILE_MODES),
        "switch",
        "switch: start at once, change to a primed connection; first: profile first; off",
    )
    profile_seconds: float = _env(
        "OMI_RT_PROFILE_SECONDS",
        _seconds(2, 20),
        10.0,
        "seconds of the user's profile that are sent",
    )
    profile_learn: bool = _env(
        "OMI_RT_PROFILE_LEARN",
        _flag,
        True,
        "0: a voice that a client names is not stored; it is known until its session ends",
    )
    transcript_dir: Path | None = _env(
        "OMI_RT_TRANSCRIPT_DIR",
        Path,
        None,
        "directory in which each session's segments and corrections are kept; without it nothing is",
    )
    record_audio: bool = _env(
        "OMI_RT_RECORD_AUDIO",
        _flag,
        False,
        "1: keep the audio beside them, as WAV",
    )
    retention_days: float = _env(
        "OMI_RT_RETENTION_DAYS",
        _seconds(0, 36_500),
        0.0,
        "days after which what is kept of a session is removed; 0 is never",
    )
    webhook_transcript: str = _env(
        "OMI_RT_WEBHOOK_TRANSCRIPT",
        _web_url,
        "",
        "address that segments are posted to, once a second",
        secret=True,
    )
    webhook_audio: AudioHook | None = _env(
        "OMI_RT_WEBHOOK_AUDIO",
        _audio_hook,
        None,
        "URL,SECONDS: address that raw audio is posted to, and how much of it at once",
        secret=True,
    )
    webhook_secret: bytes | None = _env(
        "OMI_RT_WEBHOOK_SECRET",
        _webhook_secret,
        None,
        "signs what is posted (Standard Webhooks)",
        secret=True,
    )
    webhook_private: bool = _env(
        "OMI_RT_WEBHOOK_PRIVATE",
        _flag,
        False,
        "1: webhooks may be in private networks, loopback included",
    )
    log_level: str = _env(
        "OMI_RT_LOG_LEVEL",
        _one_of("debug", "info", "warning", "error"),
        "info",
        "least level that is logged",
    )
    log_format: str = _env(
        "OMI_RT_LOG_FORMAT",
        _one_of("text", "json"),
        "text",
        "form of the log lines on stderr",
    )
    log_key: str = _env(
        "OMI_RT_LOG_KEY",
        _log_key,
        "",
        "key of the hashes that stand for uids in the log; the same for all replicas lets their lines "
        "be compared (default a new one for each process)",
        secret=True,
    )

    @property
    def uses_embedded_recogniser(self) -> bool:
        """Whether neither a key nor an address names a Deepgram."""
        return not self.deepgram_api_key and not self.deepgram_url


def load_settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings from environment variables. An empty variable counts as not set.

    So does one that Kubernetes made for a Service; `shadowed_settings` tells which those are.

    Raises:
        SettingsError: with one line for every key that is wrong, unknown ``OMI_RT_*`` included.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    known = set()
    for attribute in attrs.fields(Settings):
        name, parse = attribute.metadata["env"], attribute.metadata["parse"]
        known.add(name)
        text = environment.get(name, "").strip()
        if not text or is_service_variable(name, text):
            continue
        try:
            values[attribute.name] = parse(text)
        except (ValueError, KeyError):
            # The value is left out, because it may be a key that went into the wrong variable.
            problems.append(f"{name}: must be {parse.__doc__}")
    problems += [
        f"{name}: no such setting"
        for name, text in sorted(environment.items())
        if name.startswith("OMI_RT_") and name not in known and not is_service_variable(name, text)
    ]
    if values.get("deepgram_grant") and not values.get("deepgram_api_key"):
        problems.append("OMI_RT_DEEPGRAM_GRANT: needs DEEPGRAM_API_KEY")
    if values.get("record_audio") and not values.get("transcript_dir"):
        problems.append("OMI_RT_RECORD_AUDIO: needs OMI_RT_TRANSCRIPT_DIR")
    problems += _missing(values)
    if (values.get("tls_cert") is None) != (values.get("tls_key") is None):
        problems.append("OMI_RT_TLS_CERT, OMI_RT_TLS_KEY: one needs the other")
    if problems:
        raise SettingsError(problems)
    if values.get("deepgram_api_key"):
        values.setdefault("deepgram_url", DEEPGRAM_API)
    address, _, query = values.get("deepgram_url", "").partition("?")
    if query:
        values["deepgram_url"] = address
        values["deepgram_options"] = {**_options(query), **values.get("deepgram_options", {})}
    return Settings(**values)


def _missing(values: Mapping[str, Any]) -> list[str]:
    """Find what the kind of login needs and is not set."""
    kind = values.get("auth", "none")
    fields = attrs.fields_dict(Settings)
    return [
        f"{fields[name].metadata['env']}: OMI_RT_AUTH={kind} needs it"
        for name in _AUTH_NEEDS.get(kind, ())
        if not values.get(name)
    ]


def shadowed_settings(environment: Mapping[str, str]) -> list[str]:
    """Return the settings that are not set, because Kubernetes has taken their variables for a Service."""
    names = [attribute.metadata["env"] for attribute in attrs.fields(Settings)]
    return [name for name in names if is_service_variable(name, environment.get(name, ""))]


def settings_table() -> list[tuple[str, str, str]]:
    """Return name, default and meaning of every setting, in the order of their definition."""
    return [
        (attribute.metadata["env"], _shown(attribute.default), attribute.metadata["doc"])
        for attribute in attrs.fields(Settings)
    ]


def settings_lines(width: int | None) -> list[str]:
    """Return the table for a reader.

    The lines are wrapped to ``width`` columns; where that is None, each setting is one line. The table
    holds defaults and no values, so there is no secret in it.
    """
    rows = [("variable", "default", "meaning"), *settings_table()]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"{name:<{first}}  {default:<{second}}  {text}" for name, default, text in rows]
    if width is None:
        return lines
    indent = first + second + 4
    if indent > width // 2:
        # There is no room for a third column, so the meaning of a setting stands below its name.
        indent = 4
        lines = [f"{name}  {default}".rstrip() + f"\n{text}" for name, default, text in rows]
    return [wrapped for line in lines for wrapped in _wrap(line, width, indent)]


def _wrap(line: str, width: int, indent: int) -> list[str]:
    head, separator, text = line.partition("\n")
    margin = " " * indent
    wrapper = textwrap.TextWrapper(
        max(width, indent + 10),
        initial_indent=margin if separator else "",
        subsequent_indent=margin,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return [head, *wrapper.wrap(text)] if separator else wrapper.wrap(line)


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "1" if default else "0"
    if isinstance(default, float):
        return f"{default:g}"
    return str(default) if default else ""
