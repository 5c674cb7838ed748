"""What is asked of a cloud: have a machine, look at it, end it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from temporalio import activity

from activities.failures import again, final, provision_failure, refused
from activities.heartbeat import heartbeating
from activities.signatures import MachineSteps
from activities.specs import SpecCache
from skyfleet.clouds.base import Cloud
from skyfleet.db.repositories import (
    AttemptRepository,
    AuditRepository,
    CostRepository,
    LaunchRepository,
    NodeRepository,
)
from skyfleet.db.session import Database
from skyfleet.db.tables import utcnow
from skyfleet.domain import ids
from skyfleet.domain import messages as m
from skyfleet.domain.classifier import classify, timeout_error
from skyfleet.domain.errors import ClassifiedError, CloudError, CloudUnreachable, ErrorKind, ErrorScope
from skyfleet.domain.offers import (
    CloudInstance,
    CreateRequest,
    EngineSpec,
    InstanceProgress,
    InstanceState,
    NodeBoot,
    Offer,
)
from skyfleet.domain.states import AGENT_STAGES, AttemptState, LaunchStage, Market, NodeStatus
from skyfleet.telemetry import traces

#: A create that is under way when its activity is cancelled is waited for this long, so that the teardown that
#: follows sees what it made.
_CREATE_GRACE_SECONDS = 10.0
#: An agent can be quicker than the steps here: a launch never goes back to an earlier stage for them.
_BEYOND = (*AGENT_STAGES, LaunchStage.REGISTERING)
#: One run of a teardown watches the machine go for this long before it asks the cloud again.
_WATCH_SECONDS = 60.0


class MachineActivities(MachineSteps):
    """`clouds` by backend name. `owner` tags every machine; `agent` names the agent's version and its SHA-256."""

    def __init__(
        self,
        database: Database,
        clouds: Mapping[str, Cloud],
        *,
        owner: str,
        control_plane_url: str,
        agent: tuple[str, str],
        heartbeat_interval_s: float = 10.0,
        engine_hang_after_s: float = 60.0,
        termination_alert_s: float = 120.0,
    ) -> None:
        self._database = database
        self._specs = SpecCache()
        self._clouds = clouds
        self._owner = owner
        self._control_plane_url = control_plane_url
        self._agent_version, self._agent_sha256 = agent
        self._heartbeat_interval_s = heartbeat_interval_s
        self._engine_hang_after_s = engine_hang_after_s
        self._termination_alert_s = termination_alert_s

    # --- have one -------------------------------------------------------------------------------------------

    @activity.defn
    async def provision_machine(self, request: m.ProvisionInput) -> m.ProvisionResult:
        """Adopt the machine of that name if it is there, create it if not, and see it run.

        Raises `ApplicationError` with a `ClassifiedError`: final ones end the attempt, others are tried again. The
        deadline counts from the first start of this activity, also over crashes of its worker.
        """
        cloud = self._cloud(request.offer)
        details: dict[str, Any] = {"cluster": request.attempt.cluster_name, "seen": "starting"}
        async with heartbeating(details):
            started_at, boot, tags = await self._begin(request)
            deadline = time.monotonic() + request.deadline_seconds - (utcnow() - started_at).total_seconds()
            try:
                instance = await cloud.get(request.attempt.cluster_name)
                adopted = instance is not None
                # One that is not up yet is asked for as well: who asked first may have died half way.
                if instance is None or instance.state is InstanceState.PENDING:
                    if time.monotonic() > deadline:
                        raise TimeoutError
                    details["seen"] = "asking the cloud"
                    async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                        instance = await self._create(cloud, request, boot, tags)
                details["cloud_id"] = instance.id
                await self._accepted(request, instance, adopted)
                if instance.state is InstanceState.PENDING:
                    instance = await self._watch_up(cloud, request, instance, deadline, details)
                if instance.state is not InstanceState.RUNNING:
                    raise final(_lost(request.offer, instance))
            except CloudError as failure:
                raise provision_failure(failure, request.offer, activity.info().attempt) from failure
            except CloudUnreachable as failure:
                if time.monotonic() > deadline:
                    raise final(self._late(request, str(failure))) from failure
                raise again(None, f"{request.offer.cloud} does not answer: {failure}") from failure
            except TimeoutError as failure:
                raise final(self._late(request, str(details["seen"]))) from failure
        return m.ProvisionResult(instance_id=instance.id, address=instance.address, adopted=adopted)

    async def _begin(self, request: m.ProvisionInput) -> tuple[datetime, NodeBoot, dict[str, str]]:
        """Note that the cloud is about to be asked; when that was first, what the machine is told, and its tags."""
        ref, offer = request.attempt, request.offer
        token = ids.new_secret()
        async with self._database.transaction() as session:
            launches = LaunchRepository(session)
            spec = await self._specs.of(launches, ref.launch_id)
            await launches.record(
                ref.launch_id,
                kind="stage",
                stage=LaunchStage.REQUESTING,
                unless_reached=_BEYOND,
                attempt=ref.number,
                message=f"requesting {offer.instance_type} ({offer.market.value}) in {offer.zone or offer.region}",
                dedupe=f"requesting:{ref.number}",
            )
            hashed = hashlib.sha256(token.encode()).hexdigest()
            first_asked = await AttemptRepository(session).begin(ref.launch_id, ref.number, hashed)
            engine, source = await launches.runs(ref.launch_id)
        boot = NodeBoot(
            control_plane_url=self._control_plane_url,
            node_id=ref.node_id,
            launch_id=ref.launch_id,
            cluster_name=ref.cluster_name,
            registration_token=token,
            agent_version=self._agent_version,
            agent_sha256=self._agent_sha256,
            provider=offer.cloud,
            region=offer.region,
            zone=offer.zone,
            instance_type=offer.instance_type,
            gpu_type=offer.gpu,
            spot_instance=offer.market is Market.SPOT,
            model_name=spec.model_name,
            model_source=source,
            engine=EngineSpec(name=engine, args=spec.engine_args, command=spec.engine_command),
            env=spec.env,
            heartbeat_interval_s=self._heartbeat_interval_s,
            engine_hang_after_s=self._engine_hang_after_s,
            sandbox=offer.sandbox,
            traceparent=traces.traceparent(),
        )
        return first_asked, boot, spec.tags

    async def _create(
        self, cloud: Cloud, request: m.ProvisionInput, boot: NodeBoot, tags: dict[str, str]
    ) -> CloudInstance:
        """Create; a cancel waits for the answer, so that nothing is made behind the teardown's back."""
        ref = request.attempt
        creating = asyncio.ensure_future(
            cloud.create(
                CreateRequest(
                    name=ref.cluster_name,
                    owner=self._owner,
                    offer=request.offer,
                    boot=boot,
                    # Ours last: what a person tags must not hide whose machine it is.
                    tags={**tags, "skyfleet/owner": self._owner, "skyfleet/launch": ref.launch_id},
                )
            )
        )
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            await asyncio.wait([creating], timeout=_CREATE_GRACE_SECONDS)
            if creating.done() and not creating.cancelled():
                creating.exception()  # seen: the teardown that follows settles it either way
            raise

    async def _accepted(self, request: m.ProvisionInput, instance: CloudInstance, adopted: bool) -> None:
        """The cloud has the machine: from here it costs."""
        ref = request.attempt
        verb = "found again" if adopted else "accepted by the cloud"
        async with self._database.transaction() as session:
            await LaunchRepository(session).record(
                ref.launch_id,
                kind="stage",
                stage=LaunchStage.PROVISIONING,
                unless_reached=_BEYOND,
                attempt=ref.number,
                message=f"{ref.cluster_name} {verb} as {instance.id}",
                data={"instance_id": instance.id, "adopted": adopted, "state": instance.state.value},
                dedupe=f"accepted:{ref.number}",
            )
            await AttemptRepository(session).accepted(ref.launch_id, ref.number, instance)
            await CostRepository(session).has(instance)

    async def _watch_up(
        self,
        cloud: Cloud,
        request: m.ProvisionInput,
        instance: CloudInstance,
        deadline: float,
        details: dict[str, Any],
    ) -> CloudInstance:
        """Follow the machine until it runs; TimeoutError at the deadline."""
        name = request.attempt.cluster_name
        refusal: CloudError | None = None
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                async for progress in cloud.progress(name):
                    details["seen"] = progress.message
                    if progress.milestone is not None:
                        await self._observed(request, progress)
        except CloudError as failure:
            refusal = failure
        # A machine that ended will not run, whatever kind of error its end was told as: the look at it decides.
        seen = await cloud.get(name)
        if seen is None or seen.state in (InstanceState.STOPPING, InstanceState.TERMINATED):
            raise final(_lost(request.offer, seen, refusal.raw if refusal else ""))
        if refusal is not None and seen.state is InstanceState.PENDING:
            raise refusal
        await self._running(request, seen)
        return seen

    async def _observed(self, request: m.ProvisionInput, progress: InstanceProgress) -> None:
        """A milestone on the way up, for the people who wait."""
        ref = request.attempt
        async with self._database.transaction() as session:
            await LaunchRepository(session).record(
                ref.launch_id,
                kind="progress",
                attempt=ref.number,
                message=progress.message,
                data={"milestone": progress.milestone, "state": progress.state.value},
                dedupe=f"milestone:{ref.number}:{progress.milestone}",
            )

    async def _running(self, request: m.ProvisionInput, instance: CloudInstance) -> None:
        ref = request.attempt
        async with self._database.transaction() as session:
            await LaunchRepository(session).record(
                ref.launch_id,
                kind="progress",
                attempt=ref.number,
                message=f"{ref.cluster_name} runs",
                data={"instance_id": instance.id, "state": instance.state.value},
                dedupe=f"running:{ref.number}",
            )
            await AttemptRepository(session).accepted(ref.launch_id, ref.number, instance)

    def _late(self, request: m.ProvisionInput, last_seen: str) -> ClassifiedError:
        return timeout_error(request.offer.cloud, "provisioning instance", request.deadline_seconds, last_seen)

    # --- look at one ----------------------------------------------------------------------------------------

    @activity.defn
    async def check_registration(self, request: m.CheckRegistrationInput) -> m.CheckRegistrationResult:
        """What the database says of the registration, and what the cloud says of the machine."""
        ref = request.attempt
        async with self._database.transaction() as session:
            node = await NodeRepository(session).get(ref.node_id)
            attempt = await AttemptRepository(session).get(ref.launch_id, ref.number)
            assert attempt is not None
        if node is not None:
            return m.CheckRegistrationResult(
                registered=m.NodeRegistered(
                    node_id=node.id, attempt=ref.number, endpoint_url=node.endpoint_url, at=node.registered_at
                )
            )
        last = LaunchStage(attempt.last_agent_stage) if attempt.last_agent_stage else None
        try:
            instance = await self._cloud(request.offer).get(ref.cluster_name)
        except (CloudError, CloudUnreachable):
            # A cloud that errors says nothing about the machine; the deadline still stands.
            return m.CheckRegistrationResult(last_stage=last)
        if instance is None or instance.state is InstanceState.TERMINATED:
            return m.CheckRegistrationResult(last_stage=last, machine_lost=_lost(request.offer, instance))
        return m.CheckRegistrationResult(last_stage=last)

    # --- end one --------------------------------------------------------------------------------------------

    @activity.defn
    async def terminate_machine(self, request: m.TerminateInput) -> m.TerminateResult:
        """Ask for the end, and look until the cloud says that the machine is gone. Never gives up.

        Every failure is tried again by Temporal; one that lasts raises an alert, and is still tried.
        """
        cloud = self._clouds[request.backend]
        name = request.cluster_name
        details: dict[str, Any] = {"cluster": name}
        async with heartbeating(details):
            try:
                await self._bill(cloud, name)
                await cloud.terminate(name)
                gone, instance = await self._watch_gone(cloud, name, details)
            except (CloudError, CloudUnreachable) as failure:
                # Its own agent may have powered it off meanwhile: then there is nothing left to ask for. A name that
                # the cloud does not know says less, as long as it did not hear that the name is given up.
                gone, instance = True, await _ended_by_itself(cloud, name)
                if instance is None:
                    await self._alert_if_late(request, str(failure))
                    error = refused(failure) if isinstance(failure, CloudError) else None
                    raise again(error, f"{name} is not terminated yet: {failure}") from failure
            if not gone:
                await self._alert_if_late(request, f"the cloud still reports {details.get('state')}")
                raise again(None, f"{name} is not terminated yet: the cloud reports {details.get('state')}")
        at = instance.terminated_at if instance and instance.terminated_at else utcnow()
        await self._confirm(request, at, instance)
        return m.TerminateResult(confirmed_at=at, existed=instance is not None)

    async def _bill(self, cloud: Cloud, name: str) -> None:
        """A machine whose create was never answered costs as well, and not every cloud remembers one that is gone."""
        async with self._database.transaction() as session:
            if await CostRepository(session).known(name):
                return
        with contextlib.suppress(CloudError, CloudUnreachable):
            instance = await cloud.get(name)
            if instance is not None:
                async with self._database.transaction() as session:
                    await CostRepository(session).has(instance)

    async def _watch_gone(self, cloud: Cloud, name: str, details: dict[str, Any]) -> tuple[bool, CloudInstance | None]:
        pause, until = 0.1, time.monotonic() + _WATCH_SECONDS
        while True:
            instance = await cloud.get(name)
            if instance is None or instance.state is InstanceState.TERMINATED:
                return True, instance
            details["state"] = instance.state.value
            if time.monotonic() > until:
                return False, instance
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 3.0)

    async def _alert_if_late(self, request: m.TerminateInput, why: str) -> None:
        """Say once, where people look, that a machine will not go."""
        asked_at = activity.info().scheduled_time
        if (utcnow() - asked_at).total_seconds() < self._termination_alert_s:
            return
        message = f"{request.cluster_name} will not terminate, still trying: {why}"
        activity.logger.error(message)
        async with self._database.transaction() as session:
            launches = LaunchRepository(session)
            launch = await launches.get(request.launch_id, lock=True) if request.launch_id else None
            if launch is None:
                return
            new = await launches.record(
                launch.id,
                kind="alert",
                attempt=request.attempt,
                message=message,
                data={"reason": request.reason},
                dedupe=f"teardown-alert:{request.cluster_name}",
            )
            if new:
                AuditRepository(session).add(
                    principal="skyfleet",
                    action="machine.teardown_alert",
                    subject=request.cluster_name,
                    outcome="failing",
                    detail={"why": why, "reason": request.reason},
                )

    async def _confirm(self, request: m.TerminateInput, at: datetime, instance: CloudInstance | None) -> None:
        """Write down that the machine is gone: here its bill ends."""
        async with self._database.transaction() as session:
            launches = LaunchRepository(session)
            launch = await launches.get(request.launch_id, lock=True) if request.launch_id else None
            if request.launch_id is not None and request.attempt is not None:
                attempt = await AttemptRepository(session).get(request.launch_id, request.attempt, lock=True)
                if attempt is not None and attempt.closed_at is None:
                    attempt.closed_at = at
                    if instance is not None and attempt.created_at is None:
                        # A create whose reply was lost still cost something.
                        attempt.created_at, attempt.instance_id = instance.created_at, instance.id
                    if attempt.state == AttemptState.CLOSING.value:
                        attempt.state = AttemptState.CLOSED.value
            costs = CostRepository(session)
            if instance is not None:
                await costs.has(instance)
            told = instance is not None and instance.terminated_at is not None
            await costs.ended(request.cluster_name, at, told=told)
            if request.node_id is not None:
                node = await NodeRepository(session).get(request.node_id, lock=True)
                if node is not None:
                    node.status = NodeStatus.TERMINATED.value
                    node.terminated_at = at
                    node.status_message = request.reason
            if launch is not None:
                await launches.record(
                    launch.id,
                    kind="attempt" if not LaunchStage(launch.stage).terminal else "node",
                    attempt=request.attempt,
                    message=f"{request.cluster_name} is gone: the cloud confirmed it",
                    data={"confirmed_at": at.astimezone(UTC).isoformat(), "state": AttemptState.CLOSED.value},
                    dedupe=f"gone:{request.cluster_name}",
                )
            AuditRepository(session).add(
                principal="skyfleet",
                action="machine.gone",
                subject=request.cluster_name,
                outcome="done",
                detail={"reason": request.reason, "existed": instance is not None},
            )

    def _cloud(self, offer: Offer) -> Cloud:
        return self._clouds[offer.backend]


