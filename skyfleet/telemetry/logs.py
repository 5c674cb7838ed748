"""Logs of every process of ours: one line an event, as text or as JSON, with the ids of what it is about.

What a piece of work is about is bound once, where it begins (a request, an activity), and is then on every line that
is written within it, also by libraries.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar, Token
from typing import Final, Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

LogFormat = Literal["text", "json"]

_bound: ContextVar[dict[str, str]] = ContextVar("skyfleet_log_fields", default={})  # noqa: B039 - never changed, only replaced

#: What Temporal's SDK puts on its records as one object; the ids in it are fields of ours.
_TEMPORAL: Final = ("temporal_activity", "temporal_workflow")


def bind(**fields: str | int | None) -> Token[dict[str, str]]:
    """Put these on every line that this task, and what it starts, logs from now on; None is left out."""
    told = {name: str(value) for name, value in fields.items() if value is not None}
    return _bound.set({**_bound.get(), **told})


def unbind(token: Token[dict[str, str]]) -> None:
    """Take back what a `bind` added."""
    _bound.reset(token)


def bound() -> dict[str, str]:
    """What is on every line at this point."""
    return dict(_bound.get())


def configure(style: LogFormat) -> None:
    """Log to standard error in this style, from INFO on. Call once, first of all."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_fields)
    handler.setFormatter(_json() if style == "json" else _Text())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request, its address included


def _add_fields(record: logging.LogRecord) -> bool:
    fields = dict(_bound.get())
    workflow = getattr(record, "temporal_workflow", None)
    if isinstance(workflow, dict):
        fields |= {name: str(workflow[name]) for name in ("workflow_id", "run_id") if name in workflow}
    trace_id = current_trace_id()
    if trace_id is not None:
        fields["trace_id"] = trace_id
    for name, value in fields.items():
        setattr(record, name, value)
    record.bound = fields
    return True


def current_trace_id() -> str | None:
    """The id of the current trace; None where nothing is traced, which then costs nothing either."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    return format(context.trace_id, "032x") if context.is_valid else None


def _json() -> logging.Formatter:
    return JsonFormatter(
        "{levelname}{name}{message}",
        style="{",
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
        timestamp=True,
        reserved_attrs=[*RESERVED_ATTRS, *_TEMPORAL, "bound", "color_message"],
    )


class _Text(logging.Formatter):
    """For a person at a terminal: the ids stand behind the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s%(ids)s")

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, str] = getattr(record, "bound", {})
        record.ids = "".join(f" {name}={value}" for name, value in fields.items())
        return super().format(record)
