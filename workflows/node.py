"""`NodeWorkflow`: what is commanded of a node, and its end, until its cloud confirms that the machine is gone."""

from __future__ import annotations

from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.signatures import MachineSteps, NodeSteps
    from skyfleet.domain import messages as m
    from skyfleet.domain.health import OURSELVES
    from skyfleet.domain.states import LaunchStage, NodeStatus
    from workflows import options, search_attributes

#: How often a draining node is asked whether it is done, and its replacement how far it is.
_DRAIN_LOOK = timedelta(seconds=5)
_REPLACEMENT_LOOK = timedelta(seconds=15)
#: How long a replaced node may finish its requests.
_DRAIN = timedelta(minutes=10)
#: A cloud that gives notice without a time takes the machine about this much later (AWS: two minutes).
_NOTICE = timedelta(minutes=2)


@workflow.defn(name="NodeWorkflow")
class NodeWorkflow:
    """Started with the first command that a node gets; until then its row in the database is its owner (ADR 0010)."""

    @workflow.init
    def __init__(self, request: m.NodeInput) -> None:
        self._request = request
        self._status = NodeStatus.READY
        self._terminate: m.TerminateNode | None = None
        self._warning: m.PreemptionWarned | None = None
        self._replace: m.ReplaceNode | None = None
        self._drain: m.DrainNode | None = None
        self._replaced_by: str | None = None
        self._doing = ""

    @workflow.run
    async def run(self, request: m.NodeInput) -> m.NodeView:
        """Do what is commanded until an end is decided, then see to that end."""
        try:
            why = await self._serve()
        except BaseException as failure:
            if not is_cancelled_exception(failure):
                raise
            # Cancelling the owner (in the Temporal Web UI) must not leave the machine without one.
            self._terminate = m.TerminateNode(requested_by="Temporal", reason="the node's workflow was cancelled")
            why = self._end_asked()
        await self._mark(NodeStatus.TERMINATING, why)
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
        self._enter(NodeStatus.TERMINATED, "")
        return self.status()

    # --- until the end is decided -----------------------------------------------------------------------------

    async def _serve(self) -> str:
        """Why the node ends, once that is decided and its requests are through."""
        while True:
            await workflow.wait_condition(
                lambda: any((self._terminate, self._warning, self._replace, self._drain)),
            )
            if self._terminate is not None:
                return self._end_asked()
            if self._warning is not None:
                return await self._leave(self._warning)
            if self._replace is not None:
                ended = await self._hand_over(self._replace)
                if ended is not None:
                    return ended
            elif self._drain is not None:
                why = _asked("drained", self._drain)
                await self._drain_out(why, workflow.now() + timedelta(seconds=self._drain.seconds))
                if not self._interrupted():
                    return why

    async def _leave(self, warning: m.PreemptionWarned) -> str:
        """The cloud takes the machine: ask for another now, and let requests finish until then."""
        deadline = warning.deadline or workflow.now() + _NOTICE
        why = f"{self._request.cloud} takes the machine away at {deadline:%H:%M:%S} UTC ({warning.source})"
        # First of all: its time runs. The API has it out of rotation already.
        await self._ask_for_another(why, preempted=True)
        await self._drain_out(why, deadline, heed_warning=False)
        return why

    async def _hand_over(self, command: m.ReplaceNode) -> str | None:
        """Replace the node; None when it goes on serving, or something more urgent came."""
        why = _asked("replaced", command)
        if command.at_once:
            await self._mark(NodeStatus.DRAINING, why)
            await self._ask_for_another(why)
            return why
        await self._mark(NodeStatus.READY, f"being {why}")
        refusal = await self._ask_for_another(why)
        while refusal is None:
            assert self._replaced_by is not None
            found: m.CheckReplacementResult = await workflow.execute_activity_method(
                NodeSteps.check_replacement,
                m.CheckReplacementInput(launch_id=self._replaced_by),
                summary=f"is {self._replaced_by} ready?",
                **options.CONTROL,
            )
            if found.stage is LaunchStage.READY:
                await self._drain_out(why, workflow.now() + _DRAIN)
                return None if self._interrupted() else why
            if found.stage.terminal:
                refusal = f"{self._replaced_by} ended {found.stage.value}: {found.error}"
            elif await self._rest(_REPLACEMENT_LOOK):
                return None
        self._replace = None
        if command.requested_by == OURSELVES:
            # It was found wanting, and goes either way; whom it still serves, it may finish with.
            await self._drain_out(why, workflow.now() + _DRAIN)
            return None if self._interrupted() else f"{why}; no other: {refusal}"
        await self._mark(NodeStatus.READY, f"serves on, not replaced: {refusal}", kept=True)
        return None

    async def _ask_for_another(self, why: str, *, preempted: bool = False) -> str | None:
        """Ask for another node, once; why there will be none."""
        result: m.ReplacementResult = await workflow.execute_activity_method(
            NodeSteps.request_replacement,
            m.ReplacementInput(node_id=self._request.node_id, reason=why, preempted=preempted),
            summary=f"another node: {why}"[:200],
            **options.CONTROL,
        )
        self._replaced_by = result.launch_id or self._replaced_by
        return None if result.launch_id else result.why_not

    async def _drain_out(self, why: str, deadline: datetime, *, heed_warning: bool = True) -> None:
        """No new requests; wait for those that run, until the deadline or something more urgent."""
        await self._mark(NodeStatus.DRAINING, why)
        since = workflow.now()
        while workflow.now() < deadline:
            look: m.CheckDrainResult = await workflow.execute_activity_method(
                NodeSteps.check_drain,
                m.CheckDrainInput(node_id=self._request.node_id, since=since),
                summary="are its requests through?",
                **options.CONTROL,
            )
            if look.drained or look.silent:
                return
            if await self._rest(min(_DRAIN_LOOK, deadline - workflow.now()), heed_warning=heed_warning):
                return

    async def _rest(self, pause: timedelta, *, heed_warning: bool = True) -> bool:
        """Wait until the next look is due; whether something more urgent came meanwhile."""
        try:
            await workflow.wait_condition(
                lambda: self._terminate is not None or (heed_warning and self._warning is not None),
                timeout=max(pause, timedelta(milliseconds=100)),
            )
        except TimeoutError:
            return False
        return True

    def _interrupted(self) -> bool:
        return self._terminate is not None or self._warning is not None

    def _end_asked(self) -> str:
        assert self._terminate is not None
        return _asked("terminated", self._terminate)

    async def _mark(self, status: NodeStatus, why: str, *, kept: bool = False) -> None:
        self._enter(status, why)
        await workflow.execute_activity_method(
            NodeSteps.mark_node,
            m.MarkNodeInput(node_id=self._request.node_id, status=status.value, message=why, kept=kept),
            summary=why[:200],
            **options.CONTROL,
        )

    def _enter(self, status: NodeStatus, why: str) -> None:
        """What the Temporal Web UI shows of it."""
        self._doing = why
        workflow.set_current_details(why)
        if status is not self._status:
            self._status = status
            # TERMINATING was never an attribute of its own in histories of 0.1.
            if status is not NodeStatus.TERMINATING:
                workflow.upsert_search_attributes([search_attributes.STAGE.value_set(status.value.upper())])

    # --- commands and facts -----------------------------------------------------------------------------------

    @workflow.update
    def terminate(self, command: m.TerminateNode) -> m.Accepted:
        """End the node. It is terminated once the cloud confirms that the machine is gone."""
        if self._terminate is None:
            self._terminate = command
        return m.Accepted(stage=self._status.value)

    @workflow.update
    def drain(self, command: m.DrainNode) -> m.Accepted:
        """Let the node finish what it serves, and end it then."""
        if self._drain is None:
            self._drain = command
        return m.Accepted(stage=self._status.value)

    @workflow.update
    def replace(self, command: m.ReplaceNode) -> m.Accepted:
        """Ask for another node, and end this one."""
        if self._replace is None:
            self._replace = command
        return m.Accepted(stage=self._status.value)

    @drain.validator
    def _may_drain(self, command: m.DrainNode) -> None:
        self._refuse_when_ending()

    @replace.validator
    def _may_replace(self, command: m.ReplaceNode) -> None:
        self._refuse_when_ending()

    def _refuse_when_ending(self) -> None:
        if self._terminate is not None or self._status in (NodeStatus.TERMINATING, NodeStatus.TERMINATED):
            raise ApplicationError("the node is being terminated", type="NodeEnding")

    @workflow.signal
    def preemption_warned(self, event: m.PreemptionWarned) -> None:
        """The cloud gave notice that it takes the machine."""
        if self._warning is None:
            self._warning = event

    @workflow.query
    def status(self) -> m.NodeView:
        """Where the node stands."""
        return m.NodeView(
            node_id=self._request.node_id,
            status=self._status.value,
            terminate_requested_by=self._terminate.requested_by if self._terminate else None,
            terminate_reason=self._terminate.reason if self._terminate else None,
            doing=self._doing,
            replaced_by=self._replaced_by,
        )


def _asked(what: str, command: m.TerminateNode | m.DrainNode | m.ReplaceNode) -> str:
    return f"{what} by {command.requested_by}" + (f": {command.reason}" if command.reason else "")
