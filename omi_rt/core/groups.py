"""Exception groups, as nurseries raise them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

ErrorT = TypeVar("ErrorT", bound=BaseException)


def errors_in(group: BaseExceptionGroup[ErrorT]) -> Iterator[ErrorT]:
    """Yield the errors of a group and of the groups in it, in order."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from errors_in(error)
        else:
            yield error


def first_error(group: BaseExceptionGroup[ErrorT]) -> ErrorT:
    """Return the first error of a group, which is the only one where a single task fails."""
    return next(errors_in(group))
