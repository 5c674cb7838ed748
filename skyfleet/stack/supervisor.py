"""Keeps the processes of the embedded stack running: start by dependency, watch, restart, stop in reverse.

A unit is a `Service` (a process that stays), a `Step` (something done once on the way up) or `External` (what others
run). Everything that does not depend on one another starts at the same time. Why this is our own code: docs/adr,
"supervisor".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from skyfleet.stack.logs import LogFile
from skyfleet.stack.processes import exit_text, kill_group, signal_group, spawn

#: Answers None when all is well, else what is not.
Probe = Callable[[], Awaitable[str | None]]

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
_STEADY_AFTER_S: Final = 30.0  # up for this long: the next death starts with the first pause again
_DEATHS_BEFORE_GIVING_UP: Final = 5  # of a service that was never ready
_READY_INTERVAL_S: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Service:
    """A process that stays.

    `command` makes the argument vector, and may take its time to prepare what the process needs. `ready` says whether
    what comes `after` it may start; `alive` only whether the process itself still answers: it is killed when it does
    not, so it must not fail for another process's fault. `uses` names what must not be stopped before it.
    """

    name: str
    command: Callable[[], Awaitable[Sequence[str]]]
    ready: Probe
    alive: Probe
    after: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    death_signal: signal.Signals = signal.SIGKILL  # when the supervisor itself is killed
    hung_after_s: float | None = None  # silent for this long, it is killed; None: what the supervisor says for all


@dataclass(frozen=True, kw_only=True)
class Step:
    """A program run once, which must succeed, before what comes `after` it starts."""

    name: str
    command: Sequence[str]
    after: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class External:
    """What others run: waited for on the way up and watched from then on, never started, ended or restarted."""

    name: str
    ready: Probe
    after: tuple[str, ...] = ()


Unit = Service | Step | External


class NoticeKind(StrEnum):
    """What a notice is about."""

    STARTED = "started"
    READY = "ready"
    DIED = "died"
    HUNG = "hung"
    AWAY = "away"  # what others run does not answer
    RECOVERED = "recovered"
    STOPPED = "stopped"
    KILLED = "killed"  # did not stop in time
    LOG = "log"


@dataclass(frozen=True)
class Notice:
    """Something that a person who watches the stack is told. `lines` are the newest lines of the unit's log."""

    kind: NoticeKind
    unit: str
    text: str
    lines: Sequence[str] = ()


class StartFailed(Exception):
    """The stack did not come up. The message names the unit, why, and what it wrote last."""


@dataclass
class _Running:
    unit: Unit
    log: LogFile
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    waits_for: str = "not started"
    process: asyncio.subprocess.Process | None = None
    task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.process.returncode is None else None


