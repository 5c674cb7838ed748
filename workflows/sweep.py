"""`SweepWorkflow`: run by a Temporal Schedule, mends what fell between two processes."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from activities.signatures import CostSteps, SweepSteps
    from skyfleet.domain import messages as m
    from skyfleet.domain import queues


@workflow.defn(name="SweepWorkflow")
class SweepWorkflow:
    """Lost starts are started, commands that did not reach their workflow delivered, the catalog is read anew.

    What the clouds have is compared with what the database knows, and what was spent with the budgets.
    """

    @workflow.run
    async def run(self, request: m.SweepInput) -> m.SweepResult:
        """One sweep. A step that fails is left to the next sweep, which is only seconds away."""
        once = RetryPolicy(maximum_attempts=1)
        result = await workflow.execute_activity_method(
            SweepSteps.redeliver_intents,
            request,
            task_queue=queues.CONTROL,
            start_to_close_timeout=timedelta(seconds=60),
            retry_policy=once,
        )
        if workflow.patched("check-budgets"):
            budgets = await workflow.execute_activity_method(
                CostSteps.check_budgets,
                request,
                task_queue=queues.CONTROL,
                start_to_close_timeout=timedelta(seconds=60),
                retry_policy=once,
            )
            told = {"budget_alerts": budgets.alerts, "budget_drains": budgets.drained_nodes}
            result = result.model_copy(update=told)
        catalog = await workflow.execute_activity_method(
            SweepSteps.refresh_catalog,
            request,
            task_queue=queues.TEARDOWN,
            start_to_close_timeout=timedelta(seconds=60),
            schedule_to_start_timeout=timedelta(seconds=60),
            retry_policy=once,
        )
        result = result.model_copy(update={"offers": catalog.offers})
        if not workflow.patched("compare-with-clouds"):  # a sweep that was under way when this step came
            return result
        found = await workflow.execute_activity_method(
            SweepSteps.compare_with_clouds,
            request,
            task_queue=queues.TEARDOWN,
            start_to_close_timeout=timedelta(seconds=60),
            schedule_to_start_timeout=timedelta(seconds=60),
            retry_policy=once,
        )
        return result.model_copy(update={"ended_strays": found.ended_strays, "lost_nodes": found.lost_nodes})
