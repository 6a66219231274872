"""Fault scripts from files: JSON or TOML in, a `Scenario` out, or one line of what is wrong.

Beside the faults, a file may have ``options``: any of `Options`, by name, for all connections.
"""

from __future__ import annotations

import json
import math
import tomllib
from typing import TYPE_CHECKING, Any, get_args

import attrs
import cattrs
from attrs import field, frozen
from cattrs.gen import make_dict_structure_fn

from omi_rt.core.errors import OmiRtError
from omi_rt.fake.faults import Fault, FaultScript
from omi_rt.fake.records import Options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class ScriptError(OmiRtError):
    """A fault script is wrong; the message is one line that names every bad key."""


@frozen
class Scenario(FaultScript):
    """A fault script, and how the fake behaves beside it."""

    options: Options = field(factory=Options)


def read_script(path: Path) -> Scenario:
    """Read a script from a ``.toml`` file, or else from JSON.

    Raises:
        ScriptError: it cannot be read, or is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ScriptError(f"{path}: {error}") from error
    return parse_script(data)


def parse_script(data: Any) -> Scenario:
    """Structure a script.

    Raises:
        ScriptError: it is wrong.
    """
    try:
        return _converter.structure(data, Scenario)
    except (cattrs.BaseValidationError, ValueError, TypeError, KeyError) as error:
        raise ScriptError("; ".join(_problems(error, ""))) from error


def _problems(error: BaseException, path: str) -> Iterator[str]:
    """Name each bad key of an error that ``cattrs`` made."""
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        for key in sorted(error.extra_fields):
            yield f"{path}.{key} is unknown".lstrip(".")
    elif isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            notes = getattr(inner, "__notes__", [])
            yield from _problems(inner, path + _step(notes))
    elif isinstance(error, KeyError):
        yield f"{path} is missing".lstrip(".")
    else:
        message = error.args[0] if error.args else error
        yield f"{path.lstrip('.') or 'the script'}: {message}"


def _step(notes: list[Any]) -> str:
    for note in notes:
        if isinstance(note, cattrs.AttributeValidationNote):
            return f".{note.name}"
        if isinstance(note, cattrs.IterableValidationNote):
            return f"[{note.index}]"
    return ""


def _strictly(wanted: type, called: str) -> Any:
    def structure(value: Any, _type: Any) -> Any:
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"must be {called}")
        return value

    return structure


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for wanted, called in (
        (float, "a number"),
        (int, "a whole number"),
        (bool, "true or false"),
        (str, "text"),
    ):
        converter.register_structure_hook(wanted, _strictly(wanted, called))

    @converter.register_structure_hook_factory(attrs.has)
    def _objects(cls: type[Any]) -> Any:
        structure = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True)

        def structure_object(value: Any, cls: type[Any]) -> Any:
            if not isinstance(value, dict):
                raise TypeError("must be an object")
            for name in _LISTS:
                if not isinstance(value.get(name, []), list):
                    raise TypeError(f"{name} must be a list")
            return structure(value, cls)

        return structure_object

    @converter.register_structure_hook
    def _faults(value: Any, _type: Any) -> Fault:
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}")
        rest = {key: part for key, part in value.items() if key != "kind"}
        fault: Fault = converter.structure(rest, _KINDS[kind])
        return fault

    return converter


def _kind(fault: type) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in fault.__name__).lstrip("_")


_LISTS = ("connections", "afterwards", "faults")
_KINDS: dict[str, type] = {_kind(fault): fault for fault in get_args(Fault)}
_converter = _make_converter()
