"""All engines, by name."""

from __future__ import annotations

from skyfleet.engines.base import Engine
from skyfleet.engines.command import COMMAND
from skyfleet.engines.echo import ECHO
from skyfleet.engines.llama_cpp import LLAMA_CPP
from skyfleet.engines.sglang import SGLANG
from skyfleet.engines.vllm import VLLM

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (VLLM, SGLANG, LLAMA_CPP, COMMAND, ECHO)}


class UnknownEngine(LookupError):
    """There is no engine of that name; the text lists those that exist."""


def engine(name: str) -> Engine:
    """The engine of that name. Raises `UnknownEngine`."""
    try:
        return ENGINES[name]
    except KeyError:
        raise UnknownEngine(f"unknown engine {name!r}; there are: {', '.join(sorted(ENGINES))}") from None
