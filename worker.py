"""The worker: composition root. Builds settings, database, clouds and the Temporal client, and runs the queues.

`python -m worker` runs every queue in `SKYFLEET_WORKER_QUEUES`. SIGTERM stops it: running activities are told, and
what they were doing is carried on by the next worker. Nothing imports this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import uvicorn
import uvloop
from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
)
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from activities.costs import CostActivities
from activities.heartbeat import HEARTBEAT_SECONDS
from activities.launch import LaunchActivities
from activities.machines import MachineActivities
from activities.models import Bucket, ModelActivities
from activities.nodes import NodeActivities
from activities.notifications import NotificationActivities
from activities.sweep import SweepActivities, refresh_catalog
from activities.watch import FleetWatch
from api.temporal import CommandRefused, NoSuchWorkflow, TemporalWorkflows, WorkflowsUnavailable
from skyfleet.agent import bundle
from skyfleet.clouds.base import Cloud
from skyfleet.clouds.skypilot.names import NameGivenUp
from skyfleet.db.repositories import AgentBundleRepository, GivenUpNameRepository, ModelBucketRepository
from skyfleet.db.session import Database
from skyfleet.domain import ids, queues
from skyfleet.domain import messages as m
from skyfleet.domain.health import Condition, HealthPolicy
from skyfleet.exit import leave
from skyfleet.notifier.process import Notifier
from skyfleet.polls import EnginePolls
from skyfleet.settings import Settings, settings
from skyfleet.telemetry import logs, metrics, traces
from skyfleet.telemetry.temporal import ActivityTelemetry, serve_sdk_metrics
from workflows import search_attributes
from workflows.models import ModelRefreshWorkflow
from workflows.notifications import NotificationWorkflow
from workflows.registry import SANDBOX, WORKFLOWS
from workflows.sweep import SweepWorkflow
from workflows.watch import FleetWatchWorkflow

_log = logging.getLogger("skyfleet.worker")

_DELIVERY_SECONDS = 5.0
#: People do not read faster, and each run is a workflow.
_LEAST_NOTIFICATIONS_SECONDS = 5.0


class GivenUpNames:
    """`skyfleet.clouds.skypilot.names.Names` in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextlib.asynccontextmanager
    async def asking(self, name: str) -> AsyncIterator[None]:
        """See `Names.asking`."""
        async with self._database.transaction() as session:
            if not await GivenUpNameRepository(session).lock(name):
                raise NameGivenUp(name)
            yield

    async def give_up(self, name: str) -> None:
        """See `Names.give_up`."""
        async with self._database.transaction() as session:
            await GivenUpNameRepository(session).give_up(name)


def build_clouds(config: Settings, database: Database) -> dict[str, Cloud]:
    """The configured backends by name."""
    clouds: dict[str, Cloud] = {}
    if config.skypilot:
        # Imported only here: SkyPilot costs seconds and hundreds of megabytes.
        from skyfleet.clouds.skypilot.cloud import SkyPilotCloud
        from skyfleet.clouds.skypilot.server import SkyPilotServer
        from skyfleet.clouds.skypilot.task import NodeDefaults

        clouds["skypilot"] = SkyPilotCloud(
            SkyPilotServer(config.owner),
            GivenUpNames(database),
            NodeDefaults.of(config),
            settle_s=config.skypilot_settle_seconds,
            throttle_s=config.skypilot_throttle_seconds,
        )
    if config.local_cloud_url:
        from skyfleet.clouds.local.client import LocalCloud

        clouds["local"] = LocalCloud(config.local_cloud_url)
    return clouds


def build_bucket(config: Settings) -> Bucket | None:
    """The model bucket of the settings, if they name one. `ValueError` when they cannot be those of a bucket."""
    if config.model_bucket_url is None:
        return None
    from skyfleet.models.bucket import ModelBucket

    key, secret = config.model_bucket_access_key_id, config.model_bucket_secret_access_key
    return ModelBucket(
        config.model_bucket_url,
        endpoint=config.model_bucket_endpoint,
        region=config.model_bucket_region,
        access_key_id=key.get_secret_value() if key else None,
        secret_access_key=secret.get_secret_value() if secret else None,
    )


async def connect(config: Settings) -> Client:
    """The Temporal client, as soon as there is a server. Waits for ever, and says so."""
    while True:
        try:
            return await Client.connect(
                config.temporal_address,
                namespace=config.temporal_namespace,
                data_converter=pydantic_data_converter,
                identity=f"skyfleet-worker@{config.owner}",
                interceptors=traces.temporal_interceptors(),
            )
        except RuntimeError as failure:  # the SDK's only error here
            _log.warning("no Temporal server at %s yet: %s", config.temporal_address, failure)
            await asyncio.sleep(0.5)


