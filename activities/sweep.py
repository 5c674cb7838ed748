"""The steps of a sweep."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Protocol

from temporalio import activity

from activities.signatures import SweepSteps
from skyfleet.clouds.base import Cloud
from skyfleet.db.repositories import (
    AttemptRepository,
    CatalogRepository,
    CostRepository,
    LaunchRepository,
    NodeRepository,
    NotificationRepository,
)
from skyfleet.db.session import Database
from skyfleet.db.tables import BackendRow, NodeRow, utcnow
from skyfleet.domain import messages as m
from skyfleet.domain.errors import CloudError, CloudUnreachable
from skyfleet.domain.launches import LaunchSpec
from skyfleet.domain.notifications import Notification, orphan_found
from skyfleet.domain.offers import CloudInstance, InstanceState

_log = logging.getLogger(__name__)

#: An intent younger than this is still on its way by the ordinary path.
_GRACE = timedelta(seconds=5)
#: Where a backend may buy changes when a person gives it credentials, and to check it can mean to ask every cloud.
_ACCESS_FRESH = timedelta(minutes=10)


class IntentDelivery(Protocol):
    """Brings what the database holds to the workflows. Each call is harmless when repeated; False: not delivered."""

    async def start_launch(self, launch: m.LaunchInput) -> bool:
        """Start the launch's workflow if it is not there."""
        ...

    async def cancel_launch(self, launch_id: str, command: m.CancelLaunch) -> bool:
        """Deliver a cancel."""
        ...

    async def terminate_node(self, node: m.NodeInput, command: m.TerminateNode) -> bool:
        """Deliver a node's termination, starting its workflow if it is not there."""
        ...

    async def drain_node(self, node: m.NodeInput, command: m.DrainNode) -> bool:
        """Deliver a drain."""
        ...

    async def replace_node(self, node: m.NodeInput, command: m.ReplaceNode) -> bool:
        """Deliver a replacement."""
        ...

    async def warn_of_preemption(self, node: m.NodeInput, warning: m.PreemptionWarned) -> bool:
        """Deliver the cloud's notice."""
        ...

    async def end_stray(self, stray: m.TerminateInput) -> bool:
        """Have a machine ended that nobody claims; False also if that is under way."""
        ...


