"""The stages of a start: observed once each, in order, and reported in the background."""

from __future__ import annotations

import asyncio
import contextlib

from skyfleet.agent.control_plane import ControlPlane, StageReached
from skyfleet.agent.logs import log, now_iso
from skyfleet.engines.base import LOADING_MODEL, STARTING_ENGINE

INSTALLING = "INSTALLING"
_ORDER = (INSTALLING, LOADING_MODEL, STARTING_ENGINE)


class StageReporter:
    """Keeps the stages that were reached and tells the control plane of each, in order.

    A stage is reached once and none comes after a later one: with several workers an engine's log goes back and forth.
    """

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        self._todo: asyncio.Queue[StageReached] = asyncio.Queue()
        self.reached: list[StageReached] = []

    def reach(self, stage: str, detail: str) -> None:
        """A stage was observed; `detail` is what showed it."""
        if self.reached and _ORDER.index(stage) <= _ORDER.index(self.reached[-1].stage):
            return
        observed = StageReached(stage, now_iso(), detail)
        self.reached.append(observed)
        self._todo.put_nowait(observed)
        log("stage.reached", stage=stage, detail=detail)

    async def run(self) -> None:
        """Report stages for ever. Raises `Dismissed`."""
        while True:
            reached = await self._todo.get()
            await self._control_plane.report_stage(reached)
            self._todo.task_done()

    async def flush(self, timeout_s: float) -> None:
        """Wait until all is reported, or the time is up."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._todo.join(), timeout_s)
