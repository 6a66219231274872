"""The settings as a table for a reader."""

from __future__ import annotations

import textwrap

import attrs

from omi_rt.settings import Settings


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