class SweepActivities(SweepSteps):
    """Steps of `SweepWorkflow`."""

    def __init__(
        self,
        database: Database,
        delivery: IntentDelivery,
        clouds: Mapping[str, Cloud],
        *,
        owner: str,
        compare_interval_s: float,
    ) -> None:
        self._database = database
        self._delivery = delivery
        self._clouds = clouds
        self._owner = owner
        self._compare_interval_s = compare_interval_s
        self._compared_at: dict[str, float] = {}

    @activity.defn
    async def redeliver_intents(self, request: m.SweepInput) -> m.SweepResult:
        """Find intents that did not reach their workflow, and deliver them."""
        old = utcnow() - _GRACE
        async with self._database.transaction() as session:
            lost = await LaunchRepository(session).lost_starts(old)
            cancels = await LaunchRepository(session).undelivered_cancels(old)
            endings = await NodeRepository(session).undelivered_terminations(old)
            commands = await NodeRepository(session).undelivered_commands(old)
        result = m.SweepResult()
        if request.dry_run:
            return m.SweepResult(
                restarted_launches=[launch.id for launch in lost],
                redelivered_cancels=[launch.id for launch in cancels],
                redelivered_terminations=[node.id for node in endings],
                redelivered_commands=[node.id for node in commands],
            )
        for launch in lost:
            intent = m.LaunchInput.of(launch.id, launch.tenant, LaunchSpec.model_validate(launch.spec))
            if await self._delivery.start_launch(intent):
                result.restarted_launches.append(launch.id)
        if result.restarted_launches:
            async with self._database.transaction() as session:
                await LaunchRepository(session).mark_started(result.restarted_launches)
        for node in commands:
            if await self._command(node):
                result.redelivered_commands.append(node.id)
        for launch in cancels:
            command = m.CancelLaunch(requested_by=launch.cancel_requested_by or "unknown")
            if await self._delivery.cancel_launch(launch.id, command):
                result.redelivered_cancels.append(launch.id)
        for node in endings:
            ending = node.terminate_command()
            if await self._delivery.terminate_node(node.workflow_input(), ending):
                result.redelivered_terminations.append(node.id)
        return result

    async def _command(self, node: NodeRow) -> bool:
        """Deliver all that the node's row asks for; the workflow takes each once."""
        of, heard = node.workflow_input(), True
        warning = node.preemption_warned()
        if warning is not None:
            heard &= await self._delivery.warn_of_preemption(of, warning)
        if node.replace_requested_at is not None:
            heard &= await self._delivery.replace_node(of, node.replace_command())
        if node.drain_requested_at is not None:
            heard &= await self._delivery.drain_node(of, node.drain_command())
        return heard

    @activity.defn
    async def compare_with_clouds(self, request: m.SweepInput) -> m.SweepResult:
        """Compare what each cloud has of ours with what the database knows, and end what only the cloud knows.

        A cloud that does not answer says nothing, and is asked by the next sweep.
        """
        result = m.SweepResult()
        for name, cloud in self._clouds.items():
            due = self._compared_at.get(name, -math.inf) + self._compare_interval_s
            if time.monotonic() < due:
                continue
            try:
                await self._compare(name, cloud, request, result)
            except (CloudError, CloudUnreachable) as failure:
                _log.warning("what %s has could not be compared: %s", name, failure)
                continue
            self._compared_at[name] = time.monotonic()
        return result

    async def _compare(self, backend: str, cloud: Cloud, request: m.SweepInput, result: m.SweepResult) -> None:
        # The database first for nodes, the cloud first for machines: each is written down before it is made, so that
        # nothing that comes to be in between looks lost, or like a stray.
        async with self._database.transaction() as session:
            nodes = await NodeRepository(session).serving(backend)
            billed = await CostRepository(session).billed(backend)
        machines = {machine.name: machine for machine in await cloud.list(self._owner)}
        async with self._database.transaction() as session:
            attempts = await AttemptRepository(session).of_clusters(sorted(machines))
        for name in sorted(machines):
            attempt = attempts.get(name)
            if (attempt is None or attempt.closed_at is not None) and await _there(cloud, name):
                stray = m.TerminateInput(
                    backend=backend,
                    cluster_name=name,
                    reason="no launch claims it" if attempt is None else "it was confirmed gone, and is there",
                    launch_id=attempt.launch_id if attempt else None,
                    attempt=attempt.number if attempt else None,
                )
                if not request.dry_run:  # before it is acted on, so that no kill in between leaves it untold
                    await self._tell(
                        orphan_found(name, backend=backend, reason=stray.reason, machine=machines[name].id)
                    )
                if request.dry_run or await self._delivery.end_stray(stray):
                    _log.warning("%s: %s; ending it", name, stray.reason)
                    result.ended_strays.append(name)
        # Found here, ended by the fleet watch: the cloud is one of three signals, and may be behind.
        for node_id, name in nodes:
            if name not in machines and not await _there(cloud, name):
                result.lost_nodes.append(node_id)
        if not request.dry_run:
            await self._keep_ledger(cloud, machines, billed)

    async def _keep_ledger(self, cloud: Cloud, machines: Mapping[str, CloudInstance], billed: set[str]) -> None:
        """Bill what the cloud has and nobody wrote down, and end the bill of what is gone without anybody's doing."""
        unbilled = sorted(machines.keys() - billed)
        async with self._database.transaction() as session:
            ended = await CostRepository(session).of_machines(unbilled)
        back, gone = [], {}
        for name in sorted(ended):
            with contextlib.suppress(CloudError, CloudUnreachable):
                if ended[name].ended_at is not None and await _there(cloud, name):
                    back.append(name)
        for name in sorted(billed - machines.keys()):
            with contextlib.suppress(CloudError, CloudUnreachable):
                machine = await cloud.get(name)
                if machine is None or machine.state is InstanceState.TERMINATED:
                    gone[name] = machine.terminated_at if machine else None
        async with self._database.transaction() as session:
            costs = CostRepository(session)
            for name in unbilled:
                await costs.has(machines[name])
            for name in back:
                await costs.reopen(name)
            for name, at in gone.items():
                await costs.ended(name, at or utcnow(), told=at is not None)

    async def _tell(self, notification: Notification) -> None:
        async with self._database.transaction() as session:
            await NotificationRepository(session).add(notification)

    @activity.defn
    async def refresh_catalog(self, request: m.SweepInput) -> m.SweepResult:
        """Read every cloud's offers; one that does not answer keeps what was known of it, with the error beside it.

        Where each may buy is checked as well when that was long ago, or is asked for.
        """
        if request.dry_run:
            return m.SweepResult()
        return m.SweepResult(offers=await refresh_catalog(self._database, self._clouds, recheck=request.recheck))


async def _there(cloud: Cloud, name: str) -> bool:
    machine = await cloud.get(name)
    return machine is not None and machine.state is not InstanceState.TERMINATED


async def refresh_catalog(database: Database, clouds: Mapping[str, Cloud], *, recheck: bool = False) -> int:
    """Bring the catalog tables up to date with the clouds; how many offers there are now.

    With `recheck` each backend checks first where it may buy, however lately it did.
    """
    count = 0
    for name, cloud in clouds.items():
        await _check_access(database, name, cloud, recheck)
        try:
            offers = await cloud.offers()
        except (CloudError, CloudUnreachable) as failure:
            _log.warning("the catalog of %s could not be read: %s", name, failure)
            async with database.transaction() as session:
                catalog = CatalogRepository(session)
                known = {row.name: row for row in await catalog.backends()}.get(name)
                row = known or BackendRow(name=name, engines=list(cloud.engines))
                row.error = str(failure)
                await catalog.put_backend(row)
            continue
        count += len(offers)
        backend = BackendRow(
            name=name,
            engines=list(cloud.engines),
            sandbox=bool(offers) and all(offer.sandbox for offer in offers),
            synced_at=utcnow(),
        )
        async with database.transaction() as session:
            await CatalogRepository(session).replace(backend, offers)
    async with database.transaction() as session:
        await CatalogRepository(session).keep_backends(list(clouds))
    return count


async def _check_access(database: Database, backend: str, cloud: Cloud, recheck: bool) -> None:
    """Write down where the backend may buy, if that is due. One that does not answer keeps what was known of it."""
    async with database.transaction() as session:
        known = [row for row in await CatalogRepository(session).access() if row.backend == backend]
    if known and not recheck and min(row.checked_at for row in known) > utcnow() - _ACCESS_FRESH:
        return
    try:
        access = await cloud.access()
    except (CloudError, CloudUnreachable) as failure:
        _log.warning("where %s may buy could not be checked: %s", backend, failure)
        return
    async with database.transaction() as session:
        await CatalogRepository(session).replace_access(backend, access)
