"""`skyfleet doctor` on a stack that runs: all is well, and then the worker is not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.stack import CHILDREN, RunningStack, running_stack

#: Fails neither by a full disk of the machine that runs the tests.
_OF_THIS_MACHINE = "data folder"


async def doctor(stack: RunningStack) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit status, and the checks by name."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "skyfleet.cli", "--data", str(stack.data), "doctor", "--json"),
        env={**os.environ, "SKYFLEET_DATA": str(stack.data)},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, {check["name"]: check for check in json.loads(out)["checks"]}


def wrong(found: dict[str, dict[str, Any]]) -> list[str]:
    """The checks that failed."""
    return [name for name, check in found.items() if check["status"] == "failed" and name != _OF_THIS_MACHINE]


async def test_all_is_well_until_the_worker_hangs(tmp_path: Path) -> None:
    async with running_stack(tmp_path) as stack:
        status, found = await doctor(stack)
        assert wrong(found) == []
        assert status == (found[_OF_THIS_MACHINE]["status"] == "failed")
        for queue in ("control", "provision", "teardown"):
            assert found[f"workers on {queue}"]["detail"].endswith("polling")
        assert found["public url"]["detail"] == f"{stack.endpoints.api} answers here and serves the agent"
        assert all(name in found["processes"]["detail"] for name in CHILDREN)
        assert found["worker"]["status"] == "ok"

        worker = stack.pids()["worker"]
        os.kill(worker, signal.SIGSTOP)
        try:
            status, found = await doctor(stack)
        finally:
            os.kill(worker, signal.SIGCONT)
        assert status == 1
        assert wrong(found) == ["worker"]
        assert "worker.log" in found["worker"]["mend"]
