"""`FleetWatchWorkflow`: keeps one fleet watch running, on whichever worker there is."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.signatures import WatchSteps
    from skyfleet.domain import messages as m
    from workflows import options


@workflow.defn(name="FleetWatchWorkflow")
class FleetWatchWorkflow:
    """Runs for ever, a stretch at a time. When its worker dies, another carries on after the heartbeat timeout."""

    @workflow.run
    async def run(self, request: m.WatchInput) -> None:
        """One stretch, then the next as a new run."""
        await workflow.execute_activity_method(
            WatchSteps.watch_fleet,
            request,
            summary="look at every serving node, again and again",
            **options.WATCH,
        )
        # A stretch that ends at once (its worker is stopping) must not make this spin.
        await workflow.sleep(timedelta(seconds=1))
        workflow.continue_as_new(request)
