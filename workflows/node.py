"""`NodeWorkflow`: sees to a node's end, until its cloud confirms that the machine is gone."""

from __future__ import annotations

import asyncio

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.signatures import MachineSteps, NodeSteps
    from skyfleet.domain import messages as m
    from skyfleet.domain.states import NodeStatus
    from workflows import options, search_attributes


@workflow.defn(name="NodeWorkflow")
class NodeWorkflow:
    """Started with the first command that a node gets; until then its row in the database is its owner (ADR 0010)."""

    @workflow.init
    def __init__(self, request: m.NodeInput) -> None:
        self._request = request
        self._status = NodeStatus.READY
        self._terminate: m.TerminateNode | None = None

    @workflow.run
    async def run(self, request: m.NodeInput) -> m.NodeView:
        """Wait for the end to be asked for, then see to it."""
        try:
            await workflow.wait_condition(lambda: self._terminate is not None)
        except asyncio.CancelledError:
            # Cancelling the owner (in the Temporal Web UI) must not leave the machine without one.
            self._terminate = m.TerminateNode(requested_by="Temporal", reason="the node's workflow was cancelled")
        assert self._terminate is not None
        why = f"terminated by {self._terminate.requested_by}"
        if self._terminate.reason:
            why += f": {self._terminate.reason}"
        self._status = NodeStatus.TERMINATING
        await workflow.execute_activity_method(
            NodeSteps.mark_node,
            m.MarkNodeInput(node_id=request.node_id, status=self._status.value, message=why),
            summary=why[:200],
            **options.CONTROL,
        )
        await workflow.execute_activity_method(
            MachineSteps.terminate_machine,
            m.TerminateInput(
                backend=request.backend,
                cluster_name=request.cluster_name,
                reason=why,
                launch_id=request.launch_id,
                attempt=request.attempt,
                node_id=request.node_id,
            ),
            summary=f"end {request.cluster_name}, until the cloud says that it is gone",
            **options.TEARDOWN,
        )
        self._status = NodeStatus.TERMINATED
        workflow.upsert_search_attributes([search_attributes.STAGE.value_set(self._status.value.upper())])
        return self.status()

    @workflow.update
    def terminate(self, command: m.TerminateNode) -> m.Accepted:
        """End the node. It is terminated once the cloud confirms that the machine is gone."""
        if self._terminate is None:
            self._terminate = command
        return m.Accepted(stage=self._status.value)

    @workflow.query
    def status(self) -> m.NodeView:
        """Where the node stands."""
        return m.NodeView(
            node_id=self._request.node_id,
            status=self._status.value,
            terminate_requested_by=self._terminate.requested_by if self._terminate else None,
            terminate_reason=self._terminate.reason if self._terminate else None,
        )
