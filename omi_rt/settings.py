"""Settings: read from the environment once, checked as a whole, then frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
from attrs import field, frozen

from omi_rt.core.errors import SettingsError
from omi_rt.core.forwarded import Network
from omi_rt.core.kubernetes import is_service_variable
from omi_rt.core.origin import Origin
from omi_rt.core.records import AudioKind, BucketPlace
from omi_rt.core.webhooks import AudioHook
from omi_rt.setting_forms import (
    integer_in,
    one_of,
    read_audio_hook,
    read_audio_kind,
    read_flag,
    read_log_key,
    read_networks,
    read_options,
    read_origins,
    read_path_or_name,
    read_record_place,
    read_text,
    read_url,
    read_web_url,
    read_webhook_secret,
    seconds_in,
)

DEEPGRAM_API = "https://api.deepgram.com"
PROFILE_MODES = ("switch", "first", "off")
_PROFILE_DIR = Path("profiles")
AUTH_KINDS = ("none", "tokens", "firebase", "jwks")
_DAILY_FILE = Path("daily.json")
_SPOOL = Path("spool")
_TOKEN_FILE = Path("tokens")
_AUTH_NEEDS = {
    "firebase": ("firebase_project",),
    "jwks": ("jwks_url", "jwt_issuer", "jwt_audience"),
}


def _env(
    name: str, parse: Callable[[str], Any], default: Any, doc: str, *, secret: bool = False
) -> Any:
    return field(
        default=default, repr=not secret, metadata={"env": name, "parse": parse, "doc": doc}
    )


@frozen
class Settings:
    """Everything that can be set. Each field names its environment variable and its meaning."""

    deepgram_api_key: str = _env(
        "DEEPGRAM_API_KEY",
        read_text,
        "",
        "Deepgram's API key; without it and without DEEPGRAM_URL the embedded recogniser is used",
        secret=True,
    )
    deepgram_url: str = _env(
        "DEEPGRAM_URL",
        read_url,
        "",
        "Deepgram's address: regional, dedicated or self-hosted"
        f" (default {DEEPGRAM_API} with a key); its query goes before OMI_RT_DEEPGRAM_OPTIONS",
    )
    deepgram_grant: bool = _env(
        "OMI_RT_DEEPGRAM_GRANT",
        read_flag,
        False,
        "1: dial with a fresh short-lived token from /v1/auth/grant instead of the key",
    )
    deepgram_options: Mapping[str, tuple[str, ...]] = _env(
        "OMI_RT_DEEPGRAM_OPTIONS",
        read_options,
        MappingProxyType({}),
        "query parameters that replace or join the defaults, as a query string; "
        "a name without a value leaves that parameter out",
    )
    host: str = _env(
        "OMI_RT_HOST",
        read_text,
        "127.0.0.1",
        "address to bind, where serve has no --host",
    )
    port: int = _env(
        "OMI_RT_PORT",
        integer_in(0, 65535),
        8080,
        "port to bind, where serve has no --port; 0 picks one",
    )
    origins: frozenset[Origin] = _env(
        "OMI_RT_ORIGINS",
        read_origins,
        frozenset(),
        "origins of web pages, separated by commas, that may open /listen besides the server's own; "
        "* is any",
    )
    auth: str = _env(
        "OMI_RT_AUTH",
        one_of(*AUTH_KINDS),
        "none",
        "none: a client is who it says; tokens: OMI_RT_TOKEN_FILE; firebase: ID tokens of "
        "OMI_RT_FIREBASE_PROJECT; jwks: tokens of the OpenID provider behind OMI_RT_JWKS_URL",
    )
    insecure: bool = _env(
        "OMI_RT_INSECURE",
        read_flag,
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
        read_text,
        "",
        "id of the Firebase project whose users may log in",
    )
    firebase_certs_url: str = _env(
        "OMI_RT_FIREBASE_CERTS_URL",
        read_web_url,
        "",
        "where the certificates are that Firebase signs with (default Google's own address)",
    )
    firebase_emulator: str = _env(
        "FIREBASE_AUTH_EMULATOR_HOST",
        read_text,
        "",
        "set to take the unsigned tokens of Firebase's emulator, on loopback only",
    )
    jwks_url: str = _env(
        "OMI_RT_JWKS_URL",
        read_web_url,
        "",
        "address of an OpenID provider's public keys (a JSON Web Key Set)",
    )
    jwt_issuer: str = _env(
        "OMI_RT_JWT_ISSUER",
        read_text,
        "",
        "issuer (iss) of its tokens, letter by letter",
    )
    jwt_audience: str = _env(
        "OMI_RT_JWT_AUDIENCE",
        read_text,
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
        read_networks,
        (),
        "addresses and networks, separated by commas, whose X-Forwarded-For is believed",
    )
    connect_timeout: float = _env(
        "OMI_RT_CONNECT_TIMEOUT",
        seconds_in(0.1, 60),
        5.0,
        "seconds for a connection to Deepgram, handshake included",
    )
    backlog_seconds: float = _env(
        "OMI_RT_BACKLOG_SECONDS",
        seconds_in(5, 600),
        60.0,
        "seconds of audio that are kept until a final covers them",
    )
    backlog_bytes: int = _env(
        "OMI_RT_BACKLOG_BYTES",
        integer_in(1_048_576, 1 << 50),
        0,
        "bytes that what all sessions keep may take together: audio, and up to a quarter of it what "
        "clients were told (default a quarter of the memory of the machine or container)",
    )
    send_timeout: float = _env(
        "OMI_RT_SEND_TIMEOUT",
        seconds_in(0.5, 300),
        10.0,
        "seconds that one send may take, to a device or to Deepgram",
    )
    drain_seconds: float = _env(
        "OMI_RT_DRAIN_SECONDS",
        seconds_in(0, 600),
        30.0,
        "seconds in which running sessions are ended after SIGTERM",
    )
    heartbeat_seconds: float = _env(
        "OMI_RT_HEARTBEAT_SECONDS",
        seconds_in(1, 3600),
        30.0,
        "seconds between heartbeats",
    )
    resume_seconds: float = _env(
        "OMI_RT_RESUME_SECONDS",
        seconds_in(0, 600),
        30.0,
        "seconds for which a session whose device's connection was lost can be taken up again; 0: not",
    )
    whisper_model: str = _env(
        "OMI_RT_WHISPER_MODEL",
        read_path_or_name,
        "",
        "the embedded recogniser's Whisper model: a directory, a name that faster-whisper knows, or off "
        "for pocketsphinx (default tiny.en where it is installed)",
    )
    local_connections: int = _env(
        "OMI_RT_LOCAL_CONNECTIONS",
        integer_in(1, 1000),
        0,
        "connections that the embedded recogniser carries (default what it measures); a session takes "
        "one, and for a while two where a stored voice is to be recognised",
    )
    max_sessions: int = _env(
        "OMI_RT_MAX_SESSIONS",
        integer_in(1, 1_000_000),
        2000,
        "sessions at once; further upgrades get 503",
    )
    max_uid_sessions: int = _env(
        "OMI_RT_MAX_UID_SESSIONS",
        integer_in(0, 1_000_000),
        0,
        "sessions at once of one uid; 0 is any number",
    )
    max_address_connections: int = _env(
        "OMI_RT_MAX_ADDRESS_SESSIONS",
        integer_in(0, 1_000_000),
        0,
        "sessions at once of one address (IPv6: of a /64), those that begin included; 0 is any number",
    )
    max_unfinished: int = _env(
        "OMI_RT_MAX_UNFINISHED",
        integer_in(1, 1_000_000),
        1000,
        "connections at once that have not become sessions; a quarter of them from one address",
    )
    daily_seconds: int = _env(
        "OMI_RT_DAILY_SECONDS",
        integer_in(0, 10_000_000),
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
        seconds_in(0, 86_400),
        90.0,
        "seconds without any audio, silence included, after which a session is ended; 0 is never",
    )
    max_lag_ms: float = _env(
        "OMI_RT_MAX_LAG",
        seconds_in(0, 10_000),
        100.0,
        "ms that the event loop may be late; beyond that further upgrades get 503; 0 is any",
    )
    redial_rate: float = _env(
        "OMI_RT_REDIAL_RATE",
        seconds_in(0.1, 10_000),
        10.0,
        "re-dials to Deepgram a second, over all sessions",
    )
    redial_burst: float = _env(
        "OMI_RT_REDIAL_BURST",
        seconds_in(1, 10_000),
        20.0,
        "re-dials to Deepgram at once",
    )
    max_primed: int = _env(
        "OMI_RT_MAX_PRIMED",
        integer_in(0, 1_000_000),
        50,
        "connections to Deepgram at once, over all sessions, beside the sessions' own, to learn who "
        "speaks; they give way to those",
    )
    message_cap_ms: float = _env(
        "OMI_RT_MESSAGE_CAP_MS",
        seconds_in(0, 250),
        100.0,
        "a busy server collects at most so many ms of audio for one message to Deepgram",
    )
    profile_bucket: str = _env(
        "BUCKET_SPEECH_PROFILES",
        read_text,
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
        one_of(*PROFILE_MODES),
        "switch",
        "switch: start at once, change to a primed connection; first: profile first; off",
    )
    profile_seconds: float = _env(
        "OMI_RT_PROFILE_SECONDS",
        seconds_in(2, 20),
        10.0,
        "seconds of the user's profile that are sent",
    )
    profile_learn: bool = _env(
        "OMI_RT_PROFILE_LEARN",
        read_flag,
        True,
        "0: a voice that a client names is not stored; it is known until its session ends",
    )
    transcript_dir: Path | BucketPlace | None = _env(
        "OMI_RT_TRANSCRIPT_DIR",
        read_record_place,
        None,
        "directory, or gs://BUCKET[/PREFIX] in Google Cloud Storage, in which each session's segments and "
        "corrections are kept; without it nothing is",
    )
    transcript_spool: Path = _env(
        "OMI_RT_TRANSCRIPT_SPOOL",
        Path,
        _SPOOL,
        "directory in which a session's record is until it has ended and is in the bucket, where "
        "OMI_RT_TRANSCRIPT_DIR is one",
    )
    record_audio: AudioKind | None = _env(
        "OMI_RT_RECORD_AUDIO",
        read_audio_kind,
        None,
        "1: keep the audio beside them, as WAV; flac: as FLAC",
    )
    retention_days: float = _env(
        "OMI_RT_RETENTION_DAYS",
        seconds_in(0, 36_500),
        0.0,
        "days after which what is kept of a session is removed; 0 is never",
    )
    webhook_transcript: str = _env(
        "OMI_RT_WEBHOOK_TRANSCRIPT",
        read_web_url,
        "",
        "address that segments are posted to, once a second",
        secret=True,
    )
    webhook_audio: AudioHook | None = _env(
        "OMI_RT_WEBHOOK_AUDIO",
        read_audio_hook,
        None,
        "URL,SECONDS: address that raw audio is posted to, and how much of it at once",
        secret=True,
    )
    webhook_secret: bytes | None = _env(
        "OMI_RT_WEBHOOK_SECRET",
        read_webhook_secret,
        None,
        "signs what is posted (Standard Webhooks)",
        secret=True,
    )
    webhook_private: bool = _env(
        "OMI_RT_WEBHOOK_PRIVATE",
        read_flag,
        False,
        "1: webhooks may be in private networks, loopback included",
    )
    log_level: str = _env(
        "OMI_RT_LOG_LEVEL",
        one_of("debug", "info", "warning", "error"),
        "info",
        "least level that is logged",
    )
    log_format: str = _env(
        "OMI_RT_LOG_FORMAT",
        one_of("text", "json"),
        "text",
        "form of the log lines on stderr",
    )
    log_key: str = _env(
        "OMI_RT_LOG_KEY",
        read_log_key,
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
        values["deepgram_options"] = {**read_options(query), **values.get("deepgram_options", {})}
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
