"""The agent's own log: one line an event on standard error, `key=value`, secrets masked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

_MASK = "***"
_MIN_SECRET_LENGTH = 4  # shorter ones would mask ordinary words, and are no secrets
_secrets: set[str] = set()


def hide(values: Iterable[str]) -> None:
    """Mask these values in everything that is logged from now on."""
    _secrets.update(value for value in values if len(value) >= _MIN_SECRET_LENGTH)


def masked(text: str) -> str:
    """The text without the secrets that are known."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, _MASK)
    return text


def now_iso() -> str:
    """The time as the control plane reads it: UTC, ISO 8601, milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def log(event: str, level: str = "info", **fields: Any) -> None:
    """Write one line: `ts=… level=… event=… key=value …`; values with blanks or quotes are JSON strings."""
    pairs = {"ts": now_iso(), "level": level, "event": event, **fields}
    line = " ".join(f"{key}={_value(value)}" for key, value in pairs.items() if value is not None)
    print(masked(line), file=sys.stderr, flush=True)


def _value(value: Any) -> str:
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)
