"""What the cloud does: accept machines, bring them up, take them away, and never forget one.

Everything that changes a machine happens on the event loop's one thread and is in the ledger before anyone is told:
so capacity is never oversold, a name never has two machines, and a cloud killed at any moment goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import random
import secrets
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from skyfleet.clouds.local import processes, wording
from skyfleet.clouds.local.faults import Faults
from skyfleet.clouds.local.ledger import BootFaults, Ledger, Machine, now
from skyfleet.clouds.local.outgoing import HttpClient
from skyfleet.clouds.local.virtual import VirtualFleet
from skyfleet.clouds.local.world import Mode, SpotTrace, TraceRow, World, read_trace
from skyfleet.domain.offers import CreateRequest, InstanceState, NodeBoot, Offer
from skyfleet.domain.states import Market
from skyfleet.ports import free_port

log = logging.getLogger("skyfleet.clouds.local")

VIRTUAL_TAG = "skyfleet/virtual"
_ORDER = list(InstanceState)
_POWEROFF_POLL_S = 0.25
#: How long an agent may take to exit after it asked for power-off, seconds.
_POWEROFF_GRACE_S = 3.0
_MAX_BACKOFF_S = 15.0

Place = tuple[str, str, str | None, str, Market]


@dataclass(slots=True)
class Pool:
    """The machines of one type in one zone and market: how many there can be, and how many there are."""

    offer: Offer
    base: int
    traced: int | None = None
    override: int | None = None
    used: int = 0

    @property
    def capacity(self) -> int:
        """What holds now: the figure set at run time, else the trace's, else the file's."""
        if self.override is not None:
            return self.override
        return self.base if self.traced is None else self.traced

    @property
    def free(self) -> int:
        """How many more can be had."""
        return max(0, self.capacity - self.used)

    def view(self) -> dict[str, Any]:
        """As JSON."""
        offer = self.offer
        return {
            "cloud": offer.cloud,
            "region": offer.region,
            "zone": offer.zone,
            "instance_type": offer.instance_type,
            "market": offer.market.value,
            "capacity": self.capacity,
            "used": self.used,
            "free": self.free,
            "set_by": "request" if self.override is not None else "file" if self.traced is None else "trace",
            "sandbox": True,
        }


class LocalCloudService:
    """The cloud without its HTTP."""

    def __init__(self, data: Path, world: World, *, host: str, port: int, seed: int = 0) -> None:
        """`data` is the cloud's folder; `host` and `port` are where its own API listens."""
        self.base_url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self.world = world
        self.ledger = Ledger(data / "ledger.sqlite3")
        self.faults = Faults(self.ledger, random.Random(seed))  # noqa: S311 - dice, not secrets
        self.secret = self._meta_once("secret", lambda: secrets.token_hex(32))
        self._machines_folder = data / "instances"
        self._machines_folder.mkdir(mode=0o700, exist_ok=True)
        self._host = host
        self._seed = seed
        self._http = HttpClient()
        self._fleet = VirtualFleet(
            self._http,
            base_url=self.base_url,
            secret=self.secret,
            registered=self._registered,
            powered_off=lambda machine, why: self._stop(machine, "shutdown", why),
            seed=seed,
        )
        self.offers = list(world.offers())
        self.offers_json = b"[" + b",".join(offer.model_dump_json().encode() for offer in self.offers) + b"]"
        self.offers_etag = f'"{hashlib.sha256(self.offers_json).hexdigest()[:32]}"'
        self._pools = {_place(offer): Pool(offer, world.capacity_of(offer)) for offer in self.offers}
        for pool in self._pools.values():
            pool.override = self.ledger.capacity().get(pool.offer.key)
        self._traces = [(trace, self._read_trace(trace)) for trace in world.spot_trace]
        self._living: dict[str, Machine] = {}
        self._changes: dict[str, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._boots: dict[str, asyncio.Task[None]] = {}
        self._agents: dict[str, subprocess.Popen[bytes]] = {}  # those that are children of this process
        self._watches: dict[str, Callable[[], None]] = {}
        self.stopping = asyncio.Event()

    # --- life of the cloud itself ---------------------------------------------------------------------------

    def start(self) -> None:
        """Take up every machine in the ledger where it was left, and the traces."""
        boot = processes.host_boot()
        # After a clean stop, or a reboot of the host, machines start again as after a reboot of their own.
        same_boot = self.ledger.meta("host_boot") in (None, boot)
        rebooted = self.ledger.meta("suspended") == "yes" or not same_boot
        self.ledger.set_meta("host_boot", boot)
        for machine in list(self.ledger.living()):
            self._living[machine.name] = machine
            if not same_boot:
                machine.pid = machine.pid_started = None  # of a process that cannot live any more
            pool = self._pools.get(machine.place)
            if pool is not None:
                pool.used += 1
        for machine in list(self._living.values()):
            self._resume(machine, rebooted)
        self.ledger.set_meta("suspended", "no")
        self._spawn(self._watch_poweroffs())
        for trace, rows in self._traces:
            self._spawn(self._follow(trace, rows))

    async def suspend(self) -> None:
        """Stop all processes, and leave their machines as they are in the ledger: the next `start` boots them again."""
        self.ledger.set_meta("suspended", "yes")
        teardowns = [task for task in self._tasks if task.get_name().startswith("end ")]
        for task in self._tasks - set(teardowns):
            task.cancel()
        await self._fleet.stop()
        await asyncio.gather(*(self._end_processes(machine) for machine in self._living.values() if machine.up))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()
        self.ledger.close()

    def begin_stop(self) -> None:
        """Answer everyone who waits, so that connections can close."""
        self.stopping.set()
        for name in list(self._changes):
            self._wake(name)

    def _resume(self, machine: Machine, rebooted: bool) -> None:
        if machine.preempt_at is not None and machine.state in (InstanceState.PENDING, InstanceState.RUNNING):
            self._at(machine.preempt_at.timestamp(), self._take, machine)
        if machine.state is InstanceState.PENDING:
            self._arm(machine)
        elif machine.state is InstanceState.STOPPING:
            self._spawn(self._tear_down(machine), f"end {machine.name}")
        elif rebooted:
            if machine.mode == "process" and self._poweroff(machine).exists():
                self._stop(machine, "shutdown", "its agent powered it off")
            else:
                self._boots[machine.name] = self._spawn(self._reboot(machine))
        elif machine.mode == "virtual":
            if machine.agent != "dead":
                self._fleet.add(machine)
        elif machine.agent == "started" and machine.pid is not None:
            if processes.alive(machine.pid, machine.pid_started):
                self._watch(machine)
            else:
                self._agent_exited(machine)
        elif machine.agent == "none":
            found = processes.leader_of(machine.id, self._folder(machine))
            if found is None:
                self._start_agent(machine)
            else:
                self._agent_started(machine, found.pid, found.started)

    # --- what customers ask ---------------------------------------------------------------------------------

    def place(self, offer: Offer | Machine) -> wording.Place:
        """The place of an offer or a machine, for errors and fault rules."""
        pool = self._pools.get(_place(offer))
        others: tuple[str, ...] = ()
        if pool is not None and not pool.free:
            others = tuple(
                zone or region
                for (cloud, region, zone, instance_type, market), rival in self._pools.items()
                if (cloud, instance_type, market) == (offer.cloud, offer.instance_type, offer.market)
                and (not offer.zone or region == offer.region)
                and rival.free
            )
        return wording.Place(
            offer.cloud,
            offer.region,
            offer.zone,
            offer.instance_type,
            offer.market,
            pool.offer.vcpus if pool else 0,
            others,
        )

    def create(self, request: CreateRequest, faults: BootFaults) -> tuple[Machine, bool]:
        """The machine of that name, and whether it is new. Raises `Refusal`."""
        name, offer = request.name, request.offer
        if self.ledger.buried(name):
            raise wording.Refusal(
                offer.cloud, "NameRetired", f"NameRetired: {name} was terminated, and a name is used once.", 409
            )
        known = self.find(name)
        if known is not None:
            if (known.offer_key, known.owner) != (offer.key, request.owner):
                raise wording.Refusal(
                    offer.cloud,
                    "IdempotentParameterMismatch",
                    f"IdempotentParameterMismatch: {name} exists with other parameters: {known.offer_key} of "
                    f"{known.owner}.",
                    409,
                )
            return known, False
        pool = self._pools.get(_place(offer))
        if pool is None:
            raise wording.not_sold(self.place(offer))
        if not pool.free:
            raise wording.no_capacity(self.place(offer))
        delay_s, jitter_s = self.world.provisioning_s(pool.offer)
        if jitter_s:
            delay_s += jitter_s * random.Random(f"{self._seed}/{name}").random()  # noqa: S311 - dice, not secrets
        created_at = now()
        machine = Machine(
            name=name,
            id=_new_id(offer.cloud),
            owner=request.owner,
            cloud=offer.cloud,
            region=offer.region,
            zone=offer.zone,
            instance_type=offer.instance_type,
            market=offer.market,
            hourly_price=pool.offer.hourly_price,
            mode=self._mode(request.tags),
            state=InstanceState.PENDING,
            created_at=created_at,
            ready_at=created_at + timedelta(seconds=delay_s + faults.delay_s),
            tags=request.tags,
            boot=request.boot.model_dump_json(),
            faults=faults,
        )
        self.ledger.save(machine)
        self._living[name] = machine
        pool.used += 1
        self._arm(machine)
        return machine, True

    def find(self, name: str) -> Machine | None:
        """The machine of that name, ended or not."""
        return self._living.get(name) or self.ledger.find(name)

    def find_id(self, machine_id: str) -> Machine | None:
        """The living machine with that id."""
        return next((machine for machine in self._living.values() if machine.id == machine_id), None)

    def living(self, owner: str | None) -> Iterator[Machine]:
        """Machines that have not ended."""
        return (machine for machine in self._living.values() if owner is None or machine.owner == owner)

    def terminate(self, name: str) -> Machine | None:
        """Retire the name, and end its machine if there is one."""
        self.ledger.bury(name)
        machine = self._living.get(name)
        if machine is not None:
            self._stop(machine, "requested", None)
            return machine
        return self.ledger.find(name)

    async def wait(self, name: str, state: InstanceState, timeout_s: float) -> Machine | None:
        """The machine once it is in that state or past it, or as it is after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while (machine := self.find(name)) is not None:
            left = deadline - time.monotonic()
            if _ORDER.index(machine.state) >= _ORDER.index(state) or left <= 0 or self.stopping.is_set():
                break
            await self.changed(machine, left)
        return machine

    async def changed(self, machine: Machine, timeout_s: float) -> None:
        """Until something about the machine changes, at most that long."""
        future = self._changes.get(machine.name)
        if future is None:
            future = self._changes[machine.name] = asyncio.get_running_loop().create_future()
        await asyncio.wait([future], timeout=timeout_s)

    def address(self, machine: Machine) -> str | None:
        """Where the machine's engine is (or would be) reached: a URL."""
        if machine.mode == "virtual":
            return f"{self.base_url}/virtual/{machine.name}" if machine.running_at else None
        if machine.port is None:
            return None
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{machine.port}"

    # --- what the bench asks --------------------------------------------------------------------------------

    def pools(self, **wanted: str | None) -> list[Pool]:
        """The pools that fit; None fits all."""
        return [
            pool
            for pool in self._pools.values()
            if all(value is None or getattr(pool.offer, field) == value for field, value in wanted.items())
        ]

    def set_capacity(self, pools: list[Pool], figure: int | None, *, reclaim: bool) -> None:
        """Set the capacity of pools, or with None leave it to the file or the trace again.

        With `reclaim`, spot machines above it are preempted with their cloud's notice; else they stay.
        """
        self.ledger.set_capacity({pool.offer.key: figure for pool in pools})
        for pool in pools:
            pool.override = figure
        if reclaim:
            self._reclaim(pools)

    def preempt(self, machine: Machine, notice_s: float | None) -> None:
        """Announce a spot machine's preemption; it is taken `notice_s` later, as its cloud does if None."""
        if notice_s is None:
            notice_s = self.world.clouds[machine.cloud].preemption_notice_s if machine.cloud in self.world.clouds else 0
        machine.notice_at = machine.notice_at or now()
        taken_at = now() + timedelta(seconds=notice_s)
        machine.preempt_at = min(taken_at, machine.preempt_at or taken_at)
        self._changed(machine)
        self._at(machine.preempt_at.timestamp(), self._take, machine)

    def kill_agent(self, machine: Machine) -> bool:
        """Kill the machine's main process with -9; the machine runs on. False if there is none."""
        if machine.mode == "virtual":
            if machine.agent == "dead" or not machine.up:
                return False
            self._fleet.remove(machine.name)
            machine.agent = "dead"
            self.ledger.save(machine)
            return True
        process = None if machine.pid is None else processes.look(machine.pid)
        if process is None or process.zombie or process.started != machine.pid_started:
            return False
        processes.kill(process, signal.SIGKILL)
        return True

    # --- life of a machine ----------------------------------------------------------------------------------

    def _mode(self, tags: dict[str, str]) -> Mode:
        wish = tags.get(VIRTUAL_TAG)
        return self.world.mode if wish is None else "virtual" if wish == "true" else "process"

    def _arm(self, machine: Machine) -> None:
        if not machine.faults.never:
            self._at(machine.ready_at.timestamp(), self._come_up, machine)

    def _come_up(self, machine: Machine) -> None:
        if machine.state is not InstanceState.PENDING or self.stopping.is_set():
            return
        if machine.faults.fails is not None:
            self._stop(machine, "boot_failed", machine.faults.fails)
            return
        if machine.mode == "process":
            try:
                machine.port = free_port(self._host, {one.port for one in self._living.values() if one.port})
            except OSError as error:
                self._stop(machine, "boot_failed", str(error))
                return
        machine.state = InstanceState.RUNNING
        machine.running_at = now()
        self._changed(machine)
        self._start_agent(machine)

    def _start_agent(self, machine: Machine) -> None:
        if machine.faults.agent_dead:
            return
        if machine.mode == "virtual":
            self._fleet.add(machine)
        else:
            self._boots[machine.name] = self._spawn(self._boot(machine))

    async def _reboot(self, machine: Machine) -> None:
        if machine.mode == "process":
            await self._end_processes(machine)
        machine.agent = "none"
        self.ledger.save(machine)
        self._start_agent(machine)

    async def _boot(self, machine: Machine) -> None:
        """The machine's boot script: fetch the agent until it is there and right, then start it."""
        folder = self._folder(machine)
        (folder / "state").mkdir(mode=0o700, parents=True, exist_ok=True)
        assert machine.boot is not None
        assert machine.port is not None
        boot = NodeBoot.model_validate_json(machine.boot)
        agent = folder / "node-agent.pyz"
        url = f"{boot.control_plane_url}/downloads/node-agent/{boot.agent_version}"
        pause_s = 0.1
        while not (agent.exists() and hashlib.sha256(agent.read_bytes()).hexdigest() == boot.agent_sha256):
            try:
                status, body = await self._http.request("GET", url, timeout_s=30)
                fault = f"HTTP {status}" if status != 200 else None
                if fault is None and hashlib.sha256(body).hexdigest() != boot.agent_sha256:
                    fault = "its SHA-256 is not the one that the machine was told"
            except OSError as error:
                fault = str(error) or type(error).__name__
            if fault is None:
                processes.write_private(agent, body)
                break
            with (folder / "console.log").open("a") as console:
                console.write(f"{now().isoformat()} boot: cannot get {url}: {fault}; next try in {pause_s:g} s\n")
            await asyncio.sleep(pause_s)
            pause_s = min(_MAX_BACKOFF_S, pause_s * 2)
        instructions = json.loads(machine.boot) | {
            "host": self._host,
            "port": machine.port,
            "metadata_url": f"{self.base_url}/metadata/{machine.id}",
            "shutdown_command": processes.touch_command(self._poweroff(machine)),
        }
        processes.write_private(folder / "boot.json", json.dumps(instructions))
        argv = [sys.executable, "-I", str(agent), "--boot", str(folder / "boot.json"), "--state-dir"]
        process, started = processes.start(machine.id, folder, [*argv, str(folder / "state")])
        self._agents[machine.name] = process
        self._agent_started(machine, process.pid, started)

    def _agent_started(self, machine: Machine, pid: int, started: int) -> None:
        machine.pid, machine.pid_started, machine.agent = pid, started, "started"
        self.ledger.save(machine)
        self._watch(machine)

    def _watch(self, machine: Machine) -> None:
        assert machine.pid is not None
        self._watches[machine.name] = processes.watch(machine.pid, lambda: self._agent_exited(machine))

    def _agent_exited(self, machine: Machine) -> None:
        self._watches.pop(machine.name, None)
        child = self._agents.pop(machine.name, None)
        if child is not None:
            child.poll()  # reaps it
        if not machine.up or self.stopping.is_set():
            return
        machine.agent = "dead"
        if self._poweroff(machine).exists():
            self._stop(machine, "shutdown", "its agent powered it off")
        else:
            self.ledger.save(machine)

    async def _watch_poweroffs(self) -> None:
        """Power off machines whose agent asked for it and then did not exit, or was gone already."""
        while True:
            await asyncio.sleep(_POWEROFF_POLL_S)
            for machine in list(self._living.values()):
                if machine.up and machine.mode == "process":
                    with contextlib.suppress(FileNotFoundError):
                        asked = self._poweroff(machine).stat().st_mtime
                        if machine.agent == "dead" or time.time() - asked > _POWEROFF_GRACE_S:
                            self._stop(machine, "shutdown", "its agent powered it off")

    def _registered(self, machine: Machine, heartbeat_key: str) -> None:
        machine.heartbeat_key, machine.agent = heartbeat_key, "started"
        self.ledger.save(machine)

    def _take(self, machine: Machine) -> None:
        if self.stopping.is_set() or machine.preempt_at is None:
            return
        if machine.preempt_at <= now():
            self._stop(machine, "preempted", f"{machine.cloud} took the spot machine back")
        else:  # timers may be a little early
            self._at(machine.preempt_at.timestamp(), self._take, machine)

    def _stop(self, machine: Machine, reason: str, message: str | None) -> None:
        if machine.state not in (InstanceState.PENDING, InstanceState.RUNNING):
            return
        machine.state = InstanceState.STOPPING
        machine.reason, machine.message = reason, message
        self._changed(machine)
        self._spawn(self._tear_down(machine), f"end {machine.name}")

    async def _tear_down(self, machine: Machine) -> None:
        self._fleet.remove(machine.name)
        if machine.mode == "process":
            boot = self._boots.pop(machine.name, None)
            if boot is not None:
                boot.cancel()
                await asyncio.gather(boot, return_exceptions=True)
            while True:
                try:
                    await self._end_processes(machine)
                    break
                except OSError:
                    log.exception("machine %s does not end; trying again", machine.name)
                    await asyncio.sleep(1)
            (self._folder(machine) / "boot.json").unlink(missing_ok=True)
        machine.state = InstanceState.TERMINATED
        machine.terminated_at = now()
        machine.boot = machine.heartbeat_key = None
        pool = self._pools.get(machine.place)
        if pool is not None:
            pool.used -= 1
        self._changed(machine)
        del self._living[machine.name]
        self._boots.pop(machine.name, None)

    async def _end_processes(self, machine: Machine) -> None:
        if machine.mode != "process":
            return
        stop_watching = self._watches.pop(machine.name, None)
        if stop_watching is not None:
            stop_watching()
        leader = None
        if machine.pid is not None and machine.pid_started is not None:
            leader = (machine.pid, machine.pid_started)
        await processes.end(machine.id, self._folder(machine), leader)
        child = self._agents.pop(machine.name, None)
        if child is not None:
            child.wait()
        machine.pid = machine.pid_started = None

    # --- spot markets ---------------------------------------------------------------------------------------

    def _read_trace(self, trace: SpotTrace) -> list[TraceRow]:
        regions = self.world.clouds[trace.cloud].regions
        return read_trace(trace, {zone for name, region in regions.items() for zone in region.zones or [name]})

    async def _follow(self, trace: SpotTrace, rows: list[TraceRow]) -> None:
        started = float(self._meta_once("world_started_at", lambda: repr(time.time())))
        step_s = rows[-1].offset_s - rows[-2].offset_s if len(rows) > 1 else 1.0
        length_s = rows[-1].offset_s + step_s
        pools: dict[str, list[Pool]] = {}
        for pool in self.pools(cloud=trace.cloud, market=Market.SPOT):
            if trace.instance_types is None or pool.offer.instance_type in trace.instance_types:
                pools.setdefault(pool.offer.zone or pool.offer.region, []).append(pool)
        while True:
            position_s = (time.time() - started) * trace.time_scale % length_s
            index = next((i for i, row in enumerate(rows) if row.offset_s > position_s), len(rows)) - 1
            touched: list[Pool] = []
            for zone, figure in rows[index].by_zone.items():
                for pool in pools.get(zone, ()):
                    pool.traced = figure
                    if pool.used > pool.capacity:
                        touched.append(pool)
            self._reclaim(touched)
            until_s = rows[index + 1].offset_s if index + 1 < len(rows) else length_s
            await asyncio.sleep(max(0.001, (until_s - position_s) / trace.time_scale))

    def _reclaim(self, pools: list[Pool]) -> None:
        """Give notice to the youngest spot machines above each pool's capacity."""
        for pool in pools:
            if pool.offer.market is not Market.SPOT or pool.used <= pool.capacity:
                continue
            place = _place(pool.offer)
            staying = [
                machine
                for machine in self._living.values()
                if machine.place == place and machine.preempt_at is None and machine.state is not InstanceState.STOPPING
            ]
            for machine in sorted(staying, key=lambda one: one.created_at)[pool.capacity :]:
                self.preempt(machine, None)

    # --- small things ---------------------------------------------------------------------------------------

    def _changed(self, machine: Machine) -> None:
        self.ledger.save(machine)
        self._wake(machine.name)

    def _wake(self, name: str) -> None:
        future = self._changes.pop(name, None)
        if future is not None and not future.done():
            future.set_result(None)

    def _at(self, timestamp: float, call: Callable[[Machine], None], machine: Machine) -> None:
        asyncio.get_running_loop().call_later(max(0.0, timestamp - time.time()), call, machine)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str | None = None) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    def _folder(self, machine: Machine) -> Path:
        return self._machines_folder / machine.id

    def _poweroff(self, machine: Machine) -> Path:
        return self._folder(machine) / "poweroff"

    def _meta_once(self, key: str, make: Callable[[], str]) -> str:
        value = self.ledger.meta(key)
        if value is None:
            value = make()
            self.ledger.set_meta(key, value)
        return value


def _place(offer: Offer | Machine) -> Place:
    return offer.cloud, offer.region, offer.zone, offer.instance_type, offer.market


def _new_id(cloud: str) -> str:
    """An id in the form that the cloud's own ids have."""
    if cloud == "aws":
        return f"i-0{secrets.token_hex(8)}"
    if cloud == "gcp":
        return str(10**18 + secrets.randbelow(9 * 10**18))
    return str(uuid.uuid4())