async def ensure_sweep(client: Client, interval_seconds: float) -> None:
    """Create the sweep's schedule, or bring it up to date."""
    schedule = Schedule(
        action=ScheduleActionStartWorkflow(
            SweepWorkflow.run,
            m.SweepInput(),
            id=ids.SWEEP_SCHEDULE_ID,
            task_queue=queues.CONTROL,
            execution_timeout=timedelta(minutes=5),
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(seconds=interval_seconds))]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(minutes=1)),
    )
    try:
        await client.create_schedule(ids.SWEEP_SCHEDULE_ID, schedule)
    except ScheduleAlreadyRunningError:
        await client.get_schedule_handle(ids.SWEEP_SCHEDULE_ID).update(lambda _: ScheduleUpdate(schedule))


async def ensure_watch(client: Client) -> None:
    """Have the fleet watched, unless it is already."""
    await client.start_workflow(
        FleetWatchWorkflow.run,
        m.WatchInput(),
        id=ids.WATCH_WORKFLOW_ID,
        task_queue=queues.CONTROL,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        static_summary="heartbeats, polls and the clouds' lists, joined into a verdict on each node",
    )


async def ensure_notifications(client: Client, interval_seconds: float) -> None:
    """Create the schedule that delivers notifications, or bring it up to date."""
    schedule = Schedule(
        action=ScheduleActionStartWorkflow(
            NotificationWorkflow.run,
            m.DeliverInput(),
            id=ids.NOTIFICATIONS_SCHEDULE_ID,
            task_queue=queues.CONTROL,
            execution_timeout=timedelta(minutes=5),
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(seconds=interval_seconds))]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(minutes=1)),
    )
    try:
        await client.create_schedule(ids.NOTIFICATIONS_SCHEDULE_ID, schedule)
    except ScheduleAlreadyRunningError:
        handle = client.get_schedule_handle(ids.NOTIFICATIONS_SCHEDULE_ID)
        await handle.update(lambda _: ScheduleUpdate(schedule))


async def ensure_model_refresh(client: Client, config: Settings) -> None:
    """Create the schedule that reads the model bucket, or bring it up to date, and read it now; none without one."""
    handle = client.get_schedule_handle(ids.MODELS_SCHEDULE_ID)
    if config.model_bucket_url is None:
        try:
            await handle.delete()
        except RPCError as failure:
            if failure.status is not RPCStatusCode.NOT_FOUND:
                raise
        return
    schedule = Schedule(
        action=ScheduleActionStartWorkflow(
            ModelRefreshWorkflow.run,
            m.RefreshModelsInput(),
            id=ids.MODELS_SCHEDULE_ID,
            task_queue=queues.CONTROL,
            execution_timeout=timedelta(minutes=30),
        ),
        spec=ScheduleSpec(
            intervals=[ScheduleIntervalSpec(every=timedelta(seconds=config.model_bucket_refresh_seconds))]
        ),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(minutes=1)),
    )
    try:
        await client.create_schedule(ids.MODELS_SCHEDULE_ID, schedule, trigger_immediately=True)
    except ScheduleAlreadyRunningError:
        await handle.update(lambda _: ScheduleUpdate(schedule))
        await handle.trigger()


def health_policy(config: Settings) -> HealthPolicy:
    """How patient the fleet watch is."""
    default = HealthPolicy()
    return default.model_copy(
        update={
            "recover_seconds": 1.5 * config.heartbeat_interval_seconds,
            "grace_seconds": {
                **default.grace_seconds,
                Condition.DEGRADED: config.grace_engine_seconds,
                Condition.UNREACHABLE: config.grace_unreachable_seconds,
                Condition.SUSPECT: config.grace_suspect_seconds,
            },
        }
    )


