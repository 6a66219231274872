"""What a client can ask of its session, whatever its own words for it are."""

from __future__ import annotations

from attrs import field, frozen


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
class Pass:
    """A message that is known, and asks nothing."""


@frozen
class NotUnderstood:
    """A text message that is none that the session's client may send."""

    kind: str | None
    """The message's ``type``, cut to what may be shown, where it has one."""
    text: str = field(default="", repr=False)
    """The message itself, cut likewise: an answer may quote it, a log must not."""


Ask = End | StayOpen | Finalize | Configure | AssignSpeaker | Pass | NotUnderstood
