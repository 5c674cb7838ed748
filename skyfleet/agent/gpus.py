"""The GPUs' figures for heartbeats, from a process that may hang without harm (`nvml`)."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from typing import Any

from skyfleet.agent.logs import log
from skyfleet.agent.nvml import LIBRARY
from skyfleet.engines.program import environment, program

_MIN_EVERY_S, _MAX_EVERY_S = 0.5, 5.0
#: Figures older than that many readings are left out of heartbeats.
_FRESH_READINGS = 3
#: A reader that said nothing for that many readings hangs.
_SILENT_READINGS = 10
_FIRST_BACK_OFF_S = 1.0
_MAX_BACK_OFF_S = 300.0
_END_S = 1.0


class GpuWatch:
    """The last figures, while they are fresh. On a machine without NVIDIA's library there are none, ever."""

    def __init__(self, heartbeat_interval_s: float) -> None:
        self._every_s = min(_MAX_EVERY_S, max(_MIN_EVERY_S, heartbeat_interval_s / 2))
        self._read_at = float("-inf")
        self._gpus: list[dict[str, Any]] = []

    def figures(self) -> list[dict[str, Any]]:
        """Figures of each GPU (`GpuFigures` of the API); empty when the last ones are too old to be true."""
        # The reader's own clock reading, so that lines that lay in the pipe do not pass for new.
        fresh = time.monotonic() - self._read_at <= _FRESH_READINGS * self._every_s
        return self._gpus if fresh else []

    async def run(self) -> None:
        """Have the figures read for ever; ends at once where there is nothing to read them with."""
        try:
            ctypes.CDLL(LIBRARY)  # loading it asks the driver nothing
        except OSError:
            return
        back_off_s = _FIRST_BACK_OFF_S
        while True:
            if await self._read():
                back_off_s = _FIRST_BACK_OFF_S
            await asyncio.sleep(back_off_s)
            back_off_s = min(2 * back_off_s, _MAX_BACK_OFF_S)

    async def _read(self) -> bool:
        """Run one reader to its end; whether it read anything."""
        command = program(sys.executable, "gpu-reader", "skyfleet.agent.nvml")
        try:
            reader = await asyncio.create_subprocess_exec(
                *command,
                *("--every-s", str(self._every_s), "--parent", str(os.getpid())),
                stdin=DEVNULL,
                stdout=PIPE,
                env={**os.environ, **environment()},
            )
        except OSError as error:
            log("gpus.no_reader", level="warning", reason=error)
            return False
        try:
            some = await self._take(reader)
            _kill(reader)
            # A driver that hangs may hold it for long: then no second one joins it.
            await reader.wait()
            return some
        finally:
            if reader.returncode is None:  # cancelled: the agent's end waits for no driver
                _kill(reader)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(reader.wait(), _END_S)

    async def _take(self, reader: Process) -> bool:
        assert reader.stdout is not None
        some = False
        while True:
            try:
                line = await asyncio.wait_for(reader.stdout.readline(), _SILENT_READINGS * self._every_s)
                if not line:
                    return some
                said = json.loads(line)
                self._read_at, self._gpus = float(said["at"]), list(said["gpus"])
                some = True
            except asyncio.TimeoutError:  # noqa: UP041
                log("gpus.reader_hangs", level="error")
                return some
            except (ValueError, KeyError, TypeError) as error:
                log("gpus.reader_garbled", level="error", reason=error)
                return some


def _kill(reader: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        reader.kill()
