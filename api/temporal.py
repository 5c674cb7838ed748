"""All talk with Temporal, behind one protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from skyfleet.domain import ids, queues
from skyfleet.domain.messages import (
    Accepted,
    CancelLaunch,
    ChannelTestInput,
    ChannelTestResult,
    DrainNode,
    EngineFailed,
    LaunchInput,
    LaunchView,
    NodeInput,
    NodeRegistered,
    PreemptionWarned,
    ReplaceNode,
    StageReached,
    SweepInput,
    TerminateInput,
    TerminateNode,
)
from skyfleet.settings import Settings

if TYPE_CHECKING:
    from temporalio.client import Client


class WorkflowsUnavailable(Exception):
    """Temporal, or the worker that would answer, is away. The request may have taken effect."""


class NoSuchWorkflow(Exception):
    """There is no running workflow of that id."""


class CommandRefused(Exception):
    """The workflow refused the command; `kind` is its error type (`LaunchEnded`, …)."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Workflows(Protocol):
    """What the API asks of workflows. Every method raises `WorkflowsUnavailable` when there is no answer in time."""

    async def start_launch(self, request: LaunchInput, *, timeout_s: float) -> None:
        """Start the launch's workflow unless it runs, or ran, already."""

    async def cancel_launch(self, launch_id: str, command: CancelLaunch, *, timeout_s: float) -> Accepted:
        """The `cancel` update. Raises `NoSuchWorkflow`, `CommandRefused`."""

    async def launch_status(self, launch_id: str, *, timeout_s: float) -> LaunchView:
        """The `status` query. Raises `NoSuchWorkflow`."""

    async def node_registered(self, launch_id: str, event: NodeRegistered, *, timeout_s: float) -> None:
        """The signal. Raises `NoSuchWorkflow`."""

    async def stage_reached(self, launch_id: str, event: StageReached, *, timeout_s: float) -> None:
        """The signal. Raises `NoSuchWorkflow`."""

    async def engine_failed(self, launch_id: str, event: EngineFailed, *, timeout_s: float) -> None:
        """The signal. Raises `NoSuchWorkflow`."""

    async def terminate_node(self, node: NodeInput, command: TerminateNode, *, timeout_s: float) -> Accepted:
        """The `terminate` update, starting the node's workflow if it does not run. Raises `CommandRefused`."""

    async def drain_node(self, node: NodeInput, command: DrainNode, *, timeout_s: float) -> Accepted:
        """The `drain` update, starting the node's workflow if it does not run. Raises `CommandRefused`."""

    async def replace_node(self, node: NodeInput, command: ReplaceNode, *, timeout_s: float) -> Accepted:
        """The `replace` update, starting the node's workflow if it does not run. Raises `CommandRefused`."""

    async def warn_of_preemption(self, node: NodeInput, warning: PreemptionWarned, *, timeout_s: float) -> None:
        """The `preemption_warned` signal, starting the node's workflow if it does not run."""

    async def refresh_models(self, *, timeout_s: float) -> None:
        """Have the model bucket read, after the reading that is under way. Raises `NoSuchWorkflow`: there is none."""

    async def recheck_clouds(self, asked_at: datetime, *, timeout_s: float) -> None:
        """Have a sweep check where machines can be bought, and read what is sold there, for the request of then."""

    async def test_channel(self, request: ChannelTestInput, nonce: str, *, timeout_s: float) -> ChannelTestResult:
        """Have a worker send a test message; `nonce` tells one test of a channel from another."""

    async def check(self, *, timeout_s: float) -> None:
        """Return when Temporal serves."""


def _node_start(node: NodeInput) -> dict[str, Any]:
    """How a node's workflow is started by whatever comes first."""
    from temporalio.common import WorkflowIDConflictPolicy

    from workflows import search_attributes

    return {
        "id": ids.node_workflow_id(node.node_id),
        "task_queue": queues.CONTROL,
        "id_conflict_policy": WorkflowIDConflictPolicy.USE_EXISTING,
        "search_attributes": search_attributes.of_node(
            node.tenant, node.deployment, node.cloud, node.region, node.market
        ),
        "static_summary": f"{node.cluster_name} on {node.cloud}/{node.region}",
    }