def build_workers(
    client: Client,
    config: Settings,
    database: Database,
    clouds: dict[str, Cloud],
    bucket: Bucket | None,
    polls: EnginePolls,
) -> list[Worker]:
    """One Temporal worker for each configured queue."""
    delivery = Delivery(config)
    machines = MachineActivities(
        database,
        clouds,
        owner=config.owner,
        control_plane_url=config.public_url,
        agent=(bundle.version(), bundle.sha256()),
        heartbeat_interval_s=config.heartbeat_interval_seconds,
        engine_hang_after_s=config.engine_hang_seconds,
        termination_alert_s=config.termination_alert_seconds,
    )
    sweep = SweepActivities(
        database,
        delivery,
        clouds,
        owner=config.owner,
        compare_interval_s=config.compare_interval_seconds,
    )
    launch = LaunchActivities(database)
    node = NodeActivities(database, delivery, heartbeat_interval_s=config.heartbeat_interval_seconds)
    watch = FleetWatch(
        database,
        clouds,
        polls,
        delivery,
        owner=config.owner,
        heartbeat_interval_s=config.heartbeat_interval_seconds,
        poll_interval_s=config.poll_interval_seconds,
        cloud_interval_s=config.cloud_interval_seconds,
        policy=health_policy(config),
    )
    models = ModelActivities(database, bucket)
    notifications = NotificationActivities(database, Notifier(), sandbox=config.sandbox)
    activities: dict[str, list[Callable[..., Any]]] = {
        queues.CONTROL: [
            launch.validate_launch,
            launch.plan_launch,
            launch.open_attempt,
            launch.close_attempt,
            launch.complete_launch,
            launch.finish_launch,
            node.mark_node,
            node.request_replacement,
            node.check_replacement,
            node.check_drain,
            sweep.redeliver_intents,
            CostActivities(database).check_budgets,
        ],
        queues.PROVISION: [machines.provision_machine],
        queues.TEARDOWN: [
            machines.terminate_machine,
            machines.check_registration,
            sweep.compare_with_clouds,
            sweep.refresh_catalog,
            models.refresh_models,
            watch.watch_fleet,
            notifications.deliver_notifications,
            notifications.test_channel,
        ],
    }
    limits = {
        queues.CONTROL: config.control_concurrency,
        queues.PROVISION: config.provision_concurrency,
        queues.TEARDOWN: config.teardown_concurrency,
    }
    return [
        Worker(
            client,
            task_queue=queue,
            activities=activities[queue],
            workflows=WORKFLOWS if queue == queues.CONTROL else [],
            workflow_runner=SANDBOX,
            interceptors=[ActivityTelemetry()],
            max_concurrent_activities=limits[queue],
            # A cancel reaches an activity with a heartbeat: held back for 0.8 of its timeout, it would take 12 s.
            max_heartbeat_throttle_interval=timedelta(seconds=HEARTBEAT_SECONDS),
            graceful_shutdown_timeout=timedelta(seconds=5),
        )
        for queue in config.worker_queues
    ]


class Delivery:
    """`activities.sweep.IntentDelivery` over the same calls that the API makes."""

    def __init__(self, config: Settings) -> None:
        self._workflows = TemporalWorkflows(config)

    async def start_launch(self, launch: m.LaunchInput) -> bool:
        """See `IntentDelivery`."""
        try:
            await self._workflows.start_launch(launch, timeout_s=_DELIVERY_SECONDS)
        except WorkflowsUnavailable as failure:
            _log.warning("launch %s is not started yet: %s", launch.launch_id, failure)
            return False
        return True

    async def cancel_launch(self, launch_id: str, command: m.CancelLaunch) -> bool:
        """See `IntentDelivery`."""
        try:
            await self._workflows.cancel_launch(launch_id, command, timeout_s=_DELIVERY_SECONDS)
        except (WorkflowsUnavailable, NoSuchWorkflow, CommandRefused) as failure:
            _log.warning("the cancel of %s was not delivered: %s", launch_id, failure)
            return False
        return True

    async def terminate_node(self, node: m.NodeInput, command: m.TerminateNode) -> bool:
        """See `IntentDelivery`."""
        try:
            await self._workflows.terminate_node(node, command, timeout_s=_DELIVERY_SECONDS)
        except (WorkflowsUnavailable, CommandRefused) as failure:
            _log.warning("the termination of %s was not delivered: %s", node.node_id, failure)
            return False
        return True

    async def drain_node(self, node: m.NodeInput, command: m.DrainNode) -> bool:
        """See `IntentDelivery`."""
        try:
            await self._workflows.drain_node(node, command, timeout_s=_DELIVERY_SECONDS)
        except (WorkflowsUnavailable, CommandRefused) as failure:
            _log.warning("the drain of %s was not delivered: %s", node.node_id, failure)
            return False
        return True

    async def replace_node(self, node: m.NodeInput, command: m.ReplaceNode) -> bool:
        """See `IntentDelivery`."""
        try:
            await self._workflows.replace_node(node, command, timeout_s=_DELIVERY_SECONDS)
        except (WorkflowsUnavailable, CommandRefused) as failure:
            _log.warning("the replacement of %s was not delivered: %s", node.node_id, failure)
            return False
        return True

    async def warn_of_preemption(self, node: m.NodeInput, warning: m.PreemptionWarned) -> bool:
        """See `IntentDelivery`."""
        try:
            await self._workflows.warn_of_preemption(node, warning, timeout_s=_DELIVERY_SECONDS)
        except WorkflowsUnavailable as failure:
            _log.warning("the preemption notice of %s was not delivered: %s", node.node_id, failure)
            return False
        return True

    async def end_stray(self, stray: m.TerminateInput) -> bool:
        """See `IntentDelivery`."""
        try:
            return await self._workflows.start_teardown(stray, timeout_s=_DELIVERY_SECONDS)
        except WorkflowsUnavailable as failure:
            _log.warning("the end of %s, which nobody claims, is not begun yet: %s", stray.cluster_name, failure)
            return False


