"""The built-in echo engine: a real OpenAI-compatible HTTP server without a model.

It answers with the last user message, word for word, and says so in `system_fingerprint`. It is there so that one
machine without a GPU can run the whole of Skyfleet, on real requests over real sockets.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from skyfleet.engines.arguments import choice, integer, number
from skyfleet.engines.base import (
    LOADING_MODEL,
    STARTING_ENGINE,
    Engine,
    EngineLaunch,
    EngineUnavailable,
    MetricNames,
    patterns,
)
from skyfleet.engines.program import environment, program

_OURS = "is set by Skyfleet"


@dataclass(frozen=True)
class EchoEngine(Engine):
    """Our own server process, from the same file as the agent."""

    def command(self, launch: EngineLaunch) -> list[str]:
        """`python node-agent.pyz engine-echo …`."""
        if launch.manifest is None:
            raise EngineUnavailable("the echo engine reads its model's name from the manifest, and there is none")
        return [
            *program(launch.python, "engine-echo", "skyfleet.engines.echo"),
            "--manifest",
            launch.manifest,
            "--host",
            launch.host,
            "--port",
            str(launch.port),
            *launch.args,
        ]

    def environment(self, launch: EngineLaunch) -> dict[str, str]:
        """What Python needs to find this package."""
        return environment()

    def available(self, work_dir: str) -> str | None:
        """Always there: it comes with the agent."""
        return None


ECHO = EchoEngine(
    name="echo",
    title="built-in echo engine",
    metric_names=MetricNames(
        running=("vllm:num_requests_running",),
        waiting=("vllm:num_requests_waiting",),
        generated_tokens_total=("vllm:generation_tokens_total",),
    ),
    allowed_args={
        "--tokens-per-second": number(0.1, 1_000_000),
        "--start-delay-s": number(0, 3600),
        "--max-concurrency": integer(1, 100_000),
        "--fail-at": choice("load", "start"),
    },
    refused={
        "--host": _OURS,
        "--port": _OURS,
        "--model": _OURS + ", from the launch's model",
        "--served-model-name": _OURS + ", from the launch's model",
        "--manifest": _OURS,
        "--api-key": "is not for engine arguments: a secret there can be read in the process list",
        "--trust-remote-code": "means nothing here: the echo engine runs no model",
    },
    stage_patterns=patterns((r" loading model ", LOADING_MODEL), (r" starting server on http://", STARTING_ENGINE)),
)


if __name__ == "__main__":
    from skyfleet.engines.echo_server import main

    sys.exit(main(sys.argv[1:]))
