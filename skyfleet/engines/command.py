"""A command of the user's own: any server that speaks OpenAI's HTTP API."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from skyfleet.engines.arguments import EngineArgumentError
from skyfleet.engines.base import Engine, EngineLaunch

_PLACEHOLDER = re.compile(r"\{(host|port|model|source)\}")
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "fish", "csh", "tcsh", "busybox"})


@dataclass(frozen=True)
class CommandEngine(Engine):
    """Runs the launch's `command` with `{host}`, `{port}`, `{model}` (name) and `{source}` (weights) filled in.

    Stages cannot be read from a log that nobody knows: none is reported between installing and registering. Health is
    `/health`, or `/v1/models` where the server has no such path. Its figures are unknown.
    """

    def command(self, launch: EngineLaunch) -> list[str]:
        """The user's own vector with the placeholders replaced, each within its own element."""
        values = {"host": launch.host, "port": str(launch.port), "model": launch.model_name, "source": launch.model}
        return [_PLACEHOLDER.sub(lambda match: values[match.group(1)], part) for part in launch.command]

    def available(self, work_dir: str) -> str | None:
        """Whether the program exists is known when it is started."""
        return None

    def validate_command(self, command: Sequence[str]) -> None:
        """A program with `{port}` somewhere in its arguments, and no shell with a script in an argument."""
        if not command or not command[0].strip():
            raise EngineArgumentError("command", "is needed by the engine `command`: a program and its arguments", [])
        for part in command:
            if not part.isprintable():
                raise EngineArgumentError("command", "contains control characters", [])
        if os.path.basename(command[0]) in _SHELLS and any(re.fullmatch(r"-\w*c\w*", part) for part in command[1:]):
            raise EngineArgumentError("command", "must name a program, not a shell with a script to read", [])
        if not any("{port}" in part for part in command):
            raise EngineArgumentError("command", "must say where the port goes", ["{port}"])


COMMAND = CommandEngine(
    name="command",
    title="a command of your own",
    fallback_health_path="/v1/models",
    metrics_path=None,
)
