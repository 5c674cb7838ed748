"""The agent's command line, and the programs that ride in the same file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from skyfleet import __version__

_BAD_START = 2
_DRAIN_DEADLINE_S = 600.0


def main(argv: Sequence[str]) -> int:
    """Run the agent, or `install`, `engine-echo`, `engine-guard`, `gpu-reader`; the exit status, 2 for a bad start."""
    # Imported here, each alone: the guard lives beside every engine and should stay small.
    if argv and argv[0] == "engine-guard":
        from skyfleet.agent import guard

        return guard.main(argv[1:])
    if argv and argv[0] == "gpu-reader":
        from skyfleet.agent import nvml

        return nvml.main(argv[1:])
    if argv and argv[0] == "install":
        from skyfleet.agent import install

        return install.main(argv[1:])
    if argv and argv[0] == "engine-echo":
        from skyfleet.engines import echo_server

        return echo_server.main(argv[1:])
    return _agent(argv)


def _agent(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="node-agent",
        description="Runs an inference engine on this machine and reports to the Skyfleet control plane.",
        epilog="Exit status: 0 ended in order, 1 the engine failed to start, 2 bad boot file or state folder in use.",
    )
    parser.add_argument("--boot", required=True, metavar="FILE", help="what the machine was told at creation (JSON)")
    parser.add_argument("--state-dir", required=True, metavar="DIR", help="kept across restarts of the agent")
    parser.add_argument(
        "--drain-deadline-s",
        type=float,
        default=_DRAIN_DEADLINE_S,
        metavar="SECONDS",
        help="how long a draining engine may finish its requests (default: %(default)g)",
    )
    parser.add_argument("--version", action="version", version=f"node-agent {__version__}")
    options = parser.parse_args(argv)

    import asyncio

    from skyfleet.agent.address import advertised, listening
    from skyfleet.agent.config import BootError, load_boot
    from skyfleet.agent.life import Agent
    from skyfleet.agent.logs import hide, log
    from skyfleet.agent.state import StateDir, StateInUse

    try:
        boot = advertised(load_boot(options.boot))
        hide(boot.secrets)
        state = StateDir(options.state_dir)
        with state.locked():
            return asyncio.run(Agent(listening(boot, state), state, options.drain_deadline_s).run())
    except (BootError, StateInUse, OSError) as error:
        log("agent.cannot_start", level="error", reason=error)
        return _BAD_START
