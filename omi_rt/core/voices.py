"""Whose a voice is."""

from __future__ import annotations

from attrs import frozen


@frozen
class Identity:
    """Somebody known: the user, or a person of theirs."""

    person_id: str | None = None
    """The person's id; None stands for the user."""

    @property
    def is_user(self) -> bool:
        """Whether it is the user."""
        return self.person_id is None


@frozen
class Place:
    """Where in the session something was said."""

    position: int
    """Session position, in samples."""
    channel: int


USER = Identity()
USER_ID = "user"
"""The person id that stands for the user in an app's own messages."""

Voice = Identity | int
"""A stored voice of somebody known, or the number of a speaker of this session."""
