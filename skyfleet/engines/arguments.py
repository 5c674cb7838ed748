"""Types of engine arguments, and the checks on their values.

Arguments reach an engine as an argument vector, so a shell never reads them. Shell metacharacters are refused all the
same: no argument on an allow-list needs one, and a vector has a way of ending up in somebody's start script.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_FORBIDDEN = frozenset(";&|`$()<>\\!*?~#'")
_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+,=/-]*")
_INTEGER = re.compile(r"-?\d{1,18}")
_MAX_LENGTH = 2000


class EngineArgumentError(ValueError):
    """An engine argument that is refused: which, why, and what would be accepted (names, values or nothing)."""

    def __init__(self, argument: str, reason: str, accepted: Sequence[str]) -> None:
        super().__init__(f"{argument} {reason}")
        self.argument = argument
        self.reason = reason
        self.accepted = list(accepted)


@dataclass(frozen=True)
class Argument:
    """One allowed argument.

    `kind` is `switch` (no value), `integer`, `number`, `choice`, `text` (a word: names, lists, hub ids; never a path
    outside the engine's folder) or `json` (an object with `keys` only, of plain values). Bounds are inclusive.
    """

    kind: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    negatable: bool = False

    @property
    def expects(self) -> str:
        """What a value must be, in words."""
        if self.kind == "choice":
            return "one of " + ", ".join(self.choices)
        if self.kind == "json":
            return "a JSON object with " + ", ".join(self.keys)
        if self.kind == "text":
            return "a word of letters, digits and . _ : @ + , = / -"
        low = "" if self.minimum is None else f" of at least {self.minimum:g}"
        high = "" if self.maximum is None else f"{' and' if low else ' of'} at most {self.maximum:g}"
        return f"{'an integer' if self.kind == 'integer' else 'a number'}{low}{high}"

    @property
    def accepted(self) -> list[str]:
        """The values to choose from, or what a value must be."""
        return list(self.choices or self.keys) or [self.expects]


def switch(*aliases: str, negatable: bool = False) -> Argument:
    """An argument without a value; `negatable` when the engine also knows `--no-…`."""
    return Argument("switch", aliases=aliases, negatable=negatable)


def integer(minimum: float | None = 0, maximum: float | None = None, *aliases: str) -> Argument:
    """A whole number."""
    return Argument("integer", minimum, maximum, aliases=aliases)


def number(minimum: float | None = 0, maximum: float | None = None, *aliases: str) -> Argument:
    """A finite decimal number."""
    return Argument("number", minimum, maximum, aliases=aliases)


def choice(*choices: str, aliases: tuple[str, ...] = ()) -> Argument:
    """One of a few words."""
    return Argument("choice", choices=choices, aliases=aliases)


def text(*aliases: str) -> Argument:
    """A word, a list of words, or a hub id."""
    return Argument("text", aliases=aliases)


def json_object(*keys: str) -> Argument:
    """A JSON object with these keys only."""
    return Argument("json", keys=keys)


def json_text(value: Any) -> str:
    """Compact JSON of what a person gave as a value."""
    return json.dumps(value, separators=(",", ":"), default=str)


def check_characters(name: str, value: str) -> None:
    """Refuse shell metacharacters, control characters and over-long values, in any part of the vector."""
    if len(value) > _MAX_LENGTH:
        raise EngineArgumentError(name[:80], f"is longer than {_MAX_LENGTH} characters", [])
    bad = sorted({char for char in value if char in _FORBIDDEN or not char.isprintable()})
    if bad:
        listed = " ".join(char if char.isprintable() else f"U+{ord(char):04X}" for char in bad)
        raise EngineArgumentError(name, f"contains characters that are not allowed: {listed}", [])


def check_value(name: str, argument: Argument, value: str) -> None:
    """Raise `EngineArgumentError` unless `value` is one that `argument` takes."""
    check_characters(name, value)
    if argument.kind in ("integer", "number"):
        _check_number(name, argument, value)
    elif argument.kind == "choice":
        if value not in argument.choices:
            raise EngineArgumentError(name, f"must be {argument.expects}, not {value!r}", argument.accepted)
    elif argument.kind == "json":
        _check_json(name, argument, value)
    else:
        _check_text(name, argument, value)


def _check_number(name: str, argument: Argument, value: str) -> None:
    wrong = EngineArgumentError(name, f"must be {argument.expects}, not {value!r}", argument.accepted)
    if argument.kind == "integer" and not _INTEGER.fullmatch(value):
        raise wrong
    try:
        figure = float(value)
    except ValueError:
        raise wrong from None
    too_small = argument.minimum is not None and figure < argument.minimum
    too_large = argument.maximum is not None and figure > argument.maximum
    if not math.isfinite(figure) or "_" in value or too_small or too_large:
        raise wrong


def _check_text(name: str, argument: Argument, value: str) -> None:
    if ".." in value.split("/"):
        raise EngineArgumentError(name, "must not leave the engine's folder with `..`", argument.accepted)
    if value.startswith("/"):
        raise EngineArgumentError(name, "must not be an absolute path", argument.accepted)
    if not _TEXT.fullmatch(value):
        raise EngineArgumentError(name, f"must be {argument.expects}, not {value!r}", argument.accepted)


def _check_json(name: str, argument: Argument, value: str) -> None:
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise EngineArgumentError(name, f"must be {argument.expects}", argument.accepted)
    for key, item in parsed.items():
        if key not in argument.keys:
            raise EngineArgumentError(name, f"has the key {key!r}, which is not in the allow-list", argument.accepted)
        if isinstance(item, str):
            _check_text(f"{name}.{key}", text(), item)
        elif not isinstance(item, (bool, int, float)) or (isinstance(item, float) and not math.isfinite(item)):
            raise EngineArgumentError(f"{name}.{key}", "must be a string, a number or a boolean", [])
