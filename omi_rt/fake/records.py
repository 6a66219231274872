"""What the fake is set to, and what it saw: for tests to arrange and to read."""

from __future__ import annotations

from collections import Counter

from attrs import define, field, frozen
from attrs.validators import ge, gt, optional

from omi_rt.fake.labelling import Labelling


@frozen(kw_only=True)
class Options:
    """How the fake behaves when nothing is wrong with it."""

    keys: frozenset[str] | None = field(default=None, repr=False)
    """API keys for ``Authorization: Token``; None lets any key pass, as a self-hosted one does."""
    tokens: frozenset[str] | None = field(default=None, repr=False)
    """Short-lived tokens for ``Authorization: Bearer``; None lets any pass."""
    concurrency: int | None = field(default=None, validator=optional(ge(1)))
    """Open connections at once; one more is refused with 429."""
    delay: float = field(default=0.2, validator=ge(0.0))
    """Seconds that recognition takes; up to 0.2 s more go by until short messages are heard."""
    max_utterance: float = field(default=5.0, validator=gt(0.0))
    """Seconds of speech after which a final comes at the next gap between words."""
    empty_finals: tuple[float, float] | None = (3.0, 5.0)
    """Least and most seconds of silence that bring an empty final; None: silence brings none."""
    minimum_finalize: float = field(default=0.1, validator=ge(0.0))
    """Seconds of audio that must be buffered for Finalize to be answered; 0 is always."""
    rate: float = field(default=1.25, validator=gt(0.0))
    """Seconds of audio a second that are taken at most, in the long run, by not reading."""
    burst: float = field(default=3.0, validator=gt(0.0))
    """Seconds of audio that are taken at once."""
    decimals: int = field(default=6, validator=ge(1))
    """Digits after the decimal point of a time."""
    jitter: float = field(default=0.0, validator=ge(0.0))
    """Seconds by which a word's times are off at most."""
    idle_timeout: float = field(default=10.0, validator=gt(0.0))
    """Seconds without audio or text after which it closes with NET-0001."""
    keepalive_before_audio: bool = False
    """Whether KeepAlive holds a connection that never had audio: sources disagree, so it does not."""
    max_message_bytes: int = field(default=1 << 20, validator=gt(0))
    extra_parameters: frozenset[str] = frozenset()
    """Names of query parameters that are let through unjudged."""
    labellings: tuple[Labelling, ...] = ()
    """What goes wrong in telling voices apart, on each connection in turn; the last one stays."""
    seed: int = 0
    """For labels, ids and the spans of silence."""

    def labelling_of(self, index: int) -> Labelling:
        """What goes wrong in telling voices apart on the connection with this index."""
        if not self.labellings:
            return Labelling()
        return self.labellings[min(index, len(self.labellings) - 1)]


@define
class ConnectionRecord:
    """What happened on one connection. Times are of Trio's clock."""

    index: int
    opened_at: float
    """When the stream came in."""
    violations: list[str] = field(repr=False)
    """Shared by all connections of a fake."""
    target: str = ""
    """Path and query of the upgrade."""
    headers: dict[str, str] = field(factory=dict, repr=False)
    """Of the upgrade, with the credential."""
    sample_rate: int = 0
    request_id: str = ""
    status: int | None = None
    """The HTTP status that it got; None if it got none."""
    audio_samples: int = 0
    """Samples (per channel) that came in."""
    audio_messages: int = 0
    first_audio_at: float | None = None
    texts: Counter[str] = field(factory=Counter)
    """How many text messages of each type came in; ``?`` for what has none."""
    results_sent: int = 0
    throttled_seconds: float = 0.0
    """How long it did not read because audio came faster than it takes it."""
    close_stream_at: float | None = None
    metadata_sent: bool = False
    closed_before_metadata: bool = False
    """The client asked for the end and did not wait for it."""
    sent_code: int | None = None
    """The close code that the fake sent of its own accord."""
    received_code: int | None = None
    """How the client ended it: 1006 is without a close frame."""
    closed_at: float | None = None

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio that came in."""
        return self.audio_samples / self.sample_rate if self.sample_rate else 0.0

    @property
    def is_open(self) -> bool:
        """Whether it counts against the limit of connections."""
        return self.status == 101 and self.closed_at is None

    def violate(self, what: str) -> None:
        """Note that the client broke a rule."""
        self.violations.append(f"connection {self.index}: {what}")
