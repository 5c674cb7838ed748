"""Powers the machine off."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Sequence

from skyfleet.agent.logs import log

_COMMAND_TIMEOUT_S = 60.0
_FIRST_RETRY_S = 1.0
_MAX_RETRY_S = 60.0


async def power_off(command: Sequence[str]) -> None:
    """Run the machine's shutdown command until it succeeds: a machine that stays up goes on billing.

    Without a command there is nothing to run, and the agent just ends; its cloud sees to the machine.
    """
    if not command:
        log("machine.no_shutdown_command", level="warning")
        return
    delay_s = _FIRST_RETRY_S
    while True:
        log("machine.power_off")
        problem = await asyncio.to_thread(_run, list(command))
        if problem is None:
            return
        log("machine.power_off_failed", level="error", reason=problem, retry_in_s=delay_s)
        await asyncio.sleep(delay_s)
        delay_s = min(2 * delay_s, _MAX_RETRY_S)


def _run(command: list[str]) -> str | None:
    """Run it once; why it failed, or None."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode == 0:
        return None
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"status {done.returncode}" + (f": {said[-1][:200]}" if said else "")
