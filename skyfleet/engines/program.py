"""How to start our own programs (the echo engine, the guard) from wherever this package was loaded."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.lru_cache(maxsize=1)
def archive() -> str | None:
    """Path of the one-file agent that this package was loaded from; None when it came from a folder."""
    return next((str(parent) for parent in Path(__file__).parents if parent.is_file()), None)


def program(python: str, subcommand: str, module: str) -> list[str]:
    """Argument vector that runs `subcommand` of the one-file agent, or `module` when there is no such file.

    From the file nothing outside it is needed, so the interpreter skips its site packages and starts faster.
    """
    path = archive()
    return [python, "-I", "-S", path, subcommand] if path else [python, "-m", module]


def environment() -> dict[str, str]:
    """What the vector of `program` needs to find this package."""
    return {} if archive() else {"PYTHONPATH": str(Path(__file__).parents[2])}
