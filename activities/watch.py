"""The fleet watch: joins heartbeats, polls of engines and the clouds' lists into a verdict on every serving node.

One watch runs at a time (`FleetWatchWorkflow`). It looks at the whole fleet every other second, in one query; polls
each engine every half minute, at once when its heartbeat is late; and asks each cloud for all of its machines once a
minute. What it decides is written down before anybody is told of it, so that a watch that dies loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

from temporalio import activity

from activities.heartbeat import heartbeating
from activities.signatures import WatchSteps
from skyfleet.clouds.base import Cloud
from skyfleet.db.repositories import AuditRepository, NodeRepository, NotificationRepository, WatchRepository
from skyfleet.db.repositories.nodes import NewNodeEvent
from skyfleet.db.repositories.watch import Serving
from skyfleet.db.session import Database, DatabaseAway, Session
from skyfleet.db.tables import FleetWatchRow, NodeRow, utcnow
from skyfleet.domain import messages as m
from skyfleet.domain.errors import CloudError, CloudUnreachable
from skyfleet.domain.health import (
    OURSELVES,
    Breaker,
    HealthPolicy,
    NodeHealth,
    Remedy,
    Signal,
    Signals,
    breaker,
    due,
    observe,
    score,
)
from skyfleet.domain.notifications import breaker_open, node_lost
from skyfleet.domain.offers import InstanceState

_log = logging.getLogger(__name__)

_STRETCH_SECONDS = 3_000.0
#: Between two looks, however often agents beat.
_LEAST_PAUSE_S = 0.4
_POLLS_AT_ONCE = 100
_LOOKS_AT_CLOUDS_AT_ONCE = 10
#: A poll or a list that is older than so many of its own intervals says nothing any more.
_STALE = 2.5
#: A suspicion has its engine polled, and its cloud asked, no more often than this.
_SUSPICION_SECONDS = 1.0
_CLOUD_SUSPICION_SECONDS = 10.0
_CLOUD_TIMEOUT_S = 50.0
#: The row about the whole fleet is written this often when nothing changes.
_STATE_SECONDS = 10.0
#: How long a node that has lived its time may finish its requests.
_LAST_SECONDS = 600.0


class Prober(Protocol):
    """Asks engines how they are."""

    async def answers(self, endpoint_url: str, engine: str | None) -> bool:
        """Whether the engine's health endpoint says that it serves. Never raises, and takes a few seconds at most."""
        ...


class NodeCommands(Protocol):
    """Brings a node's commands to its workflow; False: not now, and the sweep will."""

    async def terminate_node(self, node: m.NodeInput, command: m.TerminateNode) -> bool:
        """Deliver its end."""
        ...

    async def drain_node(self, node: m.NodeInput, command: m.DrainNode) -> bool:
        """Deliver a drain."""
        ...

    async def replace_node(self, node: m.NodeInput, command: m.ReplaceNode) -> bool:
        """Deliver a replacement."""
        ...


@dataclass(slots=True)
class _Poll:
    """What is known of one node's engine. Times are of the monotonic clock."""

    due: float
    at: float = -math.inf  # of the last answer or failure
    well: bool | None = None
    failures: int = 0
    reached: bool = False
    running: bool = False


@dataclass(slots=True)
class _Listing:
    """What one cloud said last. Times are of the monotonic clock, `since` of the wall clock at its beginning."""

    at: float = -math.inf
    since: datetime | None = None
    machines: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()  # not listed, and not found when asked for by name
    error: str = ""
    asked: float = -math.inf
    running: bool = False


@dataclass(frozen=True, slots=True)
class _Decision:
    """What is to be done about a node, and why, in words."""

    node: Serving
    what: Literal["replace", "drain", "terminate", "alert"]
    why: str
    once: str  # tells this occasion from the next


@dataclass(slots=True)
class Fleet:
    """What one stretch remembers between looks."""

    backends: dict[str, str] = field(default_factory=dict)  # of each serving machine, by its cluster name
    healths: dict[str, NodeHealth] = field(default_factory=dict)
    signals: dict[str, Signals] = field(default_factory=dict)
    polls: dict[str, _Poll] = field(default_factory=dict)
    listings: dict[str, _Listing] = field(default_factory=dict)
    breaker: Breaker = field(default_factory=Breaker)
    alerted: set[str] = field(default_factory=set)  # occasions that were told of in this stretch
    #: Until then (monotonic) silence says nothing: beats may have come while nobody could write them down.
    blind_until: float = -math.inf
    state_written: float = -math.inf
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


