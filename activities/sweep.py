"""The steps of a sweep."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Protocol

from temporalio import activity

from activities.signatures import SweepSteps
from skyfleet.clouds.base import Cloud
from skyfleet.db.repositories import CatalogRepository, LaunchRepository, NodeRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import BackendRow, utcnow
from skyfleet.domain import messages as m
from skyfleet.domain.errors import CloudError, CloudUnreachable
from skyfleet.domain.launches import LaunchSpec

_log = logging.getLogger(__name__)

#: An intent younger than this is still on its way by the ordinary path.
_GRACE = timedelta(seconds=5)


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


class SweepActivities(SweepSteps):
    """Steps of `SweepWorkflow`."""

    def __init__(self, database: Database, delivery: IntentDelivery, clouds: Mapping[str, Cloud]) -> None:
        self._database = database
        self._delivery = delivery
        self._clouds = clouds

    @activity.defn
    async def redeliver_intents(self, request: m.SweepInput) -> m.SweepResult:
        """Find intents that did not reach their workflow, and deliver them."""
        old = utcnow() - _GRACE
        async with self._database.transaction() as session:
            lost = await LaunchRepository(session).lost_starts(old)
            cancels = await LaunchRepository(session).undelivered_cancels(old)
            endings = await NodeRepository(session).undelivered_terminations(old)
        result = m.SweepResult()
        if request.dry_run:
            return m.SweepResult(
                restarted_launches=[launch.id for launch in lost],
                redelivered_cancels=[launch.id for launch in cancels],
                redelivered_terminations=[node.id for node in endings],
            )
        for launch in lost:
            intent = m.LaunchInput.of(launch.id, launch.tenant, LaunchSpec.model_validate(launch.spec))
            if await self._delivery.start_launch(intent):
                result.restarted_launches.append(launch.id)
        if result.restarted_launches:
            async with self._database.transaction() as session:
                await LaunchRepository(session).mark_started(result.restarted_launches)
        for launch in cancels:
            command = m.CancelLaunch(requested_by=launch.cancel_requested_by or "unknown")
            if await self._delivery.cancel_launch(launch.id, command):
                result.redelivered_cancels.append(launch.id)
        for node in endings:
            ending = m.TerminateNode(requested_by=node.terminate_requested_by or "unknown")
            if await self._delivery.terminate_node(node.workflow_input(), ending):
                result.redelivered_terminations.append(node.id)
        return result

    @activity.defn
    async def refresh_catalog(self, request: m.SweepInput) -> m.SweepResult:
        """Read every cloud's offers; one that does not answer keeps what was known of it, with the error beside it."""
        return m.SweepResult(offers=0 if request.dry_run else await refresh_catalog(self._database, self._clouds))


async def refresh_catalog(database: Database, clouds: Mapping[str, Cloud]) -> int:
    """Bring the catalog tables up to date with the clouds; how many offers there are now."""
    count = 0
    for name, cloud in clouds.items():
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
        async with database.transaction() as session:
            catalog = CatalogRepository(session)
            backend = BackendRow(
                name=name,
                engines=list(cloud.engines),
                sandbox=all(offer.sandbox for offer in offers),
                synced_at=utcnow(),
            )
            ordered = sorted(offers, key=lambda offer: offer.key)
            if ordered == [offer for offer in await catalog.offers() if offer.backend == name]:
                await catalog.put_backend(backend)
            else:
                await catalog.replace(backend, ordered)
    async with database.transaction() as session:
        await CatalogRepository(session).keep_backends(list(clouds))
    return count