class TemporalWorkflows:
    """The real thing. Connects on first use and again by itself, so that the API starts while Temporal is away."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Client | None = None

    async def start_launch(self, request: LaunchInput, *, timeout_s: float) -> None:
        """See `Workflows`."""
        from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
        from temporalio.exceptions import WorkflowAlreadyStartedError

        from workflows import search_attributes
        from workflows.launch import LaunchWorkflow

        async with self._talk(timeout_s) as client:
            try:
                await client.start_workflow(
                    LaunchWorkflow.run,
                    request,
                    id=ids.launch_workflow_id(request.launch_id),
                    task_queue=queues.CONTROL,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    search_attributes=search_attributes.at_start(request.tenant, request.deployment),
                    static_summary=f"{request.model_name}, asked for on {request.provider or 'any cloud'}",
                )
            except WorkflowAlreadyStartedError:
                return  # it ran and ended: started all the same

    async def cancel_launch(self, launch_id: str, command: CancelLaunch, *, timeout_s: float) -> Accepted:
        """See `Workflows`."""
        from workflows.launch import LaunchWorkflow

        async with self._talk(timeout_s) as client:
            handle = client.get_workflow_handle_for(LaunchWorkflow.run, ids.launch_workflow_id(launch_id))
            # The fixed id makes a second cancel hear the answer to the first.
            return await handle.execute_update(LaunchWorkflow.cancel, command, id="cancel")

    async def launch_status(self, launch_id: str, *, timeout_s: float) -> LaunchView:
        """See `Workflows`."""
        from workflows.launch import LaunchWorkflow

        async with self._talk(timeout_s) as client:
            handle = client.get_workflow_handle_for(LaunchWorkflow.run, ids.launch_workflow_id(launch_id))
            return await handle.query(LaunchWorkflow.status)

    async def node_registered(self, launch_id: str, event: NodeRegistered, *, timeout_s: float) -> None:
        """See `Workflows`."""
        from workflows.launch import LaunchWorkflow

        async with self._talk(timeout_s) as client:
            handle = client.get_workflow_handle_for(LaunchWorkflow.run, ids.launch_workflow_id(launch_id))
            await handle.signal(LaunchWorkflow.node_registered, event)

    async def stage_reached(self, launch_id: str, event: StageReached, *, timeout_s: float) -> None:
        """See `Workflows`."""
        from workflows.launch import LaunchWorkflow

        async with self._talk(timeout_s) as client:
            handle = client.get_workflow_handle_for(LaunchWorkflow.run, ids.launch_workflow_id(launch_id))
            await handle.signal(LaunchWorkflow.stage_reached, event)

    async def engine_failed(self, launch_id: str, event: EngineFailed, *, timeout_s: float) -> None:
        """See `Workflows`."""
        from workflows.launch import LaunchWorkflow

        async with self._talk(timeout_s) as client:
            handle = client.get_workflow_handle_for(LaunchWorkflow.run, ids.launch_workflow_id(launch_id))
            await handle.signal(LaunchWorkflow.engine_failed, event)

    async def terminate_node(self, node: NodeInput, command: TerminateNode, *, timeout_s: float) -> Accepted:
        """See `Workflows`."""
        return await self._command("terminate", node, command, timeout_s)

    async def drain_node(self, node: NodeInput, command: DrainNode, *, timeout_s: float) -> Accepted:
        """See `Workflows`."""
        return await self._command("drain", node, command, timeout_s)

    async def replace_node(self, node: NodeInput, command: ReplaceNode, *, timeout_s: float) -> Accepted:
        """See `Workflows`."""
        return await self._command("replace", node, command, timeout_s)

    async def warn_of_preemption(self, node: NodeInput, warning: PreemptionWarned, *, timeout_s: float) -> None:
        """See `Workflows`."""
        async with self._talk(timeout_s) as client:
            await client.start_workflow(
                "NodeWorkflow",
                node,
                **_node_start(node),
                start_signal="preemption_warned",
                start_signal_args=[warning],
            )

    async def _command(
        self, name: str, node: NodeInput, command: TerminateNode | DrainNode | ReplaceNode, timeout_s: float
    ) -> Accepted:
        """An update of the node's workflow, which is started if it does not run."""
        from temporalio.client import WithStartWorkflowOperation

        async with self._talk(timeout_s) as client:
            start: WithStartWorkflowOperation[Any, Any] = WithStartWorkflowOperation(
                "NodeWorkflow", node, **_node_start(node)
            )
            answer = await client.execute_update_with_start_workflow(
                name,
                command,
                start_workflow_operation=start,
                # One that was refused, or that ended with the node serving on, may be asked for again.
                id=name if name == "terminate" else None,
                result_type=Accepted,
            )
            assert isinstance(answer, Accepted)
            return answer

    async def start_teardown(self, request: TerminateInput, *, timeout_s: float) -> bool:
        """Start the workflow that ends this machine; False if it runs already. The sweep's own."""
        from temporalio.exceptions import WorkflowAlreadyStartedError

        from workflows.teardown import TeardownWorkflow

        async with self._talk(timeout_s) as client:
            try:
                await client.start_workflow(
                    TeardownWorkflow.run,
                    request,
                    id=ids.teardown_workflow_id(request.cluster_name),
                    task_queue=queues.CONTROL,
                    static_summary=f"{request.cluster_name}: {request.reason}",
                )
            except WorkflowAlreadyStartedError:
                return False
            return True

    async def refresh_models(self, *, timeout_s: float) -> None:
        """See `Workflows`."""
        from temporalio.client import ScheduleOverlapPolicy

        async with self._talk(timeout_s) as client:
            await client.get_schedule_handle(ids.MODELS_SCHEDULE_ID).trigger(overlap=ScheduleOverlapPolicy.BUFFER_ONE)

    async def recheck_clouds(self, asked_at: datetime, *, timeout_s: float) -> None:
        """See `Workflows`."""
        from workflows.sweep import SweepWorkflow

        async with self._talk(timeout_s) as client:
            # A run of its own for each request: one that is under way may have looked before this was asked.
            await client.start_workflow(
                SweepWorkflow.run,
                SweepInput(recheck=True),
                id=ids.recheck_workflow_id(asked_at),
                task_queue=queues.CONTROL,
                execution_timeout=timedelta(minutes=5),
                static_summary="the clouds are checked because somebody asked",
            )

    async def test_channel(self, request: ChannelTestInput, nonce: str, *, timeout_s: float) -> ChannelTestResult:
        """See `Workflows`."""
        from temporalio.client import WorkflowFailureError

        from workflows.notifications import ChannelTestWorkflow

        async with self._talk(timeout_s) as client:
            try:
                return await client.execute_workflow(
                    ChannelTestWorkflow.run,
                    request,
                    id=ids.channel_test_workflow_id(request.channel_id, nonce),
                    task_queue=queues.CONTROL,
                    execution_timeout=timedelta(minutes=2),
                    static_summary=f"{request.requested_by} tests a notification channel",
                )
            except WorkflowFailureError as error:
                raise WorkflowsUnavailable(f"the test did not come to an end: {error.cause}") from error

    async def check(self, *, timeout_s: float) -> None:
        """See `Workflows`."""
        async with self._talk(timeout_s) as client:
            if not await client.service_client.check_health():
                raise WorkflowsUnavailable("Temporal says that it is not serving")

    @asynccontextmanager
    async def _talk(self, timeout_s: float) -> AsyncIterator[Client]:
        """The client, for one call that may take this long; translates what goes wrong."""
        from temporalio.client import (
            WorkflowQueryFailedError,
            WorkflowQueryRejectedError,
            WorkflowUpdateFailedError,
            WorkflowUpdateRPCTimeoutOrCancelledError,
        )
        from temporalio.exceptions import ApplicationError
        from temporalio.service import RPCError, RPCStatusCode

        try:
            async with asyncio.timeout(timeout_s):
                yield await self._connected()
        except TimeoutError:
            raise WorkflowsUnavailable(f"no answer from Temporal in {timeout_s:g} s") from None
        except WorkflowUpdateRPCTimeoutOrCancelledError as error:
            raise WorkflowsUnavailable(f"the workflow did not answer in {timeout_s:g} s") from error
        except WorkflowUpdateFailedError as error:
            kind = error.cause.type if isinstance(error.cause, ApplicationError) else None
            raise CommandRefused(kind or type(error.cause).__name__, str(error.cause)) from error
        except (WorkflowQueryFailedError, WorkflowQueryRejectedError) as error:
            raise WorkflowsUnavailable(f"the workflow could not answer: {error}") from error
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                raise NoSuchWorkflow(error.message) from error
            raise WorkflowsUnavailable(f"Temporal: {error.message}") from error
        except (RuntimeError, OSError) as error:  # what the SDK raises when it cannot connect
            raise WorkflowsUnavailable(f"Temporal at {self._settings.temporal_address}: {error}") from error

    async def _connected(self) -> Client:
        if self._client is None:
            from temporalio.client import Client
            from temporalio.contrib.pydantic import pydantic_data_converter

            from skyfleet.telemetry import traces

            # Lazy: no call is made here. Each call connects if need be, and the channel reconnects by itself.
            self._client = await Client.connect(
                self._settings.temporal_address,
                namespace=self._settings.temporal_namespace,
                data_converter=pydantic_data_converter,
                interceptors=traces.temporal_interceptors(),
                lazy=True,
            )
        return self._client
