"""What the fake is set to, and what it has seen; tests arrange the one and read the other."""

from __future__ import annotations

from collections import Counter
from http import HTTPStatus
from typing import Any

from attrs import Attribute, define, field, frozen
from attrs.validators import ge, gt, in_, optional

from omi_rt.fake.borders import BORDERS, BorderHabit
from omi_rt.fake.finals import FINALIZE_ANSWERS, FinalizeAnswer
from omi_rt.fake.labelling import Labelling


def _check_span(_instance: Any, attribute: Attribute[Any], span: tuple[float, float]) -> None:
    low, high = span
    if not 0.0 <= low <= high:
        raise ValueError(f"{attribute.name}: {span} is not least and most seconds")


@frozen(kw_only=True)
class Options:
    """How the fake behaves when nothing is wrong with it: it may be slow and untidy all the same."""

    keys: frozenset[str] | None = field(default=None, repr=False)
    """API keys for ``Authorization: Token``; None lets any key pass, as a self-hosted Deepgram does."""
    tokens: frozenset[str] | None = field(default=None, repr=False)
    """Short-lived tokens for ``Authorization: Bearer``; None lets any token pass."""
    concurrency: int | None = field(default=None, validator=optional(ge(1)))
    """How many connections may be open at once; one more is refused with 429."""
    delay: float = field(default=0.2, validator=ge(0.0))
    """Seconds that recognition takes; short messages wait up to 0.2 s more until they are heard."""
    max_utterance: float = field(default=5.0, validator=gt(0.0))
    """Seconds of speech after which a final comes at the next gap between words."""
    empty_finals: tuple[float, float] | None = (3.0, 5.0)
    """Least and most seconds of silence that bring an empty final; with None silence brings none."""
    no_empty_finals: frozenset[int] = frozenset()
    """Channels on which silence brings no finals, whatever ``empty_finals`` says."""
    finalize: FinalizeAnswer = field(default="all", validator=in_(FINALIZE_ANSWERS))
    """What Finalize brings, in the words of `omi_rt.fake.finals`."""
    minimum_finalize: float = field(default=0.1, validator=ge(0.0))
    """Seconds of audio that must be buffered for Finalize to be answered; with 0 it always is."""
    rate: float = field(default=1.25, validator=gt(0.0))
    """Seconds of audio that are taken in a second at most, in the long run; beyond that the fake does
    not read."""
    burst: float = field(default=3.0, validator=gt(0.0))
    """Seconds of audio that are taken at once."""
    decimals: int = field(default=6, validator=ge(1))
    """Digits after the decimal point of a time."""
    jitter: float = field(default=0.0, validator=ge(0.0))
    """Seconds by which a word's times are off at most."""
    lateness: tuple[float, float] = field(default=(0.0, 0.0), validator=_check_span)
    """Least and most seconds by which every result comes later than ``delay`` says, in order."""
    borders: BorderHabit = field(default="clean", validator=in_(BORDERS))
    """How finals meet, in the words of `omi_rt.fake.borders`."""
    early_metadata: int = field(default=0, validator=ge(0))
    """How many of the last results Metadata overtakes at the end, if that many are still to come."""
    claims_ahead: float = field(default=0.0, validator=ge(0.0))
    """Seconds by which every final claims to cover more than has come in; with 0 none does."""
    clock_factor: float = field(default=1.0, validator=gt(0.0))
    """How fast the fake's clock goes. With any factor but 1 its times mean other audio than it heard,
    and no client that starts again by them can be whole.
    """
    idle_timeout: float = field(default=10.0, validator=gt(0.0))
    """Seconds without audio or text after which the fake closes with NET-0001."""
    keepalive_before_audio: bool = False
    """Whether KeepAlive holds a connection that has never had audio. Sources disagree on that, so by
    default it does not."""
    max_message_bytes: int = field(default=1 << 20, validator=gt(0))
    extra_parameters: frozenset[str] = frozenset()
    """Names of query parameters that are let through unjudged."""
    labellings: tuple[Labelling, ...] = ()
    """What goes wrong in telling voices apart, on each connection in turn; the last one stays."""
    seed: int = 0
    """The seed of labels, ids, lateness, borders and the spans of silence."""

    def empty_finals_on(self, channel: int) -> tuple[float, float] | None:
        """The spans of silence that bring an empty final on a channel; None for never."""
        return None if channel in self.no_empty_finals else self.empty_finals

    def labelling_of(self, index: int) -> Labelling:
        """What goes wrong in telling voices apart on the connection with this index."""
        if not self.labellings:
            return Labelling()
        return self.labellings[min(index, len(self.labellings) - 1)]


@define
class ConnectionRecord:
    """What happened on one connection. All times are those of Trio's clock."""

    index: int
    opened_at: float
    """When the stream came in."""
    violations: list[str] = field(repr=False)
    """The rules that clients broke; all connections of a fake share this list."""
    target: str = ""
    """Path and query of the upgrade."""
    headers: dict[str, str] = field(factory=dict, repr=False)
    """The upgrade's headers, with the credential."""
    sample_rate: int = 0
    request_id: str = ""
    status: int | None = None
    """The HTTP status that the client got; None if it got none."""
    audio_samples: int = 0
    """Samples (per channel) that came in."""
    audio_messages: int = 0
    first_audio_at: float | None = None
    texts: Counter[str] = field(factory=Counter)
    """How many text messages of each type came in; ``?`` stands for those without a type."""
    results_sent: int = 0
    throttled_seconds: float = 0.0
    """How long the fake did not read, because audio came faster than it takes it."""
    close_stream_at: float | None = None
    metadata_sent: bool = False
    closed_before_metadata: bool = False
    """Whether the client asked for the end and did not wait for it."""
    sent_code: int | None = None
    """The close code that the fake sent of its own accord."""
    received_code: int | None = None
    """The close code with which the client ended it; 1006 where it sent no close frame."""
    closed_at: float | None = None

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio that came in."""
        return self.audio_samples / self.sample_rate if self.sample_rate else 0.0

    @property
    def is_open(self) -> bool:
        """Whether the connection counts against the limit of connections."""
        return self.status == HTTPStatus.SWITCHING_PROTOCOLS and self.closed_at is None

    def violate(self, what: str) -> None:
        """Note that the client broke a rule."""
        self.violations.append(f"connection {self.index}: {what}")
