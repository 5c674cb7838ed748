"""The steps of a node's life on our own database."""

from __future__ import annotations

from temporalio import activity

from activities.signatures import NodeSteps
from skyfleet.db.repositories import AuditRepository, NodeRepository
from skyfleet.db.session import Database
from skyfleet.domain import messages as m
from skyfleet.domain.states import NodeStatus


class NodeActivities(NodeSteps):
    """Steps of `NodeWorkflow`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @activity.defn
    async def mark_node(self, request: m.MarkNodeInput) -> m.Done:
        """Write the node's new status; a terminated node stays terminated."""
        async with self._database.transaction() as session:
            node = await NodeRepository(session).get(request.node_id, lock=True)
            if node is not None and node.status not in (NodeStatus.TERMINATED.value, request.status):
                node.status, node.status_message = request.status, request.message
                AuditRepository(session).add(
                    principal="skyfleet",
                    action=f"node.{request.status}",
                    subject=request.node_id,
                    outcome="done",
                    detail={"why": request.message},
                )
        return m.Done()