async def _ended_by_itself(cloud: Cloud, name: str) -> CloudInstance | None:
    """The machine, if the cloud knows it and says that it is terminated."""
    try:
        instance = await cloud.get(name)
    except (CloudError, CloudUnreachable):
        return None
    return instance if instance is not None and instance.state is InstanceState.TERMINATED else None


def _lost(offer: Offer, instance: CloudInstance | None, said: str = "") -> ClassifiedError:
    """A machine that was there and is not any more; `said` is what the cloud told of its end."""
    reason = (instance.termination_reason if instance else None) or "gone"
    raw = said or f"instance terminated: {reason}"
    place = f"{offer.cloud}/{offer.zone or offer.region}"
    if reason == "preempted":
        return ClassifiedError(
            kind=ErrorKind.PREEMPTED,
            scope=ErrorScope.ZONE,
            retryable=True,
            cloud=offer.cloud,
            message=f"The cloud took the spot machine back in {place} before its node was up.",
            next_steps=["try another zone or region", "use on-demand"],
            raw=raw,
        )
    error = classify(offer.cloud, raw)
    if error.kind is ErrorKind.TRANSIENT:
        # As an answer to a request it would be the whole region's; one machine's end says nothing of other zones.
        return error.model_copy(update={"scope": ErrorScope.ZONE})
    if error.kind is not ErrorKind.UNKNOWN:
        return error
    return error.model_copy(
        update={"message": f"The machine in {place} ended by itself before its node was up: {said or reason}."}
    )