def new_fleet(clouds: Mapping[str, Cloud]) -> Fleet:
    """What is remembered at the beginning of a stretch."""
    return Fleet(listings={name: _Listing() for name in clouds})


class FleetWatch(WatchSteps):
    """The step of `FleetWatchWorkflow`."""

    def __init__(
        self,
        database: Database,
        clouds: Mapping[str, Cloud],
        prober: Prober,
        commands: NodeCommands,
        *,
        owner: str,
        heartbeat_interval_s: float,
        poll_interval_s: float,
        cloud_interval_s: float,
        policy: HealthPolicy,
    ) -> None:
        self._database = database
        self._clouds = clouds
        self._prober = prober
        self._commands = commands
        self._owner = owner
        self._heartbeat_interval_s = heartbeat_interval_s
        self._poll_interval_s = poll_interval_s
        self._cloud_interval_s = cloud_interval_s
        self._policy = policy
        self._look_every_s = min(2.0, max(_LEAST_PAUSE_S, heartbeat_interval_s / 5))

    @activity.defn
    async def watch_fleet(self, request: m.WatchInput) -> m.WatchResult:
        """Look again and again. A look that fails (the database is away) is tried with the next."""
        fleet = new_fleet(self._clouds)
        self._go_blind(fleet)
        looks, until = 0, time.monotonic() + _STRETCH_SECONDS
        details: dict[str, Any] = {"looks": 0}
        async with heartbeating(details):
            try:
                while time.monotonic() < until and not activity.is_worker_shutdown():
                    began = time.monotonic()
                    try:
                        await self.look(fleet)
                        looks += 1
                        details["looks"] = looks
                    except DatabaseAway as failure:
                        _log.warning("the fleet could not be looked at: %s", failure)
                        # The API could write no beats either.
                        self._go_blind(fleet)
                    took = time.monotonic() - began
                    if took > self._late_s:
                        self._go_blind(fleet)
                    await asyncio.sleep(max(0.05, self._look_every_s - took))
            finally:
                for task in fleet.tasks:
                    task.cancel()
        return m.WatchResult(looks=looks)

    @property
    def _late_s(self) -> float:
        return self._policy.late_intervals * self._heartbeat_interval_s

    def _go_blind(self, fleet: Fleet) -> None:
        """Count silence anew from now: a beat that was due may have had nowhere to go."""
        fleet.blind_until = time.monotonic() + self._late_s

    # --- one look -----------------------------------------------------------------------------------------------

    async def look(self, fleet: Fleet) -> None:
        """Judge every serving node once, write down what changed, and do what is due."""
        async with self._database.transaction() as session:
            nodes = await WatchRepository(session).serving()
        now = utcnow()
        self._meet(fleet, nodes)
        changes: list[dict[str, Any]] = []
        turned: list[tuple[Serving, Signals, NodeHealth]] = []
        judged: list[tuple[NodeHealth, Signal]] = []
        for node in nodes:
            signals = self._signals(fleet, node)
            before = fleet.healths.get(node.id)
            if before is None and node.health_state is not None:
                before = NodeHealth.model_validate(node.health_state)
            health = observe(before, signals, now, self._policy)
            judged.append((health, signals.cloud))
            if health.verdict.detail if before is None else health.rank != before.rank:
                turned.append((node, signals, health))
            idle_since = _idle_since(node, now, fresh=signals.heartbeat is Signal.YES)
            newly_reached = fleet.polls[node.id].reached and not node.reached
            known = (fleet.healths.get(node.id), fleet.signals.get(node.id), node.idle_since)
            if known != (health, signals, idle_since) or newly_reached:
                changes.append(_change(node, signals, health, idle_since, newly_reached))
            fleet.healths[node.id], fleet.signals[node.id] = health, signals
        was = fleet.breaker
        fleet.breaker = breaker(was, judged, now, self._policy)
        decided = [
            item
            for node in nodes
            if (item := self._decide(fleet, node, now)) is not None and item.once not in fleet.alerted
        ]
        if not (changes or decided or self._due_to_say(fleet, was)):
            return
        async with self._database.transaction() as session:
            await WatchRepository(session).write(changes)
            await NodeRepository(session).tell_all([_turn(node, signals, health) for node, signals, health in turned])
            await NodeRepository(session).tell_all([_alert(one) for one in decided if one.what == "alert"])
            commanded = [
                (one, row)
                for one in decided
                if one.what != "alert" and (row := await _write_down(session, one, now)) is not None
            ]
            await self._say(session, fleet, was, now)
        fleet.alerted.update(one.once for one in decided if one.what == "alert")
        for one, row in commanded:
            await self._deliver(one, row)

    def _meet(self, fleet: Fleet, nodes: Sequence[Serving]) -> None:
        """Drop what no longer serves, and take in what is new, its first poll at a moment of its own."""
        serving = {node.id for node in nodes}
        for known in (fleet.healths, fleet.signals, fleet.polls):
            for gone in known.keys() - serving:
                del known[gone]
        fleet.backends = {node.cluster_name: node.backend for node in nodes}
        now = time.monotonic()
        for node in nodes:
            if node.id not in fleet.polls:
                spread = random.uniform(0, self._poll_interval_s)  # noqa: S311 - no secret
                fleet.polls[node.id] = _Poll(due=now + spread, reached=node.reached)

    # --- the three signals --------------------------------------------------------------------------------------

    def _signals(self, fleet: Fleet, node: Serving) -> Signals:
        fresh = node.silent_s <= self._late_s
        blind = time.monotonic() < fleet.blind_until
        heartbeat = Signal.YES if fresh else Signal.UNKNOWN if blind else Signal.NO
        suspicious = heartbeat is Signal.NO or (fresh and node.engine_healthy is False)
        engine = self._engine(fleet, node, fresh=fresh, suspicious=suspicious)
        return Signals(heartbeat, engine, self._cloud(fleet, node, silent=heartbeat is Signal.NO))

    def _engine(self, fleet: Fleet, node: Serving, *, fresh: bool, suspicious: bool) -> Signal:
        """The last poll; where there is none that counts, what the agent says of the engine."""
        poll, now = fleet.polls[node.id], time.monotonic()
        wanted = now >= poll.due or (suspicious and now - poll.at > _SUSPICION_SECONDS)
        if wanted and not poll.running and len(fleet.tasks) < _POLLS_AT_ONCE:
            poll.running = True
            self._begin(fleet, self._ask_engine(poll, node))
        if poll.well is not None and now - poll.at <= _STALE * self._poll_interval_s:
            if poll.well:
                return Signal.YES
            # One lost packet is no verdict, unless something else is amiss. An engine that never answered us may be
            # behind a network that leads to the control plane and not back: then its agent's word counts.
            if not fresh or (poll.reached and (poll.failures > 1 or suspicious)):
                return Signal.NO
        if fresh and node.engine_healthy is not None:
            return Signal.YES if node.engine_healthy else Signal.NO
        return Signal.UNKNOWN

    async def _ask_engine(self, poll: _Poll, node: Serving) -> None:
        try:
            well = await self._prober.answers(node.endpoint_url, node.engine)
        finally:
            poll.running = False
        poll.at, poll.well = time.monotonic(), well
        if well:
            poll.failures, poll.reached = 0, True
            poll.due = poll.at + self._poll_interval_s * random.uniform(0.9, 1.1)  # noqa: S311 - no secret
        else:
            poll.failures += 1
            poll.due = poll.at + min(_SUSPICION_SECONDS * 2**poll.failures, self._poll_interval_s)

    def _cloud(self, fleet: Fleet, node: Serving, *, silent: bool) -> Signal:
        """The last list that its cloud gave; one from before the node registered says nothing of it."""
        listing, now = fleet.listings.get(node.backend), time.monotonic()
        if listing is None:
            return Signal.UNKNOWN
        every = _CLOUD_SUSPICION_SECONDS if silent else self._cloud_interval_s
        if now - listing.asked > min(every, self._cloud_interval_s) and not listing.running:
            listing.running, listing.asked = True, now
            self._begin(fleet, self._list(fleet, node.backend, listing))
        if listing.since is None or listing.since < node.registered_at:
            return Signal.UNKNOWN
        if now - listing.at > _STALE * self._cloud_interval_s:
            return Signal.UNKNOWN
        if node.cluster_name in listing.machines:
            return Signal.YES
        return Signal.NO if node.cluster_name in listing.missing else Signal.UNKNOWN

    async def _list(self, fleet: Fleet, backend: str, listing: _Listing) -> None:
        """One call for all machines; those that should be there and are not are looked for by name."""
        cloud, since = self._clouds[backend], utcnow()
        known = [name for name, of in fleet.backends.items() if of == backend]
        try:
            async with asyncio.timeout(_CLOUD_TIMEOUT_S):
                machines = frozenset(machine.name for machine in await cloud.list(self._owner))
                absent = [name for name in known if name not in machines]
                gate = asyncio.Semaphore(_LOOKS_AT_CLOUDS_AT_ONCE)
                gone = await asyncio.gather(*(_is_gone(cloud, name, gate) for name in absent))
        except (CloudError, CloudUnreachable, TimeoutError) as failure:
            # A cloud that errs says nothing: what it said last stands until it is too old.
            listing.error = str(failure) or "no answer"
            _log.warning("what %s has could not be listed: %s", backend, listing.error)
        else:
            listing.machines, listing.error = machines, ""
            listing.missing = frozenset(name for name, is_gone in zip(absent, gone, strict=True) if is_gone)
            listing.since, listing.at = since, time.monotonic()
        finally:
            listing.running = False

    def _begin(self, fleet: Fleet, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        fleet.tasks.add(task)
        task.add_done_callback(fleet.tasks.discard)

    # --- what follows -------------------------------------------------------------------------------------------

    def _decide(self, fleet: Fleet, node: Serving, now: datetime) -> _Decision | None:
        """What is to be done about the node, if anything."""
        if node.ending:
            return None
        health = fleet.healths[node.id]
        remedy = due(health, now, self._policy)
        lasted = _words(now - (health.sick_since or now))
        failing = node.engine_failing and not health.verdict.routable
        if remedy is Remedy.REPLACE or failing:
            # There is nothing to wait for when the agent's own restarts do not help.
            why = f"{health.verdict.detail}, for {lasted}" + (", and restarts do not help" if failing else "")
            since = fleet.breaker.open_since
            if since is None:
                return _Decision(node, "replace", why, "replace")
            stopped = f"not repaired, since {fleet.breaker.sick} of {fleet.breaker.serving} nodes are sick: {why}"
            return _Decision(node, "alert", stopped, f"breaker:{node.id}:{since.isoformat()}")
        if node.max_life_seconds is not None:
            life = timedelta(seconds=node.max_life_seconds)
            if now - node.registered_at >= life:
                return _Decision(node, "drain", f"it has lived its {_words(life)}", "max-life")
        if node.idle_shutdown_seconds is not None and node.idle_since is not None:
            idle = timedelta(seconds=node.idle_shutdown_seconds)
            if now - node.idle_since >= idle:
                return _Decision(node, "terminate", f"idle for {_words(now - node.idle_since)}", "idle")
        if remedy is Remedy.ALERT:
            assert health.sick_since is not None
            once = f"alert:{node.id}:{health.rank}:{health.sick_since.isoformat()}"
            return _Decision(node, "alert", f"{health.verdict.detail}, for {lasted}", once)
        return None

    def _due_to_say(self, fleet: Fleet, was: Breaker) -> bool:
        return fleet.breaker != was or time.monotonic() - fleet.state_written >= _STATE_SECONDS

    async def _say(self, session: Session, fleet: Fleet, was: Breaker, now: datetime) -> None:
        """What the watch saw of the whole: when that changed, and now and then."""
        found = fleet.breaker
        if not self._due_to_say(fleet, was):
            return
        if found.open != was.open:
            AuditRepository(session).add(
                principal=OURSELVES,
                action="fleet.breaker_opened" if found.open else "fleet.breaker_closed",
                subject="fleet",
                outcome="done",
                detail={"sick": found.sick, "serving": found.serving},
            )
        if found.open_since is not None and not was.open:
            opened = breaker_open("fleet", sick=found.sick, nodes=found.serving, opened_at=found.open_since)
            await NotificationRepository(session).add(opened)
        clouds = {
            name: {"listed_at": listing.since.isoformat() if listing.since else None, "error": listing.error}
            for name, listing in fleet.listings.items()
        }
        await WatchRepository(session).put_state(
            FleetWatchRow(
                looked_at=now,
                serving=found.serving,
                sick=found.sick,
                breaker_open_since=found.open_since,
                clouds=clouds,
            )
        )
        fleet.state_written = time.monotonic()

    async def _deliver(self, one: _Decision, row: NodeRow) -> None:
        """Tell the node's workflow. What does not arrive is written down, and the sweep delivers it."""
        node = row.workflow_input()
        if one.what == "replace":
            await self._commands.replace_node(node, row.replace_command())
        elif one.what == "drain":
            await self._commands.drain_node(node, row.drain_command())
        else:
            await self._commands.terminate_node(node, m.TerminateNode(requested_by=OURSELVES, reason=one.why))


def _idle_since(node: Serving, now: datetime, *, fresh: bool) -> datetime | None:
    """Since when nothing ran or waited there, as its beats say; one that is late, or does not know, changes nothing."""
    if not fresh or not node.load_known:
        return node.idle_since
    return None if node.load else node.idle_since or now


def _change(
    node: Serving, signals: Signals, health: NodeHealth, idle_since: datetime | None, newly_reached: bool
) -> dict[str, Any]:
    """A row for `WatchRepository.write`."""
    return {
        "id": node.id,
        "health": health.verdict.health.value,
        "detail": health.verdict.detail,
        "score": score(health),
        "state": health.model_dump(mode="json"),
        "signals": {name: signal.value for name, signal in signals._asdict().items()},
        "routable": health.verdict.routable,
        "idle_since": idle_since.isoformat() if idle_since else None,
        "reached": newly_reached,
    }


async def _is_gone(cloud: Cloud, name: str, gate: asyncio.Semaphore) -> bool:
    async with gate:
        machine = await cloud.get(name)
    return machine is None or machine.state is InstanceState.TERMINATED


def _turn(node: Serving, signals: Signals, health: NodeHealth) -> NewNodeEvent:
    """What a node's history says of a new verdict."""
    found = health.verdict
    return NewNodeEvent(
        node.id,
        "health",
        found.health.value + (f": {found.detail}" if found.detail else ""),
        {
            "signals": {name: signal.value for name, signal in signals._asdict().items()},
            "routable": found.routable,
            "score": score(health),
            "silent_s": round(node.silent_s, 1),
        },
    )


def _alert(one: _Decision) -> NewNodeEvent:
    return NewNodeEvent(one.node.id, "alert", one.why, {}, one.once)


async def _write_down(session: Session, one: _Decision, now: datetime) -> NodeRow | None:
    """Write the decision where the sweep finds it; the node's row if its workflow is to be told."""
    nodes = NodeRepository(session)
    row = await nodes.get(one.node.id, lock=True)
    if row is None or row.terminate_requested_at or row.replace_requested_at or row.drain_requested_at:
        return None  # somebody was faster
    if one.what == "replace":
        row.replace_requested_at, row.replace_requested_by, row.replace_reason = now, OURSELVES, one.why
        where = f"{row.provider}/{row.region}"
        lost = node_lost(row.id, tenant=row.tenant, where=where, model_name=row.model_name, reason=one.why)
        await NotificationRepository(session).add(lost)
    elif one.what == "drain":
        row.drain_requested_at, row.drain_requested_by, row.drain_seconds = now, OURSELVES, _LAST_SECONDS
        row.drain_reason = one.why
    else:
        row.terminate_requested_at, row.terminate_requested_by, row.terminate_reason = now, OURSELVES, one.why
    await nodes.tell(row.id, kind="command", message=f"{one.what}: {one.why}", dedupe=one.once)
    AuditRepository(session).add(
        principal=OURSELVES, action=f"node.{one.what}", subject=row.id, outcome="accepted", detail={"why": one.why}
    )
    return row


def _words(span: timedelta) -> str:
    """`45 s`, `12 min`, `3 h`."""
    seconds = int(span.total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7_200 else f"{seconds // 3_600} h"
