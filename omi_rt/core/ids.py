"""User and person ids: each names a folder, so none may lead out of the folder that holds it."""

from __future__ import annotations

import unicodedata
from typing import Final

MAX_ID_CHARACTERS: Final = 128
"""A uid or person id has at most this many characters, as Firebase's uids do."""
ID_RULE: Final = (
    f"1 to {MAX_ID_CHARACTERS} characters, no '/' or '\\', no '..', "
    "not '.' alone, no control characters, not blank"
)

# These are control characters, lone surrogates (which no file name can hold), and line and paragraph
# separators.
_FORBIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
# These are spaces and format characters: an id that holds nothing else looks like no id at all.
_BLANK_CATEGORIES: Final = frozenset({"Zs", "Cf"})


def is_valid_id(value: str) -> bool:
    """Whether ``value`` can stand for one folder: the rule that `ID_RULE` words."""
    return (
        1 <= len(value) <= MAX_ID_CHARACTERS
        and value != "."
        and ".." not in value
        and any(unicodedata.category(character) not in _BLANK_CATEGORIES for character in value)
        and not any(
            character in "/\\" or unicodedata.category(character) in _FORBIDDEN_CATEGORIES
            for character in value
        )
    )
