"""What a client can ask of its session, whatever its own words for it are."""

from __future__ import annotations

from attrs import field, frozen

from omi_rt.core.voices import Identity


@frozen
class End:
    """No more audio comes: finalise what there is, then close."""


@frozen
class StayOpen:
    """The client is there, though it has no audio to send."""


@frozen
class Finalize:
    """Finalise the audio that has come so far, and go on."""

    channel: int | None = None
    """The one channel that is meant, counted from 0; None where all are."""


@frozen
class Configure:
    """Change options of the provider's from now on."""

    keyterms: tuple[str, ...] | None = field(default=None, repr=False)
    """Key terms in place of all that were set; None leaves them."""
    numerals: bool | None = None
    """Whether numbers are written in digits; None leaves it."""


@frozen
class AssignSpeaker:
    """A speaker is somebody: the user, or a person whom the client names."""

    speaker: int | None
    """The session's number; None where the message has no usable one."""
    person_id: str | None = field(repr=False)
    """None is the user."""
    segment_ids: tuple[str, ...] = ()
    """The segments that are meant; none means all of the speaker's."""
    may_store: bool = True
    """Whether the voice may be stored, so that it is known in later sessions."""


@frozen
class SuggestedSegment:
    """What a client has heard by itself: what one speaker said in one go."""

    text: str = field(repr=False)
    start: float
    """Seconds on the session clock."""
    end: float
    speaker: int
    """The client's own number, from 0."""
    identity: Identity | None = None
    """Whom the client takes the speaker for."""


@frozen
class Suggest:
    """The client has transcribed something by itself."""

    segments: tuple[SuggestedSegment, ...]
    """Those that can be taken, in order of time."""
    refused: int = 0
    """How many cannot."""
    reason: str | None = None
    """What is wrong with the first of these, or with the message."""


@frozen
class Pass:
    """A message that is known, and asks nothing."""


@frozen
class NotUnderstood:
    """A text message that is none that the session's client may send."""

    kind: str | None
    """The message's ``type``, cut to what may be shown, where it has one."""
    text: str = field(default="", repr=False)
    """The message itself, cut likewise: an answer may quote it, a log must not."""


Ask = End | StayOpen | Finalize | Configure | AssignSpeaker | Suggest | Pass | NotUnderstood
