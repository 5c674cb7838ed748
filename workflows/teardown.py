"""`TeardownWorkflow`: ends a machine that no launch and no node claims, for certain."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.signatures import MachineSteps
    from skyfleet.domain import messages as m
    from workflows import options


@workflow.defn(name="TeardownWorkflow")
class TeardownWorkflow:
    """Started by the sweep, one for each stray; tries until the cloud confirms."""

    @workflow.run
    async def run(self, request: m.TerminateInput) -> m.TerminateResult:
        """End the machine."""
        result: m.TerminateResult = await workflow.execute_activity_method(
            MachineSteps.terminate_machine,
            request,
            summary=f"end {request.cluster_name}, until the cloud says that it is gone",
            **options.TEARDOWN,
        )
        return result
