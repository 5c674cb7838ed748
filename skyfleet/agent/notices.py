"""Watches for the cloud's notice that the machine is taken away or worked on, and tells the control plane.

A notice is told within two seconds: a spot machine's metadata service is asked about once a second. The watch disturbs
nobody: whatever the service does, it is asked again after a pause, which grows while it fails; one that never answered
is hardly asked any more.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from skyfleet.agent.config import Boot
from skyfleet.agent.control_plane import BackOff, ControlPlane, Dismissed
from skyfleet.agent.logs import log
from skyfleet.agent.metadata import LINK_LOCAL, PREEMPTION, SERVICES, Look, Metadata, Notice

#: Between two looks at a service that has answered before and fails now, at most.
_MAX_PAUSE_S = 5.0
#: The same for one that never answered: there is none, most likely.
_MAX_PAUSE_ABSENT_S = 300.0
_FIRST_PROBE_PAUSE_S = 5.0
#: A preemption is told about this often until it was heard: the machine has seconds.
_TELL_AGAIN_S = 1.0


class NoticeWatch:
    """Tells each notice once, until it was heard; calls `preempted` at once when the machine is to be taken away."""

    def __init__(self, boot: Boot, control_plane: ControlPlane, key: str, preempted: Callable[[], None]) -> None:
        self._boot = boot
        self._control_plane = control_plane
        self._key = key
        self._preempted = preempted
        self._doomed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._dismissed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Watch for ever, or end at once when there is nothing to watch. Raises `Dismissed`."""
        base = self._boot.metadata_url
        if base is None and self._boot.sandbox:
            return  # the address would be the one of the machine that the sandbox runs on
        self._start(self._watch_all(base or LINK_LOCAL))
        try:
            await self._dismissed
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch_all(self, base: str) -> None:
        service = await self._service(base)
        for look in service.looks(self._boot.spot_instance):
            self._start(self._watch(look))

    async def _service(self, base: str) -> Metadata:
        """The provider's service; for a provider that has none of its own, the first that answers."""
        named = SERVICES.get(self._boot.provider)
        if named is not None:
            return named(base)
        pause_s = _FIRST_PROBE_PAUSE_S
        while True:
            for kind in SERVICES.values():
                service = kind(base)
                if await service.present():
                    log("notices.service", service=kind.__name__)
                    return service
            await asyncio.sleep(_spread(pause_s))
            pause_s = min(2 * pause_s, _MAX_PAUSE_ABSENT_S)

    async def _watch(self, look: Look) -> None:
        standing: set[str] = set()
        failures, answered = 0, False
        while True:
            pause_s = look.every_s
            try:
                notices = await look.read()
            except Exception as error:  # its answers are another's; none of them may end the watch
                failures += 1
                if failures == 1:
                    log("notices.no_answer", level="warning", what=look.what, reason=error)
                longest_s = max(_MAX_PAUSE_S, look.every_s) if answered else _MAX_PAUSE_ABSENT_S
                pause_s = min(look.every_s * 2 ** min(failures, 10), longest_s)
            else:
                failures, answered = 0, True
                for notice in notices:
                    if notice.key not in standing:
                        self._noticed(notice)
                standing = {notice.key for notice in notices}
            await asyncio.sleep(_spread(pause_s))

    def _noticed(self, notice: Notice) -> None:
        log("notice", level="warning", kind=notice.kind, source=notice.source, deadline=notice.deadline)
        if notice.kind == PREEMPTION:
            self._doomed = True
            self._preempted()
        self._start(self._tell(notice))

    async def _tell(self, notice: Notice) -> None:
        back_off = BackOff()
        # A machine that is taken away needs no advice.
        while notice.kind == PREEMPTION or not self._doomed:
            try:
                heard = await self._control_plane.warn(
                    self._key, kind=notice.kind, source=notice.source, detail=notice.detail, deadline=notice.deadline
                )
            except Dismissed as dismissed:
                if not self._dismissed.done():
                    self._dismissed.set_exception(dismissed)
                return
            if heard:
                log("notice.heard", kind=notice.kind, source=notice.source)
                return
            await asyncio.sleep(_spread(_TELL_AGAIN_S) if notice.kind == PREEMPTION else back_off.delay_s())


def _spread(seconds: float) -> float:
    """A little less, at random: the machines of a fleet were often started together."""
    return seconds * random.uniform(0.8, 1)  # noqa: S311 - spreads load, guards nothing