class Supervisor:
    """Runs `units`, with their logs in `folder/logs`.

    `notify` is told what happens, `pids_changed` which processes there are (name → pid). All from the thread of the
    running loop; the children end with that thread.
    """

    def __init__(
        self,
        folder: Path,
        units: Sequence[Unit],
        *,
        notify: Callable[[Notice], None],
        pids_changed: Callable[[Mapping[str, int]], None] = lambda pids: None,
        probe_interval_s: float = 3.0,
        hung_after_s: float = 30.0,
        copy_logs: bool = False,
    ) -> None:
        self._folder = folder
        self._logs = folder / "logs"
        self._running = {unit.name: _Running(unit, LogFile(self._logs / f"{unit.name}.log")) for unit in units}
        for unit in units:
            for name in (*unit.after, *(unit.uses if isinstance(unit, Service) else ())):
                if name not in self._running:
                    raise ValueError(f"{unit.name} refers to {name}, which is no unit")
        self._notify = notify
        self._pids_changed = pids_changed
        self._probe_interval_s = probe_interval_s
        self._hung_after_s = hung_after_s
        self._copy_logs = copy_logs
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: asyncio.Future[StartFailed] | None = None
        self._stopping = False

    # --- for those who look ---------------------------------------------------------------------------------

    @property
    def services(self) -> list[str]:
        """Names of the services."""
        return [name for name, running in self._running.items() if isinstance(running.unit, Service)]

    def pid(self, name: str) -> int | None:
        """The service's process, None while it has none. `KeyError` when there is no such unit."""
        return self._running[name].pid

    def waiting(self) -> dict[str, str]:
        """The units that are not ready yet, and what each waits for."""
        return {name: running.waits_for for name, running in self._running.items() if not running.ready.is_set()}

    def kill(self, name: str, signum: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a service, as a fault would. It is restarted like after any death."""
        pid = self.pid(name)
        if pid is not None:
            os.kill(pid, signum)

    # --- start and stop -------------------------------------------------------------------------------------

    async def start(self, timeout_s: float = 120.0) -> None:
        """Start everything and return when all of it is ready. Raises `StartFailed`, with everything stopped again."""
        self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._failure = asyncio.get_running_loop().create_future()
        for running in self._running.values():
            running.task = self._run(self._mind(running))
        self._run(self._mind_logs())
        everything = asyncio.create_task(self._all_ready())
        try:
            first: set[asyncio.Future[Any]] = {everything, self._failure}
            await asyncio.wait(first, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if everything.done():
                return
            failure = self._failure.result() if self._failure.done() else self._timed_out(timeout_s)
        finally:
            everything.cancel()
        await self.stop()
        raise failure

    async def stop(self) -> None:
        """Stop every service, each after those that use it; one that does not end in its time is killed."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        gone = {name: asyncio.Event() for name in self._running}

        async def end(name: str, running: _Running) -> None:
            for other in self._running.values():
                if isinstance(other.unit, Service) and name in other.unit.uses:
                    await gone[other.unit.name].wait()
            try:
                if isinstance(running.unit, Service):
                    await self._end(running, running.unit)
            finally:
                gone[name].set()

        await asyncio.gather(*(end(name, running) for name, running in self._running.items()))
        self._tell_pids()

    def kill_all(self) -> None:
        """End every child at once and without asking, for a person who will not wait for `stop`."""
        for running in self._running.values():
            if running.pid is not None:
                signal_group(running.pid, signal.SIGKILL)

    # --- one unit -------------------------------------------------------------------------------------------

    async def _mind(self, running: _Running) -> None:
        match running.unit:
            case Service() as service:
                await self._keep(running, service)
            case Step() as step:
                await self._do(running, step)
            case External() as external:
                await self._watch_external(running, external)

    async def _keep(self, running: _Running, service: Service) -> None:
        await self._wait_for(service.after, running)
        pause_s = _FIRST_PAUSE_S
        deaths = 0
        while True:
            started = time.monotonic()
            why = await self._live(running, service)
            lines = running.log.tail()
            if not running.ready.is_set():
                deaths += 1
                if deaths >= _DEATHS_BEFORE_GIVING_UP:
                    said = "".join(f"\n    {line}" for line in lines)
                    return self._fail(f"{service.name} ended {deaths} times before it was ready: {why}{said}")
            if time.monotonic() - started >= _STEADY_AFTER_S:
                pause_s = _FIRST_PAUSE_S
            text = f"{service.name} died: {why}; restarting in {pause_s:g} s"
            self._notify(Notice(NoticeKind.DIED, service.name, text, lines))
            running.waits_for = f"restarting: {why}"
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _live(self, running: _Running, service: Service) -> str:
        """One life of the service, from start to end; how it ended."""
        running.waits_for = "preparing"
        try:
            command = await service.command()
            process = await self._spawn(running, command, service.env, service.death_signal, service.identity)
        except Exception as error:  # whatever preparing raises, it is a reason that there is no process
            return f"cannot be started: {error}"
        self._notify(Notice(NoticeKind.STARTED, service.name, f"{service.name} started, pid {process.pid}"))
        watch = asyncio.create_task(self._watch(running, service))
        try:
            returncode = await process.wait()
        finally:
            watch.cancel()
        # Some programs' own children (SkyPilot's executors) live on without them, and would be in the way of the next.
        await asyncio.to_thread(kill_group, process.pid, self._folder)
        self._tell_pids()
        return exit_text(returncode)

    async def _watch(self, running: _Running, service: Service) -> None:
        """Wait until the process is ready, then until it hangs, and kill it when it does."""
        hung_after_s = self._hung_after(service)
        started = answered = time.monotonic()
        known = running.ready.is_set()
        while (why := await self._ask(service.ready)) is not None:
            running.waits_for = why
            # On the way up somebody waits, with a deadline; a restart is watched by nobody but us.
            if known and time.monotonic() - answered >= hung_after_s:
                if await self._ask(service.alive) is not None:
                    return self._give_up_on(service, running, why)
                answered = time.monotonic()
            await asyncio.sleep(_READY_INTERVAL_S)
        running.ready.set()
        running.waits_for = ""
        took = f"{time.monotonic() - started:.1f} s"
        if known:
            self._notify(Notice(NoticeKind.RECOVERED, service.name, f"{service.name} is healthy again, after {took}"))
        else:
            self._notify(Notice(NoticeKind.READY, service.name, f"{service.name} is ready, after {took}"))
        answered = time.monotonic()
        while True:
            await asyncio.sleep(self._probe_interval_s)
            why = await self._ask(service.alive)
            if why is None:
                answered = time.monotonic()
            elif time.monotonic() - answered >= hung_after_s:
                return self._give_up_on(service, running, why)

    async def _watch_external(self, running: _Running, external: External) -> None:
        await self._wait_for(external.after, running)
        answered: float | None = None  # None while it is known to be away
        while True:
            why = await self._ask(external.ready)
            if why is not None:
                running.waits_for = why
                if answered is not None and time.monotonic() - answered >= self._hung_after_s:
                    answered = None
                    text = f"{external.name} does not answer for {self._hung_after_s:g} s: {why}"
                    self._notify(Notice(NoticeKind.AWAY, external.name, text))
            else:
                if not running.ready.is_set():
                    running.ready.set()
                    self._notify(Notice(NoticeKind.READY, external.name, f"{external.name} answers"))
                elif answered is None:
                    self._notify(Notice(NoticeKind.RECOVERED, external.name, f"{external.name} answers again"))
                answered = time.monotonic()
            await asyncio.sleep(self._probe_interval_s)

    def _hung_after(self, service: Service) -> float:
        return self._hung_after_s if service.hung_after_s is None else service.hung_after_s

    def _give_up_on(self, service: Service, running: _Running, why: str) -> None:
        text = f"{service.name} does not answer for {self._hung_after(service):g} s ({why}); killing it"
        self._notify(Notice(NoticeKind.HUNG, service.name, text, running.log.tail()))
        if running.pid is not None:
            signal_group(running.pid, signal.SIGKILL)

    async def _do(self, running: _Running, step: Step) -> None:
        await self._wait_for(step.after, running)
        running.waits_for = "running"
        try:
            process = await self._spawn(running, step.command, step.env, signal.SIGKILL, {})
        except Exception as error:  # whatever it is, nobody else would hear of it
            return self._fail(f"{step.name} cannot be started: {error}")
        try:
            returncode = await process.wait()
        except asyncio.CancelledError:
            signal_group(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        if returncode != 0:
            said = "".join(f"\n    {line}" for line in running.log.tail(15))
            return self._fail(f"{step.name} failed: {exit_text(returncode)}{said}")
        running.ready.set()
        self._notify(Notice(NoticeKind.READY, step.name, f"{step.name} done"))
        return None

    async def _end(self, running: _Running, service: Service) -> None:
        process = running.process
        if process is None:
            return
        if process.returncode is None:
            await self._ask_to_stop(running, service, process)
        await asyncio.to_thread(kill_group, process.pid, self._folder)

    async def _ask_to_stop(self, running: _Running, service: Service, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(service.stop_signal)
            # A stopped (SIGSTOP) process takes no other signal until it goes on.
            process.send_signal(signal.SIGCONT)
        try:
            await asyncio.wait_for(process.wait(), service.stop_seconds)
            self._notify(Notice(NoticeKind.STOPPED, service.name, f"{service.name} stopped"))
        except TimeoutError:
            signal_group(process.pid, signal.SIGKILL)
            await process.wait()
            text = f"{service.name} did not stop in {service.stop_seconds:g} s, and was killed"
            self._notify(Notice(NoticeKind.KILLED, service.name, text, running.log.tail()))

    # --- small parts ----------------------------------------------------------------------------------------

    async def _spawn(
        self,
        running: _Running,
        command: Sequence[str],
        env: Mapping[str, str],
        death_signal: signal.Signals,
        identity: Mapping[str, Any],
    ) -> asyncio.subprocess.Process:
        output = running.log.open()
        try:
            running.process = await spawn(
                command, env=env, folder=self._folder, output=output, death_signal=death_signal, identity=identity
            )
        finally:
            os.close(output)
        self._tell_pids()
        return running.process

    async def _wait_for(self, names: Sequence[str], running: _Running) -> None:
        for name in names:
            running.waits_for = f"waits for {name}"
            await self._running[name].ready.wait()

    async def _all_ready(self) -> None:
        for running in self._running.values():
            await running.ready.wait()

    async def _ask(self, probe: Probe) -> str | None:
        try:
            return await asyncio.wait_for(probe(), 5.0)
        except TimeoutError:
            return "no answer in 5 s"
        except Exception as error:  # a probe's failure is an answer, whatever its kind
            return str(error) or type(error).__name__

    async def _mind_logs(self) -> None:
        """Copy what the children write, when asked to, and keep their files within bounds."""
        while True:
            for name, running in self._running.items():
                if self._copy_logs:
                    for line in running.log.fresh():
                        self._notify(Notice(NoticeKind.LOG, name, line))
                running.log.bound()
            await asyncio.sleep(0.2 if self._copy_logs else 30.0)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    def _tell_pids(self) -> None:
        self._pids_changed({name: one.pid for name, one in self._running.items() if one.pid is not None})

    def _fail(self, text: str) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_result(StartFailed(text))

    def _timed_out(self, timeout_s: float) -> StartFailed:
        lines = [f"not everything was ready in {timeout_s:g} s:"]
        for name, why in self.waiting().items():
            lines.append(f"  {name}: {why}")
            lines.extend(f"    {line}" for line in self._running[name].log.tail(4))
        return StartFailed("\n".join(lines))