class _QuietServer(uvicorn.Server):
    """uvicorn that leaves signals to the worker."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@contextlib.asynccontextmanager
async def health_endpoint(config: Settings, client: Client, workers: list[Worker]) -> AsyncIterator[None]:
    """`GET /health`: 200 while the queues are polled and Temporal answers, else 503. `GET /metrics` beside it."""
    if not config.worker_health_port:
        yield
        return

    async def health(_: Request) -> JSONResponse:
        try:
            temporal = await client.service_client.check_health(timeout=timedelta(seconds=3))
        except RPCError:
            temporal = False
        running = all(worker.is_running for worker in workers)
        return JSONResponse(
            {"ok": temporal and running, "temporal": temporal, "queues": config.worker_queues},
            status_code=200 if temporal and running else 503,
        )

    async def tell_metrics(request: Request) -> Response:
        body, media_type = metrics.exposition(request.headers.get("accept", ""), metrics.WORKER)
        return Response(body, headers={"Content-Type": media_type})

    server = _QuietServer(
        uvicorn.Config(
            Starlette(routes=[Route("/health", health), Route("/metrics", tell_metrics)]),
            host=config.worker_health_host,
            port=config.worker_health_port,
            log_level="warning",
            access_log=False,
            lifespan="off",
        )
    )
    serving = asyncio.create_task(server.serve())
    try:
        yield
    finally:
        server.should_exit = True
        await serving


async def run(config: Settings) -> None:
    """Run the queues until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    database = Database(config.database_url.get_secret_value(), pool_size=config.database_pool_size)
    clouds, polls = build_clouds(config, database), EnginePolls()
    starting = asyncio.create_task(_start(config, database, clouds, polls))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        return
    client, workers = starting.result()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(database.aclose)
        stack.push_async_callback(polls.aclose)
        for cloud in clouds.values():
            stack.push_async_callback(cloud.aclose)
        for worker in workers:
            await stack.enter_async_context(worker)
        await stack.enter_async_context(health_endpoint(config, client, workers))
        _log.info("worker is up: %s", ", ".join(config.worker_queues))
        await stop.wait()
        _log.info("worker is stopping")


async def _start(
    config: Settings, database: Database, clouds: dict[str, Cloud], polls: EnginePolls
) -> tuple[Client, list[Worker]]:
    bucket = build_bucket(config)
    client = await connect(config)
    if queues.CONTROL in config.worker_queues:
        await search_attributes.register(client)
        await ensure_sweep(client, config.sweep_interval_seconds)
        await ensure_watch(client)
        await ensure_notifications(client, max(config.sweep_interval_seconds, _LEAST_NOTIFICATIONS_SECONDS))
    if queues.TEARDOWN in config.worker_queues:
        await ensure_model_refresh(client, config)
    while True:
        try:
            await _publish(config, database, clouds, bucket)
            break
        except (OSError, DBAPIError) as failure:  # away, still starting, or not migrated yet
            _log.warning("the database is not ready: %s", failure)
            await asyncio.sleep(0.5)
    return client, build_workers(client, config, database, clouds, bucket, polls)


async def _publish(config: Settings, database: Database, clouds: dict[str, Cloud], bucket: Bucket | None) -> None:
    """Write down what the API must know of this worker."""
    if queues.PROVISION in config.worker_queues:
        # Launches provisioned here name this version of the agent; any API must be able to hand it out.
        async with database.transaction() as session:
            await AgentBundleRepository(session).publish(bundle.version(), bundle.sha256(), bundle.build())
    if queues.TEARDOWN in config.worker_queues:
        async with database.transaction() as session:
            await ModelBucketRepository(session).configure(bucket.url if bucket else None)
        # The first catalog, so that launches are accepted at once; from here on the sweep keeps it.
        await refresh_catalog(database, clouds)


def main() -> None:
    """Entry point of `python -m worker`."""
    config = settings()
    logs.configure(config.log_format)
    traces.configure("skyfleet-worker")
    try:
        if config.temporal_metrics_port:
            serve_sdk_metrics(config.worker_health_host, config.temporal_metrics_port)
        uvloop.run(run(config))
    except Exception:
        _log.exception("the worker failed")
        leave(1)
    finally:
        traces.shutdown()
    leave(0)


if __name__ == "__main__":
    main()
