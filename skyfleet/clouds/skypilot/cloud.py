"""`SkyPilotCloud`: the `Cloud` protocol over SkyPilot's API server.

What SkyPilot leaves open is closed here:

- its record of a cluster is no proof: UP can mean a machine on which nothing was ever set up, or one that is gone. A
  machine counts as running once the launch that made it succeeded and the cloud, asked again, still has it;
- stopping a launch leaves its machine, and one that the cloud was asked for a moment ago can appear after the tear-down
  looked for it. `terminate` therefore waits, within bounds, until the cloud has answered the launch, and only then
  stops it and tears down;
- a server that was restarted remembers no launch. The next `create` of the name finishes the machine that is there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from sky import exceptions

from skyfleet.clouds.skypilot import labels, provision_log
from skyfleet.clouds.skypilot.catalog import BACKEND, SkyPilotCatalog
from skyfleet.clouds.skypilot.names import NameGivenUp, Names
from skyfleet.clouds.skypilot.server import Cluster, ClusterState, LaunchRequest, RequestState, SkyPilotServer
from skyfleet.clouds.skypilot.task import NodeDefaults, task_config
from skyfleet.domain.errors import CloudError, CloudUnreachable
from skyfleet.domain.offers import CloudAccess, CloudInstance, CreateRequest, InstanceProgress, InstanceState, Offer
from skyfleet.domain.states import Market

_log = logging.getLogger(__name__)

#: Launches handed to the server at once: each holds its name, and SkyPilot takes them one after the other anyway.
_HANDED_OVER_AT_ONCE: Final = 4
_LOOK_SECONDS: Final = 1.0
#: What the cloud said of a machine is taken for so long as how it is. Asking costs SkyPilot an SSH session.
_FRESH: Final = timedelta(seconds=20)


class SkyPilotCloud:
    """Machines of every cloud that the SkyPilot server is enabled for.

    `settle_s` is how late a cloud may show a machine that it was asked for, in seconds: so long a tear-down waits after
    a launch that was cut off in the middle of asking. `throttle_s` is how long a create waits for a cloud that puts it
    off before it says so; SkyPilot goes on asking meanwhile, and the next create joins it.
    """

    backend = BACKEND
    engines: tuple[str, ...] = ("vllm", "command", "echo")

    def __init__(
        self, server: SkyPilotServer, names: Names, node: NodeDefaults, *, settle_s: float, throttle_s: float
    ) -> None:
        self._server = server
        self._catalog = SkyPilotCatalog(server)
        self._names = names
        self._node = node
        self._settle = timedelta(seconds=settle_s)
        self._throttle_s = throttle_s
        self._handing_over = asyncio.Semaphore(_HANDED_OVER_AT_ONCE)
        # Names whose task reached its machine. A fact that does not change, and dear to find out (SSH).
        self._set_up: set[str] = set()
        self._asked_at: dict[str, datetime] = {}

    async def offers(self) -> list[Offer]:
        """See `Cloud.offers`."""
        return await self._catalog.offers()

    async def access(self) -> list[CloudAccess]:
        """See `Cloud.access`."""
        return await self._catalog.access()

    async def create(self, request: CreateRequest) -> CloudInstance:
        """See `Cloud.create`."""
        name, cloud = request.name, request.offer.cloud
        try:
            async with self._handing_over, self._names.asking(name):
                request_id = await self._ask(request)
        except NameGivenUp:
            raise CloudError(cloud, f"{name} was given up and is not made again", code="NameGivenUp") from None
        except (ValueError, exceptions.ResourcesUnavailableError, exceptions.ResourcesMismatchError) as failure:
            raise CloudError(cloud, f"{type(failure).__name__}: {failure}", code=type(failure).__name__) from failure
        if request_id is not None:
            await self._until_accepted(request, request_id)
        instance = await self.get(name)
        if instance is None:
            raise CloudError(cloud, f"{name} was ended while it was being made", code="Ended")
        return instance

    async def _ask(self, request: CreateRequest) -> str | None:
        """Hand the launch to the server, unless it is there; the launch to wait for, None if the machine is set up."""
        name = request.name
        cluster = await self._server.cluster(name)
        if cluster is not None and cluster.labels.get(labels.OFFER) != labels.offer_value(request.offer):
            raise CloudError(
                request.offer.cloud,
                f"ResourcesMismatchError: {name} is another machine: {cluster.instance_type} in {cluster.region}",
                code="ResourcesMismatchError",
            )
        launches = await self._server.launches(name)
        if launches and launches[-1].state.active:
            return launches[-1].id
        if cluster is not None and await self._is_set_up(cluster, launches):
            return None
        return await self._server.launch(task_config(request, self._node), name)

    async def _until_accepted(self, request: CreateRequest, request_id: str) -> None:
        """Wait until the cloud has the machine; raises what it refused with."""
        name = request.name
        put_off_at: float | None = None
        while True:
            launch = _of_id(await self._server.launches(name), request_id)
            if launch is None:
                raise CloudUnreachable(f"SkyPilot's API server was restarted and forgot the launch of {name}")
            if launch.state is RequestState.SUCCEEDED:
                return
            log = provision_log.read(await self._server.provision_log(name))
            if not launch.state.active:
                raise await self._failure(request.offer.cloud, name, launch, log)
            if log.accepted and await self._server.cluster(name) is not None:
                return
            if log.retrying is None:
                put_off_at = None
            elif put_off_at is None:
                put_off_at = time.monotonic()
            elif time.monotonic() - put_off_at > self._throttle_s:
                raise CloudError(
                    request.offer.cloud,
                    f"{log.retrying}: the cloud puts SkyPilot off, which asks again and again",
                    code=log.retrying,
                )
            await asyncio.sleep(_LOOK_SECONDS)

    async def progress(self, name: str) -> AsyncIterator[InstanceProgress]:
        """See `Cloud.progress`."""
        told: set[str] = set()
        while True:
            launches = await self._server.launches(name)
            launch = launches[-1] if launches else None
            if launch is None or not launch.state.active:
                yield await self._end_of_progress(name, launch)
                return
            log = provision_log.read(await self._server.provision_log(name))
            for milestone in log.milestones:
                if milestone.name not in told:
                    told.add(milestone.name)
                    yield InstanceProgress(
                        at=datetime.now(UTC),
                        state=InstanceState.PENDING,
                        message=milestone.message,
                        milestone=milestone.name,
                    )
            await asyncio.sleep(_LOOK_SECONDS)

    async def _end_of_progress(self, name: str, launch: LaunchRequest | None) -> InstanceProgress:
        if launch is not None and launch.state in (RequestState.FAILED, RequestState.CANCELLED):
            cluster = await self._server.cluster(name)
            cloud = cluster.cloud if cluster else BACKEND
            log = provision_log.read(await self._server.provision_log(name))
            raise await self._failure(cloud, name, launch, log)
        instance = await self.get(name)
        if instance is None:
            raise CloudError(BACKEND, f"there is no machine {name}: it ended, or was never made", code="NotFound")
        if instance.state is not InstanceState.RUNNING:
            raise CloudUnreachable(f"SkyPilot's API server was restarted and forgot the launch of {name}")
        return InstanceProgress(
            at=datetime.now(UTC),
            state=InstanceState.RUNNING,
            message="the machine runs, its task is submitted",
            milestone="submitted",
        )

    async def get(self, name: str) -> CloudInstance | None:
        """See `Cloud.get`."""
        cluster = await self._server.cluster(name)
        if cluster is None:
            return None
        launches = await self._server.launches(name)
        if cluster.state is not ClusterState.INIT:
            cluster = await self._refreshed(cluster, launches)
            if cluster is None:
                return None
        return self._instance(cluster, await self._is_set_up(cluster, launches), launches)

    async def list(self, owner: str) -> list[CloudInstance]:
        """See `Cloud.list`. As SkyPilot's server last looked, which it does every minute."""
        return [
            self._instance(cluster, cluster.state is ClusterState.UP, [])
            for cluster in await self._server.clusters()
            if cluster.labels.get(labels.OWNER) == labels.value(owner)
        ]

    async def terminate(self, name: str) -> None:
        """See `Cloud.terminate`. Returns when SkyPilot says that the cloud confirmed it."""
        await self._names.give_up(name)
        cut_off = await self._stop_launches(name)
        cluster = await self._server.cluster(name)
        if cluster is None and cut_off is None:
            return
        if cut_off is None and cluster is not None:
            cut_off = await self._was_cut_off(cluster)
        if cut_off is not None:
            # As long as the cloud may still show a machine that nobody waits for.
            await asyncio.sleep(max(0.0, (cut_off + self._settle - datetime.now(UTC)).total_seconds()))
        try:
            await self._server.down(name)
        except CloudUnreachable:
            raise
        except Exception as failure:
            cloud = cluster.cloud if cluster else BACKEND
            raise CloudError(cloud, f"{type(failure).__name__}: {failure}", code=None) from failure

    async def _stop_launches(self, name: str) -> datetime | None:
        """Stop what is under way for the name, if it can be at a moment when nothing is being asked of the cloud.

        When it could not, the time of the cut.
        """
        until = time.monotonic() + self._settle.total_seconds()
        while True:
            active = [launch for launch in await self._server.launches(name) if launch.state.active]
            if not active:
                return None
            running = any(launch.state is RequestState.RUNNING for launch in active)
            answered = not running or provision_log.read(await self._server.provision_log(name)).accepted
            if answered or time.monotonic() > until:
                await self._server.cancel([launch.id for launch in active])
                return None if answered else datetime.now(UTC)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _was_cut_off(self, cluster: Cluster) -> datetime | None:
        """When a launch that is not under way any more was cut off in the middle of asking the cloud."""
        launches = await self._server.launches(cluster.name)
        ended_by_itself = launches and launches[-1].state is not RequestState.CANCELLED
        if cluster.state is not ClusterState.INIT or ended_by_itself:
            return None
        if provision_log.read(await self._server.provision_log(cluster.name)).accepted:
            return None
        # No launch at all: the server was killed, some time after it wrote this record.
        return (launches[-1].finished_at if launches else None) or cluster.launched_at

    async def _refreshed(self, cluster: Cluster, launches: Sequence[LaunchRequest]) -> Cluster | None:
        """The record as the cloud bears it out: what SkyPilot has written down outlives a machine by minutes."""
        seen = [self._asked_at.get(cluster.name)]
        seen += [launch.finished_at for launch in launches[-1:] if launch.state is RequestState.SUCCEEDED]
        now = datetime.now(UTC)
        if any(at is not None and now - at < _FRESH for at in seen):
            return cluster
        try:
            refreshed = await self._server.cluster(cluster.name, refresh=True)
        except exceptions.ClusterStatusFetchingError as failure:
            raise CloudError(cluster.cloud, f"{type(failure).__name__}: {failure}") from failure
        if refreshed is None:
            self._asked_at.pop(cluster.name, None)
        else:
            self._asked_at[cluster.name] = now
        return refreshed

    async def _is_set_up(self, cluster: Cluster, launches: Sequence[LaunchRequest]) -> bool:
        """Whether the task reached the machine: the launch succeeded, or left a job on a machine that is up."""
        if cluster.name in self._set_up:
            return True
        if launches:
            found = launches[-1].state is RequestState.SUCCEEDED
        else:
            try:
                found = cluster.state is ClusterState.UP and await self._server.has_job(cluster.name)
            except (exceptions.ClusterNotUpError, exceptions.ClusterDoesNotExist, exceptions.CommandError):
                found = False
        if found:
            self._set_up.add(cluster.name)
        return found

    async def _failure(
        self, cloud: str, name: str, launch: LaunchRequest, log: provision_log.ProvisionLog
    ) -> CloudError:
        """What a launch that did not succeed failed with, in the cloud's words as far as the log has them."""
        if launch.state is RequestState.CANCELLED:
            return CloudError(cloud, f"the launch of {name} was cancelled at SkyPilot's API server", code="Cancelled")
        failure = await self._server.outcome(launch.id)
        said = provision_log.plain(f"{type(failure).__name__}: {failure}")
        return CloudError(
            cloud, "\n".join([*log.errors, said]), code=log.code or type(failure).__name__, request_id=launch.id
        )

    def _instance(self, cluster: Cluster, set_up: bool, launches: Sequence[LaunchRequest]) -> CloudInstance:
        finished = launches[-1].finished_at if launches else None
        return CloudInstance(
            name=cluster.name,
            id=cluster.name_on_cloud,
            backend=BACKEND,
            cloud=cluster.cloud,
            region=cluster.region or "",
            zone=cluster.zone,
            instance_type=cluster.instance_type or "",
            market=Market.SPOT if cluster.spot else Market.ON_DEMAND,
            state=_state(cluster.state, set_up),
            hourly_price=labels.price_of(cluster.labels.get(labels.PRICE)),
            owner=cluster.labels.get(labels.OWNER, ""),
            created_at=cluster.launched_at,
            running_at=max(finished or cluster.launched_at, cluster.launched_at) if set_up else None,
            address=cluster.address,
            tags=cluster.labels,
        )

    async def aclose(self) -> None:
        """See `Cloud.aclose`."""
        self._server.close()


def _state(cluster: ClusterState, set_up: bool) -> InstanceState:
    if cluster in (ClusterState.STOPPED, ClusterState.AUTOSTOPPING):
        return InstanceState.STOPPING  # a stopped machine's disk still costs
    # INIT with its task on it: the machine is there, SkyPilot's runtime on it is not well. Our agent says what is.
    return InstanceState.RUNNING if set_up else InstanceState.PENDING


def _of_id(launches: Sequence[LaunchRequest], request_id: str) -> LaunchRequest | None:
    return next((launch for launch in launches if launch.id == request_id), None)
